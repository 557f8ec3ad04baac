//! The loop's rows, its state as of a row, and its one checkpoint, as documents of the store.
//!
//! The log would grow for ever and be read as a whole at every start: so the state is written down every [`SNAPSHOT_ROWS`] rows, a
//! start reads only what came after it, and of the rows before it the newest [`KEPT_ROWS`] stay for people to read.

use std::collections::BTreeMap;

use mneme_base::AdapterId;
use mneme_evolution::machine::{Checkpoint, LogRow, Stage, State};
use mneme_memory::Document;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::JOURNAL_TIMEOUT;
use crate::call::{ActorError, deadline_in};
use crate::memory::MemoryHandle;

/// Rows that are read at once.
const ROWS_PAGE: usize = 1_000;
/// Rows after which the state is written down.
const SNAPSHOT_ROWS: u64 = 1_000;
/// Rows that stay readable: years of decisions in a few megabytes.
const KEPT_ROWS: u64 = 10_000;
/// Rows that are deleted in one change.
const DELETED_AT_ONCE: u64 = 1_000;
/// A snapshot is stored in parts of this size (bytes): the store bounds a document, and a state with many adapters is larger.
const PART_BYTES: usize = 1 << 20;
/// Decisions on one adapter that are told: the newest.
const ABOUT_MAX: usize = 1_000;
/// The collection of decisions.
const LOG: &str = "evolution_log";
/// The collection of the one checkpoint.
const CHECKPOINT: &str = "evolution_checkpoint";
/// The collection of the one snapshot's parts.
const SNAPSHOT: &str = "evolution_state";
/// The key of the one checkpoint.
const LATEST: &str = "latest";

/// The loop's history, folded.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// What the rows made.
    pub(super) state: State,
    /// How often each station was entered.
    pub(super) stations: BTreeMap<Stage, u64>,
    /// Documents that it is stored as.
    #[serde(skip)]
    parts: usize,
    /// After a failure: not before this row.
    #[serde(skip)]
    retry_at: u64,
}

impl Snapshot {
    /// A snapshot of the present, to take this one's place.
    pub(super) fn renewed(&self, state: &State, stations: &BTreeMap<Stage, u64>) -> Self {
        Self { state: state.clone(), stations: stations.clone(), parts: self.parts, retry_at: 0 }
    }

    /// Whether so many rows have come since that it should be renewed.
    pub(super) fn is_old(&self, rows: u64) -> bool {
        rows >= self.retry_at.max(self.state.rows + SNAPSHOT_ROWS)
    }

    /// Renewing it failed: it is tried again some rows later.
    pub(super) const fn postpone(&mut self, rows: u64) {
        self.retry_at = rows + SNAPSHOT_ROWS / 10;
    }
}

fn key(row: u64) -> String {
    format!("{row:020}")
}

pub(super) async fn write_row(memory: &MemoryHandle, row: &LogRow) -> Result<(), ActorError> {
    let document = Document { collection: LOG.into(), key: key(row.id), value: Some(bytes(row)) };
    memory.put_documents(vec![document], deadline_in(JOURNAL_TIMEOUT)).await
}

pub(super) async fn write_checkpoint(memory: &MemoryHandle, checkpoint: &Checkpoint) -> Result<(), ActorError> {
    let document = Document { collection: CHECKPOINT.into(), key: LATEST.into(), value: Some(bytes(checkpoint)) };
    memory.put_documents(vec![document], deadline_in(JOURNAL_TIMEOUT)).await
}

/// Writes the state down in one change, in place of the snapshot before, and after it deletes the rows that are too old, a part at
/// a time.
pub(super) async fn write_snapshot(
    memory: &MemoryHandle,
    before: &mut Snapshot,
    mut renewed: Snapshot,
) -> Result<(), ActorError> {
    let whole = bytes(&renewed);
    let parts = whole.len().div_ceil(PART_BYTES);
    let part = |(number, value): (usize, &[u8])| (number, Some(value.to_vec()));
    // A longer one that was there before must leave nothing behind.
    let emptied = (parts..before.parts).map(|number| (number, None));
    let document = |(number, value)| Document { collection: SNAPSHOT.into(), key: format!("{number:06}"), value };
    let documents = whole.chunks(PART_BYTES).enumerate().map(part).chain(emptied).map(document).collect();
    // Whatever becomes of it: a change that is not answered in time may have been made.
    before.parts = before.parts.max(parts);
    memory.put_documents(documents, deadline_in(JOURNAL_TIMEOUT)).await?;
    renewed.parts = parts;
    let keep_from = (renewed.state.rows + 1).saturating_sub(KEPT_ROWS);
    *before = renewed;
    loop {
        let oldest = read_page(memory, 0, 1, deadline_in(JOURNAL_TIMEOUT)).await?;
        let Some(oldest) = oldest.first().map(|row| row.id).filter(|oldest| *oldest < keep_from) else {
            return Ok(());
        };
        let deleted = oldest..keep_from.min(oldest + DELETED_AT_ONCE);
        let delete = |row| Document { collection: LOG.into(), key: key(row), value: None };
        memory.put_documents(deleted.map(delete).collect(), deadline_in(JOURNAL_TIMEOUT)).await?;
    }
}

async fn read_snapshot(memory: &MemoryHandle) -> Result<Snapshot, ActorError> {
    let mut whole = Vec::new();
    let (mut parts, mut after) = (0, None);
    loop {
        let page = memory.documents(SNAPSHOT, String::new(), after, 1, deadline_in(JOURNAL_TIMEOUT)).await?;
        let Some(document) = page.into_iter().next() else { break };
        whole.extend(document.value.unwrap_or_default());
        parts += 1;
        after = Some(document.key);
    }
    if parts == 0 {
        return Ok(Snapshot::default());
    }
    // What an older version left behind it is passed over.
    let first = serde_json::Deserializer::from_slice(&whole).into_iter::<Snapshot>().next();
    let error = match first {
        Some(Ok(snapshot)) => return Ok(Snapshot { parts, ..snapshot }),
        Some(Err(error)) => error.to_string(),
        None => String::from("it is empty"),
    };
    // The rows say the same, as long as all of them are there.
    let first = read_page(memory, 0, 1, deadline_in(JOURNAL_TIMEOUT)).await?;
    if first.first().is_some_and(|row| row.id == 1) {
        tracing::warn!(error, "evolution's state cannot be read; it is made of its rows anew");
        return Ok(Snapshot { parts, ..Snapshot::default() });
    }
    Err(ActorError::invalid("evolution state", format!("cannot be read, and its first rows are gone: {error}")))
}

fn bytes(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("rows and states are plain data with textual keys")
}

/// Reads the history: the snapshot, and what was decided since.
pub(super) async fn read_history(memory: &MemoryHandle) -> Result<(Snapshot, Snapshot), ActorError> {
    let snapshot = read_snapshot(memory).await?;
    let mut now = snapshot.clone();
    let mut after = now.state.rows;
    loop {
        let page = read_page(memory, after, ROWS_PAGE, deadline_in(JOURNAL_TIMEOUT)).await?;
        for row in &page {
            now.state.follow(row).map_err(|error| ActorError::invalid("evolution log", error.to_string()))?;
            *now.stations.entry(row.to).or_insert(0) += 1;
            after = row.id;
        }
        if page.len() < ROWS_PAGE {
            return Ok((snapshot, now));
        }
    }
}

/// Rows with numbers above `after`, oldest first.
async fn read_page(
    memory: &MemoryHandle,
    after: u64,
    limit: usize,
    deadline: Instant,
) -> Result<Vec<LogRow>, ActorError> {
    let page = memory.documents(LOG, String::new(), Some(key(after)), limit, deadline).await?;
    let parse = |document: mneme_memory::Document| {
        serde_json::from_slice(&document.value.unwrap_or_default()).map_err(|error| {
            ActorError::invalid("evolution log", format!("row {} cannot be read: {error}", document.key))
        })
    };
    page.into_iter().map(parse).collect()
}

/// The newest rows up to `before` (exclusive), newest first.
pub(super) async fn read_newest(
    memory: &MemoryHandle,
    limit: usize,
    before: u64,
    deadline: Instant,
) -> Result<Vec<LogRow>, ActorError> {
    let after = before.saturating_sub(1).saturating_sub(limit as u64);
    let mut rows = read_page(memory, after, limit, deadline).await?;
    // Where the oldest were deleted, later ones come in their place.
    rows.retain(|row| row.id < before);
    rows.reverse();
    Ok(rows)
}

/// The newest rows about an adapter, oldest first.
pub(super) async fn read_about(
    memory: &MemoryHandle,
    adapter: AdapterId,
    deadline: Instant,
) -> Result<Vec<LogRow>, ActorError> {
    let mut found = std::collections::VecDeque::new();
    let mut after = 0;
    loop {
        let page = read_page(memory, after, ROWS_PAGE, deadline).await?;
        let is_last = page.len() < ROWS_PAGE;
        after = page.last().map_or(after, |row| row.id);
        for row in page.into_iter().filter(|row| row.adapter == Some(adapter)) {
            if found.len() == ABOUT_MAX {
                found.pop_front();
            }
            found.push_back(row);
        }
        if is_last {
            return Ok(found.into());
        }
    }
}

pub(super) async fn read_checkpoint(memory: &MemoryHandle) -> Result<Option<Checkpoint>, ActorError> {
    let page = memory.documents(CHECKPOINT, String::new(), None, 1, deadline_in(JOURNAL_TIMEOUT)).await?;
    let value = page.into_iter().next().and_then(|document| document.value);
    // A checkpoint of another build is worth no failed start: evidence begins afresh.
    Ok(value.and_then(|value| match serde_json::from_slice(&value) {
        Ok(checkpoint) => Some(checkpoint),
        Err(error) => {
            tracing::warn!(%error, "evolution checkpoint cannot be read; evidence begins afresh");
            None
        }
    }))
}
