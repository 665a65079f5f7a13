//! Accounts, and the WeChat users bound to them.

use proto::auth::v1::{
    CreateAccountRequest, CreateAccountResponse, CreateBindLinkRequest, CreateBindLinkResponse,
    DeleteAccountRequest, DeleteAccountResponse, DeleteBindingRequest, DeleteBindingResponse,
    GetAccountRequest, GetAccountResponse, GetBindingRequest, GetBindingResponse,
    SetAccountPasswordRequest, SetAccountPasswordResponse,
};
use service_kit::Caller;

use super::Service;
use crate::error::Error;

impl Service {
    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn create_account(
        &self,
        _caller: &Caller,
        _request: CreateAccountRequest,
    ) -> Result<CreateAccountResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn set_account_password(
        &self,
        _caller: &Caller,
        _request: SetAccountPasswordRequest,
    ) -> Result<SetAccountPasswordResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn get_account(
        &self,
        _caller: &Caller,
        _request: GetAccountRequest,
    ) -> Result<GetAccountResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn delete_account(
        &self,
        _caller: &Caller,
        _request: DeleteAccountRequest,
    ) -> Result<DeleteAccountResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn create_bind_link(
        &self,
        _caller: &Caller,
        _request: CreateBindLinkRequest,
    ) -> Result<CreateBindLinkResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn get_binding(
        &self,
        _caller: &Caller,
        _request: GetBindingRequest,
    ) -> Result<GetBindingResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn delete_binding(
        &self,
        _caller: &Caller,
        _request: DeleteBindingRequest,
    ) -> Result<DeleteBindingResponse, Error> {
        Err(Error::Unfinished)
    }
}
