//! Tokens and credentials on the screen and in JSON.

use std::time::SystemTime;

use prost_types::Timestamp;
use proto::token::v1::{AccessToken, Credential, CredentialType};
use serde_json::{Value, json};

use crate::{
    secret::shortened,
    table::{aligned, from, rfc_3339, to_the_second},
};

/// An access_token as it may be seen.
pub(super) struct Shown<'a> {
    token: &'a AccessToken,
    secret: String,
}

impl<'a> Shown<'a> {
    pub(super) fn new(token: &'a AccessToken, in_full: bool) -> Self {
        let secret = if in_full {
            token.token.clone()
        } else {
            shortened(&token.token)
        };
        Self { token, secret }
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "app_id": self.token.app_id,
            "version": self.token.version,
            "token": self.secret,
            "expire_time": rfc_3339(self.token.expire_time),
            "refresh_time": rfc_3339(self.token.refresh_time),
            "use_until": rfc_3339(self.token.use_until),
        })
    }

    /// Everything, one thing a line.
    pub(super) fn details(&self, now: SystemTime) -> String {
        let at = |time: Option<Timestamp>| format!("{} ({})", to_the_second(time), from(now, time));
        aligned(&[
            vec!["app_id".to_owned(), self.token.app_id.clone()],
            vec!["version".to_owned(), self.token.version.to_string()],
            vec!["token".to_owned(), self.secret.clone()],
            vec!["expires".to_owned(), at(self.token.expire_time)],
            vec!["refresh".to_owned(), at(self.token.refresh_time)],
            vec!["use until".to_owned(), at(self.token.use_until)],
        ])
    }

    /// The most telling, on one line.
    pub(super) fn line(&self, now: SystemTime) -> String {
        format!(
            "{}  {}  version {}  {}  expires {}",
            to_the_second(Some(now.into())),
            self.token.app_id,
            self.token.version,
            self.secret,
            from(now, self.token.expire_time),
        )
    }
}

pub(super) fn credential(credential: &Credential) -> Value {
    json!({
        "app_id": credential.app_id,
        "app_name": credential.app_name,
        "type": kind(credential),
        "version": credential.version,
        "expire_time": rfc_3339(credential.expire_time),
        "next_refresh_time": rfc_3339(credential.next_refresh_time),
        "last_error": credential.last_error,
        "upstream_calls_today": credential.upstream_calls_today,
        "forced_refreshes_today": credential.forced_refreshes_today,
        "foreign_refreshes_today": credential.foreign_refreshes_today,
    })
}

/// Credentials under each other.
pub(super) fn table(credentials: &[Credential], now: SystemTime) -> String {
    let head = [
        "APP_ID",
        "NAME",
        "CREDENTIAL",
        "VERSION",
        "EXPIRES",
        "REFRESH",
        "CALLS TODAY",
        "FORCED",
        "FOREIGN",
        "LAST ERROR",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(credentials.iter().map(|credential| {
        vec![
            credential.app_id.clone(),
            credential.app_name.clone(),
            kind(credential).to_owned(),
            credential.version.to_string(),
            from(now, credential.expire_time),
            from(now, credential.next_refresh_time),
            credential.upstream_calls_today.to_string(),
            credential.forced_refreshes_today.to_string(),
            credential.foreign_refreshes_today.to_string(),
            // WeChat worded a part of it.
            credential.last_error.replace(char::is_control, " "),
        ]
    }));
    aligned(&rows)
}

fn kind(credential: &Credential) -> &'static str {
    match credential.r#type() {
        CredentialType::Unspecified => "unknown",
        CredentialType::AccessToken => "access_token",
        CredentialType::JsapiTicket => "jsapi_ticket",
        CredentialType::WxCardTicket => "wx_card_ticket",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_000_000);

    fn after(seconds: u64) -> Option<Timestamp> {
        Some((SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(seconds)).into())
    }

    #[test]
    fn credentials_stand_in_columns_and_keep_to_their_line() {
        let healthy = Credential {
            app_id: "wx0000000000000001".to_owned(),
            app_name: "shop".to_owned(),
            r#type: CredentialType::AccessToken.into(),
            version: 12,
            expire_time: after(7_140),
            next_refresh_time: after(6_605),
            upstream_calls_today: 3,
            forced_refreshes_today: 1,
            ..Credential::default()
        };
        let broken = Credential {
            app_id: "wx02".to_owned(),
            app_name: "the-news".to_owned(),
            r#type: CredentialType::JsapiTicket.into(),
            next_refresh_time: after(59),
            last_error: "WeChat says 40125\n\u{1b}[2J".to_owned(),
            ..Credential::default()
        };
        let table = table(&[healthy, broken], SystemTime::UNIX_EPOCH + NOW);
        assert_eq!(
            table,
            "\
APP_ID              NAME      CREDENTIAL    VERSION  EXPIRES   REFRESH   CALLS TODAY  FORCED  FOREIGN  LAST ERROR
wx0000000000000001  shop      access_token  12       in 1h59m  in 1h50m  3            1       0
wx02                the-news  jsapi_ticket  0        -         in 59s    0            0       0        WeChat says 40125  [2J"
        );
    }

    #[test]
    fn a_token_is_shown_in_full_only_when_asked_for() {
        let token = AccessToken {
            app_id: "wx0000000000000001".to_owned(),
            token: "a-secret-of-33-characters-in-full".to_owned(),
            version: 4,
            expire_time: after(600),
            refresh_time: after(0),
            use_until: after(61),
        };
        let now = SystemTime::UNIX_EPOCH + NOW + Duration::from_secs(1);
        let hidden = Shown::new(&token, false);
        let texts = [
            hidden.details(now),
            hidden.line(now),
            hidden.json().to_string(),
        ];
        for text in &texts {
            assert!(text.contains("a-secr… (33 characters)"), "{text}");
            assert!(!text.contains(&token.token), "{text}");
        }
        assert_eq!(
            hidden.line(now),
            "1970-01-12T13:46:41Z  wx0000000000000001  version 4  a-secr… (33 characters)  expires in 9m59s"
        );
        assert!(
            texts[0].contains("\nrefresh    1970-01-12T13:46:40Z (1s ago)\n"),
            "{}",
            texts[0]
        );
        let shown = Shown::new(&token, true);
        assert_eq!(shown.json()["token"], token.token);
        assert!(shown.details(now).contains(&token.token));
    }
}
