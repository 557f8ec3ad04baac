//! Keeps the vectors of recent texts by the hash of their content.

use std::collections::HashMap;

use mneme_base::{ContentHash, Embedding};

/// A bounded map that forgets what was not asked for in the longest time, in two generations: a full young map becomes the
/// old one, and what is used moves to the young one again. Constant time, no list to maintain.
#[derive(Debug)]
pub struct EmbeddingCache {
    young: HashMap<ContentHash, Embedding>,
    old: HashMap<ContentHash, Embedding>,
    half: usize,
}

impl EmbeddingCache {
    /// Keeps at most `entries` vectors.
    pub fn new(entries: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (entries / 2).max(1) }
    }

    /// Looks a vector up and marks it as used.
    pub fn get(&mut self, hash: &ContentHash) -> Option<Embedding> {
        if let Some(embedding) = self.young.get(hash) {
            return Some(embedding.clone());
        }
        let embedding = self.old.remove(hash)?;
        self.put(*hash, embedding.clone());
        Some(embedding)
    }

    /// Keeps a vector.
    pub fn put(&mut self, hash: ContentHash, embedding: Embedding) {
        if self.young.len() >= self.half && !self.young.contains_key(&hash) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(hash, embedding);
    }

    /// How many vectors are kept.
    pub fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u32) -> (ContentHash, Embedding) {
        (ContentHash::of(&n.to_le_bytes()), Embedding::normalized(vec![1.0, n as f32]).unwrap())
    }

    #[test]
    fn stays_within_its_bound_and_keeps_what_is_used() {
        let mut cache = EmbeddingCache::new(8);
        let (kept, vector) = entry(0);
        cache.put(kept, vector.clone());
        for n in 1..100 {
            let (hash, embedding) = entry(n);
            cache.put(hash, embedding);
            assert_eq!(cache.get(&kept).as_ref(), Some(&vector), "after {n} others");
            assert!(cache.len() <= 8);
        }
        assert!(cache.get(&entry(1).0).is_none());
    }
}
