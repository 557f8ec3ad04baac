//! The loop's rows and its one checkpoint, as documents of the store.

use mneme_evolution::machine::{Checkpoint, LogRow};
use mneme_memory::Document;
use ractor::ActorProcessingErr;
use tokio::time::Instant;

use super::JOURNAL_TIMEOUT;
use crate::call::{ActorError, deadline_in};
use crate::memory::MemoryHandle;

/// Rows that are read at once when the loop is restored.
const ROWS_PAGE: usize = 1_000;
/// The collection of decisions.
const LOG: &str = "evolution_log";
/// The collection of the one checkpoint.
const CHECKPOINT: &str = "evolution_checkpoint";

pub(super) async fn write_row(memory: &MemoryHandle, row: &LogRow) -> Result<(), ActorProcessingErr> {
    let value = Some(serde_json::to_vec(row)?);
    let document = Document { collection: LOG.into(), key: format!("{:020}", row.id), value };
    Ok(memory.put_documents(vec![document], deadline_in(JOURNAL_TIMEOUT)).await?)
}

pub(super) async fn write_checkpoint(memory: &MemoryHandle, checkpoint: &Checkpoint) -> Result<(), ActorProcessingErr> {
    let value = Some(serde_json::to_vec(checkpoint)?);
    let document = Document { collection: CHECKPOINT.into(), key: "latest".into(), value };
    Ok(memory.put_documents(vec![document], deadline_in(JOURNAL_TIMEOUT)).await?)
}

pub(super) async fn read_rows(memory: &MemoryHandle, deadline: Instant) -> Result<Vec<LogRow>, ActorError> {
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let page = memory.documents(LOG, String::new(), after, ROWS_PAGE, deadline).await?;
        let is_last = page.len() < ROWS_PAGE;
        after = page.last().map(|document| document.key.clone());
        for document in page {
            let value = document.value.unwrap_or_default();
            match serde_json::from_slice(&value) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    let problem = format!("row {} cannot be read: {error}", document.key);
                    return Err(ActorError::invalid("evolution log", problem));
                }
            }
        }
        if is_last {
            return Ok(rows);
        }
    }
}

pub(super) async fn read_checkpoint(
    memory: &MemoryHandle,
    deadline: Instant,
) -> Result<Option<Checkpoint>, ActorError> {
    let page = memory.documents(CHECKPOINT, String::new(), None, 1, deadline).await?;
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
