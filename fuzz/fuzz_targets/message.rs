//! The encrypted part of a push: any text, and any message that is well encrypted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wechat::{
    AppId,
    crypto::{EncodingAESKey, MessageCrypt},
};

fuzz_target!(|input: (&str, &str)| {
    let (encrypted, message) = input;
    let key: EncodingAESKey = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG"
        .parse()
        .expect("a key");
    let app: AppId = "wx1".parse().expect("an app id");
    let crypt = MessageCrypt::new(&key, &app);
    let _ = crypt.decrypt(encrypted);
    let sealed = crypt.encrypt(message);
    assert_eq!(crypt.decrypt(&sealed).expect("our own"), message);
});
