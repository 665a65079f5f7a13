//! page_size and page_token of the RPCs that list.

use std::{fmt::Display, str::FromStr};

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

use crate::error::Error;

/// Entries of a page that names no size, and the most of any page.
const DEFAULT: usize = 100;
const MAX: usize = 1_000;

/// How many entries a page has at most.
pub(super) fn size(page_size: i32) -> Result<usize, Error> {
    match usize::try_from(page_size) {
        Ok(0) => Ok(DEFAULT),
        Ok(size) if size <= MAX => Ok(size),
        _ => {
            let problem = format!("must be from 1 to {MAX}, or 0");
            Err(Error::field("page_size", problem))
        }
    }
}

/// After which entry a page begins.
pub(super) fn after<T: FromStr>(page_token: &str) -> Result<Option<T>, Error> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let text = BASE64_URL_SAFE_NO_PAD.decode(page_token).ok();
    let text = text.and_then(|bytes| String::from_utf8(bytes).ok());
    let entry = text.and_then(|text| text.parse().ok());
    let problem = "must be the next_page_token of the page before";
    entry
        .map(Some)
        .ok_or_else(|| Error::field("page_token", problem))
}

/// What leads to the page after this entry; empty without one.
pub(super) fn token(last: Option<impl Display>) -> String {
    last.map(|last| BASE64_URL_SAFE_NO_PAD.encode(last.to_string()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(size(0).unwrap(), 100);
        assert_eq!(size(1_000).unwrap(), 1_000);
        for wrong in [-1, 1_001, i32::MAX, i32::MIN] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_token_leads_back_to_its_entry(number: u64) {
            let token = token(Some(number));
            prop_assert_eq!(after::<u64>(&token).unwrap(), Some(number));
        }

        #[test]
        fn any_text_is_a_token_or_refused(text in ".{0,40}") {
            let _ = after::<u64>(&text);
        }
    }
}
