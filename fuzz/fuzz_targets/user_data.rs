//! What a mini program's client sends as encrypted data: any text, and any plain text that is well encrypted.
#![no_main]

use aes::cipher::{BlockModeEncrypt as _, KeyIvInit as _, block_padding::Pkcs7};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use libfuzzer_sys::fuzz_target;
use wechat::{AppId, SessionKey, crypto};

const KEY: [u8; 16] = *b"0123456789abcdef";
const IV: [u8; 16] = *b"fedcba9876543210";

fuzz_target!(|input: (&str, &str, &[u8])| {
    let (encrypted, iv, plain) = input;
    let app: AppId = "wx1".parse().expect("an app id");
    let key = SessionKey::new(BASE64_STANDARD.encode(KEY));
    let _ = crypto::decrypt_user_data(&key, encrypted, iv, &app);

    let sealed = cbc::Encryptor::<aes::Aes128>::new(&KEY.into(), &IV.into());
    let sealed = BASE64_STANDARD.encode(sealed.encrypt_padded_vec::<Pkcs7>(plain));
    let iv = BASE64_STANDARD.encode(IV);
    let opened = crypto::decrypt_user_data(&key, &sealed, &iv, &app);
    // What a query string does to it changes nothing.
    let mangled = sealed.replace('+', " ");
    assert_eq!(crypto::decrypt_user_data(&key, &mangled, &iv, &app), opened);
    if let Ok(data) = opened {
        assert_eq!(data.pointer("/watermark/appid"), Some(&"wx1".into()));
    }
    let signature = crypto::user_data_signature(encrypted, &key);
    assert!(crypto::verify_user_data_signature(
        &signature, encrypted, &key
    ));
});
