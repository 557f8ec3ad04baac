//! What each method does: from parameters to actors and back. One instance serves every connection.
//!
//! The table of methods is here; each family of methods is a file of its own: [`memory`], [`generation`], [`tasks`], [`evolution`],
//! [`admin`].

mod admin;
mod evolution;
mod generation;
mod memory;
mod tasks;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mneme_actors::{ActorError, System};
use mneme_base::{BootId, Clock, Lsn, OpId, TaskId, Timestamp};
use mneme_config::Config;
use mneme_engine_api::EngineProcess;
use mneme_evolution::machine::Command;
use mneme_ipc::types as wire;
use mneme_ipc::types::{TaskEvent, TaskState};
use mneme_ipc::{Call, ErrorBody, ErrorKind, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN};
use mneme_memory::domain::{RECALL_LIMIT_MAX, TEXT_BYTES_MAX};
use mneme_memory::{OperationOutcome, OperationResult, StoreHealth};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::convert::{self, Caller, invalid};
use crate::metrics::Metrics;
use crate::tasks::Tasks;

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
pub(crate) const UPKEEP_TIMEOUT: Duration = Duration::from_mins(30);
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
    reload: mpsc::Sender<ReloadReply>,
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
    /// Takes wishes for the configuration to be read again.
    pub reload: mpsc::Sender<ReloadReply>,
}

/// Where the outcome of a reload goes.
pub type ReloadReply = oneshot::Sender<Result<wire::ReloadResult, ErrorBody>>;

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
            reload: parts.reload,
            in_flight: AtomicU64::new(0),
        }
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// This run.
    #[cfg(feature = "otel")]
    pub(crate) fn boot(&self) -> BootId {
        self.boot
    }

    /// When the daemon started.
    #[cfg(feature = "otel")]
    pub(crate) fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// The time of the daemon's clock.
    #[cfg(feature = "otel")]
    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
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

    /// Asks every task that is under way to stop.
    pub fn cancel_tasks(&self) {
        self.tasks.cancel_all();
    }

    /// The engine's process, where it is one.
    pub fn process(&self) -> Option<&Arc<EngineProcess>> {
        self.process.as_ref()
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
            Call::Map(params) => answer(self.map(*params, &context).await?),
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
            Call::EvolveRetire(params) => self.evolve(Command::Retire { adapter: params.adapter }, &context).await,
            Call::EvolvePin(params) => {
                self.evolve(Command::Pin { adapter: params.adapter, pinned: params.pinned }, &context).await
            }
            Call::EvolvePause(_) => self.evolve(Command::Pause, &context).await,
            Call::EvolveResume(_) => self.evolve(Command::Resume, &context).await,
            Call::EvolveRun(_) => self.evolve(Command::RunNow { situation: None }, &context).await,
            Call::EvolveExport(params) => answer(self.evolve_export(*params, &context).await?),
            Call::EvolveImport(params) => answer(self.evolve_import(*params, &context).await?),
            Call::WatchAdd(params) => answer(self.watch_add(*params, &context).await?),
            Call::WatchRemove(params) => answer(self.watch_remove(*params, &context).await?),
            Call::WatchList(_) => answer(folders(self.system.watcher.list(context.deadline).await.map_err(told)?)),
            Call::Status(_) => answer(self.status()),
            Call::Backup(params) => answer(self.backup(params.folder, context.deadline).await?),
            Call::Compact(_) => answer(self.compact(context.deadline).await?),
            Call::Reload(_) => answer(self.reload(context.deadline).await?),
            Call::Metrics(_) => answer(wire::MetricsResult { text: self.prometheus() }),
            Call::Drain(_) => {
                self.start_draining();
                // This request itself is one of them.
                answer(wire::DrainResult { in_flight: self.in_flight().saturating_sub(1) })
            }
        }
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
