//! What a mini program's user hands to its server: login codes, and the form ids of submitted forms.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{bounded::BoundedMap, clock::Moment, error::ApiError};

/// How long a login code may wait for its exchange.
const CODE_LIFE: Duration = Duration::from_secs(300);
/// How long a form id lasts.
const FORM_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Codes and form ids that are remembered, each.
const REMEMBERED: usize = 10_000;

/// Signs and encrypts a user's data: base64 of 16 bytes. One is valid for a user at a time.
pub(crate) type SessionKey = String;

pub(crate) fn mint_session_key() -> SessionKey {
    BASE64_STANDARD.encode(rand::random::<[u8; 16]>())
}

/// Something that a user gave, good for one use until it expires.
struct Voucher {
    open_id: String,
    expires: Moment,
    used: bool,
}

/// The login codes of one mini program.
pub(crate) struct JsCodes(BoundedMap<Voucher>);

impl Default for JsCodes {
    fn default() -> Self {
        Self(BoundedMap::new(REMEMBERED))
    }
}

impl JsCodes {
    pub(crate) fn issue(&mut self, open_id: &str, now: Moment) -> String {
        let code = hex(rand::random::<[u8; 16]>());
        let voucher = Voucher {
            open_id: open_id.to_owned(),
            expires: now + CODE_LIFE,
            used: false,
        };
        self.0.insert(code.clone(), voucher);
        code
    }

    /// The user whose code it is. 40029 for a code that is unknown or older than five minutes, 40163 for a used one.
    pub(crate) fn redeem(&mut self, code: &str, now: Moment) -> Result<String, ApiError> {
        let voucher = self.0.get_mut(code).ok_or(ApiError::INVALID_CODE)?;
        if voucher.used {
            return Err(ApiError::CODE_USED);
        }
        if now >= voucher.expires {
            return Err(ApiError::INVALID_CODE);
        }
        voucher.used = true;
        Ok(voucher.open_id.clone())
    }
}

/// The form ids of one mini program.
pub(crate) struct FormIds(BoundedMap<Voucher>);

impl Default for FormIds {
    fn default() -> Self {
        Self(BoundedMap::new(REMEMBERED))
    }
}

impl FormIds {
    pub(crate) fn issue(&mut self, open_id: &str, now: Moment) -> String {
        let form_id = hex(rand::random::<[u8; 16]>());
        let voucher = Voucher {
            open_id: open_id.to_owned(),
            expires: now + FORM_LIFE,
            used: false,
        };
        self.0.insert(form_id.clone(), voucher);
        form_id
    }

    /// Spends a form id on a message to `open_id`: 41028 when it is unknown, older than seven days or another user's,
    /// 41029 when it is spent.
    pub(crate) fn spend(
        &mut self,
        form_id: &str,
        open_id: &str,
        now: Moment,
    ) -> Result<(), ApiError> {
        let voucher = self.0.get_mut(form_id).ok_or(ApiError::INVALID_FORM_ID)?;
        if voucher.open_id != open_id || now >= voucher.expires {
            return Err(ApiError::INVALID_FORM_ID);
        }
        if voucher.used {
            return Err(ApiError::FORM_ID_USED);
        }
        voucher.used = true;
        Ok(())
    }
}

fn hex(bytes: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(bytes))
}
