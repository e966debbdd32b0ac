//! The few things used last.

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
