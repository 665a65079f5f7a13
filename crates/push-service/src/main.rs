//! The `push-service` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    service_kit::cli::main::<push_service::PushService>()
}
