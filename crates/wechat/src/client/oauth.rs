//! Web OAuth of an official account (网页授权).

use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use url::Url;

use super::{Call, Client, answer, at};
use crate::{AppId, AppSecret, Error, OpenId, RefreshToken, UnionId, UserToken};

/// What a page asks of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OAuthScope {
    /// The openid, without a question.
    Base,
    /// Nickname and picture too, after the user's consent.
    UserInfo,
}

impl OAuthScope {
    /// The scope as WeChat writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Base => "snsapi_base",
            Self::UserInfo => "snsapi_userinfo",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Base, Self::UserInfo]
            .into_iter()
            .find(|scope| scope.as_str() == text)
    }
}

/// What the user's browser is sent to WeChat with.
#[derive(Debug, Clone)]
pub struct OAuthRequest<'a> {
    /// The official account.
    pub app_id: &'a AppId,
    /// Where WeChat sends the browser back to, with `code` and `state`; its host must be the
    /// account's web authorisation domain (网页授权域名).
    pub redirect_uri: &'a Url,
    /// What is asked for.
    pub scope: OAuthScope,
    /// Comes back unchanged: up to 128 ASCII letters and digits.
    pub state: &'a str,
    /// Ask for consent even where WeChat would not.
    pub force_popup: bool,
}

/// The page of WeChat that authorises `request`; `open_url` is mostly `https://open.weixin.qq.com`.
///
/// WeChat compares the link with a pattern: the parameters have this order, and the fragment must be
/// there.
pub fn oauth_authorize_url(open_url: &Url, request: &OAuthRequest<'_>) -> Url {
    let mut url = at(open_url, "/connect/oauth2/authorize");
    let mut query = url.query_pairs_mut();
    query
        .clear()
        .append_pair("appid", request.app_id.as_str())
        .append_pair("redirect_uri", request.redirect_uri.as_str())
        .append_pair("response_type", "code")
        .append_pair("scope", request.scope.as_str())
        .append_pair("state", request.state);
    if request.force_popup {
        query.append_pair("forcePopup", "true");
    }
    drop(query);
    url.set_fragment(Some("wechat_redirect"));
    url
}

/// What an OAuth code is exchanged for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuthGrant {
    /// Good for calls about this user.
    pub access_token: UserToken,
    /// How long it is, counted from WeChat's answer.
    pub expires_in: Duration,
    /// Renews it.
    pub refresh_token: RefreshToken,
    /// The user within this official account.
    pub open_id: OpenId,
    /// What was granted, as far as it is known here.
    pub scopes: Vec<OAuthScope>,
    /// The user across the apps of one open-platform account: with [`OAuthScope::UserInfo`], where
    /// the account is bound to one.
    pub union_id: Option<UnionId>,
    /// The page is shown as a snapshot (快照页) to a made-up user, whose identifiers mean nobody.
    pub is_snapshot_user: bool,
}

#[derive(Deserialize)]
struct GrantAnswer {
    #[serde(deserialize_with = "answer::filled")]
    access_token: String,
    #[serde(deserialize_with = "answer::seconds")]
    expires_in: Duration,
    #[serde(deserialize_with = "answer::filled")]
    refresh_token: String,
    openid: OpenId,
    scope: String,
    unionid: Option<String>,
    is_snapshotuser: Option<Box<RawValue>>,
}

/// How a user appears to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuthUser {
    /// The user within this official account.
    pub open_id: OpenId,
    /// Any text, the empty one too.
    pub nickname: String,
    /// The picture, until the user changes it.
    pub head_img_url: Option<String>,
    /// The user across the apps of one open-platform account, when the official account is bound to
    /// one.
    pub union_id: Option<UnionId>,
}

#[derive(Deserialize)]
struct UserAnswer {
    openid: OpenId,
    nickname: Option<String>,
    headimgurl: Option<String>,
    unionid: Option<String>,
}

impl Client {
    /// Exchanges an OAuth code, good for five minutes and one use (通过code换取网页授权access_token).
    ///
    /// # Errors
    /// [`Error`]; 40029, 40163 and 42003 ask the user to authorise again.
    pub async fn oauth_access_token(
        &self,
        app: &AppId,
        secret: &AppSecret,
        code: &str,
    ) -> Result<OAuthGrant, Error> {
        let answer: GrantAnswer = self
            .call(Call {
                endpoint: "/sns/oauth2/access_token",
                app: Some(app),
                query: &[
                    ("appid", app.as_str()),
                    ("secret", secret.expose()),
                    ("code", code),
                    ("grant_type", "authorization_code"),
                ],
                body: None,
                secrets: &[secret.expose(), code],
            })
            .await?;
        let is_snapshot_user = answer
            .is_snapshotuser
            .as_deref()
            .and_then(answer::scalar)
            .is_some_and(|flag| flag != "0");
        Ok(OAuthGrant {
            access_token: UserToken::new(answer.access_token),
            expires_in: answer.expires_in,
            refresh_token: RefreshToken::new(answer.refresh_token),
            open_id: answer.openid,
            scopes: answer
                .scope
                .split(',')
                .filter_map(|scope| OAuthScope::parse(scope.trim()))
                .collect(),
            union_id: answer.unionid.and_then(|id| UnionId::try_from(id).ok()),
            is_snapshot_user,
        })
    }

    /// Who authorised with [`OAuthScope::UserInfo`] (拉取用户信息).
    ///
    /// # Errors
    /// [`Error`]; 48001 where the scope was not granted, or to a snapshot's user.
    pub async fn oauth_user_info(
        &self,
        token: &UserToken,
        open_id: &OpenId,
    ) -> Result<OAuthUser, Error> {
        let answer: UserAnswer = self
            .call(Call {
                endpoint: "/sns/userinfo",
                app: None,
                query: &[
                    ("access_token", token.expose()),
                    ("openid", open_id.as_str()),
                    // Of the names of regions, which are not read.
                    ("lang", "zh_CN"),
                ],
                body: None,
                secrets: &[token.expose()],
            })
            .await?;
        Ok(OAuthUser {
            open_id: answer.openid,
            nickname: answer.nickname.unwrap_or_default(),
            head_img_url: answer.headimgurl.filter(|url| !url.is_empty()),
            union_id: answer.unionid.and_then(|id| UnionId::try_from(id).ok()),
        })
    }
}
