//! Accounts: people who sign in with name and password, to be bound to their WeChat user.
//!
//! An account signs in to be bound and for nothing else: what it gets is no session. Passwords are rows of `account`, as
//! argon2id; whoever is signed in is a ticket that ends with the password.

mod cooldown;
mod entity;
mod hash;
mod signed_in;

use std::{
    fmt,
    str::FromStr,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, SubsecRound as _, Utc};
use redis::aio::ConnectionManager;
use sea_orm::{
    ActiveValue::Set, ColumnTrait as _, DatabaseConnection, EntityTrait as _, QueryFilter as _,
    SqlErr,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use service_kit::{Clock, storage::within_deadline};
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use unicode_normalization::UnicodeNormalization as _;
use uuid::Uuid;

pub(crate) use self::signed_in::SignedIn;
use self::{
    cooldown::{Attempt, Cooldown},
    hash::Hasher,
};
pub use self::{
    cooldown::{COOLDOWN, FAILURES, WINDOW},
    signed_in::LIFE,
};
use crate::{error::Error, metrics, ticket::Tickets};

/// Why an account is not made, found or signed in to.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("there is an account of this name already")]
    Exists,
    /// Nobody has the name.
    #[error("no such account")]
    Unknown,
    /// There is no such account, or it has another password.
    #[error("the name or the password is wrong")]
    Wrong,
    /// The password was wrong too often.
    #[error("the password was wrong too often: try again in {} s", .0.as_millis().div_ceil(1_000))]
    CoolingDown(Duration),
    /// More passwords are being checked than is good.
    #[error("too many passwords are being checked")]
    Busy,
    /// More browsers follow a QR code than is good.
    #[error("too many pages follow a QR code: close some")]
    Crowded,
    /// The caller has some apps, and accounts stand above apps.
    #[error(
        "accounts stand above apps: the caller needs apps = [\"*\"]. For users of its own, a team calls CreateBindLink"
    )]
    AllAppsRequired,
    /// Nobody is signed in, or no longer.
    #[error("no account is signed in")]
    SignedOut,
}

/// Under what a person is known: 1 to 64 characters, none of them a control character, and no space at an end. In
/// Unicode's form NFC, so that what looks the same is the same however it was typed. Case counts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AccountName(String);

/// A text that is no account's name.
#[derive(Debug, thiserror::Error)]
#[error(
    "must have 1 to {} characters, none of them a control character or at an end a space",
    AccountName::MAX
)]
pub struct InvalidAccountName;

impl AccountName {
    /// Characters of the longest name.
    pub const MAX: usize = 64;

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountName {
    type Err = InvalidAccountName;

    fn from_str(text: &str) -> Result<Self, InvalidAccountName> {
        let name: String = text.nfc().take(Self::MAX + 1).collect();
        let fits = (1..=Self::MAX).contains(&name.chars().count());
        if fits && name.trim() == name && !name.contains(char::is_control) {
            Ok(Self(name))
        } else {
            Err(InvalidAccountName)
        }
    }
}

impl TryFrom<String> for AccountName {
    type Error = InvalidAccountName;

    fn try_from(text: String) -> Result<Self, InvalidAccountName> {
        text.parse()
    }
}

impl From<AccountName> for String {
    fn from(name: AccountName) -> Self {
        name.0
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A password, in Unicode's form NFC: the same however its characters were typed. It never prints.
#[derive(Clone)]
pub struct Password(SecretString);

impl Password {
    /// Characters of the shortest.
    pub const MIN: usize = 8;
    /// Characters of the longest.
    pub const MAX: usize = 128;

    /// Takes a new password.
    ///
    /// # Errors
    /// When it has fewer than [`Password::MIN`] or more than [`Password::MAX`] characters, or a control character.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let password = Self::shown(text);
        let length = password.0.expose_secret().chars().count();
        if !(Self::MIN..=Self::MAX).contains(&length) {
            let problem = format!("must have {} to {} characters", Self::MIN, Self::MAX);
            return Err(Error::field("password", problem));
        }
        if password.0.expose_secret().contains(char::is_control) {
            return Err(Error::field("password", "must not hold control characters"));
        }
        Ok(password)
    }

    /// Takes a password that somebody shows, which may be none that was ever taken. What is too long to be one becomes
    /// empty, and so is no account's.
    pub fn shown(text: &str) -> Self {
        let mut password: String = text.nfc().take(Self::MAX + 1).collect();
        if password.chars().count() > Self::MAX {
            password.clear();
        }
        Self(SecretString::from(password))
    }

    fn bytes(&self) -> &[u8] {
        self.0.expose_secret().as_bytes()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password([redacted])")
    }
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: AccountName,
    /// Changes with the password.
    pub epoch: Epoch,
    /// When it was made.
    pub create_time: SystemTime,
    /// When its password was set.
    pub password_time: SystemTime,
}

/// Which password of an account somebody signed in with. A new password and a new account of the same name are another
/// epoch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch(String);

impl Epoch {
    fn new() -> Self {
        Self(Uuid::now_v7().to_string())
    }
}

impl TryFrom<entity::Model> for Account {
    type Error = Error;

    fn try_from(row: entity::Model) -> Result<Self, Error> {
        let name = row.name.parse();
        Ok(Self {
            name: name.map_err(|_| Error::Stored("account"))?,
            epoch: Epoch(row.epoch),
            create_time: row.created_at.into(),
            password_time: row.password_at.into(),
        })
    }
}

/// Every account; clones share them.
#[derive(Debug, Clone)]
pub struct Accounts {
    database: DatabaseConnection,
    hasher: Hasher,
    cooldown: Cooldown,
    tickets: Tickets,
    clock: Clock,
    under_way: TaskTracker,
}

impl Accounts {
    /// Accounts in this database; guesses are counted in Redis, or in memory without it. An attempt that has begun is
    /// ended on `under_way`, whether or not whoever made it waits.
    pub(crate) fn new(
        database: DatabaseConnection,
        redis: Option<ConnectionManager>,
        tickets: Tickets,
        clock: Clock,
        under_way: TaskTracker,
    ) -> Self {
        Self {
            database,
            hasher: Hasher::new(),
            cooldown: Cooldown::new(redis, clock.clone()),
            tickets,
            clock,
            under_way,
        }
    }

    /// Makes an account.
    ///
    /// # Errors
    /// [`Refusal::Exists`]; when the database does not answer.
    pub async fn create(&self, name: AccountName, password: Password) -> Result<Account, Error> {
        let password_hash = self.hasher.hash(password).await?;
        let now = self.now();
        let row = entity::ActiveModel {
            name: Set(name.to_string()),
            password_hash: Set(password_hash),
            epoch: Set(Epoch::new().0),
            created_at: Set(now),
            password_at: Set(now),
        };
        let insert = entity::Entity::insert(row).exec_without_returning(&self.database);
        match within_deadline(insert).await {
            Ok(_) => self
                .get(&name)
                .await?
                .ok_or_else(|| Refusal::Unknown.into()),
            Err(error) => Err(match error.sql_err() {
                Some(SqlErr::UniqueConstraintViolation(_)) => Refusal::Exists.into(),
                _ => error.into(),
            }),
        }
    }

    /// Gives an account another password; whoever is signed in is no longer.
    ///
    /// # Errors
    /// [`Refusal::Unknown`]; when the database does not answer.
    pub async fn set_password(
        &self,
        name: &AccountName,
        password: Password,
    ) -> Result<Account, Error> {
        let password_hash = self.hasher.hash(password).await?;
        let update = entity::Entity::update_many()
            .set(entity::ActiveModel {
                password_hash: Set(password_hash),
                epoch: Set(Epoch::new().0),
                password_at: Set(self.now()),
                ..entity::ActiveModel::default()
            })
            .filter(entity::Column::Name.eq(name.as_str()))
            .exec(&self.database);
        within_deadline(update).await?;
        let account = self.get(name).await?;
        account.ok_or_else(|| Refusal::Unknown.into())
    }

    /// The account of this name.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn get(&self, name: &AccountName) -> Result<Option<Account>, Error> {
        self.row(name).await?.map(Account::try_from).transpose()
    }

    /// The account of this name, if its password is still that of `epoch`.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn at_epoch(
        &self,
        name: &AccountName,
        epoch: &Epoch,
    ) -> Result<Option<Account>, Error> {
        let account = self.get(name).await?;
        Ok(account.filter(|account| account.epoch == *epoch))
    }

    /// Removes an account. Answers whether it was there.
    ///
    /// # Errors
    /// When the database does not answer.
    pub async fn delete(&self, name: &AccountName) -> Result<bool, Error> {
        let delete = entity::Entity::delete_by_id(name.to_string()).exec(&self.database);
        Ok(within_deadline(delete).await?.rows_affected > 0)
    }

    /// The account, if this is its password.
    ///
    /// # Errors
    /// [`Refusal::Wrong`], whether it is the name or the password, which takes as long either way;
    /// [`Refusal::CoolingDown`], even when the password is right; [`Refusal::Busy`]; when a store does not answer.
    pub async fn sign_in(&self, name: AccountName, password: Password) -> Result<Account, Error> {
        let accounts = self.clone();
        let attempt = async move { accounts.attempt(&name, password).await };
        let outcome = self.under_way.spawn(attempt).await?;
        metrics::sign_in(&outcome);
        outcome
    }

    async fn attempt(&self, name: &AccountName, password: Password) -> Result<Account, Error> {
        let attempt = match self.cooldown.begin(name).await? {
            Ok(attempt) => attempt,
            Err(left) => return Err(Refusal::CoolingDown(left).into()),
        };
        match self.check(name, password).await {
            Ok(Some(account)) => {
                self.withdraw(&attempt).await;
                Ok(account)
            }
            Ok(None) => {
                if self.cooldown.failed(&attempt).await? {
                    info!("an account's password was wrong too often: its name cools down");
                }
                Err(Refusal::Wrong.into())
            }
            Err(error) => {
                self.withdraw(&attempt).await;
                Err(error)
            }
        }
    }

    async fn check(
        &self,
        name: &AccountName,
        password: Password,
    ) -> Result<Option<Account>, Error> {
        let row = self.row(name).await?;
        let hash = row.as_ref().map(|row| row.password_hash.clone());
        let matches = self.hasher.matches(password, hash).await?;
        row.filter(|_| matches).map(Account::try_from).transpose()
    }

    /// An attempt that cannot be withdrawn counts for two minutes; nobody else is the worse for it.
    async fn withdraw(&self, attempt: &Attempt) {
        if let Err(error) = self.cooldown.withdraw(attempt).await {
            let error = &error as &dyn std::error::Error;
            warn!(error, "an attempt to sign in cannot be withdrawn");
        }
    }

    async fn row(&self, name: &AccountName) -> Result<Option<entity::Model>, Error> {
        let row = entity::Entity::find_by_id(name.to_string()).one(&self.database);
        Ok(within_deadline(row).await?)
    }

    fn now(&self) -> DateTime<Utc> {
        DateTime::<Utc>::from(self.clock.now()).trunc_subsecs(6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_the_same_however_it_is_typed() {
        let name = |text: &str| text.parse::<AccountName>();
        assert_eq!(name("王小明").unwrap().as_str(), "王小明");
        // é as one character and as two.
        assert_eq!(name("ren\u{e9}").unwrap(), name("rene\u{301}").unwrap());
        assert_ne!(name("wang").unwrap(), name("Wang").unwrap());
        let long = "名".repeat(AccountName::MAX);
        assert!(name(&long).is_ok());
        for bad in [
            "",
            " ",
            " wang",
            "wang\u{3000}",
            "wa\nng",
            "w\u{0}",
            &format!("{long}x"),
        ] {
            assert!(name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_password_has_8_to_128_characters_of_any_script() {
        for good in [
            "12345678",
            "密码密码密码密码",
            &"🔑".repeat(128),
            "  spaces  ",
        ] {
            assert!(Password::parse(good).is_ok(), "{good:?}");
        }
        for bad in [
            "",
            "1234567",
            "密码密码密码密",
            &"x".repeat(129),
            "1234567\u{7}8",
        ] {
            let error = Password::parse(bad).unwrap_err().to_string();
            assert!(bad.is_empty() || !error.contains(bad), "{error}");
        }
        // Eight characters however they are composed, and the same ones.
        let (one, two) = ("\u{e9}".repeat(8), "e\u{301}".repeat(8));
        let (one, two) = (
            Password::parse(&one).unwrap(),
            Password::parse(&two).unwrap(),
        );
        assert_eq!(one.bytes(), two.bytes());
        assert!(Password::parse(&"e\u{301}".repeat(7)).is_err());
        assert_eq!(format!("{one:?}"), "Password([redacted])");
    }

    #[test]
    fn a_password_is_not_cut_to_one_that_fits() {
        let long = "x".repeat(Password::MAX);
        assert_eq!(Password::shown(&long).bytes().len(), Password::MAX);
        assert_eq!(Password::shown(&format!("{long}y")).bytes(), b"");
    }
}
