//! One connection: lines in, lines out, requests side by side, and nothing that a client does can hold more than its share.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mneme_ipc::types::TaskEvent;
use mneme_ipc::{Call, ErrorBody, ErrorKind, LineDecoder, Notification, RequestFrame, RequestId, ResponseFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::convert::Caller;
use crate::service::{Context, Service, UPKEEP_TIMEOUT};

/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;
/// What a client that has too much under way is told to wait (milliseconds).
const BUSY_RETRY_MS: u64 = 20;
/// A client that does not take its answers for this long is cut off.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a client that sends no more is looked after, while it waits for answers.
const GONE_POLL: Duration = Duration::from_millis(500);
/// Stream events that wait for a slow client; newer ones are dropped.
const EVENTS_MAX: usize = 64;

/// Serves a connection to its end.
pub async fn serve(service: Arc<Service>, stream: UnixStream) {
    service.metrics.connections.fetch_add(1, Ordering::Relaxed);
    let _gone = Gone(Arc::clone(&service));
    let config = service.config();
    let (read_half, write_half) = stream.into_split();
    let (sender, receiver) = mpsc::channel(config.server.outbound_frames_max as usize);
    let in_flight_max = config.server.requests_in_flight_max as usize;
    let in_flight = Arc::new(Semaphore::new(in_flight_max));
    let (half_closed, client_closed) = watch::channel(false);
    let writer = tokio::spawn(write(write_half, receiver, client_closed));
    let mut reader = Reader {
        half: read_half,
        decoder: LineDecoder::new(config.server.frame_bytes_max.as_usize()),
        slow_frame: config.server.slow_frame_timeout,
        idle: config.server.idle_timeout,
        partial_since: None,
        buffer: vec![0; READ_BYTES],
        in_flight: Arc::clone(&in_flight),
        in_flight_max,
    };
    let connection = Connection { service, sender, in_flight, in_flight_max };
    let ended = connection.run(&mut reader).await;
    if let Some(error) = ended {
        connection.respond_error(None, error).await;
    }
    half_closed.send_replace(true);
    // The writer ends when the last request that is under way has answered, or when nobody can take an answer any more.
    drop(connection);
    let _ = writer.await;
}

/// Tells a client that it cannot be served, and closes.
pub async fn turn_away(mut stream: UnixStream, error: ErrorBody) {
    let line = ResponseFrame::<()>::error(None, error).to_line();
    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&line)).await;
}

/// Counts a connection's end, however it comes.
struct Gone(Arc<Service>);

impl Drop for Gone {
    fn drop(&mut self) {
        self.0.metrics.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Reader {
    half: OwnedReadHalf,
    decoder: LineDecoder,
    slow_frame: Duration,
    idle: Duration,
    partial_since: Option<Instant>,
    buffer: Vec<u8>,
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
}

/// Why reading stopped.
enum End {
    /// The client closed, or the system did.
    Closed,
    /// The client broke a rule, and is told which.
    Told(ErrorBody),
}

impl Reader {
    /// Reads the next line. A line that was begun has to arrive in time; silence between lines has its own, longer limit.
    async fn line(&mut self) -> Result<Vec<u8>, End> {
        loop {
            if let Some(line) = self.decoder.next_line() {
                self.partial_since = None;
                self.decoder.check(&line).map_err(|error| too_large(&error))?;
                return Ok(line);
            }
            let limit = if self.decoder.is_partial() {
                let since = *self.partial_since.get_or_insert_with(Instant::now);
                since + self.slow_frame
            } else {
                Instant::now() + self.idle
            };
            let count = match tokio::time::timeout_at(limit, self.half.read(&mut self.buffer)).await {
                Ok(Ok(0) | Err(_)) => return Err(End::Closed),
                Ok(Ok(count)) => count,
                Err(_) if self.partial_since.is_some() => {
                    let message = format!("frame did not arrive within {} ms", self.slow_frame.as_millis());
                    return Err(End::Told(ErrorBody::new(ErrorKind::InvalidRequest, message)));
                }
                // Who waits for an answer is not idle.
                Err(_) if self.in_flight.available_permits() < self.in_flight_max => continue,
                Err(_) => return Err(End::Closed),
            };
            self.decoder.push(&self.buffer[..count]).map_err(|error| too_large(&error))?;
        }
    }
}

fn too_large(error: &mneme_ipc::FrameError) -> End {
    End::Told(ErrorBody::new(ErrorKind::FrameTooLarge, error.to_string()).hint("send large material in pieces"))
}

struct Connection {
    service: Arc<Service>,
    sender: mpsc::Sender<Vec<u8>>,
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
}

impl Connection {
    /// Reads and starts requests until the end; returns what the client has to be told about it.
    async fn run(&self, reader: &mut Reader) -> Option<ErrorBody> {
        let mut caller = None;
        let mut drained = self.service.drained();
        loop {
            let line = tokio::select! {
                line = reader.line() => line,
                // During a drain a connection that has nothing under way is closed.
                _ = drained.wait_for(|drained| *drained), if self.is_idle() => return None,
            };
            let line = match line {
                Ok(line) => line,
                Err(End::Closed) => return None,
                Err(End::Told(error)) => return Some(error),
            };
            if self.sender.is_closed() {
                return None;
            }
            match self.take(&line, &mut caller).await {
                Ok(()) => {}
                Err((id, error)) => self.respond_error(id, error).await,
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.in_flight.available_permits() == self.in_flight_max
    }

    /// Reads one request and starts it. `Err` is its answer when it cannot be started.
    async fn take(&self, line: &[u8], caller: &mut Option<Caller>) -> Result<(), (Option<RequestId>, ErrorBody)> {
        let frame = RequestFrame::parse(line)?;
        let id = frame.id.clone();
        let with_id = |error| (Some(id.clone()), error);
        let call = Call::parse(&frame).map_err(with_id)?;
        if let (Call::Hello(params), None) = (&call, &caller) {
            let (result, who) = self.service.hello(params).map_err(with_id)?;
            *caller = Some(who);
            self.send(ResponseFrame::ok(id, result).to_line()).await;
            return Ok(());
        }
        let who = match (&caller, &call) {
            (Some(caller), _) => caller.clone(),
            (None, Call::Ping(_)) => Caller { client: String::from("unknown"), session: None },
            (None, _) => {
                let error = ErrorBody::new(ErrorKind::HelloRequired, "the first request must be hello");
                return Err(with_id(
                    error.hint("send {\"method\":\"hello\",\"params\":{\"protocol\":1,\"client\":\"NAME\"}}"),
                ));
            }
        };
        let Ok(permit) = Arc::clone(&self.in_flight).try_acquire_owned() else {
            let error = ErrorBody::new(ErrorKind::Busy, "too many requests of this connection are under way");
            return Err(with_id(error.retry_after_ms(BUSY_RETRY_MS)));
        };
        let usual = match &call {
            // They go through every row: a caller that does not say gets the time that they may take.
            Call::Backup(_) | Call::Compact(_) => UPKEEP_TIMEOUT,
            _ => self.service.config().server.request_timeout,
        };
        let timeout = frame.deadline_ms.map_or(usual, Duration::from_millis);
        let (events, stream) = mpsc::channel(EVENTS_MAX);
        let context = Context {
            caller: who,
            op_id: frame.op_id,
            deadline: Instant::now() + timeout,
            min_lsn: frame.min_lsn,
            events,
        };
        let method = call.name();
        let span = tracing::info_span!("request", method, client = context.caller.client);
        let request = run_request(Arc::clone(&self.service), self.sender.clone(), id.clone(), call, context, stream);
        let run = async move {
            request.await;
            drop(permit);
        };
        tokio::spawn(run.instrument(span));
        Ok(())
    }

    async fn send(&self, line: Vec<u8>) {
        let _ = self.sender.send(line).await;
    }

    async fn respond_error(&self, id: Option<RequestId>, error: ErrorBody) {
        self.service.metrics.error(kind_name(error.kind()));
        self.send(ResponseFrame::<()>::error(id, error).to_line()).await;
    }
}

fn kind_name(kind: ErrorKind) -> String {
    serde_json::to_value(kind).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

async fn run_request(
    service: Arc<Service>,
    sender: mpsc::Sender<Vec<u8>>,
    id: RequestId,
    call: Call,
    context: Context,
    stream: mpsc::Receiver<TaskEvent>,
) {
    let (method, deadline) = (call.name(), context.deadline);
    let started = Instant::now();
    let answer = {
        let work = async {
            match tokio::time::timeout_at(deadline, service.call(call, context)).await {
                Ok(answer) => answer,
                Err(_) => Err(ErrorBody::new(ErrorKind::DeadlineExceeded, "deadline passed before the work was done")),
            }
        };
        tokio::select! {
            biased;
            // A client that is gone needs no answer: dropping the work cancels what can be cancelled.
            () = sender.closed() => return,
            (answer, ()) = async { tokio::join!(work, forward(stream, &sender)) } => answer,
        }
    };
    let took = started.elapsed();
    service.metrics.request(method, took);
    if took > service.config().metrics.slow_request {
        tracing::warn!(method, took_ms = took.as_millis() as u64, "slow request");
    }
    let line = match answer {
        Ok(result) => ResponseFrame::ok(id, result).to_line(),
        Err(error) => {
            service.metrics.error(kind_name(error.kind()));
            ResponseFrame::<()>::error(Some(id), error).to_line()
        }
    };
    let _ = sender.send(line).await;
}

/// Passes stream events on; ends when the request's work has ended. A full queue drops events, never answers.
async fn forward(mut stream: mpsc::Receiver<TaskEvent>, sender: &mpsc::Sender<Vec<u8>>) {
    while let Some(event) = stream.recv().await {
        let _ = sender.try_send(Notification::new("task.event", event).to_line());
    }
}

/// Waits until the client has closed both directions: having no more to ask is no reason to get no answer, being gone is. Pends
/// for as long as the client may still send.
async fn gone(half: &OwnedWriteHalf, mut half_closed: watch::Receiver<bool>) {
    if half_closed.wait_for(|closed| *closed).await.is_err() {
        return std::future::pending().await;
    }
    loop {
        match half.ready(Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => tokio::time::sleep(GONE_POLL).await,
            _ => return,
        }
    }
}

/// Writes what is to be sent until there is nothing more, or until the client is gone: then the requests under way are dropped.
async fn write(mut half: OwnedWriteHalf, mut lines: mpsc::Receiver<Vec<u8>>, half_closed: watch::Receiver<bool>) {
    let mut batch = Vec::new();
    loop {
        let line = tokio::select! {
            biased;
            line = lines.recv() => line,
            () = gone(&half, half_closed.clone()) => return,
        };
        let Some(line) = line else { return };
        batch.clear();
        batch.extend_from_slice(&line);
        // Answers that are ready together go out together.
        while batch.len() < READ_BYTES
            && let Ok(line) = lines.try_recv()
        {
            batch.extend_from_slice(&line);
        }
        match tokio::time::timeout(WRITE_TIMEOUT, half.write_all(&batch)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                tracing::warn!("client does not take its answers and is cut off");
                return;
            }
        }
    }
}
