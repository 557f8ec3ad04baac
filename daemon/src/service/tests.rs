//! What a caller hears when a step behind a method takes longer than the caller has.

use std::path::Path;
use std::sync::{Condvar, Mutex};

use mneme_actors::{SystemOptions, Tunables};
use mneme_base::{Embedding, EmbeddingGeneration, ManualClock, MemoryId};
use mneme_config::Sources;
use mneme_engine_api::FakeEngine;
use mneme_memory::transfer::ImportReport;
use mneme_memory::{
    Document, DurableOptions, InMemoryStore, MaintenanceReport, MaintenanceTask, Memory, MemoryStore, Operation,
    OperationOutcome, PendingEmbedding, Recall, RecallQuery, Scan, StoreError, StoreLimits, StoreStats,
};

use super::*;

/// A store whose upkeep does not end before it is let through.
#[derive(Debug)]
struct SlowUpkeep {
    inner: InMemoryStore,
    open: Mutex<bool>,
    opened: Condvar,
}

impl MemoryStore for SlowUpkeep {
    fn maintain(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let open = self.open.lock().unwrap();
        drop(self.opened.wait_while(open, |open| !*open).unwrap());
        self.inner.maintain(task, now)
    }
    fn apply(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError> {
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

/// A service on a store, with the stand-in engine and without a socket.
pub(crate) async fn service(store: Arc<dyn MemoryStore>, folder: &Path) -> Arc<Service> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::new(Timestamp::from_millis(1_700_000_000_000)));
    let engine: Arc<dyn mneme_engine_api::Engine> = Arc::new(FakeEngine::default());
    let options = SystemOptions {
        store,
        engine: Arc::clone(&engine),
        clock: Arc::clone(&clock),
        pending_operations_max: 64,
        pending_bytes_max: 1 << 20,
        evolution_enabled: false,
        adapters_dir: folder.join("adapters"),
        tunables: Tunables { group_commit_wait: Duration::ZERO, ..Tunables::default() },
    };
    let system = System::start(options).await.unwrap();
    let config = Config::load(&Sources::bare(folder.to_str().unwrap())).unwrap();
    let (_sender, config) = watch::channel(Arc::new(config));
    let (reload, _reloads) = mpsc::channel(1);
    let engine = crate::engine::Chosen { engine, process: None };
    Arc::new(Service::new(ServiceParts { system, boot: BootId::from_bytes([1; 16]), clock, engine, config, reload }))
}

/// Calls as a connection does: who has no answer at the deadline hears that it passed.
async fn call(service: &Arc<Service>, call: Call, within: Duration) -> Answer {
    let deadline = Instant::now() + within;
    let caller = Caller { client: "test".into(), session: None };
    let context = Context { caller, op_id: None, deadline, min_lsn: None, events: mpsc::channel(1).0 };
    tokio::time::timeout_at(deadline, service.call(call, context)).await.expect("it is answered before the deadline")
}

#[tokio::test]
async fn a_forget_whose_purge_takes_too_long_is_told_as_done_and_the_purge_as_outstanding() {
    let folder = tempfile::tempdir().unwrap();
    let inner = InMemoryStore::new(DurableOptions::default());
    let store = Arc::new(SlowUpkeep { inner, open: Mutex::new(false), opened: Condvar::new() });
    let service = service(Arc::clone(&store) as Arc<dyn MemoryStore>, folder.path()).await;
    let long = Duration::from_secs(20);
    let params = wire::RememberParams { text: "tea is at four".into(), ..Default::default() };
    let id: MemoryId =
        serde_json::from_value(call(&service, Call::Remember(Box::new(params)), long).await.unwrap()["id"].clone())
            .unwrap();
    let params = wire::ForgetParams { select: wire::Selector::Ids(vec![id]), purge_now: true };
    let told = call(&service, Call::Forget(Box::new(params)), Duration::from_secs(2)).await.unwrap();
    assert_eq!(told["ids"], serde_json::json!([id]));
    assert!(told["purged_at"].is_null(), "{told}");
    assert!(call(&service, Call::Get(Box::new(wire::GetParams { id })), long).await.is_err(), "it is gone");
    *store.open.lock().unwrap() = true;
    store.opened.notify_all();
    service.system.stop().await;
}
