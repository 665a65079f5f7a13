//! What stands in for auth-service: services meet over gRPC only, in tests too.

use proto::auth::v1::{self as auth, auth_service_server::AuthService};
use service_kit::status;
use tonic::{Code, Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this stand-in"))
}

/// Knows the sessions `session:<app_id>:<open_id>`.
pub(crate) struct Sessions;

/// A session that [`Sessions`] takes.
pub(crate) fn session(app_id: &str, open_id: &str) -> String {
    format!("session:{app_id}:{open_id}")
}

/// AuthService of `Sessions`: the methods written out, and those that nobody here calls.
macro_rules! auth_service {
    ({ $($served:tt)* } $($absent:ident($request:ident) -> $response:ident,)*) => {
        #[tonic::async_trait]
        impl AuthService for Sessions {
            $($served)*

            $(
                async fn $absent(&self, _: Request<auth::$request>) -> Answer<auth::$response> {
                    absent()
                }
            )*
        }
    };
}

auth_service! {
    {
        async fn verify_session(
            &self,
            request: Request<auth::VerifySessionRequest>,
        ) -> Answer<auth::VerifySessionResponse> {
            let token = request.into_inner().session_token;
            if token.len() > 128 {
                return Err(status::invalid_field("session_token", "is too long"));
            }
            let parts: Vec<_> = token.split(':').collect();
            let ["session", app_id, open_id] = parts[..] else {
                return Err(
                    status::error(Code::Unauthenticated, "SESSION_INVALID", "no such session").build(),
                );
            };
            let user = auth::User {
                app_id: app_id.to_owned(),
                open_id: open_id.to_owned(),
                ..auth::User::default()
            };
            Ok(Response::new(auth::VerifySessionResponse {
                user: Some(user),
                app_id: app_id.to_owned(),
                expire_time: None,
            }))
        }
    }
    login(LoginRequest) -> LoginResponse,
    revoke_session(RevokeSessionRequest) -> RevokeSessionResponse,
    revoke_user_sessions(RevokeUserSessionsRequest) -> RevokeUserSessionsResponse,
    revoke_app_sessions(RevokeAppSessionsRequest) -> RevokeAppSessionsResponse,
    list_user_sessions(ListUserSessionsRequest) -> ListUserSessionsResponse,
    exchange_ticket(ExchangeTicketRequest) -> ExchangeTicketResponse,
    check_session_key(CheckSessionKeyRequest) -> CheckSessionKeyResponse,
    reset_session_key(ResetSessionKeyRequest) -> ResetSessionKeyResponse,
    decrypt_user_data(DecryptUserDataRequest) -> DecryptUserDataResponse,
    get_phone_number(GetPhoneNumberRequest) -> GetPhoneNumberResponse,
    get_user(GetUserRequest) -> GetUserResponse,
    batch_get_users(BatchGetUsersRequest) -> BatchGetUsersResponse,
    list_users(ListUsersRequest) -> ListUsersResponse,
    delete_user(DeleteUserRequest) -> DeleteUserResponse,
    create_account(CreateAccountRequest) -> CreateAccountResponse,
    set_account_password(SetAccountPasswordRequest) -> SetAccountPasswordResponse,
    get_account(GetAccountRequest) -> GetAccountResponse,
    delete_account(DeleteAccountRequest) -> DeleteAccountResponse,
    create_bind_link(CreateBindLinkRequest) -> CreateBindLinkResponse,
    get_binding(GetBindingRequest) -> GetBindingResponse,
    delete_binding(DeleteBindingRequest) -> DeleteBindingResponse,
}
