//! What stands in for Redis in embedded mode: a map whose entries end by themselves.

use std::{borrow::Borrow, collections::HashMap, hash::Hash};

/// Entries are swept for the first time when there are this many.
const FIRST_SWEEP: usize = 1_024;

/// A map whose entries end at a moment of Unix milliseconds.
#[derive(Debug)]
pub(crate) struct ExpiringMap<V, K = String> {
    entries: HashMap<K, Entry<V>>,
    sweep_at: usize,
}

/// A value and when it ends.
#[derive(Debug, Clone)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    pub(crate) end: u64,
}

impl<V, K> Default for ExpiringMap<V, K> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl<V, K: Eq + Hash> ExpiringMap<V, K> {
    /// The entry, unless it ended.
    pub(crate) fn get<Q>(&self, key: &Q, now: u64) -> Option<&Entry<V>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.get(key).filter(|entry| entry.end > now)
    }

    /// The entry, unless it ended.
    pub(crate) fn get_mut<Q>(&mut self, key: &Q, now: u64) -> Option<&mut Entry<V>>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.get_mut(key).filter(|entry| entry.end > now)
    }

    /// Puts an entry in place. Ended ones are dropped whenever the map has doubled, so that it holds at most twice what
    /// lives, at a constant price per insertion.
    pub(crate) fn insert(&mut self, key: K, value: V, end: u64, now: u64) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| entry.end > now);
            self.sweep_at = FIRST_SWEEP.max(self.entries.len() * 2);
        }
        self.entries.insert(key, Entry { value, end });
    }

    /// Puts a value in place unless a larger one is there.
    pub(crate) fn raise(&mut self, key: K, value: V, end: u64, now: u64)
    where
        V: PartialOrd,
    {
        if self.get(&key, now).is_none_or(|entry| entry.value < value) {
            self.insert(key, value, end, now);
        }
    }

    /// Removes an entry.
    pub(crate) fn remove<Q>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.entries.remove(key);
    }

    /// The entries that did not end, in no order.
    pub(crate) fn iter(&self, now: u64) -> impl Iterator<Item = (&K, &Entry<V>)> {
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.end > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_entries_are_gone_and_swept() {
        let mut map = ExpiringMap::default();
        for i in 0..10 * FIRST_SWEEP as u64 {
            map.insert(i.to_string(), (), i + 10, i);
        }
        assert!(map.get_mut("0", 20).is_none());
        assert!(map.get("0", 20).is_none());
        assert!(map.entries.len() <= FIRST_SWEEP);
        let end = 10 * FIRST_SWEEP as u64;
        let last = (end - 1).to_string();
        assert!(map.get_mut(&last, end).is_some());
        assert_eq!(map.iter(end).count(), 9);
        map.remove(&last);
        assert!(map.get_mut(&last, end).is_none());
    }
}
