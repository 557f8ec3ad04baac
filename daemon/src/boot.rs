//! Start and stop: lock, store, engine, actors, socket, in this order; and back in the reverse one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mneme_actors::housekeeper::Intervals;
use mneme_actors::{System, SystemOptions, Tunables, WatcherOptions};
use mneme_base::{BootId, Clock, SystemClock};
use mneme_config::{Config, Level, StateEngine};
use mneme_engine_api::AdapterLevel;
use mneme_evolution::policy::Policy;
use mneme_ipc::types::ReloadResult;
use mneme_ipc::{ErrorBody, ErrorKind};
use mneme_memory::gate::Quotas;
use mneme_memory::index::halves::HalfVectors;
use mneme_memory::state::EngineKind;
use mneme_memory::{DurableOptions, DurableStore, IndexOptions, MemoryStore, StoreError, StoreLimits};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::connection;
use crate::listen::{self, ListenError};
use crate::lock::{FolderLock, LockError};
use crate::service::{ReloadReply, Service, ServiceParts};

/// Wishes for a reload that wait.
const RELOADS_MAX: usize = 8;
/// The name under which the store keeps the journal for a Lance copy.
const LANCE: &str = "lance";
/// Nats in a bit: the loop counts in nats, people in bits.
const NATS_PER_BIT: f64 = std::f64::consts::LN_2;

/// The daemon could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// A folder cannot be made.
    #[error("folder {} cannot be made", folder.display())]
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The state folder is taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The store cannot be opened.
    #[error("memory store cannot be opened")]
    Store(#[from] StoreError),
    /// The socket cannot be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The actors could not be started.
    #[error(transparent)]
    Actors(#[from] mneme_actors::system::StartError),
}

impl BootError {
    /// What to do next.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Folder { .. } => Some("check the folder's owner and permissions, or set paths.state_dir"),
            Self::Lock(LockError::Held { .. }) => Some("'mneme status' talks to the one that runs"),
            Self::Listen(ListenError::PathTooLong { .. }) => Some("set paths.runtime_dir to a shorter folder"),
            Self::Listen(ListenError::Live { .. }) => Some("give this daemon another paths.runtime_dir"),
            Self::Store(StoreError::FormatTooNew { .. }) => {
                Some("install the newer version again, or restore a backup")
            }
            Self::Store(StoreError::Corrupt { .. }) => {
                Some("'mneme restore FOLDER' restores a backup; the damaged files were left as they are")
            }
            Self::Store(StoreError::Projection { .. }) => {
                Some("set memory.lance to \"\", or build the daemon with --features lance")
            }
            _ => None,
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its socket.
    pub socket: PathBuf,
    /// What serves its connections.
    pub service: Arc<Service>,
    accept: JoinHandle<()>,
    config: watch::Sender<Arc<Config>>,
    /// What it was started with.
    started: Arc<Config>,
    /// Clients' wishes for the configuration to be read again, until whoever reads it takes them.
    reloads: Option<mpsc::Receiver<ReloadReply>>,
    // Released last: until then nobody else may touch the folder.
    lock: FolderLock,
}

/// Starts a daemon. When it returns, clients are served.
pub async fn boot(config: Arc<Config>) -> Result<Daemon, BootError> {
    let boot = BootId::generate(SystemClock.now());
    let state_dir = config.paths.state_dir.clone();
    let folder = |source| BootError::Folder { folder: state_dir.clone(), source };
    listen::make_private(&state_dir).map_err(folder)?;
    let lock = FolderLock::take(&state_dir, boot)?;
    let socket = listen::open(&config.paths.socket())?;
    let store = open_store(Arc::clone(&config)).await?;
    let engine = crate::engine::choose(&config);
    let (config_sender, config_receiver) = watch::channel(Arc::clone(&config));
    if let Some(process) = &engine.process {
        tokio::spawn(crate::engine::look_after(Arc::clone(process), config_receiver.clone()));
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let options = system_options(&config, store, &engine, Arc::clone(&clock));
    let system = System::start(options).await?;
    let (reload, reloads) = mpsc::channel(RELOADS_MAX);
    let service = Arc::new(Service::new(ServiceParts { system, boot, clock, engine, config: config_receiver, reload }));
    crate::scrape::start(&service);
    send_metrics(&service);
    let path = socket.path.clone();
    let accept = tokio::spawn(accept(Arc::clone(&service), socket));
    tracing::info!(%boot, socket = %path.display(), "ready");
    Ok(Daemon { socket: path, service, accept, config: config_sender, started: config, reloads: Some(reloads), lock })
}

async fn open_store(config: Arc<Config>) -> Result<Arc<dyn MemoryStore>, StoreError> {
    let opened = tokio::task::spawn_blocking(move || {
        open_store_at(&config, &config.paths.state_dir.join(crate::restore::STORE_FOLDER))
    })
    .await;
    opened.unwrap_or_else(|_| Err(StoreError::Closed { reason: String::from("opening it panicked") }))
}

fn open_store_at(config: &Config, folder: &Path) -> Result<Arc<dyn MemoryStore>, StoreError> {
    let settings = &config.memory;
    let options = DurableOptions {
        engine: match settings.engine {
            StateEngine::Sled => EngineKind::Sled,
            StateEngine::Redb | StateEngine::Memory => EngineKind::Redb,
        },
        engine_cache_bytes: usize::try_from(settings.journal_cache.bytes()).unwrap_or(usize::MAX),
        index: IndexOptions {
            scan_threads: match settings.index_threads {
                0 => std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2)),
                count => count as usize,
            },
            // Resident memory is what a daemon that runs for months is judged by: exact vectors are read from the rows of the store.
            half_vectors: HalfVectors::None,
            ..IndexOptions::default()
        },
        ..DurableOptions::default()
    };
    let options = options.limited(store_limits(config));
    listen::make_private(folder)
        .map_err(|error| StoreError::Io { doing: "made the store's folder", source: error.into() })?;
    if settings.engine == StateEngine::Memory {
        if !settings.lance.is_empty() {
            return Err(no_lance(
                "memory.lance is set, but memory.engine = \"memory\" keeps nothing to copy".to_owned(),
            ));
        }
        tracing::warn!("memory.engine = \"memory\": nothing survives this process");
        return Ok(Arc::new(DurableStore::in_memory(options)?));
    }
    let store = DurableStore::open(folder, options)?;
    match settings.lance.as_str() {
        "" => leave_lance(&store)?,
        "auto" => {
            let place = folder.join("lance");
            let words = || format!("memory.lance = \"auto\" cannot be {}, which is no text", place.display());
            let place = place.to_str().ok_or_else(|| no_lance(words()))?;
            follow_with_lance(&store, place, settings.disk_watermark.bytes())?;
        }
        place => follow_with_lance(&store, place, settings.disk_watermark.bytes())?,
    }
    Ok(Arc::new(store))
}

/// A copy that is no longer wanted must not keep the journal for ever. Its tables are the user's to remove.
fn leave_lance(store: &DurableStore) -> Result<(), StoreError> {
    if store.follows(LANCE) {
        tracing::warn!(
            "memory.lance is off: the tables stay as they are, with what is forgotten from now on; remove them"
        );
        store.detach(LANCE)?;
    }
    Ok(())
}

/// Lets a Lance copy follow the store. Its place is looked at by the first step of upkeep: where it cannot be reached the daemon goes
/// on without it and says so in its health, the journal is kept, and every step tries again.
/// Sends the metrics where the configuration says.
fn send_metrics(service: &Arc<Service>) {
    if service.config().metrics.otlp_endpoint.is_empty() {
        return;
    }
    #[cfg(feature = "otel")]
    crate::otlp::start(service);
    // Memory matters more than its meters.
    #[cfg(not(feature = "otel"))]
    tracing::error!(
        "metrics.otlp_endpoint is set, but this daemon was built without the feature otel: nothing is sent"
    );
}

#[cfg(feature = "lance")]
fn follow_with_lance(store: &DurableStore, place: &str, disk_watermark_bytes: u64) -> Result<(), StoreError> {
    use mneme_memory_lance::{LanceOptions, LanceProjection};
    let options = LanceOptions { disk_watermark_bytes, ..LanceOptions::default() };
    let failed =
        |error: mneme_memory_lance::StorageError| StoreError::Projection { name: LANCE, source: Box::new(error) };
    let copy = LanceProjection::new(place, options).map_err(failed)?;
    store.attach(Arc::new(copy))
}

#[cfg(not(feature = "lance"))]
fn follow_with_lance(_: &DurableStore, place: &str, _: u64) -> Result<(), StoreError> {
    Err(no_lance(format!("memory.lance is {place:?}, but this daemon was built without the feature lance")))
}

/// A setting that cannot be honoured is an error and not a silence.
fn no_lance(words: String) -> StoreError {
    StoreError::Projection { name: LANCE, source: words.into() }
}

fn store_limits(config: &Config) -> StoreLimits {
    let settings = &config.memory;
    let quota = Some(settings.source_quota_per_hour).filter(|quota| *quota > 0).map(u64::from);
    StoreLimits {
        // The user's own hand knows no quota; what is told by others does.
        quotas: Quotas { untrusted: quota, reported: quota, observed: None, user: None },
        ledger_retention_ms: settings.ledger_keep.as_millis() as i64,
        disk_watermark_bytes: settings.disk_watermark.bytes(),
    }
}

fn system_options(
    config: &Config,
    store: Arc<dyn MemoryStore>,
    engine: &crate::engine::Chosen,
    clock: Arc<dyn Clock>,
) -> SystemOptions {
    SystemOptions {
        store,
        engine: Arc::clone(&engine.engine),
        clock,
        pending_operations_max: config.memory.pending_operations_max as usize,
        pending_bytes_max: config.memory.pending_bytes_max.bytes(),
        evolution_enabled: config.evolution.enabled,
        adapters_dir: config.paths.state_dir.join("adapters"),
        tunables: tunables(config),
    }
}

/// What the actors can be told while they run.
fn tunables(config: &Config) -> Tunables {
    let watch = &config.watch;
    Tunables {
        embed_timeout: config.engine.embed_timeout,
        embed_batch_max: config.engine.embed_batch_max as usize,
        levels: levels(config),
        group_commit_wait: config.memory.group_commit_wait,
        group_commit_operations_max: config.memory.group_commit_operations_max as usize,
        policy: policy(config),
        pause_on_battery: config.evolution.pause_on_battery,
        watcher: WatcherOptions {
            poll: watch.poll,
            settle: watch.settle,
            chunk_tokens: watch.chunk_tokens as usize,
            chunk_overlap_tokens: watch.chunk_overlap_tokens as usize,
            extensions: watch.extensions.clone(),
            file_bytes_max: watch.file_bytes_max.bytes(),
            files_max: watch.files_max as usize,
        },
        intervals: Intervals {
            purge: config.housekeeping.purge_interval,
            compact: config.housekeeping.compact_interval,
            ..Intervals::default()
        },
    }
}

fn policy(config: &Config) -> Policy {
    let settings = &config.evolution;
    let load_max = settings.load_max as f32;
    let mut policy = Policy {
        trigger_alpha: settings.alpha,
        cpu_seconds_a_day: f64::from(settings.cpu_minutes_per_day) * 60.0,
        load_max,
        steps_max: steps_of(settings.job_cpu_minutes_max),
        // A control network reads what the base reads, so that the schema or outline in a prompt is its signal.
        control_signal: true,
        // Stopped work goes on when the load has fallen well below what stopped it.
        load_resume: if load_max >= 1.0 { 1.0 } else { load_max * 0.6 },
        ..Policy::default()
    };
    policy.gate.gain_min = settings.epsilon_bits * NATS_PER_BIT;
    policy.gate.forgetting_max_bits = settings.forgetting_bits_max;
    // A short job is judged on fewer texts: judging must not cost more than learning.
    let held_out = 16 * settings.job_cpu_minutes_max as usize;
    policy.data.held_out_max = policy.data.held_out_max.min(held_out.max(policy.data.held_out_min));
    policy.data.replay_fraction = settings.replay_share;
    policy
}

/// The levels of change that the loop may propose.
fn levels(config: &Config) -> Vec<AdapterLevel> {
    use AdapterLevel::{Composition, ControlNet, Layers, Lora};
    let all = [(Level::L0, Composition), (Level::L1, ControlNet), (Level::L2, Lora), (Level::L3, Layers)];
    let most = all.iter().position(|(level, _)| *level == config.evolution.level_max).unwrap_or(0);
    all[..=most].iter().map(|(_, level)| *level).collect()
}

/// The optimiser steps of a job that may take so long: a third of its time each for the adapter, its placebo and the judging.
fn steps_of(cpu_minutes: u32) -> u32 {
    let usual = Policy::default();
    let seconds = f64::from(cpu_minutes) * 60.0 / 3.0;
    let steps = seconds * usual.tokens_per_cpu_second / f64::from(usual.tokens_per_step);
    (steps as u32).clamp(usual.steps_min, usual.steps_max)
}

/// Takes connections until the daemon drains.
async fn accept(service: Arc<Service>, socket: listen::Socket) {
    let own = rustix::process::geteuid().as_raw();
    // Its copies count the connections that are open.
    let open = Arc::new(());
    let mut drained = service.drained();
    loop {
        let accepted = tokio::select! {
            accepted = socket.listener.accept() => accepted,
            _ = drained.wait_for(|drained| *drained) => return,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: connections that end make room.
                tracing::warn!(%error, "connection cannot be taken");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let connections_max = service.config().server.connections_max as usize;
        let uid = stream.peer_cred().map(|peer| peer.uid());
        let allowed = uid.as_ref().is_ok_and(|uid| *uid == own || service.config().server.allowed_uids.contains(uid));
        let refusal = if !allowed {
            tracing::warn!(?uid, "connection of another user refused");
            Some(ErrorBody::new(ErrorKind::Forbidden, "this daemon serves its own user only"))
        } else if Arc::strong_count(&open) > connections_max {
            let error = ErrorBody::new(ErrorKind::Busy, format!("{connections_max} connections are open already"));
            Some(error.retry_after_ms(500))
        } else {
            None
        };
        if let Some(error) = refusal {
            service.metrics.connections_refused.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(connection::turn_away(stream, error));
            continue;
        }
        let (service, place) = (Arc::clone(&service), Arc::clone(&open));
        tokio::spawn(async move {
            connection::serve(service, stream).await;
            drop(place);
        });
    }
}

impl Daemon {
    /// Puts another configuration into force as far as it can be while running, and tells how that differs from the start.
    pub fn configure(&self, newer: &Config) -> ReloadResult {
        let in_force = Arc::new(self.config.borrow().with_live(newer));
        self.config.send_replace(Arc::clone(&in_force));
        let service = &self.service;
        service.system.memory.set_limits(store_limits(&in_force));
        service.system.tune(tunables(&in_force));
        if let Some(process) = service.process() {
            process.set_options(crate::engine::process_options(&in_force, process.options().program.clone()));
        }
        let applied = self.started.diff(&in_force).into_iter().map(|change| format!("{} = {}", change.key, change.to));
        let waiting = in_force.diff(newer).into_iter().map(|change| change.key.to_owned());
        ReloadResult { applied: applied.collect(), restart_needed: waiting.collect() }
    }

    /// Clients' wishes for the configuration to be read again. Whoever takes them answers each; until then they are refused.
    pub fn take_reloads(&mut self) -> Option<mpsc::Receiver<ReloadReply>> {
        self.reloads.take()
    }

    /// Waits until the daemon has to end by itself, and says why: a fault, or a client's drain.
    pub async fn ended(&self) -> Option<String> {
        let mut fatal = self.service.system.fatal.clone();
        let mut drained = self.service.drained();
        tokio::select! {
            reason = fatal.wait_for(Option::is_some) => reason.ok().and_then(|reason| reason.clone()),
            _ = drained.wait_for(|drained| *drained) => None,
        }
    }

    /// Stops in order: no new requests, what is under way ends within the drain timeout, then the actors, the memory last. Gives back
    /// the folder's lock: blocking work that was left behind may still write, and nobody else may start before it has ended.
    pub async fn stop(self) -> FolderLock {
        let Self { socket, service, accept, config: _config, started: _, reloads: _, lock } = self;
        service.start_draining();
        let until = tokio::time::Instant::now() + service.config().server.drain_timeout;
        while service.in_flight() > 0 && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        if service.in_flight() > 0 {
            tracing::warn!(in_flight = service.in_flight(), "requests were cut off by the drain timeout");
        }
        service.cancel_tasks();
        // The accept task owns the socket: with its end the socket's file is gone.
        let _ = tokio::time::timeout(Duration::from_secs(1), accept).await;
        service.system.stop().await;
        tracing::info!(socket = %socket.display(), "stopped");
        lock
    }
}
