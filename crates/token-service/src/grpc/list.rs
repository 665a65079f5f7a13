//! ListCredentials.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use proto::token::v1::{
    self as wire, CredentialType, ListCredentialsRequest, ListCredentialsResponse,
};
use service_kit::{App, Caller, status::invalid_field};
use tonic::Status;

use crate::{
    broker::Broker,
    credential::{Key, Kind},
};

/// Entries of a page that names no size, and the most of any page.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1_000;

pub(super) fn page(
    broker: &Broker,
    caller: &Caller,
    request: &ListCredentialsRequest,
) -> Result<ListCredentialsResponse, Status> {
    let size = match usize::try_from(request.page_size) {
        Ok(0) => PAGE_DEFAULT,
        Ok(size) if size <= PAGE_MAX => size,
        _ => {
            let problem = format!("must be from 1 to {PAGE_MAX}, or 0");
            return Err(invalid_field("page_size", problem));
        }
    };
    let after = if request.page_token.is_empty() {
        None
    } else {
        let key = parse(&request.page_token);
        Some(key.ok_or_else(|| {
            invalid_field(
                "page_token",
                "must be the next_page_token of the page before",
            )
        })?)
    };
    let catalog = broker.catalog().current();
    let mut keys: Vec<_> = broker
        .keys()
        .into_iter()
        .filter(|key| caller.apps.contains(&key.app))
        // Tickets that nobody asked for are no news.
        .filter(|key| key.kind == Kind::AccessToken || broker.existing(key).is_some())
        .filter(|key| after.as_ref().is_none_or(|after| key > after))
        .collect();
    keys.sort();
    let more = keys.len() > size;
    keys.truncate(size);
    let next = keys.last().filter(|_| more);
    let next_page_token = next.map(|key| BASE64_URL_SAFE_NO_PAD.encode(key.to_string()));
    let credentials = keys.iter().filter_map(|key| {
        let app = catalog.app(key.app.as_str())?;
        Some(credential(broker, app, key))
    });
    Ok(ListCredentialsResponse {
        credentials: credentials.collect(),
        next_page_token: next_page_token.unwrap_or_default(),
    })
}

fn parse(token: &str) -> Option<Key> {
    let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (app, kind) = text.split_once(':')?;
    Some(Key {
        app: app.parse().ok()?,
        kind: Kind::from_name(kind)?,
    })
}

fn credential(broker: &Broker, app: &App, key: &Key) -> wire::Credential {
    let state = broker
        .existing(key)
        .map(|slot| slot.state())
        .unwrap_or_default();
    let now = broker.clock().now();
    let held = state.held.as_ref();
    let failure = state.failure.as_ref();
    let planned = held.map(|held| {
        let planned = held.refresh_time();
        failure.map_or(planned, |failure| planned.max(failure.retry_at))
    });
    let credential_type = match key.kind {
        Kind::AccessToken => CredentialType::AccessToken,
        Kind::JsapiTicket => CredentialType::JsapiTicket,
        Kind::WxCardTicket => CredentialType::WxCardTicket,
    };
    wire::Credential {
        app_id: app.app_id.to_string(),
        app_name: app.name.clone(),
        r#type: credential_type.into(),
        version: state.version(),
        expire_time: held.map(|held| held.credential.times.expire.into()),
        next_refresh_time: planned.map(Into::into),
        last_error: failure
            .map(|failure| failure.cause.to_string())
            .unwrap_or_default(),
        upstream_calls_today: state.ledger.on(now).calls,
        forced_refreshes_today: state.ledger.on(now).forced,
        foreign_refreshes_today: state.ledger.on(now).rejected,
    }
}
