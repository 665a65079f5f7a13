//! The interfaces of `api.weixin.qq.com` that exist here.

use axum::http::Method;

use crate::config::Kind;

/// One interface of WeChat.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Endpoint {
    Token,
    StableToken,
    Ticket,
    CodeToSession,
    CheckSession,
    ResetSession,
    PhoneNumber,
    OAuthToken,
    OAuthRefresh,
    OAuthUserInfo,
    OAuthCheck,
    TemplateSend,
    SubscribeSend,
    FormTemplateSend,
    CustomSend,
    CustomTyping,
    BusinessTyping,
    ApiDomainIp,
    QuotaGet,
    ClearQuota,
}

/// What the caller of an interface shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    /// The account's `access_token`.
    AccessToken,
    /// The app id and the AppSecret.
    AppSecret,
    /// The `access_token` that web OAuth gave for one user.
    UserToken,
    /// The app id and the `refresh_token` that web OAuth gave for one user.
    RefreshToken,
}

impl Endpoint {
    pub(crate) const ALL: [Self; 20] = [
        Self::Token,
        Self::StableToken,
        Self::Ticket,
        Self::CodeToSession,
        Self::CheckSession,
        Self::ResetSession,
        Self::PhoneNumber,
        Self::OAuthToken,
        Self::OAuthRefresh,
        Self::OAuthUserInfo,
        Self::OAuthCheck,
        Self::TemplateSend,
        Self::SubscribeSend,
        Self::FormTemplateSend,
        Self::CustomSend,
        Self::CustomTyping,
        Self::BusinessTyping,
        Self::ApiDomainIp,
        Self::QuotaGet,
        Self::ClearQuota,
    ];

    pub(crate) fn from_path(path: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|endpoint| endpoint.path() == path)
    }

    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::Token => "/cgi-bin/token",
            Self::StableToken => "/cgi-bin/stable_token",
            Self::Ticket => "/cgi-bin/ticket/getticket",
            Self::CodeToSession => "/sns/jscode2session",
            Self::CheckSession => "/wxa/checksession",
            Self::ResetSession => "/wxa/resetusersessionkey",
            Self::PhoneNumber => "/wxa/business/getuserphonenumber",
            Self::OAuthToken => "/sns/oauth2/access_token",
            Self::OAuthRefresh => "/sns/oauth2/refresh_token",
            Self::OAuthUserInfo => "/sns/userinfo",
            Self::OAuthCheck => "/sns/auth",
            Self::TemplateSend => "/cgi-bin/message/template/send",
            Self::SubscribeSend => "/cgi-bin/message/subscribe/send",
            Self::FormTemplateSend => "/cgi-bin/message/wxopen/template/send",
            Self::CustomSend => "/cgi-bin/message/custom/send",
            Self::CustomTyping => "/cgi-bin/message/custom/typing",
            Self::BusinessTyping => "/cgi-bin/message/custom/business/typing",
            Self::ApiDomainIp => "/cgi-bin/get_api_domain_ip",
            Self::QuotaGet => "/cgi-bin/openapi/quota/get",
            Self::ClearQuota => "/cgi-bin/clear_quota",
        }
    }

    pub(crate) const fn method(self) -> Method {
        match self {
            Self::Token
            | Self::Ticket
            | Self::CodeToSession
            | Self::CheckSession
            | Self::ResetSession
            | Self::OAuthToken
            | Self::OAuthRefresh
            | Self::OAuthUserInfo
            | Self::OAuthCheck
            | Self::ApiDomainIp => Method::GET,
            Self::StableToken
            | Self::PhoneNumber
            | Self::TemplateSend
            | Self::SubscribeSend
            | Self::FormTemplateSend
            | Self::CustomSend
            | Self::CustomTyping
            | Self::BusinessTyping
            | Self::QuotaGet
            | Self::ClearQuota => Method::POST,
        }
    }

    pub(crate) const fn credential(self) -> Credential {
        match self {
            Self::Token | Self::StableToken | Self::CodeToSession | Self::OAuthToken => {
                Credential::AppSecret
            }
            Self::OAuthUserInfo | Self::OAuthCheck => Credential::UserToken,
            Self::OAuthRefresh => Credential::RefreshToken,
            Self::Ticket
            | Self::CheckSession
            | Self::ResetSession
            | Self::PhoneNumber
            | Self::TemplateSend
            | Self::SubscribeSend
            | Self::FormTemplateSend
            | Self::CustomSend
            | Self::CustomTyping
            | Self::BusinessTyping
            | Self::ApiDomainIp
            | Self::QuotaGet
            | Self::ClearQuota => Credential::AccessToken,
        }
    }

    /// The kind of account that may call it; `None` is both.
    pub(crate) const fn kind(self) -> Option<Kind> {
        match self {
            Self::TemplateSend
            | Self::OAuthToken
            | Self::OAuthRefresh
            | Self::OAuthUserInfo
            | Self::OAuthCheck => Some(Kind::OfficialAccount),
            Self::CodeToSession
            | Self::CheckSession
            | Self::ResetSession
            | Self::PhoneNumber
            | Self::SubscribeSend
            | Self::FormTemplateSend => Some(Kind::MiniProgram),
            _ => None,
        }
    }

    /// Calls a day of a newly registered account; `None` is without limit.
    pub(crate) const fn daily_limit(self) -> Option<u32> {
        match self {
            Self::Token => Some(2_000),
            Self::StableToken | Self::CustomSend => Some(500_000),
            Self::Ticket => Some(10_000),
            Self::TemplateSend => Some(100_000),
            Self::SubscribeSend => Some(10_000_000),
            Self::FormTemplateSend => Some(1_000_000),
            Self::CodeToSession
            | Self::CheckSession
            | Self::ResetSession
            | Self::PhoneNumber
            | Self::OAuthToken
            | Self::OAuthRefresh
            | Self::OAuthUserInfo
            | Self::OAuthCheck
            | Self::CustomTyping
            | Self::BusinessTyping
            | Self::ApiDomainIp
            | Self::QuotaGet
            | Self::ClearQuota => None,
        }
    }

    /// Calls a minute; `None` is without limit.
    pub(crate) const fn minute_limit(self) -> Option<u32> {
        match self {
            Self::StableToken => Some(10_000),
            Self::ResetSession => Some(60_000),
            _ => None,
        }
    }
}
