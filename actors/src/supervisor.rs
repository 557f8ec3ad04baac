//! Restarts actors that fail, within limits; over a limit, or when a part says that it can promise nothing more, it ends the daemon.
//!
//! Called by: the system at start and shutdown. Owns: the children. Capacity: one message per child and event. A restart of the
//! supervisor itself does not happen: its end is the daemon's end.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, SupervisionEvent};
use tokio::sync::watch;
use tokio::time::Instant;

/// Why the daemon has to end, once something has said so.
pub type Fatal = watch::Receiver<Option<String>>;

/// Says that the daemon has to end. The first reason stays.
#[derive(Debug, Clone)]
pub struct FatalSender(Arc<watch::Sender<Option<String>>>);

impl FatalSender {
    /// A sender and the receiver of its reason.
    pub fn new() -> (Self, Fatal) {
        let (sender, receiver) = watch::channel(None);
        (Self(Arc::new(sender)), receiver)
    }

    /// Asks for the end of the daemon.
    pub fn report(&self, reason: impl Into<String>) {
        let reason = reason.into();
        tracing::error!(reason, "daemon has to end");
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(reason);
            }
            is_first
        });
    }
}

/// How a child is restarted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RestartPolicy {
    /// Restarts within the window; one more escalates.
    pub(crate) restarts_max: usize,
    /// The window.
    pub(crate) window: Duration,
    /// Pause before a restart; doubles with each restart of the window.
    pub(crate) backoff: Duration,
}

/// The usual policy: five restarts a minute, from 20 ms on.
pub(crate) const USUAL: RestartPolicy =
    RestartPolicy { restarts_max: 5, window: Duration::from_mins(1), backoff: Duration::from_millis(20) };

type SpawnFuture = Pin<Box<dyn Future<Output = Result<ActorCell, ractor::SpawnErr>> + Send>>;
/// Starts a child under a supervisor and points its slot at it.
pub(crate) type Spawner = Box<dyn Fn(ActorCell) -> SpawnFuture + Send + Sync>;

/// One row of the supervision table.
pub(crate) struct Child {
    /// Its name.
    pub(crate) name: &'static str,
    /// How it is restarted.
    pub(crate) policy: RestartPolicy,
    /// Starts it.
    pub(crate) spawn: Spawner,
}

impl std::fmt::Debug for Child {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Child").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What the supervisor is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// Start that child again.
    Restart(usize),
}

/// What the supervisor starts from.
pub(crate) struct Arguments {
    pub(crate) children: Vec<Child>,
    pub(crate) fatal: FatalSender,
    /// True while the children are being stopped on purpose. Shared and no message: the end of a child overtakes messages.
    pub(crate) quiescing: Arc<AtomicBool>,
}

/// What the supervisor knows.
pub(crate) struct State {
    children: Vec<Child>,
    running: HashMap<ActorId, usize>,
    restarts: Vec<VecDeque<Instant>>,
    fatal: FatalSender,
    quiescing: Arc<AtomicBool>,
}

/// The supervisor.
pub(crate) struct Supervisor;

impl Actor for Supervisor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let restarts = arguments.children.iter().map(|_| VecDeque::new()).collect();
        let mut state = State {
            children: arguments.children,
            running: HashMap::new(),
            restarts,
            fatal: arguments.fatal,
            quiescing: arguments.quiescing,
        };
        for index in 0..state.children.len() {
            state.start(&myself, index).await?;
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Message::Restart(index) = message;
        state.restart(&myself, index).await;
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(actor, error) => {
                state.child_ended(&myself, actor.get_id(), &error.to_string());
            }
            SupervisionEvent::ActorTerminated(actor, _, reason) => {
                state.child_ended(&myself, actor.get_id(), reason.as_deref().unwrap_or("it stopped"));
            }
            _ => {}
        }
        Ok(())
    }
}

impl State {
    async fn start(&mut self, myself: &ActorRef<Message>, index: usize) -> Result<(), ActorProcessingErr> {
        let cell = (self.children[index].spawn)(myself.get_cell()).await?;
        self.running.insert(cell.get_id(), index);
        Ok(())
    }

    fn child_ended(&mut self, myself: &ActorRef<Message>, actor: ActorId, reason: &str) {
        if let Some(index) = self.running.remove(&actor) {
            self.failed(myself, index, reason);
        }
    }

    /// Starts a child again after a pause, or gives up. A start that failed counts as one more failure.
    fn failed(&mut self, myself: &ActorRef<Message>, index: usize, reason: &str) {
        if self.quiescing.load(Ordering::Acquire) {
            return;
        }
        let child = &self.children[index];
        let now = Instant::now();
        let restarts = &mut self.restarts[index];
        while restarts.front().is_some_and(|at| now.duration_since(*at) > child.policy.window) {
            restarts.pop_front();
        }
        if restarts.len() >= child.policy.restarts_max {
            self.fatal.report(format!(
                "{} failed more than {} times in {} s; last reason: {reason}",
                child.name,
                child.policy.restarts_max,
                child.policy.window.as_secs()
            ));
            return;
        }
        let pause = child.policy.backoff * (1_u32 << restarts.len().min(10));
        restarts.push_back(now);
        tracing::warn!(
            actor = child.name,
            reason,
            pause_ms = pause.as_millis() as u64,
            "actor failed and is restarted"
        );
        myself.send_after(pause, move || Message::Restart(index));
    }

    async fn restart(&mut self, myself: &ActorRef<Message>, index: usize) {
        if self.quiescing.load(Ordering::Acquire) {
            return;
        }
        if let Err(error) = self.start(myself, index).await {
            self.failed(myself, index, &format!("it could not be started again: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::call::Slot;

    /// Fails when it is told anything, and at its second and third start.
    struct Frail;

    impl Actor for Frail {
        type Msg = Message;
        type State = ();
        type Arguments = Arc<AtomicUsize>;

        async fn pre_start(&self, _: ActorRef<Message>, starts: Self::Arguments) -> Result<(), ActorProcessingErr> {
            let before = starts.fetch_add(1, Ordering::AcqRel);
            if (1..=2).contains(&before) { Err("not yet".into()) } else { Ok(()) }
        }

        async fn handle(&self, _: ActorRef<Message>, _: Message, (): &mut ()) -> Result<(), ActorProcessingErr> {
            Err("asked to".into())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_that_fails_counts_as_one_more_failure_and_is_tried_again() {
        let (fatal, reason) = FatalSender::new();
        let starts = Arc::new(AtomicUsize::new(0));
        let slot: Slot<Message> = Slot::new("frail", 1);
        let (counted, pointed) = (Arc::clone(&starts), slot.clone());
        let spawn: Spawner = Box::new(move |supervisor| {
            let (counted, pointed) = (Arc::clone(&counted), pointed.clone());
            Box::pin(async move {
                let (started, _) = Frail::spawn_linked(None, Frail, counted, supervisor).await?;
                let cell = started.get_cell();
                pointed.point_at(started);
                Ok(cell)
            })
        });
        let children = vec![Child { name: "frail", policy: USUAL, spawn }];
        let arguments = Arguments { children, fatal, quiescing: Arc::default() };
        let (supervisor, _ended) = Supervisor::spawn(None, Supervisor, arguments).await.unwrap();
        slot.cast(Message::Restart(0));
        while starts.load(Ordering::Acquire) < 4 || slot.get().is_none() {
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(*reason.borrow(), None, "two failed starts are within the limit");
        }
        supervisor.stop(None);
    }
}
