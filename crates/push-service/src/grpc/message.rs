//! PushService.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use chrono::{DateTime, SubsecRound as _, TimeDelta, Utc};
use prost_types::Timestamp;
use proto::push::v1::{
    self as pb, BatchSendError, BatchSendMessagesRequest, BatchSendMessagesResponse,
    BatchSendResult, CancelMessageRequest, CancelMessageResponse, FieldViolation,
    GetMessageRequest, GetMessageResponse, RetryMessageRequest, RetryMessageResponse,
    SendMessageRequest, SendMessageResponse, batch_send_result, push_service_server::PushService,
    send_message_request,
};
use service_kit::{App, AppKind, Caller, CatalogHandle};
use tonic::{Request, Response, Status};
use tonic_types::StatusExt as _;
use wechat::{
    CustomerContent, OpenId,
    customer::{Article, Media, Menu, MenuItem, MiniProgramPage, Music, Picture, Video},
};

use crate::{
    database::{is_key, moment},
    error::Error,
    message::{
        Content, Customer, FormTemplate, Link, Message, Messages, NewMessage, Sender, State,
        Subscribe, Template, Violation,
    },
};

/// The longest request_id, in bytes.
const MAX_REQUEST_ID: usize = 128;
/// The most messages of a batch.
const MAX_BATCH: usize = 1_000;
/// Messages are planned no farther ahead.
const FARTHEST: TimeDelta = TimeDelta::days(366);

#[derive(Debug, Clone)]
pub(crate) struct PushRpc {
    pub(crate) messages: Messages,
    pub(crate) catalog: CatalogHandle,
}

#[tonic::async_trait]
impl PushService for PushRpc {
    async fn send_message(
        &self,
        request: Request<SendMessageRequest>,
    ) -> Result<Response<SendMessageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let app = caller.app(&self.catalog.current(), &request.app_id)?;
        let new = new_message(&app, request, moment(&self.messages.clock))?;
        let message = self.messages.accept(sender(&caller, &app), new).await?;
        Ok(Response::new(SendMessageResponse {
            message: Some(self.to_pb(message)),
        }))
    }

    async fn batch_send_messages(
        &self,
        request: Request<BatchSendMessagesRequest>,
    ) -> Result<Response<BatchSendMessagesResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let catalog = self.catalog.current();
        let app = caller.app(&catalog, &request.app_id)?;
        if !(1..=MAX_BATCH).contains(&request.messages.len()) {
            let problem = format!("must be 1 to {MAX_BATCH}");
            return Err(Error::Invalid(vec![("messages".to_owned(), problem)]).into());
        }
        let now = moment(&self.messages.clock);
        let mut refused = Vec::new();
        let mut checked = Vec::new();
        for (place, message) in request.messages.into_iter().enumerate() {
            let same_app = message.app_id.is_empty()
                || catalog
                    .app(&message.app_id)
                    .is_some_and(|named| named.app_id == app.app_id);
            let new = if same_app {
                new_message(&app, message, now)
            } else {
                let problem = "must be empty, or name the app of the batch";
                Err(Error::Invalid(vec![(
                    "app_id".to_owned(),
                    problem.to_owned(),
                )]))
            };
            match new {
                Ok(new) => checked.push(new),
                Err(error) => refused.push((place, error)),
            }
        }
        let accepted = if checked.is_empty() {
            Vec::new()
        } else {
            self.messages
                .accept_all(sender(&caller, &app), checked)
                .await?
        };
        let mut results: Vec<_> = accepted
            .into_iter()
            .map(|result| self.result(result))
            .collect();
        // Places count from the front: each goes back to where it was.
        for (place, error) in refused {
            results.insert(place, self.result(Err(error)));
        }
        Ok(Response::new(BatchSendMessagesResponse { results }))
    }

    async fn get_message(
        &self,
        request: Request<GetMessageRequest>,
    ) -> Result<Response<GetMessageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let message = self
            .messages
            .get(&caller, &request.into_inner().message_id)
            .await?;
        Ok(Response::new(GetMessageResponse {
            message: Some(self.to_pb(message)),
        }))
    }

    async fn cancel_message(
        &self,
        request: Request<CancelMessageRequest>,
    ) -> Result<Response<CancelMessageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let message_id = request.into_inner().message_id;
        let message = self.messages.cancel(&caller, &message_id).await?;
        Ok(Response::new(CancelMessageResponse {
            message: Some(self.to_pb(message)),
        }))
    }

    async fn retry_message(
        &self,
        request: Request<RetryMessageRequest>,
    ) -> Result<Response<RetryMessageResponse>, Status> {
        let caller = Caller::of(&request)?;
        let message_id = request.into_inner().message_id;
        let message = self.messages.retry(&caller, &message_id).await?;
        Ok(Response::new(RetryMessageResponse {
            message: Some(self.to_pb(message)),
        }))
    }
}

impl PushRpc {
    fn to_pb(&self, message: Message) -> pb::Message {
        to_pb(message, moment(&self.messages.clock))
    }

    fn result(&self, result: Result<Message, Error>) -> BatchSendResult {
        let result = match result {
            Ok(message) => batch_send_result::Result::Message(Box::new(self.to_pb(message))),
            Err(error) => batch_send_result::Result::Error(batch_error(&Status::from(error))),
        };
        BatchSendResult {
            result: Some(result),
        }
    }
}

fn sender(caller: &Caller, app: &App) -> Sender {
    Sender {
        app_id: app.app_id.clone(),
        caller: caller.name.clone(),
    }
}

/// What SendMessage would have answered, as data.
fn batch_error(status: &Status) -> BatchSendError {
    let details = status.get_error_details();
    let violations = details.bad_request().map(|bad| bad.field_violations.iter());
    BatchSendError {
        reason: details
            .error_info()
            .map(|info| info.reason.clone())
            .unwrap_or_default(),
        message: status.message().to_owned(),
        field_violations: violations
            .into_iter()
            .flatten()
            .map(|violation| FieldViolation {
                field: violation.field.clone(),
                description: violation.description.clone(),
            })
            .collect(),
    }
}

fn new_message(
    app: &App,
    request: SendMessageRequest,
    now: DateTime<Utc>,
) -> Result<NewMessage, Error> {
    let mut violations: Vec<Violation> = Vec::new();
    let (schedule_time, expire_time) = times(&request, now, &mut violations);
    let open_id = OpenId::try_from(request.open_id).ok();
    if open_id.is_none() {
        let problem = "must be the user's openid, as WeChat gave it";
        violations.push(("open_id".to_owned(), problem.to_owned()));
    }
    if request.request_id.len() > MAX_REQUEST_ID || !is_key(&request.request_id) {
        violations.push((
            "request_id".to_owned(),
            format!("must be at most {MAX_REQUEST_ID} visible ASCII characters"),
        ));
    }
    let content = match request.content {
        None => {
            let problem = "must be one of template, subscribe, customer and form_template";
            violations.push(("content".to_owned(), problem.to_owned()));
            None
        }
        Some(content) => match content_from_pb(app, content) {
            Ok(content) => {
                violations.extend(content.violations(app));
                Some(content)
            }
            Err(violation) => {
                violations.push(violation);
                None
            }
        },
    };
    match (open_id, content) {
        (Some(open_id), Some(content)) if violations.is_empty() => Ok(NewMessage {
            open_id,
            request_id: non_empty(request.request_id),
            content,
            schedule_time,
            expire_time,
        }),
        _ => Err(Error::Invalid(violations)),
    }
}

/// When the message may go out, from and until; nothing where it may always.
fn times(
    request: &SendMessageRequest,
    now: DateTime<Utc>,
    violations: &mut Vec<Violation>,
) -> (Option<DateTime<Utc>>, Option<DateTime<Utc>>) {
    let mut read = |field: &str, time: Option<Timestamp>| {
        let time = SystemTime::try_from(time?);
        let time = time
            .ok()
            .map(DateTime::<Utc>::from)
            .filter(|time| *time <= now + FARTHEST);
        if time.is_none() {
            let problem = format!("must be a time within {} days", FARTHEST.num_days());
            violations.push((field.to_owned(), problem));
        }
        // The database keeps microseconds, and a repeated request has to compare equal.
        time.map(|time| time.trunc_subsecs(6))
    };
    let schedule_time = read("schedule_time", request.schedule_time);
    let expire_time = read("expire_time", request.expire_time);
    if let Some(expires) = expire_time
        && (expires <= now || Some(expires) <= schedule_time)
    {
        let problem = "must be later than now and than schedule_time";
        violations.push(("expire_time".to_owned(), problem.to_owned()));
    }
    (schedule_time, expire_time)
}

fn content_from_pb(
    app: &App,
    content: send_message_request::Content,
) -> Result<Content, Violation> {
    Ok(match content {
        send_message_request::Content::Template(template) => Content::Template(Template {
            template_id: template.template_id,
            url: non_empty(template.url),
            mini_program: template.mini_program.map(|link| Link {
                app_id: link.app_id,
                page_path: link.page_path,
            }),
            data: sorted(template.data),
        }),
        send_message_request::Content::Subscribe(subscribe) => Content::Subscribe(Subscribe {
            template_id: subscribe.template_id,
            page: non_empty(subscribe.page),
            data: sorted(subscribe.data),
            mini_program_state: non_empty(subscribe.mini_program_state),
            lang: non_empty(subscribe.lang),
        }),
        send_message_request::Content::FormTemplate(form_template) => {
            Content::FormTemplate(FormTemplate {
                template_id: form_template.template_id,
                page: non_empty(form_template.page),
                form_id: non_empty(form_template.form_id),
                data: sorted(form_template.data),
                emphasis_keyword: non_empty(form_template.emphasis_keyword),
            })
        }
        send_message_request::Content::Customer(customer) => Content::Customer(Customer {
            kf_account: non_empty(customer.kf_account),
            message: customer_from_pb(app, customer.message)?,
        }),
    })
}

fn customer_from_pb(
    app: &App,
    message: Option<pb::customer_content::Message>,
) -> Result<CustomerContent, Violation> {
    use pb::customer_content::Message as Pb;

    let media = |media: pb::CustomerMedia| Media {
        media_id: media.media_id,
    };
    let article = |article: pb::CustomerArticle, picture: fn(String) -> Picture| Article {
        title: article.title,
        description: article.description,
        url: article.url,
        picture: picture(article.picture_url),
    };
    let message = message.ok_or_else(|| {
        let problem = "must be a text, image or another kind of message";
        ("customer.message".to_owned(), problem.to_owned())
    })?;
    Ok(match message {
        Pb::Text(text) => CustomerContent::Text {
            content: text.content,
        },
        Pb::Image(image) => CustomerContent::Image(media(image)),
        Pb::Voice(voice) => CustomerContent::Voice(media(voice)),
        Pb::Video(video) => CustomerContent::Video(Video {
            media_id: video.media_id,
            thumb_media_id: video.thumb_media_id,
            title: non_empty(video.title),
            description: non_empty(video.description),
        }),
        Pb::Music(music) => CustomerContent::Music(Music {
            title: music.title,
            description: music.description,
            url: music.url,
            hq_url: non_empty(music.hq_url),
            thumb_media_id: music.thumb_media_id,
        }),
        Pb::News(news) => CustomerContent::News {
            articles: [article(news, Picture::News)],
        },
        Pb::MpNews(news) => CustomerContent::MpNews(media(news)),
        Pb::MpNewsArticle(published) => CustomerContent::MpNewsArticle {
            article_id: published.article_id,
        },
        Pb::Menu(menu) => CustomerContent::MsgMenu(Menu {
            head_content: menu.head_content,
            list: menu
                .items
                .into_iter()
                .map(|item| MenuItem {
                    id: item.id,
                    content: item.content,
                })
                .collect(),
            tail_content: menu.tail_content,
        }),
        Pb::Card(card) => CustomerContent::WxCard {
            card_id: card.card_id,
        },
        Pb::MiniProgramPage(page) => CustomerContent::MiniProgramPage(MiniProgramPage {
            title: page.title,
            app_id: match app.kind {
                AppKind::MiniProgram if page.app_id.is_empty() => app.app_id.to_string(),
                _ => page.app_id,
            },
            page_path: page.page_path,
            thumb_media_id: page.thumb_media_id,
        }),
        Pb::Link(link) => CustomerContent::Link(article(link, Picture::Link)),
    })
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn sorted(data: HashMap<String, String>) -> BTreeMap<String, String> {
    data.into_iter().collect()
}

fn to_pb(message: Message, now: DateTime<Utc>) -> pb::Message {
    pb::Message {
        state: state(&message, now).into(),
        schedule_time: message.schedule_time.map(timestamp),
        expire_time: message.expire_time.map(timestamp),
        message_id: message.message_id,
        app_id: message.app_id,
        open_id: message.open_id,
        request_id: message.request_id.unwrap_or_default(),
        attempts: message.attempts,
        possible_duplicate: message.possible_duplicate,
        errcode: message.errcode,
        errmsg: message.errmsg,
        wechat_msg_id: message.wechat_msg_id.unwrap_or_default(),
        create_time: Some(timestamp(message.create_time)),
        sent_time: message.sent_time.map(timestamp),
        next_attempt_time: message.next_attempt_time.map(timestamp),
    }
}

fn state(message: &Message, now: DateTime<Utc>) -> pb::MessageState {
    let ahead = message.attempts == 0 && message.schedule_time.is_some_and(|time| time > now);
    match message.state {
        State::Queued if ahead => pb::MessageState::Scheduled,
        State::Queued => pb::MessageState::Queued,
        State::Sending => pb::MessageState::Sending,
        State::Sent => pb::MessageState::Sent,
        State::Failed => pb::MessageState::Failed,
        State::Cancelled => pb::MessageState::Cancelled,
        State::Expired => pb::MessageState::Expired,
    }
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
    SystemTime::from(time).into()
}
