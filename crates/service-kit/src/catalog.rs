//! `wxhub.toml`: the apps and the callers, checked as a whole and replaced as a whole.
//!
//! A change to the file takes effect without a restart; an invalid one is refused with its line, and the old catalog
//! stays in force. Secrets are resolved only where a service [`Needs`] them.

mod file;
mod reload;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use wechat::{AppId, AppSecret, crypto::EncodingAESKey};

pub use self::reload::{CatalogHandle, Reloader};
use crate::caller::{Caller, Scope};

/// Which secrets a service resolves: it holds no others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Needs {
    /// AppSecrets: token-service and auth-service.
    pub app_secrets: bool,
    /// Callback tokens and keys: push-service.
    pub callbacks: bool,
}

/// Apps and callers, as one version of `wxhub.toml` declares them.
#[derive(Debug, Default)]
pub struct Catalog {
    apps: Vec<Arc<App>>,
    by_name: HashMap<String, Arc<App>>,
    callers: Vec<KeyedCaller>,
    /// Of the text and of the secrets that it names: what tells a change.
    fingerprint: [u8; 32],
}

#[derive(Debug)]
struct KeyedCaller {
    key_hashes: Vec<[u8; 32]>,
    caller: Arc<Caller>,
}

/// A mini program or an official account.
#[derive(Debug, Clone)]
pub struct App {
    /// WeChat's id.
    pub app_id: AppId,
    /// Our name of it, in logs, metrics and on the command line.
    pub name: String,
    /// What it is.
    pub kind: AppKind,
    /// The AppSecret, where the service needs it.
    pub secret: Option<AppSecret>,
    /// How its access_token is fetched.
    pub token_mode: TokenMode,
    /// How WeChat calls back, where it is declared and the service needs it.
    pub callback: Option<Callback>,
    /// Hosts that web OAuth may return to.
    pub oauth_return_hosts: Vec<String>,
    /// Hosts whose pages may be signed for JS-SDK.
    pub jssdk_hosts: Vec<String>,
    /// Files that WeChat fetches before it saves a domain: name to text.
    pub verify_files: BTreeMap<String, String>,
    /// What to do about a send whose outcome stays unknown.
    pub on_ambiguous: OnAmbiguous,
    /// How many messages it sends a second, all replicas together; none is no limit.
    pub send_rate: Option<u32>,
}

/// What an app is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AppKind {
    /// 小程序.
    MiniProgram,
    /// 公众号.
    OfficialAccount,
}

/// How an app's access_token is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenMode {
    /// `POST /cgi-bin/stable_token`.
    #[default]
    Stable,
    /// `GET /cgi-bin/token`, where every call ends the token before.
    Classic,
}

/// What to do about a send whose outcome stays unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnAmbiguous {
    /// Send again: the user may get it twice.
    #[default]
    AtLeastOnce,
    /// Give up: the user may not get it.
    AtMostOnce,
}

/// How WeChat's pushes are secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallbackMode {
    /// Plain text.
    Plain,
    /// Plain text and ciphertext side by side.
    Compatible,
    /// Ciphertext only.
    Safe,
}

/// How WeChat calls back. Tokens and keys are lists, the current one first, so that they rotate.
#[derive(Clone)]
pub struct Callback {
    /// What signatures are made with; at least one.
    pub tokens: Vec<CallbackToken>,
    /// What bodies are encrypted with; at least one unless the mode is plain.
    pub encoding_aes_keys: Vec<EncodingAESKey>,
    /// The mode set in WeChat's console.
    pub mode: CallbackMode,
}

impl fmt::Debug for Callback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Callback")
            .field("tokens", &self.tokens.len())
            .field("encoding_aes_keys", &self.encoding_aes_keys.len())
            .field("mode", &self.mode)
            .finish()
    }
}

/// The Token of a callback's settings: what its signatures are made with.
#[derive(Clone)]
pub struct CallbackToken(String);

impl CallbackToken {
    /// Takes the token as it stands in WeChat's console.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }

    /// The token itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CallbackToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallbackToken([redacted])")
    }
}

/// Why a catalog is refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("WXHUB_CONFIG names {path}, which cannot be read")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Its text is wrong; every mistake found, each with its line.
    #[error("{}", list(path, mistakes))]
    Invalid {
        /// The file; `wxhub.toml` for a text that is in none.
        path: PathBuf,
        /// What is wrong, in the file's order.
        mistakes: Vec<Mistake>,
    },
}

/// One mistake in `wxhub.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

fn list(path: &Path, mistakes: &[Mistake]) -> String {
    let path = path.display();
    let lines: Vec<_> = mistakes
        .iter()
        .map(|Mistake { line, what }| format!("{path}:{line}: {what}"))
        .collect();
    lines.join("\n")
}

impl Catalog {
    /// Reads the text of a `wxhub.toml`. `env` looks up an environment variable.
    ///
    /// # Errors
    /// [`Error::Invalid`] with every mistake and its line; no secret is repeated in it.
    pub fn parse(
        text: &str,
        needs: Needs,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        Self::parse_file(Path::new("wxhub.toml"), text, needs, env)
    }

    fn parse_file(
        path: &Path,
        text: &str,
        needs: Needs,
        env: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, Error> {
        file::parse(text, needs, &env).map_err(|mistakes| Error::Invalid {
            path: path.to_owned(),
            mistakes,
        })
    }

    fn new(text: &str, apps: Vec<Arc<App>>, callers: Vec<KeyedCaller>) -> Self {
        let mut fingerprint = Sha256::new_with_prefix(text);
        for secret in apps.iter().filter_map(|app| app.secret.as_ref()) {
            fingerprint.update(secret.expose());
        }
        let by_name = apps
            .iter()
            .flat_map(|app| [(app.app_id.to_string(), app), (app.name.clone(), app)])
            .map(|(name, app)| (name, Arc::clone(app)))
            .collect();
        Self {
            apps,
            by_name,
            callers,
            fingerprint: fingerprint.finalize().into(),
        }
    }

    /// Every app, in the file's order.
    pub fn apps(&self) -> &[Arc<App>] {
        &self.apps
    }

    /// The app with this app_id or name.
    pub fn app(&self, id_or_name: &str) -> Option<&Arc<App>> {
        self.by_name.get(id_or_name)
    }

    /// The caller that this key belongs to; nobody's is empty.
    pub fn caller(&self, key: &str) -> Option<&Arc<Caller>> {
        if key.is_empty() {
            return None;
        }
        let hash = Sha256::digest(key.as_bytes());
        self.callers
            .iter()
            .find(|keyed| {
                let matches = |known: &[u8; 32]| bool::from(known.ct_eq(hash.as_slice()));
                keyed.key_hashes.iter().any(matches)
            })
            .map(|keyed| &keyed.caller)
    }
}

/// The apps a caller may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppList {
    /// `["*"]`: every app.
    All,
    /// These, by app_id.
    Some(Vec<AppId>),
}

impl AppList {
    /// Whether the app is in the list.
    pub fn contains(&self, app: &AppId) -> bool {
        match self {
            Self::All => true,
            Self::Some(apps) => apps.contains(app),
        }
    }
}

fn caller_of(name: String, apps: AppList, scopes: Vec<Scope>) -> Arc<Caller> {
    Arc::new(Caller { name, apps, scopes })
}
