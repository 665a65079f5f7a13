//! Collections that forget their oldest entry rather than grow: this WeChat may run for weeks under load tests.

use std::collections::{HashMap, VecDeque};

/// A map that holds at most `capacity` entries and forgets the one inserted first.
pub(crate) struct BoundedMap<V> {
    capacity: usize,
    order: VecDeque<String>,
    entries: HashMap<String, V>,
}

impl<V> BoundedMap<V> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            order: VecDeque::new(),
            entries: HashMap::new(),
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&V> {
        self.entries.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut V> {
        self.entries.get_mut(key)
    }

    /// Inserts or replaces; a replaced entry keeps its age.
    pub(crate) fn insert(&mut self, key: String, value: V) {
        if self.entries.insert(key.clone(), value).is_none() {
            self.order.push_back(key);
            if self.order.len() > self.capacity
                && let Some(oldest) = self.order.pop_front()
            {
                self.entries.remove(&oldest);
            }
        }
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.order
            .iter()
            .filter_map(|key| Some((key.as_str(), self.entries.get(key)?)))
    }
}

/// A list that holds at most `capacity` items and forgets the oldest.
pub(crate) struct BoundedList<T> {
    capacity: usize,
    items: VecDeque<T>,
}

impl<T> BoundedList<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            items: VecDeque::new(),
        }
    }

    pub(crate) fn push(&mut self, item: T) {
        if self.items.len() == self.capacity {
            self.items.pop_front();
        }
        self.items.push_back(item);
    }

    /// Oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.items.iter()
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_map_forgets_what_came_first() {
        let mut map = BoundedMap::new(2);
        for key in ["a", "b", "a", "c"] {
            map.insert(key.to_owned(), key);
        }
        assert_eq!(
            map.iter().map(|(key, _)| key).collect::<Vec<_>>(),
            ["b", "c"]
        );
        assert_eq!(map.get("a"), None);
    }

    #[test]
    fn a_full_list_forgets_what_came_first() {
        let mut list = BoundedList::new(2);
        for item in 1..=3 {
            list.push(item);
        }
        assert_eq!(list.iter().copied().collect::<Vec<_>>(), [2, 3]);
    }
}
