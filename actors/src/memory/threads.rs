//! The memory's threads: the writer with its group commits, upkeep, the embedders. A thread that panics ends the daemon: what it left
//! half done in memory cannot be trusted, and what is on disk can.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use mneme_base::{Embedding, EmbeddingGeneration, MemoryId, Timestamp};
use mneme_engine_api::types::EMBED_TEXTS_MAX;
use mneme_engine_api::{CancelToken, EmbedPurpose};
use mneme_memory::{
    MaintenanceReport, MemoryStore, Operation, OperationKind, OperationOutcome, OperationResult, StoreError,
};
use tokio::sync::{broadcast, oneshot};

use super::{Arguments, Change, Changes, QUERY_EMBEDDINGS_MAX, UPKEEP_WAITING_MAX, Upkeep, in_time, report_if_fatal};
use crate::call::{ActorError, Request};
use crate::supervisor::FatalSender;

/// How long the embedder waits after the engine failed, and between looks for work nobody told it of.
const EMBED_RETRY: Duration = Duration::from_secs(5);

/// A question that wants its vector.
pub(super) struct QueryJob {
    pub(super) text: String,
    pub(super) reply: oneshot::Sender<Embedding>,
}

/// A named thread behind a bounded channel. Dropping it closes the channel; the thread ends with what it is doing.
pub(super) struct Worker<T> {
    sender: Option<SyncSender<T>>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Worker<T> {
    pub(super) fn start(
        name: &'static str,
        capacity: usize,
        fatal: &FatalSender,
        run: impl FnOnce(&Receiver<T>) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(capacity);
        let fatal = fatal.clone();
        let run = move || {
            if catch_unwind(AssertUnwindSafe(|| run(&receiver))).is_err() {
                fatal.report(format!("{name} panicked"));
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run)?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }

    pub(super) fn try_send(&self, item: T) -> Result<(), TrySendError<T>> {
        match &self.sender {
            Some(sender) => sender.try_send(item),
            None => Err(TrySendError::Disconnected(item)),
        }
    }

    /// A way to the thread for work that is handed over later.
    pub(super) fn sender(&self) -> Option<SyncSender<T>> {
        self.sender.clone()
    }
}

impl<T> Worker<T> {
    /// Closes the channel and waits for the thread, away from the async threads.
    pub(super) async fn finish(&mut self) {
        drop(self.sender.take());
        if let Some(thread) = self.thread.take() {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
    }
}

/// Gathers writes into groups and commits each group with one sync.
pub(super) fn run_writer(arguments: &Arguments, jobs: &Receiver<Request<Changes, Vec<OperationOutcome>>>) {
    while let Ok(first) = jobs.recv() {
        let mut group = vec![first];
        let mut operations = group[0].input.operations.len();
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
                    operations += next.input.operations.len();
                    group.push(next);
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        // Nobody waits any more, or not in time: the work is not begun. What is begun is finished, whoever waits.
        let mut group: Vec<_> = group.into_iter().filter_map(in_time).collect();
        if group.is_empty() {
            continue;
        }
        let lengths: Vec<usize> = group.iter().map(|request| request.input.operations.len()).collect();
        let batch: Vec<Operation> =
            group.iter_mut().flat_map(|request| std::mem::take(&mut request.input.operations)).collect();
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

/// Does upkeep, one step at a time. Equal steps that wait together are one: each was asked for before it is begun.
pub(super) fn run_upkeep(arguments: &Arguments, jobs: &Receiver<Request<Upkeep, MaintenanceReport>>) {
    while let Ok(first) = jobs.recv() {
        let mut waiting = vec![first];
        waiting.extend(jobs.try_iter().take(UPKEEP_WAITING_MAX));
        while let Some(work) = waiting.first().map(|request| request.input.clone()) {
            let (same, others): (Vec<_>, Vec<_>) = waiting.into_iter().partition(|request| request.input == work);
            waiting = others;
            let same: Vec<_> = same.into_iter().filter_map(in_time).collect();
            let Some(first) = same.first() else { continue };
            let (store, now) = (&arguments.store, arguments.clock.now());
            let result = first.span.in_scope(|| match &work {
                Upkeep::Step(task) => store.maintain(*task, now).inspect_err(|error| {
                    report_if_fatal(&arguments.fatal, error);
                }),
                // What fails is the copy, most likely: the store says itself when it is what failed.
                Upkeep::Backup(folder) => store.backup(folder),
            });
            let result = result.map_err(Arc::new);
            for request in same {
                let _ = request.reply.send(result.clone().map_err(ActorError::Store));
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
pub(super) fn run_embedder(arguments: &Arguments, wake: &Receiver<()>) {
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
pub(super) fn run_queries(arguments: &Arguments, jobs: &Receiver<QueryJob>) {
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
