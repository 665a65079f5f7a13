//! WeChat, as far as token-service calls it. A trait, since a test cannot run WeChat.

use futures_util::future::BoxFuture;
use wechat::{AccessToken, AppId, AppSecret, Client, Error, Issued, Ticket, TicketType};

/// The calls that fetch credentials.
pub trait Upstream: std::fmt::Debug + Send + Sync {
    /// A new classic token.
    fn access_token<'a>(
        &'a self,
        app: &'a AppId,
        secret: &'a AppSecret,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>>;

    /// The stable token, or another with `force`.
    fn stable_access_token<'a>(
        &'a self,
        app: &'a AppId,
        secret: &'a AppSecret,
        force: bool,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>>;

    /// A ticket.
    fn ticket<'a>(
        &'a self,
        token: &'a AccessToken,
        kind: TicketType,
    ) -> BoxFuture<'a, Result<Issued<Ticket>, Error>>;
}

impl Upstream for Client {
    fn access_token<'a>(
        &'a self,
        app: &'a AppId,
        secret: &'a AppSecret,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>> {
        Box::pin(Client::access_token(self, app, secret))
    }

    fn stable_access_token<'a>(
        &'a self,
        app: &'a AppId,
        secret: &'a AppSecret,
        force: bool,
    ) -> BoxFuture<'a, Result<Issued<AccessToken>, Error>> {
        Box::pin(Client::stable_access_token(self, app, secret, force))
    }

    fn ticket<'a>(
        &'a self,
        token: &'a AccessToken,
        kind: TicketType,
    ) -> BoxFuture<'a, Result<Issued<Ticket>, Error>> {
        Box::pin(Client::ticket(self, token, kind))
    }
}
