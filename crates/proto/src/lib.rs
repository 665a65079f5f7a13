#![doc = include_str!("../README.md")]

mod codec;
mod redact;

/// The three services' file descriptors, as gRPC reflection serves them.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// token-service's contract.
pub mod token {
    /// Version 1.
    #[expect(clippy::allow_attributes_without_reason, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("wxhub.token.v1");
    }
}

/// auth-service's contract.
pub mod auth {
    /// Version 1.
    #[expect(clippy::allow_attributes_without_reason, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("wxhub.auth.v1");
    }
}

/// push-service's contract.
pub mod push {
    /// Version 1.
    #[expect(clippy::allow_attributes_without_reason, reason = "generated")]
    pub mod v1 {
        tonic::include_proto!("wxhub.push.v1");
    }
}
