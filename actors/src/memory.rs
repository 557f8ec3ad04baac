//! Keeps memories: writes in group commits on one thread, reads beside it, upkeep and vectors behind it.
//!
//! Called by: daemon, generator, evolution, watcher, housekeeper. Calls: the store and the engine, no other actor. Owns: the
//! writer, upkeep, embedder and query-embedder threads ([`threads`]). Capacity: so many requests at once as it is started with, of
//! upkeep [`UPKEEP_WAITING_MAX`]. A restart loses the requests that were under way (their callers are told), and nothing that
//! was acknowledged.

#[cfg(test)]
mod tests;
mod threads;

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use mneme_base::{Clock, Embedding, Lsn, MemoryId, Namespace, Timestamp, TrustTier};
use mneme_engine_api::{Engine, ScoreItem, ScoreOutcome};
use mneme_memory::map::{self, MemoryMap};
use mneme_memory::recall::rerank::{RerankScores, rerank_contexts, rerank_hits};
use mneme_memory::{
    Document, ForgetSelector, MaintenanceReport, MaintenanceTask, Memory, MemoryStore, NewMemory, Operation,
    OperationKind, OperationOutcome, Recall, RecallQuery, Scan, StoreError, StoreStats,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};
use tokio::time::Instant;

use self::threads::{QueryJob, Worker, run_embedder, run_queries, run_upkeep, run_writer};
use crate::call::{ActorError, ActorStatus, Request, Slot};
use crate::supervisor::FatalSender;
use crate::tunables::Tuned;

/// The unit in which waiting text is counted (bytes): a semaphore counts no further than 32 bits.
const BYTES_UNIT: u64 = 1 << 10;
/// Queries that wait for their vector; more are answered from text at once.
const QUERY_EMBEDDINGS_MAX: usize = 64;
/// Steps of upkeep that wait for the one that runs. Each may rewrite every file, so that more could only wait in vain.
const UPKEEP_WAITING_MAX: usize = 4;
/// When a caller whose step of upkeep found no room may come again (milliseconds).
const UPKEEP_RETRY_MS: u64 = 1_000;
/// Candidates that the generator judges in a rerank.
const RERANK_CANDIDATES_MAX: usize = 30;

/// Changes that wait for a slow listener; older ones are skipped over.
const CHANGES_MAX: usize = 1_024;

/// What changed in the memory, for listeners above it.
#[derive(Clone, Debug)]
pub enum Change {
    /// Something new was remembered.
    Remembered {
        /// The memory.
        id: MemoryId,
        /// How far it is trusted.
        trust: TrustTier,
        /// When it starts to be true.
        valid_from: Timestamp,
    },
    /// Memories were forgotten.
    Forgotten(Vec<MemoryId>),
}

/// A question, and how it is to be answered.
#[derive(Debug, Clone)]
pub struct RecallAsk {
    /// The question.
    pub query: RecallQuery,
    /// Wait until this change is visible.
    pub min_lsn: Option<Lsn>,
    /// Let the generator judge the best candidates too.
    pub rerank: bool,
    /// Wait at most this long for the question's vector; after it the answer is from text.
    pub embed_within: Duration,
}

impl RecallAsk {
    /// A question with the usual patience: one second for its vector.
    pub const fn new(query: RecallQuery) -> Self {
        Self { query, min_lsn: None, rerank: false, embed_within: Duration::from_secs(1) }
    }
}

/// Where the memory can be called.
#[derive(Debug, Clone)]
pub struct MemoryHandle {
    pub(crate) slot: Slot<Message>,
    /// Counts and sizes are cheap and must answer even while the actor is busy.
    store: Arc<dyn MemoryStore>,
    pub(crate) changes: broadcast::Sender<Change>,
    /// Bytes that may still wait for the journal, in [`BYTES_UNIT`].
    bytes: Arc<Semaphore>,
    /// How many there are in all.
    units_max: u64,
}

impl MemoryHandle {
    pub(crate) fn new(store: Arc<dyn MemoryStore>, calls_max: usize, bytes_max: u64) -> Self {
        let units = (bytes_max / BYTES_UNIT).clamp(1, u64::from(u32::MAX >> 4)) as usize;
        Self {
            slot: Slot::new("memory", calls_max),
            store,
            changes: broadcast::channel(CHANGES_MAX).0,
            bytes: Arc::new(Semaphore::new(units)),
            units_max: units as u64,
        }
    }

    /// Listens to changes from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Carries out one change; when it returns, the change is durable and visible.
    pub async fn apply(&self, operation: Operation, deadline: Instant) -> Result<OperationOutcome, ActorError> {
        let mut outcomes = self.apply_all(vec![operation], deadline).await?;
        outcomes.pop().ok_or(ActorError::Stopped { actor: "memory" })
    }

    /// Carries out changes in order, in one durable step.
    pub async fn apply_all(
        &self,
        operations: Vec<Operation>,
        deadline: Instant,
    ) -> Result<Vec<OperationOutcome>, ActorError> {
        let bytes: u64 = operations.iter().map(bytes_of).sum();
        // What is larger than everything that may wait is let in when nothing else waits.
        let units = (bytes / BYTES_UNIT + 1).min(self.units_max) as u32;
        let busy = |_| ActorError::Busy { actor: "memory", retry_after_ms: 50 };
        let held = Arc::clone(&self.bytes).try_acquire_many_owned(units).map_err(busy)?;
        self.slot.call(Changes { operations, _held: held }, deadline, Message::Apply).await
    }

    /// Writes rows of another part of the daemon.
    pub async fn put_documents(&self, documents: Vec<Document>, deadline: Instant) -> Result<(), ActorError> {
        let operation = Operation { op_id: mneme_base::OpId::generate(), kind: OperationKind::Documents(documents) };
        self.apply(operation, deadline).await?.result?;
        Ok(())
    }

    /// Answers a question. Without an engine the answer is from text and says so.
    pub async fn recall(&self, ask: RecallAsk, deadline: Instant) -> Result<Recall, ActorError> {
        self.slot.call(ask, deadline, |request| Message::Recall(Box::new(request))).await
    }

    /// Returns one memory.
    pub async fn get(&self, id: MemoryId, deadline: Instant) -> Result<Option<Memory>, ActorError> {
        self.read(deadline, move |store| store.get(id)).await
    }

    /// Returns memories that still exist, in the order of their ids.
    pub async fn get_all(&self, ids: Vec<MemoryId>, deadline: Instant) -> Result<Vec<Memory>, ActorError> {
        self.read(deadline, move |store| {
            let mut memories = Vec::with_capacity(ids.len());
            for id in ids {
                memories.extend(store.get(id)?);
            }
            Ok(memories)
        })
        .await
    }

    /// Returns a page of memories.
    pub async fn scan(&self, scan: Scan, deadline: Instant) -> Result<Vec<Memory>, ActorError> {
        self.read(deadline, move |store| store.scan(&scan)).await
    }

    /// Lays memories out in a plane: at most `points_max`, evenly chosen over time when there are more.
    pub async fn map(
        &self,
        namespace: Option<Namespace>,
        points_max: usize,
        deadline: Instant,
    ) -> Result<MemoryMap, ActorError> {
        self.read(deadline, move |store| map::map(store, namespace, points_max)).await
    }

    /// Returns rows of another part of the daemon.
    pub async fn documents(
        &self,
        collection: &'static str,
        prefix: String,
        after: Option<String>,
        limit: usize,
        deadline: Instant,
    ) -> Result<Vec<Document>, ActorError> {
        self.read(deadline, move |store| store.documents(collection, &prefix, after.as_deref(), limit)).await
    }

    /// Does one step of upkeep.
    pub async fn maintain(&self, task: MaintenanceTask, deadline: Instant) -> Result<MaintenanceReport, ActorError> {
        self.slot.call(Upkeep::Step(task), deadline, Message::Maintain).await
    }

    /// Writes a verified copy into an empty folder.
    pub async fn backup(&self, folder: std::path::PathBuf, deadline: Instant) -> Result<MaintenanceReport, ActorError> {
        self.slot.call(Upkeep::Backup(folder), deadline, Message::Maintain).await
    }

    /// Embeds a text as a question, for callers that need a place in meaning space.
    pub async fn embed(&self, text: String, deadline: Instant) -> Result<Embedding, ActorError> {
        self.slot.call(text, deadline, Message::Embed).await
    }

    /// Puts other limits of the store into force.
    pub fn set_limits(&self, limits: mneme_memory::StoreLimits) {
        self.store.set_limits(limits);
    }

    /// Counts and sizes.
    pub fn stats(&self) -> StoreStats {
        self.store.stats()
    }

    /// The last change. Costs nothing.
    pub fn lsn(&self) -> Lsn {
        self.store.lsn()
    }

    /// How the actor is.
    pub fn status(&self) -> ActorStatus {
        self.slot.status()
    }

    async fn read<T: Send + 'static>(
        &self,
        deadline: Instant,
        read: impl FnOnce(&dyn MemoryStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ActorError> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |store| {
            let _ = sender.send(read(store));
        });
        self.slot.call(job, deadline, Message::Read).await?;
        match receiver.await {
            Ok(result) => Ok(result?),
            Err(_) => Err(ActorError::Stopped { actor: "memory" }),
        }
    }
}

/// What an operation takes while it waits (bytes), nearly.
fn bytes_of(operation: &Operation) -> u64 {
    let bytes = match &operation.kind {
        OperationKind::Remember(memory) | OperationKind::Supersede { by: memory, .. } => bytes_of_memory(memory),
        OperationKind::Documents(documents) => {
            documents.iter().map(|document| document.key.len() + document.value.as_ref().map_or(0, Vec::len)).sum()
        }
        OperationKind::Forget(ForgetSelector::Ids(ids)) => ids.len() * size_of::<MemoryId>(),
        _ => 0,
    };
    bytes as u64
}

fn bytes_of_memory(memory: &NewMemory) -> usize {
    let length = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let metadata: usize = memory.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    memory.text.len() + metadata + length(&memory.speaker) + length(&memory.thread) + memory.provenance.source.len()
}

/// What goes through the whole store, and is done one at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upkeep {
    /// A step of upkeep.
    Step(MaintenanceTask),
    /// A verified copy into a folder.
    Backup(std::path::PathBuf),
}

/// Changes on their way to the journal.
pub(crate) struct Changes {
    operations: Vec<Operation>,
    /// Travels with them and not with their caller: what waits for the journal is bounded in bytes, whoever still waits for it.
    _held: OwnedSemaphorePermit,
}

/// Work on the store that only reads.
pub(crate) type Job = Box<dyn FnOnce(&dyn MemoryStore) + Send>;

/// What the memory is told.
pub(crate) enum Message {
    /// Change something.
    Apply(Request<Changes, Vec<OperationOutcome>>),
    /// Answer a question.
    Recall(Box<Request<RecallAsk, Recall>>),
    /// Embed a text.
    Embed(Request<String, Embedding>),
    /// Look something up.
    Read(Request<Job, ()>),
    /// Do a step of upkeep.
    Maintain(Request<Upkeep, MaintenanceReport>),
    /// Panic on purpose: for tests of the supervision.
    #[cfg(test)]
    Panic,
}

/// What the memory starts from.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) store: Arc<dyn MemoryStore>,
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) fatal: FatalSender,
    pub(crate) changes: broadcast::Sender<Change>,
    /// Changes that wait for the writer.
    pub(crate) queue_max: usize,
    pub(crate) tuned: Tuned,
}

/// What the memory owns while it runs.
pub(crate) struct State {
    arguments: Arguments,
    writer: Worker<Request<Changes, Vec<OperationOutcome>>>,
    upkeep: Worker<Request<Upkeep, MaintenanceReport>>,
    embedder: Worker<()>,
    queries: Worker<QueryJob>,
}

/// The memory's actor.
pub(crate) struct MemoryActor;

impl Actor for MemoryActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let (fatal, queue_max) = (arguments.fatal.clone(), arguments.queue_max);
        let own = arguments.clone();
        let writer = Worker::start("memory-writer", queue_max, &fatal, move |jobs| run_writer(&own, jobs))?;
        let own = arguments.clone();
        let upkeep = Worker::start("memory-upkeep", UPKEEP_WAITING_MAX, &fatal, move |jobs| run_upkeep(&own, jobs))?;
        let own = arguments.clone();
        // One wake-up is as good as many.
        let embedder = Worker::start("memory-embedder", 1, &fatal, move |wake| run_embedder(&own, wake))?;
        let own = arguments.clone();
        let queries =
            Worker::start("memory-queries", QUERY_EMBEDDINGS_MAX, &fatal, move |jobs| run_queries(&own, jobs))?;
        // Vectors may be missing since the last run.
        let _ = embedder.try_send(());
        Ok(State { arguments, writer, upkeep, embedder, queries })
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Apply(request) => state.apply(request),
            Message::Recall(request) => state.recall(*request),
            Message::Embed(request) => state.embed(request),
            Message::Read(request) => state.read(request),
            Message::Maintain(request) => state.maintain(request),
            #[cfg(test)]
            Message::Panic => panic!("asked to"),
        }
        Ok(())
    }

    async fn post_stop(&self, _: ActorRef<Message>, state: &mut State) -> Result<(), ActorProcessingErr> {
        // The writer ends what it has begun: every acknowledged change is on disk before this returns. The others are not waited
        // for: what the embedder computes can be computed again, and a rewrite that is broken off leaves the files as they were.
        state.writer.finish().await;
        Ok(())
    }
}

impl State {
    fn apply(&self, request: Request<Changes, Vec<OperationOutcome>>) {
        if let Some(request) = in_time(request)
            && hand_over(&self.writer, request, 50)
        {
            let _ = self.embedder.try_send(());
        }
    }

    fn maintain(&self, request: Request<Upkeep, MaintenanceReport>) {
        if let Some(request) = in_time(request) {
            hand_over(&self.upkeep, request, UPKEEP_RETRY_MS);
        }
    }

    fn read(&self, request: Request<Job, ()>) {
        let store = Arc::clone(&self.arguments.store);
        tokio::task::spawn_blocking(move || {
            if !request.reply.is_closed() {
                request.span.in_scope(|| (request.input)(store.as_ref()));
                let _ = request.reply.send(Ok(()));
            }
            drop(request.permit);
        });
    }

    fn embed(&self, request: Request<String, Embedding>) {
        let (reply, vector) = oneshot::channel();
        let _ = self.queries.try_send(QueryJob { text: request.input, reply });
        tokio::spawn(async move {
            let unavailable = || mneme_engine_api::EngineError::Unavailable { reason: String::from("no vector came") };
            let result = match tokio::time::timeout_at(request.deadline, vector).await {
                Ok(Ok(vector)) => Ok(vector),
                _ => Err(ActorError::Engine(unavailable())),
            };
            let _ = request.reply.send(result);
            drop(request.permit);
        });
    }

    fn recall(&self, request: Request<RecallAsk, Recall>) {
        let arguments = self.arguments.clone();
        let queries = self.queries.sender();
        tokio::spawn(async move {
            let ask = request.input;
            // The receiver closes when there will be no vector.
            let (reply, vector) = oneshot::channel();
            let (store, query) = (Arc::clone(&arguments.store), ask.query.clone());
            // The names of speakers are in the index, which a change may hold for a while.
            let named = tokio::task::spawn_blocking(move || store.text_to_embed(&query)).await;
            if let (Ok(text), Some(queries)) = (named, queries) {
                let _ = queries.try_send(QueryJob { text, reply });
            }
            let wait = (Instant::now() + ask.embed_within).min(request.deadline);
            let vector = tokio::time::timeout_at(wait, vector).await.ok().and_then(Result::ok);
            if request.reply.is_closed() {
                return;
            }
            let deadline = request.deadline;
            let work = move || recall_on(&arguments, &ask, vector.as_ref(), deadline);
            let span = request.span;
            let result = tokio::task::spawn_blocking(move || span.in_scope(work)).await;
            let result = result.unwrap_or(Err(ActorError::Stopped { actor: "memory" }));
            let _ = request.reply.send(result);
            drop(request.permit);
        });
    }
}

/// The request, unless nobody waits for its answer any more.
fn in_time<I, O>(request: Request<I, O>) -> Option<Request<I, O>> {
    if request.reply.is_closed() {
        return None;
    }
    if Instant::now() >= request.deadline {
        let _ = request.reply.send(Err(ActorError::DeadlineExceeded { actor: "memory" }));
        return None;
    }
    Some(request)
}

/// Gives a request to a thread, or tells its caller why not. Says which.
fn hand_over<I: Send + 'static, O: Send + 'static>(
    worker: &Worker<Request<I, O>>,
    request: Request<I, O>,
    retry_after_ms: u64,
) -> bool {
    let (request, error) = match worker.try_send(request) {
        Ok(()) => return true,
        Err(TrySendError::Full(request)) => (request, ActorError::Busy { actor: "memory", retry_after_ms }),
        Err(TrySendError::Disconnected(request)) => (request, ActorError::Stopped { actor: "memory" }),
    };
    let _ = request.reply.send(Err(error));
    false
}

fn recall_on(
    arguments: &Arguments,
    ask: &RecallAsk,
    vector: Option<&Embedding>,
    deadline: Instant,
) -> Result<Recall, ActorError> {
    let now = arguments.clock.now();
    if !ask.rerank {
        return Ok(arguments.store.recall(&ask.query, vector, now)?);
    }
    let mut wide = ask.query.clone();
    wide.limit = wide.limit.max(RERANK_CANDIDATES_MAX);
    let mut recall = arguments.store.recall(&wide, vector, now)?;
    match rerank(arguments, ask, &recall, deadline) {
        Ok(scores) => recall.hits = rerank_hits(recall.hits, &scores),
        // A rerank that cannot be had is no reason to answer nothing.
        Err(error) => {
            tracing::warn!(%error, "rerank was left out");
            recall.degraded.push(String::from("rerank"));
        }
    }
    recall.hits.truncate(ask.query.limit);
    Ok(recall)
}

/// Scores the best candidates by how likely they make the question: alone, and with their date.
fn rerank(
    arguments: &Arguments,
    ask: &RecallAsk,
    recall: &Recall,
    deadline: Instant,
) -> Result<Vec<RerankScores>, mneme_engine_api::EngineError> {
    let candidates = &recall.hits[..recall.hits.len().min(RERANK_CANDIDATES_MAX)];
    let contexts = candidates.iter().flat_map(|hit| rerank_contexts(&hit.memory));
    let items: Vec<ScoreItem> = contexts.map(|context| ScoreItem::new(context, ask.query.text.clone())).collect();
    let scores = arguments.engine.score(&items, &crate::call::token_until(deadline))?;
    let per_token = |score: &ScoreOutcome| (score.log_likelihood / f64::from(score.tokens.max(1))) as f32;
    Ok(scores
        .chunks_exact(2)
        .map(|pair| RerankScores { own: per_token(&pair[0]), context: per_token(&pair[1]) })
        .collect())
}

fn report_if_fatal(fatal: &FatalSender, error: &StoreError) {
    if matches!(error, StoreError::Io { .. } | StoreError::Corrupt { .. } | StoreError::Closed { .. }) {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        fatal.report(text);
    }
}
