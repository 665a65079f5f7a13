//! A mini program user's signed and encrypted data (服务端获取开放数据).

use aes::cipher::{BlockModeDecrypt, KeyIvInit, block_padding::Pkcs7};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;

use crate::{AppId, SessionKey, crypto::sha1_hex};

const AES_BLOCK: usize = 16;

/// Why user data could not be decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// `encrypted_data`, `iv` or the `session_key` is no base64 of a fitting length; `field` says which.
    #[error("{field} is not base64 of a fitting length")]
    Malformed {
        /// `encrypted_data`, `iv` or `session_key`.
        field: &'static str,
    },
    /// The `session_key` is not the one the data was encrypted under, mostly since a later `wx.login` replaced it:
    /// the user logs in again and the data is fetched again.
    #[error("the session_key is out of date: log in again, then fetch the data again")]
    SessionKeyOutOfDate,
    /// The watermark names another app, or none.
    #[error("the data is for another app")]
    AppId,
}

/// Decrypts `encrypted_data` (AES-128-CBC) and checks that its watermark names `app`.
///
/// Tolerates what transport does to base64: `+` turned into a space by a query string, and line breaks. How old the
/// data may be is the caller's to judge by `watermark.timestamp` (Unix seconds).
///
/// # Errors
/// [`DataError::SessionKeyOutOfDate`] where the user must log in again, the others for what no user can mend.
pub fn decrypt_user_data(
    key: &SessionKey,
    encrypted_data: &str,
    iv: &str,
    app: &AppId,
) -> Result<Value, DataError> {
    let block = |field, text| {
        decode(text)
            .and_then(|bytes| <[u8; AES_BLOCK]>::try_from(bytes).ok())
            .ok_or(DataError::Malformed { field })
    };
    let key = block("session_key", key.expose())?;
    let iv = block("iv", iv)?;
    let cipher_text = decode(encrypted_data)
        .filter(|bytes| !bytes.is_empty() && bytes.len().is_multiple_of(AES_BLOCK))
        .ok_or(DataError::Malformed {
            field: "encrypted_data",
        })?;

    let plain = cbc::Decryptor::<aes::Aes128>::new(&key.into(), &iv.into())
        .decrypt_padded_vec::<Pkcs7>(&cipher_text)
        .map_err(|_| DataError::SessionKeyOutOfDate)?;
    // One wrong key in 256 leaves a valid padding; what it decrypts to is no JSON.
    let data = crate::json::value(&plain)
        .filter(Value::is_object)
        .ok_or(DataError::SessionKeyOutOfDate)?;
    match data.pointer("/watermark/appid").and_then(Value::as_str) {
        Some(appid) if appid == app.as_str() => Ok(data),
        _ => Err(DataError::AppId),
    }
}

/// The `signature` of `rawData`: SHA-1 in lower-case hex of `raw_data` and the `session_key`.
pub fn user_data_signature(raw_data: &str, key: &SessionKey) -> String {
    sha1_hex(&[raw_data, key.expose()])
}

/// The login-state signature: HMAC-SHA256 in lower-case hex of `data` under the `session_key`'s text.
///
/// `/wxa/checksession` and `/wxa/resetusersessionkey` take that of the empty string.
pub fn session_signature(key: &SessionKey, data: &str) -> String {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()) else {
        unreachable!("HMAC takes keys of any length")
    };
    mac.update(data.as_bytes());
    hex::encode(mac.finalize().into_bytes())
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mended: String = text
        .trim()
        .chars()
        .filter(|c| !matches!(c, '\r' | '\n'))
        .map(|c| if c == ' ' { '+' } else { c })
        .collect();
    STANDARD.decode(mended).ok()
}
