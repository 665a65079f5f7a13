//! `wxhub.auth.v1.AuthService`: translates, nothing else.

mod account;
mod data;
mod paging;
mod session;
mod user;

use std::sync::Arc;

use proto::auth::v1::{self as wire, auth_service_server::AuthService};
use service_kit::{App, Caller, Scope, caller::Rules};
use tonic::{Request, Response, Status};
use wechat::AppId;

use crate::{Auth, error::Error};

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

    /// The app that a request names, if it is open to the caller.
    fn app(&self, caller: &Caller, id_or_name: &str) -> Result<Arc<App>, Error> {
        if id_or_name.is_empty() {
            return Err(Error::field(
                "app_id",
                "must name an app by its app_id or name",
            ));
        }
        let catalog = self.auth.catalog.current();
        catalog
            .app(id_or_name)
            .filter(|app| caller.apps.contains(&app.app_id))
            .cloned()
            .ok_or(Error::AppUnknown)
    }
}

/// Each RPC with the scope that it demands. It is answered by the method of its name, which lies in a module of this
/// one.
macro_rules! rpcs {
    ($($rpc:ident = $method:ident($request:ident) -> $response:ident: $scope:ident,)*) => {
        /// Which scope each RPC demands.
        pub(crate) const RULES: Rules = &[
            $((concat!("/wxhub.auth.v1.AuthService/", stringify!($rpc)), Scope::$scope),)*
        ];

        #[tonic::async_trait]
        impl AuthService for Service {
            $(
                async fn $method(
                    &self,
                    request: Request<wire::$request>,
                ) -> Result<Response<wire::$response>, Status> {
                    let caller = Caller::of(&request)?;
                    // The inherent method: it comes before the trait's.
                    let answer = Self::$method(self, &caller, request.into_inner()).await;
                    answer.map(Response::new).map_err(|error| self.auth.status(&error))
                }
            )*
        }
    };
}

rpcs! {
    Login = login(LoginRequest) -> LoginResponse: AuthVerify,
    VerifySession = verify_session(VerifySessionRequest) -> VerifySessionResponse: AuthVerify,
    RevokeSession = revoke_session(RevokeSessionRequest) -> RevokeSessionResponse: AuthVerify,
    RevokeUserSessions = revoke_user_sessions(RevokeUserSessionsRequest) -> RevokeUserSessionsResponse: AuthWrite,
    RevokeAppSessions = revoke_app_sessions(RevokeAppSessionsRequest) -> RevokeAppSessionsResponse: AuthWrite,
    ListUserSessions = list_user_sessions(ListUserSessionsRequest) -> ListUserSessionsResponse: AuthRead,
    ExchangeTicket = exchange_ticket(ExchangeTicketRequest) -> ExchangeTicketResponse: AuthVerify,
    CheckSessionKey = check_session_key(CheckSessionKeyRequest) -> CheckSessionKeyResponse: AuthVerify,
    ResetSessionKey = reset_session_key(ResetSessionKeyRequest) -> ResetSessionKeyResponse: AuthVerify,
    DecryptUserData = decrypt_user_data(DecryptUserDataRequest) -> DecryptUserDataResponse: AuthVerify,
    GetPhoneNumber = get_phone_number(GetPhoneNumberRequest) -> GetPhoneNumberResponse: AuthVerify,
    GetUser = get_user(GetUserRequest) -> GetUserResponse: AuthRead,
    BatchGetUsers = batch_get_users(BatchGetUsersRequest) -> BatchGetUsersResponse: AuthRead,
    ListUsers = list_users(ListUsersRequest) -> ListUsersResponse: AuthRead,
    DeleteUser = delete_user(DeleteUserRequest) -> DeleteUserResponse: AuthWrite,
    CreateAccount = create_account(CreateAccountRequest) -> CreateAccountResponse: AuthWrite,
    SetAccountPassword = set_account_password(SetAccountPasswordRequest) -> SetAccountPasswordResponse: AuthWrite,
    GetAccount = get_account(GetAccountRequest) -> GetAccountResponse: AuthRead,
    DeleteAccount = delete_account(DeleteAccountRequest) -> DeleteAccountResponse: AuthWrite,
    CreateBindLink = create_bind_link(CreateBindLinkRequest) -> CreateBindLinkResponse: AuthWrite,
    GetBinding = get_binding(GetBindingRequest) -> GetBindingResponse: AuthRead,
    DeleteBinding = delete_binding(DeleteBindingRequest) -> DeleteBindingResponse: AuthWrite,
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
