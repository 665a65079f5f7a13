//! How a call to WeChat fails.
//!
//! Tokens and secrets travel in URLs, so nothing here holds one: neither `Display` nor `Debug` of
//! an error, nor of anything in its chain of sources, shows a URL, a token or a secret.

use crate::{Class, ErrCode};

/// Why a client could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The base URL has no host or is neither `http` nor `https`.
    #[error("the WeChat API URL must be http or https with a host")]
    Url,
    /// No rustls provider is installed; install one, for example `rustls::crypto::ring`, when the
    /// process starts.
    #[error("no rustls crypto provider is installed")]
    NoTlsProvider,
    /// The HTTP client could not be set up.
    #[error("the HTTP client could not be set up")]
    Http(#[source] TransportError),
}

/// Why a call failed. `endpoint` is the path, for example `/cgi-bin/token`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// WeChat answered with an error code.
    #[error(transparent)]
    Api(ApiError),
    /// It failed before the request was on the wire (DNS, connect, TLS): safe to repeat.
    #[error("{endpoint}: the request could not be sent")]
    NotSent {
        /// The path that was called.
        endpoint: &'static str,
        /// What failed.
        source: TransportError,
    },
    /// No full answer in time. The request may have taken effect.
    #[error("{endpoint}: no answer in time")]
    Timeout {
        /// The path that was called.
        endpoint: &'static str,
    },
    /// The connection broke after the request may have been sent. It may have taken effect.
    #[error("{endpoint}: the connection broke")]
    Interrupted {
        /// The path that was called.
        endpoint: &'static str,
        /// What failed.
        source: TransportError,
    },
    /// The answer is none of WeChat's: a gateway's HTML, truncated JSON, too large. The request may
    /// have taken effect.
    #[error("{endpoint}: HTTP {status}, {problem}")]
    Garbage {
        /// The path that was called.
        endpoint: &'static str,
        /// The HTTP status.
        status: u16,
        /// What is wrong, without any of the body's text.
        problem: String,
    },
}

impl Error {
    /// WeChat's return code, when it gave one.
    pub fn errcode(&self) -> Option<ErrCode> {
        match self {
            Self::Api(error) => Some(error.errcode),
            _ => None,
        }
    }

    /// The request id to quote to WeChat's support, when it gave one.
    pub fn rid(&self) -> Option<&str> {
        match self {
            Self::Api(error) => error.rid.as_deref(),
            _ => None,
        }
    }

    /// The path that was called.
    pub fn endpoint(&self) -> &'static str {
        match self {
            Self::Api(error) => error.endpoint,
            Self::NotSent { endpoint, .. }
            | Self::Timeout { endpoint }
            | Self::Interrupted { endpoint, .. }
            | Self::Garbage { endpoint, .. } => endpoint,
        }
    }

    /// Whether the call may have taken effect all the same: repeating a send may tell the user
    /// twice.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Api(error) => error.errcode == ErrCode::SYSTEM_ERROR,
            Self::NotSent { .. } => false,
            Self::Timeout { .. } | Self::Interrupted { .. } | Self::Garbage { .. } => true,
        }
    }

    /// What to do about it; failures without a return code are [`Class::Backoff`].
    pub fn class(&self) -> Class {
        match self {
            Self::Api(error) => error.class(),
            Self::NotSent { .. }
            | Self::Timeout { .. }
            | Self::Interrupted { .. }
            | Self::Garbage { .. } => Class::Backoff,
        }
    }
}

/// WeChat's own refusal of a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{endpoint}: WeChat says {errcode} {errmsg}")]
pub struct ApiError {
    /// The path that was called.
    pub endpoint: &'static str,
    /// The return code, never 0.
    pub errcode: ErrCode,
    /// WeChat's text, for people: never match on it.
    pub errmsg: String,
    /// The request id found in `errmsg`, to quote to WeChat's support.
    pub rid: Option<String>,
}

impl ApiError {
    /// What to do about it: the code's class, save that 40001 of a call that takes the AppSecret
    /// means a wrong secret, and that only the user can mend a [`UserToken`](crate::UserToken).
    pub fn class(&self) -> Class {
        match (self.errcode, self.endpoint) {
            (
                ErrCode::INVALID_CREDENTIAL,
                "/cgi-bin/token"
                | "/cgi-bin/stable_token"
                | "/sns/jscode2session"
                | "/sns/oauth2/access_token",
            ) => Class::Config,
            (
                ErrCode::INVALID_CREDENTIAL
                | ErrCode::INVALID_ACCESS_TOKEN
                | ErrCode::ACCESS_TOKEN_EXPIRED
                | ErrCode::API_UNAUTHORIZED,
                "/sns/userinfo",
            ) => Class::Grant,
            _ => self.errcode.class(),
        }
    }
}

/// What failed below the protocol, stripped of the URL.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct TransportError(Cause);

#[derive(Debug, thiserror::Error)]
enum Cause {
    #[error(transparent)]
    Http(reqwest::Error),
    #[error("the body could not be written")]
    Body(#[source] serde_json::Error),
}

impl TransportError {
    pub(crate) fn http(error: reqwest::Error) -> Self {
        Self(Cause::Http(error.without_url()))
    }

    pub(crate) fn body(error: serde_json::Error) -> Self {
        Self(Cause::Body(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(endpoint: &'static str, errcode: ErrCode) -> Error {
        Error::Api(ApiError {
            endpoint,
            errcode,
            errmsg: "e".to_owned(),
            rid: Some("r".to_owned()),
        })
    }

    #[test]
    fn a_refused_secret_is_configuration_and_a_refused_token_is_a_token() {
        assert_eq!(
            api("/cgi-bin/token", ErrCode::INVALID_CREDENTIAL).class(),
            Class::Config
        );
        assert_eq!(
            api("/cgi-bin/stable_token", ErrCode::INVALID_CREDENTIAL).class(),
            Class::Config
        );
        assert_eq!(
            api("/cgi-bin/ticket/getticket", ErrCode::INVALID_CREDENTIAL).class(),
            Class::Token
        );
        assert_eq!(
            api("/sns/oauth2/access_token", ErrCode::INVALID_CREDENTIAL).class(),
            Class::Config
        );
        assert_eq!(
            api("/cgi-bin/token", ErrCode::DAILY_QUOTA).class(),
            Class::Day
        );
    }

    #[test]
    fn a_refused_user_token_is_the_users_to_mend() {
        for errcode in [
            ErrCode::INVALID_CREDENTIAL,
            ErrCode::INVALID_ACCESS_TOKEN,
            ErrCode::ACCESS_TOKEN_EXPIRED,
            ErrCode::API_UNAUTHORIZED,
        ] {
            assert_eq!(api("/sns/userinfo", errcode).class(), Class::Grant);
        }
        assert_eq!(
            api("/sns/userinfo", ErrCode::SYSTEM_ERROR).class(),
            Class::Backoff
        );
    }

    #[test]
    fn only_what_may_have_taken_effect_is_ambiguous() {
        assert!(api("/x", ErrCode::SYSTEM_ERROR).is_ambiguous());
        assert!(!api("/x", ErrCode::INVALID_CREDENTIAL).is_ambiguous());
        assert!(Error::Timeout { endpoint: "/x" }.is_ambiguous());
        let garbage = Error::Garbage {
            endpoint: "/x",
            status: 502,
            problem: "p".to_owned(),
        };
        assert!(garbage.is_ambiguous());
        assert_eq!(
            (garbage.errcode(), garbage.rid(), garbage.class()),
            (None, None, Class::Backoff)
        );
    }

    #[test]
    fn api_errors_say_code_and_text() {
        let error = api("/x", ErrCode(48001));
        assert_eq!(error.to_string(), "/x: WeChat says 48001 e");
        assert_eq!(
            (error.errcode(), error.rid(), error.endpoint()),
            (Some(ErrCode(48001)), Some("r"), "/x")
        );
    }
}
