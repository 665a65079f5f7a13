//! Every published test vector, each section and case of which must be read: a field or section
//! that no test looks at fails to deserialize, and the cases are counted.

#![expect(clippy::unwrap_used, reason = "tests")]

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use wechat::{
    AppId, SessionKey, Ticket,
    callback::{Envelope, Format, Inbound, render_encrypted},
    crypto::{
        DataError, EncodingAESKey, MessageCrypt, decrypt_user_data, session_signature, signature,
        user_data_signature, verify_signature, verify_user_data_signature,
    },
    jsapi,
};

fn read<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureFile {
    #[serde(rename = "algorithm")]
    _algorithm: String,
    #[serde(rename = "verified")]
    _verified: String,
    cases: Vec<SignatureCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignatureCase {
    name: String,
    token: String,
    timestamp: String,
    nonce: String,
    signature: Option<String>,
    sorted_concat: Option<String>,
    encrypt: Option<String>,
    msg_signature: Option<String>,
    echostr: Option<String>,
    expected_body: Option<String>,
    #[serde(rename = "source")]
    _source: String,
}

#[test]
fn callback_signatures() {
    let file: SignatureFile = read(include_str!("vectors/signature.json"));
    assert_eq!(file.cases.len(), 6);
    for case in file.cases {
        let plain = [case.token.as_str(), &case.timestamp, &case.nonce];
        let (expected, parts) = match (&case.signature, &case.msg_signature, &case.encrypt) {
            (Some(expected), None, None) => (expected, plain.to_vec()),
            (None, Some(expected), Some(encrypt)) => (expected, [&plain[..], &[encrypt]].concat()),
            _ => panic!("{}: neither a plain nor an encrypted case", case.name),
        };
        assert_eq!(&signature(&parts), expected, "{}", case.name);
        assert!(verify_signature(expected, &parts), "{}", case.name);
        assert!(
            !verify_signature(expected, &[&parts[..], &["x"]].concat()),
            "{}",
            case.name
        );
        if let Some(sorted) = &case.sorted_concat {
            assert_eq!(&signature(&[sorted]), expected, "{}", case.name);
        }
        assert_eq!(case.echostr, case.expected_body, "{}", case.name);
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageFile {
    #[serde(rename = "algorithm")]
    _algorithm: String,
    #[serde(rename = "verified")]
    _verified: String,
    #[serde(rename = "notes")]
    _notes: Vec<String>,
    cases: Vec<MessageCase>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Direction {
    Encrypt,
    Decrypt,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MessageCase {
    name: String,
    direction: Direction,
    token: String,
    encoding_aes_key: String,
    timestamp: String,
    nonce: String,
    body: Option<Value>,
    body_xml: Option<String>,
    encrypt: Option<String>,
    msg_signature: Option<String>,
    padding_len: usize,
    random: String,
    msg_len: Option<usize>,
    msg: String,
    appid: String,
    #[serde(rename = "source")]
    _source: String,
}

#[test]
fn message_encryption() {
    let file: MessageFile = read(include_str!("vectors/msg_crypt.json"));
    assert_eq!(file.cases.len(), 5);
    let mut decrypted = 0;
    for case in file.cases {
        let name = &case.name;
        let key: EncodingAESKey = case.encoding_aes_key.parse().unwrap();
        let crypt = MessageCrypt::new(&key, &case.appid.parse().unwrap());
        let random: [u8; 16] = case.random.as_bytes().try_into().unwrap();

        let encrypt = match case.direction {
            Direction::Encrypt => case.encrypt.unwrap(),
            Direction::Decrypt => {
                decrypted += 1;
                let (format, body) = match (case.body, case.body_xml) {
                    (Some(body), None) => (Format::Json, body.to_string()),
                    (None, Some(body)) => (Format::Xml, body),
                    _ => panic!("{name}: one body is needed"),
                };
                let envelope = Envelope::parse(body.as_bytes()).unwrap();
                assert_eq!((envelope.format, envelope.plain), (format, false), "{name}");
                assert_eq!(
                    Inbound::parse(case.msg.as_bytes()).unwrap().format,
                    format,
                    "{name}"
                );
                assert_eq!(case.msg_len, Some(case.msg.len()), "{name}");
                envelope.encrypt.unwrap()
            }
        };
        assert_eq!(crypt.decrypt(&encrypt).unwrap(), case.msg, "{name}");
        assert_eq!(
            crypt.encrypt_with_random(&case.msg, random),
            encrypt,
            "{name}"
        );
        assert_eq!(
            32 - (16 + 4 + case.msg.len() + case.appid.len()) % 32,
            case.padding_len,
            "{name}"
        );

        if let Some(expected) = case.msg_signature {
            assert!(
                verify_signature(
                    &expected,
                    &[&case.token, &case.timestamp, &case.nonce, &encrypt]
                ),
                "{name}"
            );
            let timestamp = case.timestamp.parse().unwrap();
            for format in [Format::Xml, Format::Json] {
                let reply = render_encrypted(format, &encrypt, &expected, timestamp, &case.nonce);
                assert_eq!(
                    Envelope::parse(reply.as_bytes()).unwrap().encrypt.as_ref(),
                    Some(&encrypt),
                    "{name}"
                );
            }
        }
    }
    assert_eq!(decrypted, 2);
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataFile {
    #[serde(rename = "algorithm")]
    _algorithm: String,
    #[serde(rename = "verified")]
    _verified: String,
    cases: Vec<DataCase>,
    raw_data_signature: Vec<RawDataCase>,
    session_signature: Vec<SessionCase>,
    negative: Vec<WrongAppCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DataCase {
    name: String,
    appid: String,
    session_key: String,
    iv: String,
    encrypted_data: String,
    padding_len: usize,
    plaintext: String,
    plaintext_json: Value,
    #[serde(rename = "source")]
    _source: String,
}

impl DataCase {
    fn decrypt(&self, app: &str) -> Result<Value, DataError> {
        let key = SessionKey::new(self.session_key.clone());
        decrypt_user_data(
            &key,
            &self.encrypted_data,
            &self.iv,
            &AppId::try_from(app).unwrap(),
        )
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDataCase {
    name: String,
    session_key: String,
    raw_data: String,
    signature: String,
    #[serde(rename = "source")]
    _source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionCase {
    name: String,
    session_key: String,
    data: String,
    signature: String,
    sig_method: String,
    #[serde(rename = "source")]
    _source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WrongAppCase {
    name: String,
    expected_appid: String,
    case: usize,
    #[serde(rename = "source")]
    _source: String,
}

#[test]
fn user_data() {
    let file: DataFile = read(include_str!("vectors/data_crypt.json"));
    assert_eq!(
        (
            file.cases.len(),
            file.raw_data_signature.len(),
            file.session_signature.len(),
            file.negative.len()
        ),
        (1, 1, 2, 1)
    );
    for case in &file.cases {
        let data = case.decrypt(&case.appid).unwrap();
        assert_eq!(data, case.plaintext_json, "{}", case.name);
        assert_eq!(data, read::<Value>(&case.plaintext), "{}", case.name);
        assert_eq!(
            16 - case.plaintext.len() % 16,
            case.padding_len,
            "{}",
            case.name
        );
    }
    for case in &file.raw_data_signature {
        let key = SessionKey::new(case.session_key.clone());
        assert_eq!(
            user_data_signature(&case.raw_data, &key),
            case.signature,
            "{}",
            case.name
        );
        let verify = |signature, data| verify_user_data_signature(signature, data, &key);
        assert!(verify(&case.signature, &case.raw_data), "{}", case.name);
        assert!(!verify(&case.signature, "{}"), "{}", case.name);
        assert!(!verify("", &case.raw_data), "{}", case.name);
    }
    for case in &file.session_signature {
        assert_eq!(case.sig_method, "hmac_sha256", "{}", case.name);
        let key = SessionKey::new(case.session_key.clone());
        assert_eq!(
            session_signature(&key, &case.data),
            case.signature,
            "{}",
            case.name
        );
    }
    for case in &file.negative {
        let data = file.cases.get(case.case).unwrap();
        assert_eq!(
            data.decrypt(&case.expected_appid),
            Err(DataError::AppId),
            "{}",
            case.name
        );
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct JsapiFile {
    #[serde(rename = "algorithm")]
    _algorithm: String,
    #[serde(rename = "verified")]
    _verified: String,
    #[serde(rename = "note")]
    _note: String,
    cases: Vec<PageCase>,
    card_cases: Vec<CardCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageCase {
    name: String,
    jsapi_ticket: String,
    noncestr: String,
    timestamp: i64,
    url: String,
    string1: String,
    signature: String,
    #[serde(rename = "source")]
    _source: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CardCase {
    name: String,
    #[serde(rename = "algorithm")]
    _algorithm: String,
    api_ticket: String,
    timestamp: String,
    card_id: String,
    code: String,
    nonce_str: String,
    string1: String,
    signature: String,
    #[serde(rename = "source")]
    _source: String,
}

#[test]
fn page_and_card_signatures() {
    let file: JsapiFile = read(include_str!("vectors/jsapi.json"));
    assert_eq!((file.cases.len(), file.card_cases.len()), (3, 1));
    for case in file.cases {
        let ticket = Ticket::new(case.jsapi_ticket);
        let signed = jsapi::sign(&ticket, &case.noncestr, case.timestamp, &case.url);
        assert_eq!(signed, case.signature, "{}", case.name);
        assert_eq!(signature(&[&case.string1]), case.signature, "{}", case.name);
    }
    for case in file.card_cases {
        let ticket = Ticket::new(case.api_ticket);
        let values = [
            case.timestamp.as_str(),
            &case.card_id,
            &case.code,
            &case.nonce_str,
        ];
        assert_eq!(
            jsapi::sign_card(&ticket, &values),
            case.signature,
            "{}",
            case.name
        );
        assert_eq!(signature(&[&case.string1]), case.signature, "{}", case.name);
    }
}
