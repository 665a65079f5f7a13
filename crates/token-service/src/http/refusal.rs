//! Refusals as WeChat writes them: status 200, `errcode` and `errmsg`. The text begins with WeChat's own and goes on with what
//! to do.

use std::{borrow::Cow, time::Duration};

use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tracing::debug;
use wechat::{Class, ErrCode};

use crate::error::Error;

/// What an SDK is told instead of a token or ticket.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Refusal {
    errcode: ErrCode,
    errmsg: Cow<'static, str>,
}

impl Refusal {
    pub(super) const INVALID_GRANT_TYPE: Self =
        Self::new(ErrCode::INVALID_GRANT_TYPE, "invalid grant_type");
    pub(super) const APP_ID_MISSING: Self = Self::new(ErrCode::APP_ID_MISSING, "appid missing");
    pub(super) const APP_SECRET_MISSING: Self =
        Self::new(ErrCode::APP_SECRET_MISSING, "appsecret missing");
    pub(super) const INVALID_APP_SECRET: Self = Self::new(
        ErrCode::INVALID_APP_SECRET,
        "invalid appsecret: this is wxhub, send your caller key as the secret",
    );
    /// Apps that do not exist and apps of others are not told apart.
    pub(super) const INVALID_APP_ID: Self = Self::new(
        ErrCode::INVALID_APP_ID,
        "invalid appid: no such app is open to this caller key",
    );
    pub(super) const FORCE_REFRESH: Self = Self::new(
        ErrCode::API_UNAUTHORIZED,
        "api unauthorized: wxhub alone decides when to refresh; leave force_refresh out. A token that WeChat refuses is replaced \
         when you ask again; to end one that works, ask wxhub's operators for `wxhub token refresh --force`",
    );
    pub(super) const ACCESS_TOKEN_MISSING: Self =
        Self::new(ErrCode::ACCESS_TOKEN_MISSING, "access_token missing");
    pub(super) const INVALID_CREDENTIAL: Self = Self::new(
        ErrCode::INVALID_CREDENTIAL,
        "invalid credential, access_token is invalid or not latest",
    );
    pub(super) const INVALID_TYPE: Self = Self::new(
        ErrCode::INVALID_ARGS,
        "invalid args: type must be jsapi or wx_card",
    );
    pub(super) const REQUIRE_GET: Self = Self::new(ErrCode(43001), "require GET method");
    pub(super) const REQUIRE_POST: Self = Self::new(ErrCode::POST_REQUIRED, "require POST method");
    pub(super) const EMPTY_POST_DATA: Self = Self::new(ErrCode::EMPTY_POST_DATA, "empty post data");
    pub(super) const DATA_FORMAT: Self = Self::new(
        ErrCode::DATA_FORMAT,
        "data format error: the body must be a JSON object of at most 64 KiB with grant_type, appid and secret as strings",
    );

    const fn new(errcode: ErrCode, errmsg: &'static str) -> Self {
        Self {
            errcode,
            errmsg: Cow::Borrowed(errmsg),
        }
    }

    pub(super) fn scope_missing(caller: &str) -> Self {
        Self {
            errcode: ErrCode::API_UNAUTHORIZED,
            errmsg: format!("api unauthorized: caller {caller:?} lacks the scope token.read")
                .into(),
        }
    }

    /// What passes by itself.
    fn busy(error: &Error, retry_after: Duration) -> Self {
        let seconds = retry_after.as_secs() + 1;
        Self {
            errcode: ErrCode::SYSTEM_ERROR,
            errmsg: format!("system error: {error}; try again in {seconds} s").into(),
        }
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match &error {
            Error::Failed { failure, .. } => match failure.cause.refusal() {
                // In WeChat's own words: it is wxhub's settings that are wrong, or its quota that is spent.
                Some(refusal) if refusal.class() != Class::Token => Self {
                    errcode: refusal.errcode,
                    errmsg: error.to_string().into(),
                },
                // A ticket's token was refused. Told so, an SDK would fetch it again without end.
                Some(_) | None => Self::busy(&error, Duration::ZERO),
            },
            Error::TooSoon { retry_after, .. } | Error::ForceSpent { retry_after, .. } => {
                Self::busy(&error, *retry_after)
            }
            Error::QuotaSpent { .. } => Self {
                errcode: ErrCode::DAILY_QUOTA,
                errmsg: format!("reach max api daily quota limit: {error}").into(),
            },
            Error::StoreUnavailable
            | Error::TooSlow { .. }
            | Error::UnknownVersion
            | Error::Url(_) => Self::busy(&error, Duration::ZERO),
            Error::AppGone { .. } => Self::INVALID_APP_ID,
        }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        debug!(errcode = self.errcode.0, "refused: {}", self.errmsg);
        super::answer(self)
    }
}
