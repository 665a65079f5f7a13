//! WeChat's error codes, with the text that it sends (before the ` rid: …`).

use std::borrow::Cow;

/// What WeChat answers, with HTTP 200, when it refuses a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) errcode: i64,
    pub(crate) errmsg: Cow<'static, str>,
}

impl ApiError {
    pub(crate) const fn new(errcode: i64, errmsg: &'static str) -> Self {
        Self {
            errcode,
            errmsg: Cow::Borrowed(errmsg),
        }
    }

    /// 47003, naming what breaks a rule.
    pub(crate) fn invalid_argument(what: &str) -> Self {
        Self {
            errcode: 47003,
            errmsg: format!("argument invalid! {what} invalid").into(),
        }
    }
}

macro_rules! errors {
    ($($name:ident = $errcode:literal, $errmsg:literal;)*) => {
        impl ApiError {
            $(pub(crate) const $name: Self = Self::new($errcode, $errmsg);)*

            /// The text that goes with a code that this sandbox knows.
            pub(crate) fn text(errcode: i64) -> &'static str {
                match errcode {
                    $($errcode => $errmsg,)*
                    _ => "unknown error",
                }
            }
        }
    };
}

errors! {
    SYSTEM = -1, "system error";
    INVALID_CREDENTIAL = 40001, "invalid credential, access_token is invalid or not latest";
    INVALID_GRANT_TYPE = 40002, "invalid grant_type";
    INVALID_OPENID = 40003, "invalid openid";
    INVALID_MEDIA_ID = 40007, "invalid media_id";
    INVALID_MESSAGE_TYPE = 40008, "invalid message type";
    INVALID_APPID = 40013, "invalid appid";
    INVALID_ACCESS_TOKEN = 40014, "invalid access_token";
    INVALID_CODE = 40029, "invalid code";
    INVALID_REFRESH_TOKEN = 40030, "invalid refresh_token";
    INVALID_CHARSET = 40033, "invalid charset. please check your request, if include \\uxxxx will create fail!";
    INVALID_TEMPLATE_ID = 40037, "invalid template_id";
    INVALID_URL = 40066, "invalid url";
    INVALID_ARGS = 40097, "invalid args";
    INVALID_APPSECRET = 40125, "invalid appsecret";
    CODE_USED = 40163, "code been used";
    INVALID_ACCOUNT_TYPE = 40200, "invalid account type";
    CONTENT_MALFORMED = 40250, "template message content is malformed";
    ACCESS_TOKEN_MISSING = 41001, "access_token missing";
    APPID_MISSING = 41002, "appid missing";
    REFRESH_TOKEN_MISSING = 41003, "refresh_token missing";
    APPSECRET_MISSING = 41004, "appsecret missing";
    CODE_MISSING = 41008, "missing code";
    OPENID_MISSING = 41009, "missing openid";
    INVALID_FORM_ID = 41028, "invalid form id";
    FORM_ID_USED = 41029, "form id used count reach limit";
    ACCESS_TOKEN_EXPIRED = 42001, "access_token expired";
    REFRESH_TOKEN_EXPIRED = 42002, "refresh_token expired";
    REQUIRE_GET = 43001, "require GET method";
    REQUIRE_POST = 43002, "require POST method";
    REQUIRE_SUBSCRIBE = 43004, "require subscribe";
    EMPTY_POST_DATA = 44002, "empty post data";
    EMPTY_CONTENT = 44004, "empty content";
    CONTENT_SIZE = 45002, "content size out of limit";
    ARTICLE_COUNT = 45008, "article size out of limit";
    DAILY_QUOTA = 45009, "reach max api daily quota limit";
    MINUTE_QUOTA = 45011, "api minute-quota reach limit, must slower, retry next minute";
    WINDOW_CLOSED = 45015, "response out of time limit or subscription is canceled";
    WINDOW_USED_UP = 45047, "out of response count limit";
    INVALID_COMMAND = 45072, "invalid command";
    NO_EXCHANGE = 45080, "typing needs a message exchanged within 30 seconds";
    ALREADY_TYPING = 45081, "typing already";
    DATA_FORMAT = 47001, "data format error";
    API_UNAUTHORIZED = 48001, "api unauthorized";
    CLEAR_QUOTA_LIMIT = 48006, "forbid to clear quota because of reaching the limit";
    MESSAGE_TYPE_FORBIDDEN = 48008, "no permission for this msgtype";
    CGI_PATH_MALFORMED = 76003, "cgi_path malformed";
    CGI_PATH_UNKNOWN = 76021, "cgi_path not found";
    CGI_PATH_FORBIDDEN = 76022, "could not use this cgi_path, no permission";
    SESSION_KEY_GONE = 87007, "session_key is not existd or expired";
    INVALID_SIG_METHOD = 87008, "invalid sig_method";
    INVALID_SIGNATURE = 87009, "invalid signature";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_code_has_wechats_text() {
        assert_eq!(ApiError::text(40163), "code been used");
        assert_eq!(ApiError::text(-1), "system error");
    }
}
