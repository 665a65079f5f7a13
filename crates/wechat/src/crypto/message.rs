//! The cipher of callbacks: AES-256-CBC over 16 random bytes, the message's length, the message and
//! the appid.

use std::{fmt, str::FromStr};

use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::NoPadding};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

use crate::AppId;

/// PKCS#7 runs over blocks of 32 bytes here, twice those of AES: an unpadder that stops at 16
/// refuses half of all messages.
const PADDING_BLOCK: usize = 32;
const RANDOM_LEN: usize = 16;
const HEADER_LEN: usize = RANDOM_LEN + size_of::<u32>();

/// The 43rd character holds two bits more than the key needs, and WeChat's generator leaves them
/// set.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireNone),
);

/// The key of message encryption as the console shows it: 43 characters of base64.
#[derive(Clone)]
pub struct EncodingAESKey([u8; 32]);

/// A text that is no [`EncodingAESKey`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an EncodingAESKey is 43 characters of base64, without padding")]
pub struct InvalidEncodingAESKey;

impl FromStr for EncodingAESKey {
    type Err = InvalidEncodingAESKey;

    fn from_str(text: &str) -> Result<Self, InvalidEncodingAESKey> {
        let bytes = KEY_BASE64.decode(text).map_err(|_| InvalidEncodingAESKey)?;
        bytes
            .try_into()
            .map(Self)
            .map_err(|_| InvalidEncodingAESKey)
    }
}

impl fmt::Debug for EncodingAESKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EncodingAESKey(redacted)")
    }
}

/// Why a callback's cipher text could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptError {
    /// `Encrypt` is not base64.
    #[error("the cipher text is not base64")]
    Base64,
    /// The cipher text is empty or no whole number of AES blocks.
    #[error("the cipher text has a wrong length")]
    Length,
    /// The padding is wrong: another key, or damaged data.
    #[error("the padding is wrong: another EncodingAESKey, or damaged data")]
    Padding,
    /// The plain text is shorter than it says.
    #[error("the plain text is shorter than it says")]
    Truncated,
    /// The message was made for another app.
    #[error("the message is for another app")]
    AppId,
}

/// Encrypts and decrypts the callbacks of one app under one key.
///
/// A decrypted message is authentic only if its `msg_signature` was checked first.
#[derive(Clone)]
pub struct MessageCrypt {
    key: EncodingAESKey,
    app_id: AppId,
}

impl MessageCrypt {
    /// A cipher for `app_id`'s messages.
    pub fn new(key: &EncodingAESKey, app_id: &AppId) -> Self {
        Self {
            key: key.clone(),
            app_id: app_id.clone(),
        }
    }

    /// Decrypts the base64 text of `Encrypt` and checks that the message was made for this app.
    ///
    /// Bytes that are no UTF-8 are replaced: a half emoji in a nickname must not lose the message.
    ///
    /// # Errors
    /// [`CryptError`] for whatever this key and app did not make.
    pub fn decrypt(&self, encrypt: &str) -> Result<String, CryptError> {
        let cipher_text = STANDARD.decode(encrypt).map_err(|_| CryptError::Base64)?;
        if cipher_text.is_empty() {
            return Err(CryptError::Length);
        }
        let padded = cbc::Decryptor::<aes::Aes256>::new(&self.key.0.into(), &self.iv().into())
            .decrypt_padded_vec::<NoPadding>(&cipher_text)
            .map_err(|_| CryptError::Length)?;
        let plain = unpad(&padded)?;

        let (header, rest) = plain
            .split_at_checked(HEADER_LEN)
            .ok_or(CryptError::Truncated)?;
        let (_random, length) = header
            .split_last_chunk::<4>()
            .ok_or(CryptError::Truncated)?;
        let length =
            usize::try_from(u32::from_be_bytes(*length)).map_err(|_| CryptError::Truncated)?;
        let (message, app_id) = rest.split_at_checked(length).ok_or(CryptError::Truncated)?;
        if app_id != self.app_id.as_str().as_bytes() {
            return Err(CryptError::AppId);
        }
        Ok(String::from_utf8_lossy(message).into_owned())
    }

    /// Encrypts `message` to the base64 text of `Encrypt`.
    pub fn encrypt(&self, message: &str) -> String {
        self.encrypt_with_random(message, rand::random())
    }

    /// [`encrypt`](Self::encrypt) with a given random prefix, which test vectors need.
    pub fn encrypt_with_random(&self, message: &str, random: [u8; RANDOM_LEN]) -> String {
        // A message outgrows the length field at 4 GiB only; callbacks are bounded far below.
        let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
        let mut plain = Vec::with_capacity(
            HEADER_LEN + message.len() + self.app_id.as_str().len() + PADDING_BLOCK,
        );
        plain.extend_from_slice(&random);
        plain.extend_from_slice(&length.to_be_bytes());
        plain.extend_from_slice(message.as_bytes());
        plain.extend_from_slice(self.app_id.as_str().as_bytes());
        pad(&mut plain);
        let cipher_text = cbc::Encryptor::<aes::Aes256>::new(&self.key.0.into(), &self.iv().into())
            .encrypt_padded_vec::<NoPadding>(&plain);
        STANDARD.encode(cipher_text)
    }

    /// The IV is the key's first half.
    fn iv(&self) -> [u8; 16] {
        let mut iv = [0; 16];
        iv.iter_mut()
            .zip(self.key.0)
            .for_each(|(to, from)| *to = from);
        iv
    }
}

impl fmt::Debug for MessageCrypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageCrypt")
            .field("app_id", &self.app_id)
            .finish_non_exhaustive()
    }
}

fn pad(plain: &mut Vec<u8>) {
    let missing = PADDING_BLOCK - plain.len() % PADDING_BLOCK;
    plain.resize(plain.len() + missing, missing as u8);
}

fn unpad(padded: &[u8]) -> Result<&[u8], CryptError> {
    let count = *padded.last().ok_or(CryptError::Padding)?;
    let length = padded
        .len()
        .checked_sub(usize::from(count))
        .ok_or(CryptError::Padding)?;
    let (plain, padding) = padded.split_at_checked(length).ok_or(CryptError::Padding)?;
    let whole = (1..=PADDING_BLOCK).contains(&usize::from(count))
        && padding.iter().all(|&byte| byte == count);
    if whole {
        Ok(plain)
    } else {
        Err(CryptError::Padding)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG";

    fn crypt(key: &str, app_id: &str) -> MessageCrypt {
        MessageCrypt::new(&key.parse().unwrap(), &app_id.parse().unwrap())
    }

    /// The cipher text of any plain text, well-formed or not.
    fn encrypt_raw(plain: &[u8]) -> String {
        let crypt = crypt(KEY, "wx1");
        let cipher_text =
            cbc::Encryptor::<aes::Aes256>::new(&crypt.key.0.into(), &crypt.iv().into())
                .encrypt_padded_vec::<NoPadding>(plain);
        STANDARD.encode(cipher_text)
    }

    fn padded(mut plain: Vec<u8>) -> Vec<u8> {
        pad(&mut plain);
        plain
    }

    #[test]
    fn keys_may_carry_trailing_bits() {
        for last in ['A', 'B', 'C', 'D'] {
            let key = format!("{}{last}", &KEY[..42]);
            assert!(key.parse::<EncodingAESKey>().is_ok(), "{key}");
        }
    }

    #[test]
    fn keys_of_another_length_or_alphabet_are_refused() {
        for key in [
            "",
            &KEY[..42],
            &format!("{KEY}="),
            &format!("{KEY}A"),
            &KEY.replace('a', "_"),
        ] {
            assert!(key.parse::<EncodingAESKey>().is_err(), "{key}");
        }
    }

    #[test]
    fn keys_are_never_shown() {
        let key: EncodingAESKey = KEY.parse().unwrap();
        assert_eq!(format!("{key:?}"), "EncodingAESKey(redacted)");
        let shown = format!("{:?}", crypt(KEY, "wx1"));
        assert_eq!(shown, "MessageCrypt { app_id: AppId(wx1), .. }");
    }

    #[test]
    fn every_padding_length_is_used_and_taken_off() {
        let crypt = crypt(KEY, "wx1");
        for length in 0..=64 {
            let message = "x".repeat(length);
            let encrypted = crypt.encrypt(&message);
            assert_eq!(
                STANDARD.decode(&encrypted).unwrap().len() % PADDING_BLOCK,
                0
            );
            assert_eq!(crypt.decrypt(&encrypted).unwrap(), message);
        }
    }

    #[test]
    fn a_message_for_another_app_is_refused() {
        for other in ["wx2", "wx", "wx11"] {
            assert_eq!(
                crypt(KEY, "wx1").decrypt(&crypt(KEY, other).encrypt("hi")),
                Err(CryptError::AppId)
            );
        }
    }

    #[test]
    fn the_random_prefix_differs_each_time() {
        let crypt = crypt(KEY, "wx1");
        assert_ne!(crypt.encrypt("hi"), crypt.encrypt("hi"));
    }

    #[test]
    fn damage_is_told_apart() {
        let crypt = crypt(KEY, "wx1");
        assert_eq!(crypt.decrypt("?"), Err(CryptError::Base64));
        assert_eq!(crypt.decrypt(""), Err(CryptError::Length));
        assert_eq!(crypt.decrypt("AAAA"), Err(CryptError::Length));
        for last in [0, 33, 255] {
            assert_eq!(
                crypt.decrypt(&encrypt_raw(&[last; 32])),
                Err(CryptError::Padding),
                "{last}"
            );
        }
        // A padding of 32 before which there is nothing, and of 20 where only 16 bytes are.
        assert_eq!(
            crypt.decrypt(&encrypt_raw(&[32; 32])),
            Err(CryptError::Truncated)
        );
        assert_eq!(
            crypt.decrypt(&encrypt_raw(&[20; 16])),
            Err(CryptError::Padding)
        );
        let too_long = [&[b'r'; 16][..], &u32::MAX.to_be_bytes(), b"hiwx1"].concat();
        assert_eq!(
            crypt.decrypt(&encrypt_raw(&padded(too_long))),
            Err(CryptError::Truncated)
        );
        let other_key = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C";
        assert!(
            MessageCrypt::new(&other_key.parse().unwrap(), &crypt.app_id)
                .decrypt(&crypt.encrypt("hi"))
                .is_err()
        );
    }

    #[test]
    fn broken_utf8_does_not_lose_a_message() {
        let plain = [&[b'r'; 16][..], &3u32.to_be_bytes(), b"a\xf0\x9fwx1"].concat();
        assert_eq!(
            crypt(KEY, "wx1")
                .decrypt(&encrypt_raw(&padded(plain)))
                .unwrap(),
            "a\u{fffd}"
        );
    }

    proptest! {
        #[test]
        fn what_is_encrypted_decrypts(message in any::<String>(), random in any::<[u8; 16]>()) {
            let crypt = crypt(KEY, "wxb11529c136998cb6");
            prop_assert_eq!(crypt.decrypt(&crypt.encrypt_with_random(&message, random)), Ok(message));
        }

        #[test]
        fn garbage_never_panics(text in any::<String>(), bytes in any::<Vec<u8>>(), blocks in any::<Vec<[u8; 16]>>()) {
            let crypt = crypt(KEY, "wx1");
            prop_assert!(crypt.decrypt(&text).is_err());
            prop_assert!(crypt.decrypt(&STANDARD.encode(bytes)).is_err());
            let _ = crypt.decrypt(&encrypt_raw(&blocks.concat()));
            let _ = crypt.decrypt(&encrypt_raw(&padded(blocks.concat())));
            let _ = text.parse::<EncodingAESKey>();
        }
    }
}
