//! What is said, from wire to domain.

use std::collections::{BTreeMap, HashMap};

use proto::push::v1::{self as pb, send_message_request};
use service_kit::{App, AppKind};
use wechat::{
    CustomerContent,
    customer::{Article, Media, Menu, MenuItem, MiniProgramPage, Music, Picture, Video},
};

use crate::message::{Content, Customer, FormTemplate, Link, Subscribe, Template, Violation};

/// What is said, as the wire has it.
pub(super) fn content_from_pb(
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

pub(super) fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn sorted(data: HashMap<String, String>) -> BTreeMap<String, String> {
    data.into_iter().collect()
}
