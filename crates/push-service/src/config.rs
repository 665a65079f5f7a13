//! push-service's settings.

use std::{path::PathBuf, time::Duration};

use secrecy::SecretString;
use service_kit::{
    Problems, Settings,
    client::Peer,
    settings::{DatabaseUrl, Listen, Ports},
};
use tonic::transport::ServerTlsConfig;
use url::Url;

use crate::prune;

/// Its ports where none are set.
pub const PORTS: Ports = Ports {
    grpc: 50053,
    http: 8082,
    ops: 9103,
};

/// Everything push-service needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens.
    pub listen: Listen,
    /// `wxhub.toml`.
    pub catalog: PathBuf,
    /// The doorbell and the answered pushes; none keeps them in memory, for one process alone.
    pub redis: Option<SecretString>,
    /// Messages and form_ids.
    pub database: DatabaseUrl,
    /// WeChat's API.
    pub wechat_api: Url,
    /// Where access_tokens come from.
    pub token_service: Peer,
    /// Who verifies the sessions of `POST /form`.
    pub auth_service: Peer,
    /// How long finished messages are kept.
    pub message_max_age: Duration,
    /// TLS on the gRPC port; none is plain text.
    pub tls: Option<ServerTlsConfig>,
}

impl Config {
    /// Checks the process's settings.
    ///
    /// # Errors
    /// Everything that is missing or wrong.
    pub fn from_settings(settings: &Settings) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        // It notes a malformed value; what depends on it asks for itself.
        settings.embedded(&mut problems);
        let listen = settings.listen(&mut problems, PORTS);
        let catalog = settings.catalog_path(&mut problems);
        let redis = settings.redis(&mut problems, "the doorbell and answered pushes");
        let database = settings.database(&mut problems, "push");
        let upstream = settings.upstream(&mut problems);
        let token_service = settings.token_service(&mut problems);
        let auth_service = settings.auth_service(&mut problems);
        let message_max_age = settings.message_max_age(&mut problems, prune::MAX_AGE);
        let tls = settings.server_tls(&mut problems);
        let checked = || {
            Some(Self {
                listen: listen?,
                catalog: catalog?,
                redis,
                database: database?,
                wechat_api: upstream?.api,
                token_service: token_service?,
                auth_service: auth_service?,
                message_max_age: message_max_age?,
                tls: tls?,
            })
        };
        let checked = checked();
        problems.or(checked)
    }
}
