//! Recently read memories. Two halves: when the young one is full it becomes the old one, and the old one is dropped; a hit in
//! the old half moves back to the young. Nearly least-recently-used, without a list.

use std::collections::HashMap;

use mneme_base::MemoryId;

use crate::domain::Memory;

/// What a memory takes beside its texts (bytes), nearly.
const ENTRY_BYTES: usize = 512;

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
        let bytes = ENTRY_BYTES + memory.text.len();
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
            self.young.remove(id);
            self.old.remove(id);
        }
    }
}
