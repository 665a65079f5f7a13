//! The typing state, which goes to WeChat at once.

#![expect(clippy::unused_async, reason = "being built")]

use std::sync::Arc;

use proto::push::v1::{SendTypingRequest, SendTypingResponse};
use service_kit::Caller;
use tonic::Status;

use super::Service;
use crate::error::Error;

impl Service {
    pub(super) async fn send_typing(
        &self,
        _: &Arc<Caller>,
        _: SendTypingRequest,
    ) -> Result<SendTypingResponse, Status> {
        Err(Error::Unfinished.into())
    }
}
