//! Accounts, and the WeChat users bound to them.

use prost_types::Timestamp;
use proto::auth::v1::{
    self as wire, BindLink, CreateAccountRequest, CreateAccountResponse, CreateBindLinkRequest,
    CreateBindLinkResponse, DeleteAccountRequest, DeleteAccountResponse, DeleteBindingRequest,
    DeleteBindingResponse, GetAccountRequest, GetAccountResponse, GetBindingRequest,
    GetBindingResponse, SetAccountPasswordRequest, SetAccountPasswordResponse,
};
use service_kit::{AppKind, Caller, catalog::AppList};

use super::Service;
use crate::{
    account::{self, Account, AccountName, Password},
    binding::{self, Binding},
    error::Error,
};

impl Service {
    pub(super) async fn create_account(
        &self,
        caller: &Caller,
        request: CreateAccountRequest,
    ) -> Result<CreateAccountResponse, Error> {
        above_apps(caller)?;
        let name = name(&request.account)?;
        let password = Password::parse(&request.password)?;
        // Bindings of a name that is no account are of a team's own user, whom the account is not to take over.
        if self.auth.accounts.get(&name).await?.is_none() {
            self.unbound(&name).await?;
        }
        let account = self.auth.accounts.create(name.clone(), password).await?;
        // Again: a phone that was being bound meanwhile either finds the account, or is found here.
        if let Err(error) = self.unbound(&name).await {
            self.auth.accounts.delete(&name).await?;
            return Err(error);
        }
        Ok(CreateAccountResponse {
            account: Some(wire_account(account, Vec::new())),
        })
    }

    pub(super) async fn set_account_password(
        &self,
        caller: &Caller,
        request: SetAccountPasswordRequest,
    ) -> Result<SetAccountPasswordResponse, Error> {
        above_apps(caller)?;
        let name = name(&request.account)?;
        let password = Password::parse(&request.password)?;
        let account = self.auth.accounts.set_password(&name, password).await?;
        let bindings = self.open_bindings(caller, &name).await?;
        Ok(SetAccountPasswordResponse {
            account: Some(wire_account(account, bindings)),
        })
    }

    async fn unbound(&self, name: &AccountName) -> Result<(), Error> {
        if self.auth.bindings.of_account(name).await?.is_empty() {
            Ok(())
        } else {
            Err(binding::Refusal::AccountBound.into())
        }
    }

    pub(super) async fn get_account(
        &self,
        caller: &Caller,
        request: GetAccountRequest,
    ) -> Result<GetAccountResponse, Error> {
        let name = name(&request.account)?;
        let account = self.auth.accounts.get(&name).await?;
        let account = account.ok_or(account::Refusal::Unknown)?;
        let bindings = self.open_bindings(caller, &name).await?;
        Ok(GetAccountResponse {
            account: Some(wire_account(account, bindings)),
        })
    }

    /// An account's bindings in the caller's apps.
    async fn open_bindings(
        &self,
        caller: &Caller,
        name: &AccountName,
    ) -> Result<Vec<Binding>, Error> {
        let mut bindings = self.auth.bindings.of_account(name).await?;
        bindings.retain(|binding| self.is_open(caller, &binding.app_id));
        Ok(bindings)
    }

    pub(super) async fn delete_account(
        &self,
        caller: &Caller,
        request: DeleteAccountRequest,
    ) -> Result<DeleteAccountResponse, Error> {
        above_apps(caller)?;
        let name = name(&request.account)?;
        // The account first: a phone that is being bound to it meanwhile looks afterwards whether it is there. Bindings
        // go even where there is none, for who tries again.
        self.auth.accounts.delete(&name).await?;
        for binding in self.auth.bindings.of_account(&name).await? {
            self.auth.bindings.remove(binding.id).await?;
        }
        Ok(DeleteAccountResponse {})
    }

    pub(super) async fn create_bind_link(
        &self,
        caller: &Caller,
        request: CreateBindLinkRequest,
    ) -> Result<CreateBindLinkResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        if app.kind != AppKind::OfficialAccount {
            return Err(Error::field("app_id", "names no official account"));
        }
        let name = name(&request.account)?;
        let public_url = self.auth.public_url()?;
        if self.auth.bindings.get(&app.app_id, &name).await?.is_some() {
            return Err(binding::Refusal::AccountBound.into());
        }
        let account = self.auth.accounts.get(&name).await?;
        let epoch = account.map(|account| account.epoch);
        let offer = self.auth.binds.offer(&app.app_id, &name, epoch).await?;
        let url = binding::link_url(public_url, offer.ticket.expose());
        Ok(CreateBindLinkResponse {
            bind_link: Some(BindLink {
                qr_svg: binding::qr_code(&url)?,
                url: url.into(),
                expire_time: Some(Timestamp::from(offer.end)),
            }),
        })
    }

    pub(super) async fn get_binding(
        &self,
        caller: &Caller,
        request: GetBindingRequest,
    ) -> Result<GetBindingResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        let name = name(&request.account)?;
        let binding = self.auth.bindings.get(&app.app_id, &name).await?;
        let binding = binding.ok_or(binding::Refusal::Unknown)?;
        Ok(GetBindingResponse {
            binding: Some(wire_binding(binding)),
        })
    }

    pub(super) async fn delete_binding(
        &self,
        caller: &Caller,
        request: DeleteBindingRequest,
    ) -> Result<DeleteBindingResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        let name = name(&request.account)?;
        self.auth.bindings.unbind(&app.app_id, &name).await?;
        Ok(DeleteBindingResponse {})
    }
}

/// Refuses a caller who has some apps: an account's password and end are everybody's who uses it.
fn above_apps(caller: &Caller) -> Result<(), Error> {
    match caller.apps {
        AppList::All => Ok(()),
        AppList::Some(_) => Err(account::Refusal::AllAppsRequired.into()),
    }
}

fn name(text: &str) -> Result<AccountName, Error> {
    let name = text.parse();
    name.map_err(|error: account::InvalidAccountName| Error::field("account", error.to_string()))
}

fn wire_account(account: Account, bindings: Vec<Binding>) -> wire::Account {
    wire::Account {
        account: account.name.into(),
        create_time: Some(Timestamp::from(account.create_time)),
        password_time: Some(Timestamp::from(account.password_time)),
        bindings: bindings.into_iter().map(wire_binding).collect(),
    }
}

fn wire_binding(binding: Binding) -> wire::Binding {
    wire::Binding {
        account: binding.account.into(),
        app_id: binding.app_id.into(),
        open_id: binding.open_id.into(),
        nickname: binding.nickname,
        create_time: Some(Timestamp::from(binding.create_time)),
    }
}
