//! The queue of memories that need vectors, the vectors, and the change from one generation of them to the next.

use std::ops::{Bound, ControlFlow};

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId};

use crate::durable::record::{self, ChangeKind};
use crate::durable::transaction::Transaction;
use crate::durable::{DurableStore, corrupt, keys};
use crate::recall::context_texts;
use crate::state::Table;
use crate::store::{PendingEmbedding, StoreError};

/// A page of the queue has at most this many memories.
const PENDING_MAX: usize = 10_000;
/// Memories that one transaction marks for a new generation: writes wait for one such step at most.
const REGENERATION_STEP: usize = 10_000;
/// A generation's name is at most this long (bytes).
pub(crate) const GENERATION_BYTES_MAX: usize = 256;
/// A memory has at most this many vectors.
pub(crate) const VIEWS_MAX: usize = 8;

/// Checks the name of a generation.
pub(crate) fn check_generation(generation: &EmbeddingGeneration) -> Result<(), StoreError> {
    let bytes = generation.0.len();
    if bytes == 0 || bytes > GENERATION_BYTES_MAX {
        let problem = format!("has {bytes} bytes, allowed are 1 to {GENERATION_BYTES_MAX}");
        return Err(StoreError::InvalidQuery { field: "generation", problem });
    }
    Ok(())
}

/// Checks the vectors of one memory: as many as there are views, all of the same dimensions.
pub(crate) fn check_views(embeddings: &[Embedding]) -> Result<(), StoreError> {
    let invalid = |problem| Err(StoreError::InvalidQuery { field: "embeddings", problem });
    if embeddings.is_empty() || embeddings.len() > VIEWS_MAX {
        return invalid(format!("has {} vectors for a memory, allowed are 1 to {VIEWS_MAX}", embeddings.len()));
    }
    let first = embeddings[0].dimensions();
    match embeddings.iter().find(|embedding| embedding.dimensions() != first) {
        Some(other) => invalid(format!("has vectors of {first} and of {} dimensions", other.dimensions())),
        None => Ok(()),
    }
}

impl DurableStore {
    pub(super) fn pending(&self, limit: usize) -> Result<Vec<PendingEmbedding>, StoreError> {
        self.check_open()?;
        let limit = limit.min(PENDING_MAX);
        let mut ids = Vec::new();
        if limit == 0 {
            return Ok(Vec::new());
        }
        self.engine.scan(Table::Pending, Bound::Unbounded, Bound::Unbounded, &mut |key, _| {
            ids.extend(keys::id_at_end(key));
            if ids.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        let mut pending = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(memory) = self.memory(id)? else { continue };
            let around = self.index().neighbours(id);
            let mut neighbours = Vec::with_capacity(around.len());
            for neighbour in around {
                neighbours.extend(self.memory(neighbour)?);
            }
            pending.push(PendingEmbedding { id, texts: context_texts(&memory, &neighbours) });
        }
        Ok(pending)
    }

    pub(super) fn put_embeddings(
        &self,
        generation: &EmbeddingGeneration,
        embeddings: Vec<(MemoryId, Vec<Embedding>)>,
    ) -> Result<(), StoreError> {
        self.check_open()?;
        check_generation(generation)?;
        for (_, views) in &embeddings {
            check_views(views)?;
        }
        let mut writer = self.writer();
        let corrupt = corrupt(&self.folder);
        let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
        let current = writer.generation.as_ref().is_none_or(|current| current == generation);
        let mut stored = Vec::with_capacity(embeddings.len());
        for (id, views) in embeddings {
            if self.engine.get(Table::Memory, id.as_bytes())?.is_none() {
                continue;
            }
            // Vectors of a generation that is on its way out are better than none, but replace none.
            if !current && transaction.get(Table::Embedding, id.as_bytes())?.is_some() {
                continue;
            }
            if stored.is_empty() {
                transaction.next_lsn();
            }
            transaction.batch.put(Table::Embedding, *id.as_bytes(), record::encode_embeddings(generation, &views));
            transaction.note(ChangeKind::Embedded, id);
            if current && transaction.get(Table::Pending, id.as_bytes())?.is_some() {
                transaction.batch.delete(Table::Pending, *id.as_bytes());
                transaction.state.counters.embeddings_pending =
                    transaction.state.counters.embeddings_pending.saturating_sub(1);
            }
            stored.push((id, views));
        }
        if stored.is_empty() {
            return Ok(());
        }
        // Vectors carry no operation, so that the time of this transaction is of no consequence.
        transaction.finish_without_operations();
        self.commit(&mut writer, transaction)?;
        let mut index = self.index_mut();
        for (id, views) in &stored {
            index.set_embeddings(*id, views);
        }
        Ok(())
    }

    /// The vector of the text alone of each memory.
    pub(super) fn text_vectors(&self, ids: &[MemoryId]) -> Result<Vec<Option<Embedding>>, StoreError> {
        self.check_open()?;
        ids.iter()
            .map(|id| {
                let Some(bytes) = self.engine.get(Table::Embedding, id.as_bytes())? else { return Ok(None) };
                let (_, views) = record::decode_embeddings(&bytes).map_err(corrupt(&self.folder))?;
                Ok(views.into_iter().next())
            })
            .collect()
    }

    pub(super) fn start_generation(&self, generation: &EmbeddingGeneration) -> Result<(), StoreError> {
        self.check_open()?;
        check_generation(generation)?;
        {
            let mut writer = self.writer();
            if writer.generation.as_ref() == Some(generation) {
                return Ok(());
            }
            let corrupt = corrupt(&self.folder);
            let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
            transaction.state.generation = Some(generation.clone());
            transaction.batch.put(Table::Meta, keys::GENERATION, generation.0.as_bytes());
            transaction.batch.put(Table::Meta, keys::REGENERATION, []);
            transaction.finish_without_operations();
            self.commit(&mut writer, transaction)?;
        }
        self.resume_regeneration()
    }

    /// Marks every memory without a vector of the current generation, step by step, from where the last run stopped.
    pub(super) fn resume_regeneration(&self) -> Result<(), StoreError> {
        while self.regeneration_step()? {}
        Ok(())
    }

    /// One step; says whether there is more to do.
    fn regeneration_step(&self) -> Result<bool, StoreError> {
        let mut writer = self.writer();
        let Some(cursor) = self.engine.get(Table::Meta, keys::REGENERATION)? else { return Ok(false) };
        let corrupt = corrupt(&self.folder);
        let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
        let mut ids = Vec::new();
        let from = if cursor.is_empty() { Bound::Unbounded } else { Bound::Excluded(cursor.as_slice()) };
        self.engine.scan(Table::Memory, from, Bound::Unbounded, &mut |key, _| {
            ids.extend(keys::id_at_end(key));
            if ids.len() < REGENERATION_STEP { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        for id in &ids {
            let made_with = match self.engine.get(Table::Embedding, id.as_bytes())? {
                Some(bytes) => Some(record::generation_of(&bytes).map_err(&corrupt)?.to_owned()),
                None => None,
            };
            let current = transaction.state.generation.as_ref().map(|generation| generation.0.as_str());
            let made = made_with.is_some() && made_with.as_deref() == current;
            let waits = transaction.get(Table::Pending, id.as_bytes())?.is_some();
            let pending = &mut transaction.state.counters.embeddings_pending;
            if !made && !waits {
                *pending += 1;
                transaction.batch.put(Table::Pending, *id.as_bytes(), []);
            } else if made && waits {
                // The generation came back before this memory was embedded anew: its vector is right again.
                *pending = pending.saturating_sub(1);
                transaction.batch.delete(Table::Pending, *id.as_bytes());
            }
        }
        match ids.last() {
            Some(last) => transaction.batch.put(Table::Meta, keys::REGENERATION, *last.as_bytes()),
            None => transaction.batch.delete(Table::Meta, keys::REGENERATION),
        }
        transaction.finish_without_operations();
        self.commit(&mut writer, transaction)?;
        Ok(!ids.is_empty())
    }
}
