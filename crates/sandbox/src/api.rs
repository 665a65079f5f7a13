//! `api.weixin.qq.com`: what every interface has in common, from the method to the ` rid: …`.

use std::{borrow::Cow, collections::HashMap, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes, to_bytes},
    extract::{self, ConnectInfo, Query, Request},
    http::{HeaderValue, Method, StatusCode, header::CONTENT_TYPE},
    response::Response,
};
use serde_json::{Value, json};

use crate::{
    account::Accounts,
    calls::Call,
    clock::Moment,
    connection::Scissors,
    endpoint::{Credential, Endpoint},
    error::ApiError,
    fault::Fault,
    message::{self, Receipt},
    state::{State, World},
    token::{self, Grant},
    user_data,
};

/// The longest body that is read; WeChat's own limit is not documented.
const BODY_LIMIT: usize = 256 * 1024;
/// The addresses that `get_api_domain_ip` tells.
const ADDRESSES: [&str; 2] = ["101.226.212.27", "101.226.103.0/25"];

type Parameters = HashMap<String, String>;

/// What an interface answers, and what WeChat then does in its own time.
struct Done {
    body: Value,
    receipt: Option<Receipt>,
}

impl From<Value> for Done {
    fn from(body: Value) -> Self {
        Self {
            body,
            receipt: None,
        }
    }
}

/// Answers every path that is not the sandbox's own.
pub(crate) async fn handle(
    extract::State(state): extract::State<State>,
    ConnectInfo(scissors): ConnectInfo<Scissors>,
    request: Request,
) -> Response {
    let now = state.0.clock.now();
    let Query(query) = Query::<Parameters>::try_from_uri(request.uri()).unwrap_or_default();
    let Some(endpoint) = Endpoint::from_path(request.uri().path()) else {
        return answer(refusal(&ApiError::INVALID_URL, &rid(now)), None);
    };
    let method = request.method().clone();
    let Ok(body) = to_bytes(request.into_body(), BODY_LIMIT).await else {
        return plain_answer(StatusCode::PAYLOAD_TOO_LARGE, String::new(), None);
    };
    let request = Received {
        endpoint,
        method,
        query,
        body,
    };
    // Once WeChat has a request, a caller that hangs up changes nothing.
    let shared = Arc::clone(&state.0);
    let work = async move {
        let work = process(&state, &request, &scissors);
        state.0.stopping.run_until_cancelled(work).await
    };
    match shared.tasks.spawn(work).await {
        Ok(Some(response)) => response,
        _ => plain_answer(StatusCode::SERVICE_UNAVAILABLE, String::new(), None),
    }
}

/// A request that arrived whole.
struct Received {
    endpoint: Endpoint,
    method: Method,
    query: Parameters,
    body: Bytes,
}

/// Carries a request out, unless a fault forbids it, and writes the call down.
async fn process(state: &State, request: &Received, scissors: &Scissors) -> Response {
    let (app_id, fault) = {
        let mut world = state.world();
        let app_id = caller(&world.accounts, request, state.0.clock.now());
        let fault = world.faults.take(request.endpoint, app_id.as_deref());
        (app_id, fault)
    };
    if let Some(delay) = fault.as_ref().and_then(|fault| fault.delay_ms) {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    let now = state.0.clock.now();
    let mut outcome = Err(ApiError::SYSTEM);
    if fault
        .as_ref()
        .is_none_or(|fault| !fault.replaces_answer() || fault.carried_out)
    {
        let done = dispatch(&mut state.world(), request, now);
        outcome = done.map(|done| {
            if let Some(receipt) = done.receipt {
                state.send_receipt(receipt);
            }
            done.body
        });
    }
    let rid = rid(now);
    let (response, label) = respond(fault.as_ref(), outcome, &rid, scissors);
    let refused = label.parse::<i64>().is_ok();
    state.world().calls.record(Call {
        time: now.as_secs(),
        app_id,
        endpoint: request.endpoint.path(),
        outcome: label,
        rid: refused.then_some(rid),
    });
    response
}

/// The response, as the fault has it or as the interface does, and what the call log says of it.
fn respond(
    fault: Option<&Fault>,
    outcome: Result<Value, ApiError>,
    rid: &str,
    scissors: &Scissors,
) -> (Response, String) {
    if let Some(fault) = fault {
        if fault.reset {
            scissors.cut();
            return (Response::new(Body::empty()), "reset".to_owned());
        }
        if let Some(errcode) = fault.errcode {
            let errmsg = fault
                .errmsg
                .clone()
                .map_or_else(|| ApiError::text(errcode).into(), Cow::from);
            return (
                answer(refusal(&ApiError { errcode, errmsg }, rid), Some(fault)),
                errcode.to_string(),
            );
        }
        if fault.status.is_some() || fault.body.is_some() {
            let status = StatusCode::from_u16(fault.status.unwrap_or(200))
                .unwrap_or(StatusCode::BAD_GATEWAY);
            let body = fault.body.clone().unwrap_or_default();
            return (
                plain_answer(status, body, Some(fault)),
                format!("http {}", status.as_u16()),
            );
        }
    }
    match outcome {
        Ok(body) => (answer(body.to_string(), fault), "ok".to_owned()),
        Err(error) => (
            answer(refusal(&error, rid), fault),
            error.errcode.to_string(),
        ),
    }
}

fn answer(body: String, fault: Option<&Fault>) -> Response {
    let mut response = plain_answer(StatusCode::OK, body, fault);
    if !fault.is_some_and(|fault| fault.text_plain) {
        response.headers_mut().insert(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; encoding=utf-8"),
        );
    }
    response
}

fn plain_answer(status: StatusCode, body: String, fault: Option<&Fault>) -> Response {
    let body = if fault.is_some_and(|fault| fault.bom) {
        format!("\u{feff}{body}")
    } else {
        body
    };
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

fn refusal(error: &ApiError, rid: &str) -> String {
    json!({"errcode": error.errcode, "errmsg": format!("{} rid: {rid}", error.errmsg)}).to_string()
}

fn rid(now: Moment) -> String {
    format!(
        "{:08x}-{:08x}-{:08x}",
        now.as_secs(),
        rand::random::<u32>(),
        rand::random::<u32>()
    )
}

/// The account in whose name a call is made, whether or not it may be.
fn caller(accounts: &Accounts, request: &Received, now: Moment) -> Option<String> {
    let Received {
        endpoint,
        query,
        body,
        ..
    } = request;
    let named = match endpoint.credential() {
        Credential::AppSecret if *endpoint == Endpoint::StableToken => {
            serde_json::from_slice::<Value>(body)
                .ok()?
                .get("appid")
                .and_then(Value::as_str)
                .map(str::to_owned)
        }
        Credential::AppSecret | Credential::RefreshToken => query.get("appid").cloned(),
        Credential::AccessToken => {
            return owner(accounts, query.get("access_token")?, now).map(|(app_id, _)| app_id);
        }
        Credential::UserToken => {
            let token = query.get("access_token")?;
            let mut accounts = accounts.iter();
            return accounts
                .find(|(_, account)| account.oauth.knows(token))
                .map(|(app_id, _)| app_id.clone());
        }
    };
    named.filter(|app_id| accounts.contains_key(app_id))
}

/// Whose token it is, and what WeChat says about it.
fn owner(accounts: &Accounts, token: &str, now: Moment) -> Option<(String, Result<(), ApiError>)> {
    accounts
        .iter()
        .find_map(|(app_id, account)| Some((app_id.clone(), account.check_token(token, now)?)))
}

/// What every interface checks, in WeChat's order: the method, the token, the body, or the AppSecret; then the quota.
fn admit(world: &mut World, request: &Received, now: Moment) -> Result<(String, Value), ApiError> {
    let Received {
        endpoint,
        method,
        query,
        body,
    } = request;
    let post = endpoint.method() == Method::POST;
    if *method != endpoint.method() {
        return Err(if post {
            ApiError::REQUIRE_POST
        } else {
            ApiError::REQUIRE_GET
        });
    }
    let read_body = || if post { parse(body) } else { Ok(Value::Null) };
    let accounts = &world.accounts;
    let (app_id, body) = match endpoint.credential() {
        Credential::AccessToken => (authorize(accounts, *endpoint, query, now)?, read_body()?),
        Credential::UserToken => (authorize_user(accounts, query, now)?, Value::Null),
        Credential::RefreshToken => (recognize(accounts, *endpoint, query)?, Value::Null),
        Credential::AppSecret => {
            let body = read_body()?;
            (authenticate(accounts, *endpoint, query, &body)?, body)
        }
    };
    let account = world
        .accounts
        .get_mut(&app_id)
        .ok_or(ApiError::INVALID_APPID)?;
    account.quota.count(*endpoint, now)?;
    Ok((app_id, body))
}

fn dispatch(world: &mut World, request: &Received, now: Moment) -> Result<Done, ApiError> {
    let (app_id, body) = admit(world, request, now)?;
    let account = world
        .accounts
        .get_mut(&app_id)
        .ok_or(ApiError::INVALID_APPID)?;
    let life = account.life();
    let text = |name| body.get(name).and_then(Value::as_str);
    let answer = match request.endpoint {
        Endpoint::Token => granted(account.classic.issue(now, life)),
        Endpoint::StableToken => {
            let force = body
                .get("force_refresh")
                .and_then(Value::as_bool)
                .unwrap_or_default();
            granted(account.stable.get(now, life, force))
        }
        Endpoint::Ticket => {
            if !matches!(
                request.query.get("type").map(String::as_str),
                Some("jsapi" | "wx_card")
            ) {
                return Err(ApiError::INVALID_ARGS);
            }
            ok(json!({"ticket": token::mint_ticket(), "expires_in": life.as_secs()}))
        }
        Endpoint::CodeToSession => {
            let code = present(&request.query, "js_code", ApiError::CODE_MISSING)?;
            let open_id = account.js_codes.redeem(code, now)?;
            let user = account.user(&open_id).ok_or(ApiError::INVALID_CODE)?;
            json!({"openid": open_id, "session_key": user.session_key, "unionid": user.union_id})
        }
        Endpoint::CheckSession | Endpoint::ResetSession => {
            let open_id = present(&request.query, "openid", ApiError::OPENID_MISSING)?;
            let given = |name| request.query.get(name).map(String::as_str);
            user_data::check_session(account, open_id, given("signature"), given("sig_method"))?;
            if request.endpoint == Endpoint::CheckSession {
                ok(json!({}))
            } else {
                let key = user_data::reset_session(account, open_id)?;
                ok(json!({"openid": open_id, "session_key": key}))
            }
        }
        Endpoint::PhoneNumber => {
            let code = text("code").ok_or(ApiError::CODE_MISSING)?;
            let phone_info =
                user_data::phone_number(&mut world.accounts, &app_id, code, text("openid"), now)?;
            ok(json!({"phone_info": phone_info}))
        }
        Endpoint::OAuthToken => {
            let code = present(&request.query, "code", ApiError::CODE_MISSING)?;
            account.oauth.exchange(code, now, life)?
        }
        Endpoint::OAuthRefresh => {
            let token = present(
                &request.query,
                "refresh_token",
                ApiError::REFRESH_TOKEN_MISSING,
            )?;
            account.oauth.refresh(token, now, life)?
        }
        Endpoint::OAuthUserInfo => {
            let token = present(
                &request.query,
                "access_token",
                ApiError::ACCESS_TOKEN_MISSING,
            )?;
            account.oauth.user_info(token)?
        }
        Endpoint::OAuthCheck => ok(json!({})),
        Endpoint::ApiDomainIp => json!({"ip_list": ADDRESSES}),
        Endpoint::QuotaGet => {
            let asked = quota_path(text("cgi_path").unwrap_or_default())?;
            let (limit, used) = account.quota.usage(asked, now);
            let limit = limit.unwrap_or(u32::MAX);
            let rate = asked
                .minute_limit()
                .map(|count| json!({"call_count": count, "refresh_second": 60}));
            ok(json!({
                "quota": {"daily_limit": limit, "used": used, "remain": limit.saturating_sub(used)},
                "rate_limit": rate,
            }))
        }
        Endpoint::ClearQuota => {
            if text("appid") != Some(app_id.as_str()) {
                return Err(ApiError::INVALID_APPID);
            }
            account.quota.clear(now)?;
            ok(json!({}))
        }
        Endpoint::CustomTyping | Endpoint::BusinessTyping => {
            message::type_to(request.endpoint, account, &body, now)?;
            ok(json!({}))
        }
        Endpoint::TemplateSend
        | Endpoint::SubscribeSend
        | Endpoint::FormTemplateSend
        | Endpoint::CustomSend => return send(world, request.endpoint, &app_id, body, now),
    };
    Ok(answer.into())
}

/// Credentials come without an errcode.
fn granted((access_token, expires_in): Grant) -> Value {
    json!({"access_token": access_token, "expires_in": expires_in})
}

/// Other answers begin with one that says so.
fn ok(fields: Value) -> Value {
    joined(json!({"errcode": 0, "errmsg": "ok"}), fields)
}

/// One object with the fields of both.
pub(crate) fn joined(mut object: Value, more: Value) -> Value {
    if let (Value::Object(fields), Value::Object(more)) = (&mut object, more) {
        fields.extend(more);
    }
    object
}

fn send(
    world: &mut World,
    endpoint: Endpoint,
    app_id: &str,
    body: Value,
    now: Moment,
) -> Result<Done, ApiError> {
    let sent = message::send(
        endpoint,
        &mut world.accounts,
        app_id,
        body,
        &mut world.msg_ids,
        now,
    )?;
    let fields = sent
        .msg_id
        .map_or_else(|| json!({}), |msg_id| json!({"msgid": msg_id}));
    let mut done = Done::from(ok(fields));
    if let Some(message) = sent.message {
        let account = world.accounts.get(app_id);
        let blocked = account
            .and_then(|account| account.user(&message.open_id))
            .is_some_and(|user| user.blocks && message.kind.has_receipt());
        done.receipt = account
            .zip(sent.msg_id)
            .and_then(|(account, msg_id)| Receipt::of(account, &message, msg_id, blocked));
        if !blocked {
            world.inbox.push(message);
        }
    }
    Ok(done)
}

/// The account whose token the caller shows, if it may call this interface.
fn authorize(
    accounts: &Accounts,
    endpoint: Endpoint,
    query: &Parameters,
    now: Moment,
) -> Result<String, ApiError> {
    let token = present(query, "access_token", ApiError::ACCESS_TOKEN_MISSING)?;
    if !token::is_well_formed(token) {
        return Err(ApiError::INVALID_ACCESS_TOKEN);
    }
    let (app_id, verdict) = owner(accounts, token, now).ok_or(ApiError::INVALID_CREDENTIAL)?;
    verdict?;
    let kind = accounts.get(&app_id).map(|account| account.config.kind);
    if endpoint.kind().is_some_and(|needed| kind != Some(needed)) {
        return Err(ApiError::API_UNAUTHORIZED);
    }
    Ok(app_id)
}

/// The account whose user token the caller shows, with the user's openid.
fn authorize_user(
    accounts: &Accounts,
    query: &Parameters,
    now: Moment,
) -> Result<String, ApiError> {
    let token = present(query, "access_token", ApiError::ACCESS_TOKEN_MISSING)?;
    let open_id = present(query, "openid", ApiError::OPENID_MISSING)?;
    let (app_id, verdict) = accounts
        .iter()
        .find_map(|(app_id, account)| Some((app_id, account.oauth.check(token, open_id, now)?)))
        .ok_or(ApiError::INVALID_CREDENTIAL)?;
    verdict?;
    Ok(app_id.clone())
}

/// The account that the caller names where a token of its user says the rest.
fn recognize(
    accounts: &Accounts,
    endpoint: Endpoint,
    query: &Parameters,
) -> Result<String, ApiError> {
    if query.get("grant_type").map(String::as_str) != Some("refresh_token") {
        return Err(ApiError::INVALID_GRANT_TYPE);
    }
    let app_id = present(query, "appid", ApiError::APPID_MISSING)?;
    let account = accounts.get(app_id).ok_or(ApiError::INVALID_APPID)?;
    if endpoint.kind() != Some(account.config.kind) {
        return Err(ApiError::INVALID_APPID);
    }
    Ok(app_id.to_owned())
}

/// The account whose AppSecret the caller shows.
fn authenticate(
    accounts: &Accounts,
    endpoint: Endpoint,
    query: &Parameters,
    body: &Value,
) -> Result<String, ApiError> {
    let given = |name: &str, missing: ApiError| match endpoint {
        Endpoint::StableToken => body
            .get(name)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .ok_or(missing),
        _ => present(query, name, missing),
    };
    let (grant_type, wrong_secret) = match endpoint {
        Endpoint::CodeToSession | Endpoint::OAuthToken => {
            ("authorization_code", ApiError::INVALID_APPSECRET)
        }
        Endpoint::StableToken => ("client_credential", ApiError::INVALID_APPSECRET),
        _ => ("client_credential", ApiError::INVALID_CREDENTIAL),
    };
    if given("grant_type", ApiError::INVALID_GRANT_TYPE)? != grant_type {
        return Err(ApiError::INVALID_GRANT_TYPE);
    }
    let app_id = given("appid", ApiError::APPID_MISSING)?;
    let secret = given("secret", ApiError::APPSECRET_MISSING)?;
    let account = accounts.get(app_id).ok_or(ApiError::INVALID_APPID)?;
    if endpoint
        .kind()
        .is_some_and(|kind| kind != account.config.kind)
    {
        return Err(ApiError::INVALID_APPID);
    }
    if !account.secret_is(secret) {
        return Err(wrong_secret);
    }
    Ok(app_id.to_owned())
}

fn present<'a>(query: &'a Parameters, name: &str, missing: ApiError) -> Result<&'a str, ApiError> {
    query
        .get(name)
        .map(String::as_str)
        .filter(|text| !text.is_empty())
        .ok_or(missing)
}

fn parse(body: &Bytes) -> Result<Value, ApiError> {
    if body.is_empty() {
        return Err(ApiError::EMPTY_POST_DATA);
    }
    let value = serde_json::from_slice::<Value>(body).map_err(|_| ApiError::DATA_FORMAT)?;
    if has_unicode_escape(body) {
        return Err(ApiError::INVALID_CHARSET);
    }
    if value.is_object() {
        Ok(value)
    } else {
        Err(ApiError::DATA_FORMAT)
    }
}

/// Whether valid JSON writes a character as `\uXXXX`.
fn has_unicode_escape(json: &[u8]) -> bool {
    let mut bytes = json.iter();
    while let Some(byte) = bytes.next() {
        if *byte == b'\\' && bytes.next() == Some(&b'u') {
            return true;
        }
    }
    false
}

/// The interface that a `cgi_path` names: 76003 when it is no path, 76022 below `/sns/`, 76021 when it is unknown.
fn quota_path(path: &str) -> Result<Endpoint, ApiError> {
    if !path.starts_with('/') {
        return Err(ApiError::CGI_PATH_MALFORMED);
    }
    if path.starts_with("/sns/") {
        return Err(ApiError::CGI_PATH_FORBIDDEN);
    }
    Endpoint::from_path(path).ok_or(ApiError::CGI_PATH_UNKNOWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_backslash_before_a_u_is_no_unicode_escape() {
        assert!(has_unicode_escape(br#"{"a":"\u4f60"}"#));
        assert!(has_unicode_escape(br#"{"a":"\\\u4f60"}"#));
        assert!(!has_unicode_escape(br#"{"a":"C:\\users"}"#));
        assert!(!has_unicode_escape("{\"a\":\"你\\n\"}".as_bytes()));
    }
}
