//! When an account may write to a user: for a while, and a few times, after the user did something.

use std::time::Duration;

use crate::{clock::Moment, config::Kind, error::ApiError};

/// Something a user does that lets an account write customer-service messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trigger {
    /// Sends a message: 5 within 48 hours.
    Message,
    /// Taps a menu item, follows, or scans a code of an official account: 3 within a minute.
    Event,
    /// Enters a mini program's customer-service chat: 2 within a minute.
    EntersChat,
}

impl Trigger {
    /// What a push means for the window, if anything.
    pub(crate) fn of(kind: Kind, msg_type: &str, event: Option<&str>) -> Option<Self> {
        if msg_type != "event" {
            return Some(Self::Message);
        }
        let event = event.unwrap_or_default().to_ascii_lowercase();
        match (kind, event.as_str()) {
            (
                Kind::OfficialAccount,
                "click" | "scancode_push" | "scancode_waitmsg" | "subscribe" | "scan",
            ) => Some(Self::Event),
            (Kind::MiniProgram, "user_enter_tempsession") => Some(Self::EntersChat),
            _ => None,
        }
    }

    const fn allowance(self) -> (Duration, u32) {
        match self {
            Self::Message => (Duration::from_secs(48 * 3600), 5),
            Self::Event => (Duration::from_secs(60), 3),
            Self::EntersChat => (Duration::from_secs(60), 2),
        }
    }
}

#[derive(Default)]
struct Window {
    until: Moment,
    left: u32,
}

/// A user's two windows; the short one is spent first.
#[derive(Default)]
pub(crate) struct Windows {
    short: Window,
    long: Window,
}

impl Windows {
    pub(crate) fn open(&mut self, trigger: Trigger, now: Moment) {
        let (life, left) = trigger.allowance();
        let window = if trigger == Trigger::Message {
            &mut self.long
        } else {
            &mut self.short
        };
        *window = Window {
            until: now + life,
            left,
        };
    }

    /// Uses one message up: 45015 when no window is open, 45047 when those that are have nothing left.
    pub(crate) fn spend(&mut self, now: Moment) -> Result<(), ApiError> {
        let mut open = [&mut self.short, &mut self.long]
            .into_iter()
            .filter(|window| now < window.until)
            .peekable();
        if open.peek().is_none() {
            return Err(ApiError::WINDOW_CLOSED);
        }
        let window = open
            .find(|window| window.left > 0)
            .ok_or(ApiError::WINDOW_USED_UP)?;
        window.left -= 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Duration::from_secs(1_000_000);

    #[test]
    fn a_message_allows_five_within_two_days() {
        let mut windows = Windows::default();
        assert_eq!(windows.spend(NOW), Err(ApiError::WINDOW_CLOSED));
        windows.open(Trigger::Message, NOW);
        for _ in 0..5 {
            assert_eq!(windows.spend(NOW), Ok(()));
        }
        assert_eq!(windows.spend(NOW), Err(ApiError::WINDOW_USED_UP));
        windows.open(Trigger::Message, NOW);
        assert_eq!(
            windows.spend(NOW + Duration::from_secs(48 * 3600)),
            Err(ApiError::WINDOW_CLOSED)
        );
    }

    #[test]
    fn an_event_adds_its_own_allowance() {
        let mut windows = Windows::default();
        windows.open(Trigger::Message, NOW);
        windows.open(Trigger::Event, NOW);
        assert_eq!((0..9).filter(|_| windows.spend(NOW).is_ok()).count(), 8);
    }

    #[test]
    fn unfollowing_opens_nothing() {
        assert_eq!(
            Trigger::of(Kind::OfficialAccount, "event", Some("unsubscribe")),
            None
        );
        assert_eq!(
            Trigger::of(Kind::OfficialAccount, "event", Some("subscribe")),
            Some(Trigger::Event)
        );
        assert_eq!(
            Trigger::of(Kind::MiniProgram, "image", None),
            Some(Trigger::Message)
        );
    }
}
