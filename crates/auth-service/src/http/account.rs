//! Signing in to an account, and out.

use askama::Template;
use axum::{
    Router,
    body::Bytes,
    extract::{RawQuery, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::Response,
    routing::{get, post},
};
use service_kit::http;

use super::{
    browser,
    form::{Params, see_other},
    problem,
};
use crate::{
    Auth,
    account::{self, AccountName, Password, Refusal, SignedIn},
    error::Error,
    page::{self, Language},
};

/// The cookie of an account that is signed in.
const COOKIE: &str = "wxhub_account";

pub(super) fn routes() -> Router<Auth> {
    Router::new()
        .route("/login", get(login_page))
        .route("/account/login", post(sign_in))
        .route("/account/logout", post(sign_out))
}

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage<'a> {
    language: Language,
    app: &'a str,
    lang: &'a str,
    account: &'a str,
    problem: Option<String>,
}

impl<'a> LoginPage<'a> {
    fn new(language: Language, params: &'a Params) -> Self {
        Self {
            language,
            app: params.get("app").unwrap_or_default(),
            lang: params.get("lang").unwrap_or_default(),
            account: "",
            problem: None,
        }
    }
}

/// `GET /login`: the form; whoever is signed in goes on to `/bind`.
async fn login_page(
    State(auth): State<Auth>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let params = Params::of_query(query.as_deref());
    let language = params.language(&headers);
    match signed_in(&auth, &headers).await {
        Ok(_) => see_other(&params.page("/bind"), []),
        Err(Error::Account(Refusal::SignedOut)) => {
            page::respond(StatusCode::OK, &LoginPage::new(language, &params))
        }
        Err(error) => problem::respond(&auth, &error, language),
    }
}

/// `POST /account/login`: a form with `account` and `password`, and `app` and `lang` of the page to go on to.
async fn sign_in(State(auth): State<Auth>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::of_form(&body);
    let language = params.language(&headers);
    match try_sign_in(&auth, &headers, &params).await {
        Ok(cookie) => see_other(&params.page("/bind"), [cookie]),
        Err(error @ Error::Account(Refusal::Wrong | Refusal::CoolingDown(_))) => {
            let refused = http::Error::from(auth.status(&error));
            let mut retry_after = None;
            let text = match &error {
                Error::Account(Refusal::CoolingDown(left)) => {
                    let seconds = left.as_millis().div_ceil(1_000).max(1);
                    retry_after = HeaderValue::from_str(&seconds.to_string()).ok();
                    let (minutes, rest) = (seconds / 60, seconds % 60);
                    match language {
                        Language::Chinese => {
                            format!("密码错误次数过多，请在 {minutes} 分 {rest} 秒后再试。")
                        }
                        Language::English => format!(
                            "The password was wrong too often. Try again in {minutes} min {rest} s."
                        ),
                    }
                }
                _ => language
                    .pick(
                        "账号或密码不正确。",
                        "The account or the password is wrong.",
                    )
                    .to_owned(),
            };
            let page = LoginPage {
                account: params.get("account").unwrap_or_default(),
                problem: Some(text),
                ..LoginPage::new(language, &params)
            };
            let mut response = page::respond(refused.status(), &page);
            if let Some(seconds) = retry_after {
                response.headers_mut().insert(header::RETRY_AFTER, seconds);
            }
            response
        }
        Err(error) => problem::respond(&auth, &error, language),
    }
}

async fn try_sign_in(
    auth: &Auth,
    headers: &HeaderMap,
    params: &Params,
) -> Result<HeaderValue, Error> {
    // A page of another site could sign its visitor in to an account of its own, and have them bound to it.
    browser::same_site(auth, headers)?;
    let name = params.get("account").unwrap_or_default().parse();
    // No account has such a name, which everybody knows.
    let name: AccountName = name.map_err(|_| Refusal::Wrong)?;
    let password = Password::shown(params.get("password").unwrap_or_default());
    let account = auth.accounts.sign_in(name, password).await?;
    if let Some(before) = auth.cookies.get(headers, COOKIE) {
        auth.accounts.sign_out(before).await?;
    }
    let ticket = auth.accounts.open(&account).await?;
    let life = Some(account::LIFE);
    Ok(auth.cookies.set(COOKIE, ticket.expose(), life))
}

/// `POST /account/logout`: back to `/login`, signed out.
async fn sign_out(State(auth): State<Auth>, headers: HeaderMap, body: Bytes) -> Response {
    let params = Params::of_form(&body);
    let sign_out = async {
        browser::same_site(&auth, &headers)?;
        if let Some(ticket) = auth.cookies.get(&headers, COOKIE) {
            auth.accounts.sign_out(ticket).await?;
        }
        Ok(())
    };
    match sign_out.await {
        Ok(()) => see_other(&params.page("/login"), [auth.cookies.clear(COOKIE)]),
        Err(error) => problem::respond(&auth, &error, params.language(&headers)),
    }
}

/// The account that the browser is signed in to, and the ticket that says so.
///
/// # Errors
/// [`Refusal::SignedOut`]; when a store does not answer.
pub(super) async fn signed_in<'h>(
    auth: &Auth,
    headers: &'h HeaderMap,
) -> Result<(&'h str, SignedIn), Error> {
    let ticket = auth.cookies.get(headers, COOKIE);
    let ticket = ticket.ok_or(Refusal::SignedOut)?;
    let signed_in = auth.accounts.signed_in(ticket).await?;
    Ok((ticket, signed_in.ok_or(Refusal::SignedOut)?))
}
