//! The store that lasts: memories in a state engine, an index over them in memory.
//!
//! One [`DurableStore::apply`] is one transaction of the state engine: memory rows, idempotency rows, queue rows, journal row
//! and counters become durable together or not at all, with one fsync for the whole batch (group commit). The state engine
//! holds everything a memory is; the recall index is rebuilt from it at open, and other places that follow the store
//! ([`Projection`], such as a columnar copy) are fed from a journal of changed ids.
//!
//! What a crash loses: nothing that was acknowledged. What a fault of the state engine does: every later call answers
//! [`StoreError::Closed`] and the process is expected to exit; a write is never tried again.
//!
//! Reading order: [`options`], `record` and `keys` (what the rows are), `transaction`, `operations`, then this file (the
//! store), `reading`, `embeddings`, `projection`,
//! `snapshot` (the index as a file), `upkeep`.

mod cache;
mod embeddings;
pub(crate) mod keys;
pub(crate) mod operations;
pub mod options;
mod parallel;
pub mod projection;
mod reading;
pub(crate) mod record;
mod snapshot;
pub(crate) mod transaction;
mod upkeep;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use mneme_base::{Embedding, EmbeddingGeneration, Lsn, MemoryId, Namespace, Timestamp};

use crate::domain::{Memory, Recall, RecallQuery};
use crate::durable::cache::MemoryCache;
use crate::durable::operations::{Context, Room};
use crate::durable::record::RowError;
use crate::durable::transaction::{Transaction, WriterState};
use crate::gate;
use crate::index::tokens::Tokenizer;
use crate::recall::{RecallIndex, RowParts};
use crate::state::folder::free_bytes;
use crate::state::{RamEngine, StateEngine, Table, open_engine, scan_prefix};
use crate::store::{
    Document, MaintenanceReport, MaintenanceTask, MemoryStore, Operation, OperationOutcome, PendingEmbedding, Scan,
    StoreError, StoreHealth, StoreStats,
};
use crate::transfer::ImportReport;

pub(crate) use embeddings::{check_generation, check_views};
pub use options::{DurableOptions, StoreLimits};
pub use projection::{Change, JournalRecord, Projection};
pub use upkeep::restore;

/// From so many changed memories on, a commit prepares the index on a second thread.
const PREPARE_MIN: usize = 64;
/// Sizes are counted anew after this.
const SIZES_KEPT: Duration = Duration::from_secs(5);
/// The state engine's folder inside the store's.
const STATE_FOLDER: &str = "state";

/// What the parts of a recall index take (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndexSizes {
    /// Int8 codes and scales of the vectors.
    pub codes: u64,
    /// Postings and lengths of the texts.
    pub text: u64,
    /// All of it, with what filters and near duplicates need.
    pub all: u64,
}

/// Memories in a state engine, with a recall index in memory.
pub struct DurableStore {
    folder: PathBuf,
    options: RwLock<Arc<DurableOptions>>,
    engine: Arc<dyn StateEngine>,
    /// Held for a whole transaction: one writer.
    writer: Mutex<WriterState>,
    index: RwLock<RecallIndex>,
    cache: Mutex<MemoryCache>,
    /// What the last transaction left, for readers that must not wait for the writer.
    published: RwLock<WriterState>,
    projections: RwLock<Vec<Arc<dyn Projection>>>,
    /// Projections whose last step failed, and why.
    projection_faults: Mutex<BTreeMap<(String, MaintenanceTask), String>>,
    /// Forgets up to this LSN are in none of the state engine's files any more.
    purged_through: AtomicU64,
    opened_from_index_file: bool,
    /// Held for a whole step of upkeep: one at a time.
    upkeep: Mutex<UpkeepState>,
    /// Bytes on disk and of the index, and when they were counted.
    sizes: Mutex<Option<(Instant, u64, u64)>>,
}

/// What upkeep remembers from one step to the next.
#[derive(Debug, Default)]
struct UpkeepState {
    /// When the rows were last counted for a compaction, and what the files took then (bytes).
    counted: Option<(Timestamp, u64)>,
}

impl fmt::Debug for DurableStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DurableStore")
            .field("folder", &self.folder)
            .field("engine", &self.engine)
            .finish_non_exhaustive()
    }
}

fn corrupt(folder: &Path) -> impl Fn(RowError) -> StoreError + '_ {
    |error| StoreError::Corrupt { path: folder.to_owned(), problem: error.to_string() }
}

impl DurableStore {
    /// Opens the store in a folder, or makes one there. Rebuilds the recall index from the rows.
    pub fn open(folder: &Path, options: DurableOptions) -> Result<Self, StoreError> {
        let engine = open_engine(&folder.join(STATE_FOLDER), options.engine, options.engine_cache_bytes)?;
        Self::over(engine, folder, options)
    }

    /// A store whose rows live in memory only: the same code without a disk.
    pub fn in_memory(options: DurableOptions) -> Result<Self, StoreError> {
        Self::over(Arc::new(RamEngine::default()), Path::new(""), options)
    }

    /// Opens a store over a state engine.
    pub fn over(engine: Arc<dyn StateEngine>, folder: &Path, options: DurableOptions) -> Result<Self, StoreError> {
        let state = load_writer_state(engine.as_ref(), folder)?;
        let (index, file_lsn) = match snapshot::load(engine.as_ref(), folder, &options.index)? {
            Some((index, lsn)) => (index, Some(lsn)),
            None => (reading::build_index(engine.as_ref(), folder, &options, state.generation.as_ref())?, None),
        };
        let index = snapshot::with_rows(index, &engine);
        let store = Self {
            folder: folder.to_owned(),
            cache: Mutex::new(MemoryCache::new(options.memory_cache_bytes)),
            options: RwLock::new(Arc::new(options)),
            engine,
            published: RwLock::new(state.clone()),
            writer: Mutex::new(state),
            index: RwLock::new(index),
            projections: RwLock::default(),
            projection_faults: Mutex::default(),
            purged_through: AtomicU64::new(0),
            opened_from_index_file: file_lsn.is_some(),
            upkeep: Mutex::default(),
            sizes: Mutex::default(),
        };
        if let Some(lsn) = file_lsn {
            let changes = store.catch_up(lsn)?;
            tracing::debug!(lsn, changes, "recall index read from its file");
        }
        store.resume_regeneration()?;
        Ok(store)
    }

    fn writer(&self) -> MutexGuard<'_, WriterState> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn index(&self) -> RwLockReadGuard<'_, RecallIndex> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn index_mut(&self) -> RwLockWriteGuard<'_, RecallIndex> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self) -> MutexGuard<'_, MemoryCache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> RwLockReadGuard<'_, WriterState> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last change.
    pub fn lsn(&self) -> Lsn {
        Lsn(self.published().counters.lsn)
    }

    fn options(&self) -> Arc<DurableOptions> {
        Arc::clone(&self.options.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the parts of the recall index take (bytes of the heap, nearly).
    pub fn index_sizes(&self) -> IndexSizes {
        let index = self.index();
        IndexSizes { codes: index.own.bytes() + index.context.bytes(), text: index.text_bytes(), all: index.bytes() }
    }

    /// Bytes of all rows: what a state engine without any overhead would take. Cost: reads every row.
    pub fn row_bytes(&self) -> Result<u64, StoreError> {
        let mut bytes = 0_u64;
        for table in Table::ALL {
            self.engine.scan(table, Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
                bytes += (key.len() + value.len()) as u64;
                ControlFlow::Continue(())
            })?;
        }
        Ok(bytes)
    }

    fn check_open(&self) -> Result<(), StoreError> {
        match self.engine.fault() {
            Some(reason) => Err(StoreError::Closed { reason }),
            None => Ok(()),
        }
    }

    /// Refuses writes while there is room to refuse them in, instead of failing half way later.
    fn check_disk(&self) -> Result<(), StoreError> {
        match self.room() {
            Room { free_bytes: Some(free_bytes), watermark_bytes } if free_bytes < watermark_bytes => {
                Err(StoreError::ReadOnly { free_bytes, watermark_bytes })
            }
            _ => Ok(()),
        }
    }

    fn room(&self) -> Room {
        let watermark_bytes = self.options().disk_watermark_bytes;
        let on_disk = !self.folder.as_os_str().is_empty() && watermark_bytes > 0;
        Room { free_bytes: on_disk.then(|| free_bytes(&self.folder)).flatten(), watermark_bytes }
    }

    /// Carries out a batch. See [`crate::store::MemoryStore::apply`].
    fn apply_batch(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError> {
        self.check_open()?;
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let options = self.options();
        let room = self.room();
        let admitted: Vec<_> = batch.iter().map(operations::admitted).collect();
        let mut writer = self.writer();
        let corrupt = corrupt(&self.folder);
        let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
        let mut outcomes = Vec::with_capacity(batch.len());
        {
            let index = self.index();
            let context = Context { options: &options, index: &index, room, now };
            for (operation, admitted) in batch.iter().zip(admitted) {
                outcomes.push(operations::operate(&mut transaction, &context, operation, admitted)?);
            }
        }
        if transaction.state.counters.lsn != writer.counters.lsn {
            transaction.finish(now, &options)?;
            self.commit(&mut writer, transaction)?;
        }
        Ok(outcomes)
    }

    /// Takes memories in as they are. See [`crate::store::MemoryStore::import`].
    fn import_batch(&self, memories: Vec<Memory>) -> Result<ImportReport, StoreError> {
        self.check_open()?;
        self.check_disk()?;
        let mut report = ImportReport::default();
        let mut admitted = Vec::with_capacity(memories.len());
        for outcome in parallel::map(memories, |memory| {
            let id = memory.id;
            gate::admit_stored(memory).map_err(|refusal| (id, refusal))
        }) {
            match outcome {
                Ok(memory) => admitted.push(memory),
                Err(refusal) => {
                    report.add(ImportReport { refused: 1, refusals: vec![refusal], ..ImportReport::default() });
                }
            }
        }
        let mut writer = self.writer();
        let corrupt = corrupt(&self.folder);
        let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
        let known = transaction.known(&admitted)?;
        for (mut memory, known) in admitted.into_iter().zip(known) {
            // Known before this batch, or by this batch.
            if known || transaction.has_inserted(&memory) {
                report.known += 1;
                continue;
            }
            memory.lsn = transaction.next_lsn();
            transaction.insert(memory);
            report.imported += 1;
        }
        if report.imported > 0 {
            transaction.finish_without_operations();
            self.commit(&mut writer, transaction)?;
        }
        Ok(report)
    }

    /// Makes a transaction durable, then visible.
    fn commit(&self, writer: &mut WriterState, transaction: Transaction<'_>) -> Result<(), StoreError> {
        let Transaction { batch, state, touched, .. } = transaction;
        // In id order, so that the index does not depend on the order of a hash map.
        let mut touched: Vec<_> = touched.into_iter().collect();
        touched.sort_unstable_by_key(|(id, _)| *id);
        let mut parts: Vec<Option<RowParts>> = Vec::new();
        if touched.len() < PREPARE_MIN {
            self.engine.commit(&batch)?;
        } else {
            // The disk is written while texts are taken apart. If it fails, that work was in vain.
            std::thread::scope(|scope| {
                let touched = &touched;
                let prepared = scope.spawn(move || {
                    let tokenizer = Tokenizer::new();
                    let part = |memory: &Memory| RowParts::new(&tokenizer, memory);
                    touched.iter().map(|(_, memory)| memory.as_ref().map(part)).collect()
                });
                self.engine.commit(&batch)?;
                parts = prepared.join().unwrap_or_default();
                Ok::<_, StoreError>(())
            })?;
        }
        self.cache().invalidate(touched.iter().map(|(id, _)| id));
        if !touched.is_empty() {
            let mut index = self.index_mut();
            let mut parts = parts.into_iter();
            for (id, memory) in touched {
                let parts = parts.next().flatten();
                match memory {
                    Some(memory) => index.upsert_prepared(&memory, parts),
                    None => {
                        index.remove(id);
                    }
                }
            }
            index.compact_if_overgrown();
        }
        *writer = state.clone();
        *self.published.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }

    fn current_stats(&self) -> StoreStats {
        let state = self.published().clone();
        let counters = state.counters;
        let (disk_bytes, index_bytes) = self.sizes();
        let health = match (self.engine.fault(), self.check_disk()) {
            (Some(reason), _) => StoreHealth::Failed { reason },
            (None, Err(error)) => StoreHealth::ReadOnly { reason: error.to_string() },
            (None, Ok(())) => match self.projection_fault() {
                Some(reason) => StoreHealth::Degraded { reason },
                None => StoreHealth::Healthy,
            },
        };
        StoreStats {
            engine: self.engine.kind().to_string(),
            memories: counters.active + counters.quarantined,
            quarantined: counters.quarantined,
            superseded: counters.superseded,
            purge_pending: counters.purge_pending,
            embeddings_pending: counters.embeddings_pending,
            namespaces: state.namespaces.into_iter().collect(),
            lsn: Lsn(counters.lsn),
            disk_bytes,
            index_bytes,
            health,
        }
    }

    /// Bytes on disk and of the index. Counting them looks at every list of the index and at every file, so that they are counted
    /// once in a while, however often they are asked for.
    fn sizes(&self) -> (u64, u64) {
        let mut kept = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, disk_bytes, index_bytes)) = *kept
            && at.elapsed() < SIZES_KEPT
        {
            return (disk_bytes, index_bytes);
        }
        let (disk_bytes, index_bytes) = (self.engine.disk_bytes(), self.index().bytes());
        *kept = Some((Instant::now(), disk_bytes, index_bytes));
        (disk_bytes, index_bytes)
    }
}

impl MemoryStore for DurableStore {
    fn apply(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError> {
        self.apply_batch(batch, now)
    }

    fn get(&self, id: MemoryId) -> Result<Option<Memory>, StoreError> {
        self.check_open()?;
        self.memory(id)
    }

    fn text_to_embed(&self, query: &RecallQuery) -> String {
        self.index().embedding_text(query)
    }

    fn recall(&self, query: &RecallQuery, embedding: Option<&Embedding>, now: Timestamp) -> Result<Recall, StoreError> {
        self.answer(query, embedding, now)
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Memory>, StoreError> {
        self.page(scan)
    }

    fn set_generation(&self, generation: &EmbeddingGeneration) -> Result<(), StoreError> {
        self.start_generation(generation)
    }

    fn pending_embeddings(&self, limit: usize) -> Result<Vec<PendingEmbedding>, StoreError> {
        self.pending(limit)
    }

    fn store_embeddings(
        &self,
        generation: &EmbeddingGeneration,
        embeddings: Vec<(MemoryId, Vec<Embedding>)>,
    ) -> Result<(), StoreError> {
        self.put_embeddings(generation, embeddings)
    }

    fn vectors(&self, ids: &[MemoryId]) -> Result<Vec<Option<Embedding>>, StoreError> {
        self.text_vectors(ids)
    }

    fn import(&self, memories: Vec<Memory>) -> Result<ImportReport, StoreError> {
        self.import_batch(memories)
    }

    fn documents(
        &self,
        collection: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        self.document_page(collection, prefix, after, limit)
    }

    fn maintain(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        self.upkeep_step(task, now)
    }

    fn backup(&self, folder: &Path) -> Result<MaintenanceReport, StoreError> {
        self.backup_to(folder)
    }

    fn set_limits(&self, limits: StoreLimits) {
        let mut options = self.options.write().unwrap_or_else(PoisonError::into_inner);
        *options = Arc::new(options.limited(limits));
    }

    fn stats(&self) -> StoreStats {
        self.current_stats()
    }

    fn lsn(&self) -> Lsn {
        Self::lsn(self)
    }
}

fn load_writer_state(engine: &dyn StateEngine, folder: &Path) -> Result<WriterState, StoreError> {
    let corrupt = corrupt(folder);
    let mut state = WriterState::default();
    if let Some(bytes) = engine.get(Table::Meta, keys::COUNTERS)? {
        state.counters = record::decode_counters(&bytes).map_err(&corrupt)?;
    }
    if let Some(bytes) = engine.get(Table::Meta, keys::GENERATION)? {
        state.generation = Some(EmbeddingGeneration(String::from_utf8_lossy(&bytes).into_owned()));
    }
    scan_prefix(engine, Table::Meta, keys::NAMESPACE_PREFIX, &mut |key, value| {
        let name = String::from_utf8_lossy(&key[keys::NAMESPACE_PREFIX.len()..]);
        if let (Ok(namespace), Some(count)) = (name.parse::<Namespace>(), value.first_chunk::<8>()) {
            state.namespaces.insert(namespace, u64::from_le_bytes(*count));
        }
        ControlFlow::Continue(())
    })?;
    scan_prefix(engine, Table::Meta, keys::PROJECTION_PREFIX, &mut |key, _| {
        state.projections.push(String::from_utf8_lossy(&key[keys::PROJECTION_PREFIX.len()..]).into_owned());
        ControlFlow::Continue(())
    })?;
    Ok(state)
}

/// Visits every memory, in id order.
fn each_memory(
    engine: &dyn StateEngine,
    folder: &Path,
    after: Option<MemoryId>,
    visit: &mut dyn FnMut(Memory) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    let corrupt = corrupt(folder);
    let mut fault = None;
    let from = after.as_ref().map_or(Bound::Unbounded, |id| Bound::Excluded(&id.as_bytes()[..]));
    engine.scan(Table::Memory, from, Bound::Unbounded, &mut |key, value| match memory_of(key, value) {
        Ok(memory) => visit(memory),
        Err(error) => {
            fault = Some(corrupt(error));
            ControlFlow::Break(())
        }
    })?;
    fault.map_or(Ok(()), Err)
}

fn memory_of(key: &[u8], value: &[u8]) -> Result<Memory, RowError> {
    let id = key.first_chunk::<16>().map(|bytes| MemoryId::from_bytes(*bytes));
    record::decode_memory(id.unwrap_or(MemoryId::from_bytes([0; 16])), value)
}
