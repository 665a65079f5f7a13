//! Compiles `proto/` with protox, in Rust: nobody has to install protoc.

use std::path::Path;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Asked for when it runs: clones that share a target folder share this program.
    let root = Path::new(&std::env::var("CARGO_MANIFEST_DIR")?).join("../../proto");
    let files = [
        "wxhub/token/v1/token.proto",
        "wxhub/auth/v1/auth.proto",
        "wxhub/push/v1/push.proto",
    ];
    println!("cargo::rerun-if-changed={}", root.display());

    let descriptors = protox::compile(files, [&root])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("descriptors.bin"),
        descriptors.encode_to_vec(),
    )?;
    // These carry secrets: src/redact.rs prints them without.
    tonic_prost_build::configure()
        .codec_path("crate::codec::Codec")
        .skip_debug([
            ".wxhub.token.v1.AccessToken",
            ".wxhub.token.v1.Ticket",
            ".wxhub.auth.v1.Session",
            ".wxhub.auth.v1.LoginRequest",
            ".wxhub.auth.v1.VerifySessionRequest",
            ".wxhub.auth.v1.RevokeSessionRequest",
            ".wxhub.auth.v1.ExchangeTicketRequest",
            ".wxhub.auth.v1.DecryptUserDataRequest",
            ".wxhub.auth.v1.DecryptUserDataResponse",
            ".wxhub.auth.v1.GetPhoneNumberRequest",
            ".wxhub.auth.v1.GetPhoneNumberResponse",
            ".wxhub.auth.v1.CreateAccountRequest",
            ".wxhub.auth.v1.SetAccountPasswordRequest",
            ".wxhub.auth.v1.BindLink",
        ])
        // A message is far larger than an error: the enum of both is not to be as large.
        .boxed(".wxhub.push.v1.BatchSendResult.result.message")
        .compile_fds(descriptors)?;
    Ok(())
}
