//! What anybody may post to a callback URL: XML and JSON of WeChat's, and what is neither.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wechat::callback::{Envelope, Inbound, Reply};

fuzz_target!(|body: &[u8]| {
    let _ = Envelope::parse(body);
    if let Ok(inbound) = Inbound::parse(body) {
        assert!(!inbound.dedup_key().is_empty());
        // What answers a stranger's names and texts is a document that parses, too.
        let content = inbound.content.clone().unwrap_or_default();
        let reply = Reply::Text { content }.render(&inbound, 0);
        Inbound::parse(reply.as_bytes()).expect("our own reply");
    }
});
