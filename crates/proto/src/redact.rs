//! `Debug` of the messages that carry a secret: all but the secret, so that a logged request leaks nothing.

use std::fmt::{Debug, Formatter, Result};

use crate::{auth, token};

/// Stands where a secret was.
const REDACTED: &str = "[redacted]";

impl Debug for token::v1::AccessToken {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("AccessToken")
            .field("app_id", &self.app_id)
            .field("token", &REDACTED)
            .field("expire_time", &self.expire_time)
            .field("refresh_time", &self.refresh_time)
            .field("use_until", &self.use_until)
            .field("version", &self.version)
            .finish()
    }
}

impl Debug for token::v1::Ticket {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Ticket")
            .field("app_id", &self.app_id)
            .field("type", &self.r#type())
            .field("ticket", &REDACTED)
            .field("expire_time", &self.expire_time)
            .field("refresh_time", &self.refresh_time)
            .field("version", &self.version)
            .finish()
    }
}

impl Debug for auth::v1::Session {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("Session")
            .field("session_token", &REDACTED)
            .field("expire_time", &self.expire_time)
            .field("user", &self.user)
            .finish()
    }
}

impl Debug for auth::v1::LoginRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("LoginRequest")
            .field("app_id", &self.app_id)
            .field("js_code", &REDACTED)
            .field("nickname", &self.nickname)
            .finish()
    }
}

impl Debug for auth::v1::VerifySessionRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("VerifySessionRequest")
            .field("session_token", &REDACTED)
            .finish()
    }
}

impl Debug for auth::v1::RevokeSessionRequest {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("RevokeSessionRequest")
            .field("session_token", &REDACTED)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_carries_no_secret() {
        let secret = "s3cr3t".to_owned();
        let printed = [
            format!(
                "{:?}",
                token::v1::AccessToken {
                    token: secret.clone(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                token::v1::Ticket {
                    ticket: secret.clone(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                auth::v1::Session {
                    session_token: secret.clone(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                auth::v1::LoginRequest {
                    js_code: secret.clone(),
                    ..Default::default()
                }
            ),
            format!(
                "{:?}",
                auth::v1::VerifySessionRequest {
                    session_token: secret.clone(),
                }
            ),
            format!(
                "{:?}",
                auth::v1::RevokeSessionRequest {
                    session_token: secret.clone(),
                }
            ),
        ];
        for text in printed {
            assert!(!text.contains(&secret), "{text}");
            assert!(text.contains(REDACTED), "{text}");
        }
    }
}
