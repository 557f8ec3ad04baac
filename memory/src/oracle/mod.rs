//! The store in memory: plain maps and full scans, written to be obviously right. It is the oracle of the tests, and a store
//! for those who need nothing to last.
//!
//! It shares the gate, the ids and the recall index with [`crate::durable::DurableStore`], and nothing else: how operations
//! change what is stored is written a second time here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use mneme_base::{ContentHash, Embedding, EmbeddingGeneration, Lsn, MemoryId, OpId, Score, Timestamp};

use crate::domain::{ForgetReceipt, ForgetSelector, Hit, Memory, MemoryState, Recall, RecallQuery, RememberReceipt};
use crate::durable::{DurableOptions, StoreLimits};
use crate::gate::{self, Admitted, Usage};
use crate::index::duplicates::{Fresh, signature};
use crate::recall::{HalfVectors, IndexOptions, RecallIndex, context_texts};
use crate::store::{
    Document, MaintenanceReport, MaintenanceTask, MemoryStore, Operation, OperationKind, OperationOutcome,
    OperationResult, PendingEmbedding, Refusal, Scan, StoreError, StoreHealth, StoreStats,
};
use crate::transfer::ImportReport;

/// Memories in plain maps. Everything is lost with the process.
#[derive(Debug)]
pub struct InMemoryStore {
    options: RwLock<DurableOptions>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    lsn: u64,
    memories: BTreeMap<MemoryId, Memory>,
    embeddings: BTreeMap<MemoryId, (EmbeddingGeneration, Vec<Embedding>)>,
    generation: Option<EmbeddingGeneration>,
    documents: BTreeMap<(String, String), Vec<u8>>,
    ledger: BTreeMap<OpId, (ContentHash, OperationResult)>,
    usage: BTreeMap<String, Usage>,
    /// Forgotten and not purged yet.
    purge: BTreeSet<MemoryId>,
    /// Forgotten in the batch under way.
    removed: Vec<MemoryId>,
    /// Remembered in the batch under way.
    fresh: Fresh,
    /// When everything forgotten up to an LSN was purged.
    purged: BTreeMap<u64, Timestamp>,
    index: RecallIndex,
}

impl Default for InMemoryStore {
    fn default() -> Self {
        Self::new(DurableOptions::default())
    }
}

impl InMemoryStore {
    /// An empty store. Of the options it takes the index and the quotas; its ledger never expires.
    pub fn new(options: DurableOptions) -> Self {
        // No rows hold exact vectors here.
        let index = RecallIndex::new(IndexOptions { half_vectors: HalfVectors::Memory, ..options.index.clone() });
        let inner = Inner {
            lsn: 0,
            memories: BTreeMap::new(),
            embeddings: BTreeMap::new(),
            generation: None,
            documents: BTreeMap::new(),
            ledger: BTreeMap::new(),
            usage: BTreeMap::new(),
            purge: BTreeSet::new(),
            removed: Vec::new(),
            fresh: Fresh::default(),
            purged: BTreeMap::new(),
            index,
        };
        Self { options: RwLock::new(options), inner: Mutex::new(inner) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn next_lsn(&mut self) -> Lsn {
        self.lsn += 1;
        Lsn(self.lsn)
    }

    fn live_with(&self, hash: ContentHash) -> Option<MemoryId> {
        let live = |memory: &&Memory| memory.content_hash == hash && memory.state != MemoryState::Superseded;
        self.memories.values().find(live).map(|memory| memory.id)
    }

    fn is_pending(&self, id: MemoryId) -> bool {
        match self.embeddings.get(&id) {
            None => true,
            Some((made_with, _)) => self.generation.as_ref().is_some_and(|current| current != made_with),
        }
    }

    fn operate(&mut self, options: &DurableOptions, operation: &Operation, now: Timestamp) -> OperationOutcome {
        let op_id = operation.op_id;
        let hash = operation.kind.content_hash();
        if let Some((stored, result)) = self.ledger.get(&op_id) {
            if *stored != hash {
                return OperationOutcome { result: Err(Refusal::OpIdConflict { op_id }), replayed: false };
            }
            let mut result = result.clone();
            if let OperationResult::Forgotten(receipt) = &mut result
                && !receipt.ids.is_empty()
            {
                receipt.purged_at = self.purged.range(receipt.lsn.0..).next().map(|(_, at)| *at);
            }
            return OperationOutcome { result: Ok(result), replayed: true };
        }
        let result = match &operation.kind {
            OperationKind::Remember(memory) => {
                gate::admit(memory).and_then(|admitted| self.remember(options, op_id, admitted, now))
            }
            OperationKind::Supersede { id, by } => {
                gate::admit(by).and_then(|admitted| self.supersede(options, op_id, *id, admitted, now))
            }
            OperationKind::Forget(selector) => self.forget(selector, now),
            OperationKind::Corroborate { id } => self.corroborate(*id),
            OperationKind::Documents(documents) => self.put_documents(documents),
        };
        if let Ok(result) = &result {
            self.ledger.insert(op_id, (hash, result.clone()));
        }
        OperationOutcome { result, replayed: false }
    }

    fn charge(&mut self, options: &DurableOptions, admitted: &Admitted, now: Timestamp) -> Result<(), Refusal> {
        let provenance = &admitted.memory.provenance;
        match options.quotas.of(provenance.trust) {
            None => Ok(()),
            quota => {
                let usage = self.usage.entry(provenance.source.clone()).or_default();
                usage.admit(&provenance.source, quota, now)
            }
        }
    }

    fn remember(
        &mut self,
        options: &DurableOptions,
        op_id: OpId,
        admitted: Admitted,
        now: Timestamp,
    ) -> Result<OperationResult, Refusal> {
        self.charge(options, &admitted, now)?;
        let lsn = self.next_lsn();
        Ok(OperationResult::Remembered(self.put(op_id, admitted, None, lsn, now)))
    }

    /// Adds a memory, or counts it as evidence for the one that says the same.
    fn put(
        &mut self,
        op_id: OpId,
        admitted: Admitted,
        supersedes: Option<MemoryId>,
        lsn: Lsn,
        now: Timestamp,
    ) -> RememberReceipt {
        let Admitted { memory, redactions, content_hash, state } = admitted;
        if let Some(known) = self.live_with(content_hash).and_then(|id| self.memories.get_mut(&id)) {
            known.evidence = known.evidence.saturating_add(1);
            known.lsn = lsn;
            if state == MemoryState::Active {
                known.state = MemoryState::Active;
            }
            let quarantined = known.state == MemoryState::Quarantined;
            return RememberReceipt {
                id: known.id,
                lsn,
                duplicate: true,
                quarantined,
                redactions,
                near_duplicate_of: None,
            };
        }
        let id = gate::memory_id(now, op_id, lsn.0);
        let signature = signature(&memory.text);
        let news = |near: MemoryId| self.memories.contains_key(&near) && Some(near) != supersedes;
        let near_duplicate_of = self
            .fresh
            .find(&memory.namespace, signature, news)
            .or_else(|| self.index.near_duplicate(signature, &memory.namespace).filter(|near| news(*near)));
        self.fresh.push(&memory.namespace, signature, id);
        let valid_from = gate::valid_from(&memory, now);
        let stored = Memory {
            id,
            namespace: memory.namespace,
            kind: memory.kind,
            text: memory.text,
            speaker: memory.speaker,
            thread: memory.thread,
            position: memory.position,
            metadata: memory.metadata,
            provenance: memory.provenance,
            valid_from,
            valid_to: memory.valid_to,
            recorded_at: now,
            supersedes,
            superseded_by: None,
            state,
            content_hash,
            evidence: 0,
            redactions,
            lsn,
        };
        self.memories.insert(id, stored);
        let quarantined = state == MemoryState::Quarantined;
        RememberReceipt { id, lsn, duplicate: false, quarantined, redactions, near_duplicate_of }
    }

    fn supersede(
        &mut self,
        options: &DurableOptions,
        op_id: OpId,
        old: MemoryId,
        admitted: Admitted,
        now: Timestamp,
    ) -> Result<OperationResult, Refusal> {
        let replaced = self.memories.get(&old).ok_or(Refusal::NotFound { id: old })?;
        if let Some((by, _)) = replaced.superseded_by {
            return Err(Refusal::AlreadySuperseded { id: old, by });
        }
        gate::may_supersede(admitted.memory.provenance.trust, replaced.provenance.trust)?;
        self.charge(options, &admitted, now)?;
        let lsn = self.next_lsn();
        let receipt = self.put(op_id, admitted, Some(old), lsn, now);
        if receipt.id != old {
            if let Some(new) = self.memories.get_mut(&receipt.id) {
                new.supersedes = new.supersedes.or(Some(old));
            }
            if let Some(replaced) = self.memories.get_mut(&old) {
                replaced.superseded_by = Some((receipt.id, now));
                replaced.state = MemoryState::Superseded;
                replaced.lsn = lsn;
            }
        }
        Ok(OperationResult::Superseded(receipt))
    }

    fn forget(&mut self, selector: &ForgetSelector, now: Timestamp) -> Result<OperationResult, Refusal> {
        if let ForgetSelector::Ids(ids) = selector {
            gate::check_forget_ids(ids.len())?;
        }
        let selected = |memory: &Memory| match selector {
            ForgetSelector::Ids(ids) => ids.contains(&memory.id),
            ForgetSelector::Source(source) => memory.provenance.source == *source,
            ForgetSelector::Namespace(namespace) => memory.namespace == *namespace,
            ForgetSelector::Thread { namespace, thread } => {
                memory.namespace == *namespace && memory.thread.as_ref() == Some(thread)
            }
        };
        let ids: Vec<MemoryId> = self.memories.values().filter(|memory| selected(memory)).map(|m| m.id).collect();
        let lsn = self.next_lsn();
        let revoked = matches!(selector, ForgetSelector::Source(_));
        for id in &ids {
            if let Some(gone) = self.memories.remove(id) {
                self.embeddings.remove(id);
                self.purge.insert(*id);
                self.removed.push(*id);
                self.mend_chain(&gone, revoked, lsn);
            }
        }
        let purged_at = ids.is_empty().then_some(now);
        Ok(OperationResult::Forgotten(ForgetReceipt { ids, lsn, hidden_at: now, purged_at }))
    }

    fn mend_chain(&mut self, gone: &Memory, revoked: bool, lsn: Lsn) {
        let before = gone
            .supersedes
            .filter(|id| self.memories.get(id).is_some_and(|m| m.superseded_by.is_some_and(|(by, _)| by == gone.id)));
        let after = gone.superseded_by.map(|(id, _)| id).filter(|id| self.memories.contains_key(id));
        match (before, after) {
            (Some(before), Some(after)) => {
                if let Some(memory) = self.memories.get_mut(&before) {
                    memory.superseded_by = memory.superseded_by.map(|(_, at)| (after, at));
                    memory.lsn = lsn;
                }
                if let Some(memory) = self.memories.get_mut(&after)
                    && memory.supersedes == Some(gone.id)
                {
                    memory.supersedes = Some(before);
                    memory.lsn = lsn;
                }
            }
            (Some(before), None) if revoked && gone.superseded_by.is_none() => {
                let hash = self.memories[&before].content_hash;
                if self.live_with(hash).is_none()
                    && let Some(memory) = self.memories.get_mut(&before)
                {
                    memory.superseded_by = None;
                    memory.state = gate::initial_state(memory.provenance.trust);
                    memory.lsn = lsn;
                }
            }
            _ => {}
        }
    }

    fn corroborate(&mut self, id: MemoryId) -> Result<OperationResult, Refusal> {
        let memory = self.memories.get(&id).ok_or(Refusal::NotFound { id })?;
        if let Some((by, _)) = memory.superseded_by {
            return Err(Refusal::AlreadySuperseded { id, by });
        }
        let lsn = self.next_lsn();
        if let Some(memory) = self.memories.get_mut(&id)
            && memory.state == MemoryState::Quarantined
        {
            memory.state = MemoryState::Active;
            memory.lsn = lsn;
        }
        Ok(OperationResult::Corroborated { id, lsn })
    }

    fn put_documents(&mut self, documents: &[Document]) -> Result<OperationResult, Refusal> {
        gate::check_documents(documents)?;
        let lsn = self.next_lsn();
        for document in documents {
            let key = (document.collection.clone(), document.key.clone());
            match &document.value {
                Some(value) => self.documents.insert(key, value.clone()),
                None => self.documents.remove(&key),
            };
        }
        Ok(OperationResult::Documents { lsn })
    }

    /// Brings the index to the state of the maps after a batch that began at an LSN: every change carries a later one.
    fn refresh_index(&mut self, lsn_before: Lsn) {
        for memory in self.memories.values().filter(|memory| memory.lsn > lsn_before) {
            self.index.upsert(memory);
        }
        for id in std::mem::take(&mut self.removed) {
            self.index.remove(id);
        }
        self.index.compact_if_overgrown();
    }
}

impl MemoryStore for InMemoryStore {
    fn apply(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError> {
        let options = self.options.read().unwrap_or_else(PoisonError::into_inner);
        let mut inner = self.inner();
        let lsn_before = Lsn(inner.lsn);
        inner.fresh = Fresh::default();
        let outcomes = batch.iter().map(|operation| inner.operate(&options, operation, now)).collect();
        inner.refresh_index(lsn_before);
        Ok(outcomes)
    }

    fn get(&self, id: MemoryId) -> Result<Option<Memory>, StoreError> {
        Ok(self.inner().memories.get(&id).cloned())
    }

    fn text_to_embed(&self, query: &RecallQuery) -> String {
        self.inner().index.embedding_text(query)
    }

    fn recall(&self, query: &RecallQuery, embedding: Option<&Embedding>, now: Timestamp) -> Result<Recall, StoreError> {
        gate::check_query(query)?;
        let inner = self.inner();
        let fetch = |id: MemoryId| inner.memories.get(&id).cloned();
        let ranked = inner.index.recall(query, embedding, now, &fetch)?;
        let hits = ranked
            .hits
            .into_iter()
            .filter_map(|hit| {
                Some(Hit { memory: fetch(hit.id)?, score: Score::new(hit.score), explanation: hit.explanation })
            })
            .collect();
        let Inner { lsn, .. } = *inner;
        Ok(Recall {
            hits,
            degraded: ranked.degraded,
            abstain: ranked.abstain,
            confidence: ranked.confidence,
            lsn: Lsn(lsn),
        })
    }

    fn scan(&self, scan: &Scan) -> Result<Vec<Memory>, StoreError> {
        let from = scan.after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = |memory: &&Memory| scan.namespace.as_ref().is_none_or(|namespace| memory.namespace == *namespace);
        let inner = self.inner();
        let rows = inner.memories.range((from, Bound::Unbounded)).map(|(_, memory)| memory);
        Ok(rows.filter(wanted).take(scan.limit).cloned().collect())
    }

    fn set_generation(&self, generation: &EmbeddingGeneration) -> Result<(), StoreError> {
        crate::durable::check_generation(generation)?;
        self.inner().generation = Some(generation.clone());
        Ok(())
    }

    fn pending_embeddings(&self, limit: usize) -> Result<Vec<PendingEmbedding>, StoreError> {
        let inner = self.inner();
        let pending = inner.memories.values().filter(|memory| inner.is_pending(memory.id)).take(limit);
        Ok(pending
            .map(|memory| {
                let around = inner.index.neighbours(memory.id);
                let neighbours: Vec<Memory> = around.iter().filter_map(|id| inner.memories.get(id).cloned()).collect();
                PendingEmbedding { id: memory.id, texts: context_texts(memory, &neighbours) }
            })
            .collect())
    }

    fn vectors(&self, ids: &[MemoryId]) -> Result<Vec<Option<Embedding>>, StoreError> {
        let inner = self.inner();
        Ok(ids.iter().map(|id| inner.embeddings.get(id).and_then(|(_, views)| views.first().cloned())).collect())
    }

    fn store_embeddings(
        &self,
        generation: &EmbeddingGeneration,
        embeddings: Vec<(MemoryId, Vec<Embedding>)>,
    ) -> Result<(), StoreError> {
        crate::durable::check_generation(generation)?;
        for (_, views) in &embeddings {
            crate::durable::check_views(views)?;
        }
        let mut inner = self.inner();
        let current = inner.generation.as_ref().is_none_or(|current| current == generation);
        let mut stored = false;
        for (id, views) in embeddings {
            let replaces_none = current || !inner.embeddings.contains_key(&id);
            if inner.memories.contains_key(&id) && replaces_none {
                inner.index.set_embeddings(id, &views);
                inner.embeddings.insert(id, (generation.clone(), views));
                stored = true;
            }
        }
        inner.lsn += u64::from(stored);
        Ok(())
    }

    fn import(&self, memories: Vec<Memory>) -> Result<ImportReport, StoreError> {
        let mut inner = self.inner();
        let lsn_before = Lsn(inner.lsn);
        let mut report = ImportReport::default();
        for memory in memories {
            let id = memory.id;
            match gate::admit_stored(memory) {
                Err(refusal) => {
                    report.add(ImportReport { refused: 1, refusals: vec![(id, refusal)], ..ImportReport::default() });
                }
                Ok(memory)
                    if inner.memories.contains_key(&id)
                        || (memory.state != MemoryState::Superseded
                            && inner.live_with(memory.content_hash).is_some()) =>
                {
                    report.known += 1;
                }
                Ok(mut memory) => {
                    memory.lsn = inner.next_lsn();
                    inner.memories.insert(id, memory);
                    report.imported += 1;
                }
            }
        }
        inner.refresh_index(lsn_before);
        Ok(report)
    }

    fn documents(
        &self,
        collection: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        let inner = self.inner();
        let wanted = |key: &str| key.starts_with(prefix) && after.is_none_or(|after| key > after);
        Ok(inner
            .documents
            .iter()
            .filter(|((of, key), _)| of == collection && wanted(key))
            .take(limit)
            .map(|((collection, key), value)| Document {
                collection: collection.clone(),
                key: key.clone(),
                value: Some(value.clone()),
            })
            .collect())
    }

    fn maintain(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let mut inner = self.inner();
        let mut report = MaintenanceReport::default();
        if task == MaintenanceTask::Purge && !inner.purge.is_empty() {
            report.items = inner.purge.len() as u64;
            inner.purge.clear();
            let lsn = inner.lsn;
            inner.purged.insert(lsn, now);
        }
        Ok(report)
    }

    /// There are no files to copy: an in-memory store is exported instead.
    fn backup(&self, _folder: &Path) -> Result<MaintenanceReport, StoreError> {
        Err(StoreError::InvalidQuery {
            field: "backup",
            problem: "is of files, an in-memory store has none; export it instead".into(),
        })
    }

    fn set_limits(&self, limits: StoreLimits) {
        let mut options = self.options.write().unwrap_or_else(PoisonError::into_inner);
        *options = options.limited(limits);
    }

    fn stats(&self) -> StoreStats {
        let inner = self.inner();
        let count = |state| inner.memories.values().filter(|memory| memory.state == state).count() as u64;
        let mut namespaces = BTreeMap::new();
        for memory in inner.memories.values().filter(|memory| memory.state != MemoryState::Superseded) {
            *namespaces.entry(memory.namespace.clone()).or_insert(0) += 1;
        }
        StoreStats {
            engine: "memory".into(),
            memories: count(MemoryState::Active) + count(MemoryState::Quarantined),
            quarantined: count(MemoryState::Quarantined),
            superseded: count(MemoryState::Superseded),
            purge_pending: inner.purge.len() as u64,
            embeddings_pending: inner.memories.keys().filter(|id| inner.is_pending(**id)).count() as u64,
            namespaces: namespaces.into_iter().collect(),
            lsn: Lsn(inner.lsn),
            disk_bytes: 0,
            index_bytes: inner.index.bytes(),
            health: StoreHealth::Healthy,
        }
    }
}
