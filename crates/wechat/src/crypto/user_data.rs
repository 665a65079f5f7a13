//! A mini program user's signed and encrypted data (服务端获取开放数据).

use aes::cipher::{BlockModeDecrypt, KeyIvInit, block_padding::Pkcs7};
use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use serde_json::Value;
use sha2::Sha256;
use subtle::ConstantTimeEq;

use crate::{AppId, SessionKey, crypto::sha1_hex};

const AES_BLOCK: usize = 16;

/// Why user data could not be decrypted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DataError {
    /// `encrypted_data`, `iv` or the `session_key` is no base64 of a fitting length; `field` says
    /// which.
    #[error("{field} is not base64 of a fitting length")]
    Malformed {
        /// `encrypted_data`, `iv` or `session_key`.
        field: &'static str,
    },
    /// The `session_key` is not the one the data was encrypted under, mostly since a later
    /// `wx.login` replaced it: the user logs in again and the data is fetched again.
    #[error("the session_key is out of date: log in again, then fetch the data again")]
    SessionKeyOutOfDate,
    /// The watermark names another app, or none.
    #[error("the data is for another app")]
    AppId,
}

/// Decrypts `encrypted_data` (AES-128-CBC) and checks that its watermark names `app`.
///
/// Tolerates what transport does to base64: `+` turned into a space by a query string, and line
/// breaks. How old the data may be is the caller's to judge by `watermark.timestamp` (Unix
/// seconds).
///
/// # Errors
/// [`DataError::SessionKeyOutOfDate`] where the user must log in again, the others for what no user
/// can mend.
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

/// Whether `signature` is the [`user_data_signature`] of `raw_data`, in constant time.
pub fn verify_user_data_signature(signature: &str, raw_data: &str, key: &SessionKey) -> bool {
    user_data_signature(raw_data, key)
        .as_bytes()
        .ct_eq(signature.as_bytes())
        .into()
}

/// The login-state signature: HMAC-SHA256 in lower-case hex of `data` under the `session_key`'s
/// text.
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
        .chars()
        .filter(|c| !matches!(c, '\r' | '\n' | '\t'))
        .map(|c| if c == ' ' { '+' } else { c })
        .collect();
    STANDARD.decode(mended).ok()
}

#[cfg(test)]
mod tests {
    use aes::cipher::BlockModeEncrypt;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_plus_at_either_end_survives_a_query_string() {
        for text in ["+abc", "abc+", "a+\r\nc+"] {
            let received = text.replace('+', " ");
            assert_eq!(decode(&received), decode(text));
            assert!(decode(text).is_some(), "{text}");
        }
    }

    const KEY: [u8; 16] = *b"0123456789abcdef";
    const IV: [u8; 16] = *b"fedcba9876543210";

    fn encrypt(plain: &[u8]) -> String {
        STANDARD.encode(
            cbc::Encryptor::<aes::Aes128>::new(&KEY.into(), &IV.into())
                .encrypt_padded_vec::<Pkcs7>(plain),
        )
    }

    fn decrypt_with(key: [u8; 16], data: &str) -> Result<Value, DataError> {
        decrypt_user_data(
            &SessionKey::new(STANDARD.encode(key)),
            data,
            &STANDARD.encode(IV),
            &"wx1".parse().unwrap(),
        )
    }

    fn decrypt(data: &str) -> Result<Value, DataError> {
        decrypt_with(KEY, data)
    }

    /// Data whose cipher text has a `+` in base64, which a query string turns into a space.
    fn data_with_plus() -> (String, String) {
        (0..)
            .map(|n| format!(r#"{{"n":{n},"watermark":{{"appid":"wx1","timestamp":1}}}}"#))
            .map(|plain| (encrypt(plain.as_bytes()), plain))
            .find(|(encrypted, _)| encrypted.contains('+'))
            .unwrap()
    }

    #[test]
    fn what_transport_does_to_base64_is_undone() {
        let (encrypted, plain) = data_with_plus();
        let expected: Value = serde_json::from_str(&plain).unwrap();
        assert_eq!(decrypt(&encrypted).unwrap(), expected);
        assert_eq!(decrypt(&encrypted.replace('+', " ")).unwrap(), expected);
        let (start, end) = encrypted.split_at(20);
        assert_eq!(decrypt(&format!("{start}\r\n{end}\n")).unwrap(), expected);
    }

    #[test]
    fn a_replaced_session_key_asks_for_a_new_login() {
        let (encrypted, _) = data_with_plus();
        // Some wrong keys happen to leave a valid padding; all must be told the same.
        for n in 0..=255 {
            let mut key = KEY;
            key[0] ^= 0xff;
            key[1] = n;
            assert_eq!(
                decrypt_with(key, &encrypted),
                Err(DataError::SessionKeyOutOfDate)
            );
        }
    }

    #[test]
    fn malformed_input_names_its_field() {
        let (encrypted, _) = data_with_plus();
        let malformed = |field| Err(DataError::Malformed { field });
        assert_eq!(decrypt("?"), malformed("encrypted_data"));
        assert_eq!(decrypt(""), malformed("encrypted_data"));
        assert_eq!(decrypt("AAAA"), malformed("encrypted_data"));
        let (key, iv, app) = (
            STANDARD.encode(KEY),
            STANDARD.encode(IV),
            "wx1".parse().unwrap(),
        );
        let with =
            |key: &str, iv: &str| decrypt_user_data(&SessionKey::new(key), &encrypted, iv, &app);
        assert_eq!(with("AAAA", &iv), malformed("session_key"));
        assert_eq!(with("?", &iv), malformed("session_key"));
        assert_eq!(with(&key, "AAAA"), malformed("iv"));
        assert!(with(&key, &iv).is_ok());
    }

    #[test]
    fn data_without_this_apps_watermark_is_refused() {
        for plain in [
            "{}",
            r#"{"watermark":{"appid":"wx2"}}"#,
            r#"{"watermark":{"appid":1}}"#,
        ] {
            assert_eq!(
                decrypt(&encrypt(plain.as_bytes())),
                Err(DataError::AppId),
                "{plain}"
            );
        }
    }

    #[test]
    fn nicknames_may_hold_control_characters_and_broken_utf8() {
        let data = decrypt(&encrypt(
            b"{\"nickName\":\"a\x08\xf0\x9f\",\"watermark\":{\"appid\":\"wx1\"}}",
        ))
        .unwrap();
        assert_eq!(data["nickName"], "a\u{8}\u{fffd}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in any::<String>(), plain in any::<Vec<u8>>(), key in any::<String>()) {
            let app = "wx1".parse().unwrap();
            prop_assert!(decrypt_user_data(&SessionKey::new(key), &text, &text, &app).is_err());
            prop_assert!(decrypt(&encrypt(&plain)).is_err());
        }
    }
}
