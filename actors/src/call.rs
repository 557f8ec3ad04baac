//! How actors are called: with a permit that bounds the queue, a deadline, and a slot that the supervisor re-points.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use mneme_engine_api::EngineError;
use mneme_memory::{Refusal, StoreError};
use ractor::{ActorRef, Message};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;
use tracing::Span;

/// What a caller is told to wait when a queue is full (milliseconds): about the time of a few group commits.
const BUSY_RETRY_MS: u64 = 50;
/// What a caller is told to wait while an actor is being restarted (milliseconds).
const RESTART_RETRY_MS: u64 = 200;

/// Why an actor gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ActorError {
    /// The queue is full, or the actor is being restarted.
    #[error("{actor} is busy")]
    Busy {
        /// Which actor.
        actor: &'static str,
        /// When to come again (milliseconds).
        retry_after_ms: u64,
    },
    /// The deadline passed before the answer was there.
    #[error("deadline passed before {actor} answered")]
    DeadlineExceeded {
        /// Which actor.
        actor: &'static str,
    },
    /// The actor stopped, by shutdown or by a fault, before it answered.
    #[error("{actor} stopped before it answered")]
    Stopped {
        /// Which actor.
        actor: &'static str,
    },
    /// The request was refused: data, not a fault.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The store failed or refuses.
    #[error(transparent)]
    Store(#[from] Arc<StoreError>),
    /// The engine failed or refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A parameter is out of its bounds.
    #[error("{field} {problem}")]
    Invalid {
        /// Which parameter.
        field: &'static str,
        /// Its value and its bound.
        problem: String,
    },
    /// What was named does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What was named.
        what: String,
    },
}

impl ActorError {
    pub(crate) fn invalid(field: &'static str, problem: impl Into<String>) -> Self {
        Self::Invalid { field, problem: problem.into() }
    }
}

impl From<StoreError> for ActorError {
    fn from(error: StoreError) -> Self {
        Self::Store(Arc::new(error))
    }
}

/// An actor as it looks from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActorStatus {
    /// Its name.
    pub name: &'static str,
    /// Whether it runs.
    pub running: bool,
    /// How often it was restarted.
    pub restarts: u64,
    /// Requests that it is dealing with.
    pub in_flight: usize,
    /// Requests that it takes at once.
    pub capacity: usize,
}

/// One call: its input, where the answer goes, and what travels with it.
#[derive(Debug)]
pub(crate) struct Request<I, O> {
    /// What is asked.
    pub(crate) input: I,
    /// Where the answer goes; closed when nobody waits any more.
    pub(crate) reply: oneshot::Sender<Result<O, ActorError>>,
    /// Keeps the place in the queue until the work is done.
    pub(crate) permit: OwnedSemaphorePermit,
    /// When the caller gives up.
    pub(crate) deadline: Instant,
    /// The request's span, from the socket on.
    pub(crate) span: Span,
}

/// Where an actor can be reached; the supervisor re-points it at a restart.
pub(crate) struct Slot<M: Message> {
    name: &'static str,
    actor: Arc<RwLock<Option<ActorRef<M>>>>,
    permits: Arc<Semaphore>,
    capacity: usize,
    restarts: Arc<std::sync::atomic::AtomicU64>,
}

impl<M: Message> std::fmt::Debug for Slot<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<M: Message> Clone for Slot<M> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            actor: Arc::clone(&self.actor),
            permits: Arc::clone(&self.permits),
            capacity: self.capacity,
            restarts: Arc::clone(&self.restarts),
        }
    }
}

impl<M: Message> Slot<M> {
    /// An empty slot for an actor that takes so many requests at once.
    pub(crate) fn new(name: &'static str, capacity: usize) -> Self {
        Self {
            name,
            actor: Arc::default(),
            permits: Arc::new(Semaphore::new(capacity)),
            capacity,
            restarts: Arc::default(),
        }
    }

    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// Points the slot at a new actor.
    pub(crate) fn point_at(&self, actor: ActorRef<M>) {
        let mut slot = self.actor.write().unwrap_or_else(PoisonError::into_inner);
        if slot.replace(actor).is_some() {
            self.restarts.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// The actor, if it runs.
    pub(crate) fn get(&self) -> Option<ActorRef<M>> {
        let slot = self.actor.read().unwrap_or_else(PoisonError::into_inner).clone();
        slot.filter(|actor| actor.get_status() <= ractor::ActorStatus::Running)
    }

    pub(crate) fn status(&self) -> ActorStatus {
        ActorStatus {
            name: self.name,
            running: self.get().is_some(),
            restarts: self.restarts.load(std::sync::atomic::Ordering::Relaxed),
            in_flight: self.capacity - self.permits.available_permits(),
            capacity: self.capacity,
        }
    }

    /// Sends a message without waiting for an answer. Lost when the actor is away: for events only.
    pub(crate) fn cast(&self, message: M) {
        if let Some(actor) = self.get() {
            let _ = actor.send_message(message);
        }
    }

    /// Calls the actor and waits for the answer until the deadline.
    pub(crate) async fn call<I, O>(
        &self,
        input: I,
        deadline: Instant,
        message: impl FnOnce(Request<I, O>) -> M,
    ) -> Result<O, ActorError> {
        let busy = |retry_after_ms| ActorError::Busy { actor: self.name, retry_after_ms };
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| busy(BUSY_RETRY_MS))?;
        if Instant::now() >= deadline {
            return Err(ActorError::DeadlineExceeded { actor: self.name });
        }
        let actor = self.get().ok_or_else(|| busy(RESTART_RETRY_MS))?;
        let (reply, answer) = oneshot::channel();
        let request = Request { input, reply, permit, deadline, span: Span::current() };
        actor.send_message(message(request)).map_err(|_| busy(RESTART_RETRY_MS))?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ActorError::Stopped { actor: self.name }),
            Err(_) => Err(ActorError::DeadlineExceeded { actor: self.name }),
        }
    }
}

/// The deadline that lies so far from now.
pub fn deadline_in(after: Duration) -> Instant {
    Instant::now() + after
}

/// A token that cancels work at a request's deadline.
pub(crate) fn token_until(deadline: Instant) -> mneme_engine_api::CancelToken {
    mneme_engine_api::CancelToken::with_deadline(deadline.saturating_duration_since(Instant::now()))
}
