//! The `token-service` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    service_kit::cli::main::<token_service::TokenService>()
}
