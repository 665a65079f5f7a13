//! 客服输入状态: the user sees that an answer is being typed.

use std::time::Duration;

use serde_json::Value;

use crate::{account::Account, clock::Moment, config::Kind, endpoint::Endpoint, error::ApiError};

/// How long it is shown.
const SHOWN: Duration = Duration::from_secs(15);
/// How long after a message it may be.
const AFTER_MESSAGE: Duration = Duration::from_secs(30);

/// What a user sees of the account's typing.
#[derive(Default)]
pub(crate) struct TypingState {
    /// Until when it may be shown: a while after the latest message, either way.
    may_until: Moment,
    shown_until: Moment,
}

impl TypingState {
    /// The user wrote, or is written to: what was being typed is there.
    pub(crate) fn message(&mut self, now: Moment) {
        *self = Self {
            may_until: now + AFTER_MESSAGE,
            shown_until: now,
        };
    }

    fn show(&mut self, now: Moment) -> Result<(), ApiError> {
        if now >= self.may_until {
            return Err(ApiError::NO_EXCHANGE);
        }
        if now < self.shown_until {
            return Err(ApiError::ALREADY_TYPING);
        }
        self.shown_until = now + SHOWN;
        Ok(())
    }

    fn hide(&mut self, now: Moment) -> Result<(), ApiError> {
        if now >= self.may_until {
            return Err(ApiError::NO_EXCHANGE);
        }
        self.shown_until = now;
        Ok(())
    }
}

/// Shows it, or takes it back, as `body` asks. Each kind of account has an interface of its own.
pub(crate) fn type_to(
    endpoint: Endpoint,
    account: &mut Account,
    body: &Value,
    now: Moment,
) -> Result<(), ApiError> {
    let kind = if endpoint == Endpoint::BusinessTyping {
        Kind::MiniProgram
    } else {
        Kind::OfficialAccount
    };
    if account.config.kind != kind {
        return Err(ApiError::INVALID_ACCOUNT_TYPE);
    }
    let text = |field| body.get(field).and_then(Value::as_str).unwrap_or_default();
    let user = account.user_mut(text("touser"));
    let user = user.ok_or(ApiError::INVALID_OPENID)?;
    let shown = match text("command") {
        "Typing" => true,
        "CancelTyping" => false,
        _ => return Err(ApiError::INVALID_COMMAND),
    };
    if kind == Kind::OfficialAccount && !user.follows {
        return Err(ApiError::WINDOW_CLOSED);
    }
    if shown {
        user.typing.show(now)
    } else {
        user.typing.hide(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Duration::from_secs(1_000_000);

    #[test]
    fn it_is_shown_for_fifteen_seconds_within_thirty_of_a_message() {
        let mut typing = TypingState::default();
        assert_eq!(typing.show(NOW), Err(ApiError::NO_EXCHANGE));
        typing.message(NOW);
        assert_eq!(typing.show(NOW), Ok(()));
        let fourteen = NOW + Duration::from_secs(14);
        assert_eq!(typing.show(fourteen), Err(ApiError::ALREADY_TYPING));
        assert_eq!(typing.show(NOW + SHOWN), Ok(()));
        let over = NOW + AFTER_MESSAGE;
        assert_eq!(typing.show(over), Err(ApiError::NO_EXCHANGE));
        assert_eq!(typing.hide(over), Err(ApiError::NO_EXCHANGE));
    }

    #[test]
    fn a_message_and_taking_it_back_end_it() {
        let mut typing = TypingState::default();
        typing.message(NOW);
        for end in [TypingState::message, |typing: &mut TypingState, now| {
            typing.hide(now).unwrap();
        }] {
            assert_eq!(typing.show(NOW), Ok(()));
            end(&mut typing, NOW);
        }
        assert_eq!(typing.show(NOW), Ok(()));
    }
}
