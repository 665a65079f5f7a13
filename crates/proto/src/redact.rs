//! `Debug` of the messages that carry a secret or a person's data: all but that, so that a logged request leaks nothing.
//! build.rs lists the same messages.

use std::fmt::{Debug, Formatter, Result};

use crate::{auth, token};

/// Stands where a secret was.
const REDACTED: &str = "[redacted]";

/// The fields that are shown, then after the semicolon those that are not.
macro_rules! redact {
    ($($package:ident::$message:ident { $($shown:ident),*; $($secret:ident),+ })*) => {
        $(
            impl Debug for $package::v1::$message {
                fn fmt(&self, f: &mut Formatter<'_>) -> Result {
                    let mut message = f.debug_struct(stringify!($message));
                    $(message.field(stringify!($shown), &self.$shown);)*
                    $(message.field(stringify!($secret), &REDACTED);)+
                    message.finish()
                }
            }
        )*

        /// Each of them, printed with this text in every field that is not shown.
        #[cfg(test)]
        fn printed(secret: &str) -> Vec<String> {
            vec![$({
                let mut message = $package::v1::$message::default();
                $(message.$secret = secret.to_owned();)+
                format!("{message:?}")
            }),*]
        }
    };
}

redact! {
    token::AccessToken { app_id, expire_time, refresh_time, use_until, version; token }
    token::Ticket { app_id, expire_time, refresh_time, version; ticket }
    auth::Session { expire_time, user; session_token }
    auth::LoginRequest { app_id, nickname; js_code }
    auth::VerifySessionRequest { ; session_token }
    auth::RevokeSessionRequest { session_id; session_token }
    auth::ExchangeTicketRequest { host; ticket }
    auth::DecryptUserDataRequest { iv; session_token, encrypted_data, raw_data, signature }
    auth::DecryptUserDataResponse { ; json }
    auth::GetPhoneNumberRequest { app_id, open_id; code }
    auth::GetPhoneNumberResponse { country_code; phone_number, pure_phone_number }
    auth::CreateAccountRequest { account; password }
    auth::SetAccountPasswordRequest { account; password }
    auth::BindLink { expire_time; url, qr_svg }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_carries_no_secret() {
        for text in printed("s3cr3t") {
            assert!(!text.contains("s3cr3t"), "{text}");
            assert!(text.contains(REDACTED), "{text}");
        }
    }
}
