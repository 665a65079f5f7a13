//! auth-service over real sockets: WeChat is the sandbox, the stores are Redis and MariaDB or their embedded twins.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

/// Runs each test twice: with Redis and MariaDB, and with memory and SQLite.
macro_rules! with_either_store {
    ($($test:ident),* $(,)?) => {
        mod servers {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::world::World::with_servers().await).await;
            })*
        }

        mod embedded {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(crate::world::World::embedded().await).await;
            })*
        }
    };
}

mod asvs;
mod bad_input;
mod bind;
mod browser;
mod cookie_login;
mod debug;
mod headers;
mod jssdk;
mod login;
mod oauth;
mod outage;
mod privacy;
mod readiness;
mod session;
mod user_data;
mod users;
mod world;
