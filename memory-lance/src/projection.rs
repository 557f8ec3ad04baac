//! The store's follower: changes go into two tables by key, are synced, and only then does the checkpoint move.
//!
//! The checkpoint is a setting that is committed with the memories' dataset, so that it can never be ahead of the rows: rows of
//! both tables, sync, checkpoint, sync. After a crash in between, the same changes come again and are put by key. Beside it stands
//! the version that the vectors had: were they to come back older than that, everything comes anew.
//!
//! A fault here is no fault of the store: it is reported, and the next step of upkeep tries again from the checkpoint. After one,
//! both tables are opened anew and read whole, because a failed commit leaves unknown state in memory. After a sync that failed,
//! nothing that was written can be trusted any more, whatever can be read of it: both tables are removed and filled anew.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use mneme_base::{Lsn, MemoryId, Timestamp};
use mneme_memory::durable::{Change, JournalRecord, Projection};
use mneme_memory::{MaintenanceReport, MaintenanceTask, Memory, StoreError};

use crate::rows::{RowError, VectorRow, batch_to_memories, batch_to_vectors, memories_to_batch, vectors_to_batch};
use crate::schema::Table;
use crate::shared::{LanceOptions, Shared, StorageError, StorageReport, local_path};
use crate::storage::{ArrowStorage, BATCH_ROWS};

/// The setting that says up to where everything is in the tables.
pub const CHECKPOINT_KEY: &str = "mneme.checkpoint_lsn";
/// The setting that says which version of the vectors belongs to the checkpoint, or a later one.
const VECTORS_KEY: &str = "mneme.vectors_version";
/// The name under which the store keeps the journal.
const NAME: &str = "lance";
/// A file that stands while a process has the tables open: found at an opening, the last process did not end in good order.
const OPEN_FILE: &str = "open";
/// Batches that are appended as one version while the tables are filled: some ten megabytes.
const FILL_BATCHES: usize = 8;

/// The Lance copy of a store.
#[derive(Debug)]
pub struct LanceProjection {
    place: String,
    shared: Shared,
    held: Mutex<Held>,
    marker: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Held {
    tables: Option<Tables>,
    /// This process has marked the place as open.
    marked: bool,
    /// A sync has failed.
    distrusted: bool,
}

#[derive(Debug)]
struct Tables {
    memories: ArrowStorage,
    vectors: ArrowStorage,
    /// Since a reset every row comes once: rows are gathered and appended.
    filling: Option<Gathered>,
}

#[derive(Debug, Default)]
struct Gathered {
    memories: Vec<RecordBatch>,
    vectors: Vec<RecordBatch>,
}

/// Rows of one call, the last state of each key.
#[derive(Default)]
struct Pending<'a> {
    memories: BTreeMap<MemoryId, &'a Memory>,
    vectors: BTreeMap<MemoryId, VectorRow>,
    removed: BTreeSet<MemoryId>,
}

impl<'a> Pending<'a> {
    fn gather(records: &'a [JournalRecord]) -> Self {
        let mut pending = Self::default();
        for record in records {
            match &record.change {
                Change::Upserted(memory) => {
                    pending.removed.remove(&memory.id);
                    pending.memories.insert(memory.id, memory);
                }
                Change::Removed(id) => {
                    pending.memories.remove(id);
                    pending.vectors.remove(id);
                    pending.removed.insert(*id);
                }
                Change::Embedded { id, generation, embeddings } => {
                    let row = VectorRow { id: *id, generation: generation.clone(), embeddings: embeddings.clone() };
                    pending.vectors.insert(*id, row);
                }
                _ => {}
            }
        }
        pending
    }
}

impl Tables {
    fn open(shared: &Shared, place: &str, check: bool) -> Result<Self, StorageError> {
        let memories = ArrowStorage::open(shared.clone(), place, Table::Memories, check)?;
        let vectors = ArrowStorage::open(shared.clone(), place, Table::Vectors, check)?;
        Ok(Self { memories, vectors, filling: None })
    }

    fn remove(&mut self) -> Result<(), StorageError> {
        // The checkpoint goes first: vectors without one are nothing.
        self.memories.remove()?;
        self.vectors.remove()
    }

    fn checkpoint(&self) -> Lsn {
        let number = |key| self.memories.setting(key).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        let vectors_are_there = self.vectors.head() >= number(VECTORS_KEY);
        Lsn(if vectors_are_there { number(CHECKPOINT_KEY) } else { 0 })
    }

    fn apply(&mut self, records: &[JournalRecord], up_to: Lsn) -> Result<(), StorageError> {
        let pending = Pending::gather(records);
        let removed: Vec<String> = pending.removed.iter().map(MemoryId::to_string).collect();
        self.vectors.delete(&removed)?;
        self.memories.delete(&removed)?;
        if !(pending.memories.is_empty() && pending.vectors.is_empty()) {
            self.memories.check_disk()?;
        }
        self.put_vectors(pending.vectors.into_values().collect())?;
        let memories: Vec<Memory> = pending.memories.into_values().cloned().collect();
        for some in memories.chunks(BATCH_ROWS) {
            let batch = memories_to_batch(some)?;
            match &mut self.filling {
                Some(gathered) => gathered.memories.push(batch),
                None => self.memories.upsert(batch)?,
            }
        }
        // While a fill is under way the checkpoint stays at nought: a crash half way starts anew.
        let done = up_to > Lsn::ZERO;
        self.append_gathered(if done { 1 } else { FILL_BATCHES })?;
        if done {
            // A store without a memory has a checkpoint all the same.
            self.memories.create()?;
            self.vectors.sync()?;
            self.memories.sync()?;
            let (checkpoint, vectors) = (up_to.0.to_string(), self.vectors.head().to_string());
            self.memories.set(&[(CHECKPOINT_KEY, &checkpoint), (VECTORS_KEY, &vectors)])?;
            self.memories.sync()?;
            self.filling = None;
        }
        Ok(())
    }

    /// Vectors of other dimensions than the table's start it anew: one column has one width.
    fn put_vectors(&mut self, rows: Vec<VectorRow>) -> Result<(), StorageError> {
        let width = |row: &VectorRow| row.embeddings.first().map_or(0, mneme_base::Embedding::dimensions);
        let Some(newest) = rows.iter().rev().map(width).find(|width| *width > 0) else { return Ok(()) };
        let of_field = |batch: &RecordBatch| match batch.column_by_name("vector").map(|column| column.data_type()) {
            Some(arrow::datatypes::DataType::FixedSizeList(_, size)) => usize::try_from(*size).ok(),
            _ => None,
        };
        let gathered = self.filling.as_ref().and_then(|gathered| gathered.vectors.first());
        let dimensions = gathered.and_then(of_field).or_else(|| self.vectors.dimensions());
        if dimensions.is_some_and(|dimensions| dimensions != newest) {
            self.vectors.remove()?;
            if let Some(gathered) = &mut self.filling {
                gathered.vectors.clear();
            }
        }
        let rows: Vec<VectorRow> = rows.into_iter().filter(|row| width(row) == newest).collect();
        for some in rows.chunks(BATCH_ROWS) {
            let batch = vectors_to_batch(some, newest)?;
            match &mut self.filling {
                Some(gathered) => gathered.vectors.push(batch),
                None => self.vectors.upsert(batch)?,
            }
        }
        Ok(())
    }

    /// Appends what a fill has gathered, where it is this many batches.
    fn append_gathered(&mut self, batches: usize) -> Result<(), StorageError> {
        let Some(gathered) = &mut self.filling else { return Ok(()) };
        if gathered.memories.len() >= batches {
            self.memories.append(std::mem::take(&mut gathered.memories))?;
        }
        if gathered.vectors.len() >= batches {
            self.vectors.append(std::mem::take(&mut gathered.vectors))?;
        }
        Ok(())
    }

    /// Does a step on each table, whatever comes of the other.
    fn each(
        &mut self,
        step: impl Fn(&mut ArrowStorage) -> Result<StorageReport, StorageError>,
    ) -> Result<StorageReport, StorageError> {
        let (one, two) = (step(&mut self.memories), step(&mut self.vectors));
        self.vectors.sync()?;
        self.memories.sync()?;
        let (one, two) = (one?, two?);
        Ok(StorageReport {
            items: one.items + two.items,
            bytes_freed: one.bytes_freed + two.bytes_freed,
            unindexed_rows: one.unindexed_rows + two.unindexed_rows,
        })
    }
}

fn fault(source: StorageError) -> StoreError {
    StoreError::Projection { name: NAME, source: Box::new(source) }
}

impl LanceProjection {
    /// A copy below a place, a folder or a URI. The place is looked at when it is first needed: one that cannot be reached is tried
    /// again at each step. Damaged heads are repaired then; after an unclean end every row is read once.
    pub fn new(place: &str, options: LanceOptions) -> Result<Self, StorageError> {
        let shared = Shared::new(options)?;
        let marker = local_path(place).map(|folder| folder.join(OPEN_FILE));
        Ok(Self { place: place.to_owned(), shared, held: Mutex::default(), marker })
    }

    /// As [`Self::new`], and looks at the place at once.
    pub fn open(place: &str, options: LanceOptions) -> Result<Self, StorageError> {
        let copy = Self::new(place, options)?;
        let tables = copy.open_tables(&mut copy.held())?;
        copy.held().tables = Some(tables);
        Ok(copy)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_tables(&self, held: &mut Held) -> Result<Tables, StorageError> {
        let mut check = held.marked;
        if let Some(marker) = self.marker.as_ref().filter(|_| !held.marked) {
            check = marker.exists();
            write_marker(marker).map_err(|source| StorageError::Io {
                doing: "mark as open",
                path: marker.clone(),
                source,
            })?;
        }
        held.marked = true;
        let mut tables = Tables::open(&self.shared, &self.place, check)?;
        if held.distrusted {
            tracing::warn!(place = self.place, "a sync of the lance copy failed, it is filled anew");
            tables.remove()?;
            held.distrusted = false;
        }
        Ok(tables)
    }

    /// Runs a step on the tables; after a fault they are opened anew the next time.
    fn with<T>(&self, work: impl FnOnce(&mut Tables) -> Result<T, StorageError>) -> Result<T, StoreError> {
        let mut held = self.held();
        let mut tables = match held.tables.take() {
            Some(tables) => tables,
            None => self.open_tables(&mut held).map_err(fault)?,
        };
        // Lance panics on some damaged files; here that is a fault like any other, and the tables are not used again.
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut tables))).unwrap_or(Err(StorageError::Panicked));
        match result {
            // Refused between two commits: what is in memory is what is on the disk.
            Ok(_) | Err(StorageError::DiskLow { .. }) => held.tables = Some(tables),
            Err(StorageError::NotDurable { .. }) => held.distrusted = true,
            Err(_) => {}
        }
        result.map_err(fault)
    }

    /// Every memory in the copy, in no order: to compare it with the store.
    pub fn memories(&self) -> Result<Vec<Memory>, StoreError> {
        self.with(|tables| rows_of(&tables.memories, batch_to_memories))
    }

    /// Every vector in the copy, in no order.
    pub fn vectors(&self) -> Result<Vec<VectorRow>, StoreError> {
        self.with(|tables| rows_of(&tables.vectors, batch_to_vectors))
    }
}

fn rows_of<T>(
    table: &ArrowStorage,
    read: impl Fn(&RecordBatch) -> Result<Vec<T>, RowError>,
) -> Result<Vec<T>, StorageError> {
    let mut rows = Vec::new();
    let mut problem = None;
    table.scan(None, &mut |batch| match read(&batch) {
        Ok(some) => rows.extend(some),
        Err(error) => problem = Some(error),
    })?;
    problem.map_or(Ok(rows), |source| Err(StorageError::Row { uri: table.uri().to_owned(), source }))
}

/// The mark has to be on the disk before anything else is.
fn write_marker(marker: &std::path::Path) -> std::io::Result<()> {
    let folder = marker.parent().unwrap_or(marker);
    fs_err::create_dir_all(folder)?;
    fs_err::File::create(marker)?.sync_all()?;
    fs_err::File::open(folder)?.sync_all()
}

impl Projection for LanceProjection {
    fn name(&self) -> &str {
        NAME
    }

    fn checkpoint_lsn(&self) -> Result<Lsn, StoreError> {
        self.with(|tables| Ok(tables.checkpoint()))
    }

    fn apply(&self, records: &[JournalRecord], up_to: Lsn) -> Result<(), StoreError> {
        self.with(|tables| tables.apply(records, up_to))
    }

    fn reset(&self) -> Result<(), StoreError> {
        self.with(|tables| {
            tables.remove()?;
            tables.filling = Some(Gathered::default());
            Ok(())
        })
    }

    fn purge(&self) -> Result<(), StoreError> {
        self.with(|tables| tables.each(ArrowStorage::purge)).map(drop)
    }

    fn upkeep(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        if !matches!(task, MaintenanceTask::Compact | MaintenanceTask::Index | MaintenanceTask::Cleanup) {
            return Ok(MaintenanceReport::default());
        }
        let report = self.with(|tables| {
            if task == MaintenanceTask::Cleanup {
                return tables.each(|table| table.cleanup(now));
            }
            tables.memories.check_disk()?;
            let compacts = task == MaintenanceTask::Compact;
            tables.each(if compacts { ArrowStorage::compact } else { ArrowStorage::update_indices })
        })?;
        if report.unindexed_rows > 0 {
            tracing::debug!(rows = report.unindexed_rows, "rows of the lance copy that no index covers");
        }
        Ok(MaintenanceReport { items: report.items, bytes_freed: report.bytes_freed, measure: None })
    }
}

impl Drop for LanceProjection {
    fn drop(&mut self) {
        let clean = self.held().tables.is_some();
        if let Some(marker) = self.marker.as_ref().filter(|_| clean)
            && let Err(error) = fs_err::remove_file(marker)
        {
            tracing::debug!(%error, "lance tables will be checked at their next opening");
        }
    }
}
