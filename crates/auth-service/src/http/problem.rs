//! A failure as a page.

use askama::Template;
use axum::{
    http::{HeaderValue, StatusCode, header},
    response::Response,
};
use service_kit::http;

use crate::{
    Auth,
    error::Error,
    page::{self, Language},
};

#[derive(Template)]
#[template(path = "problem.html")]
struct Page<'a> {
    language: Language,
    heading: &'static str,
    advice: &'static str,
    detail: &'a str,
}

/// Tells a person that something failed, what to do about it and, where it is not empty, a detail for whoever made the
/// link.
pub(super) fn page(
    status: StatusCode,
    language: Language,
    [heading, advice]: [&'static str; 2],
    detail: &str,
) -> Response {
    let page = Page {
        language,
        heading,
        advice,
        detail,
    };
    let mut response = page::respond(status, &page);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let soon = HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, soon);
    }
    response
}

/// Tells a failure to a person: what to do about it, and nothing of our insides.
pub(super) fn respond(auth: &Auth, error: &Error, language: Language) -> Response {
    let status = http::Error::from(auth.status(error)).status();
    let (heading, advice) = match (error, status) {
        (Error::OriginForbidden, _) => (
            language.pick("请求被拒绝", "Refused"),
            language.pick(
                "请求来自其他网站的页面。请直接打开本站页面后再试。",
                "The request came from a page of another site. Open the page here and try again.",
            ),
        ),
        (_, StatusCode::SERVICE_UNAVAILABLE) => (
            language.pick("请稍候", "One moment"),
            language.pick(
                "服务暂时不可用，请稍后刷新重试。",
                "The service is not available right now. Try again in a moment.",
            ),
        ),
        (Error::AppUnknown | Error::InvalidField { .. }, _) => (
            language.pick("没有这个公众号", "No such official account"),
            language.pick(
                "链接有误，或该公众号未开通绑定。",
                "The link is wrong, or the account does not take part in binding.",
            ),
        ),
        (_, _) => (
            language.pick("出错了", "Something went wrong"),
            language.pick("请稍后再试。", "Try again later."),
        ),
    };
    page(status, language, [heading, advice], "")
}
