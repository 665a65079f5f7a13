//! Sealing: session keys, tokens and tickets are encrypted before they leave the process for Redis.
//!
//! AES-256-GCM under a master key. A sealed text is `v1.<key id>.<base64 of nonce and ciphertext>`; the context (what
//! the secret is and whose) is authenticated with it, so that a value moved to another key's place does not open.

use std::sync::Arc;

use aes_gcm::{
    Aes256Gcm, KeyInit as _,
    aead::{Aead as _, Payload},
};
use base64::{Engine as _, prelude::BASE64_STANDARD, prelude::BASE64_URL_SAFE_NO_PAD};
use rand::Rng as _;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

/// Bytes of a GCM nonce.
const NONCE: usize = 12;

/// Seals and opens secrets under `WXHUB_MASTER_KEY`. The first key seals; all of them open, so that keys rotate by
/// appending the new one everywhere, then putting it in front, and dropping the old one when nothing it sealed is left.
#[derive(Clone)]
pub struct Sealer {
    keys: Arc<(Key, Vec<Key>)>,
}

struct Key {
    id: String,
    cipher: Aes256Gcm,
}

/// Why `WXHUB_MASTER_KEY` is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The list holds no key.
    #[error("it holds no key")]
    Empty,
    /// One entry is no base64 of 32 bytes.
    #[error("key {position} is not the base64 of 32 bytes")]
    Malformed {
        /// Its place in the list, from 1.
        position: usize,
    },
}

/// Why a sealed text does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is no sealed text.
    #[error("not a sealed value")]
    Malformed,
    /// The key that sealed it is not in `WXHUB_MASTER_KEY` any more.
    #[error("sealed with a key that WXHUB_MASTER_KEY does not hold")]
    UnknownKey,
    /// It was altered, or sealed for something else.
    #[error("altered, or sealed for something else")]
    Forged,
}

impl Sealer {
    /// Reads a comma-separated list of keys, each 32 bytes in base64.
    ///
    /// # Errors
    /// When the list is empty or one of its entries is malformed; the error does not repeat it.
    pub fn from_keys(list: &SecretString) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (index, text) in list
            .expose_secret()
            .split(',')
            .map(str::trim)
            .filter(|text| !text.is_empty())
            .enumerate()
        {
            let malformed = KeyError::Malformed {
                position: index + 1,
            };
            let bytes = BASE64_STANDARD.decode(text).ok();
            let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            keys.push(Key::new(bytes.ok_or(malformed)?));
        }
        Self::new(keys).ok_or(KeyError::Empty)
    }

    /// A key that nobody else has: for state that lives no longer than this process.
    pub fn ephemeral() -> Self {
        let mut bytes = [0u8; 32];
        rand::rng().fill_bytes(&mut bytes);
        Self {
            keys: Arc::new((Key::new(bytes), Vec::new())),
        }
    }

    fn new(mut keys: Vec<Key>) -> Option<Self> {
        if keys.is_empty() {
            return None;
        }
        let first = keys.remove(0);
        Some(Self {
            keys: Arc::new((first, keys)),
        })
    }

    fn sealing_key(&self) -> &Key {
        &self.keys.0
    }

    fn keys(&self) -> impl Iterator<Item = &Key> {
        std::iter::once(&self.keys.0).chain(&self.keys.1)
    }

    /// Encrypts `secret`; only [`Sealer::open`] with the same `context` gives it back.
    #[expect(
        clippy::expect_used,
        reason = "GCM refuses only messages of over 64 GiB"
    )]
    pub fn seal(&self, context: &str, secret: &[u8]) -> String {
        let mut nonce = [0u8; NONCE];
        rand::rng().fill_bytes(&mut nonce);
        let payload = Payload {
            msg: secret,
            aad: context.as_bytes(),
        };
        let key = self.sealing_key();
        let ciphertext = key
            .cipher
            .encrypt(&nonce.into(), payload)
            .expect("a secret fits into one GCM message");
        let sealed = [nonce.as_slice(), &ciphertext].concat();
        format!("v1.{}.{}", key.id, BASE64_URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Decrypts what [`Sealer::seal`] made.
    ///
    /// # Errors
    /// When the text is malformed or altered, was sealed for another context, or by a key that is not held.
    pub fn open(&self, context: &str, sealed: &str) -> Result<Vec<u8>, OpenError> {
        let mut parts = sealed.splitn(3, '.');
        let (Some("v1"), Some(id), Some(body)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(OpenError::Malformed);
        };
        let key = self
            .keys()
            .find(|key| key.id == id)
            .ok_or(OpenError::UnknownKey)?;
        let bytes = BASE64_URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|_| OpenError::Malformed)?;
        let (nonce, msg) = bytes
            .split_first_chunk::<NONCE>()
            .ok_or(OpenError::Malformed)?;
        let aad = context.as_bytes();
        key.cipher
            .decrypt(&(*nonce).into(), Payload { msg, aad })
            .map_err(|_| OpenError::Forged)
    }

    /// Opens a sealed text that must be UTF-8.
    ///
    /// # Errors
    /// As [`Sealer::open`]; text that is not UTF-8 counts as forged.
    pub fn open_text(&self, context: &str, sealed: &str) -> Result<String, OpenError> {
        String::from_utf8(self.open(context, sealed)?).map_err(|_| OpenError::Forged)
    }
}

impl Key {
    fn new(bytes: [u8; 32]) -> Self {
        let cipher = Aes256Gcm::new(&bytes.into());
        // Names the key without telling it.
        let mut id = hex::encode(Sha256::digest(bytes));
        id.truncate(8);
        Self { id, cipher }
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids: Vec<_> = self.keys().map(|key| &key.id).collect();
        f.debug_struct("Sealer").field("keys", &ids).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> String {
        BASE64_STANDARD.encode([byte; 32])
    }

    fn sealer(list: &str) -> Sealer {
        Sealer::from_keys(&SecretString::from(list)).unwrap()
    }

    #[test]
    fn opens_what_it_sealed_for_the_same_context_only() {
        let sealer = sealer(&key(1));
        let sealed = sealer.seal("session_key:wx1:o1", b"secret");
        assert!(!sealed.contains("secret"));
        assert_eq!(
            sealer.open("session_key:wx1:o1", &sealed).unwrap(),
            b"secret"
        );
        assert!(matches!(
            sealer.open("session_key:wx1:o2", &sealed),
            Err(OpenError::Forged)
        ));
    }

    #[test]
    fn sealing_twice_gives_different_texts() {
        let sealer = sealer(&key(1));
        assert_ne!(sealer.seal("c", b"secret"), sealer.seal("c", b"secret"));
    }

    #[test]
    fn a_rotated_key_still_opens_until_it_is_dropped() {
        let sealed = sealer(&key(1)).seal("c", b"secret");
        let rotated = sealer(&format!("{},{}", key(2), key(1)));
        assert_eq!(rotated.open("c", &sealed).unwrap(), b"secret");
        assert!(matches!(
            sealer(&key(2)).open("c", &rotated.seal("c", b"secret")),
            Ok(secret) if secret == b"secret"
        ));
        assert!(matches!(
            sealer(&key(2)).open("c", &sealed),
            Err(OpenError::UnknownKey)
        ));
    }

    #[test]
    fn malformed_keys_are_named_by_position_and_not_repeated() {
        let list = SecretString::from(format!("{},c2hvcnQ=", key(1)));
        let error = Sealer::from_keys(&list).unwrap_err().to_string();
        assert_eq!(error, "key 2 is not the base64 of 32 bytes");
        assert!(matches!(
            Sealer::from_keys(&SecretString::from(" , ")),
            Err(KeyError::Empty)
        ));
    }

    proptest::proptest! {
        #[test]
        fn opening_garbage_never_panics(text in ".{0,200}") {
            let _ = sealer(&key(1)).open("c", &text);
        }
    }
}
