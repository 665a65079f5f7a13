//! What WeChat tells of a mini program's user beside who it is: encrypted data, the phone number, and whether the
//! `session_key` that all of it hangs on still holds.
//!
//! A wrong key and changed data look alike: neither decrypts. What tells them apart, as far as it can be told:
//!
//! | signature of `raw_data` | decrypts | it is |
//! |---|---|---|
//! | fits, or is not sent | yes | right, once the watermark's app and age, the user and `raw_data`'s fields are compared |
//! | fits | no | invalid: only the right key can have made that signature |
//! | does not fit | yes | invalid: only the right key decrypts |
//! | does not fit, or is not sent | no | invalid when WeChat says that the key holds, else out of date |
//!
//! Bad padding and good padding around no JSON are never told apart: whoever could tell them apart could make
//! ciphertexts of their own, such as one that says another person's phone number.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};
use service_kit::{
    App, AppKind, Clock,
    clock::{millis, since_epoch},
};
use token_client::{CallError, TokenClient};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::{Instrument as _, Span, debug};
use wechat::{
    ErrCode, OpenId, PhoneNumber, SessionKey, UnionId,
    crypto::{self, DataError},
};

use crate::{
    error::Error,
    memory::ExpiringMap,
    metrics,
    session::{Session, Sessions},
};

/// Data goes from WeChat to the mini program and on to here within seconds; what is older was kept to be shown again.
/// It is twice as long as WeChat lets the code of the phone number button live, so that nobody is refused who is slow.
pub const MAX_AGE: Duration = Duration::from_secs(10 * 60);
/// WeChat's clock may be this much ahead of ours.
pub const MAX_SKEW: Duration = Duration::from_secs(60);
/// Bytes of the largest encrypted or raw data, in base64 and JSON.
pub const DATA_MAX: usize = 64 * 1024;
/// Bytes of the longest code of the phone number button.
pub const CODE_MAX: usize = 512;
/// Bytes of the longest `iv` and `signature`, line breaks included.
const SHORT_MAX: usize = 64;
/// WeChat is asked about a key once in this long, whatever arrives.
const ASKED_AGAIN: Duration = Duration::from_secs(60);
/// And it answers within this long, or the question stays open.
const ASKED: Duration = Duration::from_secs(2);

/// What a mini program got of WeChat, as it came here. It never prints.
pub struct Encrypted<'a> {
    data: &'a str,
    iv: &'a str,
    signed: Option<Signed<'a>>,
}

struct Signed<'a> {
    raw_data: &'a str,
    signature: &'a str,
}

impl fmt::Debug for Encrypted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Encrypted([redacted])")
    }
}

impl<'a> Encrypted<'a> {
    /// Takes the fields of `wx.getUserInfo`'s answer; `raw_data` and `signature` are empty where it has none.
    ///
    /// # Errors
    /// When one is missing or too long.
    pub fn parse(
        encrypted_data: &'a str,
        iv: &'a str,
        raw_data: &'a str,
        signature: &'a str,
    ) -> Result<Self, Error> {
        for (field, text, longest) in [
            ("encrypted_data", encrypted_data, DATA_MAX),
            ("iv", iv, SHORT_MAX),
            ("raw_data", raw_data, DATA_MAX),
            ("signature", signature, SHORT_MAX),
        ] {
            if text.len() > longest {
                return Err(Error::field(
                    field,
                    format!("must be at most {longest} bytes"),
                ));
            }
        }
        let signed = match (raw_data, signature) {
            ("", "") => None,
            (_, "") => return Err(Error::field("signature", "is missing beside raw_data")),
            ("", _) => return Err(Error::field("raw_data", "is missing beside signature")),
            (raw_data, signature) => Some(Signed {
                raw_data,
                signature,
            }),
        };
        for (field, text) in [("encrypted_data", encrypted_data), ("iv", iv)] {
            if text.is_empty() {
                return Err(Error::field(field, "is missing"));
            }
        }
        Ok(Self {
            data: encrypted_data,
            iv,
            signed,
        })
    }
}

/// Everything that user data needs; clones share it.
#[derive(Clone)]
pub struct UserData {
    wechat: wechat::Client,
    tokens: TokenClient,
    sessions: Sessions,
    clock: Clock,
    tasks: TaskTracker,
    /// Whether a key held when WeChat was asked.
    asked: Arc<Mutex<ExpiringMap<bool>>>,
}

impl fmt::Debug for UserData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserData").finish_non_exhaustive()
    }
}

impl UserData {
    /// What must not be left half done runs on `tasks`, to be awaited before the process ends.
    pub fn new(
        wechat: wechat::Client,
        tokens: TokenClient,
        sessions: Sessions,
        clock: Clock,
        tasks: TaskTracker,
    ) -> Self {
        Self {
            wechat,
            tokens,
            sessions,
            clock,
            tasks,
            asked: Arc::default(),
        }
    }

    /// Opens what WeChat encrypted for the mini program of a session, and checks that it is of this app, of this user
    /// and fresh. What else stands in it is vouched for by the signature of `raw_data` alone: CBC has no tag.
    ///
    /// # Errors
    /// [`Error::SessionKeyOutdated`] where the user has to log in again, [`Error::DataInvalid`] and
    /// [`Error::DataExpired`] where the mini program has to fetch the data again; when a store does not answer.
    pub async fn decrypt(
        &self,
        app: &App,
        session: &Session,
        encrypted: &Encrypted<'_>,
    ) -> Result<Value, Error> {
        let outcome = self.open(app, session, encrypted).await;
        metrics::user_data(&app.name, &outcome);
        outcome
    }

    async fn open(
        &self,
        app: &App,
        session: &Session,
        encrypted: &Encrypted<'_>,
    ) -> Result<Value, Error> {
        let open_id = &session.open_id;
        let key = self.key(app, open_id).await?;
        let fits = encrypted.signed.as_ref().map(|signed| {
            crypto::verify_user_data_signature(signed.signature, signed.raw_data, &key)
        });
        let opened = crypto::decrypt_user_data(&key, encrypted.data, encrypted.iv, &app.app_id);
        let data = match (opened, fits) {
            (Ok(data), None | Some(true)) => data,
            (Ok(_), Some(false)) => {
                return Err(Error::DataInvalid("signature does not fit raw_data"));
            }
            (Err(DataError::Malformed { field }), _) if field != "session_key" => {
                return Err(Error::field(field, "is not base64 of a fitting length"));
            }
            (Err(DataError::AppId), _) => {
                return Err(Error::DataInvalid("its watermark names another app"));
            }
            (Err(_), Some(true)) => {
                let problem = "it was changed on the way, or is of another answer than raw_data";
                return Err(Error::DataInvalid(problem));
            }
            (Err(_), None | Some(false)) if self.is_in_force(app, open_id, &key).await => {
                let problem = "it was changed on the way, or fetched before the latest login";
                return Err(Error::DataInvalid(problem));
            }
            (Err(_), None | Some(false)) => return Err(Error::SessionKeyOutdated),
        };
        if let Some(Signed { raw_data, .. }) = encrypted.signed
            && !agrees(&data, raw_data)
        {
            return Err(Error::DataInvalid("it is not what raw_data says"));
        }
        check_user(&data, open_id, session.union_id.as_ref())?;
        check_age(&data, self.clock.now())?;
        Ok(data)
    }

    /// The key that is kept of the user.
    async fn key(&self, app: &App, open_id: &OpenId) -> Result<SessionKey, Error> {
        let key = self.sessions.session_key(&app.app_id, open_id).await?;
        key.ok_or(Error::SessionKeyOutdated)
    }

    /// Whether WeChat says that the key is still the user's. Where it is not to be had, or not in time, it is not: to
    /// log in again mends a key, and harms nothing where it held.
    ///
    /// It is asked once about a key in [`ASKED_AGAIN`], so that nobody has WeChat called by sending garbage.
    async fn is_in_force(&self, app: &App, open_id: &OpenId, key: &SessionKey) -> bool {
        let name = crypto::session_signature(key, &format!("{}:{open_id}", app.app_id));
        let now = self.clock.unix_millis();
        let end = now + millis(ASKED_AGAIN);
        {
            let mut asked = self.asked();
            if let Some(entry) = asked.get_mut(&name, now) {
                return entry.value;
            }
            asked.insert(name.clone(), false, end, now);
        }
        let holds = match timeout(ASKED, self.ask(app, open_id, key)).await {
            Ok(Ok(holds)) => holds,
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                debug!(app = app.name, error, "a session_key stays in doubt");
                false
            }
            Err(_) => false,
        };
        if holds {
            self.asked().insert(name, true, end, now);
        }
        holds
    }

    fn asked(&self) -> MutexGuard<'_, ExpiringMap<bool>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, app: &App, open_id: &OpenId, key: &SessionKey) -> Result<bool, Error> {
        let check = self.tokens.with_token(&app.app_id, |token| async move {
            self.wechat.check_session_key(&token, open_id, key).await
        });
        check.await.map_err(|error| failed(app, error))
    }

    /// Whether the `session_key` that is kept of the user still works; it does not where none is kept.
    ///
    /// # Errors
    /// When the app is no mini program, or the store, token-service or WeChat does not answer.
    pub async fn session_key_holds(&self, app: &App, open_id: &OpenId) -> Result<bool, Error> {
        is_mini_program(app)?;
        match self.sessions.session_key(&app.app_id, open_id).await? {
            Some(key) => self.ask(app, open_id, &key).await,
            None => Ok(false),
        }
    }

    /// Has WeChat replace the user's `session_key`, and keeps the new one. It goes on when the caller hangs up: the
    /// old key is dead by then.
    ///
    /// # Errors
    /// [`Error::SessionKeyOutdated`] when there is none that WeChat would replace; when the app is no mini program, or
    /// the store, token-service or WeChat does not answer.
    pub async fn reset_session_key(&self, app: Arc<App>, open_id: OpenId) -> Result<(), Error> {
        is_mini_program(&app)?;
        let this = self.clone();
        let reset = async move {
            let (old, open) = (&this.key(&app, &open_id).await?, &open_id);
            let wechat = &this.wechat;
            let reset = this.tokens.with_token(&app.app_id, |token| async move {
                wechat.reset_session_key(&token, open, old).await
            });
            let new = reset.await.map_err(|error| match &error {
                CallError::WeChat(refused) => match refused.errcode() {
                    Some(ErrCode::SESSION_KEY_GONE | ErrCode::INVALID_SESSION_SIGNATURE) => {
                        Error::SessionKeyOutdated
                    }
                    _ => failed(&app, error),
                },
                CallError::Token(_) => failed(&app, error),
            })?;
            let sessions = &this.sessions;
            sessions
                .replace_session_key(&app.app_id, &open_id, old, &new)
                .await
        };
        let reset = self.tasks.spawn(reset.instrument(Span::current()));
        reset.await.map_err(Error::from).flatten()
    }

    /// The phone number that the user gave by the button whose event held `code`, which works once. With `open_id`,
    /// WeChat refuses the code of another user.
    ///
    /// # Errors
    /// [`Error::PhoneCodeInvalid`] when the user has to press the button again; when the app is no mini program, the
    /// code cannot be one, or token-service or WeChat does not answer.
    pub async fn phone_number(
        &self,
        app: &App,
        code: &str,
        open_id: Option<&OpenId>,
    ) -> Result<PhoneNumber, Error> {
        is_mini_program(app)?;
        match code.len() {
            0 => return Err(Error::field("code", "is missing")),
            1..=CODE_MAX => {}
            _ => {
                let problem = format!("must be at most {CODE_MAX} bytes");
                return Err(Error::field("code", problem));
            }
        }
        let exchange = self.tokens.with_token(&app.app_id, |token| async move {
            self.wechat.phone_number(&token, code, open_id).await
        });
        exchange.await.map_err(|error| match error {
            // 40013, which elsewhere is about the app's settings, says here that the code is another app's; 40003,
            // that another user pressed the button.
            CallError::WeChat(source)
                if matches!(
                    source.errcode(),
                    Some(
                        ErrCode::INVALID_CODE
                            | ErrCode::CODE_USED
                            | ErrCode::INVALID_APP_ID
                            | ErrCode::INVALID_OPEN_ID
                    )
                ) =>
            {
                Error::PhoneCodeInvalid {
                    app: app.name.clone(),
                    source,
                }
            }
            error => failed(app, error),
        })
    }
}

fn is_mini_program(app: &App) -> Result<(), Error> {
    if app.kind == AppKind::MiniProgram {
        return Ok(());
    }
    let problem = format!("names {}, which is no mini program", app.name);
    Err(Error::field("app_id", problem))
}

fn failed(app: &App, error: CallError) -> Error {
    match error {
        CallError::Token(error) => Error::Tokens(error),
        CallError::WeChat(source) => Error::Call {
            app: app.name.clone(),
            source,
        },
    }
}

/// Whether the data has all that the signed `raw_data` has, and the same. CBC itself does not notice a change that
/// leaves the JSON whole, such as within a nickname.
fn agrees(data: &Value, raw_data: &str) -> bool {
    serde_json::from_str::<Map<String, Value>>(raw_data).is_ok_and(|raw| {
        raw.iter()
            .all(|(field, value)| data.get(field) == Some(value))
    })
}

/// That ids in the data are the session's own. Data with a phone number has none.
fn check_user(data: &Value, open_id: &OpenId, union_id: Option<&UnionId>) -> Result<(), Error> {
    for (field, own) in [
        ("openId", Some(open_id.as_str())),
        ("unionId", union_id.map(UnionId::as_str)),
    ] {
        if let (Some(of), Some(own)) = (data.get(field), own)
            && of.as_str() != Some(own)
        {
            return Err(Error::DataInvalid("it is of another user"));
        }
    }
    Ok(())
}

fn check_age(data: &Value, now: SystemTime) -> Result<(), Error> {
    let made = data.pointer("/watermark/timestamp").and_then(Value::as_u64);
    let made = made.ok_or(Error::DataInvalid("its watermark has no timestamp"))?;
    let now = since_epoch(now).as_secs();
    if made > now.saturating_add(MAX_SKEW.as_secs()) {
        return Err(Error::DataInvalid("its watermark is of the future"));
    }
    if now.saturating_sub(made) > MAX_AGE.as_secs() {
        return Err(Error::DataExpired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn data_is_fresh_for_ten_minutes_and_the_clock_may_be_a_minute_behind() {
        let age = |made: Value, now: u64| {
            let data = json!({ "watermark": { "timestamp": made } });
            check_age(&data, UNIX_EPOCH + Duration::from_secs(now))
        };
        let now = 1_800_000_000;
        for made in [now, now - 600, now + 60] {
            assert!(age(json!(made), now).is_ok(), "{made}");
        }
        assert!(matches!(
            age(json!(now - 601), now),
            Err(Error::DataExpired)
        ));
        for made in [
            json!(now + 61),
            json!(u64::MAX),
            json!("x"),
            json!(-1),
            Value::Null,
        ] {
            assert!(
                matches!(age(made.clone(), now), Err(Error::DataInvalid(_))),
                "{made}"
            );
        }
        assert!(matches!(
            check_age(&json!({}), UNIX_EPOCH),
            Err(Error::DataInvalid(_))
        ));
    }

    #[test]
    fn ids_are_those_of_the_session() {
        let open_id = "oA".parse().unwrap();
        let union_id = "uA".parse().unwrap();
        for (data, union_id, is_own) in [
            (json!({}), Some(&union_id), true),
            (json!({ "openId": "oA" }), None, true),
            (
                json!({ "openId": "oA", "unionId": "uA" }),
                Some(&union_id),
                true,
            ),
            // WeChat may come to know it after the login.
            (json!({ "openId": "oA", "unionId": "uA" }), None, true),
            (json!({ "openId": "oB" }), None, false),
            (json!({ "openId": null }), None, false),
            (
                json!({ "openId": "oA", "unionId": "uB" }),
                Some(&union_id),
                false,
            ),
        ] {
            let verdict = check_user(&data, &open_id, union_id);
            assert_eq!(verdict.is_ok(), is_own, "{data}");
        }
    }

    #[test]
    fn raw_data_and_signature_come_together() {
        assert!(Encrypted::parse("d", "i", "", "").unwrap().signed.is_none());
        assert!(
            Encrypted::parse("d", "i", "r", "s")
                .unwrap()
                .signed
                .is_some()
        );
        let long = "x".repeat(DATA_MAX + 1);
        for (data, iv, raw_data, signature, named) in [
            ("", "i", "", "", "encrypted_data"),
            (long.as_str(), "i", "", "", "encrypted_data"),
            ("d", "", "", "", "iv"),
            ("d", &long[..65], "", "", "iv"),
            ("d", "i", "r", "", "signature"),
            ("d", "i", "", "s", "raw_data"),
            ("d", "i", &long, "s", "raw_data"),
            ("d", "i", "r", &long[..65], "signature"),
        ] {
            let error = Encrypted::parse(data, iv, raw_data, signature).unwrap_err();
            assert!(
                matches!(error, Error::InvalidField { field, .. } if field == named),
                "{named}: {error}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_watermark_is_judged(timestamp in any::<i64>(), now in any::<u32>()) {
            let data = json!({ "watermark": { "timestamp": timestamp } });
            let now = u64::from(now);
            let verdict = check_age(&data, UNIX_EPOCH + Duration::from_secs(now));
            let fresh = u64::try_from(timestamp)
                .is_ok_and(|made| made <= now + 60 && made + 600 >= now);
            prop_assert_eq!(verdict.is_ok(), fresh);
        }
    }
}
