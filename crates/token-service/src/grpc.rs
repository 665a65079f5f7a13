//! `wxhub.token.v1.TokenService`: translates, nothing else.

mod list;
mod status;

use std::{pin::Pin, sync::Arc, time::SystemTime};

use futures_util::{Stream, StreamExt as _};
use proto::token::v1::{
    self as wire, GetAccessTokenRequest, GetAccessTokenResponse, GetTicketRequest,
    GetTicketResponse, ListCredentialsRequest, ListCredentialsResponse, RefreshAccessTokenRequest,
    RefreshAccessTokenResponse, ReportInvalidAccessTokenRequest, ReportInvalidAccessTokenResponse,
    SignJsapiRequest, SignJsapiResponse, WatchAccessTokensRequest, WatchAccessTokensResponse,
    token_service_server::TokenService,
};
use secrecy::ExposeSecret as _;
use service_kit::{App, Caller, Scope, caller::Rules, ops::Readiness, status::invalid_field};
use tonic::{Request, Response, Status};
use wechat::{AppId, Class, ErrCode, TicketType};

use crate::{
    broker::Broker,
    credential::{Key, slot::Held},
    error::Error,
    jsapi, report,
    watch::{self, Apps},
};

/// Which scope each RPC demands.
pub(crate) const RULES: Rules = &[
    (
        "/wxhub.token.v1.TokenService/GetAccessToken",
        Scope::TokenRead,
    ),
    ("/wxhub.token.v1.TokenService/GetTicket", Scope::TokenRead),
    ("/wxhub.token.v1.TokenService/SignJsapi", Scope::TokenRead),
    (
        "/wxhub.token.v1.TokenService/WatchAccessTokens",
        Scope::TokenRead,
    ),
    (
        "/wxhub.token.v1.TokenService/ReportInvalidAccessToken",
        Scope::TokenRead,
    ),
    (
        "/wxhub.token.v1.TokenService/RefreshAccessToken",
        Scope::Admin,
    ),
    ("/wxhub.token.v1.TokenService/ListCredentials", Scope::Admin),
];
/// Apps that one watch may name.
const WATCH_MAX: usize = 1_000;

/// The service behind the gRPC port.
#[derive(Debug)]
pub(crate) struct Rpcs {
    broker: Broker,
    readiness: Readiness,
}

type WatchStream = Pin<Box<dyn Stream<Item = Result<WatchAccessTokensResponse, Status>> + Send>>;

impl Rpcs {
    pub(crate) fn new(broker: Broker, readiness: Readiness) -> Self {
        Self { broker, readiness }
    }

    /// The app that a request names, if it is open to the request's caller.
    fn app<T>(&self, request: &Request<T>, named: impl Fn(&T) -> &str) -> Result<Arc<App>, Status> {
        let caller = Caller::of(request)?;
        caller.app(&self.broker.catalog().current(), named(request.get_ref()))
    }

    fn now(&self) -> SystemTime {
        self.broker.clock().now()
    }

    fn refused(&self, error: &Error) -> Status {
        status::of(error, self.now())
    }

    fn access_token(&self, app: &AppId, held: &Held) -> wire::AccessToken {
        access_token(app, held, self.now())
    }
}

#[tonic::async_trait]
impl TokenService for Rpcs {
    async fn get_access_token(
        &self,
        request: Request<GetAccessTokenRequest>,
    ) -> Result<Response<GetAccessTokenResponse>, Status> {
        let app = self.app(&request, |request| &request.app_id)?;
        let key = Key::access_token(&app.app_id);
        let held = self.broker.get(&key).await;
        let held = held.map_err(|error| self.refused(&error))?;
        Ok(Response::new(GetAccessTokenResponse {
            access_token: Some(self.access_token(&key.app, &held)),
        }))
    }

    async fn get_ticket(
        &self,
        request: Request<GetTicketRequest>,
    ) -> Result<Response<GetTicketResponse>, Status> {
        let app = self.app(&request, |request| &request.app_id)?;
        let ticket_type = request.get_ref().r#type();
        let kind = match ticket_type {
            wire::TicketType::Jsapi => TicketType::Jsapi,
            wire::TicketType::WxCard => TicketType::WxCard,
            wire::TicketType::Unspecified => {
                let problem = "must be TICKET_TYPE_JSAPI or TICKET_TYPE_WX_CARD";
                return Err(invalid_field("type", problem));
            }
        };
        let key = Key {
            app: app.app_id.clone(),
            kind: kind.into(),
        };
        let held = self.broker.get(&key).await;
        let held = held.map_err(|error| self.refused(&error))?;
        let credential = &held.credential;
        Ok(Response::new(GetTicketResponse {
            ticket: Some(wire::Ticket {
                app_id: key.app.into(),
                r#type: ticket_type.into(),
                ticket: credential.secret.expose_secret().to_owned(),
                expire_time: Some(credential.times.expire.into()),
                refresh_time: Some(held.refresh_time().into()),
                version: credential.version,
            }),
        }))
    }

    async fn sign_jsapi(
        &self,
        request: Request<SignJsapiRequest>,
    ) -> Result<Response<SignJsapiResponse>, Status> {
        let app = self.app(&request, |request| &request.app_id)?;
        let signed = jsapi::sign(&self.broker, &app, &request.get_ref().url).await;
        let signed = signed.map_err(|error| self.refused(&error))?;
        Ok(Response::new(SignJsapiResponse {
            jsapi_signature: Some(wire::JsapiSignature {
                app_id: app.app_id.to_string(),
                nonce_str: signed.nonce,
                timestamp: signed.timestamp,
                signature: signed.signature,
                url: signed.url,
                expire_time: Some(signed.expire_time.into()),
            }),
        }))
    }

    type WatchAccessTokensStream = WatchStream;

    async fn watch_access_tokens(
        &self,
        request: Request<WatchAccessTokensRequest>,
    ) -> Result<Response<WatchStream>, Status> {
        let caller = Caller::of(&request)?;
        let named = request.into_inner().app_ids;
        if named.len() > WATCH_MAX {
            let problem = format!("names more than {WATCH_MAX} apps");
            return Err(invalid_field("app_ids", problem));
        }
        let apps = if named.is_empty() {
            Apps::Of(caller)
        } else {
            let catalog = self.broker.catalog().current();
            let apps = named.iter().map(|name| caller.app(&catalog, name));
            let apps: Result<Vec<_>, _> =
                apps.map(|app| app.map(|app| app.app_id.clone())).collect();
            Apps::Named(apps?)
        };
        let broker = self.broker.clone();
        let clock = broker.clock().clone();
        let tokens = watch::follow(broker, apps, self.readiness.watch());
        let tokens = tokens.map(move |(app, held)| {
            Ok(WatchAccessTokensResponse {
                access_token: Some(access_token(&app, &held, clock.now())),
            })
        });
        Ok(Response::new(Box::pin(tokens)))
    }

    async fn report_invalid_access_token(
        &self,
        request: Request<ReportInvalidAccessTokenRequest>,
    ) -> Result<Response<ReportInvalidAccessTokenResponse>, Status> {
        let app = self.app(&request, |request| &request.app_id)?;
        let ReportInvalidAccessTokenRequest {
            version, errcode, ..
        } = *request.get_ref();
        let errcode = ErrCode(errcode);
        if version == 0 {
            let problem = "must be the version that came with the token";
            return Err(invalid_field("version", problem));
        }
        if errcode.class() != Class::Token {
            return Err(invalid_field("errcode", "must be 40001, 40014 or 42001"));
        }
        let key = Key::access_token(&app.app_id);
        let held = report::report(&self.broker, &key, version, errcode).await;
        let held = held.map_err(|error| self.refused(&error))?;
        Ok(Response::new(ReportInvalidAccessTokenResponse {
            access_token: Some(self.access_token(&key.app, &held)),
        }))
    }

    async fn refresh_access_token(
        &self,
        request: Request<RefreshAccessTokenRequest>,
    ) -> Result<Response<RefreshAccessTokenResponse>, Status> {
        let app = self.app(&request, |request| &request.app_id)?;
        let key = Key::access_token(&app.app_id);
        let held = report::refresh(&self.broker, &key, request.get_ref().force).await;
        let held = held.map_err(|error| self.refused(&error))?;
        Ok(Response::new(RefreshAccessTokenResponse {
            access_token: Some(self.access_token(&key.app, &held)),
        }))
    }

    async fn list_credentials(
        &self,
        request: Request<ListCredentialsRequest>,
    ) -> Result<Response<ListCredentialsResponse>, Status> {
        let caller = Caller::of(&request)?;
        list::page(&self.broker, &caller, request.get_ref()).map(Response::new)
    }
}

fn access_token(app: &AppId, held: &Held, now: SystemTime) -> wire::AccessToken {
    let credential = &held.credential;
    wire::AccessToken {
        app_id: app.to_string(),
        token: credential.secret.expose_secret().to_owned(),
        expire_time: Some(credential.times.expire.into()),
        refresh_time: Some(held.refresh_time().into()),
        use_until: Some(held.use_until(now).into()),
        version: credential.version,
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn every_rpc_has_a_rule_and_every_rule_an_rpc() {
        let descriptors = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
        let mut declared: Vec<_> = descriptors
            .file
            .iter()
            .filter(|file| file.package() == "wxhub.token.v1")
            .flat_map(|file| &file.service)
            .flat_map(|service| {
                let path = |rpc: &str| format!("/wxhub.token.v1.{}/{rpc}", service.name());
                service.method.iter().map(move |rpc| path(rpc.name()))
            })
            .collect();
        let mut ruled: Vec<_> = RULES.iter().map(|(path, _)| (*path).to_owned()).collect();
        declared.sort();
        ruled.sort();
        assert_eq!(ruled, declared);
        assert_eq!(declared.len(), 7);
    }
}
