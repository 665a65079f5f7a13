//! Accounts by name: which WeChat user auth-service has bound to one.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use proto::auth::v1::{GetBindingRequest, auth_service_client::AuthServiceClient};
use service_kit::client::PeerChannel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;
use wechat::{AppId, OpenId};

use crate::error::Error;

/// The longest name that is asked about, in characters; auth-service takes shorter ones.
pub(crate) const MAX_ACCOUNT: usize = 255;
/// All that are asked at once are answered within this, or auth-service counts as away.
const DEADLINE: Duration = Duration::from_secs(3);
/// Accounts of one request that auth-service is asked about at the same time.
const AT_ONCE: usize = 16;

/// Asks auth-service whom accounts are bound to.
#[derive(Debug, Clone)]
pub(crate) struct Accounts {
    pub(crate) auth: AuthServiceClient<PeerChannel>,
}

/// Whom each account is bound to.
pub(crate) type Bound = HashMap<String, Result<OpenId, Unbound>>;

/// Why an account stands for nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unbound {
    /// No WeChat user is bound to it in this app, or nobody knows it.
    NotBound,
    /// No account can have this name.
    NoName,
}

impl From<Unbound> for Error {
    fn from(unbound: Unbound) -> Self {
        match unbound {
            Unbound::NotBound => Self::AccountNotBound,
            Unbound::NoName => {
                let problem = "must be the name of an account";
                Self::Invalid(vec![("account".to_owned(), problem.to_owned())])
            }
        }
    }
}

impl Accounts {
    /// Whom this account is bound to in the app, now.
    pub(crate) async fn open_id(&self, app_id: &AppId, account: &str) -> Result<OpenId, Error> {
        let mut bound = self
            .open_ids(app_id, BTreeSet::from([account.to_owned()]))
            .await?;
        let found = bound.remove(account).unwrap_or(Err(Unbound::NotBound));
        Ok(found?)
    }

    /// Whom each of these is bound to in the app, now: all are told, or auth-service is away.
    pub(crate) async fn open_ids(
        &self,
        app_id: &AppId,
        accounts: BTreeSet<String>,
    ) -> Result<Bound, Error> {
        let asked = stream::iter(accounts)
            .map(|account| async move {
                let bound = self.ask(app_id, &account).await?;
                Ok((account, bound))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect();
        let answered = tokio::time::timeout(DEADLINE, asked).await;
        answered.unwrap_or_else(|_| {
            let late = "the accounts' bindings were not told in time";
            Err(Error::AuthUnavailable(Status::deadline_exceeded(late)))
        })
    }

    async fn ask(&self, app_id: &AppId, account: &str) -> Result<Result<OpenId, Unbound>, Error> {
        let mut request = Request::new(GetBindingRequest {
            app_id: app_id.to_string(),
            account: account.to_owned(),
        });
        request.set_timeout(DEADLINE);
        let answer = self.auth.clone().get_binding(request).await;
        let binding = match answer {
            Ok(answer) => answer.into_inner().binding,
            Err(status) => return refused(status).map(Err),
        };
        let open_id = binding.and_then(|binding| OpenId::try_from(binding.open_id).ok());
        open_id.map(Ok).ok_or_else(|| {
            Error::AuthUnavailable(Status::internal(
                "its answer has no binding with an open_id",
            ))
        })
    }
}

/// What auth-service's refusal means: something about the account, or something between the two services.
fn refused(status: Status) -> Result<Unbound, Error> {
    let reason = status.get_details_error_info().map(|info| info.reason);
    match (status.code(), reason.as_deref()) {
        (Code::NotFound, Some("BINDING_NOT_FOUND")) => Ok(Unbound::NotBound),
        (Code::InvalidArgument, _) => Ok(Unbound::NoName),
        // This service's own key and list of apps, of which the caller knows nothing.
        (
            Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::NotFound,
            _,
        ) => Err(Error::AuthRefused(status)),
        _ => Err(Error::AuthUnavailable(status)),
    }
}

#[cfg(test)]
mod tests {
    use service_kit::status;

    use super::*;

    #[test]
    fn only_what_is_about_the_account_is_told_of_it() {
        let answer = |code, reason| refused(status::error(code, reason, "no").build());
        let not_bound = answer(Code::NotFound, "BINDING_NOT_FOUND");
        assert_eq!(not_bound.unwrap(), Unbound::NotBound);
        let no_name = answer(Code::InvalidArgument, "INVALID_ARGUMENT");
        assert_eq!(no_name.unwrap(), Unbound::NoName);
        for (code, reason) in [
            (Code::NotFound, "APP_NOT_FOUND"),
            (Code::PermissionDenied, "SCOPE_MISSING"),
            (Code::Unauthenticated, "CALLER_KEY_INVALID"),
        ] {
            assert!(matches!(answer(code, reason), Err(Error::AuthRefused(_))));
        }
        for code in [Code::Unavailable, Code::DeadlineExceeded, Code::Internal] {
            let away = answer(code, "STORE_UNAVAILABLE");
            assert!(matches!(away, Err(Error::AuthUnavailable(_))));
        }
    }
}
