//! The cipher of callbacks: AES-256-CBC over 16 random bytes, the message's length, the message and the appid.

use std::{fmt, str::FromStr};

use aes::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit, block_padding::NoPadding};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};

use crate::AppId;

/// PKCS#7 runs over blocks of 32 bytes here, twice those of AES: an unpadder that stops at 16 refuses half of all messages.
const PADDING_BLOCK: usize = 32;
const RANDOM_LEN: usize = 16;
const HEADER_LEN: usize = RANDOM_LEN + size_of::<u32>();

/// The 43rd character holds two bits more than the key needs, and WeChat's generator leaves them set.
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
    #[expect(clippy::cast_possible_truncation, reason = "1 to 32")]
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
