//! What WeChat pushes: verified first, decrypted, answered once.

pub(crate) mod seen;

use std::time::Duration;

use service_kit::{
    App, Clock,
    catalog::{Callback, CallbackMode, CallbackToken},
};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};
use wechat::{
    callback::{Envelope, Format, Inbound, ParseError, render_encrypted},
    crypto::{MessageCrypt, signature, verify_signature},
};

use self::seen::{Push, Seen};
use crate::{
    metrics,
    receipt::{NotRecorded, Receipt, Receipts},
    rule,
};

/// WeChat hangs up after five seconds and shows the user an error; `success` in time shows nothing.
const DEADLINE: Duration = Duration::from_millis(4_500);
/// How often a repeat looks whether the first is answered.
const PAUSE: Duration = Duration::from_millis(50);
const SUCCESS: &str = "success";

/// The query of a push or of the URL's verification.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct Query {
    #[serde(default)]
    signature: String,
    #[serde(default)]
    msg_signature: String,
    #[serde(default)]
    timestamp: String,
    #[serde(default)]
    nonce: String,
    #[serde(default)]
    pub(crate) echostr: String,
}

/// Why a push is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("the signature does not hold")]
    Forged,
    #[error("the push is not encrypted, but the app's mode is safe")]
    NotEncrypted,
    #[error("no key of the app decrypts the push")]
    NotDecrypted,
    #[error(transparent)]
    Malformed(#[from] ParseError),
    #[error(transparent)]
    NotRecorded(#[from] NotRecorded),
}

/// The body that goes back, and how it is written; none for the bare word `success`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) body: String,
    pub(crate) format: Option<Format>,
}

/// Answers pushes.
#[derive(Debug, Clone)]
pub(crate) struct Callbacks {
    pub(crate) seen: Seen,
    pub(crate) receipts: Receipts,
    pub(crate) clock: Clock,
}

/// A push whose signature held, in the clear.
struct Verified<'a> {
    body: Vec<u8>,
    /// What it was signed and encrypted with, and so must the reply; none for a plain push.
    sealed: Option<Seal<'a>>,
}

struct Seal<'a> {
    token: &'a CallbackToken,
    crypt: MessageCrypt,
}

/// Whether the URL's verification is WeChat's: signed with one of the app's tokens.
pub(crate) fn verifies(callback: &Callback, query: &Query) -> bool {
    signed(callback, &query.signature, query, None).is_some()
}

/// The token that the signature was made with, compared in constant time.
fn signed<'a>(
    callback: &'a Callback,
    signature: &str,
    query: &Query,
    encrypt: Option<&str>,
) -> Option<&'a CallbackToken> {
    callback.tokens.iter().find(|token| {
        let mut parts = vec![
            token.expose(),
            query.timestamp.as_str(),
            query.nonce.as_str(),
        ];
        parts.extend(encrypt);
        verify_signature(signature, &parts)
    })
}

/// Checks where a push comes from before anything in it is used. `signature` covers no body, so a push with a cipher
/// text must be signed by `msg_signature`, and in safe mode nothing else is taken. An app in compatible mode takes plain
/// pushes too: that is how an account moves from plain to safe without losing one.
fn verify<'a>(
    app: &App,
    callback: &'a Callback,
    query: &Query,
    body: &[u8],
) -> Result<Verified<'a>, Refusal> {
    let plain = |body: &[u8]| match signed(callback, &query.signature, query, None) {
        Some(_) => Ok(Verified {
            body: body.to_vec(),
            sealed: None,
        }),
        None => Err(Refusal::Forged),
    };
    if callback.mode == CallbackMode::Plain {
        return plain(body);
    }
    let encrypt = match (Envelope::parse(body)?.encrypt, callback.mode) {
        (Some(encrypt), _) => encrypt,
        (None, CallbackMode::Compatible) => return plain(body),
        (None, _) => return Err(Refusal::NotEncrypted),
    };
    let token =
        signed(callback, &query.msg_signature, query, Some(&encrypt)).ok_or(Refusal::Forged)?;
    callback
        .encoding_aes_keys
        .iter()
        .find_map(|key| {
            let crypt = MessageCrypt::new(key, &app.app_id);
            let body = crypt.decrypt(&encrypt).ok()?.into_bytes();
            let sealed = Some(Seal { token, crypt });
            Some(Verified { body, sealed })
        })
        .ok_or(Refusal::NotDecrypted)
}

impl Callbacks {
    /// Verifies a push, writes down what it is a receipt of, and answers it, a repeat with what the first got.
    pub(crate) async fn handle(
        &self,
        app: &App,
        callback: &Callback,
        query: &Query,
        body: &[u8],
    ) -> Result<Answer, Refusal> {
        let outcome = |refusal: &Refusal| match refusal {
            Refusal::Forged | Refusal::NotEncrypted => "forged",
            Refusal::NotDecrypted => "not_decrypted",
            Refusal::Malformed(_) => "malformed",
            Refusal::NotRecorded(_) => "not_recorded",
        };
        let verified = verify(app, callback, query, body);
        let (verified, inbound) = verified
            .and_then(|verified| {
                let inbound = Inbound::parse(&verified.body)?;
                Ok((verified, inbound))
            })
            .inspect_err(|refusal| metrics::callback(outcome(refusal)))?;
        let deadline = Instant::now() + DEADLINE;
        let receipts = Receipt::all(&inbound);
        if !receipts.is_empty() {
            let recorded = self.receipts.record(app.app_id.clone(), receipts);
            let recorded = timeout_at(deadline, recorded).await;
            recorded
                .unwrap_or(Err(NotRecorded))
                .map_err(Refusal::from)
                .inspect_err(|refusal| metrics::callback(outcome(refusal)))?;
        }
        let reply = timeout_at(deadline, self.reply(app, &inbound)).await;
        let reply = reply.unwrap_or_else(|_| {
            warn!(app = app.name, "no answer within WeChat's five seconds");
            SUCCESS.to_owned()
        });
        Ok(self.seal(reply, inbound.format, verified.sealed.as_ref(), query))
    }

    /// The reply in the clear. With Redis away pushes are answered all the same: twice rather than not at all.
    async fn reply(&self, app: &App, inbound: &Inbound) -> String {
        let key = inbound.dedup_key();
        let first = loop {
            match self.seen.claim(&app.app_id, &key).await {
                Ok(Push::Answered(reply)) => {
                    metrics::callback("repeated");
                    return reply;
                }
                Ok(Push::Underway) => tokio::time::sleep(PAUSE).await,
                Ok(Push::First) => break true,
                Err(error) => {
                    warn!("repeats are not told, for Redis does not answer: {error}");
                    break false;
                }
            }
        };
        let reply = rule::reply(app, inbound).render(inbound, self.clock.unix_seconds());
        if first && let Err(error) = self.seen.answer(&app.app_id, &key, &reply).await {
            warn!("a repeat will not be told, for Redis does not answer: {error}");
        }
        metrics::callback("answered");
        info!(app = app.name, msg_type = label(inbound), "push answered");
        reply
    }

    /// Encrypts the reply when the push was encrypted; `success` stays bare.
    fn seal(
        &self,
        reply: String,
        format: Format,
        sealed: Option<&Seal<'_>>,
        query: &Query,
    ) -> Answer {
        if reply == SUCCESS {
            return Answer {
                body: reply,
                format: None,
            };
        }
        let body = match sealed {
            None => reply,
            Some(Seal { token, crypt }) => {
                let encrypt = crypt.encrypt(&reply);
                let timestamp = self.clock.unix_seconds();
                let parts = [
                    token.expose(),
                    &timestamp.to_string(),
                    &query.nonce,
                    &encrypt,
                ];
                render_encrypted(
                    format,
                    &encrypt,
                    &signature(&parts),
                    timestamp,
                    &query.nonce,
                )
            }
        };
        Answer {
            body,
            format: Some(format),
        }
    }
}

/// The event or message type, for the log.
fn label(inbound: &Inbound) -> &str {
    inbound.event.as_deref().unwrap_or(&inbound.msg_type)
}
