//! Which accounts this WeChat knows, and what their owners typed into the console.

use std::collections::{BTreeMap, BTreeSet};

use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Deserializer};
use wechat::{AppId, crypto::EncodingAESKey};

use crate::endpoint::Endpoint;

/// The accounts of one sandbox. Users carry the same `unionid` in all of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// At least one; app ids and original ids are unique.
    pub accounts: Vec<AccountConfig>,
}

/// One mini program or official account.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AccountConfig {
    /// `wx` and 16 hex digits in real life; anything WeChat's ids may look like here.
    pub app_id: String,
    /// The AppSecret.
    #[serde(deserialize_with = "secret")]
    pub secret: SecretString,
    /// What the account is, which decides the interfaces that it may call.
    pub kind: Kind,
    /// The `gh_…` name of the account in messages.
    pub original_id: String,
    /// Seconds that tokens and tickets live.
    #[serde(default = "default_expires_in")]
    pub expires_in: u32,
    /// Where messages and events go; without it nothing is pushed.
    pub callback: Option<CallbackConfig>,
    /// 网页授权域名: the hosts to whose pages users are sent back, at any port; official accounts only.
    #[serde(default)]
    pub oauth_domains: Vec<String>,
    /// The account's template list.
    #[serde(default)]
    pub templates: Vec<TemplateConfig>,
    /// Calls a day by path, over WeChat's defaults.
    #[serde(default)]
    pub quotas: BTreeMap<String, u32>,
}

/// What an account is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// 小程序: users log in with codes.
    MiniProgram,
    /// 公众号: users follow it and write to it.
    OfficialAccount,
}

/// 消息推送: the account's server URL and how to talk to it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallbackConfig {
    /// The absolute URL, http or https.
    pub url: String,
    /// Signs every push.
    #[serde(deserialize_with = "secret")]
    pub token: SecretString,
    /// 43 characters; needed in the compatible and the safe mode.
    #[serde(default, deserialize_with = "optional_secret")]
    pub encoding_aes_key: Option<SecretString>,
    /// Whether pushes are encrypted.
    #[serde(default)]
    pub mode: Mode,
    /// How pushes are written; official accounts know XML alone.
    #[serde(default)]
    pub format: Format,
}

/// Whether pushes are encrypted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// 明文模式: readable.
    #[default]
    Plain,
    /// 兼容模式: readable and encrypted, side by side.
    Compatible,
    /// 安全模式: encrypted.
    Safe,
}

/// How pushes are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `text/xml`.
    #[default]
    Xml,
    /// `application/json`, mini programs only.
    Json,
}

/// A template on an account's list.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateConfig {
    /// What senders call it.
    pub template_id: String,
    /// Which interface sends it.
    pub kind: TemplateKind,
    /// The names of its values, such as `thing1`.
    pub keys: Vec<String>,
}

/// Which interface sends a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TemplateKind {
    /// 模板消息 of an official account.
    Template,
    /// 订阅消息 of a mini program; every user has accepted it.
    Subscribe,
    /// The withdrawn 模板消息 of a mini program, paid for with a `form_id`.
    Form,
}

/// Everything that is wrong with a configuration, one problem a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", problems.join("\n"))]
pub struct ConfigError {
    /// Each names the account and the setting.
    pub problems: Vec<String>,
}

const fn default_expires_in() -> u32 {
    7200
}

fn secret<'de, D: Deserializer<'de>>(input: D) -> Result<SecretString, D::Error> {
    String::deserialize(input).map(SecretString::from)
}

fn optional_secret<'de, D: Deserializer<'de>>(input: D) -> Result<Option<SecretString>, D::Error> {
    secret(input).map(Some)
}

impl Config {
    /// The mini program `wx0000000000000001` and the official account `wx0000000000000002` of the development world,
    /// calling back to `{callback_url}/callback/shop` and `{callback_url}/callback/news`.
    pub fn dev(callback_url: &str) -> Self {
        let callback = |name: &str, format| CallbackConfig {
            url: format!("{}/callback/{name}", callback_url.trim_end_matches('/')),
            token: "devcallbacktoken".into(),
            encoding_aes_key: Some("abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG".into()),
            mode: Mode::Safe,
            format,
        };
        let template = |template_id: &str, kind, keys: [&str; 3]| TemplateConfig {
            template_id: template_id.to_owned(),
            kind,
            keys: keys.map(str::to_owned).to_vec(),
        };
        Self {
            accounts: vec![
                AccountConfig {
                    app_id: "wx0000000000000001".to_owned(),
                    secret: "dev-secret-shop".into(),
                    kind: Kind::MiniProgram,
                    original_id: "gh_000000000001".to_owned(),
                    expires_in: default_expires_in(),
                    callback: Some(callback("shop", Format::Json)),
                    oauth_domains: Vec::new(),
                    templates: vec![
                        template(
                            "SUBSCRIBE_ORDER_SHIPPED",
                            TemplateKind::Subscribe,
                            ["thing1", "amount2", "time3"],
                        ),
                        template(
                            "FORM_ORDER_PAID",
                            TemplateKind::Form,
                            ["keyword1", "keyword2", "keyword3"],
                        ),
                    ],
                    quotas: BTreeMap::new(),
                },
                AccountConfig {
                    app_id: "wx0000000000000002".to_owned(),
                    secret: "dev-secret-news".into(),
                    kind: Kind::OfficialAccount,
                    original_id: "gh_000000000002".to_owned(),
                    expires_in: default_expires_in(),
                    callback: Some(callback("news", Format::Xml)),
                    oauth_domains: vec!["127.0.0.1".to_owned(), "localhost".to_owned()],
                    templates: vec![template(
                        "TEMPLATE_ORDER_PAID",
                        TemplateKind::Template,
                        ["thing1", "amount2", "time3"],
                    )],
                    quotas: BTreeMap::new(),
                },
            ],
        }
    }

    /// Reads and checks the TOML of a configuration file.
    ///
    /// # Errors
    /// Says where the text is no configuration, or everything that is wrong with it.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError {
            problems: vec![error.to_string()],
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// Everything that is wrong, with examples of what is right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        if self.accounts.is_empty() {
            problems.push("accounts: at least one [[accounts]] is needed".to_owned());
        }
        let mut seen = BTreeSet::new();
        for account in &self.accounts {
            for id in [&account.app_id, &account.original_id] {
                if !seen.insert(id) {
                    problems.push(format!(
                        "{}: {id} is taken by another account",
                        account.app_id
                    ));
                }
            }
            account.validate(&mut |problem: &str| {
                problems.push(format!("{}: {problem}", account.app_id));
            });
        }
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { problems })
        }
    }
}

impl AccountConfig {
    fn validate(&self, problem: &mut dyn FnMut(&str)) {
        if AppId::try_from(self.app_id.as_str()).is_err() {
            problem("app_id must look like wx0000000000000001");
        }
        if self.secret.expose_secret().is_empty() {
            problem("secret must not be empty");
        }
        if self.original_id.is_empty() {
            problem("original_id must look like gh_000000000001");
        }
        if !(1..=7200).contains(&self.expires_in) {
            problem("expires_in must be 1 to 7200 seconds");
        }
        for path in self.quotas.keys() {
            if Endpoint::from_path(path).is_none() {
                problem(&format!(
                    "quotas: {path} is not an interface of this sandbox, such as /cgi-bin/token"
                ));
            }
        }
        if self.kind != Kind::OfficialAccount && !self.oauth_domains.is_empty() {
            problem("oauth_domains are an official account's");
        }
        for domain in &self.oauth_domains {
            if !url::Host::parse(domain).is_ok_and(|host| host.to_string() == *domain) {
                problem("oauth_domains must look like h5.example.com");
            }
        }
        if let Some(callback) = &self.callback {
            callback.validate(self.kind, problem);
        }
    }
}

impl CallbackConfig {
    fn validate(&self, kind: Kind, problem: &mut dyn FnMut(&str)) {
        if !reqwest::Url::parse(&self.url).is_ok_and(|url| matches!(url.scheme(), "http" | "https"))
        {
            problem("callback.url must look like http://127.0.0.1:8082/callback/news");
        }
        let token = self.token.expose_secret();
        if !(3..=32).contains(&token.len())
            || !token.bytes().all(|byte| byte.is_ascii_alphanumeric())
        {
            problem("callback.token must be 3 to 32 letters and digits");
        }
        match &self.encoding_aes_key {
            None if self.mode != Mode::Plain => {
                problem("callback.encoding_aes_key is needed in this mode");
            }
            Some(key) if key.expose_secret().parse::<EncodingAESKey>().is_err() => {
                problem("callback.encoding_aes_key must be 43 letters and digits");
            }
            _ => {}
        }
        if self.format == Format::Json && kind == Kind::OfficialAccount {
            problem("callback.format: official accounts are called back in xml");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_development_world_is_valid() {
        Config::dev("http://127.0.0.1:8082").validate().unwrap();
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let error = Config::from_toml(
            r#"
            [[accounts]]
            app_id = "wx1"
            secret = ""
            kind = "official_account"
            original_id = "gh_1"
            expires_in = 9000
            quotas = { "/nowhere" = 1 }
            oauth_domains = ["https://h5.example.com"]
            callback = { url = "nowhere", token = "x", mode = "safe", format = "json" }
            "#,
        )
        .unwrap_err();
        for setting in [
            "secret",
            "expires_in",
            "quotas",
            "oauth_domains",
            "callback.url",
            "callback.token",
            "encoding_aes_key",
            "format",
        ] {
            assert!(
                error
                    .problems
                    .iter()
                    .any(|problem| problem.contains(setting)),
                "{setting}: {error}"
            );
        }
    }

    #[test]
    fn an_unknown_setting_is_refused_with_its_line() {
        let error = Config::from_toml("accounts = []\nsecrt = 1\n").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }
}
