//! Broadcasts.

#![expect(clippy::unused_async, reason = "being built")]

use std::sync::Arc;

use futures_util::{Stream, stream};
use proto::push::v1 as pb;
use service_kit::Caller;
use tonic::{Status, Streaming};

use super::Service;
use crate::error::Error;

impl Service {
    pub(super) async fn create_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::CreateBroadcastRequest,
    ) -> Result<pb::CreateBroadcastResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn start_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::StartBroadcastRequest,
    ) -> Result<pb::StartBroadcastResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn get_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::GetBroadcastRequest,
    ) -> Result<pb::GetBroadcastResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn list_broadcasts(
        &self,
        _: &Arc<Caller>,
        _: pb::ListBroadcastsRequest,
    ) -> Result<pb::ListBroadcastsResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn pause_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::PauseBroadcastRequest,
    ) -> Result<pb::PauseBroadcastResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn resume_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::ResumeBroadcastRequest,
    ) -> Result<pb::ResumeBroadcastResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn cancel_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::CancelBroadcastRequest,
    ) -> Result<pb::CancelBroadcastResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn add_broadcast_recipients(
        &self,
        _: &Arc<Caller>,
        _: Streaming<pb::AddBroadcastRecipientsRequest>,
    ) -> Result<pb::AddBroadcastRecipientsResponse, Status> {
        Err(Error::Unfinished.into())
    }

    pub(super) async fn watch_broadcast(
        &self,
        _: &Arc<Caller>,
        _: pb::WatchBroadcastRequest,
    ) -> Result<impl Stream<Item = Result<pb::WatchBroadcastResponse, Status>> + use<>, Status>
    {
        Err::<stream::Pending<_>, _>(Error::Unfinished.into())
    }
}
