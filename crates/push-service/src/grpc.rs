//! The gRPC side: who may call what, and the translation between wire and domain.

mod broadcast;
mod content;
mod message;
mod paging;
mod replay;
mod typing;

use std::pin::Pin;

use futures_util::Stream;
use proto::push::v1::{self as wire, push_service_server::PushService};
use service_kit::{Caller, CatalogHandle, Scope, caller::Rules, ops::Readiness};
use tonic::{Request, Response, Status, Streaming};

use crate::{account::Accounts, broadcast::Broadcasts, message::Messages, typing::Typing};

/// Health is told for these.
pub(crate) const NAMES: &[&str] = &["wxhub.push.v1.PushService"];

/// The service behind the gRPC port.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    pub(crate) messages: Messages,
    pub(crate) broadcasts: Broadcasts,
    pub(crate) readiness: Readiness,
    pub(crate) typing: Typing,
    pub(crate) accounts: Accounts,
    pub(crate) catalog: CatalogHandle,
}

/// Each RPC with the scope that it demands. It is answered by the method of its name, which lies in a module of this
/// one. Those that stream are written out.
macro_rules! rpcs {
    (
        $($rpc:ident = $method:ident($request:ident) -> $response:ident: $scope:ident,)*
        ; $($stream_rpc:ident: $stream_scope:ident,)*
        { $($streams:tt)* }
    ) => {
        /// Which scope each RPC demands.
        pub(crate) const RULES: Rules = &[
            $((concat!("/wxhub.push.v1.PushService/", stringify!($rpc)), Scope::$scope),)*
            $((concat!("/wxhub.push.v1.PushService/", stringify!($stream_rpc)), Scope::$stream_scope),)*
        ];

        #[tonic::async_trait]
        impl PushService for Service {
            $(
                async fn $method(
                    &self,
                    request: Request<wire::$request>,
                ) -> Result<Response<wire::$response>, Status> {
                    let caller = Caller::of(&request)?;
                    // The inherent method: it comes before the trait's.
                    let answer = Self::$method(self, &caller, request.into_inner()).await;
                    answer.map(Response::new)
                }
            )*

            $($streams)*
        }
    };
}

rpcs! {
    SendMessage = send_message(SendMessageRequest) -> SendMessageResponse: PushSend,
    BatchSendMessages = batch_send_messages(BatchSendMessagesRequest) -> BatchSendMessagesResponse: PushSend,
    GetMessage = get_message(GetMessageRequest) -> GetMessageResponse: PushRead,
    CancelMessage = cancel_message(CancelMessageRequest) -> CancelMessageResponse: PushSend,
    RetryMessage = retry_message(RetryMessageRequest) -> RetryMessageResponse: PushSend,
    ListMessages = list_messages(ListMessagesRequest) -> ListMessagesResponse: PushRead,
    RetryMessages = retry_messages(RetryMessagesRequest) -> RetryMessagesResponse: PushSend,
    SendTyping = send_typing(SendTypingRequest) -> SendTypingResponse: PushSend,
    CreateBroadcast = create_broadcast(CreateBroadcastRequest) -> CreateBroadcastResponse: PushSend,
    StartBroadcast = start_broadcast(StartBroadcastRequest) -> StartBroadcastResponse: PushSend,
    GetBroadcast = get_broadcast(GetBroadcastRequest) -> GetBroadcastResponse: PushRead,
    ListBroadcasts = list_broadcasts(ListBroadcastsRequest) -> ListBroadcastsResponse: PushRead,
    PauseBroadcast = pause_broadcast(PauseBroadcastRequest) -> PauseBroadcastResponse: PushSend,
    ResumeBroadcast = resume_broadcast(ResumeBroadcastRequest) -> ResumeBroadcastResponse: PushSend,
    CancelBroadcast = cancel_broadcast(CancelBroadcastRequest) -> CancelBroadcastResponse: PushSend,
    ; AddBroadcastRecipients: PushSend, WatchBroadcast: PushRead,
    {
        type WatchBroadcastStream =
            Pin<Box<dyn Stream<Item = Result<wire::WatchBroadcastResponse, Status>> + Send>>;

        async fn add_broadcast_recipients(
            &self,
            request: Request<Streaming<wire::AddBroadcastRecipientsRequest>>,
        ) -> Result<Response<wire::AddBroadcastRecipientsResponse>, Status> {
            let caller = Caller::of(&request)?;
            let added = Self::add_broadcast_recipients(self, &caller, request.into_inner()).await;
            added.map(Response::new)
        }

        async fn watch_broadcast(
            &self,
            request: Request<wire::WatchBroadcastRequest>,
        ) -> Result<Response<Self::WatchBroadcastStream>, Status> {
            let caller = Caller::of(&request)?;
            let watched = Self::watch_broadcast(self, &caller, request.into_inner()).await?;
            Ok(Response::new(Box::pin(watched)))
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_has_a_scope_and_every_rule_an_rpc() {
        let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut rpcs = Vec::new();
        for file in set
            .file
            .iter()
            .filter(|file| file.package() == "wxhub.push.v1")
        {
            for service in &file.service {
                for method in &service.method {
                    rpcs.push(format!(
                        "/{}.{}/{}",
                        file.package(),
                        service.name(),
                        method.name()
                    ));
                }
                assert!(NAMES.contains(&format!("{}.{}", file.package(), service.name()).as_str()));
            }
        }
        let mut ruled: Vec<_> = RULES.iter().map(|(path, _)| (*path).to_owned()).collect();
        rpcs.sort();
        ruled.sort();
        assert_eq!(ruled, rpcs);
    }
}
