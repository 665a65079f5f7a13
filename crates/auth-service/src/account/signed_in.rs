//! Who is signed in: a ticket that the browser keeps as a cookie, good for being bound and for nothing else.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use wechat::AppId;

use super::{Account, AccountName, Accounts, Epoch};
use crate::{
    error::Error,
    ticket::{Kind, Ticket},
};

/// How long an account stays signed in, used or not.
pub const LIFE: Duration = Duration::from_secs(12 * 3600);

const SIGNED_IN: Kind = Kind {
    name: "account",
    life: LIFE,
};

/// An account that is signed in with a browser.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SignedIn {
    pub(crate) account: AccountName,
    pub(crate) epoch: Epoch,
    /// The bind link that the browser shows, for each app.
    links: BTreeMap<AppId, String>,
}

impl SignedIn {
    /// The bind link that the browser shows for an app.
    pub(crate) fn link(&self, app_id: &AppId) -> Option<&str> {
        self.links.get(app_id).map(String::as_str)
    }
}

impl Accounts {
    /// Signs an account in with a browser.
    pub(crate) async fn open(&self, account: &Account) -> Result<Ticket, Error> {
        let signed_in = SignedIn {
            account: account.name.clone(),
            epoch: account.epoch.clone(),
            links: BTreeMap::new(),
        };
        self.tickets.put(&SIGNED_IN, &signed_in).await
    }

    /// Who is signed in with a browser. A new password and the account's end sign it out.
    pub(crate) async fn signed_in(&self, ticket: &str) -> Result<Option<SignedIn>, Error> {
        let Some(found) = self.tickets.look::<SignedIn>(&SIGNED_IN, ticket).await? else {
            return Ok(None);
        };
        let account = self.at_epoch(&found.account, &found.epoch).await?;
        Ok(account.map(|_| found))
    }

    /// Keeps the bind link that the browser shows for an app.
    pub(crate) async fn keep_link(
        &self,
        ticket: &str,
        mut signed_in: SignedIn,
        app_id: &AppId,
        link: &Ticket,
    ) -> Result<(), Error> {
        let link = link.expose().to_owned();
        signed_in.links.insert(app_id.clone(), link);
        self.tickets.replace(&SIGNED_IN, ticket, &signed_in).await?;
        Ok(())
    }

    /// Signs a browser out; one that is not signed in is no error.
    pub(crate) async fn sign_out(&self, ticket: &str) -> Result<(), Error> {
        self.tickets.take::<SignedIn>(&SIGNED_IN, ticket).await?;
        Ok(())
    }
}
