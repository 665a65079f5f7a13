//! The service's settings.

use std::path::PathBuf;

use secrecy::SecretString;
use service_kit::{
    Problems, Sealer, Settings,
    settings::{Listen, Ports},
};
use tonic::transport::ServerTlsConfig;
use url::Url;

/// The ports where none are set; each service has its own, so that all run on one machine.
pub const PORTS: Ports = Ports {
    grpc: 50051,
    http: 8080,
    ops: 9101,
};

/// What token-service needs to know before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// The path of `wxhub.toml`.
    pub catalog: PathBuf,
    /// Where credentials are kept; without it, in memory.
    pub redis_url: Option<SecretString>,
    /// Seals tokens and tickets in Redis.
    pub sealer: Sealer,
    /// WeChat's server API.
    pub wechat_api_url: Url,
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
        let redis_url = settings.redis(&mut problems, "tokens and tickets");
        let sealer = settings.sealer(&mut problems);
        let upstream = settings.upstream(&mut problems);
        let tls = settings.server_tls(&mut problems);
        let config = || {
            Some(Self {
                listen: listen?,
                catalog: catalog?,
                redis_url,
                sealer: sealer?,
                wechat_api_url: upstream?.api,
                tls: tls?,
            })
        };
        problems.or(config())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_set_is_accepted() {
        let settings = Settings {
            config: Some("wxhub.toml".to_owned()),
            redis_url: Some("redis://127.0.0.1:6379".into()),
            master_key: Some("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".into()),
            ..Settings::default()
        };
        let config = Config::from_settings(&settings).unwrap();
        assert_eq!(config.listen.grpc.port(), 50051);
        assert!(config.redis_url.is_some());
    }

    #[test]
    fn every_missing_setting_is_named_at_once() {
        let problems = Config::from_settings(&Settings::default()).unwrap_err();
        let problems = problems.to_string();
        for name in ["WXHUB_CONFIG", "WXHUB_REDIS_URL", "WXHUB_MASTER_KEY"] {
            assert!(problems.contains(name), "{name} is not in:\n{problems}");
        }
    }

    #[test]
    fn embedded_mode_needs_the_catalog_alone() {
        let settings = Settings {
            config: Some("wxhub.toml".to_owned()),
            embedded: Some("1".to_owned()),
            ..Settings::default()
        };
        assert!(
            Config::from_settings(&settings)
                .unwrap()
                .redis_url
                .is_none()
        );
    }
}
