//! Values that let their holder act as an app or a user: never printed, wiped when dropped,
//! compared in constant time.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use subtle::ConstantTimeEq;

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(SecretString);

        impl $name {
            /// Takes the text as WeChat gave it.
            pub fn new(text: impl Into<String>) -> Self {
                Self(SecretString::from(text.into()))
            }

            /// The text itself, for the wire or a sealed store and nothing else.
            pub fn expose(&self) -> &str {
                self.0.expose_secret()
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self::new(text)
            }
        }

        impl PartialEq for $name {
            fn eq(&self, other: &Self) -> bool {
                self.expose().as_bytes().ct_eq(other.expose().as_bytes()).into()
            }
        }

        impl Eq for $name {}

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(redacted)"))
            }
        }
    };
}

secret! {
    /// Authorises calls on behalf of an app; up to 512 characters.
    AccessToken
}
secret! {
    /// Authorises calls on behalf of one user who consented in web OAuth; unrelated to
    /// [`AccessToken`].
    UserToken
}
secret! {
    /// Renews a [`UserToken`]; lives 30 days.
    RefreshToken
}
secret! {
    /// Signs pages (`jsapi`) or cards (`wx_card`) of an app.
    Ticket
}
secret! {
    /// Signs and encrypts one user's data in a mini program: base64 of 16 bytes, which must not
    /// leave the server.
    SessionKey
}
secret! {
    /// An app's password towards WeChat.
    AppSecret
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_the_type_and_nothing_else() {
        assert_eq!(
            format!("{:?}", AccessToken::new("50_abc")),
            "AccessToken(redacted)"
        );
        assert_eq!(
            format!("{:#?}", Some(AppSecret::new("hunter2"))),
            "Some(\n    AppSecret(redacted),\n)"
        );
    }

    #[test]
    fn equality_is_by_content() {
        assert_eq!(Ticket::new("a"), Ticket::new("a"));
        assert_ne!(Ticket::new("a"), Ticket::new("b"));
        assert_ne!(Ticket::new("a"), Ticket::new("ab"));
    }
}
