//! The store's follower: changes go into two tables by key, are synced, and only then does the checkpoint move.
//!
//! The checkpoint is a setting that is committed with the memories' dataset, so that it can never be ahead of the rows: rows of
//! both tables, sync, checkpoint, sync. After a crash in between, the same changes come again and are put by key. Beside it stands
//! the version that the vectors had: were they to come back older than that, everything comes anew.
//!
//! A third setting names the history of the store that the rows came from: rows of another store, or of what this one was before a
//! backup was restored, are not added to but removed.
//!
//! A fault here is no fault of the store: it is reported, and the next step of upkeep tries again from the checkpoint. After one,
//! both tables are opened anew and read whole, because a failed commit leaves unknown state in memory. After a sync that failed,
//! nothing that was written can be trusted any more, whatever can be read of it: both tables are removed and filled anew. So they are
//! where they can be opened but every step on them fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Seek as _, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use arrow::array::RecordBatch;
use mneme_base::{Lsn, MemoryId, Timestamp};
use mneme_memory::durable::{Change, JournalRecord, Projection};
use mneme_memory::{MaintenanceReport, MaintenanceTask, Memory, StoreError};
use rustix::fs::FlockOperation;

use crate::rows::{RowError, VectorRow, batch_to_memories, batch_to_vectors, memories_to_batch, vectors_to_batch};
use crate::schema::Table;
use crate::shared::{LanceOptions, Shared, StorageError, StorageReport, check_place, local_path, make_private};
use crate::storage::{ArrowStorage, BATCH_ROWS, is_of_the_system};

/// The setting that says up to where everything is in the tables.
pub const CHECKPOINT_KEY: &str = "mneme.checkpoint_lsn";
/// The setting that says which version of the vectors belongs to the checkpoint, or a later one.
const VECTORS_KEY: &str = "mneme.vectors_version";
/// The setting that says which history of the store everything came from.
const HISTORY_KEY: &str = "mneme.history";
/// The name under which the store keeps the journal.
const NAME: &str = "lance";
/// A file that is locked while a process has the tables open: two writers would undo each other's work. It is empty unless
const LOCK_FILE: &str = "lock";
/// a step is under way: found at an opening, that step did not end in good order; or
const WORKING: &[u8] = b"working";
/// what was written cannot be trusted.
const DISTRUSTED: &[u8] = b"distrusted";
/// Batches that are appended as one version while the tables are filled,
const FILL_BATCHES: usize = 8;
/// or so much of them, whichever comes first (bytes).
const FILL_BYTES: usize = 32 << 20;
/// Steps in a row that fail on tables that could be opened, before these are filled anew.
const FAILURES_MAX: u32 = 3;

/// The Lance copy of a store.
#[derive(Debug)]
pub struct LanceProjection {
    place: String,
    shared: Shared,
    held: Mutex<Held>,
    lock: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Held {
    tables: Option<Tables>,
    /// This process has opened the place before.
    opened: bool,
    /// The file of a local place, locked.
    lock: Option<fs_err::File>,
    /// A sync has failed, or every step does.
    distrusted: bool,
    /// How often each kind of step has failed in a row.
    failures: BTreeMap<Step, u32>,
    /// Which history of the store is followed, once that is known.
    history: Option<u64>,
}

#[derive(Debug)]
struct Tables {
    memories: ArrowStorage,
    vectors: ArrowStorage,
    /// Since a reset every row comes once: rows are gathered and appended.
    filling: Option<Gathered>,
    history: Option<u64>,
}

#[derive(Debug, Default)]
struct Gathered {
    memories: Vec<RecordBatch>,
    vectors: Vec<RecordBatch>,
}

/// What is done with the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Read,
    Apply,
    Reset,
    Purge,
    Upkeep(MaintenanceTask),
}

/// Rows of one call, the last state of each key.
#[derive(Default)]
struct Pending<'a> {
    memories: BTreeMap<MemoryId, &'a Memory>,
    vectors: BTreeMap<MemoryId, VectorRow>,
    removed: BTreeSet<MemoryId>,
    /// The dimensions of the vectors that came last.
    dimensions: Option<usize>,
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
                    let dimensions = embeddings.first().map(mneme_base::Embedding::dimensions).filter(|size| *size > 0);
                    pending.dimensions = dimensions.or(pending.dimensions);
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
        Ok(Self { memories, vectors, filling: None, history: None })
    }

    fn exist(&self) -> bool {
        self.memories.exists() || self.vectors.exists()
    }

    fn belongs_to(&self, history: u64) -> bool {
        // A fill that was not ended has no history: what is there may be of any store.
        let theirs = self.memories.setting(HISTORY_KEY).and_then(|text| text.parse::<u64>().ok());
        !self.exist() || theirs == Some(history)
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
        if let Some(dimensions) = pending.dimensions {
            self.put_vectors(pending.vectors.into_values().collect(), dimensions)?;
        }
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
            let history = self.history.map(|history| history.to_string());
            let mut settings = vec![(CHECKPOINT_KEY, checkpoint.as_str()), (VECTORS_KEY, &vectors)];
            settings.extend(history.iter().map(|history| (HISTORY_KEY, history.as_str())));
            self.memories.set(&settings)?;
            self.memories.sync()?;
            self.filling = None;
        }
        Ok(())
    }

    /// Vectors of other dimensions than the table's start it anew: one column has one width, and the store tells of the generation
    /// that it makes now only.
    fn put_vectors(&mut self, rows: Vec<VectorRow>, newest: usize) -> Result<(), StorageError> {
        let width = |row: &VectorRow| row.embeddings.first().map_or(0, mneme_base::Embedding::dimensions);
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

    /// Appends what a fill has gathered, where it is this many batches or enough bytes.
    fn append_gathered(&mut self, batches: usize) -> Result<(), StorageError> {
        let Some(gathered) = &mut self.filling else { return Ok(()) };
        let enough = |some: &[RecordBatch]| {
            some.len() >= batches || some.iter().map(RecordBatch::get_array_memory_size).sum::<usize>() >= FILL_BYTES
        };
        if enough(&gathered.memories) {
            self.memories.append(std::mem::take(&mut gathered.memories))?;
        }
        if enough(&gathered.vectors) {
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
        // What was merely refused is told of last: tables that failed are not used again.
        let refused = matches!(one, Err(StorageError::DiskLow { .. } | StorageError::NoRoom { .. }));
        let (two, one) = if refused {
            (two?, one?)
        } else {
            let one = one?;
            (two?, one)
        };
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
        check_place(place)?;
        let shared = Shared::new(options)?;
        let lock = local_path(place).map(|folder| folder.join(LOCK_FILE));
        Ok(Self { place: place.to_owned(), shared, held: Mutex::default(), lock })
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
        let mut check = held.opened;
        if let Some(path) = self.lock.as_ref().filter(|_| held.lock.is_none()) {
            let failed = |source| StorageError::Io { doing: "lock", path: path.clone(), source };
            let (file, found) = lock(path).map_err(failed)?;
            let in_use = || StorageError::InUse { place: self.place.clone() };
            held.lock = Some(file.ok_or_else(in_use)?);
            held.distrusted |= found == DISTRUSTED;
            check |= !found.is_empty();
        }
        held.opened = true;
        let mut tables = Tables::open(&self.shared, &self.place, check && !held.distrusted)?;
        if held.distrusted {
            tracing::warn!(
                place = self.place,
                "what was written to the lance copy cannot be trusted, it is filled anew"
            );
            tables.remove()?;
            held.distrusted = false;
            self.mark(held, b"")?;
        }
        Ok(tables)
    }

    /// Notes how a local place stands. What says that something is amiss has to be on the disk before anything else is.
    fn mark(&self, held: &mut Held, words: &[u8]) -> Result<(), StorageError> {
        let (Some(file), Some(path)) = (&mut held.lock, &self.lock) else { return Ok(()) };
        let written = file.set_len(0).and_then(|()| {
            file.rewind()?;
            file.write_all(words)?;
            if words.is_empty() { Ok(()) } else { file.sync_all() }
        });
        written.map_err(|source| StorageError::Io { doing: "mark", path: path.clone(), source })
    }

    /// From now on nothing here can be trusted, not even by another process: one that is killed before it has removed everything would
    /// read back from memory what never reached the disk.
    fn distrust(&self, held: &mut Held) {
        held.distrusted = true;
        if let Err(error) = self.mark(held, DISTRUSTED) {
            tracing::debug!(error = &error as &dyn std::error::Error, "the lance copy could not be marked");
        }
    }

    /// Runs a step on the tables; after a fault they are opened anew the next time.
    fn with<T>(&self, step: Step, work: impl FnOnce(&mut Tables) -> Result<T, StorageError>) -> Result<T, StoreError> {
        let mut held = self.held();
        let mut tables = match held.tables.take() {
            Some(tables) => tables,
            None => self.open_tables(&mut held).map_err(fault)?,
        };
        // Lance panics on some damaged files; here that is a fault like any other, and the tables are not used again.
        tables.history = held.history;
        if step != Step::Read
            && let Err(error) = self.mark(&mut held, WORKING)
        {
            held.tables = Some(tables);
            return Err(fault(error));
        }
        let result = catch_unwind(AssertUnwindSafe(|| work(&mut tables))).unwrap_or(Err(StorageError::Panicked));
        match &result {
            Ok(_) => {
                held.failures.remove(&step);
                held.tables = Some(tables);
                if step != Step::Read {
                    self.mark(&mut held, b"").map_err(fault)?;
                }
            }
            // Refused between two commits: what is in memory is what is on the disk. A fill does not go on, it begins again.
            Err(StorageError::DiskLow { .. } | StorageError::NoRoom { .. }) => {
                tables.filling = None;
                held.tables = Some(tables);
            }
            Err(StorageError::NotDurable { .. }) => self.distrust(&mut held),
            // The place could be opened and read, and the system refused nothing: something in it is damaged that opening does not
            // look at.
            Err(error)
                if self.lock.is_some() && !matches!(error, StorageError::Hung { .. }) && !is_of_the_system(error) =>
            {
                let failures = held.failures.entry(step).or_default();
                *failures += 1;
                if *failures >= FAILURES_MAX {
                    held.failures.clear();
                    self.distrust(&mut held);
                }
            }
            Err(_) => {}
        }
        result.map_err(fault)
    }

    /// Every memory in the copy, in no order: to compare it with the store.
    pub fn memories(&self) -> Result<Vec<Memory>, StoreError> {
        self.with(Step::Read, |tables| rows_of(&tables.memories, batch_to_memories))
    }

    /// Every vector in the copy, in no order.
    pub fn vectors(&self) -> Result<Vec<VectorRow>, StoreError> {
        self.with(Step::Read, |tables| rows_of(&tables.vectors, batch_to_vectors))
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

/// Opens and locks the file of a place. Says what stands in it; without the file, another process holds it.
fn lock(path: &Path) -> std::io::Result<(Option<fs_err::File>, Vec<u8>)> {
    let folder = path.parent().unwrap_or(path);
    make_private(folder)?;
    let mut file = fs_err::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    // A file system without locks has to do without.
    if rustix::fs::flock(file.file(), FlockOperation::NonBlockingLockExclusive) == Err(rustix::io::Errno::WOULDBLOCK) {
        return Ok((None, Vec::new()));
    }
    let mut words = Vec::new();
    file.read_to_end(&mut words)?;
    file.sync_all()?;
    fs_err::File::open(folder)?.sync_all()?;
    Ok((Some(file), words))
}

impl Projection for LanceProjection {
    fn name(&self) -> &str {
        NAME
    }

    fn belongs_to(&self, history: u64) -> Result<bool, StoreError> {
        self.held().history = Some(history);
        self.with(Step::Read, |tables| Ok(tables.belongs_to(history)))
    }

    fn checkpoint_lsn(&self) -> Result<Lsn, StoreError> {
        self.with(Step::Read, |tables| Ok(tables.checkpoint()))
    }

    fn apply(&self, records: &[JournalRecord], up_to: Lsn) -> Result<(), StoreError> {
        self.with(Step::Apply, |tables| tables.apply(records, up_to))
    }

    fn reset(&self) -> Result<(), StoreError> {
        self.with(Step::Reset, |tables| {
            // A fill that ended for want of room is not tried again before there is more.
            if tables.exist() && tables.checkpoint() == Lsn::ZERO {
                tables.memories.check_disk()?;
            }
            tables.remove()?;
            tables.filling = Some(Gathered::default());
            Ok(())
        })
    }

    fn purge(&self) -> Result<(), StoreError> {
        self.with(Step::Purge, |tables| tables.each(ArrowStorage::purge)).map(drop)
    }

    fn upkeep(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        if !matches!(task, MaintenanceTask::Compact | MaintenanceTask::Index | MaintenanceTask::Cleanup) {
            return Ok(MaintenanceReport::default());
        }
        let report = self.with(Step::Upkeep(task), |tables| {
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
