//! page_size and page_token of the RPCs that list.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use tonic::Status;
use uuid::Uuid;

use crate::error::Error;

/// Entries of a page that names no size, and the most of any page.
const DEFAULT: u64 = 100;
const MAX: u64 = 1_000;

/// How many entries a page has at most.
pub(super) fn size(page_size: i32) -> Result<u64, Status> {
    match u64::try_from(page_size) {
        Ok(0) => Ok(DEFAULT),
        Ok(size) if size <= MAX => Ok(size),
        _ => {
            let problem = format!("must be from 1 to {MAX}, or 0");
            Err(Error::Invalid(vec![("page_size".to_owned(), problem)]).into())
        }
    }
}

/// Below which entry a page begins.
pub(super) fn below(page_token: &str) -> Result<Option<Uuid>, Status> {
    if page_token.is_empty() {
        return Ok(None);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(page_token).ok();
    let id = bytes.and_then(|bytes| Uuid::from_slice(&bytes).ok());
    id.map(Some).ok_or_else(|| {
        let problem = "must be the next_page_token of the call before";
        Error::Invalid(vec![("page_token".to_owned(), problem.to_owned())]).into()
    })
}

/// What leads to the page below this entry; empty without one.
pub(super) fn token(last: Option<Uuid>) -> String {
    last.map(|last| BASE64_URL_SAFE_NO_PAD.encode(last.as_bytes()))
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
        fn a_token_leads_back_to_its_entry(id: u128) {
            let id = Some(Uuid::from_u128(id));
            prop_assert_eq!(below(&token(id)).unwrap(), id);
        }

        #[test]
        fn any_text_is_a_token_or_refused(text in ".{0,40}") {
            let _ = below(&text);
        }
    }
}
