//! A bind link as a URL and as a QR code.

use qrcode::{EcLevel, QrCode, render::svg};
use url::Url;

use crate::error::Error;

/// Pixels of a QR code's side where nothing scales it.
const SIDE: u32 = 256;

/// The link of a ticket, at this service as a browser sees it.
pub(crate) fn link_url(public_url: &Url, ticket: &str) -> Url {
    let mut url = public_url.clone();
    url.set_path("/bind/scan");
    url.query_pairs_mut().clear().append_pair("ticket", ticket);
    url
}

/// A URL as a QR code: an SVG document, dark on light, with its quiet zone.
pub(crate) fn qr_code(url: &Url) -> Result<String, Error> {
    // It fails where the text is longer than a QR code holds: kilobytes.
    let code = QrCode::with_error_correction_level(url.as_str(), EcLevel::M)
        .map_err(|_| Error::Stored("bind link"))?;
    let mut image = code.render::<svg::Color<'_>>();
    Ok(image.min_dimensions(SIDE, SIDE).build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_a_small_svg() {
        let public_url = "https://auth.example.com".parse().unwrap();
        let url = link_url(&public_url, &"0".repeat(64));
        assert!(
            url.as_str()
                .starts_with("https://auth.example.com/bind/scan?ticket=0000")
        );
        let svg = qr_code(&url).unwrap();
        assert!(svg.contains("<svg ") && svg.ends_with("</svg>"), "{svg}");
        assert!(svg.len() < 40_000, "{}", svg.len());
        assert!(!svg.contains("<script") && !svg.contains("href"));
    }
}
