//! Admission of upkeep and of bytes, and what a thread that panics does.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};

use mneme_base::{EmbeddingGeneration, ManualClock, OpId};
use mneme_engine_api::AbsentEngine;
use mneme_memory::transfer::ImportReport;
use mneme_memory::{DurableOptions, InMemoryStore, PendingEmbedding, StoreLimits};

use super::*;
use crate::call::deadline_in;
use crate::system::{System, SystemOptions};
use crate::tunables::Tunables;

const SOON: Duration = Duration::from_secs(20);

/// A store whose upkeep waits to be let through, and whose writer panics when it is asked to.
#[derive(Debug)]
struct Probe {
    inner: InMemoryStore,
    open: Mutex<bool>,
    opened: Condvar,
    steps: AtomicU64,
}

impl Probe {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            inner: InMemoryStore::new(DurableOptions::default()),
            open: Mutex::new(false),
            opened: Condvar::new(),
            steps: AtomicU64::new(0),
        })
    }

    fn let_through(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

impl MemoryStore for Probe {
    fn apply(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError> {
        let asked = |operation: &Operation| matches!(&operation.kind, OperationKind::Remember(memory) if memory.text == "panic");
        assert!(!batch.iter().any(asked), "asked to");
        self.inner.apply(batch, now)
    }
    fn get(&self, id: MemoryId) -> Result<Option<Memory>, StoreError> {
        self.inner.get(id)
    }
    fn text_to_embed(&self, query: &RecallQuery) -> String {
        self.inner.text_to_embed(query)
    }
    fn recall(&self, query: &RecallQuery, vector: Option<&Embedding>, now: Timestamp) -> Result<Recall, StoreError> {
        self.inner.recall(query, vector, now)
    }
    fn scan(&self, scan: &Scan) -> Result<Vec<Memory>, StoreError> {
        self.inner.scan(scan)
    }
    fn set_generation(&self, generation: &EmbeddingGeneration) -> Result<(), StoreError> {
        self.inner.set_generation(generation)
    }
    fn pending_embeddings(&self, limit: usize) -> Result<Vec<PendingEmbedding>, StoreError> {
        self.inner.pending_embeddings(limit)
    }
    fn store_embeddings(
        &self,
        generation: &EmbeddingGeneration,
        embeddings: Vec<(MemoryId, Vec<Embedding>)>,
    ) -> Result<(), StoreError> {
        self.inner.store_embeddings(generation, embeddings)
    }
    fn vectors(&self, ids: &[MemoryId]) -> Result<Vec<Option<Embedding>>, StoreError> {
        self.inner.vectors(ids)
    }
    fn import(&self, memories: Vec<Memory>) -> Result<ImportReport, StoreError> {
        self.inner.import(memories)
    }
    fn documents(
        &self,
        collection: &str,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Document>, StoreError> {
        self.inner.documents(collection, prefix, after, limit)
    }
    fn maintain(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        self.steps.fetch_add(1, Ordering::SeqCst);
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
        self.inner.maintain(task, now)
    }
    fn backup(&self, folder: &Path) -> Result<MaintenanceReport, StoreError> {
        self.inner.backup(folder)
    }
    fn set_limits(&self, limits: StoreLimits) {
        self.inner.set_limits(limits);
    }
    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }
}

async fn start(store: Arc<Probe>, folder: &Path) -> System {
    let options = SystemOptions {
        store,
        engine: Arc::new(AbsentEngine { reason: "none".into() }),
        clock: Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000))),
        pending_operations_max: 4_096,
        pending_bytes_max: 1 << 20,
        evolution_enabled: false,
        adapters_dir: folder.join("adapters"),
        tunables: Tunables { group_commit_wait: Duration::ZERO, ..Tunables::default() },
    };
    System::start(options).await.unwrap()
}

fn remember(text: &str) -> Operation {
    let memory = NewMemory::note(Namespace::default(), text, "test");
    Operation { op_id: OpId::generate(), kind: OperationKind::Remember(memory) }
}

async fn begun(store: &Probe, steps: u64) {
    let until = deadline_in(SOON);
    while store.steps.load(Ordering::SeqCst) < steps {
        assert!(Instant::now() < until, "upkeep was not begun");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn few_steps_of_upkeep_wait_and_those_of_one_kind_are_one() {
    let folder = tempfile::tempdir().unwrap();
    let store = Probe::new();
    let system = start(Arc::clone(&store), folder.path()).await;
    let purge = |within: Duration| {
        let memory = system.memory.clone();
        async move { memory.maintain(MaintenanceTask::Purge, deadline_in(within)).await }
    };
    let first = tokio::spawn(purge(SOON));
    begun(&store, 1).await;
    let mut calls = tokio::task::JoinSet::new();
    (0..20).for_each(|_| drop(calls.spawn(purge(SOON))));
    for _ in 0..20 - UPKEEP_WAITING_MAX {
        let told = calls.join_next().await.unwrap().unwrap();
        assert!(matches!(told, Err(ActorError::Busy { .. })), "{told:?}");
    }
    // Reads and writes go on.
    system.memory.apply(remember("tea is at four"), deadline_in(SOON)).await.unwrap();
    store.let_through();
    first.await.unwrap().unwrap();
    while let Some(told) = calls.join_next().await {
        told.unwrap().unwrap();
    }
    assert_eq!(store.steps.load(Ordering::SeqCst), 2, "the one that ran and one for all that waited");
    system.stop().await;
}

#[tokio::test]
async fn upkeep_that_nobody_waits_for_any_more_is_not_begun() {
    let folder = tempfile::tempdir().unwrap();
    let store = Probe::new();
    let system = start(Arc::clone(&store), folder.path()).await;
    let memory = system.memory.clone();
    let first = tokio::spawn(async move { memory.maintain(MaintenanceTask::Index, deadline_in(SOON)).await });
    begun(&store, 1).await;
    let late = system.memory.maintain(MaintenanceTask::Purge, deadline_in(Duration::from_millis(10))).await;
    assert!(matches!(late, Err(ActorError::DeadlineExceeded { .. })), "{late:?}");
    store.let_through();
    first.await.unwrap().unwrap();
    system.memory.maintain(MaintenanceTask::Audit, deadline_in(SOON)).await.unwrap();
    assert_eq!(store.steps.load(Ordering::SeqCst), 2);
    system.stop().await;
}

#[tokio::test]
async fn a_writer_that_panics_ends_the_daemon_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let system = start(Probe::new(), folder.path()).await;
    assert!(system.memory.apply(remember("panic"), deadline_in(SOON)).await.is_err());
    let mut fatal = system.fatal.clone();
    let reason = tokio::time::timeout(SOON, fatal.wait_for(Option::is_some)).await.unwrap().unwrap().clone();
    assert_eq!(reason.as_deref(), Some("memory-writer panicked"));
    system.stop().await;
}

#[tokio::test]
async fn a_request_larger_than_all_that_may_wait_is_taken_when_it_is_alone() {
    let folder = tempfile::tempdir().unwrap();
    let system = start(Probe::new(), folder.path()).await;
    let large = (0..40).map(|number| remember(&format!("{number} {}", "x".repeat(60_000)))).collect();
    let outcomes = system.memory.apply_all(large, deadline_in(SOON)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| outcome.result.is_ok()));
    system.stop().await;
}

#[test]
fn everything_that_an_operation_brings_counts_while_it_waits() {
    let mut memory = NewMemory::note(Namespace::default(), "x", "test");
    memory.metadata.insert("note".into(), "y".repeat(4_000));
    let kind = OperationKind::Remember(memory);
    assert!(bytes_of(&Operation { op_id: OpId::generate(), kind }) > 4_000);
    let row = Document { collection: "log".into(), key: "a".into(), value: Some(vec![0; 4_000]) };
    assert!(bytes_of(&Operation { op_id: OpId::generate(), kind: OperationKind::Documents(vec![row]) }) > 4_000);
}
