//! Codes that a user's client hands to a server: five minutes, one use.

use std::time::Duration;

use crate::{bounded::BoundedMap, clock::Moment, error::ApiError};

/// How long a code may wait for its exchange.
const LIFE: Duration = Duration::from_secs(300);
/// Codes that are remembered.
const REMEMBERED: usize = 10_000;

/// The codes of one kind of one account, and what each stands for.
pub(crate) struct Codes<T>(BoundedMap<Code<T>>);

struct Code<T> {
    meaning: T,
    expires: Moment,
    used: bool,
}

impl<T> Default for Codes<T> {
    fn default() -> Self {
        Self(BoundedMap::new(REMEMBERED))
    }
}

impl<T: Clone> Codes<T> {
    pub(crate) fn issue(&mut self, meaning: T, now: Moment) -> String {
        let code = mint_code();
        let issued = Code {
            meaning,
            expires: now + LIFE,
            used: false,
        };
        self.0.insert(code.clone(), issued);
        code
    }

    /// What the code stands for. 40029 for one that is unknown or older than five minutes, 40163 for a used one.
    pub(crate) fn redeem(&mut self, code: &str, now: Moment) -> Result<T, ApiError> {
        let issued = self.0.get_mut(code).ok_or(ApiError::INVALID_CODE)?;
        if issued.used {
            return Err(ApiError::CODE_USED);
        }
        if now >= issued.expires {
            return Err(ApiError::INVALID_CODE);
        }
        issued.used = true;
        Ok(issued.meaning.clone())
    }

    /// Whether the code was issued here, whatever became of it.
    pub(crate) fn knows(&self, code: &str) -> bool {
        self.0.get(code).is_some()
    }
}

pub(crate) fn mint_code() -> String {
    format!("{:032x}", rand::random::<u128>())
}
