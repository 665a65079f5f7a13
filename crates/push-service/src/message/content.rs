//! What is said, and whether WeChat would take it.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};
use service_kit::{App, AppKind};
use wechat::{
    AppId, CustomerContent, CustomerMessage, FormTemplateMessage, MiniProgramLink,
    MiniProgramState, OpenId, SubscribeMessage, TemplateMessage,
    customer::{Article, Menu, Picture},
};

use crate::{database::is_key, form::MAX_FORM_ID};

/// A field of the request by its path, and what is wrong with it.
pub(crate) type Violation = (String, String);

/// The longest template id, url, page and key of a template, in bytes.
const MAX_TEMPLATE_ID: usize = 128;
const MAX_URL: usize = 2_048;
const MAX_PAGE: usize = 1_024;
const MAX_KEY: usize = 64;
/// The longest value of a template's keyword, in characters; WeChat cuts or refuses long before.
const MAX_VALUE: usize = 1_024;
/// The longest customer-service text, in bytes (errcode 45002).
const MAX_TEXT: usize = 2_048;
/// The longest title or choice, in bytes.
const MAX_LINE: usize = 512;
/// The longest id of something uploaded, in bytes.
const MAX_ID: usize = 128;
/// The most choices of a menu.
const MAX_MENU: usize = 32;
const MAX_KF_ACCOUNT: usize = 64;
/// The largest message, in bytes of JSON.
const MAX_CONTENT: usize = 32 * 1_024;

/// One message's content. Kept as JSON: fields are added, never renamed.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Content {
    /// 发送模板消息.
    Template(Template),
    /// 发送订阅消息.
    Subscribe(Subscribe),
    /// 小程序模板消息, by form_id.
    FormTemplate(FormTemplate),
    /// 发送客服消息.
    Customer(Customer),
}

/// Says the kind alone: what is said to users is not for logs.
impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Content({})", self.kind())
    }
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Template {
    pub(crate) template_id: String,
    pub(crate) url: Option<String>,
    pub(crate) mini_program: Option<Link>,
    pub(crate) data: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) app_id: String,
    pub(crate) page_path: String,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Subscribe {
    pub(crate) template_id: String,
    pub(crate) page: Option<String>,
    pub(crate) data: BTreeMap<String, String>,
    pub(crate) mini_program_state: Option<String>,
    pub(crate) lang: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FormTemplate {
    pub(crate) template_id: String,
    pub(crate) page: Option<String>,
    /// None takes one from the pool.
    pub(crate) form_id: Option<String>,
    pub(crate) data: BTreeMap<String, String>,
    pub(crate) emphasis_keyword: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Customer {
    pub(crate) kf_account: Option<String>,
    #[serde(flatten)]
    pub(crate) message: CustomerContent,
}

/// A message in WeChat's own terms.
#[derive(Clone)]
pub(crate) enum Outbound {
    Template(TemplateMessage),
    Subscribe(SubscribeMessage),
    FormTemplate(FormTemplateMessage),
    Customer(CustomerMessage),
}

impl Content {
    /// The kind, in metrics and logs.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Template(_) => "template",
            Self::Subscribe(_) => "subscribe",
            Self::FormTemplate(_) => "form_template",
            Self::Customer(_) => "customer",
        }
    }

    pub(crate) fn to_json(&self) -> String {
        // Structs of texts and maps of texts always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(crate) fn from_json(json: &str) -> serde_json::Result<Self> {
        serde_json::from_str(json)
    }

    /// Everything about it that WeChat would refuse, or could not say through `app`.
    pub(crate) fn violations(&self, app: &App) -> Vec<Violation> {
        let mut check = Check {
            prefix: self.kind(),
            violations: Vec::new(),
        };
        match self {
            Self::Template(template) => {
                check.app(app, AppKind::OfficialAccount);
                check.template(template);
            }
            Self::Subscribe(subscribe) => {
                check.app(app, AppKind::MiniProgram);
                check.subscribe(subscribe);
            }
            Self::FormTemplate(form_template) => {
                check.app(app, AppKind::MiniProgram);
                check.form_template(form_template);
            }
            Self::Customer(customer) => check.customer(customer, app),
        }
        if self.to_json().len() > MAX_CONTENT {
            check.violations.push((
                self.kind().to_owned(),
                format!("must be at most {MAX_CONTENT} bytes of JSON"),
            ));
        }
        check.violations
    }

    /// The message as it goes to WeChat. `message_id` is what WeChat tells repeats by, where it can; `pooled` is the
    /// form_id taken for a form_template that names none.
    pub(crate) fn outbound(
        self,
        to_user: OpenId,
        message_id: &str,
        pooled: Option<String>,
    ) -> Outbound {
        match self {
            Self::Template(template) => Outbound::Template(TemplateMessage {
                to_user,
                template_id: template.template_id,
                url: template.url,
                mini_program: template.mini_program.map(|link| MiniProgramLink {
                    app_id: link.app_id,
                    page_path: link.page_path,
                }),
                client_msg_id: Some(message_id.to_owned()),
                data: template.data,
            }),
            Self::Subscribe(subscribe) => Outbound::Subscribe(SubscribeMessage {
                to_user,
                template_id: subscribe.template_id,
                page: subscribe.page,
                state: subscribe
                    .mini_program_state
                    .as_deref()
                    .and_then(mini_program_state),
                lang: subscribe.lang,
                data: subscribe.data,
            }),
            Self::FormTemplate(form_template) => Outbound::FormTemplate(FormTemplateMessage {
                to_user,
                template_id: form_template.template_id,
                page: form_template.page,
                form_id: form_template.form_id.or(pooled).unwrap_or_default(),
                // WeChat wants the name with its suffix.
                emphasis_keyword: form_template
                    .emphasis_keyword
                    .map(|keyword| format!("{keyword}{DATA}")),
                data: form_template.data,
            }),
            Self::Customer(customer) => Outbound::Customer(CustomerMessage {
                to_user,
                kf_account: customer.kf_account,
                content: customer.message,
            }),
        }
    }
}

/// How a template writes a keyword: `{{thing1.DATA}}`.
pub(crate) const DATA: &str = ".DATA";

fn mini_program_state(text: &str) -> Option<MiniProgramState> {
    match text {
        "developer" => Some(MiniProgramState::Developer),
        "trial" => Some(MiniProgramState::Trial),
        "formal" => Some(MiniProgramState::Formal),
        _ => None,
    }
}

/// Collects violations of one content's fields.
struct Check {
    prefix: &'static str,
    violations: Vec<Violation>,
}

impl Check {
    fn add(&mut self, field: &str, problem: impl Into<String>) {
        self.violations
            .push((format!("{}.{field}", self.prefix), problem.into()));
    }

    fn app(&mut self, app: &App, wanted: AppKind) {
        if app.kind != wanted {
            let (wanted, is) = match wanted {
                AppKind::OfficialAccount => ("an official account", "a mini program"),
                AppKind::MiniProgram => ("a mini program", "an official account"),
            };
            let problem = format!("is a message of {wanted}, but {} is {is}", app.name);
            self.violations.push((self.prefix.to_owned(), problem));
        }
    }

    /// A text of 1 to `max` bytes.
    fn text(&mut self, field: &str, text: &str, max: usize) {
        if text.is_empty() || text.len() > max {
            self.add(field, format!("must be 1 to {max} bytes"));
        }
    }

    fn optional(&mut self, field: &str, text: Option<&String>, max: usize) {
        if let Some(text) = text {
            self.text(field, text, max);
        }
    }

    fn template(&mut self, template: &Template) {
        self.text("template_id", &template.template_id, MAX_TEMPLATE_ID);
        if let Some(url) = &template.url {
            self.url("url", url);
        }
        if let Some(link) = &template.mini_program {
            if AppId::try_from(link.app_id.as_str()).is_err() {
                self.add("mini_program.app_id", "must be a mini program's app_id");
            }
            if link.page_path.len() > MAX_PAGE {
                self.add(
                    "mini_program.page_path",
                    format!("must be at most {MAX_PAGE} bytes"),
                );
            }
        }
        self.data(&template.data);
    }

    fn subscribe(&mut self, subscribe: &Subscribe) {
        self.text("template_id", &subscribe.template_id, MAX_TEMPLATE_ID);
        self.optional("page", subscribe.page.as_ref(), MAX_PAGE);
        if let Some(state) = &subscribe.mini_program_state
            && mini_program_state(state).is_none()
        {
            self.add("mini_program_state", "must be developer, trial or formal");
        }
        if let Some(lang) = &subscribe.lang
            && !["zh_CN", "en_US", "zh_HK", "zh_TW"].contains(&lang.as_str())
        {
            self.add("lang", "must be zh_CN, en_US, zh_HK or zh_TW");
        }
        self.data(&subscribe.data);
        for (key, value) in &subscribe.data {
            if let Some(problem) = value_problem(key, value) {
                self.add(&format!("data.{key}"), problem);
            }
        }
    }

    fn form_template(&mut self, form_template: &FormTemplate) {
        self.text("template_id", &form_template.template_id, MAX_TEMPLATE_ID);
        self.optional("page", form_template.page.as_ref(), MAX_PAGE);
        self.optional("form_id", form_template.form_id.as_ref(), MAX_FORM_ID);
        if let Some(form_id) = &form_template.form_id
            && !is_key(form_id)
        {
            self.add("form_id", "must be visible ASCII characters");
        }
        self.data(&form_template.data);
        if let Some(keyword) = &form_template.emphasis_keyword
            && !form_template.data.contains_key(keyword)
        {
            self.add("emphasis_keyword", "must name one of the keywords in data");
        }
    }

    fn customer(&mut self, customer: &Customer, app: &App) {
        self.customer_message(&customer.message, app);
        if let Some(account) = &customer.kf_account {
            let parts = account.split_once('@');
            let whole = parts.is_some_and(|(name, at)| !name.is_empty() && !at.is_empty());
            if !whole || account.len() > MAX_KF_ACCOUNT {
                self.add(
                    "kf_account",
                    format!("must be name@account, at most {MAX_KF_ACCOUNT} bytes"),
                );
            }
        }
    }

    fn customer_message(&mut self, message: &CustomerContent, app: &App) {
        match message {
            CustomerContent::Text { content } => self.text("text.content", content, MAX_TEXT),
            CustomerContent::Image(media) => self.id("image.media_id", &media.media_id),
            CustomerContent::Voice(media) => {
                self.only(app, AppKind::OfficialAccount, "voice");
                self.id("voice.media_id", &media.media_id);
            }
            CustomerContent::Video(video) => {
                self.only(app, AppKind::OfficialAccount, "video");
                self.id("video.media_id", &video.media_id);
                self.id("video.thumb_media_id", &video.thumb_media_id);
                self.optional("video.title", video.title.as_ref(), MAX_LINE);
                self.optional("video.description", video.description.as_ref(), MAX_LINE);
            }
            CustomerContent::Music(music) => {
                self.only(app, AppKind::OfficialAccount, "music");
                self.text("music.title", &music.title, MAX_LINE);
                self.text("music.description", &music.description, MAX_LINE);
                self.url("music.url", &music.url);
                if let Some(url) = &music.hq_url {
                    self.url("music.hq_url", url);
                }
                self.id("music.thumb_media_id", &music.thumb_media_id);
            }
            CustomerContent::News {
                articles: [article],
            } => {
                self.only(app, AppKind::OfficialAccount, "news");
                self.article("news", article);
            }
            CustomerContent::MpNews(media) => {
                self.only(app, AppKind::OfficialAccount, "mp_news");
                self.id("mp_news.media_id", &media.media_id);
            }
            CustomerContent::MpNewsArticle { article_id } => {
                self.only(app, AppKind::OfficialAccount, "mp_news_article");
                self.id("mp_news_article.article_id", article_id);
            }
            CustomerContent::MsgMenu(menu) => {
                self.only(app, AppKind::OfficialAccount, "menu");
                self.menu(menu);
            }
            CustomerContent::WxCard { card_id } => {
                self.only(app, AppKind::OfficialAccount, "card");
                self.id("card.card_id", card_id);
            }
            CustomerContent::MiniProgramPage(page) => {
                self.text("mini_program_page.title", &page.title, MAX_LINE);
                if AppId::try_from(page.app_id.as_str()).is_err() {
                    let problem = "must be a mini program's app_id";
                    self.add("mini_program_page.app_id", problem);
                }
                self.text("mini_program_page.page_path", &page.page_path, MAX_PAGE);
                self.id("mini_program_page.thumb_media_id", &page.thumb_media_id);
            }
            CustomerContent::Link(article) => {
                self.only(app, AppKind::MiniProgram, "link");
                self.article("link", article);
            }
            other => self.add(other.msg_type(), "is a kind that is not sent from here"),
        }
    }

    /// A kind of customer-service message that `wanted` has and the others do not (48008).
    fn only(&mut self, app: &App, wanted: AppKind, field: &str) {
        if app.kind != wanted {
            let problem = match wanted {
                AppKind::OfficialAccount => "can be sent by official accounts only",
                AppKind::MiniProgram => "can be sent by mini programs only",
            };
            self.add(field, format!("{problem}, and {} is none", app.name));
        }
    }

    /// An id that WeChat gave for something.
    fn id(&mut self, field: &str, id: &str) {
        if id.is_empty() || id.len() > MAX_ID || !is_key(id) {
            let problem = format!("must be 1 to {MAX_ID} visible ASCII characters");
            self.add(field, problem);
        }
    }

    fn url(&mut self, field: &str, url: &str) {
        self.text(field, url, MAX_URL);
        if !["http://", "https://"]
            .iter()
            .any(|scheme| url.starts_with(scheme))
        {
            self.add(field, "must begin with https:// or http://");
        }
    }

    fn article(&mut self, field: &str, article: &Article) {
        self.text(&format!("{field}.title"), &article.title, MAX_LINE);
        if article.description.len() > MAX_TEXT {
            let problem = format!("must be at most {MAX_TEXT} bytes");
            self.add(&format!("{field}.description"), problem);
        }
        self.url(&format!("{field}.url"), &article.url);
        let (Picture::News(url) | Picture::Link(url)) = &article.picture;
        self.url(&format!("{field}.picture_url"), url);
    }

    fn menu(&mut self, menu: &Menu) {
        for (field, text) in [
            ("menu.head_content", &menu.head_content),
            ("menu.tail_content", &menu.tail_content),
        ] {
            if text.len() > MAX_TEXT {
                self.add(field, format!("must be at most {MAX_TEXT} bytes"));
            }
        }
        if menu.list.is_empty() || menu.list.len() > MAX_MENU {
            self.add("menu.items", format!("must be 1 to {MAX_MENU} choices"));
        }
        for (index, item) in menu.list.iter().enumerate() {
            self.id(&format!("menu.items[{index}].id"), &item.id);
            let field = format!("menu.items[{index}].content");
            self.text(&field, &item.content, MAX_LINE);
        }
    }

    fn data(&mut self, data: &BTreeMap<String, String>) {
        if data.is_empty() {
            self.add("data", "must hold the values of the template's keywords");
        }
        for (key, value) in data {
            if key.is_empty() || key.len() > MAX_KEY {
                self.add(
                    "data",
                    format!("has a keyword that is not 1 to {MAX_KEY} bytes"),
                );
            } else if key.ends_with(DATA) {
                self.add("data", format!("names keywords without {DATA}"));
            } else if value.is_empty() || value.chars().count() > MAX_VALUE {
                self.add(
                    &format!("data.{key}"),
                    format!("must be 1 to {MAX_VALUE} characters"),
                );
            }
        }
    }
}

/// What is wrong with a subscribe message's value by the type that its keyword names (发送订阅消息, 参数值内容限制说明).
/// Of types with no plain rule (`time`, `date`, `enum` …) WeChat is the judge.
fn value_problem(key: &str, value: &str) -> Option<&'static str> {
    let kind = key.trim_end_matches(|c: char| c.is_ascii_digit());
    let length = value.chars().count();
    let all = |accepts: fn(char) -> bool| value.chars().all(accepts);
    let (right, problem) = match kind {
        "thing" => (length <= 20, "must be at most 20 characters"),
        "number" => (
            length <= 32 && is_decimal(value.strip_prefix('-').unwrap_or(value), 32),
            "must be at most 32 digits, decimals allowed",
        ),
        "letter" => (
            length <= 32 && all(|c| c.is_ascii_alphabetic()),
            "must be at most 32 letters",
        ),
        "symbol" => (
            length <= 5 && all(|c| !c.is_alphanumeric() && !c.is_control()),
            "must be at most 5 symbols",
        ),
        "character_string" => (
            length <= 32 && all(|c| c == ' ' || c.is_ascii_graphic()),
            "must be at most 32 digits, letters or symbols",
        ),
        "amount" => (
            is_amount(value),
            "must be a currency sign and at most 10 digits, decimals allowed",
        ),
        "phone_number" => (
            length <= 17 && all(|c| c.is_ascii_graphic() && !c.is_ascii_alphabetic()),
            "must be at most 17 digits or symbols",
        ),
        "car_number" => (length <= 8, "must be at most 8 characters"),
        "name" => (
            length <= if value.is_ascii() { 20 } else { 10 },
            "must be at most 10 Chinese characters, or 20 letters or symbols",
        ),
        "phrase" => (
            length <= 5 && all(|c| !c.is_ascii()),
            "must be at most 5 Chinese characters",
        ),
        _ => return None,
    };
    (!right).then_some(problem)
}

/// Digits with at most one point, of which at most `max` stand before it.
fn is_decimal(text: &str, max: usize) -> bool {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    digits(whole) && digits(fraction) && whole.len() <= max
}

fn is_amount(text: &str) -> bool {
    let text = text.strip_suffix('元').unwrap_or(text);
    let mut rest = text.chars();
    let number = match rest.next() {
        Some(sign) if !sign.is_ascii_digit() && !sign.is_alphabetic() => rest.as_str(),
        _ => text,
    };
    is_decimal(number, 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked_by_the_type_that_their_keyword_names() {
        for (key, value) in [
            ("thing1", "二十个字二十个字二十个字二十个字二十个字"),
            ("number2", "-12.5"),
            ("letter3", "abcXYZ"),
            ("symbol4", "+-*/~"),
            ("character_string5", "A-12 b!"),
            ("amount6", "¥12.50"),
            ("amount6", "12.5元"),
            ("amount6", "$1234567890"),
            ("phone_number7", "+86-0766-66888866"),
            ("car_number8", "粤A8Z888挂"),
            ("name9", "张三"),
            ("phrase10", "配送中"),
            ("time11", "15:01~16:00"),
            ("date12", "2019年10月1日 15:01"),
            ("enum13", "any"),
            ("first", "anything at all that WeChat will judge itself"),
        ] {
            assert_eq!(value_problem(key, value), None, "{key}: {value}");
        }
        for (key, value) in [
            ("thing1", "二十一个字二十个字二十个字二十个字二十个字"),
            ("number2", "12a"),
            ("number2", "1.2.3"),
            ("letter3", "ab1"),
            ("symbol4", "a"),
            ("symbol4", "\n"),
            ("character_string5", "字"),
            ("amount6", "twelve"),
            ("amount6", "¥12345678901"),
            ("amount6", "元"),
            ("phone_number7", "123456789012345678"),
            ("car_number8", "123456789"),
            ("name9", "一二三四五六七八九十一"),
            ("phrase10", "一二三四五六"),
            ("phrase10", "abc"),
        ] {
            assert!(value_problem(key, value).is_some(), "{key}: {value}");
        }
    }

    #[test]
    fn content_reads_back_as_it_was_written_and_shows_nothing_of_itself() {
        let contents = [
            Content::Template(Template {
                template_id: "T".to_owned(),
                url: Some("https://example.com".to_owned()),
                mini_program: Some(Link {
                    app_id: "wx1".to_owned(),
                    page_path: "p".to_owned(),
                }),
                data: [("thing1".to_owned(), "secret 😀".to_owned())].into(),
            }),
            Content::Customer(Customer {
                kf_account: None,
                message: CustomerContent::Text {
                    content: "secret".to_owned(),
                },
            }),
        ];
        for content in contents {
            assert!(Content::from_json(&content.to_json()).unwrap() == content);
            assert_eq!(
                format!("{content:?}"),
                format!("Content({})", content.kind())
            );
        }
    }

    /// Rows outlive releases: what was stored by an earlier one must be read by the next.
    #[test]
    fn stored_contents_are_still_read() {
        for json in [
            r#"{"kind":"template","template_id":"T","url":null,"mini_program":{"app_id":"wx1","page_path":"p"},"data":{"thing1":"v"}}"#,
            r#"{"kind":"subscribe","template_id":"T","page":"p","data":{"thing1":"v"},"mini_program_state":"trial","lang":"zh_CN"}"#,
            r#"{"kind":"form_template","template_id":"T","page":null,"form_id":null,"data":{"keyword1":"v"},"emphasis_keyword":"keyword1"}"#,
            r#"{"kind":"customer","kf_account":null,"text":{"content":"hi"}}"#,
            r#"{"kind":"customer","kf_account":"a@b","news":{"articles":[{"title":"t","description":"d","url":"u","picurl":"p"}]}}"#,
        ] {
            assert_eq!(Content::from_json(json).unwrap().to_json(), json);
        }
    }
}
