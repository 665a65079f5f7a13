//! 开放数据: what a mini program's server learns of its user from WeChat, signed or encrypted under the `session_key`.

use aes::cipher::{BlockModeEncrypt, KeyIvInit, block_padding::Pkcs7};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wechat::crypto;

use crate::{
    account::{Account, Accounts},
    api::joined,
    clock::Moment,
    error::ApiError,
    login::{SessionKey, mint_session_key},
    persona,
    state::{Error, State, mini_program, resolve},
};

/// Which of the user's data a mini program asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserDataKind {
    /// `wx.getUserInfo`: nickname and picture.
    #[default]
    UserInfo,
    /// The phone number button.
    PhoneNumber,
}

/// What the mini program is given to pass on to its server, made with the user's current `session_key`.
#[derive(Debug, Clone, Serialize)]
pub struct UserData {
    /// The user.
    pub open_id: String,
    /// Base64.
    pub encrypted_data: String,
    /// Base64.
    pub iv: String,
    /// The data in the clear, without openid and watermark; user info alone has it.
    pub raw_data: Option<String>,
    /// Of `raw_data`.
    pub signature: Option<String>,
}

/// A user who pressed the phone number button.
#[derive(Debug, Clone, Serialize)]
pub struct PhoneCode {
    /// For the mini program's server: five minutes, one use.
    pub code: String,
    /// The user.
    pub open_id: String,
}

impl State {
    /// A mini program asks for its user's data, who is logged in.
    ///
    /// # Errors
    /// The account is none, or no mini program; the openid is none, or never logged in.
    pub fn user_data(
        &self,
        app_id: &str,
        open_id: Option<&str>,
        kind: UserDataKind,
    ) -> Result<UserData, Error> {
        let now = self.0.clock.now();
        let mut world = self.world();
        let account = mini_program(&mut world, app_id)?;
        let open_id = resolve(account, open_id)?;
        let (union_id, key) = account
            .user(&open_id)
            .and_then(|user| Some((user.union_id.as_str(), user.session_key.as_ref()?)))
            .ok_or_else(|| Error::Invalid(format!("{open_id} must log in first")))?;
        let (data, raw_data) = match kind {
            UserDataKind::UserInfo => {
                let shown = json!({
                    "nickName": persona::nickname(union_id), "gender": 0, "language": "zh_CN", "city": "",
                    "province": "", "country": "", "avatarUrl": persona::avatar(union_id),
                });
                let raw_data = shown.to_string();
                let whose = json!({"openId": open_id, "unionId": union_id});
                (joined(shown, whose), Some(raw_data))
            }
            UserDataKind::PhoneNumber => (phone_info(union_id), None),
        };
        let data = joined(data, watermark(app_id, now));
        let iv = rand::random::<[u8; 16]>();
        let session_key = wechat::SessionKey::new(key.as_str());
        Ok(UserData {
            encrypted_data: encrypt(key, iv, &data.to_string()),
            iv: BASE64_STANDARD.encode(iv),
            signature: raw_data
                .as_deref()
                .map(|raw_data| crypto::user_data_signature(raw_data, &session_key)),
            raw_data,
            open_id,
        })
    }

    /// A user presses the phone number button of a mini program.
    ///
    /// # Errors
    /// The account is none, or no mini program; the openid is none.
    pub fn phone_code(&self, app_id: &str, open_id: Option<&str>) -> Result<PhoneCode, Error> {
        let now = self.0.clock.now();
        let mut world = self.world();
        let account = mini_program(&mut world, app_id)?;
        let open_id = resolve(account, open_id)?;
        account.user_or_new(&open_id);
        Ok(PhoneCode {
            code: account.phone_codes.issue(open_id.clone(), now),
            open_id,
        })
    }
}

/// Whether the caller's `signature` was made with the user's `session_key`: what `checksession` asks and
/// `resetusersessionkey` needs.
pub(crate) fn check_session(
    account: &Account,
    open_id: &str,
    signature: Option<&str>,
    sig_method: Option<&str>,
) -> Result<(), ApiError> {
    if sig_method != Some("hmac_sha256") {
        return Err(ApiError::INVALID_SIG_METHOD);
    }
    let user = account.user(open_id).ok_or(ApiError::INVALID_OPENID)?;
    let key = user
        .session_key
        .as_deref()
        .ok_or(ApiError::SESSION_KEY_GONE)?;
    let expected = crypto::session_signature(&wechat::SessionKey::new(key), "");
    if signature == Some(expected.as_str()) {
        Ok(())
    } else {
        Err(ApiError::INVALID_SIGNATURE)
    }
}

/// Gives the user another `session_key`.
pub(crate) fn reset_session(account: &mut Account, open_id: &str) -> Result<SessionKey, ApiError> {
    let user = account.user_mut(open_id).ok_or(ApiError::INVALID_OPENID)?;
    let key = mint_session_key();
    user.session_key = Some(key.clone());
    Ok(key)
}

/// Whose number the code of the button stands for: 40013 for a code of another account, 40029 for one that is unknown,
/// used or older than five minutes, 40003 when `open_id` is not who pressed the button.
pub(crate) fn phone_number(
    accounts: &mut Accounts,
    app_id: &str,
    code: &str,
    open_id: Option<&str>,
    now: Moment,
) -> Result<Value, ApiError> {
    let is_of_another = accounts
        .iter()
        .any(|(other, account)| other != app_id && account.phone_codes.knows(code));
    if is_of_another {
        return Err(ApiError::INVALID_APPID);
    }
    let account = accounts.get_mut(app_id).ok_or(ApiError::INVALID_APPID)?;
    let pressed_by = account
        .phone_codes
        .redeem(code, now)
        .map_err(|_| ApiError::INVALID_CODE)?;
    if open_id.is_some_and(|open_id| open_id != pressed_by) {
        return Err(ApiError::INVALID_OPENID);
    }
    let user = account.user(&pressed_by).ok_or(ApiError::INVALID_CODE)?;
    Ok(joined(phone_info(&user.union_id), watermark(app_id, now)))
}

fn phone_info(union_id: &str) -> Value {
    let number = persona::phone_number(union_id);
    json!({"phoneNumber": number, "purePhoneNumber": number, "countryCode": "86"})
}

fn watermark(app_id: &str, now: Moment) -> Value {
    json!({"watermark": {"timestamp": now.as_secs(), "appid": app_id}})
}

/// AES-128-CBC with PKCS#7, in base64.
fn encrypt(key: &SessionKey, iv: [u8; 16], plain: &str) -> String {
    let key = BASE64_STANDARD
        .decode(key)
        .ok()
        .and_then(|key| <[u8; 16]>::try_from(key).ok());
    let Some(key) = key else {
        unreachable!("session keys are minted as base64 of 16 bytes")
    };
    let sealed = cbc::Encryptor::<aes::Aes128>::new(&key.into(), &iv.into())
        .encrypt_padded_vec::<Pkcs7>(plain.as_bytes());
    BASE64_STANDARD.encode(sealed)
}
