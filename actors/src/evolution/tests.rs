//! The actor against a store that refuses, forgets and fills up.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;

use mneme_base::{EmbeddingGeneration, ManualClock, Namespace, OpId, Provenance};
use mneme_engine_api::{
    CanvasEvent, EmbedPurpose, EngineError, EngineInfo, FakeEngine, GenerateRequest, Generation, ScoreItem,
    ScoreOutcome, TrainEvent, TrainJob, TrainOutcome,
};
use mneme_evolution::machine::{Change, LogRow};
use mneme_memory::{
    Document, DurableOptions, ForgetSelector, InMemoryStore, MaintenanceReport, MaintenanceTask, Memory, MemoryStore,
    NewMemory, Operation, OperationKind, OperationOutcome, PendingEmbedding, Recall, RecallQuery, Scan, StoreError,
    StoreLimits, StoreStats,
};

use super::*;
use crate::call::deadline_in;
use crate::system::{System, SystemOptions};
use crate::tunables::Tunables;

const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
const SOON: Duration = Duration::from_secs(20);

mod importing;

/// A store that can be told to refuse the rows of other parts, for now as a full disk does, or for good as what they are.
#[derive(Debug)]
struct Store {
    inner: InMemoryStore,
    refuses: AtomicBool,
    rejects: AtomicBool,
}

impl Store {
    fn new() -> Arc<Self> {
        let inner = InMemoryStore::new(DurableOptions::default());
        Arc::new(Self { inner, refuses: AtomicBool::new(false), rejects: AtomicBool::new(false) })
    }

    fn refuse(&self, refuses: bool) {
        self.refuses.store(refuses, Ordering::Release);
    }

    fn rows(&self) -> Vec<LogRow> {
        let documents = self.inner.documents("evolution_log", "", None, 100_000).unwrap();
        documents.iter().map(|document| serde_json::from_slice(document.value.as_ref().unwrap()).unwrap()).collect()
    }
}

impl MemoryStore for Store {
    fn apply(&self, batch: &[Operation], now: Timestamp) -> Result<Vec<OperationOutcome>, StoreError> {
        let is_row = |operation: &Operation| matches!(operation.kind, OperationKind::Documents(_));
        if self.refuses.load(Ordering::Acquire) && batch.iter().any(is_row) {
            return Err(StoreError::ReadOnly { free_bytes: 0, watermark_bytes: 1 });
        }
        if self.rejects.load(Ordering::Acquire) && batch.iter().any(is_row) {
            let too_long = |document: &Document| Document { value: Some(vec![b' '; 5 << 20]), ..document.clone() };
            let too_long = |operation: &Operation| match &operation.kind {
                OperationKind::Documents(documents) => Operation {
                    kind: OperationKind::Documents(documents.iter().map(too_long).collect()),
                    ..operation.clone()
                },
                _ => operation.clone(),
            };
            return self.inner.apply(&batch.iter().map(too_long).collect::<Vec<_>>(), now);
        }
        self.inner.apply(batch, now)
    }
    fn get(&self, id: MemoryId) -> Result<Option<Memory>, StoreError> {
        self.inner.get(id)
    }
    fn text_to_embed(&self, query: &RecallQuery) -> String {
        self.inner.text_to_embed(query)
    }
    fn recall(&self, query: &RecallQuery, embedding: Option<&Embedding>, now: Timestamp) -> Result<Recall, StoreError> {
        self.inner.recall(query, embedding, now)
    }
    fn scan(&self, scan: &Scan) -> Result<Vec<Memory>, StoreError> {
        self.inner.scan(scan)
    }
    fn set_generation(&self, generation: &EmbeddingGeneration) -> Result<(), StoreError> {
        self.inner.set_generation(generation)
    }
    fn set_limits(&self, limits: StoreLimits) {
        self.inner.set_limits(limits);
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
        self.inner.maintain(task, now)
    }
    fn backup(&self, folder: &Path) -> Result<MaintenanceReport, StoreError> {
        self.inner.backup(folder)
    }
    fn import(&self, memories: Vec<Memory>) -> Result<mneme_memory::transfer::ImportReport, StoreError> {
        self.inner.import(memories)
    }
    fn stats(&self) -> StoreStats {
        self.inner.stats()
    }
}

async fn start(store: &Arc<Store>, folder: &Path, evolution_enabled: bool) -> System {
    start_with(store, Arc::new(FakeEngine::default()), folder, evolution_enabled).await
}

async fn start_with(store: &Arc<Store>, engine: Arc<dyn Engine>, folder: &Path, evolution_enabled: bool) -> System {
    let options = SystemOptions {
        store: Arc::clone(store) as Arc<dyn MemoryStore>,
        engine,
        clock: Arc::new(ManualClock::new(NOW)),
        pending_operations_max: 4_096,
        pending_bytes_max: 1 << 20,
        evolution_enabled,
        adapters_dir: folder.join("adapters"),
        tunables: Tunables { group_commit_wait: Duration::ZERO, pause_on_battery: false, ..Tunables::default() },
    };
    System::start(options).await.unwrap()
}

async fn write(system: &System, text: &str) -> MemoryId {
    let mut memory = NewMemory::note(Namespace::default(), text, "test");
    memory.provenance = Provenance::user("test");
    let operation = Operation { op_id: OpId::generate(), kind: OperationKind::Remember(memory) };
    match system.memory.apply(operation, deadline_in(SOON)).await.unwrap().result.unwrap() {
        mneme_memory::OperationResult::Remembered(receipt) => receipt.id,
        other => panic!("{other:?}"),
    }
}

async fn forget(system: &System, id: MemoryId) {
    let kind = OperationKind::Forget(ForgetSelector::Ids(vec![id]));
    system.memory.apply(Operation { op_id: OpId::generate(), kind }, deadline_in(SOON)).await.unwrap();
}

async fn eventually<T>(mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let until = deadline_in(SOON);
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(Instant::now() < until, "it did not happen in time");
        tokio::task::yield_now().await;
    }
}

async fn texts(system: &System) -> u64 {
    system.evolution.report(deadline_in(SOON)).await.unwrap().status.texts
}

#[tokio::test]
async fn a_store_that_refuses_rows_holds_decisions_up_and_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    let id = write(&system, "tea is at four").await;
    eventually(async || (texts(&system).await == 1).then_some(())).await;
    let before = store.rows().len();
    store.refuse(true);
    for _ in 0..8 {
        let refused = system.evolution.command(Command::Pause, deadline_in(SOON)).await;
        assert!(matches!(refused, Err(ActorError::Store(_))), "{refused:?}");
    }
    // A forget is always allowed, and taken while rows wait.
    forget(&system, id).await;
    eventually(async || (texts(&system).await == 0).then_some(())).await;
    assert_eq!((system.evolution.status().restarts, system.fatal.borrow().clone()), (0, None));
    assert_eq!(store.rows().len(), before);
    store.refuse(false);
    let (_, words) = system.evolution.command(Command::Pause, deadline_in(SOON)).await.unwrap();
    assert_eq!(words, "done");
    let rows = store.rows();
    assert!(matches!(rows.last().unwrap().change, Change::Paused { paused: true }));
    assert!(rows.iter().all(|row| !matches!(row.change, Change::Forgotten { .. })), "nothing was made of it: {rows:?}");
    system.stop().await;
}

#[tokio::test]
async fn a_start_with_a_store_that_refuses_rows_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    let id = write(&system, "tea is at four").await;
    eventually(async || (texts(&system).await == 1).then_some(())).await;
    system.stop().await;
    // Forgotten while nobody listened, and then the disk was full.
    let kind = OperationKind::Forget(ForgetSelector::Ids(vec![id]));
    store.apply(&[Operation { op_id: OpId::generate(), kind }], NOW).unwrap();
    store.refuse(true);
    let system = start(&store, folder.path(), true).await;
    assert_eq!(texts(&system).await, 0);
    system.stop().await;
}

#[tokio::test]
async fn forgetting_what_evolution_never_saw_costs_it_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    for number in 0..50 {
        let mut note = NewMemory::note(Namespace::default(), format!("note {number}"), "test");
        note.provenance.trust = mneme_base::TrustTier::Observed;
        let operation = Operation { op_id: OpId::generate(), kind: OperationKind::Remember(note) };
        let outcome = system.memory.apply(operation, deadline_in(SOON)).await.unwrap();
        let Ok(mneme_memory::OperationResult::Remembered(receipt)) = outcome.result else { panic!("refused") };
        forget(&system, receipt.id).await;
        system.evolution.forgotten(vec![receipt.id], deadline_in(SOON)).await.unwrap();
    }
    assert!(store.rows().iter().all(|row| !matches!(row.change, Change::Forgotten { .. })));
    system.stop().await;
}

#[tokio::test]
async fn what_is_forgotten_reaches_evolution_that_is_switched_off_too() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    let id = write(&system, "tea is at four").await;
    eventually(async || (texts(&system).await == 1).then_some(())).await;
    system.stop().await;
    let system = start(&store, folder.path(), false).await;
    assert_eq!(texts(&system).await, 1);
    forget(&system, id).await;
    eventually(async || (texts(&system).await == 0).then_some(())).await;
    system.stop().await;
}

/// An engine that can be held: then it embeds nothing, and scores nothing under an adapter.
#[derive(Debug, Default)]
struct Gated {
    inner: FakeEngine,
    held: AtomicBool,
    /// Somebody waits for it.
    waits: AtomicBool,
}

impl Gated {
    fn wait(&self, cancel: &CancelToken) -> Result<(), EngineError> {
        while self.held.load(Ordering::Acquire) {
            self.waits.store(true, Ordering::Release);
            cancel.check()?;
            std::thread::yield_now();
        }
        Ok(())
    }
}

impl Engine for Gated {
    fn info(&self) -> EngineInfo {
        self.inner.info()
    }
    fn embed(
        &self,
        texts: &[String],
        purpose: EmbedPurpose,
        cancel: &CancelToken,
    ) -> Result<Vec<Embedding>, EngineError> {
        self.wait(cancel)?;
        self.inner.embed(texts, purpose, cancel)
    }
    fn generate(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> Result<Generation, EngineError> {
        self.inner.generate(request, observe, cancel)
    }
    fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError> {
        if items.iter().any(|item| item.adapter.is_some()) {
            self.wait(cancel)?;
        }
        self.inner.score(items, cancel)
    }
    fn train(
        &self,
        job: &TrainJob,
        observe: &mut dyn FnMut(TrainEvent),
        cancel: &CancelToken,
    ) -> Result<TrainOutcome, EngineError> {
        self.inner.train(job, observe, cancel)
    }
}

#[tokio::test]
async fn forgetting_does_not_wait_behind_texts_that_are_embedded_and_is_not_undone_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let engine = Arc::new(Gated::default());
    let system = start_with(&store, Arc::clone(&engine) as Arc<dyn Engine>, folder.path(), true).await;
    let known = write(&system, "tea is at four").await;
    eventually(async || (texts(&system).await == 1).then_some(())).await;
    engine.held.store(true, Ordering::Release);
    let late = write(&system, "the spade is in the shed").await;
    forget(&system, known).await;
    eventually(async || (texts(&system).await == 0).then_some(())).await;
    // This one is being embedded while it is forgotten: it must not come into view after all.
    forget(&system, late).await;
    engine.held.store(false, Ordering::Release);
    write(&system, "the letter came at noon").await;
    eventually(async || {
        let report = system.evolution.report(deadline_in(SOON)).await.unwrap();
        (report.texts >= 2 && report.status.texts == 1).then_some(())
    })
    .await;
    system.stop().await;
}

/// A row that the user's pausing and resuming leaves.
fn pause_row(id: u64) -> LogRow {
    LogRow {
        id,
        time: NOW,
        from: Stage::Serve,
        to: Stage::Serve,
        adapter: None,
        context: None,
        reason: "the user paused training".into(),
        numbers: BTreeMap::new(),
        change: Change::Paused { paused: id % 2 == 1 },
    }
}

#[tokio::test]
async fn a_long_log_is_folded_and_its_oldest_rows_are_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    // As an older version left it: every row since the first, and no snapshot.
    let document = |id: u64| {
        let value = serde_json::to_vec(&pause_row(id)).unwrap();
        Document { collection: "evolution_log".into(), key: format!("{id:020}"), value: Some(value) }
    };
    let ids: Vec<u64> = (1..=12_345).collect();
    for part in ids.chunks(1_000) {
        let kind = OperationKind::Documents(part.iter().map(|id| document(*id)).collect());
        store.apply(&[Operation { op_id: OpId::generate(), kind }], NOW).unwrap();
    }
    for _ in 0..2 {
        let system = start(&store, folder.path(), false).await;
        let report = system.evolution.report(deadline_in(SOON)).await.unwrap();
        assert!(report.status.paused, "the last row says so");
        assert_eq!((report.status.rows, report.stations[&Stage::Serve]), (12_345, 12_345));
        let rows = store.rows();
        assert_eq!((rows.len(), rows[0].id), (10_000, 2_346));
        let newest = system.evolution.log(3, None, deadline_in(SOON)).await.unwrap();
        assert_eq!(newest.iter().map(|row| row.id).collect::<Vec<_>>(), [12_345, 12_344, 12_343]);
        let older = system.evolution.log(2, Some(2_347), deadline_in(SOON)).await.unwrap();
        assert_eq!(older.iter().map(|row| row.id).collect::<Vec<_>>(), [2_346]);
        assert!(system.evolution.log(5, Some(100), deadline_in(SOON)).await.unwrap().is_empty());
        system.stop().await;
    }
    // The second start needed no old row; decisions go on from the last number.
    let system = start(&store, folder.path(), false).await;
    system.evolution.command(Command::Resume, deadline_in(SOON)).await.unwrap();
    assert_eq!(store.rows().last().unwrap().id, 12_346);
    system.stop().await;
}

#[tokio::test]
async fn a_row_that_the_store_will_never_take_holds_nothing_up() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    let system = start(&store, folder.path(), true).await;
    let id = write(&system, "tea is at four").await;
    eventually(async || (texts(&system).await == 1).then_some(())).await;
    let before = store.rows().len();
    store.rejects.store(true, Ordering::Release);
    let (_, words) = system.evolution.command(Command::Pause, deadline_in(SOON)).await.unwrap();
    assert!(words.contains("the store does not take the decision"), "{words}");
    let report = system.evolution.report(deadline_in(SOON)).await.unwrap();
    assert!(!report.status.paused, "what is not written was not decided");
    assert_eq!((report.status.rows, report.status.texts), (before as u64, 1), "what was observed stays");
    store.rejects.store(false, Ordering::Release);
    // The next decision has the number of the one that fell, and what follows goes on.
    let (_, words) = system.evolution.command(Command::Pause, deadline_in(SOON)).await.unwrap();
    assert_eq!(words, "done");
    forget(&system, id).await;
    eventually(async || (texts(&system).await == 0).then_some(())).await;
    let rows = store.rows();
    assert!(rows.iter().zip(1..).all(|(row, number)| row.id == number), "{rows:?}");
    assert_eq!((system.evolution.status().restarts, system.fatal.borrow().clone()), (0, None));
    system.stop().await;
}

fn put(store: &Store, collection: &str, key: &str, value: &[u8]) {
    let document = Document { collection: collection.into(), key: key.into(), value: Some(value.to_vec()) };
    let kind = OperationKind::Documents(vec![document]);
    store.apply(&[Operation { op_id: OpId::generate(), kind }], NOW).unwrap();
}

#[tokio::test]
async fn a_state_on_disk_that_cannot_be_read_is_made_of_its_rows_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::new();
    for id in 1..=1_201 {
        put(&store, "evolution_log", &format!("{id:020}"), &serde_json::to_vec(&pause_row(id)).unwrap());
    }
    let rows = async || {
        let system = start(&store, folder.path(), false).await;
        let rows = system.evolution.report(deadline_in(SOON)).await.unwrap().status.rows;
        system.stop().await;
        rows
    };
    assert_eq!(rows().await, 1_201);
    assert_eq!(store.documents("evolution_state", "", None, 9).unwrap().len(), 1, "it was written down");
    // A part of a longer one that was there before.
    put(&store, "evolution_state", "000001", b"\"left\":1}");
    assert_eq!(rows().await, 1_201);
    put(&store, "evolution_state", "000000", b"{\"of another version\":1}");
    assert_eq!(rows().await, 1_201);
    assert_eq!(store.documents("evolution_state", "", None, 9).unwrap().len(), 1, "nothing of it is left");
}

#[test]
fn what_is_told_once_is_taken_while_rows_wait() {
    use super::journal::must_be_taken;
    let adapter = AdapterId::from_bytes([1; 16]);
    let reason = String::new();
    for event in [
        Event::Forgotten(Vec::new()),
        Event::TrainingFailed { adapter, reason: reason.clone(), cpu_seconds: 0.0 },
        Event::CannotTrain { adapter, reason: reason.clone() },
        Event::Preempted { adapter },
        Event::Unusable { adapter, reason },
        Event::Engine { base_hash: mneme_base::ContentHash::of(b""), trains: Vec::new() },
        Event::Calibrated { surprise: Vec::new(), ambiguity: Vec::new(), reading: Vec::new() },
    ] {
        assert!(must_be_taken(&event), "{event:?}");
    }
    assert!(!must_be_taken(&Event::Tick { load: 0.0, on_battery: false }));
}
