//! Customer-service messages (客服消息): what an app says freely to a user who did something a short while ago.

use serde::{Deserialize, Serialize, Serializer};

use crate::OpenId;

/// A customer-service message, within the window that a user's action opens (发送客服消息
/// sendCustomMessage).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CustomerMessage {
    /// The user who acted.
    pub to_user: OpenId,
    /// The agent's account (`name@account`) whose name and picture are shown.
    pub kf_account: Option<String>,
    /// What is said.
    pub content: CustomerContent,
}

/// Whether the user sees that an answer is being typed, for 15 seconds or until a message comes (客服输入状态).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Typing {
    /// Somebody with whom a message was exchanged within the last 30 seconds (45080).
    #[serde(rename = "touser")]
    pub to_user: OpenId,
    /// What to show. What is shown already is 45081.
    pub command: TypingCommand,
}

/// What the user sees of the one who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum TypingCommand {
    /// An answer is being typed.
    Typing,
    /// No longer.
    CancelTyping,
}

/// The kinds of customer-service messages. As data each is an object with one entry: its `msgtype`, and what WeChat wants
/// under it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum CustomerContent {
    /// Text, in which `<a href>` links work.
    Text {
        /// What is shown.
        content: String,
    },
    /// A picture.
    Image(Media),
    /// A voice recording. Official accounts only, as all that follows up to the mini program's page.
    Voice(Media),
    /// A film.
    Video(Video),
    /// A piece of music.
    Music(Music),
    /// A link with a picture. WeChat takes exactly one (45008).
    News {
        /// The link.
        articles: [Article; 1],
    },
    /// An article of the material library, which WeChat is withdrawing.
    MpNews(Media),
    /// A published article.
    MpNewsArticle {
        /// Its id, from the publishing interfaces.
        article_id: String,
    },
    /// Choices; a tap on one comes back as a text message.
    MsgMenu(Menu),
    /// A coupon without codes of its own.
    WxCard {
        /// Its id.
        card_id: String,
    },
    /// A page of a mini program.
    MiniProgramPage(MiniProgramPage),
    /// A link with a picture. Mini programs only.
    Link(Article),
}

impl CustomerContent {
    /// WeChat's name of the kind.
    pub fn msg_type(&self) -> &'static str {
        match self {
            Self::Text { .. } => "text",
            Self::Image(_) => "image",
            Self::Voice(_) => "voice",
            Self::Video(_) => "video",
            Self::Music(_) => "music",
            Self::News { .. } => "news",
            Self::MpNews(_) => "mpnews",
            Self::MpNewsArticle { .. } => "mpnewsarticle",
            Self::MsgMenu(_) => "msgmenu",
            Self::WxCard { .. } => "wxcard",
            Self::MiniProgramPage(_) => "miniprogrampage",
            Self::Link(_) => "link",
        }
    }
}

/// Something uploaded to WeChat, for a while or for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Media {
    /// Its id.
    pub media_id: String,
}

/// A film.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Video {
    /// The film.
    pub media_id: String,
    /// The picture shown before it plays.
    pub thumb_media_id: String,
    /// The line under it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// A piece of music.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Music {
    /// What it is called.
    pub title: String,
    /// Whose it is, or what it is about.
    pub description: String,
    /// Where it is.
    #[serde(rename = "musicurl")]
    pub url: String,
    /// Where it is in better quality, for those on Wi-Fi.
    #[serde(
        rename = "hqmusicurl",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub hq_url: Option<String>,
    /// The cover.
    pub thumb_media_id: String,
}

/// A link with a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Article {
    /// The line that is shown large.
    pub title: String,
    /// The lines below.
    pub description: String,
    /// What a tap opens.
    pub url: String,
    /// The picture's URL: `picurl` of an official account's `news`, `thumb_url` of a mini program's `link`.
    #[serde(flatten)]
    pub picture: Picture,
}

/// The URL of an article's picture, by the name that WeChat gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Picture {
    /// In `news`.
    #[serde(rename = "picurl")]
    News(String),
    /// In `link`.
    #[serde(rename = "thumb_url")]
    Link(String),
}

/// Choices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Menu {
    /// The text above them.
    pub head_content: String,
    /// The choices, from the top.
    pub list: Vec<MenuItem>,
    /// The text below them.
    pub tail_content: String,
}

/// A choice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MenuItem {
    /// What comes back as `bizmsgmenuid`.
    pub id: String,
    /// What is shown, and comes back as the text.
    pub content: String,
}

/// A page of a mini program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MiniProgramPage {
    /// The line above the picture.
    pub title: String,
    /// The mini program.
    #[serde(rename = "appid")]
    pub app_id: String,
    /// The page, with its query.
    #[serde(rename = "pagepath")]
    pub page_path: String,
    /// The picture, 520 by 416 pixels.
    pub thumb_media_id: String,
}

impl Serialize for CustomerMessage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            touser: &'a OpenId,
            msgtype: &'a str,
            #[serde(flatten)]
            content: &'a CustomerContent,
            #[serde(skip_serializing_if = "Option::is_none")]
            customservice: Option<Agent<'a>>,
        }
        #[derive(Serialize)]
        struct Agent<'a> {
            kf_account: &'a str,
        }

        let body = Body {
            touser: &self.to_user,
            msgtype: self.content.msg_type(),
            content: &self.content,
            customservice: self
                .kf_account
                .as_deref()
                .map(|kf_account| Agent { kf_account }),
        };
        body.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_id() -> OpenId {
        OpenId::try_from("oUser").unwrap()
    }

    #[test]
    fn bodies_are_raw_utf8_and_escape_no_markup() {
        let message = CustomerMessage {
            to_user: open_id(),
            kf_account: Some("test1@kftest".to_owned()),
            content: CustomerContent::Text {
                content: "你好 <a href=\"https://e.com/?a=1&b=2\">'点'</a> 😀".to_owned(),
            },
        };
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"touser":"oUser","msgtype":"text","text":{"content":"你好 <a href=\"https://e.com/?a=1&b=2\">'点'</a> 😀"},"customservice":{"kf_account":"test1@kftest"}}"#
        );
    }

    /// The bodies of 发送客服消息 sendCustomMessage, as its page shows them.
    #[test]
    fn every_kind_of_customer_message_looks_as_wechat_wants_it() {
        let media = || Media {
            media_id: "M".to_owned(),
        };
        let article = |picture| Article {
            title: "T".to_owned(),
            description: "D".to_owned(),
            url: "U".to_owned(),
            picture,
        };
        let item = |id: &str, content: &str| MenuItem {
            id: id.to_owned(),
            content: content.to_owned(),
        };
        for (content, expected) in [
            (
                CustomerContent::Image(media()),
                r#""msgtype":"image","image":{"media_id":"M"}"#,
            ),
            (
                CustomerContent::Voice(media()),
                r#""msgtype":"voice","voice":{"media_id":"M"}"#,
            ),
            (
                CustomerContent::Video(Video {
                    media_id: "M".to_owned(),
                    thumb_media_id: "P".to_owned(),
                    title: Some("T".to_owned()),
                    description: None,
                }),
                r#""msgtype":"video","video":{"media_id":"M","thumb_media_id":"P","title":"T"}"#,
            ),
            (
                CustomerContent::Music(Music {
                    title: "T".to_owned(),
                    description: "D".to_owned(),
                    url: "U".to_owned(),
                    hq_url: Some("H".to_owned()),
                    thumb_media_id: "P".to_owned(),
                }),
                r#""msgtype":"music","music":{"title":"T","description":"D","musicurl":"U","hqmusicurl":"H","thumb_media_id":"P"}"#,
            ),
            (
                CustomerContent::News {
                    articles: [article(Picture::News("P".to_owned()))],
                },
                r#""msgtype":"news","news":{"articles":[{"title":"T","description":"D","url":"U","picurl":"P"}]}"#,
            ),
            (
                CustomerContent::MpNews(media()),
                r#""msgtype":"mpnews","mpnews":{"media_id":"M"}"#,
            ),
            (
                CustomerContent::MpNewsArticle {
                    article_id: "A".to_owned(),
                },
                r#""msgtype":"mpnewsarticle","mpnewsarticle":{"article_id":"A"}"#,
            ),
            (
                CustomerContent::MsgMenu(Menu {
                    head_content: "满意吗".to_owned(),
                    list: vec![item("101", "满意"), item("102", "不满意")],
                    tail_content: "谢谢".to_owned(),
                }),
                r#""msgtype":"msgmenu","msgmenu":{"head_content":"满意吗","list":[{"id":"101","content":"满意"},{"id":"102","content":"不满意"}],"tail_content":"谢谢"}"#,
            ),
            (
                CustomerContent::WxCard {
                    card_id: "C".to_owned(),
                },
                r#""msgtype":"wxcard","wxcard":{"card_id":"C"}"#,
            ),
            (
                CustomerContent::MiniProgramPage(MiniProgramPage {
                    title: "T".to_owned(),
                    app_id: "wx1".to_owned(),
                    page_path: "p?a=1".to_owned(),
                    thumb_media_id: "P".to_owned(),
                }),
                r#""msgtype":"miniprogrampage","miniprogrampage":{"title":"T","appid":"wx1","pagepath":"p?a=1","thumb_media_id":"P"}"#,
            ),
            (
                CustomerContent::Link(article(Picture::Link("P".to_owned()))),
                r#""msgtype":"link","link":{"title":"T","description":"D","url":"U","thumb_url":"P"}"#,
            ),
        ] {
            let message = CustomerMessage {
                to_user: open_id(),
                kf_account: None,
                content: content.clone(),
            };
            let body = serde_json::to_string(&message).unwrap();
            assert_eq!(body, format!(r#"{{"touser":"oUser",{expected}}}"#));
            let data = serde_json::to_string(&content).unwrap();
            let read: CustomerContent = serde_json::from_str(&data).unwrap();
            assert_eq!(read, content);
        }
    }
}
