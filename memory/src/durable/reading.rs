//! Reads: by id, by question, page by page; and the index that questions need.

use std::cell::RefCell;
use std::ops::{Bound, ControlFlow};
use std::path::Path;

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId, Score, Timestamp};

use crate::domain::{Hit, HitExplanation, Memory, Recall, RecallQuery};
use crate::durable::options::DurableOptions;
use crate::durable::{DurableStore, corrupt, each_memory, keys, parallel, record};
use crate::gate;
use crate::index::tokens::Tokenizer;
use crate::recall::{RecallIndex, RowParts, matched};
use crate::state::{StateEngine, Table, prefix_end};
use crate::store::{Document, Scan, StoreError};

/// Memories that are taken apart together while the index is built: a few megabytes.
const BUILD_ROWS: usize = 4_096;
/// A page has at most this many rows, whatever is asked for.
pub(crate) const PAGE_ROWS_MAX: usize = 10_000;

impl DurableStore {
    pub(super) fn memory(&self, id: MemoryId) -> Result<Option<Memory>, StoreError> {
        let epoch = {
            let mut cache = self.cache();
            if let Some(memory) = cache.get(id) {
                return Ok(Some(memory));
            }
            cache.epoch()
        };
        let Some(bytes) = self.engine.get(Table::Memory, id.as_bytes())? else { return Ok(None) };
        let memory = record::decode_memory(id, &bytes).map_err(corrupt(&self.folder))?;
        self.cache().insert(memory.clone(), epoch);
        Ok(Some(memory))
    }

    pub(super) fn answer(
        &self,
        query: &RecallQuery,
        embedding: Option<&Embedding>,
        now: Timestamp,
    ) -> Result<Recall, StoreError> {
        self.check_open()?;
        gate::check_query(query)?;
        // Read before the index: the answer has seen at least this.
        let lsn = self.lsn();
        let fault = RefCell::new(None);
        let fetch = |id| match self.memory(id) {
            Ok(memory) => memory,
            Err(error) => {
                fault.borrow_mut().get_or_insert(error);
                None
            }
        };
        // Rows are read between two looks at the index and not during one: a change that waits for the index would hold up every
        // other reader until they are read.
        let candidates = self.index().phrase_candidates(query, now)?;
        let phrases = candidates.map(|candidates| candidates.check(&fetch));
        let ranked = self.index().recall_among(query, embedding, now, phrases.as_ref())?;
        let tokenizer = Tokenizer::new();
        // A memory that was forgotten since the ranking is not there any more: it is left out.
        let hits = ranked
            .hits
            .into_iter()
            .filter_map(|hit| {
                let memory = fetch(hit.id)?;
                let explanation = hit.explanation.map(|explanation| HitExplanation {
                    matched_terms: matched(&ranked.terms, &memory, &tokenizer),
                    ..explanation
                });
                Some(Hit { memory, score: Score::new(hit.score), explanation })
            })
            .collect();
        match fault.into_inner() {
            Some(error) => Err(error),
            None => Ok(Recall {
                hits,
                degraded: ranked.degraded,
                abstain: ranked.abstain,
                confidence: ranked.confidence,
                lsn,
            }),
        }
    }

    pub(super) fn page(&self, scan: &Scan) -> Result<Vec<Memory>, StoreError> {
        let limit = scan.limit.min(PAGE_ROWS_MAX);
        let mut page = Vec::new();
        if limit == 0 {
            return Ok(page);
        }
        let Some(namespace) = &scan.namespace else {
            each_memory(self.engine.as_ref(), &self.folder, scan.after, &mut |memory| {
                page.push(memory);
                if page.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            })?;
            return Ok(page);
        };
        let prefix = keys::namespace(namespace);
        let from = match scan.after {
            Some(id) => Bound::Excluded(keys::with_id(prefix.clone(), id)),
            None => Bound::Included(prefix.clone()),
        };
        let end = prefix_end(&prefix);
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut ids = Vec::new();
        self.engine.scan(Table::Index, from.as_ref().map(Vec::as_slice), to, &mut |key, _| {
            ids.extend(keys::id_at_end(key));
            if ids.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        for id in ids {
            page.extend(self.memory(id)?);
        }
        Ok(page)
    }

    pub(super) fn document_page(
        &self,
        collection: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        let limit = limit.min(PAGE_ROWS_MAX);
        let start = keys::document(collection, prefix);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(keys::document(collection, after)),
            _ => Bound::Included(start.clone()),
        };
        let end = prefix_end(&start);
        let to = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows = Vec::new();
        if limit == 0 {
            return Ok(rows);
        }
        let key_at = collection.len() + 1;
        self.engine.scan(Table::Document, from.as_ref().map(Vec::as_slice), to, &mut |key, value| {
            rows.push(Document {
                collection: collection.to_owned(),
                key: String::from_utf8_lossy(key.get(key_at..).unwrap_or_default()).into_owned(),
                value: Some(value.to_vec()),
            });
            if rows.len() < limit { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(rows)
    }
}

/// Builds the index from the rows: the memories, then their vectors.
pub(super) fn build_index(
    engine: &dyn StateEngine,
    folder: &Path,
    options: &DurableOptions,
    generation: Option<&EmbeddingGeneration>,
) -> Result<RecallIndex, StoreError> {
    let mut index = RecallIndex::new(options.index.clone());
    let tokenizer = Tokenizer::new();
    let mut gathered = Vec::with_capacity(BUILD_ROWS);
    let add = |gathered: &mut Vec<Memory>, index: &mut RecallIndex| {
        // Taking texts apart is most of the work, and needs no index: it is spread over the processors.
        let apart = |memory: Memory| {
            let parts = RowParts::new(&tokenizer, &memory);
            (memory, parts)
        };
        for (memory, parts) in parallel::map(std::mem::take(gathered), apart) {
            index.upsert_prepared(&memory, Some(parts));
        }
    };
    each_memory(engine, folder, None, &mut |memory| {
        gathered.push(memory);
        if gathered.len() == BUILD_ROWS {
            add(&mut gathered, &mut index);
        }
        ControlFlow::Continue(())
    })?;
    add(&mut gathered, &mut index);
    // Vectors of the current generation first. Those of an older one serve until they are replaced, but only where the two
    // have the same dimensions: others cannot be in one view.
    let mut dimensions = None;
    let mut older = false;
    each_embedding(engine, folder, &mut |id, of, embeddings| {
        if Some(&of) == generation {
            dimensions = embeddings.first().map(Embedding::dimensions);
            index.set_embeddings(id, &embeddings);
        } else {
            older = true;
        }
    })?;
    if older {
        each_embedding(engine, folder, &mut |id, of, embeddings| {
            let found = embeddings.first().map(Embedding::dimensions);
            if Some(&of) != generation && (dimensions.is_none() || dimensions == found) {
                dimensions = found;
                index.set_embeddings(id, &embeddings);
            }
        })?;
    }
    Ok(index)
}

/// Visits the vectors of every memory, in id order.
pub(super) fn each_embedding(
    engine: &dyn StateEngine,
    folder: &Path,
    visit: &mut dyn FnMut(MemoryId, EmbeddingGeneration, Vec<Embedding>),
) -> Result<(), StoreError> {
    let corrupt = corrupt(folder);
    let mut fault = None;
    engine.scan(Table::Embedding, Bound::Unbounded, Bound::Unbounded, &mut |key, value| match (
        key.first_chunk::<16>(),
        record::decode_embeddings(value),
    ) {
        (Some(id), Ok((generation, embeddings))) => {
            visit(MemoryId::from_bytes(*id), generation, embeddings);
            ControlFlow::Continue(())
        }
        (None, _) => ControlFlow::Continue(()),
        (_, Err(error)) => {
            fault = Some(corrupt(error));
            ControlFlow::Break(())
        }
    })?;
    fault.map_or(Ok(()), Err)
}
