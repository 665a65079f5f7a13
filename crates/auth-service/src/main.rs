//! The `auth-service` binary.

use std::process::ExitCode;

use auth_service::AuthService;
use service_kit::cli;

fn main() -> ExitCode {
    cli::main::<AuthService>()
}
