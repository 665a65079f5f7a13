//! WeChat's truth: what it issued, until when each of it works, and what it refuses.

use std::{collections::HashMap, time::Duration};

use token_service::credential::Kind;
use tokio::time::Instant;
use wechat::ErrCode;

use crate::judge::Call;

/// A superseded classic token works for so long.
pub(crate) const OVERLAP: Duration = Duration::from_secs(300);

/// Durations are times since the start, suspends included: WeChat does not sleep.
#[derive(Debug)]
pub(crate) struct WeChat {
    /// What is issued is given so long to live.
    pub(crate) life: Duration,
    /// How many calls each kind may cost in a day.
    pub(crate) quota: Option<u32>,
    texts: HashMap<String, Text>,
    books: HashMap<Kind, Book>,
}

/// A token or ticket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text {
    /// How many of its kind there were before.
    pub(crate) number: usize,
    pub(crate) expires: Duration,
    /// When a newer one was issued, by the clock that no suspend moves.
    pub(crate) superseded: Option<Instant>,
    /// When it stopped to work, if that is before it expires.
    pub(crate) dead: Option<Duration>,
}

#[derive(Debug, Default)]
struct Book {
    issued: usize,
    /// The newest and the one before.
    newest: Option<String>,
    previous: Option<String>,
    /// A day, and how many calls it has seen.
    day: (u64, u32),
}

impl Text {
    pub(crate) fn works(&self, now: Duration) -> bool {
        now < self.expires && self.dead.is_none_or(|dead| now < dead)
    }
}

impl WeChat {
    pub(crate) fn new(life: Duration, quota: Option<u32>) -> Self {
        Self {
            life,
            quota,
            texts: HashMap::new(),
            books: HashMap::new(),
        }
    }

    pub(crate) fn text(&self, text: &str) -> Option<&Text> {
        self.texts.get(text)
    }

    /// Answers a call that arrives at `now`, on a day by Beijing's calendar. `token` is what a ticket is asked for with.
    pub(crate) fn answer(
        &mut self,
        call: Call,
        token: Option<&str>,
        now: Duration,
        day: u64,
    ) -> Result<(String, Duration), ErrCode> {
        let kind = call.kind();
        let book = self.books.entry(kind).or_default();
        if book.day.0 != day {
            book.day = (day, 0);
        }
        if self.quota.is_some_and(|quota| book.day.1 >= quota) {
            return Err(ErrCode::DAILY_QUOTA);
        }
        book.day.1 += 1;
        match call {
            Call::Classic => self.classic(now),
            Call::Stable { force } => self.stable(force, now),
            Call::Ticket => {
                let token = token.and_then(|token| self.texts.get(token));
                if !token.is_some_and(|token| token.works(now)) {
                    return Err(ErrCode::INVALID_CREDENTIAL);
                }
                self.issue(kind, now);
            }
        }
        let newest = self.books[&kind].newest.clone().unwrap();
        let left = self.texts[&newest].expires - now;
        Ok((newest, left))
    }

    /// A new token: the one before goes on for five minutes, the one before that is dead.
    fn classic(&mut self, now: Duration) {
        let before = self.issue(Kind::AccessToken, now);
        let book = self.books.entry(Kind::AccessToken).or_default();
        let last = std::mem::replace(&mut book.previous, before.clone());
        self.end(last, now);
        self.end(before, now + OVERLAP);
    }

    /// The current token until its last five minutes, then another beside it; with `force` another in its place.
    fn stable(&mut self, force: bool, now: Duration) {
        let newest = self.books[&Kind::AccessToken].newest.as_ref();
        let expires = newest.map_or(Duration::ZERO, |text| self.texts[text].expires);
        if force {
            let before = self.issue(Kind::AccessToken, now);
            self.end(before, now);
        } else if expires.saturating_sub(now) < OVERLAP.min(self.life / 2) {
            self.issue(Kind::AccessToken, now);
        }
    }

    /// Issues another; the one before is returned.
    fn issue(&mut self, kind: Kind, now: Duration) -> Option<String> {
        let book = self.books.entry(kind).or_default();
        let text = format!("{} {}", kind.as_str(), book.issued + 1);
        let issued = Text {
            number: book.issued,
            expires: now + self.life,
            superseded: None,
            dead: None,
        };
        book.issued += 1;
        self.texts.insert(text.clone(), issued);
        let before = book.newest.replace(text);
        if let Some(text) = before.as_ref().and_then(|text| self.texts.get_mut(text)) {
            text.superseded = Some(Instant::now());
        }
        before
    }

    fn end(&mut self, text: Option<String>, at: Duration) {
        if let Some(text) = text.and_then(|text| self.texts.get_mut(&text)) {
            text.dead = Some(text.dead.map_or(at, |dead| dead.min(at)));
        }
    }
}
