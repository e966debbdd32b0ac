//! The few things used last.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Keeps the `limit` entries used last; meant for some hundred at most.
#[derive(Debug)]
pub(crate) struct Recent<K, V> {
    limit: usize,
    /// The one used last is last.
    entries: Vec<(K, V)>,
}

impl<K: PartialEq, V: Clone> Recent<K, V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit: limit.max(1),
            entries: Vec::new(),
        }
    }

    pub(crate) fn get(&mut self, key: &K) -> Option<V> {
        let at = self.entries.iter().rposition(|(other, _)| other == key)?;
        self.entries[at..].rotate_left(1);
        self.entries.last().map(|(_, value)| value.clone())
    }

    pub(crate) fn put(&mut self, key: K, value: V) {
        self.entries.retain(|(other, _)| *other != key);
        if self.entries.len() == self.limit {
            self.entries.remove(0);
        }
        self.entries.push((key, value));
    }
}

/// Most entries in a shard: they are looked through one by one.
const SHARD: usize = 32;

/// Keeps at least as many entries as it is told, some more at most; for many threads.
#[derive(Debug)]
pub(crate) struct Shards<V> {
    shards: Vec<Mutex<Recent<u64, V>>>,
}

impl<V: Clone> Shards<V> {
    pub(crate) fn new(limit: usize) -> Self {
        let count = limit.div_ceil(SHARD).max(1);
        let each = limit.div_ceil(count);
        Self {
            shards: (0..count).map(|_| Mutex::new(Recent::new(each))).collect(),
        }
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Recent<u64, V>> {
        // Neighbours go to different shards.
        let mixed = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let at = usize::try_from(mixed % self.shards.len() as u64).unwrap_or(0);
        self.shards[at]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn get(&self, key: u64) -> Option<V> {
        self.shard(key).get(&key)
    }

    pub(crate) fn put(&self, key: u64, value: V) {
        self.shard(key).put(key, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_is_kept() {
        let mut recent = Recent::new(2);
        recent.put(1, 'a');
        recent.put(2, 'b');
        assert_eq!(recent.get(&1), Some('a'));
        recent.put(3, 'c');
        assert_eq!(recent.get(&2), None);
        assert_eq!(recent.get(&1), Some('a'));
        recent.put(1, 'd');
        assert_eq!(recent.get(&1), Some('d'));
        assert_eq!(recent.get(&3), Some('c'));
    }
}
