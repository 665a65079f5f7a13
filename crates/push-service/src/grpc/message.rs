//! PushService.

use std::{
    collections::{BTreeMap, HashMap},
    time::SystemTime,
};

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use proto::push::v1::{
    self as pb, GetMessageRequest, GetMessageResponse, SendMessageRequest, SendMessageResponse,
    push_service_server::PushService, send_message_request,
};
use service_kit::{App, AppKind, Caller, CatalogHandle};
use tonic::{Request, Response, Status};
use wechat::{
    CustomerContent, OpenId,
    customer::{Article, Media, Menu, MenuItem, MiniProgramPage, Music, Picture, Video},
};

use crate::{
    database::is_key,
    error::Error,
    message::{
        Content, Customer, FormTemplate, Link, Message, Messages, NewMessage, State, Subscribe,
        Template, Violation,
    },
};

/// The longest request_id, in bytes.
const MAX_REQUEST_ID: usize = 128;

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
        let new = new_message(&caller, &app, request)?;
        let message = self.messages.accept(new).await?;
        Ok(Response::new(SendMessageResponse {
            message: Some(to_pb(message)),
        }))
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
            message: Some(to_pb(message)),
        }))
    }
}

fn new_message(
    caller: &Caller,
    app: &App,
    request: SendMessageRequest,
) -> Result<NewMessage, Error> {
    let mut violations: Vec<Violation> = Vec::new();
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
            app_id: app.app_id.clone(),
            open_id,
            caller: caller.name.clone(),
            request_id: non_empty(request.request_id),
            content,
        }),
        _ => Err(Error::Invalid(violations)),
    }
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

fn to_pb(message: Message) -> pb::Message {
    pb::Message {
        message_id: message.message_id,
        app_id: message.app_id,
        open_id: message.open_id,
        request_id: message.request_id.unwrap_or_default(),
        state: state(message.state).into(),
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

fn state(state: State) -> pb::MessageState {
    match state {
        State::Queued => pb::MessageState::Queued,
        State::Sending => pb::MessageState::Sending,
        State::Sent => pb::MessageState::Sent,
        State::Failed => pb::MessageState::Failed,
    }
}

fn timestamp(time: DateTime<Utc>) -> Timestamp {
    SystemTime::from(time).into()
}
