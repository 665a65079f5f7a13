//! What stands in for Redis in embedded mode: a map whose entries end by themselves.

use std::collections::HashMap;

/// Entries are swept for the first time when there are this many.
const FIRST_SWEEP: usize = 1_024;

/// A map whose entries end at a moment of Unix milliseconds.
#[derive(Debug)]
pub(crate) struct ExpiringMap<V> {
    entries: HashMap<String, Entry<V>>,
    sweep_at: usize,
}

/// A value and when it ends.
#[derive(Debug, Clone)]
pub(crate) struct Entry<V> {
    pub(crate) value: V,
    pub(crate) end: u64,
}

impl<V> Default for ExpiringMap<V> {
    fn default() -> Self {
        Self {
            entries: HashMap::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl<V> ExpiringMap<V> {
    /// The entry, unless it ended.
    pub(crate) fn get_mut(&mut self, key: &str, now: u64) -> Option<&mut Entry<V>> {
        self.entries.get_mut(key).filter(|entry| entry.end > now)
    }

    /// Puts an entry in place. Ended ones are dropped whenever the map has doubled, so that it holds at most twice what
    /// lives, at a constant price per insertion.
    pub(crate) fn insert(&mut self, key: String, value: V, end: u64, now: u64) {
        if self.entries.len() >= self.sweep_at {
            self.entries.retain(|_, entry| entry.end > now);
            self.sweep_at = FIRST_SWEEP.max(self.entries.len() * 2);
        }
        self.entries.insert(key, Entry { value, end });
    }

    /// Removes an entry.
    pub(crate) fn remove(&mut self, key: &str) {
        self.entries.remove(key);
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
        assert!(map.entries.len() <= FIRST_SWEEP);
        let last = (10 * FIRST_SWEEP as u64 - 1).to_string();
        assert!(map.get_mut(&last, 10 * FIRST_SWEEP as u64).is_some());
        map.remove(&last);
        assert!(map.get_mut(&last, 10 * FIRST_SWEEP as u64).is_none());
    }
}
