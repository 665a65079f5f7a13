//! Signatures, message encryption (消息加解密) and user data (开放数据).

mod message;
mod user_data;

use sha1::{Digest, Sha1};
use subtle::ConstantTimeEq;

pub use self::{
    message::{CryptError, EncodingAESKey, InvalidEncodingAESKey, MessageCrypt},
    user_data::{
        DataError, decrypt_user_data, session_signature, user_data_signature,
        verify_user_data_signature,
    },
};

/// SHA-1 in lower-case hex of `parts`, sorted by their bytes and joined with nothing between.
///
/// `{token, timestamp, nonce}` is the `signature` of a callback, the same with `Encrypt` its
/// `msg_signature`.
pub fn signature(parts: &[&str]) -> String {
    let mut sorted = parts.to_vec();
    sorted.sort_unstable();
    sha1_hex(&sorted)
}

/// Whether `expected` is the [`signature`] of `parts`, in constant time.
pub fn verify_signature(expected: &str, parts: &[&str]) -> bool {
    signature(parts)
        .as_bytes()
        .ct_eq(expected.as_bytes())
        .into()
}

pub(crate) fn sha1_hex(parts: &[&str]) -> String {
    let mut hash = Sha1::new();
    for part in parts {
        hash.update(part);
    }
    hex::encode(hash.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_sorted_by_bytes() {
        // Digits before upper case before lower case.
        assert_eq!(signature(&["b", "A", "1"]), sha1_hex(&["1", "A", "b"]));
    }

    #[test]
    fn a_signature_verifies_its_own_parts_alone() {
        let signed = signature(&["token", "1", "n"]);
        assert!(verify_signature(&signed, &["n", "token", "1"]));
        assert!(!verify_signature(&signed, &["token", "2", "n"]));
        assert!(!verify_signature(
            &signed.to_uppercase(),
            &["token", "1", "n"]
        ));
        assert!(!verify_signature("", &["token", "1", "n"]));
    }
}
