//! What WeChat keeps of a mini program's user: session_key, encrypted data, phone number.

use proto::auth::v1::{
    CheckSessionKeyRequest, CheckSessionKeyResponse, DecryptUserDataRequest,
    DecryptUserDataResponse, GetPhoneNumberRequest, GetPhoneNumberResponse, ResetSessionKeyRequest,
    ResetSessionKeyResponse,
};
use service_kit::Caller;
use wechat::{AppId, OpenId};

use super::Service;
use crate::{error::Error, session::Token, user_data::Encrypted};

impl Service {
    pub(super) async fn check_session_key(
        &self,
        caller: &Caller,
        request: CheckSessionKeyRequest,
    ) -> Result<CheckSessionKeyResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        let open_id = open_id(&request.open_id)?;
        let valid = self.auth.user_data.session_key_holds(&app, &open_id);
        Ok(CheckSessionKeyResponse {
            valid: valid.await?,
        })
    }

    pub(super) async fn reset_session_key(
        &self,
        caller: &Caller,
        request: ResetSessionKeyRequest,
    ) -> Result<ResetSessionKeyResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        let open_id = open_id(&request.open_id)?;
        self.auth.user_data.reset_session_key(app, open_id).await?;
        Ok(ResetSessionKeyResponse {})
    }

    pub(super) async fn decrypt_user_data(
        &self,
        caller: &Caller,
        request: DecryptUserDataRequest,
    ) -> Result<DecryptUserDataResponse, Error> {
        let token = Token::parse(&request.session_token)?;
        let encrypted = Encrypted::parse(
            &request.encrypted_data,
            &request.iv,
            &request.raw_data,
            &request.signature,
        )?;
        let open_to = |app: &AppId| self.is_open(caller, app);
        let data = self
            .auth
            .open_user_data(&token, open_to, &encrypted)
            .await?;
        Ok(DecryptUserDataResponse {
            json: data.to_string(),
        })
    }

    pub(super) async fn get_phone_number(
        &self,
        caller: &Caller,
        request: GetPhoneNumberRequest,
    ) -> Result<GetPhoneNumberResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        let pressed_by = match request.open_id.as_str() {
            "" => None,
            text => Some(open_id(text)?),
        };
        let number = &self.auth.user_data;
        let number = number.phone_number(&app, &request.code, pressed_by.as_ref());
        let number = number.await?;
        Ok(GetPhoneNumberResponse {
            phone_number: number.phone_number,
            pure_phone_number: number.pure_phone_number,
            country_code: number.country_code,
        })
    }
}

fn open_id(text: &str) -> Result<OpenId, Error> {
    OpenId::try_from(text)
        .map_err(|error| Error::field("open_id", format!("is malformed: {error}")))
}
