//! The development world: what the sandbox, `wxhub dev`, compose and the demo agree on.

/// The mini program, named `shop`.
pub(crate) const SHOP: &str = "wx0000000000000001";
/// The official account, named `news`.
pub(crate) const NEWS: &str = "wx0000000000000002";
/// The key of the caller `dev`, who may do everything.
pub(crate) const CALLER_KEY: &str = "dev-key";
/// The host of the demo's pages, one of those that `news` may sign and return to.
pub(crate) const PAGE_HOST: &str = "h5.example.com";
/// Its apps and its caller.
pub(crate) const WXHUB_TOML: &str = include_str!("dev/wxhub.toml");

#[cfg(test)]
mod tests {
    use service_kit::{Catalog, Scope, catalog::Needs};

    use super::*;

    #[test]
    fn the_file_declares_both_apps_and_a_caller_that_may_do_everything() {
        let needs = Needs {
            app_secrets: true,
            callbacks: true,
        };
        let catalog = Catalog::parse(WXHUB_TOML, needs, |_| None).unwrap();
        assert_eq!(catalog.app("shop").unwrap().app_id.as_str(), SHOP);
        let news = catalog.app("news").unwrap();
        assert_eq!(news.app_id.as_str(), NEWS);
        for hosts in [&news.jssdk_hosts, &news.oauth_return_hosts] {
            assert_eq!(hosts, &["127.0.0.1", "localhost", PAGE_HOST]);
        }
        let dev = catalog.caller(CALLER_KEY).unwrap();
        assert!(Scope::ALL.iter().all(|scope| dev.scopes.contains(scope)));
    }
}
