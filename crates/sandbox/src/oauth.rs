//! 网页授权: who opens an official account's pages, and what the account may know of them.

mod link;
mod page;

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use url::Url;

pub(crate) use self::{
    link::{Link, LinkError},
    page::routes,
};
use crate::{
    account::{Account, is_open_id, open_id, union_id},
    bounded::BoundedMap,
    clock::Moment,
    code::Codes,
    error::ApiError,
    persona,
    state::{Error, State, World},
    token::mint_token,
};

/// How long a refresh token lasts.
const REFRESH_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// User tokens and refresh tokens that are remembered, each.
const REMEMBERED: usize = 10_000;
/// The page's path: the name under which its calls are counted.
const AUTHORIZE: &str = "/connect/oauth2/authorize";

/// What a page asks of the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    Base,
    UserInfo,
}

impl Scope {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Base => "snsapi_base",
            Self::UserInfo => "snsapi_userinfo",
        }
    }
}

/// Who is known to an account, and how well.
#[derive(Debug, Clone)]
struct Consent {
    open_id: String,
    union_id: String,
    scope: Scope,
    /// The user is the made-up one of 快照页.
    snapshot: bool,
}

struct Granted {
    consent: Consent,
    expires: Moment,
}

/// The codes and user tokens of one account.
pub(crate) struct OAuth {
    codes: Codes<Consent>,
    tokens: BoundedMap<Granted>,
    refresh_tokens: BoundedMap<Granted>,
}

impl Default for OAuth {
    fn default() -> Self {
        Self {
            codes: Codes::default(),
            tokens: BoundedMap::new(REMEMBERED),
            refresh_tokens: BoundedMap::new(REMEMBERED),
        }
    }
}

impl OAuth {
    /// Whether `token` is of this account (`None` when it is not), and what WeChat says about it and this user.
    pub(crate) fn check(
        &self,
        token: &str,
        open_id: &str,
        now: Moment,
    ) -> Option<Result<(), ApiError>> {
        let granted = self.tokens.get(token)?;
        Some(if now >= granted.expires {
            Err(ApiError::ACCESS_TOKEN_EXPIRED)
        } else if granted.consent.open_id != open_id {
            Err(ApiError::INVALID_OPENID)
        } else {
            Ok(())
        })
    }

    /// Whether `token` is of this account, dead or alive.
    pub(crate) fn knows(&self, token: &str) -> bool {
        self.tokens.get(token).is_some()
    }

    /// `/sns/oauth2/access_token`.
    pub(crate) fn exchange(
        &mut self,
        code: &str,
        now: Moment,
        life: Duration,
    ) -> Result<Value, ApiError> {
        let consent = self.codes.redeem(code, now)?;
        let refresh_token = mint_token();
        self.refresh_tokens.insert(
            refresh_token.clone(),
            Granted {
                consent: consent.clone(),
                expires: now + REFRESH_LIFE,
            },
        );
        let mut answer = self.grant(&consent, &refresh_token, now, life);
        if consent.snapshot {
            answer.insert("is_snapshotuser", json!(1));
        }
        if consent.scope == Scope::UserInfo {
            answer.insert("unionid", json!(consent.union_id));
        }
        Ok(json!(answer))
    }

    /// `/sns/oauth2/refresh_token`.
    pub(crate) fn refresh(
        &mut self,
        refresh_token: &str,
        now: Moment,
        life: Duration,
    ) -> Result<Value, ApiError> {
        let granted = self
            .refresh_tokens
            .get(refresh_token)
            .ok_or(ApiError::INVALID_REFRESH_TOKEN)?;
        if now >= granted.expires {
            return Err(ApiError::REFRESH_TOKEN_EXPIRED);
        }
        let consent = granted.consent.clone();
        Ok(json!(self.grant(&consent, refresh_token, now, life)))
    }

    /// `/sns/userinfo`, of a token that is good: 48001 when it is `snsapi_base`'s, or a made-up user's.
    pub(crate) fn user_info(&self, token: &str) -> Result<Value, ApiError> {
        let Consent {
            open_id,
            union_id,
            scope,
            snapshot,
        } = &self
            .tokens
            .get(token)
            .ok_or(ApiError::INVALID_CREDENTIAL)?
            .consent;
        if *scope != Scope::UserInfo || *snapshot {
            return Err(ApiError::API_UNAUTHORIZED);
        }
        Ok(json!({
            "openid": open_id, "nickname": persona::nickname(union_id), "sex": 0, "language": "", "city": "",
            "province": "", "country": "", "headimgurl": persona::avatar(union_id), "privilege": [],
            "unionid": union_id,
        }))
    }

    fn grant(
        &mut self,
        consent: &Consent,
        refresh_token: &str,
        now: Moment,
        life: Duration,
    ) -> BTreeMap<&'static str, Value> {
        let token = mint_token();
        let granted = Granted {
            consent: consent.clone(),
            expires: now + life,
        };
        self.tokens.insert(token.clone(), granted);
        BTreeMap::from([
            ("access_token", json!(token)),
            ("expires_in", json!(life.as_secs())),
            ("refresh_token", json!(refresh_token)),
            ("openid", json!(consent.open_id)),
            ("scope", json!(consent.scope.as_str())),
        ])
    }
}

/// What a user does with an authorize link.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authorize {
    /// The whole link, its fragment included.
    pub url: String,
    /// Who opens it; the account's default user when absent.
    #[serde(default)]
    pub open_id: Option<String>,
    /// Refuse what `snsapi_userinfo` asks.
    #[serde(default)]
    pub refuse: bool,
    /// See the page as a snapshot (快照页), as a made-up user.
    #[serde(default)]
    pub snapshot: bool,
}

/// Where an authorize link led.
#[derive(Debug, Clone, Serialize)]
pub struct Authorized {
    /// Who the account is told it was.
    pub open_id: String,
    /// What the browser opens next: the link's `redirect_uri` with `code` and `state`, with `state` alone after a
    /// refusal, or nothing where a refusal closes the page.
    pub callback_url: Option<String>,
}

impl State {
    /// A user opens an authorize link, and answers what it asks.
    ///
    /// # Errors
    /// WeChat would show an error page; the openid is none; nothing is asked that could be refused.
    pub fn authorize(&self, request: &Authorize) -> Result<Authorized, Error> {
        let url = Url::parse(&request.url)
            .map_err(|error| Error::Invalid(format!("url is no URL: {error}")))?;
        if !url.path().ends_with(AUTHORIZE) {
            return Err(Error::Invalid(format!("url must lead to {AUTHORIZE}")));
        }
        if url.fragment() != Some("wechat_redirect") {
            return Err(Error::Invalid(
                "url must end in #wechat_redirect".to_owned(),
            ));
        }
        let mut world = self.world();
        let link = Link::parse(url.query().unwrap_or_default())
            .and_then(|link| link.check(&world.accounts).map(|()| link))
            .map_err(|error| Error::Invalid(error.to_string()))?;
        if link.scope == Scope::Base && (request.refuse || request.snapshot) {
            return Err(Error::Invalid(
                "snsapi_base asks nothing, and shows no snapshot".to_owned(),
            ));
        }
        let now = self.0.clock.now();
        let account = world
            .accounts
            .get_mut(&link.app_id)
            .ok_or_else(|| Error::UnknownApp(link.app_id.clone()))?;
        let open_id = match &request.open_id {
            None => account.default_open_id(),
            Some(open_id) if is_open_id(open_id) => open_id.clone(),
            Some(_) => return Err(Error::Invalid("open_id is none".to_owned())),
        };
        if request.refuse {
            let callback_url = world.refuse(&link).map(String::from);
            return Ok(Authorized {
                open_id,
                callback_url,
            });
        }
        let (open_id, callback_url) = consent(account, &link, &open_id, request.snapshot, now)
            .ok_or_else(|| Error::Invalid("no such user".to_owned()))?;
        Ok(Authorized {
            open_id,
            callback_url: Some(callback_url.into()),
        })
    }

    /// Whether a refusal leads back to the page, with `state` and without `code`, as WeChat once documented; else the
    /// page just closes. It leads back to begin with.
    pub fn set_refusals_return(&self, refusals_return: bool) {
        self.world().refusals_return = refusals_return;
    }
}

impl World {
    fn refuse(&self, link: &Link) -> Option<Url> {
        self.refusals_return.then(|| link.callback(None))
    }
}

/// Lets the account know who the user is: the openid, and where the browser goes.
fn consent(
    account: &mut Account,
    link: &Link,
    user: &str,
    snapshot: bool,
    now: Moment,
) -> Option<(String, Url)> {
    let user_view = account.user_or_new(user)?;
    let (open_id, union_id) = if snapshot {
        let visitor = "snapshot";
        (open_id(&account.config.app_id, visitor), union_id(visitor))
    } else {
        user_view.consents |= link.scope == Scope::UserInfo;
        (user.to_owned(), user_view.union_id.clone())
    };
    let consent = Consent {
        open_id: open_id.clone(),
        union_id,
        scope: link.scope,
        snapshot,
    };
    let code = account.oauth.codes.issue(consent, now);
    Some((open_id, link.callback(Some(&code))))
}
