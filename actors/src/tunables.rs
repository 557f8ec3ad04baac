//! What a running system can be told anew: every actor reads these when it uses them, so that a new value holds from the next
//! use on, and an actor that is restarted starts from the newest.

use std::sync::Arc;
use std::time::Duration;

use mneme_engine_api::AdapterLevel;
use mneme_evolution::policy::Policy;
use tokio::sync::watch;

use crate::housekeeper::Intervals;
use crate::watcher::WatcherOptions;

/// Settings that may change while the actors run.
#[derive(Debug, Clone)]
pub struct Tunables {
    /// How long one batch of embeddings may take: a cold engine loads its models in it.
    pub embed_timeout: Duration,
    /// Memories embedded in one batch: twice as many texts, for each has two views.
    pub embed_batch_max: usize,
    /// How long the first write of a group waits for others.
    pub group_commit_wait: Duration,
    /// Operations in one group commit.
    pub group_commit_operations_max: usize,
    /// Levels of change that the loop may propose.
    pub levels: Vec<AdapterLevel>,
    /// Settings of the evolution loop. The seed and what is learned already stay.
    pub policy: Policy,
    /// Train nothing on battery.
    pub pause_on_battery: bool,
    /// How folders are watched.
    pub watcher: WatcherOptions,
    /// How often upkeep is done.
    pub intervals: Intervals,
}

impl Default for Tunables {
    fn default() -> Self {
        Self {
            embed_timeout: Duration::from_secs(30),
            embed_batch_max: 32,
            group_commit_wait: Duration::from_millis(2),
            group_commit_operations_max: 256,
            levels: vec![AdapterLevel::Composition, AdapterLevel::ControlNet, AdapterLevel::Lora],
            policy: Policy::default(),
            pause_on_battery: true,
            watcher: WatcherOptions::default(),
            intervals: Intervals::default(),
        }
    }
}

/// Reads the newest settings.
#[derive(Debug, Clone)]
pub(crate) struct Tuned(watch::Receiver<Arc<Tunables>>);

impl Tuned {
    pub(crate) fn new(tunables: Tunables) -> (watch::Sender<Arc<Tunables>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(tunables));
        (sender, Self(receiver))
    }

    pub(crate) fn get(&self) -> Arc<Tunables> {
        Arc::clone(&self.0.borrow())
    }
}
