//! One connection: a task that reads, callers that write, answers matched by id.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mneme_base::{Lsn, OpId};
use mneme_ipc::types::{HelloParams, HelloResult, TaskEvent};
use mneme_ipc::{ErrorKind, LineDecoder, Method, PROTOCOL_VERSION, RequestId, ServerFrame, methods};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};

use crate::error::ClientError;
use crate::options::ClientOptions;

/// Answers larger than this end the connection (bytes): a page of an export fits.
const FRAME_BYTES_MAX: usize = 256 << 20;
/// Stream events that wait for a slow caller; then reading waits, and the daemon skips events for us.
pub(crate) const EVENTS_MAX: usize = 256;

type Waiting = Arc<Mutex<HashMap<i64, oneshot::Sender<ServerFrame>>>>;

/// What a request carries beside its parameters.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Envelope {
    pub(crate) op_id: Option<OpId>,
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) min_lsn: Option<Lsn>,
}

#[derive(Serialize)]
struct Outgoing<'a, P> {
    jsonrpc: &'static str,
    id: i64,
    method: &'static str,
    params: &'a P,
    #[serde(skip_serializing_if = "Option::is_none")]
    op_id: Option<OpId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min_lsn: Option<Lsn>,
}

/// One open connection, greeted.
#[derive(Debug)]
pub(crate) struct Connection {
    writer: AsyncMutex<OwnedWriteHalf>,
    waiting: Waiting,
    next_id: AtomicI64,
    closed: Arc<AtomicBool>,
    reader: tokio::task::JoinHandle<()>,
    pub(crate) hello: HelloResult,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    /// Connects and greets. Stream events go to `events`, when there are to be any.
    pub(crate) async fn open(
        options: &ClientOptions,
        events: Option<mpsc::Sender<TaskEvent>>,
    ) -> Result<Self, ClientError> {
        let timeout_ms = options.connect_timeout.as_millis() as u64;
        let timed_out = || ClientError::Timeout { millis: timeout_ms };
        let opened = tokio::time::timeout(options.connect_timeout, UnixStream::connect(&options.socket)).await;
        let stream = opened.map_err(|_| timed_out())?.map_err(|source| match source.kind() {
            std::io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket: options.socket.clone() },
            _ => ClientError::NotRunning { socket: options.socket.clone(), source },
        })?;
        let (read_half, write_half) = stream.into_split();
        let waiting = Waiting::default();
        let closed = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(read(read_half, Arc::clone(&waiting), Arc::clone(&closed), events));
        let mut connection = Self {
            writer: AsyncMutex::new(write_half),
            waiting,
            next_id: AtomicI64::new(1),
            closed,
            reader,
            hello: placeholder(),
        };
        let params = HelloParams {
            protocol: PROTOCOL_VERSION,
            client: options.client.clone(),
            client_version: Some(env!("CARGO_PKG_VERSION").into()),
            session: options.session.clone(),
        };
        let sent = AtomicBool::new(false);
        let greeting = connection.call::<methods::Hello>(&params, Envelope::default(), &sent);
        connection.hello = tokio::time::timeout(options.connect_timeout, greeting).await.map_err(|_| timed_out())??;
        Ok(connection)
    }

    /// Closes both directions before it returns: only then does the daemon take the client for gone.
    pub(crate) async fn close(mut self) {
        self.reader.abort();
        let _ = (&mut self.reader).await;
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Sends a request and waits for its answer. `sent` is set when the daemon may have got it.
    pub(crate) async fn call<M: Method>(
        &self,
        params: &M::Params,
        envelope: Envelope,
        sent: &AtomicBool,
    ) -> Result<M::Result, ClientError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let Envelope { op_id, deadline_ms, min_lsn } = envelope;
        let outgoing = Outgoing { jsonrpc: "2.0", id, method: M::NAME, params, op_id, deadline_ms, min_lsn };
        let mut line = serde_json::to_vec(&outgoing)
            .map_err(|error| ClientError::Protocol { problem: format!("request cannot be written: {error}") })?;
        line.push(b'\n');
        let (sender, receiver) = oneshot::channel();
        let _forget = Forget { waiting: &self.waiting, id };
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        if self.is_closed() {
            return Err(ClientError::Disconnected);
        }
        let mut writer = self.writer.lock().await;
        if self.is_closed() {
            return Err(ClientError::Disconnected);
        }
        // Half a line must not be followed by another caller's: a write that fails, or is dropped, ends the connection. Told here
        // too for a runtime that only runs within calls: the reader may not have noticed yet.
        let mut half = HalfWritten { closed: &self.closed, is_whole: false };
        writer.write_all(&line).await.map_err(|_| ClientError::Disconnected)?;
        half.is_whole = true;
        drop(half);
        drop(writer);
        sent.store(true, Ordering::Release);
        let frame = receiver.await.map_err(|_| ClientError::Disconnected)?;
        if let Some(error) = frame.error {
            return Err(ClientError::Daemon(error));
        }
        let raw = frame.result.as_ref().map_or("null", |raw| raw.get());
        serde_json::from_str(raw)
            .map_err(|error| ClientError::Protocol { problem: format!("result of {}: {error}", M::NAME) })
    }
}

/// Ends the connection unless its line was written whole.
struct HalfWritten<'a> {
    closed: &'a AtomicBool,
    is_whole: bool,
}

impl Drop for HalfWritten<'_> {
    fn drop(&mut self) {
        if !self.is_whole {
            self.closed.store(true, Ordering::Release);
        }
    }
}

/// Takes a call out of the table when its caller goes away.
struct Forget<'a> {
    waiting: &'a Waiting,
    id: i64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

fn placeholder() -> HelloResult {
    HelloResult {
        protocol: 0,
        protocol_min: 0,
        server: String::new(),
        boot: mneme_base::BootId::from_bytes([0; 16]),
        limits: mneme_ipc::types::Limits {
            frame_bytes_max: 0,
            requests_in_flight_max: 0,
            text_bytes_max: 0,
            recall_limit_max: 0,
            import_batch_max: 0,
            idle_timeout_ms: 0,
        },
    }
}

async fn read(
    mut half: OwnedReadHalf,
    waiting: Waiting,
    closed: Arc<AtomicBool>,
    events: Option<mpsc::Sender<TaskEvent>>,
) {
    let mut decoder = LineDecoder::new(FRAME_BYTES_MAX);
    let mut buffer = vec![0_u8; 64 << 10];
    'connection: loop {
        let count = match half.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        if decoder.push(&buffer[..count]).is_err() {
            break;
        }
        while let Some(line) = decoder.next_line() {
            let Ok(frame) = serde_json::from_slice::<ServerFrame>(&line) else {
                break 'connection;
            };
            if !hand_over(frame, &waiting, events.as_ref()).await {
                break 'connection;
            }
        }
    }
    closed.store(true, Ordering::Release);
    // Dropping the senders wakes every caller with `Disconnected`.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Gives a frame to whom it belongs. `false` when the daemon has said that the connection is over.
async fn hand_over(frame: ServerFrame, waiting: &Waiting, events: Option<&mpsc::Sender<TaskEvent>>) -> bool {
    match (&frame.id, frame.method.as_deref()) {
        (Some(RequestId::Number(id)), _) => {
            let sender = waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
            if let Some(sender) = sender {
                let _ = sender.send(frame);
            }
            true
        }
        (_, Some("task.event")) => {
            let event = frame.params.as_ref().and_then(|raw| serde_json::from_str::<TaskEvent>(raw.get()).ok());
            if let (Some(events), Some(event)) = (events, event) {
                let _ = events.send(event).await;
            }
            true
        }
        // An error without an id is about the connection itself: every caller is told.
        (None, None) if frame.error.is_some() => {
            let over = frame.error.as_ref().is_some_and(|error| {
                matches!(error.kind(), ErrorKind::FrameTooLarge | ErrorKind::Busy | ErrorKind::ShuttingDown)
            });
            let all: Vec<_> = waiting.lock().unwrap_or_else(PoisonError::into_inner).drain().collect();
            for (_, sender) in all {
                let _ = sender.send(frame.clone());
            }
            !over
        }
        _ => true,
    }
}
