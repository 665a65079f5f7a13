//! Process settings: flags and environment, the same names in every service (a flag wins over its variable).
//!
//! Each is read as text and checked by whoever needs it, so that a start-up tells every problem at once, with the
//! setting's name and an example of a right value.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use secrecy::{ExposeSecret as _, SecretString};
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity, ServerTlsConfig, Uri};
use url::Url;

use crate::{client::Peer, seal::Sealer};

/// Every setting of every service, unchecked.
#[derive(Debug, Clone, Default, Args)]
#[expect(
    missing_docs,
    reason = "the help text of each flag, which clap takes from `help`, says it"
)]
pub struct Settings {
    #[arg(
        long,
        env = "WXHUB_CONFIG",
        value_name = "PATH",
        help = "wxhub.toml: apps and callers",
        global = true
    )]
    pub config: Option<String>,
    #[arg(
        long,
        env = "WXHUB_GRPC_ADDR",
        value_name = "ADDR",
        help = "Where gRPC listens",
        global = true
    )]
    pub grpc_addr: Option<String>,
    #[arg(
        long,
        env = "WXHUB_HTTP_ADDR",
        value_name = "ADDR",
        help = "Where HTTP listens",
        global = true
    )]
    pub http_addr: Option<String>,
    #[arg(
        long,
        env = "WXHUB_OPS_ADDR",
        value_name = "ADDR",
        help = "Where /livez, /readyz and /metrics listen",
        global = true
    )]
    pub ops_addr: Option<String>,
    #[arg(
        long,
        env = "WXHUB_REDIS_URL",
        value_name = "URL",
        help = "Redis",
        hide_env_values = true,
        global = true
    )]
    pub redis_url: Option<SecretString>,
    #[arg(
        long,
        env = "WXHUB_DATABASE_URL",
        value_name = "URL",
        help = "MySQL or SQLite",
        hide_env_values = true,
        global = true
    )]
    pub database_url: Option<SecretString>,
    #[arg(long, env = "WXHUB_EMBEDDED", value_name = "0|1", num_args = 0..=1, require_equals = true, default_missing_value = "1", help = "Allow in-memory state and SQLite where a URL is missing", global = true)]
    pub embedded: Option<String>,
    #[arg(
        long,
        env = "WXHUB_TOKEN_URL",
        value_name = "URL",
        help = "token-service; several endpoints, separated by commas, are balanced",
        global = true
    )]
    pub token_url: Option<String>,
    #[arg(
        long,
        env = "WXHUB_AUTH_URL",
        value_name = "URL",
        help = "auth-service; several endpoints, separated by commas, are balanced",
        global = true
    )]
    pub auth_url: Option<String>,
    /// Where push-service is, for the operator's verbs: no service calls it.
    #[arg(skip)]
    pub push_url: Option<String>,
    #[arg(
        long,
        env = "WXHUB_WECHAT_API_URL",
        value_name = "URL",
        help = "WeChat's API [default: https://api.weixin.qq.com]",
        global = true
    )]
    pub wechat_api_url: Option<String>,
    #[arg(
        long,
        env = "WXHUB_WECHAT_OPEN_URL",
        value_name = "URL",
        help = "WeChat's OAuth pages [default: https://open.weixin.qq.com]",
        global = true
    )]
    pub wechat_open_url: Option<String>,
    #[arg(
        long,
        env = "WXHUB_PUBLIC_URL",
        value_name = "URL",
        help = "This service as a browser sees it",
        global = true
    )]
    pub public_url: Option<String>,
    #[arg(
        long,
        env = "WXHUB_MASTER_KEY",
        value_name = "BASE64",
        help = "Seals secrets at rest: 32 bytes; a comma-separated list rotates",
        hide_env_values = true,
        global = true
    )]
    pub master_key: Option<SecretString>,
    #[arg(
        long,
        env = "WXHUB_SESSION_MAX_AGE",
        value_name = "AGE",
        help = "When a session ends however much it is used: days, or such as 12h [default: 30d]",
        global = true
    )]
    pub session_max_age: Option<String>,
    #[arg(
        long,
        env = "WXHUB_MESSAGE_MAX_AGE",
        value_name = "AGE",
        help = "How long finished messages are kept: days, or such as 36h [default: 30d]",
        global = true
    )]
    pub message_max_age: Option<String>,
    #[arg(
        long,
        env = "WXHUB_TLS_CERT",
        value_name = "PATH",
        help = "Certificate of this service (PEM)",
        global = true
    )]
    pub tls_cert: Option<String>,
    #[arg(
        long,
        env = "WXHUB_TLS_KEY",
        value_name = "PATH",
        help = "Key of that certificate (PEM)",
        global = true
    )]
    pub tls_key: Option<String>,
    #[arg(
        long,
        env = "WXHUB_TLS_CLIENT_CA",
        value_name = "PATH",
        help = "Demand client certificates of this authority (PEM)",
        global = true
    )]
    pub tls_client_ca: Option<String>,
    #[arg(
        long,
        env = "WXHUB_TLS_CA",
        value_name = "PATH",
        help = "Authority to trust in outgoing gRPC (PEM)",
        global = true
    )]
    pub tls_ca: Option<String>,
    #[arg(
        long,
        env = "WXHUB_CALLER_KEY",
        value_name = "KEY",
        help = "The key that this program shows to the other services",
        hide_env_values = true,
        global = true
    )]
    pub caller_key: Option<SecretString>,
}

/// One setting that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Problem {
    name: &'static str,
    what: String,
    example: &'static str,
}

/// All that is wrong with the settings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Notes that the setting `name` is wrong.
    pub fn add(&mut self, name: &'static str, what: impl Into<String>, example: &'static str) {
        self.0.push(Problem {
            name,
            what: what.into(),
            example,
        });
    }

    /// Turns a checked configuration into the result of the check.
    ///
    /// # Errors
    /// Returns itself when there is any problem.
    pub fn or<T>(self, checked: Option<T>) -> Result<T, Self> {
        match checked {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (
            index,
            Problem {
                name,
                what,
                example,
            },
        ) in self.0.iter().enumerate()
        {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{name} {what}\n    for example: {name}={example}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// The ports a service listens on when no address is set.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// gRPC.
    pub grpc: u16,
    /// Public or internal HTTP.
    pub http: u16,
    /// `/livez`, `/readyz`, `/metrics`.
    pub ops: u16,
}

/// Where a service listens.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// gRPC.
    pub grpc: SocketAddr,
    /// Public or internal HTTP.
    pub http: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub ops: SocketAddr,
}

/// Where WeChat is.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The server API.
    pub api: Url,
    /// The OAuth pages.
    pub open: Url,
}

/// Where a service keeps its rows.
#[derive(Clone)]
pub struct DatabaseUrl(SecretString);

impl DatabaseUrl {
    /// Takes a `mysql://` or `sqlite://` URL as it is.
    pub fn new(url: impl Into<String>) -> Self {
        Self(SecretString::from(url.into()))
    }

    /// The URL, with its password.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Whether this is SQLite: embedded mode, which migrates by itself.
    pub fn is_sqlite(&self) -> bool {
        self.expose().starts_with("sqlite:")
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_sqlite() {
            self.expose()
        } else {
            "mysql://[redacted]"
        })
    }
}

/// A client that has not shaken hands by then is given up.
const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest age that can be set.
const OLDEST: &str = "400d";
const REDIS_EXAMPLE: &str = "redis://127.0.0.1:6379";
const DATABASE_EXAMPLE: &str = "mysql://wxhub:password@127.0.0.1:3306/wxhub";
const KEY_EXAMPLE: &str = "$(openssl rand -base64 32)";

impl Settings {
    /// Whether state may live in memory and in SQLite.
    pub fn embedded(&self, problems: &mut Problems) -> bool {
        match self.embedded.as_deref().map(str::trim) {
            None | Some("" | "0" | "false" | "no") => false,
            Some("1" | "true" | "yes") => true,
            Some(other) => {
                problems.add(
                    "WXHUB_EMBEDDED",
                    format!("is {other:?}, which is neither 0 nor 1"),
                    "1",
                );
                false
            }
        }
    }

    /// The path of `wxhub.toml`.
    pub fn catalog_path(&self, problems: &mut Problems) -> Option<PathBuf> {
        let path = non_empty(self.config.as_deref()).map(PathBuf::from);
        if path.is_none() {
            problems.add(
                "WXHUB_CONFIG",
                "is not set: it names the file that declares apps and callers",
                "/etc/wxhub/wxhub.toml",
            );
        }
        path
    }

    /// The listen addresses, with `ports` on every interface where none is set.
    pub fn listen(&self, problems: &mut Problems, ports: Ports) -> Option<Listen> {
        let mut addr =
            |value: &Option<String>, name, port, example| match non_empty(value.as_deref()) {
                None => Some(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))),
                Some(text) => match text.parse() {
                    Ok(addr) => Some(addr),
                    Err(_) => {
                        problems.add(
                            name,
                            format!("is {text:?}, which is not an address and a port"),
                            example,
                        );
                        None
                    }
                },
            };
        let grpc = addr(
            &self.grpc_addr,
            "WXHUB_GRPC_ADDR",
            ports.grpc,
            "0.0.0.0:50051",
        );
        let http = addr(
            &self.http_addr,
            "WXHUB_HTTP_ADDR",
            ports.http,
            "0.0.0.0:8080",
        );
        let ops = addr(&self.ops_addr, "WXHUB_OPS_ADDR", ports.ops, "0.0.0.0:9101");
        Some(Listen {
            grpc: grpc?,
            http: http?,
            ops: ops?,
        })
    }

    /// The Redis URL; none only in embedded mode, where the twin in memory stands in. `what` says what is kept there.
    pub fn redis(&self, problems: &mut Problems, what: &str) -> Option<SecretString> {
        let url = self.redis_url.clone().filter(|url| !is_blank(url));
        let Some(url) = url else {
            if !self.embedded(&mut Problems::default()) {
                problems.add(
                    "WXHUB_REDIS_URL",
                    format!("is not set: {what} are kept in Redis (or set WXHUB_EMBEDDED=1 to keep them in memory)"),
                    REDIS_EXAMPLE,
                );
            }
            return None;
        };
        if redis::Client::open(url.expose_secret()).is_err() {
            problems.add(
                "WXHUB_REDIS_URL",
                "is not a redis:// or rediss:// URL",
                REDIS_EXAMPLE,
            );
            return None;
        }
        Some(url)
    }

    /// The database's URL; in embedded mode `wxhub-<service>.sqlite` in the working folder where none is set.
    pub fn database(&self, problems: &mut Problems, service: &str) -> Option<DatabaseUrl> {
        let url = self.database_url.clone().filter(|url| !is_blank(url));
        let Some(url) = url else {
            if self.embedded(&mut Problems::default()) {
                return Some(DatabaseUrl::new(format!("sqlite://wxhub-{service}.sqlite")));
            }
            problems.add(
                "WXHUB_DATABASE_URL",
                "is not set: rows are kept in MySQL (or set WXHUB_EMBEDDED=1 to keep them in SQLite)",
                DATABASE_EXAMPLE,
            );
            return None;
        };
        let url = DatabaseUrl(url);
        let known = url.is_sqlite()
            || Url::parse(url.expose()).is_ok_and(|url| url.scheme() == "mysql" && url.has_host());
        if !known {
            problems.add(
                "WXHUB_DATABASE_URL",
                "is neither a mysql:// nor a sqlite:// URL",
                DATABASE_EXAMPLE,
            );
            return None;
        }
        Some(url)
    }

    /// This service as a browser sees it, where that is set: scheme and host, without a path.
    pub fn public_url(&self, problems: &mut Problems) -> Option<Url> {
        let text = non_empty(self.public_url.as_deref())?;
        let bare = |url: &Url| {
            url.path() == "/"
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none()
        };
        let url = parse_http_url(text).filter(bare);
        if url.is_none() {
            problems.add(
                "WXHUB_PUBLIC_URL",
                format!("is {text:?}, which is not an http:// or https:// URL of a host alone"),
                "https://auth.example.com",
            );
        }
        url
    }

    /// How to reach token-service.
    pub fn token_service(&self, problems: &mut Problems) -> Option<Peer> {
        self.peer(
            problems,
            self.token_url.as_deref(),
            "WXHUB_TOKEN_URL",
            "http://token-service:50051",
        )
    }

    /// How to reach auth-service.
    pub fn auth_service(&self, problems: &mut Problems) -> Option<Peer> {
        self.peer(
            problems,
            self.auth_url.as_deref(),
            "WXHUB_AUTH_URL",
            "http://auth-service:50052",
        )
    }

    /// How to reach push-service.
    pub fn push_service(&self, problems: &mut Problems) -> Option<Peer> {
        self.peer(
            problems,
            self.push_url.as_deref(),
            "WXHUB_PUSH_URL",
            "http://push-service:50053",
        )
    }

    fn peer(
        &self,
        problems: &mut Problems,
        url: Option<&str>,
        name: &'static str,
        example: &'static str,
    ) -> Option<Peer> {
        let Some(list) = non_empty(url) else {
            problems.add(name, "is not set", example);
            return None;
        };
        let key = self.caller_key.as_ref();
        let Some(key) = non_empty(key.map(|key| key.expose_secret())) else {
            problems.add(
                "WXHUB_CALLER_KEY",
                "is not set: the other services answer only to callers that wxhub.toml knows",
                "the-key-of-this-service",
            );
            return None;
        };
        if !key.bytes().all(|byte| byte.is_ascii_graphic()) {
            problems.add(
                "WXHUB_CALLER_KEY",
                "holds more than visible ASCII characters",
                "the-key-of-this-service",
            );
            return None;
        }
        let key = SecretString::from(key);
        let tls = self.client_tls(problems)?;
        let mut endpoints = Vec::new();
        for text in list
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
        {
            let uri = text.parse::<Uri>().ok().filter(|uri| {
                matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some()
            });
            let Some(uri) = uri else {
                problems.add(
                    name,
                    format!("holds {text:?}, which is not an http:// or https:// URL"),
                    example,
                );
                return None;
            };
            let secure = uri.scheme_str() == Some("https");
            let endpoint = Endpoint::from(uri);
            match if secure {
                endpoint.tls_config(tls.clone())
            } else {
                Ok(endpoint)
            } {
                Ok(endpoint) => endpoints.push(endpoint),
                Err(error) => {
                    problems.add(
                        "WXHUB_TLS_CA",
                        format!("does not make a TLS client: {error}"),
                        "/etc/wxhub/ca.pem",
                    );
                    return None;
                }
            }
        }
        if endpoints.is_empty() {
            problems.add(name, "names no endpoint", example);
            return None;
        }
        Some(Peer::new(endpoints, key))
    }

    /// Where WeChat is.
    pub fn upstream(&self, problems: &mut Problems) -> Option<Upstream> {
        let mut base = |value: &Option<String>, name, default: &'static str| {
            let text = non_empty(value.as_deref()).unwrap_or(default);
            let url = parse_http_url(text);
            if url.is_none() {
                problems.add(
                    name,
                    format!("is {text:?}, which is not an http:// or https:// URL"),
                    default,
                );
            }
            url
        };
        let api = base(
            &self.wechat_api_url,
            "WXHUB_WECHAT_API_URL",
            "https://api.weixin.qq.com",
        );
        let open = base(
            &self.wechat_open_url,
            "WXHUB_WECHAT_OPEN_URL",
            "https://open.weixin.qq.com",
        );
        Some(Upstream {
            api: api?,
            open: open?,
        })
    }

    /// What seals secrets at rest. State in memory dies with the process: for it a missing key is made up.
    pub fn sealer(&self, problems: &mut Problems) -> Option<Sealer> {
        let list = self.master_key.as_ref().filter(|list| !is_blank(list));
        let in_memory =
            self.embedded(&mut Problems::default()) && self.redis_url.as_ref().is_none_or(is_blank);
        match list {
            Some(list) => Sealer::from_keys(list)
                .map_err(|error| {
                    problems.add(
                        "WXHUB_MASTER_KEY",
                        format!("is wrong: {error}"),
                        KEY_EXAMPLE,
                    );
                })
                .ok(),
            None if in_memory => Some(Sealer::ephemeral()),
            None => {
                problems.add(
                    "WXHUB_MASTER_KEY",
                    "is not set: it seals secrets at rest",
                    KEY_EXAMPLE,
                );
                None
            }
        }
    }

    /// How long a session lives at most; `default` where that is not set.
    pub fn session_max_age(&self, problems: &mut Problems, default: Duration) -> Option<Duration> {
        let text = self.session_max_age.as_deref();
        age(problems, "WXHUB_SESSION_MAX_AGE", text, "1m", default)
    }

    /// How long finished messages are kept; `default` where that is not set. Idempotency keys are kept with them.
    pub fn message_max_age(&self, problems: &mut Problems, default: Duration) -> Option<Duration> {
        let text = self.message_max_age.as_deref();
        age(problems, "WXHUB_MESSAGE_MAX_AGE", text, "1d", default)
    }

    /// TLS of this service's gRPC port; the inner none means plain text.
    pub fn server_tls(&self, problems: &mut Problems) -> Option<Option<ServerTlsConfig>> {
        let client_ca = non_empty(self.tls_client_ca.as_deref());
        let Some(identity) = self.identity(problems)? else {
            if client_ca.is_some() {
                problems.add(
                    "WXHUB_TLS_CERT",
                    "is not set, but WXHUB_TLS_CLIENT_CA is",
                    "/etc/wxhub/tls.crt",
                );
                return None;
            }
            return Some(None);
        };
        let mut tls = ServerTlsConfig::new()
            .identity(identity)
            .timeout(TLS_HANDSHAKE_TIMEOUT);
        if let Some(path) = client_ca {
            let ca = read_pem(
                problems,
                "WXHUB_TLS_CLIENT_CA",
                path,
                "/etc/wxhub/client-ca.pem",
            )?;
            tls = tls.client_ca_root(Certificate::from_pem(ca));
        }
        Some(Some(tls))
    }

    fn client_tls(&self, problems: &mut Problems) -> Option<ClientTlsConfig> {
        let mut tls = ClientTlsConfig::new().with_native_roots();
        if let Some(path) = non_empty(self.tls_ca.as_deref()) {
            let ca = read_pem(problems, "WXHUB_TLS_CA", path, "/etc/wxhub/ca.pem")?;
            tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ca));
        }
        if let Some(identity) = self.identity(problems)? {
            tls = tls.identity(identity);
        }
        Some(tls)
    }

    fn identity(&self, problems: &mut Problems) -> Option<Option<Identity>> {
        let (cert, key) = (self.tls_cert.as_deref(), self.tls_key.as_deref());
        match (non_empty(cert), non_empty(key)) {
            (None, None) => Some(None),
            (Some(cert), Some(key)) => {
                let cert = read_pem(problems, "WXHUB_TLS_CERT", cert, "/etc/wxhub/tls.crt");
                let key = read_pem(problems, "WXHUB_TLS_KEY", key, "/etc/wxhub/tls.key");
                Some(Some(Identity::from_pem(cert?, key?)))
            }
            (Some(_), None) => {
                problems.add(
                    "WXHUB_TLS_KEY",
                    "is not set, but WXHUB_TLS_CERT is",
                    "/etc/wxhub/tls.key",
                );
                None
            }
            (None, Some(_)) => {
                problems.add(
                    "WXHUB_TLS_CERT",
                    "is not set, but WXHUB_TLS_KEY is",
                    "/etc/wxhub/tls.crt",
                );
                None
            }
        }
    }
}

/// An age from `least` to [`OLDEST`]; `default` where the text is blank or missing.
fn age(
    problems: &mut Problems,
    name: &'static str,
    text: Option<&str>,
    least: &str,
    default: Duration,
) -> Option<Duration> {
    let Some(text) = non_empty(text) else {
        return Some(default);
    };
    let age = parse_age(text)
        .filter(|age| parse_age(least) <= Some(*age) && Some(*age) <= parse_age(OLDEST));
    if age.is_none() {
        problems.add(
            name,
            format!("is {text:?}, which is not a time from {least} to {OLDEST}"),
            "30d",
        );
    }
    age
}

/// Days, or a number with its unit.
fn parse_age(text: &str) -> Option<Duration> {
    let (number, unit) = match text.find(|char: char| !char.is_ascii_digit()) {
        Some(at) => text.split_at(at),
        None => (text, "d"),
    };
    let seconds = match unit.trim() {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 24 * 3_600,
        _ => return None,
    };
    let number: u64 = number.parse().ok()?;
    number.checked_mul(seconds).map(Duration::from_secs)
}

fn is_blank(value: &SecretString) -> bool {
    value.expose_secret().trim().is_empty()
}

fn non_empty(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|text| !text.is_empty())
}

fn parse_http_url(text: &str) -> Option<Url> {
    Url::parse(text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn read_pem(
    problems: &mut Problems,
    name: &'static str,
    path: &str,
    example: &'static str,
) -> Option<Vec<u8>> {
    std::fs::read(path)
        .map_err(|error| {
            problems.add(
                name,
                format!("names {path:?}, which cannot be read: {error}"),
                example,
            );
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PORTS: Ports = Ports {
        grpc: 50051,
        http: 8080,
        ops: 9101,
    };

    fn problems(check: impl FnOnce(&mut Problems)) -> String {
        let mut problems = Problems::default();
        check(&mut problems);
        problems.to_string()
    }

    #[test]
    fn a_missing_setting_is_named_with_an_example() {
        let settings = Settings::default();
        let text = problems(|problems| {
            settings.catalog_path(problems);
            settings.redis(problems, "sessions");
            settings.database(problems, "auth");
            settings.token_service(problems);
            settings.sealer(problems);
        });
        for example in [
            "WXHUB_CONFIG=/etc/wxhub/wxhub.toml",
            "WXHUB_REDIS_URL=redis://",
            "WXHUB_DATABASE_URL=mysql://",
            "WXHUB_TOKEN_URL=http://",
            "WXHUB_MASTER_KEY=$(openssl rand -base64 32)",
        ] {
            assert!(text.contains(example), "{example} is not in:\n{text}");
        }
    }

    #[test]
    fn a_malformed_setting_is_named_and_secrets_are_not_repeated() {
        let settings = Settings {
            grpc_addr: Some("localhost".to_owned()),
            wechat_api_url: Some("api.weixin.qq.com".to_owned()),
            redis_url: Some("http://:p4ssword@redis".to_owned().into()),
            database_url: Some("postgres://u:p4ssword@db/x".to_owned().into()),
            master_key: Some("p4ssword".to_owned().into()),
            embedded: Some("maybe".to_owned()),
            ..Settings::default()
        };
        let text = problems(|problems| {
            settings.listen(problems, PORTS);
            settings.upstream(problems);
            settings.redis(problems, "sessions");
            settings.database(problems, "auth");
            settings.sealer(problems);
            settings.embedded(problems);
        });
        for name in [
            "WXHUB_GRPC_ADDR is \"localhost\"",
            "WXHUB_WECHAT_API_URL is \"api.weixin.qq.com\"",
            "WXHUB_REDIS_URL is not a redis://",
            "WXHUB_DATABASE_URL is neither",
            "WXHUB_MASTER_KEY is wrong",
            "WXHUB_EMBEDDED is \"maybe\"",
        ] {
            assert!(text.contains(name), "{name} is not in:\n{text}");
        }
        assert!(!text.contains("p4ssword"), "{text}");
        assert!(!format!("{settings:?}").contains("p4ssword"));
    }

    #[test]
    fn embedded_mode_goes_without_redis_database_and_master_key() {
        let settings = Settings {
            embedded: Some("1".to_owned()),
            ..Settings::default()
        };
        let mut problems = Problems::default();
        assert!(settings.redis(&mut problems, "sessions").is_none());
        let database = settings.database(&mut problems, "auth").unwrap();
        assert!(database.is_sqlite());
        assert!(settings.sealer(&mut problems).is_some());
        assert_eq!(problems.to_string(), "");
    }

    #[test]
    fn ports_stand_in_for_addresses_that_are_not_set() {
        let settings = Settings {
            http_addr: Some("127.0.0.1:0".to_owned()),
            ..Settings::default()
        };
        let listen = settings.listen(&mut Problems::default(), PORTS).unwrap();
        assert_eq!(listen.grpc.to_string(), "0.0.0.0:50051");
        assert_eq!(listen.http.to_string(), "127.0.0.1:0");
        assert_eq!(listen.ops.to_string(), "0.0.0.0:9101");
    }

    #[test]
    fn a_sessions_age_is_days_or_a_number_with_its_unit() {
        let age = |text: &str| {
            let settings = Settings {
                session_max_age: Some(text.to_owned()),
                ..Settings::default()
            };
            let mut problems = Problems::default();
            let age = settings.session_max_age(&mut problems, Duration::from_secs(7));
            problems
                .or(age)
                .map(|age| age.as_secs())
                .map_err(|problems| problems.to_string())
        };
        for (text, seconds) in [
            ("30", 30 * 86_400),
            ("90d", 90 * 86_400),
            ("12 h", 43_200),
            ("1m", 60),
            ("3600s", 3_600),
            (" ", 7),
        ] {
            assert_eq!(age(text), Ok(seconds), "{text}");
        }
        for text in [
            "0",
            "59s",
            "401d",
            "1w",
            "d",
            "-1",
            "1.5h",
            "99999999999999999999",
        ] {
            let problem = age(text).unwrap_err();
            assert!(
                problem.starts_with("WXHUB_SESSION_MAX_AGE is \""),
                "{problem}"
            );
        }
    }

    #[test]
    fn messages_are_kept_for_a_day_at_least() {
        for (text, kept) in [
            ("24h", true),
            ("400", true),
            ("23h", false),
            ("401d", false),
        ] {
            let settings = Settings {
                message_max_age: Some(text.to_owned()),
                ..Settings::default()
            };
            let mut problems = Problems::default();
            let age = settings.message_max_age(&mut problems, Duration::from_secs(7));
            assert_eq!(problems.or(age).is_ok(), kept, "{text}");
        }
    }

    #[test]
    fn blank_settings_count_as_not_set() {
        let blank = || Some(" ".to_owned());
        let settings = Settings {
            embedded: Some("1".to_owned()),
            redis_url: Some(" ".to_owned().into()),
            master_key: Some(String::new().into()),
            tls_cert: blank(),
            tls_key: blank(),
            tls_client_ca: blank(),
            tls_ca: blank(),
            ..Settings::default()
        };
        let mut problems = Problems::default();
        assert!(settings.sealer(&mut problems).is_some());
        assert!(settings.server_tls(&mut problems).unwrap().is_none());
        assert!(settings.client_tls(&mut problems).is_some());
        assert_eq!(problems.to_string(), "");
    }

    #[test]
    fn state_in_a_real_redis_is_not_sealed_with_a_made_up_key() {
        let settings = Settings {
            embedded: Some("1".to_owned()),
            redis_url: Some("redis://127.0.0.1:6379".to_owned().into()),
            ..Settings::default()
        };
        let text = problems(|problems| assert!(settings.sealer(problems).is_none()));
        assert!(text.contains("WXHUB_MASTER_KEY is not set"), "{text}");
    }

    #[tokio::test]
    async fn a_caller_key_that_no_header_takes_is_a_problem() {
        for key in ["ключ", "a\nb", " "] {
            let settings = Settings {
                token_url: Some("http://a:50051".to_owned()),
                caller_key: Some(key.to_owned().into()),
                ..Settings::default()
            };
            let text = problems(|problems| assert!(settings.token_service(problems).is_none()));
            assert!(text.starts_with("WXHUB_CALLER_KEY"), "{text}");
        }
    }

    #[tokio::test]
    async fn every_endpoint_of_a_list_must_be_a_url() {
        let settings = Settings {
            token_url: Some("http://a:50051, b:50051".to_owned()),
            caller_key: Some("key".to_owned().into()),
            ..Settings::default()
        };
        let text = problems(|problems| assert!(settings.token_service(problems).is_none()));
        assert!(text.contains("WXHUB_TOKEN_URL holds \"b:50051\""), "{text}");
    }
}
