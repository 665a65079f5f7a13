//! An account and what it owns: its users, its credentials and what they may still spend.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::{
    bounded::BoundedMap,
    clock::Moment,
    code::Codes,
    config::{AccountConfig, Kind},
    error::ApiError,
    login::{FormIds, JsCodes, SessionKey},
    message::{ClientMsgIds, TypingState, Windows},
    oauth::OAuth,
    quota::Quota,
    token::{StableTokens, TokenRing},
};

/// Users that an account remembers.
const USERS: usize = 100_000;

/// Uploads that an account remembers.
const MEDIA: usize = 10_000;

pub(crate) struct Account {
    pub(crate) config: AccountConfig,
    pub(crate) classic: TokenRing,
    pub(crate) stable: StableTokens,
    pub(crate) js_codes: JsCodes,
    pub(crate) form_ids: FormIds,
    pub(crate) media_ids: BoundedMap<()>,
    /// Of the phone number button, and who pressed it.
    pub(crate) phone_codes: Codes<String>,
    pub(crate) oauth: OAuth,
    pub(crate) client_msg_ids: ClientMsgIds,
    pub(crate) quota: Quota,
    users: BoundedMap<User>,
    minted: u64,
}

/// Somebody who uses a mini program or follows an official account.
pub(crate) struct User {
    pub(crate) union_id: String,
    pub(crate) follows: bool,
    /// Whether messages from templates do not reach the user, of which the account learns by their receipts.
    pub(crate) blocks: bool,
    pub(crate) session_key: Option<SessionKey>,
    /// Whether the account may know nickname and picture.
    pub(crate) consents: bool,
    pub(crate) windows: Windows,
    pub(crate) typing: TypingState,
}

impl Account {
    pub(crate) fn new(config: AccountConfig) -> Self {
        let quota = Quota::new(&config.quotas);
        let mut account = Self {
            config,
            classic: TokenRing::default(),
            stable: StableTokens::default(),
            js_codes: JsCodes::default(),
            form_ids: FormIds::default(),
            media_ids: BoundedMap::new(MEDIA),
            phone_codes: Codes::default(),
            oauth: OAuth::default(),
            client_msg_ids: ClientMsgIds::default(),
            quota,
            users: BoundedMap::new(USERS),
            minted: 0,
        };
        account.mint_user();
        account
    }

    pub(crate) fn life(&self) -> Duration {
        Duration::from_secs(self.config.expires_in.into())
    }

    pub(crate) fn secret_is(&self, secret: &str) -> bool {
        self.config.secret.expose_secret() == secret
    }

    /// Somebody resets the AppSecret in the console: every token made with the old one dies.
    pub(crate) fn reset_secret(&mut self, secret: String) {
        self.config.secret = SecretString::from(secret);
        self.invalidate_tokens();
    }

    pub(crate) fn invalidate_tokens(&mut self) {
        self.classic.invalidate();
        self.stable.invalidate();
    }

    /// Whether `token` is of this account (`None` when it is not), and what WeChat says about it.
    pub(crate) fn check_token(&self, token: &str, now: Moment) -> Option<Result<(), ApiError>> {
        self.classic
            .check(token, now)
            .or_else(|| self.stable.check(token, now))
    }

    /// How long ago another was issued after `token`, if one was.
    pub(crate) fn superseded_for(&self, token: &str, now: Moment) -> Option<Duration> {
        self.classic
            .superseded_for(token, now)
            .or_else(|| self.stable.superseded_for(token, now))
    }

    /// The user that every account is born with.
    pub(crate) fn default_open_id(&self) -> String {
        open_id(&self.config.app_id, "0")
    }

    /// The openid of the account's next user, the same on every run.
    pub(crate) fn mint_user(&mut self) -> String {
        let number = self.minted;
        self.minted += 1;
        let open_id = open_id(&self.config.app_id, &number.to_string());
        self.add_user(&open_id, union_id(&number.to_string()));
        open_id
    }

    /// The user called `open_id`, who exists from now on.
    pub(crate) fn user_or_new(&mut self, open_id: &str) -> Option<&mut User> {
        if self.users.get(open_id).is_none() {
            self.add_user(open_id, union_id(open_id));
        }
        self.users.get_mut(open_id)
    }

    /// The openid of a person, who exists here from now on.
    pub(crate) fn open_id_of(&mut self, union_id: &str) -> String {
        let known = self
            .users()
            .find(|(_, user)| user.union_id == union_id)
            .map(|(open_id, _)| open_id.to_owned());
        known.unwrap_or_else(|| {
            let open_id = open_id(&self.config.app_id, union_id);
            self.add_user(&open_id, union_id.to_owned());
            open_id
        })
    }

    fn add_user(&mut self, open_id: &str, union_id: String) {
        let user = User {
            union_id,
            follows: self.config.kind == Kind::OfficialAccount,
            blocks: false,
            session_key: None,
            consents: false,
            windows: Windows::default(),
            typing: TypingState::default(),
        };
        self.users.insert(open_id.to_owned(), user);
    }

    pub(crate) fn user(&self, open_id: &str) -> Option<&User> {
        self.users.get(open_id)
    }

    pub(crate) fn user_mut(&mut self, open_id: &str) -> Option<&mut User> {
        self.users.get_mut(open_id)
    }

    /// Oldest first.
    pub(crate) fn users(&self) -> impl Iterator<Item = (&str, &User)> {
        self.users.iter()
    }
}

/// What a caller may name as an openid: 28 characters that begin with `o`.
pub(crate) fn is_open_id(text: &str) -> bool {
    text.len() == 28
        && text.starts_with('o')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
}

/// The accounts by app id.
pub(crate) type Accounts = BTreeMap<String, Account>;

/// A person within an account.
pub(crate) fn open_id(app_id: &str, person: &str) -> String {
    format!("o{:.27}", digest(&format!("openid:{app_id}:{person}")))
}

/// The n-th user of every account is one person.
pub(crate) fn union_id(person: &str) -> String {
    format!("o{:.27}", digest(&format!("unionid:{person}")))
}

pub(crate) fn digest(text: &str) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn openids_differ_by_account_and_are_the_same_on_every_run() {
        let config = Config::dev("http://127.0.0.1:1");
        let [shop, news] = [0, 1].map(|index| Account::new(config.accounts[index].clone()));
        let again = Account::new(config.accounts[0].clone());
        assert!(is_open_id(&shop.default_open_id()));
        assert_ne!(shop.default_open_id(), news.default_open_id());
        assert_eq!(shop.default_open_id(), again.default_open_id());
    }

    #[test]
    fn one_person_has_one_unionid_in_all_accounts() {
        let config = Config::dev("http://127.0.0.1:1");
        let [shop, news] = [0, 1].map(|index| Account::new(config.accounts[index].clone()));
        let union_id = |account: &Account| {
            account
                .user(&account.default_open_id())
                .unwrap()
                .union_id
                .clone()
        };
        assert_eq!(union_id(&shop), union_id(&news));
    }
}
