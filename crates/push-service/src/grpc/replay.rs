//! Messages by filter: listed, and queued again.

#![expect(clippy::unused_async, reason = "being built")]

use std::sync::Arc;

use proto::push::v1::{
    ListMessagesRequest, ListMessagesResponse, RetryMessagesRequest, RetryMessagesResponse,
};
use service_kit::Caller;
use tonic::Status;

use super::Service;
use crate::error::Error;

impl Service {
    pub(super) async fn list_messages(
        &self,
        _: &Arc<Caller>,
        _: ListMessagesRequest,
    ) -> Result<ListMessagesResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn retry_messages(
        &self,
        _: &Arc<Caller>,
        _: RetryMessagesRequest,
    ) -> Result<RetryMessagesResponse, Status> {
        Err(Error::Unfinished.into())
    }
}
