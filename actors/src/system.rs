//! The wiring: which actors there are, what each is given, in which order they start and stop.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mneme_base::Clock;
use mneme_engine_api::Engine;
use mneme_memory::MemoryStore;
use ractor::{Actor, ActorRef, Message as RactorMessage};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::call::{ActorStatus, Slot};
use crate::evolution::{EvolutionActor, EvolutionHandle};
use crate::generator::{GeneratorActor, GeneratorHandle};
use crate::housekeeper::{HousekeeperActor, HousekeeperHandle};
use crate::memory::{MemoryActor, MemoryHandle};
use crate::supervisor::{Arguments, Child, Fatal, FatalSender, Message, Supervisor, USUAL};
use crate::tunables::{Tunables, Tuned};
use crate::uncertainty::{UncertaintyActor, UncertaintyHandle};
use crate::watcher::{WatcherActor, WatcherHandle};

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
    /// Changes that wait for the journal; more are told that the memory is busy.
    pub pending_operations_max: usize,
    /// Bytes of text that wait for the journal; more are told that the memory is busy.
    pub pending_bytes_max: u64,
    /// Whether the loop observes, trains and serves adapters.
    pub evolution_enabled: bool,
    /// Where adapters lie.
    pub adapters_dir: PathBuf,
    /// What can be changed later by [`System::tune`].
    pub tunables: Tunables,
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
    tunables: watch::Sender<Arc<Tunables>>,
    supervisor: ActorRef<Message>,
    quiescing: Arc<AtomicBool>,
    ended: Mutex<Option<JoinHandle<()>>>,
}

/// The actors could not be started.
#[derive(Debug, thiserror::Error)]
#[error("actors could not be started: {0}")]
pub struct StartError(String);

impl StartError {
    /// An actor that did not start, and why.
    pub fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

impl System {
    /// Starts all actors; returns when each has read its state.
    pub async fn start(options: SystemOptions) -> Result<Self, StartError> {
        let (fatal_sender, fatal) = FatalSender::new();
        let seed = options.tunables.policy.seed;
        let (tunables, tuned) = Tuned::new(options.tunables);
        let memory =
            MemoryHandle::new(Arc::clone(&options.store), options.pending_operations_max, options.pending_bytes_max);
        let evolution = EvolutionHandle::new(memory.clone(), Arc::clone(&options.engine), options.adapters_dir.clone());
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
                    queue_max: options.pending_operations_max,
                    tuned: tuned.clone(),
                }
            }),
            child(&evolution.slot, || EvolutionActor, {
                crate::evolution::Arguments {
                    memory: memory.clone(),
                    engine: Arc::clone(&options.engine),
                    clock: Arc::clone(&options.clock),
                    tuned: tuned.clone(),
                    enabled: options.evolution_enabled,
                    folder: options.adapters_dir,
                    last_row: Arc::clone(&evolution.last_row),
                }
            }),
            child(&uncertainty.slot, || UncertaintyActor, {
                crate::uncertainty::Arguments { evolution: evolution.clone(), seed }
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
                crate::watcher::Arguments { memory: memory.clone(), clock: options.clock, tuned: tuned.clone() }
            }),
            child(&housekeeper.slot, || HousekeeperActor, {
                crate::housekeeper::Arguments { memory: memory.clone(), tuned }
            }),
        ];
        let quiescing = Arc::new(AtomicBool::new(false));
        let arguments = Arguments { children, fatal: fatal_sender, quiescing: Arc::clone(&quiescing) };
        let (supervisor, ended) =
            Supervisor::spawn(None, Supervisor, arguments).await.map_err(|error| StartError::new(error.to_string()))?;
        Ok(Self {
            memory,
            generator,
            uncertainty,
            evolution,
            watcher,
            housekeeper,
            fatal,
            tunables,
            supervisor,
            quiescing,
            ended: Mutex::new(Some(ended)),
        })
    }

    /// Puts other settings into force, each from its next use on.
    pub fn tune(&self, tunables: Tunables) {
        self.tunables.send_replace(Arc::new(tunables));
        self.evolution.slot.cast(crate::evolution::Message::Tuned);
        self.watcher.slot.cast(crate::watcher::Message::Tuned);
        self.housekeeper.slot.cast(crate::housekeeper::Message::Tuned);
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mneme_base::{ManualClock, MemoryId, Namespace, OpId, Timestamp};
    use mneme_engine_api::{AbsentEngine, FakeEngine};
    use mneme_memory::{DurableOptions, InMemoryStore, NewMemory, Operation, OperationKind, RecallQuery, StoreError};

    use super::*;
    use crate::call::{ActorError, deadline_in};
    use crate::memory::RecallAsk;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);
    const SOON: Duration = Duration::from_secs(20);

    async fn start(engine: Arc<dyn Engine>, folder: &std::path::Path) -> System {
        let options = SystemOptions {
            store: Arc::new(InMemoryStore::new(DurableOptions::default())),
            engine,
            clock: Arc::new(ManualClock::new(NOW)),
            pending_operations_max: 4_096,
            pending_bytes_max: 1 << 20,
            evolution_enabled: true,
            adapters_dir: folder.join("adapters"),
            tunables: Tunables { group_commit_wait: Duration::ZERO, pause_on_battery: false, ..Tunables::default() },
        };
        System::start(options).await.unwrap()
    }

    fn remember(text: &str) -> Operation {
        let memory = NewMemory::note(Namespace::default(), text, "test");
        Operation { op_id: OpId::generate(), kind: OperationKind::Remember(memory) }
    }

    async fn recall(system: &System) -> Result<mneme_memory::Recall, ActorError> {
        let query = RecallQuery::new(Namespace::default(), "when is tea", 3);
        system.memory.recall(RecallAsk::new(query), deadline_in(SOON)).await
    }

    #[tokio::test]
    async fn what_is_remembered_is_recalled_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let system = start(Arc::new(FakeEngine::default()), folder.path()).await;
        system.memory.apply(remember("tea is at four"), deadline_in(SOON)).await.unwrap();
        let found = recall(&system).await.unwrap();
        assert_eq!(found.hits[0].memory.text, "tea is at four");
        // Its vector follows behind; then the answer is whole.
        let until = deadline_in(SOON);
        while !recall(&system).await.unwrap().degraded.is_empty() {
            assert!(tokio::time::Instant::now() < until, "its vector never came");
        }
        system.stop().await;
    }

    #[tokio::test]
    async fn without_an_engine_recall_answers_from_text_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let engine = Arc::new(AbsentEngine { reason: "none".into() });
        let system = start(engine, folder.path()).await;
        system.memory.apply(remember("tea is at four"), deadline_in(SOON)).await.unwrap();
        let recall = recall(&system).await.unwrap();
        assert_eq!(recall.hits.len(), 1);
        assert_eq!(recall.degraded, ["embedding"]);
        system.stop().await;
    }

    #[tokio::test]
    async fn a_panicking_actor_is_restarted_and_the_others_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let system = start(Arc::new(FakeEngine::default()), folder.path()).await;
        system.memory.apply(remember("tea is at four"), deadline_in(SOON)).await.unwrap();
        system.memory.slot.cast(crate::memory::Message::Panic);
        let until = deadline_in(SOON);
        while system.memory.status().restarts == 0 {
            assert!(tokio::time::Instant::now() < until, "it was not restarted");
            // Others answer meanwhile.
            assert!(system.watcher.list(until).await.unwrap().is_empty());
        }
        assert_eq!(recall(&system).await.unwrap().hits.len(), 1);
        assert!(system.fatal.borrow().is_none());
        system.stop().await;
    }

    #[tokio::test]
    async fn an_actor_that_keeps_failing_ends_the_daemon_with_a_reason() {
        let folder = tempfile::tempdir().unwrap();
        let system = start(Arc::new(FakeEngine::default()), folder.path()).await;
        let mut fatal = system.fatal.clone();
        let until = deadline_in(SOON);
        while fatal.borrow().is_none() {
            assert!(tokio::time::Instant::now() < until, "it was restarted for ever");
            system.memory.slot.cast(crate::memory::Message::Panic);
            let _ = tokio::time::timeout(Duration::from_millis(5), fatal.changed()).await;
        }
        let reason = fatal.borrow().clone().unwrap();
        assert!(reason.starts_with("memory failed more than 5 times in 60 s"), "{reason}");
        system.stop().await;
    }

    #[tokio::test]
    async fn a_deadline_that_has_passed_is_told_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let system = start(Arc::new(FakeEngine::default()), folder.path()).await;
        let result = system.memory.get(MemoryId::from_bytes([0; 16]), tokio::time::Instant::now()).await;
        assert!(matches!(result, Err(ActorError::DeadlineExceeded { actor: "memory" })));
        system.stop().await;
    }

    /// A store whose disk has failed.
    #[derive(Debug)]
    struct Broken;

    impl MemoryStore for Broken {
        fn apply(&self, _: &[Operation], _: Timestamp) -> Result<Vec<mneme_memory::OperationOutcome>, StoreError> {
            Err(StoreError::Io { doing: "committed", source: "input/output error".into() })
        }
        fn get(&self, _: MemoryId) -> Result<Option<mneme_memory::Memory>, StoreError> {
            Ok(None)
        }
        fn text_to_embed(&self, query: &RecallQuery) -> String {
            query.text.clone()
        }
        fn recall(
            &self,
            _: &RecallQuery,
            _: Option<&mneme_base::Embedding>,
            _: Timestamp,
        ) -> Result<mneme_memory::Recall, StoreError> {
            Ok(mneme_memory::Recall::default())
        }
        fn scan(&self, _: &mneme_memory::Scan) -> Result<Vec<mneme_memory::Memory>, StoreError> {
            Ok(Vec::new())
        }
        fn set_generation(&self, _: &mneme_base::EmbeddingGeneration) -> Result<(), StoreError> {
            Ok(())
        }
        fn set_limits(&self, _: mneme_memory::StoreLimits) {}
        fn pending_embeddings(&self, _: usize) -> Result<Vec<mneme_memory::PendingEmbedding>, StoreError> {
            Ok(Vec::new())
        }
        fn store_embeddings(
            &self,
            _: &mneme_base::EmbeddingGeneration,
            _: Vec<(MemoryId, Vec<mneme_base::Embedding>)>,
        ) -> Result<(), StoreError> {
            Ok(())
        }
        fn vectors(&self, _: &[MemoryId]) -> Result<Vec<Option<mneme_base::Embedding>>, StoreError> {
            Ok(Vec::new())
        }
        fn documents(
            &self,
            _: &str,
            _: &str,
            _: Option<&str>,
            _: usize,
        ) -> Result<Vec<mneme_memory::Document>, StoreError> {
            Ok(Vec::new())
        }
        fn maintain(
            &self,
            _: mneme_memory::MaintenanceTask,
            _: Timestamp,
        ) -> Result<mneme_memory::MaintenanceReport, StoreError> {
            Ok(mneme_memory::MaintenanceReport::default())
        }
        fn backup(&self, _: &std::path::Path) -> Result<mneme_memory::MaintenanceReport, StoreError> {
            Ok(mneme_memory::MaintenanceReport::default())
        }
        fn import(&self, _: Vec<mneme_memory::Memory>) -> Result<mneme_memory::transfer::ImportReport, StoreError> {
            Err(StoreError::Closed { reason: "input/output error".into() })
        }
        fn stats(&self) -> mneme_memory::StoreStats {
            mneme_memory::StoreStats::default()
        }
    }

    #[tokio::test]
    async fn a_failed_store_acknowledges_nothing_and_ends_the_daemon_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let options = SystemOptions {
            store: Arc::new(Broken),
            engine: Arc::new(FakeEngine::default()),
            clock: Arc::new(ManualClock::new(NOW)),
            pending_operations_max: 4_096,
            pending_bytes_max: 1 << 20,
            evolution_enabled: false,
            adapters_dir: folder.path().join("adapters"),
            tunables: Tunables { group_commit_wait: Duration::ZERO, ..Tunables::default() },
        };
        let system = System::start(options).await.unwrap();
        let result = system.memory.apply(remember("tea is at four"), deadline_in(SOON)).await;
        assert!(matches!(result, Err(ActorError::Store(_))), "{result:?}");
        let mut fatal = system.fatal.clone();
        let reason = fatal.wait_for(Option::is_some).await.unwrap().clone().unwrap();
        assert!(reason.contains("committed") && reason.contains("input/output error"), "{reason}");
        system.stop().await;
    }
}
