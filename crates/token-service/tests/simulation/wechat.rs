//! WeChat's truth: which tokens it issued, and until when each works.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// A superseded classic token works for so long.
pub(crate) const OVERLAP: Duration = Duration::from_secs(300);

#[derive(Debug)]
pub(crate) struct WeChat {
    /// What a new token is given to live.
    pub(crate) life: Duration,
    tokens: HashMap<String, Token>,
    /// The newest and the one before.
    newest: Option<String>,
    previous: Option<String>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Token {
    /// How many there were before.
    pub(crate) number: usize,
    pub(crate) expires: Instant,
    /// When a newer one was issued.
    pub(crate) superseded: Option<Instant>,
    /// When it stopped to work, if that is before it expires.
    pub(crate) dead: Option<Instant>,
}

impl Token {
    pub(crate) fn works(&self, now: Instant) -> bool {
        now < self.expires && self.dead.is_none_or(|dead| now < dead)
    }
}

impl WeChat {
    pub(crate) fn new(life: Duration) -> Self {
        Self {
            life,
            tokens: HashMap::new(),
            newest: None,
            previous: None,
        }
    }

    pub(crate) fn token(&self, text: &str) -> Option<&Token> {
        self.tokens.get(text)
    }

    /// A new token: the one before goes on for five minutes, the one before that is dead.
    pub(crate) fn classic(&mut self, now: Instant) -> (String, Duration) {
        let before = self.issue(now);
        self.end(self.previous.clone(), now);
        self.end(before.clone(), now + OVERLAP);
        self.previous = before;
        self.answer(now)
    }

    /// The current token until its last five minutes, then another beside it; with `force` another in its place.
    pub(crate) fn stable(&mut self, force: bool, now: Instant) -> (String, Duration) {
        let left = self.newest().map_or(Duration::ZERO, |token| {
            token.expires.saturating_duration_since(now)
        });
        if force {
            let before = self.issue(now);
            self.end(before, now);
        } else if left < OVERLAP.min(self.life / 2) {
            self.issue(now);
        }
        self.answer(now)
    }

    fn newest(&self) -> Option<&Token> {
        self.newest.as_ref().and_then(|text| self.tokens.get(text))
    }

    /// Issues another; the one before is returned.
    fn issue(&mut self, now: Instant) -> Option<String> {
        let text = format!("token {}", self.tokens.len() + 1);
        let token = Token {
            number: self.tokens.len(),
            expires: now + self.life,
            superseded: None,
            dead: None,
        };
        self.tokens.insert(text.clone(), token);
        let before = self.newest.replace(text);
        if let Some(token) = before.as_ref().and_then(|text| self.tokens.get_mut(text)) {
            token.superseded = Some(now);
        }
        before
    }

    fn end(&mut self, token: Option<String>, at: Instant) {
        if let Some(token) = token.and_then(|text| self.tokens.get_mut(&text)) {
            token.dead = Some(token.dead.map_or(at, |dead| dead.min(at)));
        }
    }

    fn answer(&self, now: Instant) -> (String, Duration) {
        let expires = self.newest().unwrap().expires;
        (self.newest.clone().unwrap(), expires.duration_since(now))
    }
}
