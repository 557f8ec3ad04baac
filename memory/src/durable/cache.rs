//! Recently read memories. Two halves: when the young one is full it becomes the old one, and the old one is dropped; a hit in
//! the old half moves back to the young. Nearly least-recently-used, without a list.

use std::collections::HashMap;

use mneme_base::MemoryId;

use crate::domain::Memory;

/// What a memory takes beside its texts (bytes), nearly.
const ENTRY_BYTES: usize = 512;
/// What an entry of the metadata takes beside its texts (bytes), nearly.
const METADATA_ENTRY_BYTES: usize = 64;

/// What a memory takes (bytes), nearly.
fn bytes_of(memory: &Memory) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let provenance = &memory.provenance;
    let metadata: usize =
        memory.metadata.iter().map(|(key, value)| METADATA_ENTRY_BYTES + key.len() + value.len()).sum();
    ENTRY_BYTES
        + memory.text.len()
        + length(&memory.speaker)
        + length(&memory.thread)
        + metadata
        + provenance.source.len()
        + provenance.client.len()
        + length(&provenance.session)
        + provenance.location.as_ref().map_or(0, |location| location.path.len())
}

#[derive(Debug)]
pub(crate) struct MemoryCache {
    half_bytes_max: usize,
    young_bytes: usize,
    young: HashMap<MemoryId, Memory>,
    old: HashMap<MemoryId, Memory>,
    /// Counts changes. A reader that began before a change may hold what was changed: what it read is not taken in.
    epoch: u64,
}

impl MemoryCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { half_bytes_max: bytes_max / 2, young_bytes: 0, young: HashMap::new(), old: HashMap::new(), epoch: 0 }
    }

    pub(crate) const fn epoch(&self) -> u64 {
        self.epoch
    }

    pub(crate) fn get(&mut self, id: MemoryId) -> Option<Memory> {
        if let Some(memory) = self.young.get(&id) {
            return Some(memory.clone());
        }
        let memory = self.old.remove(&id)?;
        self.put(memory.clone());
        Some(memory)
    }

    /// Takes in what was read since `epoch`, unless something changed meanwhile.
    pub(crate) fn insert(&mut self, memory: Memory, epoch: u64) {
        if epoch == self.epoch {
            self.put(memory);
        }
    }

    fn put(&mut self, memory: Memory) {
        let bytes = bytes_of(&memory);
        self.forget_young(memory.id);
        if self.young_bytes + bytes > self.half_bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if bytes <= self.half_bytes_max {
            self.young_bytes += bytes;
            self.young.insert(memory.id, memory);
        }
    }

    pub(crate) fn invalidate<'a>(&mut self, ids: impl Iterator<Item = &'a MemoryId>) {
        self.epoch += 1;
        for id in ids {
            self.forget_young(*id);
            self.old.remove(id);
        }
    }

    fn forget_young(&mut self, id: MemoryId) {
        if let Some(memory) = self.young.remove(&id) {
            self.young_bytes = self.young_bytes.saturating_sub(bytes_of(&memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use mneme_base::{ContentHash, Lsn, Namespace, OpId, Provenance, Timestamp};

    use super::*;
    use crate::domain::{MemoryKind, MemoryState};

    fn memory(number: u64, metadata_bytes: usize) -> Memory {
        let now = Timestamp::from_millis(1_795_514_400_000);
        Memory {
            id: crate::gate::memory_id(now, OpId::new(1), number),
            namespace: Namespace::default(),
            kind: MemoryKind::Note,
            text: "short".into(),
            speaker: None,
            thread: None,
            position: None,
            metadata: [("note".to_owned(), "x".repeat(metadata_bytes))].into(),
            provenance: Provenance::user("test"),
            valid_from: now,
            valid_to: None,
            recorded_at: now,
            supersedes: None,
            superseded_by: None,
            state: MemoryState::Active,
            content_hash: ContentHash::of(b""),
            evidence: 0,
            redactions: 0,
            lsn: Lsn(number),
        }
    }

    #[test]
    fn everything_of_a_memory_counts_and_what_is_gone_does_not() {
        let mut cache = MemoryCache::new(64 << 10);
        for number in 0..100 {
            cache.insert(memory(number, 4_000), cache.epoch());
        }
        let held: usize = cache.young.values().chain(cache.old.values()).map(bytes_of).sum();
        assert!(held <= 64 << 10, "{held} bytes");
        // A memory that is changed again and again leaves the others where they are.
        let mut cache = MemoryCache::new(64 << 10);
        let steady = memory(1, 0);
        cache.insert(steady.clone(), cache.epoch());
        for _ in 0..1_000 {
            let changing = memory(2, 100);
            cache.insert(changing.clone(), cache.epoch());
            cache.invalidate(std::iter::once(&changing.id));
        }
        assert!(cache.young.contains_key(&steady.id));
        assert_eq!(cache.young_bytes, bytes_of(&steady));
    }
}
