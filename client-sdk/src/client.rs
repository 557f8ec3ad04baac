//! The async client: typed calls over a connection that is opened again when it is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mneme_base::{Lsn, OpId};
use mneme_ipc::types::{HelloResult, TaskEvent};
use mneme_ipc::{ErrorKind, Method, methods};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::Instant;

use crate::connection::{Connection, EVENTS_MAX, Envelope};
use crate::error::ClientError;
use crate::options::ClientOptions;

/// First pause before a lost connection is opened again; doubles up to [`BACKOFF_MAX`].
const BACKOFF: Duration = Duration::from_millis(20);
/// The longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// What one call carries beside its parameters.
#[derive(Debug, Clone, Copy, Default)]
pub struct CallOptions {
    /// Names the change; drawn anew when missing. Give one to make a call of your own repeatable.
    pub op_id: Option<OpId>,
    /// How long to wait; the client's usual time when missing.
    pub timeout: Option<Duration>,
    /// The answer must have seen this change.
    pub min_lsn: Option<Lsn>,
}

/// Gives up calls from another thread or task; clones are one. Cancelling is for good.
#[derive(Debug, Clone)]
pub struct CancelToken {
    cancelled: Arc<watch::Sender<bool>>,
}

impl Default for CancelToken {
    fn default() -> Self {
        Self { cancelled: Arc::new(watch::Sender::new(false)) }
    }
}

impl CancelToken {
    /// Gives up every call that was begun with this token, and those that will be.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    async fn cancelled(&self) {
        // The sender is ours: it does not go away while we wait.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }
}

/// A client of the daemon. Cheap to clone; calls run side by side.
#[derive(Debug, Clone)]
pub struct Client {
    options: Arc<ClientOptions>,
    connection: Arc<Mutex<Option<Arc<Connection>>>>,
}

impl Client {
    /// Connects, so that a daemon that is not there is noticed now.
    pub async fn connect(options: ClientOptions) -> Result<Self, ClientError> {
        let client = Self { options: Arc::new(options), connection: Arc::default() };
        client.connection().await?;
        Ok(client)
    }

    /// What the daemon said in its greeting.
    pub async fn hello(&self) -> Result<HelloResult, ClientError> {
        Ok(self.connection().await?.hello.clone())
    }

    /// Calls a method and waits for its result.
    pub async fn call<M: Method>(&self, params: M::Params) -> Result<M::Result, ClientError> {
        self.call_with::<M>(params, CallOptions::default()).await
    }

    /// Calls a method with options.
    pub async fn call_with<M: Method>(
        &self,
        params: M::Params,
        options: CallOptions,
    ) -> Result<M::Result, ClientError> {
        let timeout = options.timeout.unwrap_or(self.options.call_timeout);
        let timed_out = || ClientError::Timeout { millis: timeout.as_millis() as u64 };
        let until = Instant::now() + timeout;
        let op_id = Some(options.op_id.unwrap_or_else(OpId::generate));
        let mut pause = BACKOFF;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(timed_out());
            }
            let deadline_ms = Some((left.as_millis() as u64).max(1));
            let envelope = Envelope { op_id, deadline_ms, min_lsn: options.min_lsn };
            let sent = AtomicBool::new(false);
            let attempt = async { self.connection().await?.call::<M>(&params, envelope, &sent).await };
            let error = match tokio::time::timeout_at(until, attempt).await {
                Ok(Ok(result)) => return Ok(result),
                Ok(Err(error)) => error,
                Err(_) => return Err(timed_out()),
            };
            let wait = match &error {
                _ if !self.options.retry => return Err(error),
                // What never left is repeated whatever it is.
                ClientError::Disconnected if may_repeat::<M>() || !sent.load(Ordering::Acquire) => pause,
                // The daemon may be restarting: between its end and its start nothing listens.
                ClientError::NotRunning { .. } if pause > BACKOFF => pause,
                // What ends it is done when it ends.
                ClientError::Daemon(body)
                    if body.kind() == ErrorKind::ShuttingDown && M::NAME == methods::Drain::NAME =>
                {
                    return Err(error);
                }
                ClientError::Daemon(body) if matches!(body.kind(), ErrorKind::Busy | ErrorKind::ShuttingDown) => {
                    Duration::from_millis(body.data.retry_after_ms.unwrap_or(50)).max(pause)
                }
                _ => return Err(error),
            };
            if Instant::now() + wait >= until {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Calls a method that streams, on a connection of its own. `observe` sees every event before the result comes.
    pub async fn call_streaming<M: Method>(
        &self,
        params: M::Params,
        options: CallOptions,
        mut observe: impl FnMut(TaskEvent),
    ) -> Result<M::Result, ClientError> {
        let timeout = options.timeout.unwrap_or(self.options.call_timeout);
        let (sender, mut receiver) = mpsc::channel(EVENTS_MAX);
        let connection = Connection::open(&self.options, Some(sender)).await?;
        let envelope = Envelope {
            op_id: Some(options.op_id.unwrap_or_else(OpId::generate)),
            deadline_ms: Some((timeout.as_millis() as u64).max(1)),
            min_lsn: options.min_lsn,
        };
        let sent = AtomicBool::new(false);
        let call = connection.call::<M>(&params, envelope, &sent);
        let timer = tokio::time::sleep(timeout);
        tokio::pin!(call, timer);
        loop {
            tokio::select! {
                biased;
                Some(event) = receiver.recv() => observe(event),
                result = &mut call => return result,
                () = &mut timer => return Err(ClientError::Timeout { millis: timeout.as_millis() as u64 }),
            }
        }
    }

    /// Calls a method on a connection of its own, which is closed when the token is cancelled: the daemon then stops what it can
    /// stop, a generation within a second.
    ///
    /// Errors are those of [`Client::call_with`], and [`ClientError::Cancelled`].
    pub async fn call_until<M: Method>(
        &self,
        params: M::Params,
        options: CallOptions,
        cancel: &CancelToken,
    ) -> Result<M::Result, ClientError> {
        let alone = Self { options: Arc::clone(&self.options), connection: Arc::default() };
        let result = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(ClientError::Cancelled),
            result = alone.call_with::<M>(params, options) => result,
        };
        // Closed here and not whenever a task gets to it: a runtime that runs within calls only might never.
        if let Some(connection) = alone.connection.lock().await.take().and_then(Arc::into_inner) {
            connection.close().await;
        }
        result
    }

    async fn connection(&self) -> Result<Arc<Connection>, ClientError> {
        let mut slot = self.connection.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(Arc::clone(connection));
        }
        let connection = Arc::new(Connection::open(&self.options, None).await?);
        *slot = Some(Arc::clone(&connection));
        Ok(connection)
    }
}

/// Whether a call may be sent again after a lost connection. Changes of the memory may, for their `op_id` makes them once; a
/// generation is not a change and would cost its time twice, and the rest here the daemon does not know again.
fn may_repeat<M: Method>() -> bool {
    const NOT_REPEATED: [&str; 12] = [
        methods::Generate::NAME,
        methods::TaskEvents::NAME,
        methods::Drain::NAME,
        methods::EvolveRun::NAME,
        methods::EvolveRollback::NAME,
        methods::EvolvePin::NAME,
        methods::EvolveRetire::NAME,
        methods::EvolveImport::NAME,
        methods::WatchAdd::NAME,
        methods::WatchRemove::NAME,
        methods::Backup::NAME,
        methods::Compact::NAME,
    ];
    !NOT_REPEATED.contains(&M::NAME)
}
