//! Sessions, and the logins that open them.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use prost_types::Timestamp;
use proto::auth::v1::{
    self as wire, ExchangeTicketRequest, ExchangeTicketResponse, ListUserSessionsRequest,
    ListUserSessionsResponse, LoginRequest, LoginResponse, RevokeAppSessionsRequest,
    RevokeAppSessionsResponse, RevokeSessionRequest, RevokeSessionResponse,
    RevokeUserSessionsRequest, RevokeUserSessionsResponse, VerifySessionRequest,
    VerifySessionResponse,
};
use service_kit::{App, AppKind, Caller};
use wechat::AppId;

use super::{Service, paging, user};
use crate::{
    error::Error,
    login::{Attempt, JsCode, SignedIn},
    session::{Cursor, Listed, SessionId, Token},
    user::Nickname,
};

impl Service {
    pub(super) async fn login(
        &self,
        caller: &Caller,
        request: LoginRequest,
    ) -> Result<LoginResponse, Error> {
        let attempt = Attempt {
            app: self.app_to_log_in_to(caller, &request.app_id)?,
            js_code: JsCode::parse("js_code", &request.js_code)?,
            nickname: Nickname::parse(&request.nickname)?,
            client: caller.name.clone(),
            replaced: None,
        };
        let signed_in = self.auth.logins.login(attempt).await?;
        Ok(LoginResponse {
            session: Some(session(signed_in)),
        })
    }

    /// The mini program that a login names, or the only one that the caller has.
    fn app_to_log_in_to(&self, caller: &Caller, id_or_name: &str) -> Result<Arc<App>, Error> {
        if !id_or_name.is_empty() {
            return self.app(caller, id_or_name);
        }
        let catalog = self.auth.catalog.current();
        let mut open = catalog
            .apps()
            .iter()
            .filter(|app| app.kind == AppKind::MiniProgram && caller.apps.contains(&app.app_id));
        match (open.next(), open.next()) {
            (Some(only), None) => Ok(Arc::clone(only)),
            _ => Err(Error::field(
                "app_id",
                "must name a mini program by its app_id or name: the caller does not have exactly one",
            )),
        }
    }

    pub(super) async fn verify_session(
        &self,
        caller: &Caller,
        request: VerifySessionRequest,
    ) -> Result<VerifySessionResponse, Error> {
        let token = Token::parse(&request.session_token)?;
        // One of another app is not told apart from one that does not exist.
        let open_to = |app: &AppId| self.is_open(caller, app);
        let (session, expires) = self.auth.sessions.verify(&token, open_to).await?;
        let app_id = String::from(session.app_id);
        Ok(VerifySessionResponse {
            user: Some(wire::User {
                user_id: session.user_id.to_string(),
                app_id: app_id.clone(),
                open_id: session.open_id.into(),
                union_id: session.union_id.map(String::from).unwrap_or_default(),
                ..wire::User::default()
            }),
            app_id,
            expire_time: Some(Timestamp::from(expires)),
        })
    }

    pub(super) async fn revoke_session(
        &self,
        caller: &Caller,
        request: RevokeSessionRequest,
    ) -> Result<RevokeSessionResponse, Error> {
        let sessions = &self.auth.sessions;
        let open_to = |app_id: &AppId| caller.apps.contains(app_id);
        if request.session_id.is_empty() {
            let token = Token::parse(&request.session_token)?;
            sessions.revoke(&token, open_to).await?;
        } else {
            if !request.session_token.is_empty() {
                return Err(Error::field("session_id", "excludes session_token"));
            }
            let id = request.session_id.parse::<SessionId>();
            let id = id.map_err(|error| Error::field("session_id", error.to_string()))?;
            sessions.revoke_by_id(id, open_to).await?;
        }
        Ok(RevokeSessionResponse {})
    }

    pub(super) async fn revoke_user_sessions(
        &self,
        caller: &Caller,
        request: RevokeUserSessionsRequest,
    ) -> Result<RevokeUserSessionsResponse, Error> {
        let user = self.user(caller, &request.user_id).await?;
        self.auth.sessions.revoke_user(user.user_id).await?;
        Ok(RevokeUserSessionsResponse {})
    }

    pub(super) async fn revoke_app_sessions(
        &self,
        caller: &Caller,
        request: RevokeAppSessionsRequest,
    ) -> Result<RevokeAppSessionsResponse, Error> {
        let app = self.app(caller, &request.app_id)?;
        self.auth.sessions.revoke_app(&app.app_id).await?;
        Ok(RevokeAppSessionsResponse {})
    }

    pub(super) async fn list_user_sessions(
        &self,
        caller: &Caller,
        request: ListUserSessionsRequest,
    ) -> Result<ListUserSessionsResponse, Error> {
        let size = paging::size(request.page_size)?;
        let after = paging::after::<Cursor>(&request.page_token)?;
        let user = self.user(caller, &request.user_id).await?;
        let sessions = &self.auth.sessions;
        let (page, next) = sessions.list(user.user_id, after.as_ref(), size).await?;
        Ok(ListUserSessionsResponse {
            sessions: page.into_iter().map(listed).collect(),
            next_page_token: paging::token(next),
        })
    }

    pub(super) async fn exchange_ticket(
        &self,
        caller: &Caller,
        request: ExchangeTicketRequest,
    ) -> Result<ExchangeTicketResponse, Error> {
        for (field, text) in [("ticket", &request.ticket), ("host", &request.host)] {
            if text.is_empty() {
                return Err(Error::field(field, "is missing"));
            }
        }
        let open_to = |app_id: &AppId| self.is_open(caller, app_id);
        let signed_in = self
            .auth
            .oauth
            .exchange_ticket(&request.ticket, &request.host, open_to, &caller.name)
            .await?;
        Ok(ExchangeTicketResponse {
            session: Some(session(signed_in)),
        })
    }
}

fn listed(listed: Listed) -> wire::SessionInfo {
    let began = UNIX_EPOCH + Duration::from_millis(listed.session.created);
    wire::SessionInfo {
        session_id: listed.id.to_string(),
        app_id: listed.session.app_id.into(),
        create_time: Some(Timestamp::from(began)),
        last_seen_time: Some(Timestamp::from(listed.last_seen)),
        expire_time: Some(Timestamp::from(listed.expire_time)),
        client: listed.session.client,
    }
}

fn session(signed_in: SignedIn) -> wire::Session {
    wire::Session {
        session_token: signed_in.token.expose().to_owned(),
        expire_time: Some(Timestamp::from(signed_in.expire_time)),
        user: Some(user::user(signed_in.user)),
    }
}
