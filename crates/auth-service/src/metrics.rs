//! What is counted.

use metrics::{counter, describe_counter};
use wechat::Class;

use crate::{account, binding::Outcome, error::Error};

/// Logins by app and outcome.
const LOGINS: &str = "wxhub_auth_logins_total";
/// Encrypted data opened, by app and outcome.
const USER_DATA: &str = "wxhub_auth_user_data_total";
/// Session checks by outcome.
const VERIFICATIONS: &str = "wxhub_auth_session_verifications_total";
/// Accounts signing in, by outcome.
const SIGN_INS: &str = "wxhub_auth_account_sign_ins_total";
/// Phones that came back to be bound, by outcome.
const BINDINGS: &str = "wxhub_auth_bindings_total";

/// Web OAuth, by app and outcome.
const OAUTH: &str = "wxhub_auth_oauth_total";

/// Describes every metric; once, at start.
pub(crate) fn describe() {
    describe_counter!(
        LOGINS,
        "Logins, by app and outcome (signed_in, refused, busy, unavailable, failed)"
    );
    describe_counter!(
        USER_DATA,
        "Encrypted data of mini programs, by app and outcome (opened, outdated, expired, invalid, failed)"
    );
    describe_counter!(
        OAUTH,
        "Steps of web OAuth, by app and outcome (started, silent, signed_in, repeated, ticket_exchanged, or why not: \
         access_denied, snapshot_user, code_invalid, user_blocked, rate_limited, temporarily_unavailable, server_error, \
         state_invalid, busy, invalid_request)"
    );
    describe_counter!(
        VERIFICATIONS,
        "Sessions checked, by outcome (valid, invalid, unavailable)"
    );
    describe_counter!(
        SIGN_INS,
        "Accounts signing in with their password, by outcome (signed_in, wrong, cooling_down, unavailable)"
    );
    describe_counter!(
        BINDINGS,
        "Phones that came back from WeChat to be bound, by outcome (bound, declined, refused, failed)"
    );
}

/// Counts an account signing in.
pub(crate) fn sign_in<T>(outcome: &Result<T, Error>) {
    use account::Refusal;

    let outcome = match outcome {
        Ok(_) => "signed_in",
        Err(Error::Account(Refusal::Wrong)) => "wrong",
        Err(Error::Account(Refusal::CoolingDown(_))) => "cooling_down",
        Err(_) => "unavailable",
    };
    counter!(SIGN_INS, "outcome" => outcome).increment(1);
}

/// Counts a phone that came back to be bound.
pub(crate) fn binding(outcome: &Result<Outcome, Error>) {
    let outcome = match outcome {
        Ok(Outcome::Bound { .. }) => "bound",
        Ok(Outcome::Declined) => "declined",
        Ok(Outcome::Undone | Outcome::Failed(_)) => "refused",
        Err(_) => "failed",
    };
    counter!(BINDINGS, "outcome" => outcome).increment(1);
}

/// Counts a login to the app of this name.
pub(crate) fn login<T>(app: &str, outcome: &Result<T, Error>) {
    let outcome = match outcome {
        Ok(_) => "signed_in",
        Err(
            Error::InvalidField { .. }
            | Error::AppUnknown
            | Error::SessionInvalid
            | Error::SessionMissing
            | Error::TicketInvalid
            | Error::OAuthStateInvalid
            | Error::OriginForbidden
            | Error::SessionKeyOutdated
            | Error::DataInvalid(_)
            | Error::DataExpired
            | Error::PhoneCodeInvalid { .. }
            | Error::UserUnknown
            | Error::Account(_)
            | Error::Binding(_),
        ) => "refused",
        Err(Error::WeChat { source, .. }) => match source.class() {
            Class::Backoff | Class::Minute | Class::Day => "unavailable",
            Class::Config | Class::Token => "failed",
            Class::Ok | Class::Caller | Class::Recipient | Class::Grant | Class::Unknown => {
                "refused"
            }
        },
        Err(Error::LoginInProgress) => "busy",
        Err(Error::Tokens(_) | Error::Call { .. } | Error::RevocationsUnknown) => "unavailable",
        Err(Error::Redis(_) | Error::Database(_) | Error::DatabaseTimeout(_)) => "unavailable",
        Err(
            Error::SecretUnknown { .. }
            | Error::PublicUrlMissing
            | Error::Stored(_)
            | Error::TaskLost(_),
        ) => "failed",
    };
    counter!(LOGINS, "app" => app.to_owned(), "outcome" => outcome).increment(1);
}

/// Counts encrypted data of the app of this name.
pub(crate) fn user_data<T>(app: &str, outcome: &Result<T, Error>) {
    let outcome = match outcome {
        Ok(_) => "opened",
        Err(Error::SessionKeyOutdated) => "outdated",
        Err(Error::DataExpired) => "expired",
        Err(Error::DataInvalid(_) | Error::InvalidField { .. }) => "invalid",
        Err(_) => "failed",
    };
    counter!(USER_DATA, "app" => app.to_owned(), "outcome" => outcome).increment(1);
}

/// Counts a session check.
pub(crate) fn verification<T>(outcome: &Result<T, Error>) {
    let outcome = match outcome {
        Ok(_) => "valid",
        Err(Error::SessionInvalid) => "invalid",
        Err(_) => "unavailable",
    };
    counter!(VERIFICATIONS, "outcome" => outcome).increment(1);
}

/// Counts a step of web OAuth with the app of this name, which is empty where it is not known.
pub(crate) fn oauth(app: &str, outcome: &'static str) {
    counter!(OAUTH, "app" => app.to_owned(), "outcome" => outcome).increment(1);
}
