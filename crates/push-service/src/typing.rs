//! The typing state: it goes to WeChat at once, is not stored and not repeated.

use std::time::Duration;

use service_kit::{App, AppKind, Clock};
use token_client::{CallError, TokenClient};
use wechat::{Class, Client, OpenId, TypingCommand};

use crate::error::Error;

/// What comes later than this is of no use: it would show for fifteen seconds.
const DEADLINE: Duration = Duration::from_secs(5);

/// Tells WeChat who is typing.
#[derive(Debug, Clone)]
pub(crate) struct Typing {
    pub(crate) wechat: Client,
    pub(crate) tokens: TokenClient,
    pub(crate) clock: Clock,
}

impl Typing {
    /// Shows it to a user, or takes it back. What is shown already is no error.
    pub(crate) async fn send(
        &self,
        app: &App,
        to_user: OpenId,
        command: TypingCommand,
    ) -> Result<(), Error> {
        let typing = wechat::Typing { to_user, command };
        let sending = self.tokens.with_token(&app.app_id, async |token| {
            let wechat = &self.wechat;
            match app.kind {
                AppKind::OfficialAccount => wechat.send_typing(&token, &typing).await,
                AppKind::MiniProgram => wechat.send_mini_program_typing(&token, &typing).await,
            }
        });
        match tokio::time::timeout(DEADLINE, sending).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(CallError::WeChat(error))) if error.class() == Class::Ok => Ok(()),
            Ok(Err(CallError::WeChat(source))) => Err(Error::WeChat {
                app: app.name.clone(),
                source,
                now: self.clock.now(),
            }),
            Ok(Err(CallError::Token(error))) => Err(Error::Tokens(error)),
            Err(_) => Err(Error::TooLate(DEADLINE)),
        }
    }
}
