//! The tokens in memory: read without a lock, replaced as a whole.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use proto::token::v1 as pb;
use service_kit::Clock;
use wechat::{AccessToken, AppId};

use crate::error::{Error, required};

/// A token and how long it may be used.
#[derive(Debug)]
pub struct CachedToken {
    /// The token itself.
    pub token: AccessToken,
    /// Names it in a report; grows with every new token of the app.
    pub version: u64,
    /// Until when this copy may be used.
    pub use_until: SystemTime,
    /// The same on the clock that does not jump.
    use_until_elapsed: Duration,
}

#[derive(Debug)]
pub(crate) struct Cache {
    tokens: ArcSwap<HashMap<AppId, Arc<CachedToken>>>,
    clock: Clock,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            tokens: ArcSwap::default(),
            clock: Clock::System,
        }
    }
}

impl Cache {
    /// The app's token, if there is one that may still be used.
    pub(crate) fn get(&self, app: &AppId) -> Option<Arc<CachedToken>> {
        let tokens = self.tokens.load();
        let token = tokens.get(app)?;
        let usable =
            self.clock.now() < token.use_until && self.clock.elapsed() < token.use_until_elapsed;
        usable.then(|| Arc::clone(token))
    }

    /// Takes over what token-service sent, unless memory holds a newer version: answers overtake each other.
    pub(crate) fn put(&self, token: Option<pb::AccessToken>) -> Result<Arc<CachedToken>, Error> {
        let token = required(token, "access_token")?;
        let app = AppId::try_from(token.app_id).map_err(|_| Error::Malformed("app_id"))?;
        let use_until = token
            .use_until
            .and_then(|time| SystemTime::try_from(time).ok());
        let use_until = required(use_until, "use_until")?;
        let left = use_until
            .duration_since(self.clock.now())
            .unwrap_or_default();
        let new = Arc::new(CachedToken {
            token: AccessToken::new(token.token),
            version: token.version,
            use_until,
            use_until_elapsed: self.clock.elapsed() + left,
        });
        self.tokens.rcu(|tokens| {
            let mut tokens = HashMap::clone(tokens);
            let newest = tokens
                .entry(app.clone())
                .or_insert_with(|| Arc::clone(&new));
            if newest.version <= new.version {
                *newest = Arc::clone(&new);
            }
            tokens
        });
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const APP: &str = "wx0000000000000001";

    fn cache() -> Cache {
        Cache {
            clock: Clock::tokio(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000)),
            ..Cache::default()
        }
    }

    fn token(cache: &Cache, version: u64, seconds: u64) -> pb::AccessToken {
        pb::AccessToken {
            app_id: APP.to_owned(),
            token: format!("token {version}"),
            version,
            use_until: Some((cache.clock.now() + Duration::from_secs(seconds)).into()),
            ..Default::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_served_until_its_time_and_not_beyond() {
        let cache = cache();
        let app = APP.parse().unwrap();
        assert!(cache.get(&app).is_none());
        cache.put(Some(token(&cache, 1, 60))).unwrap();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(cache.get(&app).unwrap().token, AccessToken::new("token 1"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(cache.get(&app).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_older_version_that_comes_late_replaces_nothing() {
        let cache = cache();
        let app = APP.parse().unwrap();
        cache.put(Some(token(&cache, 2, 60))).unwrap();
        cache.put(Some(token(&cache, 1, 60))).unwrap();
        assert_eq!(cache.get(&app).unwrap().version, 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_its_fields_is_refused() {
        let cache = cache();
        assert!(matches!(
            cache.put(None),
            Err(Error::Malformed("access_token"))
        ));
        let nameless = pb::AccessToken {
            app_id: String::new(),
            ..token(&cache, 1, 60)
        };
        assert!(matches!(
            cache.put(Some(nameless)),
            Err(Error::Malformed("app_id"))
        ));
        let endless = pb::AccessToken {
            use_until: None,
            ..token(&cache, 1, 60)
        };
        assert!(matches!(
            cache.put(Some(endless)),
            Err(Error::Malformed("use_until"))
        ));
    }
}
