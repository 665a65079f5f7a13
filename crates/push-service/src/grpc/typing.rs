//! The typing state, which goes to WeChat at once.

use std::sync::Arc;

use proto::push::v1::{SendTypingRequest, SendTypingResponse};
use service_kit::Caller;
use tonic::Status;
use wechat::TypingCommand;

use super::{Service, message::recipient};
use crate::{error::Error, message::Recipient};

impl Service {
    pub(super) async fn send_typing(
        &self,
        caller: &Arc<Caller>,
        request: SendTypingRequest,
    ) -> Result<SendTypingResponse, Status> {
        let app = caller.app(&self.catalog.current(), &request.app_id)?;
        let recipient = recipient(request.open_id, request.account);
        let open_id = match recipient.map_err(|violation| Error::Invalid(vec![violation]))? {
            Recipient::OpenId(open_id) => open_id,
            Recipient::Account(account) => self.accounts.open_id(&app.app_id, &account).await?,
        };
        let command = if request.cancel {
            TypingCommand::CancelTyping
        } else {
            TypingCommand::Typing
        };
        self.typing.send(&app, open_id, command).await?;
        Ok(SendTypingResponse {})
    }
}
