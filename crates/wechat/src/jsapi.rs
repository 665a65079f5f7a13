//! Signatures that let a page use WeChat's JavaScript (JS-SDK说明文档).

use crate::{
    Ticket,
    crypto::{sha1_hex, signature},
};

/// The signature of `wx.config`, from a `jsapi` ticket, for the page at `url` as the browser has
/// it.
///
/// `url` is the full URL with its query, undecoded; what follows a `#` is not signed. `timestamp`
/// is in Unix seconds.
pub fn sign(ticket: &Ticket, nonce: &str, timestamp: i64, url: &str) -> String {
    let page = url.split_once('#').map_or(url, |(page, _fragment)| page);
    let timestamp = timestamp.to_string();
    sha1_hex(&[
        "jsapi_ticket=",
        ticket.expose(),
        "&noncestr=",
        nonce,
        "&timestamp=",
        &timestamp,
        "&url=",
        page,
    ])
}

/// The signature of a card's `cardExt`, from a `wx_card` ticket.
///
/// `values` are those that `cardExt` carries: `timestamp`, `card_id` and, where set, `code`,
/// `openid` and `nonce_str`.
pub fn sign_card(ticket: &Ticket, values: &[&str]) -> String {
    signature(&[&[ticket.expose()], values].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fragment_is_not_signed() {
        let ticket = Ticket::new("t");
        let signed = sign(&ticket, "n", 1, "https://e.com/?a=1");
        assert_eq!(sign(&ticket, "n", 1, "https://e.com/?a=1#/route#x"), signed);
        assert_ne!(sign(&ticket, "n", 1, "https://e.com/?a=2"), signed);
    }
}
