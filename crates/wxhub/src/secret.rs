//! Secrets on a person's screen.

/// A secret, as far as it may be shown: enough to see that two are the same.
pub(crate) fn shortened(secret: &str) -> String {
    let head: String = secret.chars().take(6).collect();
    format!("{head}… ({} characters)", secret.chars().count())
}
