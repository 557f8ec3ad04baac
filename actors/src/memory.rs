//! Keeps memories: writes in group commits on one thread, reads beside it, vectors filled in behind it.
//!
//! Called by: daemon, generator, evolution, watcher, housekeeper. Calls: the store and the engine, no other actor. Owns: the
//! writer, embedder and query-embedder threads. Capacity: [`CALLS_MAX`] requests at once. A restart loses the requests that
//! were under way (their callers are told), and nothing that was acknowledged.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mneme_base::{Clock, Embedding, EmbeddingGeneration, Lsn, MemoryId, Namespace, Timestamp, TrustTier};
use mneme_engine_api::types::EMBED_TEXTS_MAX;
use mneme_engine_api::{CancelToken, EmbedPurpose, Engine, ScoreItem, ScoreOutcome};
use mneme_memory::map::{self, MemoryMap};
use mneme_memory::recall::rerank::{RerankScores, rerank_hits};
use mneme_memory::{
    Document, MaintenanceReport, MaintenanceTask, Memory, MemoryStore, Operation, OperationKind, OperationOutcome,
    OperationResult, Recall, RecallQuery, Scan, StoreError, StoreStats,
};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Semaphore, broadcast, oneshot};
use tokio::time::Instant;

use crate::call::{ActorError, ActorStatus, Request, Slot};
use crate::supervisor::FatalSender;
use crate::tunables::Tuned;

/// The unit in which waiting text is counted (bytes): a semaphore counts no further than 32 bits.
const BYTES_UNIT: u64 = 1 << 10;
/// Queries that wait for their vector; more are answered from text at once.
const QUERY_EMBEDDINGS_MAX: usize = 64;
/// How long the embedder waits after the engine failed, and between looks for work nobody told it of.
const EMBED_RETRY: Duration = Duration::from_secs(5);
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
    /// Text that may still wait for the journal, in [`BYTES_UNIT`].
    bytes: Arc<Semaphore>,
}

impl MemoryHandle {
    pub(crate) fn new(store: Arc<dyn MemoryStore>, calls_max: usize, bytes_max: u64) -> Self {
        let units = (bytes_max / BYTES_UNIT).clamp(1, u64::from(u32::MAX >> 4)) as usize;
        Self {
            slot: Slot::new("memory", calls_max),
            store,
            changes: broadcast::channel(CHANGES_MAX).0,
            bytes: Arc::new(Semaphore::new(units)),
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
        let bytes: u64 = operations.iter().map(text_bytes).sum();
        let units = (bytes / BYTES_UNIT + 1).min(u64::from(u32::MAX)) as u32;
        let busy = |_| ActorError::Busy { actor: "memory", retry_after_ms: 50 };
        // Held until the answer: what waits for the journal is bounded in bytes as well as in number.
        let _held = self.bytes.try_acquire_many(units).map_err(busy)?;
        self.slot.call(operations, deadline, Message::Apply).await
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
        self.slot.call(task, deadline, Message::Maintain).await
    }

    /// Writes a verified copy into an empty folder.
    pub async fn backup(&self, folder: std::path::PathBuf, deadline: Instant) -> Result<MaintenanceReport, ActorError> {
        self.read(deadline, move |store| store.backup(&folder)).await
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

fn text_bytes(operation: &Operation) -> u64 {
    match &operation.kind {
        OperationKind::Remember(memory) | OperationKind::Supersede { by: memory, .. } => memory.text.len() as u64,
        _ => 0,
    }
}

/// Work on the store that only reads.
pub(crate) type Job = Box<dyn FnOnce(&dyn MemoryStore) + Send>;

/// What the memory is told.
pub(crate) enum Message {
    /// Change something.
    Apply(Request<Vec<Operation>, Vec<OperationOutcome>>),
    /// Answer a question.
    Recall(Box<Request<RecallAsk, Recall>>),
    /// Embed a text.
    Embed(Request<String, Embedding>),
    /// Look something up.
    Read(Request<Job, ()>),
    /// Do a step of upkeep.
    Maintain(Request<MaintenanceTask, MaintenanceReport>),
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
    writer: Worker<Request<Vec<Operation>, Vec<OperationOutcome>>>,
    embedder: Worker<()>,
    queries: Worker<QueryJob>,
}

struct QueryJob {
    text: String,
    reply: oneshot::Sender<Embedding>,
}

/// A named thread behind a bounded channel. Dropping it closes the channel; the thread ends with what it is doing.
struct Worker<T> {
    sender: Option<SyncSender<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    fn start(name: &str, capacity: usize, run: impl FnOnce(&Receiver<T>) + Send + 'static) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(capacity);
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&receiver))?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match &self.sender {
            Some(sender) => sender.try_send(item),
            None => Err(TrySendError::Disconnected(item)),
        }
    }
}

impl<T> Worker<T> {
    /// Closes the channel and waits for the thread, away from the async threads.
    async fn finish(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// The memory's actor.
pub(crate) struct MemoryActor;

impl Actor for MemoryActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let for_writer = arguments.clone();
        let writer = Worker::start("memory-writer", arguments.queue_max, move |jobs| run_writer(&for_writer, jobs))?;
        let for_embedder = arguments.clone();
        // One wake-up is as good as many.
        let embedder = Worker::start("memory-embedder", 1, move |wake| run_embedder(&for_embedder, wake))?;
        let for_queries = arguments.clone();
        let queries =
            Worker::start("memory-queries", QUERY_EMBEDDINGS_MAX, move |jobs| run_queries(&for_queries, jobs))?;
        // Vectors may be missing since the last run.
        let _ = embedder.try_send(());
        Ok(State { arguments, writer, embedder, queries })
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
        // The writer ends what it has begun: every acknowledged change is on disk before this returns. The embedder is not
        // waited for: what it computes can be computed again.
        state.writer.finish().await;
        Ok(())
    }
}

impl State {
    fn apply(&self, request: Request<Vec<Operation>, Vec<OperationOutcome>>) {
        if request.reply.is_closed() || Instant::now() >= request.deadline {
            return;
        }
        let error = match self.writer.try_send(request) {
            Ok(()) => {
                let _ = self.embedder.try_send(());
                return;
            }
            Err(TrySendError::Full(request)) => (request, ActorError::Busy { actor: "memory", retry_after_ms: 50 }),
            Err(TrySendError::Disconnected(request)) => (request, ActorError::Stopped { actor: "memory" }),
        };
        let _ = error.0.reply.send(Err(error.1));
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

    fn maintain(&self, request: Request<MaintenanceTask, MaintenanceReport>) {
        let store = Arc::clone(&self.arguments.store);
        let fatal = self.arguments.fatal.clone();
        let now = self.arguments.clock.now();
        tokio::task::spawn_blocking(move || {
            let result = request.span.in_scope(|| store.maintain(request.input, now));
            if let Err(error) = &result {
                report_if_fatal(&fatal, error);
            }
            let _ = request.reply.send(result.map_err(ActorError::from));
        });
    }

    /// Asks for the vector of a question; the receiver closes when there will be none.
    fn query_vector(&self, text: String) -> oneshot::Receiver<Embedding> {
        let (reply, receiver) = oneshot::channel();
        let _ = self.queries.try_send(QueryJob { text, reply });
        receiver
    }

    fn embed(&self, request: Request<String, Embedding>) {
        let vector = self.query_vector(request.input);
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
        let vector = self.query_vector(self.arguments.store.text_to_embed(&request.input.query));
        let arguments = self.arguments.clone();
        tokio::spawn(async move {
            let ask = request.input;
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

/// Scores the best candidates by how likely they make the question: alone, and with their date and neighbour.
fn rerank(
    arguments: &Arguments,
    ask: &RecallAsk,
    recall: &Recall,
    deadline: Instant,
) -> Result<Vec<RerankScores>, mneme_engine_api::EngineError> {
    let candidates = &recall.hits[..recall.hits.len().min(RERANK_CANDIDATES_MAX)];
    let mut items = Vec::with_capacity(2 * candidates.len());
    for hit in candidates {
        let memory = &hit.memory;
        let speaker = memory.speaker.as_deref().map(|name| format!("{name}: ")).unwrap_or_default();
        let turn = format!("{speaker}{}\nQuestion: ", memory.text);
        items.push(ScoreItem::new(turn.clone(), ask.query.text.clone()));
        let context = format!("[{}]\n{turn}", memory.valid_from.date());
        items.push(ScoreItem::new(context, ask.query.text.clone()));
    }
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

/// Gathers writes into groups and commits each group with one sync.
fn run_writer(arguments: &Arguments, jobs: &Receiver<Request<Vec<Operation>, Vec<OperationOutcome>>>) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        let mut operations = group[0].input.len();
        let tunables = arguments.tuned.get();
        let until = std::time::Instant::now() + tunables.group_commit_wait;
        while operations < tunables.group_commit_operations_max {
            // The commit before took a few milliseconds, so what came meanwhile is here already; waiting longer only pays
            // while others are on their way.
            let next = match jobs.try_recv() {
                Ok(next) => Ok(next),
                Err(_) if group.len() == 1 => break,
                Err(_) => jobs.recv_timeout(until.saturating_duration_since(std::time::Instant::now())),
            };
            match next {
                Ok(next) => {
                    operations += next.input.len();
                    group.push(next);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        // Nobody waits any more, or not in time: the work is not begun. What is begun is finished, whoever waits.
        let now = Instant::now();
        group.retain(|request| !request.reply.is_closed() && request.deadline > now);
        if group.is_empty() {
            continue;
        }
        let lengths: Vec<usize> = group.iter().map(|request| request.input.len()).collect();
        let batch: Vec<Operation> = group.iter_mut().flat_map(|request| std::mem::take(&mut request.input)).collect();
        match arguments.store.apply(&batch, arguments.clock.now()) {
            Ok(outcomes) => {
                announce(&arguments.changes, &batch, &outcomes, arguments.clock.now());
                let mut outcomes = outcomes.into_iter();
                for (request, length) in group.into_iter().zip(lengths) {
                    let _ = request.reply.send(Ok(outcomes.by_ref().take(length).collect()));
                }
            }
            Err(error) => {
                // None of the group may be acknowledged. A fault closes the store for good, a watermark does not.
                report_if_fatal(&arguments.fatal, &error);
                let error = Arc::new(error);
                for request in group {
                    let _ = request.reply.send(Err(ActorError::Store(Arc::clone(&error))));
                }
            }
        }
    }
}

/// Tells listeners what is new. Nobody listening is fine.
fn announce(changes: &broadcast::Sender<Change>, batch: &[Operation], outcomes: &[OperationOutcome], now: Timestamp) {
    for (operation, outcome) in batch.iter().zip(outcomes) {
        let change = match (&operation.kind, &outcome.result) {
            (
                OperationKind::Remember(memory) | OperationKind::Supersede { by: memory, .. },
                Ok(OperationResult::Remembered(receipt) | OperationResult::Superseded(receipt)),
            ) if !receipt.duplicate && !outcome.replayed => Change::Remembered {
                id: receipt.id,
                trust: memory.provenance.trust,
                valid_from: memory.valid_from.unwrap_or(now),
            },
            (OperationKind::Forget(_), Ok(OperationResult::Forgotten(receipt))) => {
                Change::Forgotten(receipt.ids.clone())
            }
            _ => continue,
        };
        let _ = changes.send(change);
    }
}

/// Fills in vectors that are missing, whenever something was written and every few seconds.
fn run_embedder(arguments: &Arguments, wake: &Receiver<()>) {
    loop {
        match wake.recv_timeout(EMBED_RETRY) {
            Ok(()) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // A full batch means that more is waiting.
        while embed_batch(arguments) {
            if matches!(wake.try_recv(), Err(std::sync::mpsc::TryRecvError::Disconnected)) {
                return;
            }
        }
    }
}

/// Embeds one batch of memories; returns whether it was a full one.
fn embed_batch(arguments: &Arguments) -> bool {
    let tunables = arguments.tuned.get();
    let pending = match arguments.store.pending_embeddings(tunables.embed_batch_max) {
        Ok(pending) if pending.is_empty() => return false,
        Ok(pending) => pending,
        Err(error) => {
            tracing::warn!(%error, "pending vectors cannot be listed");
            return false;
        }
    };
    let texts: Vec<String> = pending.iter().flat_map(|memory| memory.texts.iter().cloned()).collect();
    let mut vectors = Vec::with_capacity(texts.len());
    for chunk in texts.chunks(EMBED_TEXTS_MAX) {
        match arguments.engine.embed(chunk, EmbedPurpose::Document, &CancelToken::with_deadline(tunables.embed_timeout))
        {
            Ok(more) => vectors.extend(more),
            Err(error) => {
                tracing::debug!(%error, "vectors are filled in later");
                return false;
            }
        }
    }
    let generation = arguments.engine.info().embedding_generation;
    let mut vectors = vectors.into_iter();
    let embeddings =
        pending.iter().map(|memory| (memory.id, vectors.by_ref().take(memory.texts.len()).collect())).collect();
    match store_vectors(arguments.store.as_ref(), &generation, embeddings) {
        Ok(()) => pending.len() == tunables.embed_batch_max,
        Err(error) => {
            report_if_fatal(&arguments.fatal, &error);
            false
        }
    }
}

fn store_vectors(
    store: &dyn MemoryStore,
    generation: &EmbeddingGeneration,
    embeddings: Vec<(MemoryId, Vec<Embedding>)>,
) -> Result<(), StoreError> {
    store.set_generation(generation)?;
    store.store_embeddings(generation, embeddings)
}

/// Embeds questions, those that wait together in one batch. A question that cannot be embedded gets no reply.
fn run_queries(arguments: &Arguments, jobs: &Receiver<QueryJob>) {
    while let Ok(first) = jobs.recv() {
        let mut batch = vec![first];
        batch.extend(jobs.try_iter().take(QUERY_EMBEDDINGS_MAX - 1));
        batch.retain(|job| !job.reply.is_closed());
        if batch.is_empty() {
            continue;
        }
        let texts: Vec<String> = batch.iter().map(|job| job.text.clone()).collect();
        let within = CancelToken::with_deadline(arguments.tuned.get().embed_timeout);
        match arguments.engine.embed(&texts, EmbedPurpose::Query, &within) {
            Ok(vectors) => batch.into_iter().zip(vectors).for_each(|(job, vector)| {
                let _ = job.reply.send(vector);
            }),
            Err(error) => tracing::debug!(%error, "question was not embedded"),
        }
    }
}
