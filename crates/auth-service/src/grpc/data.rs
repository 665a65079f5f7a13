//! What WeChat keeps of a mini program's user: session_key, encrypted data, phone number.

use proto::auth::v1::{
    CheckSessionKeyRequest, CheckSessionKeyResponse, DecryptUserDataRequest,
    DecryptUserDataResponse, GetPhoneNumberRequest, GetPhoneNumberResponse, ResetSessionKeyRequest,
    ResetSessionKeyResponse,
};
use service_kit::Caller;

use super::Service;
use crate::error::Error;

impl Service {
    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn check_session_key(
        &self,
        _caller: &Caller,
        _request: CheckSessionKeyRequest,
    ) -> Result<CheckSessionKeyResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn reset_session_key(
        &self,
        _caller: &Caller,
        _request: ResetSessionKeyRequest,
    ) -> Result<ResetSessionKeyResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn decrypt_user_data(
        &self,
        _caller: &Caller,
        _request: DecryptUserDataRequest,
    ) -> Result<DecryptUserDataResponse, Error> {
        Err(Error::Unfinished)
    }

    #[expect(clippy::unused_async, reason = "unfinished")]
    pub(super) async fn get_phone_number(
        &self,
        _caller: &Caller,
        _request: GetPhoneNumberRequest,
    ) -> Result<GetPhoneNumberResponse, Error> {
        Err(Error::Unfinished)
    }
}
