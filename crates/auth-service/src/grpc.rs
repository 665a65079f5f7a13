//! `wxhub.auth.v1.AuthService`: translates, nothing else.

use std::sync::Arc;

use prost_types::Timestamp;
use proto::auth::v1::{
    self as wire, GetUserRequest, GetUserResponse, LoginRequest, LoginResponse,
    RevokeSessionRequest, RevokeSessionResponse, VerifySessionRequest, VerifySessionResponse,
    auth_service_server::AuthService,
};
use service_kit::{App, AppKind, Caller, Catalog, Scope, caller::Rules};
use tonic::{Request, Response, Status};
use wechat::{AppId, OpenId};

use crate::{
    Auth,
    error::Error,
    login::{Attempt, JsCode},
    session::Token,
    user::{Nickname, User},
};

/// Which scope each RPC demands.
pub(crate) const RULES: Rules = &[
    ("/wxhub.auth.v1.AuthService/Login", Scope::AuthVerify),
    (
        "/wxhub.auth.v1.AuthService/VerifySession",
        Scope::AuthVerify,
    ),
    (
        "/wxhub.auth.v1.AuthService/RevokeSession",
        Scope::AuthVerify,
    ),
    ("/wxhub.auth.v1.AuthService/GetUser", Scope::AuthRead),
];

/// The service behind the gRPC port.
#[derive(Debug)]
pub(crate) struct Service {
    auth: Auth,
}

impl Service {
    pub(crate) fn new(auth: Auth) -> Self {
        Self { auth }
    }

    /// Whether the app is declared and in the caller's list.
    fn is_open(&self, caller: &Caller, app_id: &AppId) -> bool {
        let catalog = self.auth.catalog.current();
        caller.apps.contains(app_id) && catalog.app(app_id.as_str()).is_some()
    }

    async fn find_user(&self, caller: &Caller, request: &GetUserRequest) -> Result<User, Error> {
        let users = &self.auth.users;
        let by_id = !request.user_id.is_empty();
        if by_id && !(request.app_id.is_empty() && request.open_id.is_empty()) {
            return Err(Error::field("user_id", "excludes app_id and open_id"));
        }
        let user = if by_id {
            let user_id = request.user_id.parse();
            let user_id = user_id.map_err(|_| Error::field("user_id", "must be a UUID"))?;
            users.get(user_id).await?
        } else {
            if request.app_id.is_empty() {
                let problem = "is missing: name the user by it, or by app_id and open_id";
                let field = if request.open_id.is_empty() {
                    "user_id"
                } else {
                    "app_id"
                };
                return Err(Error::field(field, problem));
            }
            let catalog = self.auth.catalog.current();
            let app = catalog
                .app(&request.app_id)
                .filter(|app| caller.apps.contains(&app.app_id))
                .ok_or(Error::AppUnknown)?;
            let open_id = OpenId::try_from(request.open_id.as_str());
            let open_id = open_id
                .map_err(|error| Error::field("open_id", format!("is malformed: {error}")))?;
            users.by_open_id(&app.app_id, &open_id).await?
        };
        user.filter(|user| self.is_open(caller, &user.app_id))
            .ok_or(Error::UserUnknown)
    }
}

/// The mini program that a login names, or the only one that the caller has.
fn app_to_log_in_to(
    caller: &Caller,
    catalog: &Catalog,
    id_or_name: &str,
) -> Result<Arc<App>, Status> {
    if !id_or_name.is_empty() {
        return caller.app(catalog, id_or_name);
    }
    let mut open = catalog
        .apps()
        .iter()
        .filter(|app| app.kind == AppKind::MiniProgram && caller.apps.contains(&app.app_id));
    match (open.next(), open.next()) {
        (Some(only), None) => Ok(Arc::clone(only)),
        _ => Err(service_kit::status::invalid_field(
            "app_id",
            "must name a mini program by its app_id or name: the caller does not have exactly one",
        )),
    }
}

#[tonic::async_trait]
impl AuthService for Service {
    async fn login(
        &self,
        request: Request<LoginRequest>,
    ) -> Result<Response<LoginResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let app = app_to_log_in_to(&caller, &self.auth.catalog.current(), &request.app_id)?;
        let login = async {
            let attempt = Attempt {
                app,
                js_code: JsCode::parse(&request.js_code)?,
                nickname: Nickname::parse(&request.nickname)?,
                client: caller.name.clone(),
            };
            self.auth.logins.login(attempt).await
        };
        let signed_in = login.await.map_err(|error| self.auth.status(&error))?;
        let session = wire::Session {
            session_token: signed_in.token.expose().to_owned(),
            expire_time: Some(Timestamp::from(signed_in.expire_time)),
            user: Some(user(signed_in.user)),
        };
        Ok(Response::new(LoginResponse {
            session: Some(session),
        }))
    }

    async fn verify_session(
        &self,
        request: Request<VerifySessionRequest>,
    ) -> Result<Response<VerifySessionResponse>, Status> {
        let caller = Caller::of(&request)?;
        let verify = async {
            let token = Token::parse(&request.get_ref().session_token)?;
            // One of another app is not told apart from one that does not exist.
            let open_to = |app: &AppId| self.is_open(&caller, app);
            self.auth.sessions.verify(&token, open_to).await
        };
        let (session, expires) = verify.await.map_err(|error| self.auth.status(&error))?;
        let app_id = String::from(session.app_id);
        Ok(Response::new(VerifySessionResponse {
            user: Some(wire::User {
                user_id: session.user_id.to_string(),
                app_id: app_id.clone(),
                open_id: session.open_id.into(),
                union_id: session.union_id.map(String::from).unwrap_or_default(),
                ..wire::User::default()
            }),
            app_id,
            expire_time: Some(Timestamp::from(expires)),
        }))
    }

    async fn revoke_session(
        &self,
        request: Request<RevokeSessionRequest>,
    ) -> Result<Response<RevokeSessionResponse>, Status> {
        let caller = Caller::of(&request)?;
        let revoke = async {
            let token = Token::parse(&request.get_ref().session_token)?;
            let open_to = |app_id: &AppId| caller.apps.contains(app_id);
            self.auth.sessions.revoke(&token, open_to).await
        };
        revoke.await.map_err(|error| self.auth.status(&error))?;
        Ok(Response::new(RevokeSessionResponse {}))
    }

    async fn get_user(
        &self,
        request: Request<GetUserRequest>,
    ) -> Result<Response<GetUserResponse>, Status> {
        let caller = Caller::of(&request)?;
        let found = self.find_user(&caller, request.get_ref()).await;
        let found = found.map_err(|error| self.auth.status(&error))?;
        Ok(Response::new(GetUserResponse {
            user: Some(user(found)),
        }))
    }
}

fn user(user: User) -> wire::User {
    wire::User {
        user_id: user.user_id.to_string(),
        app_id: user.app_id.into(),
        open_id: user.open_id.into(),
        union_id: user.union_id.map(String::from).unwrap_or_default(),
        nickname: user.nickname.unwrap_or_default(),
        create_time: Some(Timestamp::from(user.create_time)),
        last_login_time: Some(Timestamp::from(user.last_login_time)),
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_has_a_rule() {
        let files = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut rpcs = Vec::new();
        for file in &files.file {
            for service in &file.service {
                let name = format!("{}.{}", file.package(), service.name());
                if name == "wxhub.auth.v1.AuthService" {
                    let method = service.method.iter();
                    rpcs.extend(method.map(|method| format!("/{name}/{}", method.name())));
                }
            }
        }
        rpcs.sort();
        let mut rules: Vec<_> = RULES.iter().map(|(rpc, _)| (*rpc).to_owned()).collect();
        rules.sort();
        assert_eq!(rules, rpcs);
    }
}
