//! The typing state, which goes to WeChat at once.

use std::sync::Arc;

use proto::push::v1::{SendTypingRequest, SendTypingResponse};
use service_kit::Caller;
use tonic::Status;
use wechat::{OpenId, TypingCommand};

use super::Service;
use crate::error::Error;

impl Service {
    pub(super) async fn send_typing(
        &self,
        caller: &Arc<Caller>,
        request: SendTypingRequest,
    ) -> Result<SendTypingResponse, Status> {
        let app = caller.app(&self.catalog.current(), &request.app_id)?;
        let open_id = OpenId::try_from(request.open_id).map_err(|_| {
            let problem = "must be the user's openid, as WeChat gave it";
            Error::Invalid(vec![("open_id".to_owned(), problem.to_owned())])
        })?;
        let command = if request.cancel {
            TypingCommand::CancelTyping
        } else {
            TypingCommand::Typing
        };
        self.typing.send(&app, open_id, command).await?;
        Ok(SendTypingResponse {})
    }
}
