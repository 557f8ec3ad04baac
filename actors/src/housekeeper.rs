//! Does upkeep on time: purge, compaction, index, cleanup, audit, and feeding what follows the store. Each step stands alone, so
//! that one that fails stops no other.
//!
//! Called by: daemon (for the state of the steps). Calls: memory. Owns: the timers. Capacity: one step at a time. A restart
//! begins the intervals anew.

use std::time::Duration;

use mneme_memory::MaintenanceTask;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use crate::call::{ActorStatus, Slot, deadline_in};
use crate::memory::MemoryHandle;
use crate::tunables::Tuned;

/// A step may take this long before it counts as failed.
const STEP_TIMEOUT: Duration = Duration::from_mins(10);
/// The steps, in the order in which they are begun.
const STEPS: [MaintenanceTask; 6] = [
    MaintenanceTask::Purge,
    MaintenanceTask::Compact,
    MaintenanceTask::Index,
    MaintenanceTask::Cleanup,
    MaintenanceTask::Audit,
    MaintenanceTask::Follow,
];
/// Failures of one step in a row before it is called out as an error.
const FAILURES_ALARM: u32 = 3;

/// How often each step is done.
#[derive(Debug, Clone, Copy)]
pub struct Intervals {
    /// Forgotten bytes are made unreadable.
    pub purge: Duration,
    /// Files are rewritten, indices brought up, old files removed.
    pub compact: Duration,
    /// Approximate search is compared with exact search: this reads every vector twice.
    pub audit: Duration,
    /// What follows the store, such as a columnar copy, is brought up. Each time costs a few small files where something changed.
    pub follow: Duration,
}

impl Default for Intervals {
    fn default() -> Self {
        Self {
            purge: Duration::from_hours(1),
            compact: Duration::from_mins(10),
            audit: Duration::from_hours(24),
            follow: Duration::from_secs(30),
        }
    }
}

/// Where the housekeeper can be asked.
#[derive(Debug, Clone)]
pub struct HousekeeperHandle {
    pub(crate) slot: Slot<Message>,
}

impl HousekeeperHandle {
    pub(crate) fn new() -> Self {
        Self { slot: Slot::new("housekeeper", 1) }
    }

    /// How the actor is.
    pub fn status(&self) -> ActorStatus {
        self.slot.status()
    }
}

/// What the housekeeper is told.
pub(crate) enum Message {
    /// Do this step, then wait for its interval. Timers that were set before the last [`Message::Tuned`] are void.
    Step(MaintenanceTask, u64),
    /// The settings are new: all intervals begin anew.
    Tuned,
}

/// What the housekeeper starts from.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) memory: MemoryHandle,
    pub(crate) tuned: Tuned,
}

/// What the housekeeper owns.
pub(crate) struct State {
    arguments: Arguments,
    failures: Vec<(MaintenanceTask, u32)>,
    /// Counts changes of the settings, so that each step has one timer.
    tuning: u64,
}

/// The housekeeper's actor.
pub(crate) struct HousekeeperActor;

impl Actor for HousekeeperActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let state = State { arguments, failures: Vec::new(), tuning: 0 };
        STEPS.into_iter().for_each(|step| state.later(&myself, step));
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Step(step, tuning) if tuning == state.tuning => {
                state.step(step).await;
                state.later(&myself, step);
            }
            Message::Step(..) => {}
            Message::Tuned => {
                state.tuning += 1;
                STEPS.into_iter().for_each(|step| state.later(&myself, step));
            }
        }
        Ok(())
    }
}

impl State {
    fn later(&self, myself: &ActorRef<Message>, step: MaintenanceTask) {
        let tuning = self.tuning;
        let wait = interval(&self.arguments.tuned.get().intervals, step);
        myself.send_after(wait, move || Message::Step(step, tuning));
    }

    async fn step(&mut self, step: MaintenanceTask) {
        match self.arguments.memory.maintain(step, deadline_in(STEP_TIMEOUT)).await {
            Ok(report) => {
                self.failures.retain(|(failed, _)| *failed != step);
                if report.items > 0 && step == MaintenanceTask::Follow {
                    tracing::debug!(items = report.items, "what follows the store was brought up");
                } else if report.items > 0 {
                    tracing::info!(?step, items = report.items, bytes_freed = report.bytes_freed, "upkeep done");
                }
            }
            Err(error) => {
                let index = self.failures.iter().position(|(failed, _)| *failed == step).unwrap_or_else(|| {
                    self.failures.push((step, 0));
                    self.failures.len() - 1
                });
                self.failures[index].1 += 1;
                let count = self.failures[index].1;
                if count >= FAILURES_ALARM {
                    tracing::error!(?step, count, %error, "upkeep keeps failing");
                } else {
                    tracing::warn!(?step, %error, "upkeep failed");
                }
            }
        }
    }
}

const fn interval(intervals: &Intervals, step: MaintenanceTask) -> Duration {
    match step {
        MaintenanceTask::Purge => intervals.purge,
        MaintenanceTask::Audit => intervals.audit,
        MaintenanceTask::Follow => intervals.follow,
        _ => intervals.compact,
    }
}
