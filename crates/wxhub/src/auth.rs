//! The way of the operator's verbs to auth-service.

use proto::auth::v1::auth_service_client::AuthServiceClient;
use service_kit::{Problems, Settings, client::PeerChannel};

use tonic::Status;

use crate::{
    operator::{Access, REACHING},
    token::Refused,
};

/// How to reach auth-service, by the names that the services use.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// auth-service's gRPC; several endpoints, separated by commas, are balanced
    #[arg(
        long,
        env = "WXHUB_AUTH_URL",
        value_name = "URL",
        default_value = "http://127.0.0.1:50052",
        global = true,
        help_heading = REACHING
    )]
    auth_url: String,
    #[command(flatten)]
    access: Access,
}

impl Connection {
    pub(crate) fn open(self) -> Result<AuthServiceClient<PeerChannel>, Problems> {
        let settings = Settings {
            auth_url: Some(self.auth_url),
            ..self.access.into()
        };
        let mut problems = Problems::default();
        let peer = settings.auth_service(&mut problems);
        Ok(AuthServiceClient::new(problems.or(peer)?.channel()))
    }
}

/// What auth-service answered in place of what was asked for.
pub(crate) fn refused(status: Status) -> Refused {
    Refused::by("auth-service", status)
}
