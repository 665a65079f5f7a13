//! The service's settings.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use service_kit::{
    Problems, Sealer, Settings,
    client::Peer,
    settings::{DatabaseUrl, Listen, Ports, Upstream},
};
use tonic::transport::ServerTlsConfig;
use url::Url;

use crate::session;

/// The ports where none are set; each service has its own, so that all run on one machine.
pub const PORTS: Ports = Ports {
    grpc: 50052,
    http: 8081,
    ops: 9102,
};

/// What auth-service needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// The path of `wxhub.toml`.
    pub catalog: PathBuf,
    /// Where sessions are kept; without it, in memory.
    pub redis_url: Option<SecretString>,
    /// A session ends so long after it began, however much it is used.
    pub session_max_age: Duration,
    /// Where users are kept.
    pub database_url: DatabaseUrl,
    /// Seals session keys and what waits for a repeated login.
    pub sealer: Sealer,
    /// Where WeChat is.
    pub upstream: Upstream,
    /// This service as a browser sees it.
    pub public_url: Option<Url>,
    /// token-service, whose tickets sign JS-SDK pages.
    pub token_service: Peer,
    /// TLS on the gRPC port.
    pub tls: Option<ServerTlsConfig>,
}

impl Config {
    /// Checks the settings.
    ///
    /// # Errors
    /// Everything that is missing or wrong.
    pub fn from_settings(settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        settings.embedded(&mut problems);
        let listen = settings.listen(&mut problems, PORTS);
        let catalog = settings.catalog_path(&mut problems);
        let redis_url = settings.redis(&mut problems, "sessions");
        let session_max_age = settings.session_max_age(&mut problems, session::MAX_AGE);
        let database_url = settings.database(&mut problems, "auth");
        let sealer = settings.sealer(&mut problems);
        let upstream = settings.upstream(&mut problems);
        let public_url = settings.public_url(&mut problems);
        let token_service = settings.token_service(&mut problems);
        let tls = settings.server_tls(&mut problems);
        let config = || {
            Some(Self {
                listen: listen?,
                catalog: catalog?,
                redis_url,
                session_max_age: session_max_age?,
                database_url: database_url?,
                sealer: sealer?,
                upstream: upstream?,
                public_url,
                token_service: token_service?,
                tls: tls?,
            })
        };
        problems.or(config())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            config: Some("wxhub.toml".to_owned()),
            redis_url: Some("redis://127.0.0.1:6379".into()),
            database_url: Some("mysql://root@127.0.0.1/wxhub".into()),
            token_url: Some("http://token-service:50051".to_owned()),
            caller_key: Some("key".into()),
            master_key: Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()),
            ..Settings::default()
        }
    }

    #[test]
    fn everything_set_is_accepted() {
        let config = Config::from_settings(&settings()).unwrap();
        assert_eq!(config.listen.grpc.port(), 50052);
        assert!(config.redis_url.is_some());
    }

    #[test]
    fn every_missing_setting_is_named_at_once() {
        let problems = Config::from_settings(&Settings::default()).unwrap_err();
        let problems = problems.to_string();
        for name in [
            "WXHUB_CONFIG",
            "WXHUB_REDIS_URL",
            "WXHUB_DATABASE_URL",
            "WXHUB_TOKEN_URL",
            "WXHUB_MASTER_KEY",
        ] {
            assert!(problems.contains(name), "{name} is not in:\n{problems}");
        }
    }

    #[test]
    fn embedded_mode_needs_neither_redis_nor_a_database() {
        let config = Config::from_settings(&Settings {
            embedded: Some("1".to_owned()),
            redis_url: None,
            database_url: None,
            master_key: None,
            ..settings()
        });
        let config = config.unwrap();
        assert!(config.redis_url.is_none());
        assert!(config.database_url.is_sqlite());
    }
}
