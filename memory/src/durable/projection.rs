//! Places that follow the store: a journal of changed ids feeds them, and is cut where the slowest of them has arrived.
//!
//! The journal names what changed and the tables say what it is now: so a projection gets the present state of each changed
//! memory, forgotten content is in no journal row, and applying records twice does no harm.

use std::fmt;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, PoisonError};

use mneme_base::{Embedding, EmbeddingGeneration, Lsn, MemoryId, Timestamp};

use crate::domain::Memory;
use crate::durable::record::{self, ChangeKind};
use crate::durable::snapshot::fresh_number;
use crate::durable::transaction::Transaction;
use crate::durable::{DurableStore, corrupt, each_memory, keys};
use crate::state::{Table, WriteBatch};
use crate::store::{MaintenanceReport, MaintenanceTask, StoreError};

/// Changes that a projection gets at once; the transaction that passes this number is taken whole.
const RECORDS_PER_APPLY: usize = 1_000;
/// Journal rows that one transaction removes.
const TRUNCATE_ROWS: usize = 10_000;

/// What a projection has to make true.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Change {
    /// The memory is now like this.
    Upserted(Box<Memory>),
    /// The memory is gone: nothing of it may be read any more.
    Removed(MemoryId),
    /// The memory's vectors are now these, one per view.
    Embedded {
        /// Which memory.
        id: MemoryId,
        /// What they were made with.
        generation: EmbeddingGeneration,
        /// The vectors.
        embeddings: Vec<Embedding>,
    },
}

/// One change and its place in the journal.
#[derive(Debug, Clone, PartialEq)]
pub struct JournalRecord {
    /// The place. Records come in this order; several may share one place.
    pub lsn: Lsn,
    /// The change.
    pub change: Change,
}

/// A place that follows the store, such as a columnar copy.
///
/// Records may come again after a crash and have to be applied by key. A record says the state of a memory at the time of
/// the call, which may be newer than its LSN.
pub trait Projection: Send + Sync + fmt::Debug {
    /// Its name, for ever: the journal is kept for it under this name, also while it is not attached.
    fn name(&self) -> &str;

    /// Whether what it holds came from this history of the store; nothing is as good. The number is made when a store is first
    /// followed, and anew by a restore. It has to be kept with the next checkpoint.
    fn belongs_to(&self, history: u64) -> Result<bool, StoreError> {
        let _ = history;
        Ok(true)
    }

    /// Up to where everything is durable in it.
    fn checkpoint_lsn(&self) -> Result<Lsn, StoreError>;

    /// Applies records in order and makes them durable, with `up_to` as its new checkpoint.
    fn apply(&self, records: &[JournalRecord], up_to: Lsn) -> Result<(), StoreError>;

    /// Empties it: everything comes again from the start. Called when the journal does not reach back to its checkpoint, or what it
    /// holds came from elsewhere.
    fn reset(&self) -> Result<(), StoreError>;

    /// Makes removed content unreadable in its files.
    fn purge(&self) -> Result<(), StoreError>;

    /// Does its part of a step of upkeep, after the store has done its own.
    fn upkeep(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let _ = (task, now);
        Ok(MaintenanceReport::default())
    }
}

/// The row that the journal is kept by: from where on it is complete for the projection, and how far that one has come.
pub(super) struct Follower {
    complete_after: u64,
    checkpoint: u64,
}

impl Follower {
    /// One that begins to follow at an LSN.
    pub(super) const fn new(lsn: u64) -> Self {
        Self { complete_after: lsn, checkpoint: lsn }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [self.complete_after.to_le_bytes(), self.checkpoint.to_le_bytes()].concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |part: Option<&[u8]>| Some(u64::from_le_bytes(part?.try_into().ok()?));
        Some(Self { complete_after: number(bytes.get(..8))?, checkpoint: number(bytes.get(8..16))? })
    }
}

impl DurableStore {
    /// Lets a projection follow the store. From now on the journal is kept for it, over restarts too.
    pub fn attach(&self, projection: Arc<dyn Projection>) -> Result<(), StoreError> {
        self.check_open()?;
        let name = projection.name().to_owned();
        if name == keys::INDEX_FOLLOWER {
            return Err(StoreError::InvalidQuery {
                field: "projection",
                problem: format!("{name} is a name of the store's own"),
            });
        }
        let mut writer = self.writer();
        if !writer.projections.contains(&name) {
            let corrupt = corrupt(&self.folder);
            let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
            let follower = Follower::new(writer.counters.lsn);
            transaction.batch.put(Table::Meta, keys::meta(keys::PROJECTION_PREFIX, name.as_bytes()), follower.encode());
            transaction.state.projections.push(name);
            self.commit(&mut writer, transaction)?;
        }
        self.projections.write().unwrap_or_else(PoisonError::into_inner).push(projection);
        Ok(())
    }

    /// Stops following for good: the journal is no longer kept for this name.
    pub fn detach(&self, name: &str) -> Result<(), StoreError> {
        self.check_open()?;
        self.projections.write().unwrap_or_else(PoisonError::into_inner).retain(|other| other.name() != name);
        self.projection_faults.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _), _| other != name);
        {
            let mut writer = self.writer();
            let corrupt = corrupt(&self.folder);
            let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
            transaction.batch.delete(Table::Meta, keys::meta(keys::PROJECTION_PREFIX, name.as_bytes()));
            transaction.batch.delete(Table::Meta, keys::meta(keys::HISTORY_PREFIX, name.as_bytes()));
            transaction.state.projections.retain(|other| other != name);
            self.commit(&mut writer, transaction)?;
        }
        self.truncate_journal().map(|_| ())
    }

    /// Brings every attached projection up to the last change and cuts the journal. Returns the records applied. Writes go on
    /// meanwhile.
    pub fn project(&self) -> Result<u64, StoreError> {
        let mut applied = 0;
        let outcome = self.each_projection(MaintenanceTask::Follow, |projection| {
            applied += self.project_one(projection)?;
            Ok(())
        });
        self.truncate_journal()?;
        outcome.map(|()| applied)
    }

    /// Does something with every attached projection, whatever comes of the others, and notes how each is. The first error is
    /// returned.
    pub(super) fn each_projection(
        &self,
        step: MaintenanceTask,
        mut work: impl FnMut(&dyn Projection) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let attached = self.projections.read().unwrap_or_else(PoisonError::into_inner).clone();
        let mut outcome = Ok(());
        for projection in &attached {
            let result = work(projection.as_ref());
            self.note_projection(projection.name(), step, result.as_ref().err());
            outcome = outcome.and(result);
        }
        outcome
    }

    fn note_projection(&self, name: &str, step: MaintenanceTask, error: Option<&StoreError>) {
        let mut faults = self.projection_faults.lock().unwrap_or_else(PoisonError::into_inner);
        match error {
            Some(error) => {
                faults.insert((name.to_owned(), step), words(error));
            }
            None => {
                faults.remove(&(name.to_owned(), step));
            }
        }
    }

    /// What is wrong with projections, in words; `None` while nothing is.
    pub(super) fn projection_fault(&self) -> Option<String> {
        let faults = self.projection_faults.lock().unwrap_or_else(PoisonError::into_inner);
        faults.values().next().cloned()
    }

    /// Whether the journal is kept for a projection of this name.
    pub fn follows(&self, name: &str) -> bool {
        self.published().projections.iter().any(|known| known == name)
    }

    fn follower(&self, name: &str) -> Result<Option<Follower>, StoreError> {
        let key = keys::meta(keys::PROJECTION_PREFIX, name.as_bytes());
        Ok(self.engine.get(Table::Meta, &key)?.as_deref().and_then(Follower::decode))
    }

    /// The number of the history that a projection follows; made when it is first asked for.
    fn history(&self, name: &str) -> Result<u64, StoreError> {
        let key = keys::meta(keys::HISTORY_PREFIX, name.as_bytes());
        let known = self.engine.get(Table::Meta, &key)?;
        if let Some(number) = known.as_deref().and_then(|bytes| bytes.first_chunk::<8>()) {
            return Ok(u64::from_le_bytes(*number));
        }
        let number = fresh_number(self.lsn().0);
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, key, number.to_le_bytes());
        let _writer = self.writer();
        self.engine.commit(&batch)?;
        Ok(number)
    }

    fn project_one(&self, projection: &dyn Projection) -> Result<u64, StoreError> {
        let Some(mut follower) = self.follower(projection.name())? else { return Ok(0) };
        let ours = projection.belongs_to(self.history(projection.name())?)?;
        let mut checkpoint = projection.checkpoint_lsn()?.0;
        let mut applied = 0;
        // A checkpoint from the future is that of another store, whatever it says.
        let foreign = !ours || checkpoint > self.lsn().0;
        if foreign || checkpoint < follower.complete_after || checkpoint < follower.checkpoint {
            tracing::info!(projection = projection.name(), foreign, "projection is filled anew");
            projection.reset()?;
            let up_to = self.lsn();
            applied += self.fill(projection, up_to)?;
            checkpoint = up_to.0;
        }
        loop {
            let rows = self.journal_rows(checkpoint)?;
            let Some((last, _)) = rows.last() else { break };
            let last = *last;
            let mut records = Vec::new();
            for (_, row) in rows {
                for (lsn, kind, id) in row.changes {
                    records.push(self.resolve(Lsn(lsn), kind, MemoryId::from_bytes(id))?);
                }
            }
            records.retain(|record| record.lsn.0 > checkpoint);
            applied += records.len() as u64;
            projection.apply(&records, Lsn(last))?;
            checkpoint = last;
        }
        if follower.checkpoint == checkpoint {
            return Ok(applied);
        }
        follower.checkpoint = checkpoint;
        let mut batch = WriteBatch::default();
        batch.put(Table::Meta, keys::meta(keys::PROJECTION_PREFIX, projection.name().as_bytes()), follower.encode());
        let _writer = self.writer();
        self.engine.commit(&batch)?;
        Ok(applied)
    }

    /// Everything the store holds, for an empty projection. What changes meanwhile is in the journal after `up_to`.
    fn fill(&self, projection: &dyn Projection, up_to: Lsn) -> Result<u64, StoreError> {
        let mut after = None;
        let mut filled = 0;
        loop {
            let mut memories = Vec::new();
            each_memory(self.engine.as_ref(), &self.folder, after, &mut |memory| {
                memories.push(memory);
                if memories.len() < RECORDS_PER_APPLY { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            let Some(last) = memories.last() else { break };
            after = Some(last.id);
            let mut records = Vec::with_capacity(2 * memories.len());
            for memory in memories {
                let id = memory.id;
                records.push(JournalRecord { lsn: up_to, change: Change::Upserted(Box::new(memory)) });
                let embedded = self.resolve(up_to, ChangeKind::Embedded, id)?;
                if matches!(embedded.change, Change::Embedded { .. }) {
                    records.push(embedded);
                }
            }
            filled += records.len() as u64;
            // The checkpoint stays where it was until all of it is there: a crash half way starts anew.
            projection.apply(&records, Lsn::ZERO)?;
        }
        projection.apply(&[], up_to)?;
        Ok(filled)
    }

    pub(super) fn journal_rows(&self, after: u64) -> Result<Vec<(u64, record::JournalRow)>, StoreError> {
        let (mut rows, mut changes, mut fault) = (Vec::new(), 0, None);
        let from = after.to_be_bytes();
        self.engine.scan(Table::Journal, Bound::Excluded(&from), Bound::Unbounded, &mut |key, value| {
            let Some(lsn) = key.first_chunk::<8>() else { return ControlFlow::Continue(()) };
            match record::decode_journal(value) {
                Ok(row) => {
                    changes += row.changes.len();
                    rows.push((u64::from_be_bytes(*lsn), row));
                }
                Err(error) => fault = Some(corrupt(&self.folder)(error)),
            }
            let enough = changes >= RECORDS_PER_APPLY || rows.len() >= RECORDS_PER_APPLY;
            if enough || fault.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        fault.map_or(Ok(rows), Err)
    }

    /// What a change of an id means now.
    fn resolve(&self, lsn: Lsn, kind: ChangeKind, id: MemoryId) -> Result<JournalRecord, StoreError> {
        let change = match (kind, self.memory(id)?) {
            (_, None) | (ChangeKind::Removed, _) => Change::Removed(id),
            (ChangeKind::Upserted, Some(memory)) => Change::Upserted(Box::new(memory)),
            (ChangeKind::Embedded, Some(memory)) => match self.engine.get(Table::Embedding, id.as_bytes())? {
                Some(bytes) => {
                    let (generation, embeddings) = record::decode_embeddings(&bytes).map_err(corrupt(&self.folder))?;
                    // Vectors of a generation on its way out may have another width, and will be replaced: they are not told of.
                    match self.published().generation.as_ref() {
                        Some(current) if *current != generation => Change::Upserted(Box::new(memory)),
                        _ => Change::Embedded { id, generation, embeddings },
                    }
                }
                None => Change::Upserted(Box::new(memory)),
            },
        };
        Ok(JournalRecord { lsn, change })
    }

    /// Removes the journal up to the slowest projection's checkpoint; all of it when there is none.
    pub(super) fn truncate_journal(&self) -> Result<u64, StoreError> {
        let mut removed = 0;
        loop {
            let writer = self.writer();
            let mut up_to = writer.counters.lsn;
            for name in &writer.projections {
                up_to = up_to.min(self.follower(name)?.map_or(0, |follower| follower.checkpoint));
            }
            let mut batch = WriteBatch::default();
            let to = up_to.to_be_bytes();
            self.engine.scan(Table::Journal, Bound::Unbounded, Bound::Included(&to), &mut |key, _| {
                batch.delete(Table::Journal, key);
                if batch.len() < TRUNCATE_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            if batch.is_empty() {
                return Ok(removed);
            }
            removed += batch.len() as u64;
            self.engine.commit(&batch)?;
        }
    }
}

/// An error with what caused it, in one line.
fn words(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
