//! What the operator's verbs have in common: whom they ask as, and how they print.

use std::io::{self, Write as _};

use secrecy::SecretString;
use service_kit::Settings;

/// Under this stand the flags that are the same for every verb.
pub(crate) const REACHING: &str = "How to reach the service";

/// Who asks, by the names that the services use.
#[derive(Debug, clap::Args)]
pub(crate) struct Access {
    /// The key of a caller with the scopes that the verb needs; of `wxhub dev` it is `dev-key`
    #[arg(
        long,
        env = "WXHUB_CALLER_KEY",
        value_name = "KEY",
        hide_env_values = true,
        global = true,
        help_heading = REACHING
    )]
    caller_key: Option<SecretString>,
    /// With https://: the authority to trust (PEM) [default: the system's]
    #[arg(long, env = "WXHUB_TLS_CA", value_name = "PATH", global = true, help_heading = REACHING)]
    tls_ca: Option<String>,
    /// Where the service demands one: the client certificate (PEM)
    #[arg(long, env = "WXHUB_TLS_CERT", value_name = "PATH", global = true, help_heading = REACHING)]
    tls_cert: Option<String>,
    /// Its key (PEM)
    #[arg(long, env = "WXHUB_TLS_KEY", value_name = "PATH", global = true, help_heading = REACHING)]
    tls_key: Option<String>,
}

impl From<Access> for Settings {
    fn from(access: Access) -> Self {
        Self {
            caller_key: access.caller_key,
            tls_ca: access.tls_ca,
            tls_cert: access.tls_cert,
            tls_key: access.tls_key,
            ..Self::default()
        }
    }
}

pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

/// How a verb went: whoever reads has seen enough when the pipe is closed, as `head` does.
pub(crate) fn outcome(outcome: anyhow::Result<()>) -> anyhow::Result<()> {
    match outcome {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        outcome => outcome,
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
