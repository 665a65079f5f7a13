//! A mini program user's `session_key` and phone number.

use std::fmt;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{Client, answer};
use crate::{AccessToken, ErrCode, Error, OpenId, SessionKey, crypto};

/// A user's phone number; `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PhoneNumber {
    /// With the country code where it is a foreign one.
    pub phone_number: String,
    /// Without the country code.
    pub pure_phone_number: String,
    /// Digits, for example `86`.
    pub country_code: String,
}

impl fmt::Debug for PhoneNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PhoneNumber(redacted)")
    }
}

#[derive(Deserialize)]
struct CheckAnswer {}

#[derive(Deserialize)]
struct ResetAnswer {
    #[serde(deserialize_with = "answer::filled")]
    session_key: String,
}

#[derive(Deserialize)]
struct PhoneAnswer {
    phone_info: PhoneInfo,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PhoneInfo {
    phone_number: String,
    pure_phone_number: String,
    /// A text or, in the older edition, a number.
    country_code: Box<RawValue>,
}

impl Client {
    /// Whether `key` is still the user's (检验登录态 checkSessionKey).
    ///
    /// # Errors
    /// [`Error`], save 87007 and 87009, which are the answer no.
    pub async fn check_session_key(
        &self,
        token: &AccessToken,
        open_id: &OpenId,
        key: &SessionKey,
    ) -> Result<bool, Error> {
        let checked: Result<CheckAnswer, Error> =
            self.signed("/wxa/checksession", token, open_id, key).await;
        match checked {
            Ok(CheckAnswer {}) => Ok(true),
            Err(error)
                if matches!(
                    error.errcode(),
                    Some(ErrCode::SESSION_KEY_GONE | ErrCode::INVALID_SESSION_SIGNATURE)
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Replaces `key` by a new one, which lives as long as it would have (重置登录态
    /// ResetUserSessionKey).
    ///
    /// # Errors
    /// [`Error`]; 87007 and 87009 when `key` is no longer the user's.
    pub async fn reset_session_key(
        &self,
        token: &AccessToken,
        open_id: &OpenId,
        key: &SessionKey,
    ) -> Result<SessionKey, Error> {
        let answer: ResetAnswer = self
            .signed("/wxa/resetusersessionkey", token, open_id, key)
            .await?;
        Ok(SessionKey::new(answer.session_key))
    }

    async fn signed<T: DeserializeOwned>(
        &self,
        endpoint: &'static str,
        token: &AccessToken,
        open_id: &OpenId,
        key: &SessionKey,
    ) -> Result<T, Error> {
        let signature = crypto::session_signature(key, "");
        let query = [
            ("openid", open_id.as_str()),
            ("signature", &signature),
            ("sig_method", "hmac_sha256"),
        ];
        self.get(endpoint, token, &query).await
    }

    /// Exchanges the `code` of the phone number button, good for five minutes and one use (获取手机号
    /// getPhoneNumber). With `open_id`, WeChat checks that it was this user who pressed it.
    ///
    /// # Errors
    /// [`Error`]; 40029 asks the user to press the button again.
    pub async fn phone_number(
        &self,
        token: &AccessToken,
        code: &str,
        open_id: Option<&OpenId>,
    ) -> Result<PhoneNumber, Error> {
        #[derive(Serialize)]
        struct Body<'a> {
            code: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            openid: Option<&'a OpenId>,
        }
        let body = Body {
            code,
            openid: open_id,
        };
        let endpoint = "/wxa/business/getuserphonenumber";
        let PhoneAnswer { phone_info } = self.post(endpoint, token, &body).await?;
        Ok(PhoneNumber {
            phone_number: phone_info.phone_number,
            pure_phone_number: phone_info.pure_phone_number,
            country_code: answer::scalar(&phone_info.country_code).unwrap_or_default(),
        })
    }
}
