//! One transaction in the making: rows over the engine's, counters that move with them.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};

use mneme_base::{ContentHash, EmbeddingGeneration, Lsn, MemoryId, Namespace, OpId, Timestamp};

use crate::domain::{Memory, MemoryState};
use crate::durable::keys;
use crate::durable::options::DurableOptions;
use crate::durable::record::{self, ChangeKind, Counters, JournalRow, RowError};
use crate::index::duplicates::Fresh;
use crate::state::{StateEngine, Table, WriteBatch, scan_prefix};
use crate::store::{OperationResult, StoreError};

/// Expired operation ids that one transaction removes, as a multiple of those that it adds: the ledger shrinks again after a
/// flood, and no commit has to remove many.
const LEDGER_EXPIRY_FACTOR: usize = 2;

/// What the writer knows between transactions.
#[derive(Debug, Clone, Default)]
pub(crate) struct WriterState {
    pub(crate) counters: Counters,
    pub(crate) namespaces: BTreeMap<Namespace, u64>,
    pub(crate) generation: Option<EmbeddingGeneration>,
    /// Projections that the journal is kept for.
    pub(crate) projections: Vec<String>,
}

/// Rows and counters that become durable together.
pub(crate) struct Transaction<'a> {
    engine: &'a dyn StateEngine,
    pub(crate) state: WriterState,
    pub(crate) batch: WriteBatch,
    /// Memories that this transaction changed; `None` is removed.
    pub(crate) touched: HashMap<MemoryId, Option<Memory>>,
    /// What it has inserted, for near duplicates within one batch.
    pub(crate) fresh: Fresh,
    journal: JournalRow,
    op_ids: Vec<OpId>,
    corrupt: &'a dyn Fn(RowError) -> StoreError,
}

impl<'a> Transaction<'a> {
    pub(crate) fn new(
        engine: &'a dyn StateEngine,
        state: WriterState,
        corrupt: &'a dyn Fn(RowError) -> StoreError,
    ) -> Self {
        Self {
            engine,
            state,
            batch: WriteBatch::default(),
            touched: HashMap::new(),
            fresh: Fresh::default(),
            journal: JournalRow::default(),
            op_ids: Vec::new(),
            corrupt,
        }
    }

    /// The next place in the journal.
    pub(crate) fn next_lsn(&mut self) -> Lsn {
        self.state.counters.lsn += 1;
        Lsn(self.state.counters.lsn)
    }

    pub(crate) fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.batch.get(table, key) {
            Some(value) => Ok(value.map(<[u8]>::to_vec)),
            None => self.engine.get(table, key),
        }
    }

    pub(crate) fn decoded<T>(&self, result: Result<T, RowError>) -> Result<T, StoreError> {
        result.map_err(self.corrupt)
    }

    /// The ids at the ends of the index keys with a prefix, in order.
    pub(crate) fn ids(&self, prefix: &[u8]) -> Result<Vec<MemoryId>, StoreError> {
        let mut ids = std::collections::BTreeSet::new();
        scan_prefix(self.engine, Table::Index, prefix, &mut |key, _| {
            ids.extend(keys::id_at_end(key));
            ControlFlow::Continue(())
        })?;
        for (table, key, value) in self.batch.iter() {
            if table == Table::Index
                && key.starts_with(prefix)
                && let Some(id) = keys::id_at_end(key)
            {
                if value.is_some() {
                    ids.insert(id);
                } else {
                    ids.remove(&id);
                }
            }
        }
        Ok(ids.into_iter().collect())
    }

    pub(crate) fn memory(&self, id: MemoryId) -> Result<Option<Memory>, StoreError> {
        if let Some(memory) = self.touched.get(&id) {
            return Ok(memory.clone());
        }
        match self.engine.get(Table::Memory, id.as_bytes())? {
            Some(bytes) => self.decoded(record::decode_memory(id, &bytes)).map(Some),
            None => Ok(None),
        }
    }

    /// Which of some memories the store has already, by id or, where they are live, by content. Two passes over sorted keys.
    pub(crate) fn known(&self, memories: &[Memory]) -> Result<Vec<bool>, StoreError> {
        let mut known = vec![false; memories.len()];
        let ids: Vec<&[u8]> = memories.iter().map(|memory| &memory.id.as_bytes()[..]).collect();
        self.engine.get_many(Table::Memory, &ids, &mut |at, _| known[at] = true)?;
        let contents: Vec<Vec<u8>> = memories.iter().map(|memory| keys::content(&memory.content_hash)).collect();
        let mut order: Vec<usize> = (0..memories.len()).collect();
        order.sort_unstable_by(|a, b| contents[*a].cmp(&contents[*b]));
        let sorted: Vec<&[u8]> = order.iter().map(|at| contents[*at].as_slice()).collect();
        self.engine.get_many(Table::Index, &sorted, &mut |at, _| {
            let at = order[at];
            known[at] |= memories[at].state != MemoryState::Superseded;
        })?;
        Ok(known)
    }

    /// Whether this transaction has inserted the memory, or a live one with its content.
    pub(crate) fn has_inserted(&self, memory: &Memory) -> bool {
        self.touched.contains_key(&memory.id)
            || (memory.state != MemoryState::Superseded
                && matches!(self.batch.get(Table::Index, &keys::content(&memory.content_hash)), Some(Some(_))))
    }

    /// The live memory with this content.
    pub(crate) fn with_content(&self, hash: &ContentHash) -> Result<Option<Memory>, StoreError> {
        match self.get(Table::Index, &keys::content(hash))? {
            Some(value) => match keys::id_at_end(&value) {
                Some(id) => self.memory(id),
                None => Ok(None),
            },
            None => Ok(None),
        }
    }

    fn count(&mut self, namespace: &Namespace, state: MemoryState, add: bool) {
        let counters = &mut self.state.counters;
        let counter = match state {
            MemoryState::Active => &mut counters.active,
            MemoryState::Quarantined => &mut counters.quarantined,
            MemoryState::Superseded => &mut counters.superseded,
        };
        *counter = if add { *counter + 1 } else { counter.saturating_sub(1) };
        if state == MemoryState::Superseded {
            return;
        }
        let here = self.state.namespaces.entry(namespace.clone()).or_default();
        *here = if add { *here + 1 } else { here.saturating_sub(1) };
        let value = *here;
        let key = keys::meta(keys::NAMESPACE_PREFIX, namespace.as_str().as_bytes());
        if value == 0 {
            self.state.namespaces.remove(namespace);
            self.batch.delete(Table::Meta, key);
        } else {
            self.batch.put(Table::Meta, key, value.to_le_bytes());
        }
    }

    /// Puts a memory that was not there.
    pub(crate) fn insert(&mut self, memory: Memory) {
        let id = memory.id;
        self.count(&memory.namespace, memory.state, true);
        for key in secondary_keys(&memory) {
            self.batch.put(Table::Index, key, []);
        }
        if memory.state != MemoryState::Superseded {
            self.batch.put(Table::Index, keys::content(&memory.content_hash), *id.as_bytes());
        }
        self.batch.put(Table::Pending, *id.as_bytes(), []);
        self.state.counters.embeddings_pending += 1;
        self.write(memory);
    }

    /// Puts a changed memory in its own place. What it is indexed by does not change, but its state may.
    pub(crate) fn update(&mut self, before: &Memory, after: Memory) -> Result<(), StoreError> {
        if before.state != after.state {
            self.count(&before.namespace, before.state, false);
            self.count(&after.namespace, after.state, true);
            let key = keys::content(&after.content_hash);
            let was_live = before.state != MemoryState::Superseded;
            let is_live = after.state != MemoryState::Superseded;
            if was_live && !is_live && self.get(Table::Index, &key)?.as_deref() == Some(after.id.as_bytes()) {
                self.batch.delete(Table::Index, key);
            } else if is_live && !was_live {
                self.batch.put(Table::Index, key, *after.id.as_bytes());
            }
        }
        self.write(after);
        Ok(())
    }

    fn write(&mut self, memory: Memory) {
        self.batch.put(Table::Memory, *memory.id.as_bytes(), record::encode_memory(&memory));
        self.note(ChangeKind::Upserted, memory.id);
        self.touched.insert(memory.id, Some(memory));
    }

    /// Deletes every row of a memory and queues its bytes for the purge.
    pub(crate) fn remove(&mut self, memory: &Memory) -> Result<(), StoreError> {
        let id = memory.id;
        self.count(&memory.namespace, memory.state, false);
        for key in secondary_keys(memory) {
            self.batch.delete(Table::Index, key);
        }
        let key = keys::content(&memory.content_hash);
        if self.get(Table::Index, &key)?.as_deref() == Some(id.as_bytes()) {
            self.batch.delete(Table::Index, key);
        }
        if self.get(Table::Pending, id.as_bytes())?.is_some() {
            self.batch.delete(Table::Pending, *id.as_bytes());
            self.state.counters.embeddings_pending = self.state.counters.embeddings_pending.saturating_sub(1);
        }
        self.batch.delete(Table::Memory, *id.as_bytes());
        self.batch.delete(Table::Embedding, *id.as_bytes());
        self.batch.put(Table::Purge, *id.as_bytes(), self.state.counters.lsn.to_be_bytes());
        self.state.counters.purge_pending += 1;
        self.note(ChangeKind::Removed, id);
        self.touched.insert(id, None);
        Ok(())
    }

    /// Notes a change for the projections.
    pub(crate) fn note(&mut self, kind: ChangeKind, id: MemoryId) {
        if !self.state.projections.is_empty() {
            self.journal.changes.push((self.state.counters.lsn, kind, *id.as_bytes()));
        }
    }

    /// What an operation gave before, if it was carried out before.
    pub(crate) fn ledger(&self, op_id: OpId) -> Result<Option<(ContentHash, OperationResult)>, StoreError> {
        match self.get(Table::Ledger, &op_id.to_bytes())? {
            Some(bytes) => self.decoded(record::decode_ledger(&bytes)).map(Some),
            None => Ok(None),
        }
    }

    /// Remembers what an operation gave.
    pub(crate) fn record(&mut self, op_id: OpId, content_hash: ContentHash, result: &OperationResult) {
        self.batch.put(Table::Ledger, op_id.to_bytes(), record::encode_ledger(content_hash, result));
        self.op_ids.push(op_id);
        self.state.counters.ledger += 1;
    }

    /// When everything forgotten up to an LSN was gone from the files; `None` while it is not.
    pub(crate) fn purged_at(&self, lsn: Lsn) -> Result<Option<Timestamp>, StoreError> {
        let from = keys::meta(keys::PURGE_PREFIX, &lsn.0.to_be_bytes());
        let to = keys::meta(keys::PURGE_PREFIX, &u64::MAX.to_be_bytes());
        let mut at = None;
        self.engine.scan(Table::Meta, Bound::Included(&from), Bound::Included(&to), &mut |_, value| {
            at = value.first_chunk::<8>().map(|bytes| Timestamp::from_millis(i64::from_le_bytes(*bytes)));
            ControlFlow::Break(())
        })?;
        Ok(at)
    }

    /// Completes the batch: ledger times and expiry, journal, counters.
    pub(crate) fn finish(&mut self, now: Timestamp, options: &DurableOptions) -> Result<(), StoreError> {
        if !self.op_ids.is_empty() {
            let ids: Vec<u8> = self.op_ids.iter().flat_map(|op_id| op_id.to_bytes()).collect();
            self.expire_ledger(now, options)?;
            self.batch.put(Table::LedgerTime, keys::ledger_time(now, self.state.counters.lsn), ids);
        }
        self.finish_without_operations();
        Ok(())
    }

    /// Completes a batch that holds no operations: journal and counters.
    pub(crate) fn finish_without_operations(&mut self) {
        if !self.journal.changes.is_empty() {
            let row = record::encode_journal(&self.journal);
            self.batch.put(Table::Journal, self.state.counters.lsn.to_be_bytes(), row);
        }
        self.batch.put(Table::Meta, keys::COUNTERS, record::encode_counters(&self.state.counters));
    }

    fn expire_ledger(&mut self, now: Timestamp, options: &DurableOptions) -> Result<(), StoreError> {
        let limit = LEDGER_EXPIRY_FACTOR * self.op_ids.len();
        let horizon = now.as_millis().saturating_sub(options.ledger_retention_ms);
        let surplus = self.state.counters.ledger.saturating_sub(options.ledger_rows_max);
        self.expire_ledger_rows(horizon, surplus, limit).map(|_| ())
    }

    /// Removes operation ids older than `horizon`, and the oldest `surplus`, but not many more than `limit`. Says how many.
    pub(crate) fn expire_ledger_rows(&mut self, horizon: i64, surplus: u64, limit: usize) -> Result<usize, StoreError> {
        let mut rows: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut ids = 0;
        scan_prefix(self.engine, Table::LedgerTime, &[], &mut |key, value| {
            let expired = keys::time_of(key).is_none_or(|at| at < horizon) || (ids as u64) < surplus;
            if !expired || ids >= limit {
                return ControlFlow::Break(());
            }
            ids += value.len() / 16;
            rows.push((key.to_vec(), value.to_vec()));
            ControlFlow::Continue(())
        })?;
        for (key, value) in rows {
            for op_id in value.chunks_exact(16) {
                // An id that came again since its first record expired is in this batch: that one stays.
                if self.batch.get(Table::Ledger, op_id).is_none() {
                    self.batch.delete(Table::Ledger, op_id);
                    self.state.counters.ledger = self.state.counters.ledger.saturating_sub(1);
                }
            }
            self.batch.delete(Table::LedgerTime, key);
        }
        Ok(ids)
    }
}

/// The keys under which a memory is found by what it belongs to.
fn secondary_keys(memory: &Memory) -> Vec<Vec<u8>> {
    let mut prefixes = vec![keys::namespace(&memory.namespace), keys::source(&memory.provenance.source)];
    prefixes.extend(memory.thread.as_deref().map(|thread| keys::thread(&memory.namespace, thread)));
    prefixes.into_iter().map(|prefix| keys::with_id(prefix, memory.id)).collect()
}
