//! What stands in for token-service and auth-service: services meet over gRPC only, in tests too.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use proto::{
    auth::v1::{self as auth, auth_service_server::AuthService},
    token::v1::{self as token, token_service_server::TokenService},
};
use service_kit::status;
use tonic::{Code, Request, Response, Status};
use wechat::{AppId, AppSecret, Client, ClientOptions};

/// Fetches an app's token at first use, and another when it is reported.
#[derive(Clone)]
pub(crate) struct Tokens(Arc<Inner>);

struct Inner {
    wechat: Client,
    held: Mutex<HashMap<String, token::AccessToken>>,
    reports: AtomicU64,
    away: AtomicBool,
    silent: AtomicBool,
}

impl Tokens {
    pub(crate) fn new(wechat_url: &str) -> Self {
        let options = ClientOptions::new(wechat_url.parse().unwrap());
        Self(Arc::new(Inner {
            wechat: Client::new(options).unwrap(),
            held: Mutex::default(),
            reports: AtomicU64::new(0),
            away: AtomicBool::new(false),
            silent: AtomicBool::new(false),
        }))
    }

    /// How often a dead token was reported.
    pub(crate) fn reports(&self) -> u64 {
        self.0.reports.load(Ordering::SeqCst)
    }

    /// Makes every call UNAVAILABLE, or none.
    pub(crate) fn set_away(&self, away: bool) {
        self.0.away.store(away, Ordering::SeqCst);
    }

    /// Lets no call end.
    pub(crate) fn silence(&self) {
        self.0.silent.store(true, Ordering::SeqCst);
    }

    async fn current(
        &self,
        app_id: &str,
        dead: Option<u64>,
    ) -> Result<Option<token::AccessToken>, Status> {
        if self.0.silent.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.0.away.load(Ordering::SeqCst) {
            return Err(Status::unavailable("away"));
        }
        let held = self.0.held.lock().unwrap().get(app_id).cloned();
        if held.as_ref().is_some_and(|held| Some(held.version) != dead) {
            return Ok(held);
        }
        let secret = match app_id {
            "wx0000000000000001" => "dev-secret-shop",
            "wx0000000000000002" => "dev-secret-news",
            _ => return Err(Status::not_found("no such app")),
        };
        let app = AppId::try_from(app_id).unwrap();
        let issued = self
            .0
            .wechat
            .access_token(&app, &AppSecret::new(secret))
            .await
            .unwrap();
        let until =
            service_kit::clock::since_epoch(service_kit::Clock::System.now()) + issued.expires_in;
        let until = Some(prost_types::Timestamp {
            seconds: i64::try_from(until.as_secs()).unwrap(),
            nanos: 0,
        });
        let fresh = token::AccessToken {
            app_id: app_id.to_owned(),
            token: issued.value.expose().to_owned(),
            expire_time: until,
            refresh_time: until,
            use_until: until,
            version: held.map_or(1, |held| held.version + 1),
        };
        self.0
            .held
            .lock()
            .unwrap()
            .insert(app_id.to_owned(), fresh.clone());
        Ok(Some(fresh))
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn absent<T>() -> Answer<T> {
    Err(Status::unimplemented("not in this stand-in"))
}

#[tonic::async_trait]
impl TokenService for Tokens {
    type WatchAccessTokensStream = Pin<
        Box<
            dyn futures_util::Stream<Item = Result<token::WatchAccessTokensResponse, Status>>
                + Send,
        >,
    >;

    async fn get_access_token(
        &self,
        request: Request<token::GetAccessTokenRequest>,
    ) -> Answer<token::GetAccessTokenResponse> {
        let access_token = self.current(&request.into_inner().app_id, None).await?;
        Ok(Response::new(token::GetAccessTokenResponse {
            access_token,
        }))
    }

    async fn report_invalid_access_token(
        &self,
        request: Request<token::ReportInvalidAccessTokenRequest>,
    ) -> Answer<token::ReportInvalidAccessTokenResponse> {
        self.0.reports.fetch_add(1, Ordering::SeqCst);
        let request = request.into_inner();
        let access_token = self.current(&request.app_id, Some(request.version)).await?;
        Ok(Response::new(token::ReportInvalidAccessTokenResponse {
            access_token,
        }))
    }

    async fn watch_access_tokens(
        &self,
        _: Request<token::WatchAccessTokensRequest>,
    ) -> Answer<Self::WatchAccessTokensStream> {
        Ok(Response::new(Box::pin(futures_util::stream::pending())))
    }

    async fn get_ticket(
        &self,
        _: Request<token::GetTicketRequest>,
    ) -> Answer<token::GetTicketResponse> {
        absent()
    }

    async fn sign_jsapi(
        &self,
        _: Request<token::SignJsapiRequest>,
    ) -> Answer<token::SignJsapiResponse> {
        absent()
    }

    async fn refresh_access_token(
        &self,
        _: Request<token::RefreshAccessTokenRequest>,
    ) -> Answer<token::RefreshAccessTokenResponse> {
        absent()
    }

    async fn list_credentials(
        &self,
        _: Request<token::ListCredentialsRequest>,
    ) -> Answer<token::ListCredentialsResponse> {
        absent()
    }
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
