//! Sessions that end with the process.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use service_kit::clock::millis;

use super::{Indexed, Lives, SESSIONS_MAX, Session, SessionId};
use crate::{
    memory::ExpiringMap,
    session::epoch::{PAGE, Page, Subject},
    user::UserId,
};

#[derive(Debug, Clone, Default)]
pub(in crate::session) struct MemoryStore(Arc<Mutex<Memory>>);

#[derive(Debug, Default)]
struct Memory {
    sessions: ExpiringMap<Session, SessionId>,
    indexes: ExpiringMap<BTreeSet<Indexed>, UserId>,
    session_keys: ExpiringMap<String>,
    epochs: Epochs,
}

#[derive(Debug, Default)]
struct Epochs {
    latest: Option<u64>,
    subjects: BTreeMap<u64, Subject>,
    numbers: HashMap<Subject, u64>,
}

impl Epochs {
    fn put(&mut self, subject: &Subject, number: u64) {
        if let Some(before) = self.numbers.insert(subject.clone(), number) {
            self.subjects.remove(&before);
        }
        self.subjects.insert(number, subject.clone());
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn insert(&self, id: &SessionId, session: &Session, lives: Lives) {
        let memory = &mut *self.lock();
        let created = session.created;
        let end = created + millis(lives.idle);
        memory
            .sessions
            .insert(id.clone(), session.clone(), end, created);

        let (user_id, end) = (session.user_id, created + millis(lives.longest));
        let index = memory.indexes.get_mut(&user_id, created);
        let mut index = index
            .map(|entry| std::mem::take(&mut entry.value))
            .unwrap_or_default();
        let over = created.saturating_sub(millis(lives.longest));
        index.retain(|indexed| indexed.created > over);
        index.insert(Indexed {
            created,
            id: id.clone(),
        });
        while index.len() > SESSIONS_MAX
            && let Some(oldest) = index.pop_first()
        {
            memory.sessions.remove(&oldest.id);
        }
        memory.indexes.insert(user_id, index, end, created);
    }

    pub(super) fn touch(&self, id: &SessionId, idle: Duration, now: u64) -> Option<Session> {
        let mut memory = self.lock();
        let entry = memory.sessions.get_mut(id, now)?;
        entry.end = now + millis(idle);
        Some(entry.value.clone())
    }

    pub(super) fn peek(&self, ids: &[SessionId], now: u64) -> Vec<Option<(Session, Duration)>> {
        let memory = self.lock();
        let sessions = ids.iter().map(|id| {
            let entry = memory.sessions.get(id, now)?;
            let left = Duration::from_millis(entry.end.saturating_sub(now));
            Some((entry.value.clone(), left))
        });
        sessions.collect()
    }

    pub(super) fn remove(&self, user_id: UserId, ids: &[SessionId]) {
        let memory = &mut *self.lock();
        for id in ids {
            memory.sessions.remove(id);
        }
        if let Some(index) = memory.indexes.get_mut(&user_id, 0) {
            index.value.retain(|indexed| !ids.contains(&indexed.id));
        }
    }

    pub(super) fn index(&self, user_id: UserId, now: u64) -> Vec<Indexed> {
        let memory = self.lock();
        let index = memory.indexes.get(&user_id, now);
        index.map_or_else(Vec::new, |index| {
            index.value.iter().rev().cloned().collect()
        })
    }

    pub(super) fn latest(&self) -> Option<u64> {
        self.lock().epochs.latest
    }

    pub(super) fn advance(
        &self,
        held: u64,
        subject: Option<&Subject>,
        kept: Duration,
        now: u64,
    ) -> u64 {
        let epochs = &mut self.lock().epochs;
        let number = epochs.latest.unwrap_or_default().max(held).max(now) + 1;
        epochs.latest = Some(number);
        if let Some(subject) = subject {
            let over = now.saturating_sub(millis(kept));
            while let Some(oldest) = epochs.subjects.first_entry()
                && *oldest.key() <= over
            {
                epochs.numbers.remove(&oldest.remove());
            }
            epochs.put(subject, number);
        }
        number
    }

    pub(super) fn epochs(&self, from: u64) -> Page {
        let epochs = &self.lock().epochs;
        let revocations = epochs.subjects.range(from..).take(PAGE);
        let revocations: Vec<_> = revocations
            .map(|(number, subject)| (subject.clone(), *number))
            .collect();
        let full = revocations.len() == PAGE;
        let last = revocations.last().map(|(_, number)| *number);
        Page {
            latest: epochs.latest.filter(|latest| !full && *latest >= from),
            next: last.filter(|_| full),
            revocations,
        }
    }

    pub(super) fn restore(&self, revocations: &[(Subject, u64)], latest: u64) {
        let epochs = &mut self.lock().epochs;
        for (subject, number) in revocations {
            if epochs.numbers.get(subject).is_none_or(|held| held < number) {
                epochs.put(subject, *number);
            }
        }
        epochs.latest = epochs.latest.max(Some(latest));
    }

    pub(super) fn put_session_key(&self, user: &str, sealed: &str, longest: Duration, now: u64) {
        let (key, value) = (user.to_owned(), sealed.to_owned());
        let end = now + millis(longest);
        self.lock().session_keys.insert(key, value, end, now);
    }

    pub(super) fn swap_session_key(
        &self,
        user: &str,
        expected: &str,
        sealed: &str,
        longest: Duration,
        now: u64,
    ) -> bool {
        let mut memory = self.lock();
        let entry = memory.session_keys.get_mut(user, now);
        let Some(entry) = entry.filter(|entry| entry.value == expected) else {
            return false;
        };
        sealed.clone_into(&mut entry.value);
        entry.end = now + millis(longest);
        true
    }

    pub(super) fn session_key(&self, user: &str, now: u64) -> Option<String> {
        let memory = self.lock();
        let entry = memory.session_keys.get(user, now);
        entry.map(|entry| entry.value.clone())
    }

    pub(super) fn remove_session_key(&self, user: &str) {
        self.lock().session_keys.remove(user);
    }
}
