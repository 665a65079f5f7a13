//! Public identifiers: safe to log, compared byte by byte (openids differ in case).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A text that cannot be the identifier it was taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be 1 to {max} {alphabet}")]
pub struct InvalidId {
    kind: &'static str,
    max: usize,
    alphabet: &'static str,
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, max $max:literal, $alphabet:literal, $accepts:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The identifier as WeChat writes it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                let accepts: fn(u8) -> bool = $accepts;
                if (1..=$max).contains(&text.len()) && text.bytes().all(accepts) {
                    Ok(Self(text))
                } else {
                    Err(InvalidId { kind: $kind, max: $max, alphabet: $alphabet })
                }
            }
        }

        impl TryFrom<&str> for $name {
            type Error = InvalidId;

            fn try_from(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text.to_owned())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Self::try_from(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

id! {
    /// Names one official account or mini program, for example `wx0000000000000001`.
    AppId, "an app id", max 64, "ASCII letters, digits, `-` or `_`",
    |byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_'
}
id! {
    /// Names one user within one app. Opaque and case-sensitive.
    OpenId, "an openid", max 128, "visible ASCII characters",
    |byte| byte.is_ascii_graphic()
}
id! {
    /// Names one user across all apps bound to one open-platform account. Opaque and
    /// case-sensitive.
    UnionId, "a unionid", max 128, "visible ASCII characters",
    |byte| byte.is_ascii_graphic()
}
id! {
    /// Names one sent or received message. Text, since live values exceed 2^53 and some hold
    /// letters.
    MsgId, "a message id", max 128, "visible ASCII characters",
    |byte| byte.is_ascii_graphic()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_keep_their_text() {
        let id: OpenId = "oGZUI0egBJY1zhBYw2KhdUfwVJJE".parse().unwrap();
        assert_eq!(id.to_string(), "oGZUI0egBJY1zhBYw2KhdUfwVJJE");
        assert_eq!(format!("{id:?}"), "OpenId(oGZUI0egBJY1zhBYw2KhdUfwVJJE)");
        assert_eq!(
            serde_json::to_string(&id).unwrap(),
            "\"oGZUI0egBJY1zhBYw2KhdUfwVJJE\""
        );
    }

    #[test]
    fn empty_long_and_unprintable_ids_are_refused() {
        assert!(AppId::try_from("").is_err());
        assert!(AppId::try_from("wx 1").is_err());
        assert!(AppId::try_from("wx1&secret=x").is_err());
        assert!(AppId::try_from("x".repeat(65)).is_err());
        assert!(OpenId::try_from("o\n1").is_err());
        assert!(serde_json::from_str::<AppId>("\"../x\"").is_err());
        assert_eq!(
            AppId::try_from("").unwrap_err().to_string(),
            "an app id must be 1 to 64 ASCII letters, digits, `-` or `_`"
        );
    }
}
