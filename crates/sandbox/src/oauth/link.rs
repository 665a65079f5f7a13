//! The link to the authorize page, which WeChat compares with a strict pattern.

use std::fmt;

use url::{Url, form_urlencoded};

use super::Scope;
use crate::{account::Accounts, config::Kind};

/// The parameters, in the one order that WeChat takes.
const ORDER: [&str; 7] = [
    "appid",
    "redirect_uri",
    "response_type",
    "scope",
    "state",
    "forcePopup",
    "forceSnapShot",
];
const LONGEST_STATE: usize = 128;

/// A link that follows the pattern.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) app_id: String,
    pub(super) scope: Scope,
    pub(super) force_popup: bool,
    pub(super) force_snapshot: bool,
    redirect_uri: Url,
    state: Option<String>,
}

/// Why WeChat shows an error in place of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkError {
    /// The link does not follow the pattern.
    Pattern,
    /// No account has the app id.
    AppId,
    /// 10003.
    Domain,
    /// 10005.
    Scope,
    /// 10010.
    ScopeMissing,
    /// 10011.
    RedirectUriMissing,
    /// 10012.
    AppIdMissing,
    /// 10013.
    StateMissing,
    /// 10016.
    Kind,
}

impl LinkError {
    /// WeChat's number for it, where it has one.
    pub(super) const fn code(self) -> Option<u32> {
        match self {
            Self::Pattern | Self::AppId => None,
            Self::Domain => Some(10003),
            Self::Scope => Some(10005),
            Self::ScopeMissing => Some(10010),
            Self::RedirectUriMissing => Some(10011),
            Self::AppIdMissing => Some(10012),
            Self::StateMissing => Some(10013),
            Self::Kind => Some(10016),
        }
    }

    pub(super) const fn chinese(self) -> &'static str {
        match self {
            Self::Pattern => "该链接无法访问：参数的名称、顺序或格式不对",
            Self::AppId => "appid 参数错误",
            Self::Domain => "redirect_uri 域名与后台配置不一致",
            Self::Scope => "此公众号没有这个 scope 的权限",
            Self::ScopeMissing => "scope 不能为空",
            Self::RedirectUriMissing => "redirect_uri 不能为空",
            Self::AppIdMissing => "appid 不能为空",
            Self::StateMissing => "state 不能为空",
            Self::Kind => "应使用公众号的 appid",
        }
    }

    pub(super) const fn english(self) -> &'static str {
        match self {
            Self::Pattern => {
                "This link cannot be opened: a parameter's name, place or form is wrong"
            }
            Self::AppId => "No account has this appid",
            Self::Domain => {
                "The host of redirect_uri is not the account's web authorisation domain"
            }
            Self::Scope => "The account lacks this scope",
            Self::ScopeMissing => "scope is empty",
            Self::RedirectUriMissing => "redirect_uri is empty",
            Self::AppIdMissing => "appid is empty",
            Self::StateMissing => "state is empty",
            Self::Kind => "appid must be an official account's",
        }
    }
}

impl fmt::Display for LinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code() {
            Some(code) => write!(f, "{code}: {}", self.english()),
            None => f.write_str(self.english()),
        }
    }
}

impl Link {
    /// Reads the raw query.
    pub(crate) fn parse(query: &str) -> Result<Self, LinkError> {
        let mut values = [const { None }; ORDER.len()];
        let mut left = ORDER.iter().zip(&mut values);
        for pair in query.split('&') {
            let (name, value) = form_urlencoded::parse(pair.as_bytes())
                .next()
                .ok_or(LinkError::Pattern)?;
            let (_, place) = left
                .find(|(expected, _)| **expected == name)
                .ok_or(LinkError::Pattern)?;
            *place = Some(value.into_owned());
        }
        let [
            app_id,
            redirect_uri,
            response_type,
            scope,
            state,
            force_popup,
            force_snapshot,
        ] = values;
        let given = |value: Option<String>, empty| {
            let value = value.ok_or(LinkError::Pattern)?;
            if value.is_empty() {
                Err(empty)
            } else {
                Ok(value)
            }
        };
        let app_id = given(app_id, LinkError::AppIdMissing)?;
        let redirect_uri = given(redirect_uri, LinkError::RedirectUriMissing)?;
        if response_type.as_deref() != Some("code") {
            return Err(LinkError::Pattern);
        }
        let scope = match given(scope, LinkError::ScopeMissing)?.as_str() {
            "snsapi_base" => Scope::Base,
            "snsapi_userinfo" => Scope::UserInfo,
            _ => return Err(LinkError::Scope),
        };
        let state = state
            .map(|state| given(Some(state), LinkError::StateMissing))
            .transpose()?;
        if state.as_ref().is_some_and(|state| {
            state.len() > LONGEST_STATE || !state.bytes().all(|byte| byte.is_ascii_alphanumeric())
        }) {
            return Err(LinkError::Pattern);
        }
        Ok(Self {
            app_id,
            scope,
            force_popup: switch(force_popup.as_deref())?,
            force_snapshot: switch(force_snapshot.as_deref())?,
            redirect_uri: redirect_uri.parse().map_err(|_| LinkError::Domain)?,
            state,
        })
    }

    /// Whether its account may send users to where it leads back.
    pub(crate) fn check(&self, accounts: &Accounts) -> Result<(), LinkError> {
        let account = &accounts.get(&self.app_id).ok_or(LinkError::AppId)?.config;
        if account.kind != Kind::OfficialAccount {
            return Err(LinkError::Kind);
        }
        let host = self.redirect_uri.host_str();
        let is_page = matches!(self.redirect_uri.scheme(), "http" | "https");
        if is_page
            && account
                .oauth_domains
                .iter()
                .any(|domain| host == Some(domain))
        {
            Ok(())
        } else {
            Err(LinkError::Domain)
        }
    }

    /// Where the browser goes: with a code, or after a refusal without one.
    pub(super) fn callback(&self, code: Option<&str>) -> Url {
        let mut url = self.redirect_uri.clone();
        let state = self.state.as_deref().map(|state| ("state", state));
        url.query_pairs_mut()
            .extend_pairs(code.map(|code| ("code", code)))
            .extend_pairs(state);
        url
    }
}

fn switch(value: Option<&str>) -> Result<bool, LinkError> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(LinkError::Pattern),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "appid=wx1&redirect_uri=https%3A%2F%2Fh5.example.com%2Fx%3Fa%3Db%26c%3Dd&response_type=code&scope=snsapi_base&state=S1";

    #[test]
    fn a_link_leads_back_with_code_and_state() {
        let link = Link::parse(GOOD).unwrap();
        assert_eq!(
            link.callback(Some("C")).as_str(),
            "https://h5.example.com/x?a=b&c=d&code=C&state=S1"
        );
        assert_eq!(
            link.callback(None).as_str(),
            "https://h5.example.com/x?a=b&c=d&state=S1"
        );
        let stateless = Link::parse(GOOD.trim_end_matches("&state=S1")).unwrap();
        assert_eq!(
            stateless.callback(Some("C")).as_str(),
            "https://h5.example.com/x?a=b&c=d&code=C"
        );
    }

    #[test]
    fn the_order_the_names_and_the_values_are_strict() {
        for (query, expected) in [
            ("", LinkError::Pattern),
            (
                "redirect_uri=https%3A%2F%2Fh5.example.com&appid=wx1&response_type=code&scope=snsapi_base&state=S1",
                LinkError::Pattern,
            ),
            (&format!("{GOOD}&lang=zh"), LinkError::Pattern),
            (&format!("{GOOD}&state=S2"), LinkError::Pattern),
            (&format!("{GOOD}&forcePopup=1"), LinkError::Pattern),
            (
                &format!("{GOOD}&forceSnapShot=true&forcePopup=true"),
                LinkError::Pattern,
            ),
            (&GOOD.replace("S1", "S-1"), LinkError::Pattern),
            (&GOOD.replace("S1", &"S".repeat(129)), LinkError::Pattern),
            (&GOOD.replace("=code", "=token"), LinkError::Pattern),
            (&GOOD.replace("S1", ""), LinkError::StateMissing),
            (&GOOD.replace("wx1", ""), LinkError::AppIdMissing),
            (
                &GOOD.replace("snsapi_base", "snsapi_login"),
                LinkError::Scope,
            ),
            (&GOOD.replace("snsapi_base", ""), LinkError::ScopeMissing),
            (&GOOD.replace('%', "%25"), LinkError::Domain),
        ] {
            assert_eq!(Link::parse(query).unwrap_err(), expected, "{query}");
        }
        let link = Link::parse(&format!("{GOOD}&forcePopup=true&forceSnapShot=false")).unwrap();
        assert!(link.force_popup && !link.force_snapshot);
    }
}
