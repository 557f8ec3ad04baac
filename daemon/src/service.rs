//! What each method does: from parameters to actors and back. One instance serves every connection.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mneme_actors::{ActorError, GenerateAsk, RecallAsk, System};
use mneme_base::{BootId, Clock, Lsn, OpId, Provenance, TaskId, Timestamp};
use mneme_config::Config;
use mneme_engine_api::{CanvasEvent, EngineProcess};
use mneme_evolution::machine::Command;
use mneme_evolution::registry::CardState;
use mneme_evolution::trigger::Feedback as Opinion;
use mneme_ipc::types as wire;
use mneme_ipc::types::{TaskEvent, TaskEventKind, TaskState};
use mneme_ipc::{Call, ErrorBody, ErrorKind, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use mneme_memory::domain::{RECALL_LIMIT_MAX, TEXT_BYTES_MAX};
use mneme_memory::{
    MaintenanceTask, NewMemory, Operation, OperationKind, OperationOutcome, OperationResult, Refusal, Scan, StoreHealth,
};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use crate::convert::{self, Caller, GenerationDefaults, invalid};
use crate::metrics::{Metrics, resident_bytes};
use crate::tasks::{Generated, Tasks};

/// Memories in one import request.
pub const IMPORT_BATCH_MAX: usize = 1_000;
/// Memories in one page of an export.
const EXPORT_PAGE_MAX: u32 = 1_000;
/// Memories in a page of an export that does not say.
const EXPORT_PAGE_DEFAULT: u32 = 500;
/// Decisions in one answer.
const DECISIONS_MAX: u32 = 1_000;
/// Canvas events that wait to be sent to a slow client; newer ones are dropped.
const CANVAS_EVENTS_MAX: usize = 64;
/// How long upkeep and backups may take.
const UPKEEP_TIMEOUT: Duration = Duration::from_mins(30);
/// How long a submitted generation may take.
const TASK_TIMEOUT: Duration = Duration::from_mins(30);

/// What travels with a request.
#[derive(Debug)]
pub struct Context {
    /// Who calls.
    pub caller: Caller,
    /// Names the change.
    pub op_id: Option<OpId>,
    /// When the caller gives up.
    pub deadline: Instant,
    /// What the answer must have seen.
    pub min_lsn: Option<Lsn>,
    /// Where stream events go; a full channel drops them.
    pub events: mpsc::Sender<TaskEvent>,
}

/// The service behind every connection.
#[derive(Debug)]
pub struct Service {
    /// The actors.
    pub system: System,
    /// The counters.
    pub metrics: Metrics,
    boot: BootId,
    started_at: Timestamp,
    clock: Arc<dyn Clock>,
    engine: Arc<dyn mneme_engine_api::Engine>,
    process: Option<Arc<EngineProcess>>,
    config: watch::Receiver<Arc<Config>>,
    tasks: Tasks,
    draining: AtomicBool,
    drain: watch::Sender<bool>,
    reload: tokio::sync::Notify,
    in_flight: AtomicU64,
}

/// What a service is built from.
#[derive(Debug)]
pub struct ServiceParts {
    /// The actors.
    pub system: System,
    /// This run.
    pub boot: BootId,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The engine.
    pub engine: crate::engine::Chosen,
    /// The configuration, as it changes.
    pub config: watch::Receiver<Arc<Config>>,
}

type Answer = Result<serde_json::Value, ErrorBody>;

impl Service {
    /// Builds the service.
    pub fn new(parts: ServiceParts) -> Self {
        let started_at = parts.clock.now();
        Self {
            system: parts.system,
            metrics: Metrics::default(),
            boot: parts.boot,
            started_at,
            clock: parts.clock,
            engine: parts.engine.engine,
            process: parts.engine.process,
            config: parts.config,
            tasks: Tasks::default(),
            draining: AtomicBool::new(false),
            drain: watch::channel(false).0,
            reload: tokio::sync::Notify::new(),
            in_flight: AtomicU64::new(0),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Becomes true when the daemon is to stop.
    pub fn drained(&self) -> watch::Receiver<bool> {
        self.drain.subscribe()
    }

    /// Refuses new requests from here on.
    pub fn start_draining(&self) {
        self.draining.store(true, Ordering::Release);
        self.drain.send_replace(true);
    }

    /// Requests that are under way.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Waits until somebody asks for the configuration to be read again.
    pub async fn reload_asked(&self) {
        self.reload.notified().await;
    }

    /// Whether a ping goes through the memory's actor and its store within a time.
    pub async fn answers(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let nobody = mneme_base::MemoryId::from_bytes([0; 16]);
        // A full queue is an answer too: the actor lives and says so.
        matches!(self.system.memory.get(nobody, deadline).await, Ok(_) | Err(ActorError::Busy { .. }))
    }

    /// The answer to a greeting.
    pub fn hello(&self, params: &wire::HelloParams) -> Result<(wire::HelloResult, Caller), ErrorBody> {
        if params.protocol < PROTOCOL_VERSION_MIN || params.protocol > PROTOCOL_VERSION {
            let message = format!(
                "protocol is {}, this daemon speaks {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}",
                params.protocol
            );
            return Err(ErrorBody::new(ErrorKind::UnsupportedVersion, message).hint("upgrade the older of the two"));
        }
        let name = params.client.trim();
        if name.is_empty() || name.len() > 64 || name.chars().any(char::is_control) {
            return Err(invalid("client must be a name of 1 to 64 bytes without control characters"));
        }
        let server = &self.config().server;
        let result = wire::HelloResult {
            protocol: params.protocol,
            protocol_min: PROTOCOL_VERSION_MIN,
            server: format!("mnemed {}", env!("CARGO_PKG_VERSION")),
            boot: self.boot,
            limits: wire::Limits {
                frame_bytes_max: server.frame_bytes_max.bytes(),
                requests_in_flight_max: server.requests_in_flight_max,
                text_bytes_max: TEXT_BYTES_MAX as u64,
                recall_limit_max: RECALL_LIMIT_MAX as u64,
                import_batch_max: IMPORT_BATCH_MAX as u64,
                idle_timeout_ms: server.idle_timeout.as_millis() as u64,
            },
        };
        let session = params.session.clone().filter(|session| session.len() <= 256);
        Ok((result, Caller { client: name.to_owned(), session }))
    }

    /// Carries out a call.
    pub async fn call(self: &Arc<Self>, call: Call, context: Context) -> Answer {
        if self.draining.load(Ordering::Acquire) && !matches!(call, Call::Ping(_) | Call::Status(_) | Call::Drain(_)) {
            return Err(ErrorBody::new(ErrorKind::ShuttingDown, "daemon is shutting down").retry_after_ms(1_000));
        }
        let _in_flight = InFlight::enter(&self.in_flight);
        self.check_lsn(context.min_lsn)?;
        match call {
            Call::Hello(_) => Err(ErrorBody::new(ErrorKind::InvalidRequest, "hello was already said")),
            Call::Ping(_) => answer(wire::PingResult { boot: self.boot }),
            Call::Remember(params) => answer(self.remember(*params, &context).await?),
            Call::Supersede(params) => answer(self.supersede(*params, &context).await?),
            Call::Recall(params) => answer(self.recall(*params, &context).await?),
            Call::Get(params) => answer(self.get(*params, &context).await?),
            Call::Forget(params) => answer(self.forget(*params, &context).await?),
            Call::Corroborate(params) => answer(self.corroborate(*params, &context).await?),
            Call::Export(params) => answer(self.export(*params, &context).await?),
            Call::Import(params) => answer(self.import(*params, &context).await?),
            Call::Stats(_) => answer(self.stats()),
            Call::NamespaceList(_) => {
                answer(wire::NamespaceListResult { namespaces: self.system.memory.stats().namespaces })
            }
            Call::Generate(params) => answer(self.generate(*params, context).await?),
            Call::Feedback(params) => answer(self.feedback(*params, &context).await?),
            Call::TaskSubmit(params) => answer(self.submit(params.work, &context)?),
            Call::TaskStatus(params) => answer(self.task_status(params.task)?),
            Call::TaskCancel(params) => answer(self.task_cancel(params.task)?),
            Call::TaskEvents(params) => answer(self.task_events(params.task, &context).await?),
            Call::EvolveStatus(_) => answer(self.evolve_status(&context).await?),
            Call::EvolveLog(params) => answer(self.evolve_log(*params, &context).await?),
            Call::EvolveShow(params) => answer(self.evolve_show(*params, &context).await?),
            Call::EvolveDiff(params) => answer(self.evolve_diff(*params, &context).await?),
            Call::EvolveRollback(params) => self.evolve(Command::Rollback { adapter: params.adapter }, &context).await,
            Call::EvolvePin(params) => {
                self.evolve(Command::Pin { adapter: params.adapter, pinned: params.pinned }, &context).await
            }
            Call::EvolvePause(_) => self.evolve(Command::Pause, &context).await,
            Call::EvolveResume(_) => self.evolve(Command::Resume, &context).await,
            Call::EvolveRun(_) => self.evolve(Command::RunNow { situation: None }, &context).await,
            Call::WatchAdd(params) => answer(self.watch_add(*params, &context).await?),
            Call::WatchRemove(params) => answer(self.watch_remove(*params, &context).await?),
            Call::WatchList(_) => answer(folders(self.system.watcher.list(context.deadline).await.map_err(told)?)),
            Call::Status(_) => answer(self.status()),
            Call::Backup(params) => answer(self.backup(params.folder, context.deadline).await?),
            Call::Compact(_) => answer(self.compact(context.deadline).await?),
            Call::Reload(_) => {
                self.reload.notify_one();
                answer(wire::ReloadResult { applied: Vec::new(), restart_needed: Vec::new() })
            }
            Call::Metrics(_) => answer(wire::MetricsResult { text: self.prometheus() }),
            Call::Drain(_) => {
                self.start_draining();
                // This request itself is one of them.
                answer(wire::DrainResult { in_flight: self.in_flight().saturating_sub(1) })
            }
        }
    }

    /// Every acknowledged change is visible at once, so a change that is not is one of another store.
    fn check_lsn(&self, wanted: Option<Lsn>) -> Result<(), ErrorBody> {
        let Some(wanted) = wanted else {
            return Ok(());
        };
        let last = self.system.memory.stats().lsn;
        if wanted <= last {
            return Ok(());
        }
        let message = format!("min_lsn is {wanted}, the last change here is {last}");
        Err(ErrorBody::new(ErrorKind::Conflict, message).hint("the store was replaced or restored from a backup"))
    }

    async fn apply(&self, kind: OperationKind, context: &Context) -> Result<OperationOutcome, ErrorBody> {
        let op_id = context.op_id.unwrap_or_else(OpId::generate);
        self.system.memory.apply(Operation { op_id, kind }, context.deadline).await.map_err(told)
    }

    async fn remember(
        &self,
        params: wire::RememberParams,
        context: &Context,
    ) -> Result<wire::RememberResult, ErrorBody> {
        let memory = convert::new_memory(params, &context.caller);
        let outcome = self.apply(OperationKind::Remember(memory), context).await?;
        remembered(outcome)
    }

    async fn supersede(
        &self,
        params: wire::SupersedeParams,
        context: &Context,
    ) -> Result<wire::RememberResult, ErrorBody> {
        let by = convert::new_memory(params.by, &context.caller);
        let outcome = self.apply(OperationKind::Supersede { id: params.id, by }, context).await?;
        remembered(outcome)
    }

    async fn recall(&self, params: wire::RecallParams, context: &Context) -> Result<wire::RecallResult, ErrorBody> {
        let started = Instant::now();
        let ask = RecallAsk { rerank: params.rerank, ..RecallAsk::new(convert::recall_query(&params)?) };
        let recall = self.system.memory.recall(ask, context.deadline).await.map_err(told)?;
        Ok(wire::RecallResult {
            hits: recall.hits.into_iter().map(convert::hit_view).collect(),
            degraded: recall.degraded,
            abstain: recall.abstain,
            confidence: recall.confidence,
            lsn: recall.lsn,
            took_us: started.elapsed().as_micros() as u64,
        })
    }

    async fn get(&self, params: wire::GetParams, context: &Context) -> Result<wire::MemoryView, ErrorBody> {
        let memory = self.system.memory.get(params.id, context.deadline).await.map_err(told)?;
        memory.map(convert::memory_view).ok_or_else(|| convert::refusal_body(&Refusal::NotFound { id: params.id }))
    }

    async fn forget(&self, params: wire::ForgetParams, context: &Context) -> Result<wire::ForgetResult, ErrorBody> {
        if let wire::Selector::Ids(ids) = &params.select
            && ids.is_empty()
        {
            return Err(invalid("select names no memory"));
        }
        let before = self.adapters_alive(context.deadline).await;
        let outcome = self.apply(OperationKind::Forget(convert::selector(params.select)), context).await?;
        let replayed = outcome.replayed;
        let OperationResult::Forgotten(receipt) = outcome.result.map_err(|refusal| convert::refusal_body(&refusal))?
        else {
            return Err(unexpected());
        };
        let mut purged_at = receipt.purged_at;
        if params.purge_now && purged_at.is_none() {
            let until = context.deadline;
            self.system.memory.maintain(MaintenanceTask::Purge, until).await.map_err(told)?;
            purged_at = Some(self.clock.now());
        }
        let after = self.adapters_alive(context.deadline).await;
        let adapters_retired = before.into_iter().filter(|adapter| !after.contains(adapter)).collect();
        Ok(wire::ForgetResult {
            ids: receipt.ids,
            lsn: receipt.lsn,
            hidden_at: receipt.hidden_at,
            purged_at,
            adapters_retired,
            replayed,
        })
    }

    async fn adapters_alive(&self, deadline: Instant) -> Vec<String> {
        let report = self.system.evolution.report(deadline).await;
        let entries = report.map(|report| report.adapters).unwrap_or_default();
        let alive = entries.iter().filter(|entry| entry.state != CardState::Retired);
        alive.map(|entry| entry.card.adapter.to_string()).collect()
    }

    async fn corroborate(
        &self,
        params: wire::CorroborateParams,
        context: &Context,
    ) -> Result<wire::CorroborateResult, ErrorBody> {
        let outcome = self.apply(OperationKind::Corroborate { id: params.id }, context).await?;
        match outcome.result.map_err(|refusal| convert::refusal_body(&refusal))? {
            OperationResult::Corroborated { id, lsn } => Ok(wire::CorroborateResult { id, lsn }),
            _ => Err(unexpected()),
        }
    }

    async fn export(&self, params: wire::ExportParams, context: &Context) -> Result<wire::ExportResult, ErrorBody> {
        let limit = params.limit.unwrap_or(EXPORT_PAGE_DEFAULT);
        if limit == 0 || limit > EXPORT_PAGE_MAX {
            return Err(invalid(format!("limit is {limit}, allowed are 1 to {EXPORT_PAGE_MAX}")));
        }
        let scan = Scan { namespace: params.namespace, after: params.after, limit: limit as usize };
        let memories = self.system.memory.scan(scan, context.deadline).await.map_err(told)?;
        let next = (memories.len() == limit as usize).then(|| memories.last().map(|memory| memory.id)).flatten();
        Ok(wire::ExportResult { memories: memories.into_iter().map(convert::memory_view).collect(), next })
    }

    async fn import(&self, params: wire::ImportParams, context: &Context) -> Result<wire::ImportResult, ErrorBody> {
        let count = params.memories.len();
        if count == 0 || count > IMPORT_BATCH_MAX {
            return Err(invalid(format!("memories has {count} entries, allowed are 1 to {IMPORT_BATCH_MAX}")));
        }
        let base = context.op_id.unwrap_or_else(OpId::generate);
        let operation = |(place, params): (usize, wire::RememberParams)| Operation {
            // The place in the request makes each entry's id, so that a request sent again finds each entry done.
            op_id: OpId::new(u128::from_be_bytes(base.to_bytes()).wrapping_add(place as u128 + 1)),
            kind: OperationKind::Remember(convert::new_memory(params, &context.caller)),
        };
        let operations = params.memories.into_iter().enumerate().map(operation).collect();
        let outcomes = self.system.memory.apply_all(operations, context.deadline).await.map_err(told)?;
        let mut result = wire::ImportResult { imported: 0, duplicates: 0, refused: Vec::new(), lsn: Lsn::ZERO };
        for (place, outcome) in outcomes.into_iter().enumerate() {
            match outcome.result {
                Ok(OperationResult::Remembered(receipt)) => {
                    result.imported += u64::from(!receipt.duplicate);
                    result.duplicates += u64::from(receipt.duplicate);
                    result.lsn = result.lsn.max(receipt.lsn);
                }
                Ok(_) => return Err(unexpected()),
                Err(refusal) => result.refused.push((place as u64, refusal.to_string())),
            }
        }
        Ok(result)
    }

    fn stats(&self) -> wire::StatsResult {
        let stats = self.system.memory.stats();
        wire::StatsResult {
            health: health_words(&stats.health),
            engine: stats.engine,
            memories: stats.memories,
            quarantined: stats.quarantined,
            superseded: stats.superseded,
            purge_pending: stats.purge_pending,
            embeddings_pending: stats.embeddings_pending,
            namespaces: stats.namespaces,
            lsn: stats.lsn,
            disk_bytes: stats.disk_bytes,
            index_bytes: stats.index_bytes,
        }
    }

    fn defaults(&self) -> GenerationDefaults {
        let generation = &self.config().generation;
        GenerationDefaults {
            steps: generation.steps,
            block: generation.block_tokens,
            tokens_max: generation.tokens_max,
        }
    }

    async fn generate(
        self: &Arc<Self>,
        params: wire::GenerateParams,
        context: Context,
    ) -> Result<wire::GenerateResult, ErrorBody> {
        let stream = params.stream;
        let (id, cancel) = self.tasks.begin("generate", None, self.clock.now()).map_err(|_| unexpected())?;
        let events = stream.then_some(context.events);
        self.run_generation(id, params, cancel, events, context.deadline).await
    }

    /// Runs a generation as a task; a caller that goes away cancels it.
    async fn run_generation(
        self: &Arc<Self>,
        id: TaskId,
        params: wire::GenerateParams,
        cancel: mneme_engine_api::CancelToken,
        events: Option<mpsc::Sender<TaskEvent>>,
        deadline: Instant,
    ) -> Result<wire::GenerateResult, ErrorBody> {
        let started = Instant::now();
        let mut guard = EndOnDrop { service: self, id, ended: false };
        let namespace = params.namespace.clone().unwrap_or_default();
        let result = async {
            let (request, recall) = convert::generation(&params, self.defaults())?;
            let (sender, receiver) = mpsc::channel(CANVAS_EVENTS_MAX);
            let ask = GenerateAsk { request, recall, base_only: params.base_only, events: Some(sender), cancel };
            self.tell(id, TaskEventKind::Started, events.as_ref());
            let generate = self.system.generator.generate(ask, deadline);
            let (answer, ()) = tokio::join!(generate, self.forward_canvas(id, receiver, events.as_ref()));
            answer.map_err(told)
        }
        .await;
        guard.ended = true;
        let now = self.clock.now();
        let answer = match result {
            Ok(answer) => answer,
            Err(error) => {
                let state = if error.kind() == ErrorKind::Cancelled { TaskState::Cancelled } else { TaskState::Failed };
                self.tasks.end(id, state, Some(error.message.clone()), None, now);
                return Err(error);
            }
        };
        let generation = answer.generation;
        let view = wire::GenerateResult {
            task: id,
            tokens: convert::token_views(&generation),
            text: generation.text,
            fills: generation.fills,
            memories: answer.memories,
            adapters: generation.adapters,
            uncertainty: convert::uncertainty_view(&answer.uncertainty),
            mode: convert::mode_view(generation.mode),
            steps: generation.steps,
            acceptance: generation.acceptance,
            finish: generation.finish,
            engine: answer.engine,
            degraded: answer.degraded,
            took_ms: started.elapsed().as_millis() as u64,
        };
        let kept = Generated { situation: answer.situation, text: view.text.clone(), namespace };
        self.tasks.end(id, TaskState::Succeeded, None, Some((view.clone(), kept)), now);
        Ok(view)
    }

    async fn forward_canvas(
        &self,
        id: TaskId,
        mut canvas: mpsc::Receiver<CanvasEvent>,
        events: Option<&mpsc::Sender<TaskEvent>>,
    ) {
        while let Some(event) = canvas.recv().await {
            let CanvasEvent { step, steps_total, canvas, decided, holes } = event;
            self.tell(id, TaskEventKind::Canvas { step, steps_total, canvas, decided, holes }, events);
        }
    }

    fn tell(&self, id: TaskId, event: TaskEventKind, events: Option<&mpsc::Sender<TaskEvent>>) {
        if let (Some(event), Some(events)) = (self.tasks.tell(id, event), events) {
            let _ = events.try_send(event);
        }
    }

    async fn feedback(
        &self,
        params: wire::FeedbackParams,
        context: &Context,
    ) -> Result<wire::FeedbackResult, ErrorBody> {
        let gone = || {
            ErrorBody::new(ErrorKind::NotFound, format!("generation {} is not known (any more)", params.task))
                .hint("feedback is taken for recent generations of this run of the daemon")
        };
        let generated = self.tasks.generated(params.task).ok_or_else(gone)?;
        let (opinion, text) = match (params.verdict, params.correction) {
            (wire::Verdict::Accept, None) => (Opinion::Accept, Some(generated.text.clone())),
            (wire::Verdict::Reject, None) => (Opinion::Reject, None),
            (wire::Verdict::Correct, Some(text)) if !text.trim().is_empty() => (Opinion::Correct, Some(text)),
            (wire::Verdict::Correct, _) => return Err(invalid("correction is missing")),
            (_, Some(_)) => return Err(invalid("correction goes with the verdict correct only")),
        };
        let mut memory = None;
        if let Some(text) = text {
            let mut new = NewMemory::note(generated.namespace.clone(), text, &context.caller.client);
            new.provenance =
                Provenance { source: "feedback".into(), ..Provenance::user(context.caller.client.clone()) };
            new.metadata.insert("authorship".into(), "accepted".into());
            new.metadata.insert("generation".into(), params.task.to_string());
            memory = Some(remembered(self.apply(OperationKind::Remember(new), context).await?)?.id);
        }
        if let Some(situation) = generated.situation {
            self.system.evolution.judge(situation, opinion, context.deadline).await.map_err(told)?;
        }
        Ok(wire::FeedbackResult { task: params.task, memory })
    }

    fn submit(self: &Arc<Self>, work: wire::Work, context: &Context) -> Result<wire::TaskSubmitResult, ErrorBody> {
        let name = match &work {
            wire::Work::Generate(params) => {
                // What is wrong with it is said now and not in a task that failed.
                convert::generation(params, self.defaults())?;
                "generate"
            }
            wire::Work::Backup { .. } => "backup",
            wire::Work::Compact => "compact",
        };
        let (id, cancel) = match self.tasks.begin(name, context.op_id, self.clock.now()) {
            Ok(begun) => begun,
            Err(known) => return Ok(wire::TaskSubmitResult { task: known }),
        };
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let deadline = Instant::now() + TASK_TIMEOUT;
            match work {
                wire::Work::Generate(params) => {
                    let _ = service.run_generation(id, *params, cancel, None, deadline).await;
                }
                wire::Work::Backup { folder } => service.run_upkeep(id, service.backup(folder, deadline)).await,
                wire::Work::Compact => service.run_upkeep(id, service.compact(deadline)).await,
            }
        });
        Ok(wire::TaskSubmitResult { task: id })
    }

    async fn run_upkeep(&self, id: TaskId, work: impl Future<Output = Result<wire::UpkeepResult, ErrorBody>>) {
        self.tell(id, TaskEventKind::Started, None);
        let (state, error) = match work.await {
            Ok(_) => (TaskState::Succeeded, None),
            Err(error) => (TaskState::Failed, Some(error.message)),
        };
        self.tasks.end(id, state, error, None, self.clock.now());
    }

    fn task_status(&self, task: Option<TaskId>) -> Result<wire::TaskStatusResult, ErrorBody> {
        let tasks = self.tasks.views(task);
        if let (Some(task), true) = (task, tasks.is_empty()) {
            return Err(no_task(task));
        }
        Ok(wire::TaskStatusResult { tasks })
    }

    fn task_cancel(&self, task: TaskId) -> Result<wire::TaskCancelResult, ErrorBody> {
        let cancelled = self.tasks.cancel(task).ok_or_else(|| no_task(task))?;
        Ok(wire::TaskCancelResult { cancelled })
    }

    async fn task_events(&self, task: TaskId, context: &Context) -> Result<wire::TaskView, ErrorBody> {
        let (view, mut events) = self.tasks.follow(task).ok_or_else(|| no_task(task))?;
        if view.ended_at.is_some() {
            return Ok(view);
        }
        loop {
            let event = match tokio::time::timeout_at(context.deadline, events.recv()).await {
                Ok(Ok(event)) => event,
                Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => continue,
                Ok(Err(tokio::sync::broadcast::error::RecvError::Closed)) => break,
                Err(_) => {
                    let message = format!("task {task} was still running at the deadline");
                    return Err(ErrorBody::new(ErrorKind::DeadlineExceeded, message));
                }
            };
            let ended = matches!(event.event, TaskEventKind::Ended { .. });
            let _ = context.events.try_send(event);
            if ended {
                break;
            }
        }
        self.tasks.views(Some(task)).pop().ok_or_else(|| no_task(task))
    }

    async fn evolve(&self, command: Command, context: &Context) -> Answer {
        let (stage, message) = self.system.evolution.command(command, context.deadline).await.map_err(told)?;
        answer(wire::EvolveCommandResult { state: stage.to_string().to_lowercase(), message })
    }

    async fn evolve_status(&self, context: &Context) -> Result<wire::EvolveStatusResult, ErrorBody> {
        use mneme_evolution::machine::Stage;
        let report = self.system.evolution.report(context.deadline).await.map_err(told)?;
        let entered = |stage: Stage| report.stations.get(&stage).copied().unwrap_or(0);
        let paused = match (report.status.paused, report.status.waiting) {
            (true, _) => Some(String::from("paused by the user")),
            (false, waiting) => waiting,
        };
        Ok(wire::EvolveStatusResult {
            state: report.status.stage.to_string().to_lowercase(),
            paused,
            observed: report.observed,
            trained: entered(Stage::Train),
            accepted: entered(Stage::Commit),
            rejected: entered(Stage::Reject),
            rolled_back: entered(Stage::Rollback),
            texts_waiting: report.texts,
            adapters: report.adapters.iter().map(convert::adapter_view).collect(),
            progress: report.progress,
        })
    }

    async fn evolve_log(
        &self,
        params: wire::EvolveLogParams,
        context: &Context,
    ) -> Result<wire::EvolveLogResult, ErrorBody> {
        let limit = params.limit.unwrap_or(50);
        if limit == 0 || limit > DECISIONS_MAX {
            return Err(invalid(format!("limit is {limit}, allowed are 1 to {DECISIONS_MAX}")));
        }
        let before = params.before.map(|text| text.parse::<u64>()).transpose();
        let before = before.map_err(|_| invalid("before is not the id of a decision"))?;
        let rows = self.system.evolution.log(limit as usize, before, context.deadline).await.map_err(told)?;
        Ok(wire::EvolveLogResult { decisions: rows.into_iter().map(convert::decision_view).collect() })
    }

    async fn evolve_show(
        &self,
        params: wire::EvolveAdapterParams,
        context: &Context,
    ) -> Result<wire::EvolveShowResult, ErrorBody> {
        let adapter = params.adapter;
        let report = self.system.evolution.report(context.deadline).await.map_err(told)?;
        let entry = report.adapters.iter().find(|entry| entry.card.adapter == adapter);
        let entry = entry.ok_or_else(|| no_adapter(adapter))?;
        let rows = self.system.evolution.rows(context.deadline).await.map_err(told)?;
        let own = rows.into_iter().filter(|row| row.adapter == Some(adapter));
        Ok(wire::EvolveShowResult {
            adapter: convert::adapter_view(entry),
            lineage: entry.card.lineage.iter().map(ToString::to_string).collect(),
            decisions: own.map(convert::decision_view).collect(),
        })
    }

    async fn evolve_diff(
        &self,
        params: wire::EvolveDiffParams,
        context: &Context,
    ) -> Result<wire::EvolveDiffResult, ErrorBody> {
        let report = self.system.evolution.report(context.deadline).await.map_err(told)?;
        let find = |adapter| {
            let found = report.adapters.iter().find(|entry| entry.card.adapter == adapter);
            found.ok_or_else(|| no_adapter(adapter))
        };
        let a = find(params.a)?;
        let b = params.b.map(find).transpose()?;
        let lineage = |entry: &mneme_evolution::registry::Entry| -> Vec<String> {
            entry.card.lineage.iter().map(ToString::to_string).collect()
        };
        let (of_a, of_b) = (lineage(a), b.map(lineage).unwrap_or_default());
        let without = |some: &[String], other: &[String]| -> Vec<String> {
            some.iter().filter(|id| !other.contains(id)).cloned().collect()
        };
        Ok(wire::EvolveDiffResult {
            a: convert::adapter_view(a).scores,
            b: b.map(|entry| convert::adapter_view(entry).scores).unwrap_or_default(),
            only_a: without(&of_a, &of_b),
            only_b: without(&of_b, &of_a),
        })
    }

    async fn watch_add(&self, params: wire::WatchAddParams, context: &Context) -> Result<wire::WatchView, ErrorBody> {
        let folder = absolute(&params.folder)?;
        let added = self.system.watcher.add(folder, params.namespace, context.deadline).await.map_err(told)?;
        Ok(folder_view(added))
    }

    async fn watch_remove(
        &self,
        params: wire::WatchRemoveParams,
        context: &Context,
    ) -> Result<wire::WatchListResult, ErrorBody> {
        let folder = absolute(&params.folder)?;
        let left = self.system.watcher.remove(folder, params.forget, context.deadline).await.map_err(told)?;
        Ok(folders(left))
    }

    async fn backup(&self, folder: String, deadline: Instant) -> Result<wire::UpkeepResult, ErrorBody> {
        let folder = absolute(&folder)?;
        let until = deadline.max(Instant::now() + UPKEEP_TIMEOUT);
        let report = self.system.memory.backup(folder, until).await.map_err(told)?;
        Ok(wire::UpkeepResult { items: BTreeMap::from([("backup".into(), report.items)]), bytes_freed: 0 })
    }

    async fn compact(&self, deadline: Instant) -> Result<wire::UpkeepResult, ErrorBody> {
        let until = deadline.max(Instant::now() + UPKEEP_TIMEOUT);
        let mut result = wire::UpkeepResult { items: BTreeMap::new(), bytes_freed: 0 };
        let steps = [
            ("purge", MaintenanceTask::Purge),
            ("compact", MaintenanceTask::Compact),
            ("index", MaintenanceTask::Index),
            ("cleanup", MaintenanceTask::Cleanup),
        ];
        for (name, step) in steps {
            let report = self.system.memory.maintain(step, until).await.map_err(told)?;
            result.items.insert(name.to_owned(), report.items);
            result.bytes_freed += report.bytes_freed;
        }
        Ok(result)
    }

    /// What the engine is called, or that it was not needed yet.
    fn engine_words(&self) -> (String, u64) {
        let restarts = self.process.as_ref().map_or(0, |process| process.restarts());
        let info = self.engine.info();
        let name = match (&self.process, info.model.is_empty()) {
            (Some(process), false) if process.pid().is_none() => format!("{} (stopped)", info.name),
            (_, false) => format!("{} ({})", info.name, info.model),
            (_, true) => info.name,
        };
        (name, restarts)
    }

    fn status(&self) -> wire::StatusResult {
        let stats = self.system.memory.stats();
        let (engine, engine_restarts) = self.engine_words();
        let actor = |status: mneme_actors::ActorStatus| wire::ActorView {
            name: status.name.to_owned(),
            state: if status.running { "running" } else { "restarting" }.to_owned(),
            restarts: status.restarts,
            in_flight: status.in_flight as u64,
            capacity: status.capacity as u64,
        };
        wire::StatusResult {
            server: format!("mnemed {}", env!("CARGO_PKG_VERSION")),
            boot: self.boot,
            pid: std::process::id(),
            started_at: self.started_at,
            health: if self.draining.load(Ordering::Acquire) {
                String::from("shutting down")
            } else {
                health_words(&stats.health)
            },
            rss_bytes: resident_bytes(),
            connections: self.metrics.connections.load(Ordering::Relaxed),
            requests: self.metrics.requests(),
            errors: self.metrics.errors(),
            lsn: stats.lsn,
            memories: stats.memories,
            engine,
            engine_restarts,
            actors: self.system.statuses().into_iter().map(actor).collect(),
            state_dir: self.config().paths.state_dir.display().to_string(),
        }
    }

    fn prometheus(&self) -> String {
        let stats = self.system.memory.stats();
        let (_, restarts) = self.engine_words();
        let healthy = f64::from(u8::from(stats.health == StoreHealth::Healthy));
        self.metrics.prometheus(&[
            ("mneme_resident_bytes", "Resident memory of the daemon.", resident_bytes() as f64),
            ("mneme_memories", "Memories that recall can return.", stats.memories as f64),
            ("mneme_embeddings_pending", "Memories without a current vector.", stats.embeddings_pending as f64),
            ("mneme_purge_pending", "Forgotten memories whose bytes are on disk.", stats.purge_pending as f64),
            ("mneme_lsn", "The last change.", stats.lsn.0 as f64),
            ("mneme_disk_bytes", "Bytes of the store on disk.", stats.disk_bytes as f64),
            ("mneme_index_bytes", "Bytes of the in-memory indices.", stats.index_bytes as f64),
            ("mneme_store_healthy", "1 while the store is healthy.", healthy),
            ("mneme_engine_restarts", "Restarts of the engine.", restarts as f64),
        ])
    }
}

/// Counts a request for as long as it lives.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn enter(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Ends a task whose caller went away before it ended.
struct EndOnDrop<'a> {
    service: &'a Service,
    id: TaskId,
    ended: bool,
}

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        if !self.ended {
            let now = self.service.clock.now();
            self.service.tasks.end(self.id, TaskState::Cancelled, Some("its client went away".into()), None, now);
        }
    }
}

fn answer(result: impl Serialize) -> Answer {
    serde_json::to_value(result).map_err(|error| {
        tracing::error!(%error, "result cannot be written");
        unexpected()
    })
}

fn told(error: ActorError) -> ErrorBody {
    let body = convert::error_body(&error);
    if matches!(body.kind(), ErrorKind::Internal | ErrorKind::StoreFailed) {
        tracing::error!(error = %Chain(&error), "request failed");
    }
    body
}

/// Prints an error with everything below it.
struct Chain<'a>(&'a dyn std::error::Error);

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

fn unexpected() -> ErrorBody {
    ErrorBody::new(ErrorKind::Internal, "daemon failed inside").hint("its log says why")
}

fn no_task(task: TaskId) -> ErrorBody {
    ErrorBody::new(ErrorKind::NotFound, format!("task {task} is not known (any more)"))
}

fn no_adapter(adapter: mneme_base::AdapterId) -> ErrorBody {
    ErrorBody::new(ErrorKind::NotFound, format!("adapter {adapter} does not exist"))
        .hint("'mneme evolve status' lists the adapters")
}

fn remembered(outcome: OperationOutcome) -> Result<wire::RememberResult, ErrorBody> {
    let replayed = outcome.replayed;
    match outcome.result.map_err(|refusal| convert::refusal_body(&refusal))? {
        OperationResult::Remembered(receipt) | OperationResult::Superseded(receipt) => Ok(wire::RememberResult {
            id: receipt.id,
            lsn: receipt.lsn,
            // Every change is applied to the indices before it is acknowledged.
            ack: wire::Ack::Indexed,
            duplicate: receipt.duplicate,
            quarantined: receipt.quarantined,
            redactions: receipt.redactions,
            near_duplicate_of: receipt.near_duplicate_of,
            replayed,
        }),
        _ => Err(unexpected()),
    }
}

fn absolute(folder: &str) -> Result<PathBuf, ErrorBody> {
    let path = PathBuf::from(folder);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(invalid(format!("folder is {folder:?}, it must be an absolute path")))
    }
}

fn folder_view(folder: mneme_actors::WatchFolder) -> wire::WatchView {
    wire::WatchView {
        folder: folder.folder.display().to_string(),
        namespace: folder.namespace,
        files: folder.files,
        scanned_at: folder.scanned_at,
        problem: folder.problem,
    }
}

fn folders(folders: Vec<mneme_actors::WatchFolder>) -> wire::WatchListResult {
    wire::WatchListResult { folders: folders.into_iter().map(folder_view).collect() }
}

fn health_words(health: &StoreHealth) -> String {
    match health {
        StoreHealth::Healthy => String::from("healthy"),
        StoreHealth::Degraded { reason } => format!("degraded: {reason}"),
        StoreHealth::ReadOnly { reason } => format!("read-only: {reason}"),
        StoreHealth::Failed { reason } => format!("failed: {reason}"),
    }
}
