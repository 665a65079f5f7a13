//! What stands in for auth-service: services meet over gRPC only, in tests too.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

use proto::auth::v1::{self as auth, auth_service_server::AuthService};
use service_kit::status;
use tonic::{Code, Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this stand-in"))
}

/// Knows the sessions `session:<app_id>:<open_id>`, and the accounts that are bound. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Auth(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    /// App and account to open_id.
    bindings: HashMap<(String, String), String>,
    /// The accounts that were asked about, in order.
    asked: Vec<String>,
    away: bool,
}

impl Auth {
    /// Binds a user to an account, in place of whoever was.
    pub(crate) fn bind(&self, app_id: &str, account: &str, open_id: &str) {
        let key = (app_id.to_owned(), account.to_owned());
        self.known().bindings.insert(key, open_id.to_owned());
    }

    pub(crate) fn unbind(&self, app_id: &str, account: &str) {
        let key = (app_id.to_owned(), account.to_owned());
        self.known().bindings.remove(&key);
    }

    /// The accounts that were asked about since the last look.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.known().asked)
    }

    /// Makes every GetBinding UNAVAILABLE, or none.
    pub(crate) fn set_away(&self, away: bool) {
        self.known().away = away;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap()
    }
}

/// A session that [`Auth`] takes.
pub(crate) fn session(app_id: &str, open_id: &str) -> String {
    format!("session:{app_id}:{open_id}")
}

/// AuthService of `Auth`: the methods written out, and those that nobody here calls.
macro_rules! auth_service {
    ({ $($served:tt)* } $($absent:ident($request:ident) -> $response:ident,)*) => {
        #[tonic::async_trait]
        impl AuthService for Auth {
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

        async fn get_binding(
            &self,
            request: Request<auth::GetBindingRequest>,
        ) -> Answer<auth::GetBindingResponse> {
            let auth::GetBindingRequest { app_id, account } = request.into_inner();
            let mut known = self.known();
            known.asked.push(account.clone());
            if known.away {
                return Err(Status::unavailable("away"));
            }
            if account.trim() != account {
                return Err(status::invalid_field("account", "is none"));
            }
            let open_id = known.bindings.get(&(app_id.clone(), account.clone()));
            let open_id = open_id.cloned().ok_or_else(|| {
                status::error(Code::NotFound, "BINDING_NOT_FOUND", "nobody is bound").build()
            })?;
            let binding = auth::Binding {
                account,
                app_id,
                open_id,
                ..auth::Binding::default()
            };
            Ok(Response::new(auth::GetBindingResponse {
                binding: Some(binding),
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
    delete_binding(DeleteBindingRequest) -> DeleteBindingResponse,
}
