//! What a mini program's user hands to its server: login codes, and the form ids of submitted forms.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};

use crate::{
    bounded::BoundedMap,
    clock::Moment,
    code::{Codes, mint_code},
    error::ApiError,
};

/// How long a form id lasts.
const FORM_LIFE: Duration = Duration::from_secs(7 * 86_400);
/// Form ids that are remembered.
const REMEMBERED: usize = 10_000;

/// Signs and encrypts a user's data: base64 of 16 bytes. One is valid for a user at a time.
pub(crate) type SessionKey = String;

pub(crate) fn mint_session_key() -> SessionKey {
    BASE64_STANDARD.encode(rand::random::<[u8; 16]>())
}

/// The login codes of one mini program, and whose they are.
pub(crate) type JsCodes = Codes<String>;

/// What a user gave, good for one message until it expires.
struct FormId {
    open_id: String,
    expires: Moment,
    used: bool,
}

/// The form ids of one mini program.
pub(crate) struct FormIds(BoundedMap<FormId>);

impl Default for FormIds {
    fn default() -> Self {
        Self(BoundedMap::new(REMEMBERED))
    }
}

impl FormIds {
    pub(crate) fn issue(&mut self, open_id: &str, now: Moment) -> String {
        let form_id = mint_code();
        let issued = FormId {
            open_id: open_id.to_owned(),
            expires: now + FORM_LIFE,
            used: false,
        };
        self.0.insert(form_id.clone(), issued);
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
        let issued = self.0.get_mut(form_id).ok_or(ApiError::INVALID_FORM_ID)?;
        if issued.open_id != open_id || now >= issued.expires {
            return Err(ApiError::INVALID_FORM_ID);
        }
        if issued.used {
            return Err(ApiError::FORM_ID_USED);
        }
        issued.used = true;
        Ok(())
    }
}
