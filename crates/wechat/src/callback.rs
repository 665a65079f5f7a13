//! What arrives at a callback URL (消息推送) and what goes back.
//!
//! Verify the signature of what [`Envelope::parse`] gives first, decrypt, and only then read it as
//! [`Inbound`].

mod inbound;
mod reply;
mod xml;

use serde_json::Value;

pub use self::{
    inbound::Inbound,
    reply::{Reply, render_encrypted},
};

/// The largest body taken, in bytes; WeChat's own stay below a tenth of it.
pub const MAX_BODY: usize = 64 * 1024;

/// How an account's pushes and their replies are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Official accounts, and mini programs by choice.
    Xml,
    /// Mini programs by choice.
    Json,
}

/// Why a push could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Larger than [`MAX_BODY`].
    #[error("the body exceeds {MAX_BODY} bytes")]
    TooLarge,
    /// Neither an XML element nor a JSON object.
    #[error("the body is neither XML nor a JSON object")]
    Format,
    /// Broken XML.
    #[error("the body is no well-formed XML")]
    Xml,
    /// Broken JSON, or nested too deep.
    #[error("the body is no valid JSON")]
    Json,
    /// A document type or an entity of its own: WeChat sends neither, attackers do.
    #[error("the body declares or uses entities")]
    Entity,
    /// Elements nested too deep.
    #[error("the body is nested too deep")]
    TooDeep,
    /// A field that every push has is missing or of a wrong type.
    #[error("`{0}` is missing or of a wrong type")]
    Field(&'static str),
}

/// A push as it arrived, before anything in it is trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// How it is written, and how the reply must be.
    pub format: Format,
    /// The cipher text, in safe and compatible mode.
    pub encrypt: Option<String>,
    /// Whether the message is there in the clear: plain and compatible mode.
    pub plain: bool,
}

impl Envelope {
    /// Tells what arrived.
    ///
    /// # Errors
    /// [`ParseError`] when the body is too large, malformed, nested too deep or declares entities.
    pub fn parse(body: &[u8]) -> Result<Self, ParseError> {
        let (format, fields) = fields(body)?;
        let encrypt = match fields.get("Encrypt") {
            None => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => return Err(ParseError::Field("Encrypt")),
        };
        let plain = fields.get("MsgType").is_some();
        Ok(Self {
            format,
            encrypt,
            plain,
        })
    }
}

/// The body's fields as a JSON object, whatever it is written in.
fn fields(body: &[u8]) -> Result<(Format, Value), ParseError> {
    if body.len() > MAX_BODY {
        return Err(ParseError::TooLarge);
    }
    let text = crate::json::text_lossy(body);
    let text = text.trim();
    if text.starts_with('<') {
        Ok((Format::Xml, xml::fields(text)?))
    } else if text.starts_with('{') {
        Ok((
            Format::Json,
            crate::json::value(text.as_bytes()).ok_or(ParseError::Json)?,
        ))
    } else {
        Err(ParseError::Format)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(body: &str) -> Envelope {
        Envelope::parse(body.as_bytes()).unwrap()
    }

    #[test]
    fn the_three_modes_are_told_apart() {
        for (format, plain, compatible, safe) in [
            (
                Format::Xml,
                "<xml><ToUserName>gh_1</ToUserName><MsgType>text</MsgType></xml>",
                "<xml><ToUserName>gh_1</ToUserName><MsgType>text</MsgType><Encrypt>E</Encrypt></xml>",
                "<xml><ToUserName>gh_1</ToUserName><Encrypt><![CDATA[E]]></Encrypt></xml>",
            ),
            (
                Format::Json,
                r#"{"ToUserName":"gh_1","MsgType":"text"}"#,
                r#"{"ToUserName":"gh_1","MsgType":"text","Encrypt":"E"}"#,
                r#"{"ToUserName":"gh_1","Encrypt":"E"}"#,
            ),
        ] {
            let encrypt = Some("E".to_owned());
            assert_eq!(
                envelope(plain),
                Envelope {
                    format,
                    encrypt: None,
                    plain: true
                }
            );
            assert_eq!(
                envelope(compatible),
                Envelope {
                    format,
                    encrypt: encrypt.clone(),
                    plain: true
                }
            );
            assert_eq!(
                envelope(safe),
                Envelope {
                    format,
                    encrypt,
                    plain: false
                }
            );
        }
    }

    #[test]
    fn a_byte_order_mark_and_white_space_are_skipped() {
        assert!(envelope("\u{feff} \n{\"MsgType\":\"text\"}\n").plain);
        assert!(envelope("\u{feff}\n<xml><MsgType>text</MsgType></xml>").plain);
    }

    #[test]
    fn two_cipher_texts_are_refused() {
        let two = "<xml><Encrypt>a</Encrypt><Encrypt>b</Encrypt></xml>";
        assert_eq!(
            Envelope::parse(two.as_bytes()),
            Err(ParseError::Field("Encrypt"))
        );
    }

    #[test]
    fn other_bodies_are_refused() {
        for (body, error) in [
            ("", ParseError::Format),
            ("[]", ParseError::Format),
            ("success", ParseError::Format),
            ("{", ParseError::Json),
            ("<xml", ParseError::Xml),
            (
                "<!DOCTYPE xml><xml><MsgType>text</MsgType></xml>",
                ParseError::Entity,
            ),
        ] {
            assert_eq!(Envelope::parse(body.as_bytes()), Err(error), "{body}");
        }
    }

    #[test]
    fn bodies_are_taken_up_to_the_limit() {
        let body = |length: usize| format!("<xml><a>{}</a></xml>", "x".repeat(length - 18));
        assert!(Envelope::parse(body(MAX_BODY).as_bytes()).is_ok());
        assert_eq!(
            Envelope::parse(body(MAX_BODY + 1).as_bytes()),
            Err(ParseError::TooLarge)
        );
    }
}
