//! The wiring: which actors there are, what each is given, in which order they start and stop.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mneme_base::Clock;
use mneme_engine_api::Engine;
use mneme_evolution::policy::Policy;
use mneme_memory::MemoryStore;
use ractor::{Actor, ActorRef, Message as RactorMessage};
use tokio::task::JoinHandle;

use crate::call::{ActorStatus, Slot};
use crate::evolution::{EvolutionActor, EvolutionHandle};
use crate::generator::{GeneratorActor, GeneratorHandle};
use crate::housekeeper::{HousekeeperActor, HousekeeperHandle, Intervals};
use crate::memory::{MemoryActor, MemoryHandle};
use crate::supervisor::{Arguments, Child, Fatal, FatalSender, Message, Supervisor, USUAL};
use crate::uncertainty::{UncertaintyActor, UncertaintyHandle};
use crate::watcher::{WatcherActor, WatcherHandle, WatcherOptions};

/// How long an actor may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the actors are built from.
#[derive(Debug, Clone)]
pub struct SystemOptions {
    /// Where memories are kept.
    pub store: Arc<dyn MemoryStore>,
    /// What turns text into vectors and canvases into text.
    pub engine: Arc<dyn Engine>,
    /// Where the present comes from.
    pub clock: Arc<dyn Clock>,
    /// How long the first write of a group waits for others.
    pub group_commit_wait: Duration,
    /// Operations in one group commit.
    pub group_commit_operations_max: usize,
    /// Settings of the evolution loop.
    pub policy: Policy,
    /// Whether the loop observes, trains and serves adapters.
    pub evolution_enabled: bool,
    /// Train nothing on battery.
    pub pause_on_battery: bool,
    /// Where adapters lie.
    pub adapters_dir: PathBuf,
    /// How folders are watched.
    pub watcher: WatcherOptions,
    /// How often upkeep is done.
    pub intervals: Intervals,
}

/// The running actors.
#[derive(Debug)]
pub struct System {
    /// The memory.
    pub memory: MemoryHandle,
    /// The generator.
    pub generator: GeneratorHandle,
    /// The uncertainty.
    pub uncertainty: UncertaintyHandle,
    /// The evolution.
    pub evolution: EvolutionHandle,
    /// The watcher.
    pub watcher: WatcherHandle,
    /// The housekeeper.
    pub housekeeper: HousekeeperHandle,
    /// Says why the daemon has to end, once it has.
    pub fatal: Fatal,
    supervisor: ActorRef<Message>,
    quiescing: Arc<AtomicBool>,
    ended: Mutex<Option<JoinHandle<()>>>,
}

/// The actors could not be started.
#[derive(Debug, thiserror::Error)]
#[error("actors could not be started: {0}")]
pub struct StartError(String);

impl System {
    /// Starts all actors; returns when each has read its state.
    pub async fn start(options: SystemOptions) -> Result<Self, StartError> {
        let (fatal_sender, fatal) = FatalSender::new();
        let memory = MemoryHandle::new(Arc::clone(&options.store));
        let evolution = EvolutionHandle::new(memory.clone());
        let uncertainty = UncertaintyHandle::new();
        let generator = GeneratorHandle::new();
        let watcher = WatcherHandle::new();
        let housekeeper = HousekeeperHandle::new();
        let children = vec![
            child(&memory.slot, || MemoryActor, {
                crate::memory::Arguments {
                    store: options.store,
                    engine: Arc::clone(&options.engine),
                    clock: Arc::clone(&options.clock),
                    fatal: fatal_sender.clone(),
                    changes: memory.changes.clone(),
                    group_wait: options.group_commit_wait,
                    group_max: options.group_commit_operations_max,
                }
            }),
            child(&evolution.slot, || EvolutionActor, {
                crate::evolution::Arguments {
                    memory: memory.clone(),
                    engine: Arc::clone(&options.engine),
                    clock: Arc::clone(&options.clock),
                    policy: options.policy.clone(),
                    enabled: options.evolution_enabled,
                    pause_on_battery: options.pause_on_battery,
                    folder: options.adapters_dir,
                }
            }),
            child(&uncertainty.slot, || UncertaintyActor, {
                crate::uncertainty::Arguments { evolution: evolution.clone(), seed: options.policy.seed }
            }),
            child(&generator.slot, || GeneratorActor, {
                crate::generator::Arguments {
                    engine: options.engine,
                    memory: memory.clone(),
                    uncertainty: uncertainty.clone(),
                    evolution: evolution.clone(),
                }
            }),
            child(&watcher.slot, || WatcherActor, {
                crate::watcher::Arguments { memory: memory.clone(), clock: options.clock, options: options.watcher }
            }),
            child(&housekeeper.slot, || HousekeeperActor, {
                crate::housekeeper::Arguments { memory: memory.clone(), intervals: options.intervals }
            }),
        ];
        let quiescing = Arc::new(AtomicBool::new(false));
        let arguments = Arguments { children, fatal: fatal_sender, quiescing: Arc::clone(&quiescing) };
        let (supervisor, ended) =
            Supervisor::spawn(None, Supervisor, arguments).await.map_err(|error| StartError(error.to_string()))?;
        Ok(Self {
            memory,
            generator,
            uncertainty,
            evolution,
            watcher,
            housekeeper,
            fatal,
            supervisor,
            quiescing,
            ended: Mutex::new(Some(ended)),
        })
    }

    /// How every actor is.
    pub fn statuses(&self) -> Vec<ActorStatus> {
        vec![
            self.memory.status(),
            self.generator.status(),
            self.uncertainty.status(),
            self.evolution.status(),
            self.watcher.status(),
            self.housekeeper.status(),
        ]
    }

    /// Stops all actors, leaves first, memory last: what was acknowledged is on disk when this returns.
    /// A second call finds nothing to stop.
    pub async fn stop(&self) {
        self.quiescing.store(true, Ordering::Release);
        stop(&self.watcher.slot).await;
        stop(&self.housekeeper.slot).await;
        stop(&self.generator.slot).await;
        stop(&self.uncertainty.slot).await;
        stop(&self.evolution.slot).await;
        stop(&self.memory.slot).await;
        self.supervisor.stop(None);
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(ended) = ended {
            let _ = tokio::time::timeout(STOP_TIMEOUT, ended).await;
        }
    }
}

async fn stop<M: RactorMessage>(slot: &Slot<M>) {
    let Some(actor) = slot.get() else {
        return;
    };
    if actor.stop_and_wait(None, Some(STOP_TIMEOUT)).await.is_err() {
        tracing::error!(actor = slot.name(), "actor did not stop in time and is killed");
        actor.kill();
    }
}

fn child<A>(slot: &Slot<A::Msg>, actor: impl Fn() -> A + Send + Sync + 'static, arguments: A::Arguments) -> Child
where
    A: Actor,
    A::Arguments: Clone + Sync,
{
    let name = slot.name();
    let slot = slot.clone();
    let spawn = move |supervisor: ractor::ActorCell| {
        let (slot, actor, arguments) = (slot.clone(), actor(), arguments.clone());
        let start = async move {
            let (started, _) = A::spawn_linked(None, actor, arguments, supervisor).await?;
            let cell = started.get_cell();
            slot.point_at(started);
            Ok(cell)
        };
        Box::pin(start) as std::pin::Pin<Box<dyn Future<Output = _> + Send>>
    };
    Child { name, policy: USUAL, spawn: Box::new(spawn) }
}
