//! The connection to a running engine: the greeting, the callers that wait on it, the thread that reads for them, the child's log.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::types::EngineInfo;
use crate::wire::{Ask, FromEngine, Greeting, Lane, Tell, ToEngine, WIRE_VERSION, WireError, read_frame, write_frame};

/// When the process last said anything.
#[derive(Debug)]
pub(super) struct Heard {
    since: Instant,
    micros: AtomicU64,
}

impl Heard {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), micros: AtomicU64::new(0) }
    }

    pub(super) fn now(&self) {
        self.micros.store(u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX), Ordering::Release);
    }

    pub(super) fn last(&self) -> Instant {
        self.since + Duration::from_micros(self.micros.load(Ordering::Acquire))
    }
}

/// A caller that waits for replies.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) replies: SyncSender<Tell>,
    pub(super) lane: Option<Lane>,
    /// From when on it takes the process for hung.
    pub(super) hung_at: Instant,
}

/// What a caller keeps of a running process.
pub(super) struct Connection {
    pub(super) writer: Arc<Mutex<UnixStream>>,
    pub(super) calls: Calls,
    pub(super) heard: Arc<Heard>,
    pub(super) pid: u32,
}

/// Callers by the number of their call.
pub(super) type Calls = Arc<Mutex<HashMap<u64, Waiting>>>;

/// Exchanges greetings and asks what the engine is, within a time.
pub(super) fn greet(stream: &UnixStream, within: Duration, unread: Duration) -> Result<EngineInfo, WireError> {
    stream.set_read_timeout(Some(within))?;
    // An engine that stands still reads nothing; whoever writes to it must not stand still with it.
    stream.set_write_timeout(Some(unread.max(Duration::from_millis(1))))?;
    let mut both = stream;
    write_frame(&mut both, &Greeting::OURS)?;
    let theirs: Greeting = read_frame(&mut both)?;
    if theirs != Greeting::OURS {
        let text = format!("it speaks version {} of the engine protocol, this daemon {WIRE_VERSION}", theirs.version);
        return Err(WireError::Io(std::io::Error::other(text)));
    }
    write_frame(&mut both, &ToEngine { call: 0, body: Ask::Info })?;
    let reply: FromEngine = read_frame(&mut both)?;
    stream.set_read_timeout(None)?;
    match reply.body {
        Tell::Info(info) => Ok(info),
        _ => Err(WireError::Io(std::io::Error::other("it did not say what it is"))),
    }
}

/// Hands replies to the callers that wait for them, until the stream ends.
pub(super) fn read_replies(mut reader: UnixStream, calls: &Calls, broken: &AtomicBool, heard: &Heard) {
    let ended = loop {
        let FromEngine { call, body } = match read_frame(&mut reader) {
            Ok(frame) => frame,
            Err(error) => break error,
        };
        heard.now();
        let mut waiting = calls.lock().unwrap_or_else(PoisonError::into_inner);
        let is_last = !matches!(body, Tell::Canvas(_));
        let full = waiting.get(&call).and_then(|caller| match caller.replies.try_send(body) {
            Err(TrySendError::Full(body)) => Some(body),
            _ => None,
        });
        if is_last && let Some(caller) = waiting.remove(&call) {
            drop(waiting);
            // The result must not be lost behind canvas events: wait until the caller has taken some.
            if let Some(body) = full {
                let _ = caller.replies.send(body);
            }
        }
    };
    tracing::debug!(%ended, "engine connection ended");
    // A call that comes from here on finds the connection broken; one that came before is woken by its sender's end.
    broken.store(true, Ordering::Release);
    calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Takes a call back whose time is over, and tells whether one before it in its lane has time left: then the process is busy with
/// that one and not hung.
pub(super) fn is_behind_another(calls: &Calls, call: u64) -> bool {
    let mut waiting = calls.lock().unwrap_or_else(PoisonError::into_inner);
    let lane = waiting.remove(&call).and_then(|own| own.lane);
    let now = Instant::now();
    waiting.iter().any(|(other, before)| *other < call && before.lane == lane && before.hung_at > now)
}

/// Passes the child's log on, line by line, into ours.
pub(super) fn forward_log(stderr: std::process::ChildStderr) {
    let forward = move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            tracing::info!(target: "engine", "{line}");
        }
    };
    let _ = std::thread::Builder::new().name("engine-log".into()).spawn(forward);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;

    use super::*;

    #[test]
    fn a_call_whose_time_is_over_is_behind_one_before_it_in_its_lane_that_has_time_left() {
        let far = Instant::now() + Duration::from_mins(1);
        let table = |entries: &[(u64, Lane, Instant)]| {
            let calls = Calls::default();
            for &(call, lane, hung_at) in entries {
                let (replies, _) = sync_channel(1);
                calls.lock().unwrap().insert(call, Waiting { replies, lane: Some(lane), hung_at });
            }
            calls
        };
        let past = Instant::now();
        let own = (2, Lane::Notes, past);
        let calls = table(&[(1, Lane::Notes, far), own]);
        assert!(is_behind_another(&calls, 2), "the lane is busy");
        assert!(!calls.lock().unwrap().contains_key(&2), "it is taken back");
        assert!(!is_behind_another(&table(&[(1, Lane::Notes, past), own]), 2), "that one is over too");
        assert!(!is_behind_another(&table(&[(1, Lane::Generations, far), own]), 2), "another lane");
        assert!(!is_behind_another(&table(&[(3, Lane::Notes, far), own]), 2), "one that came later");
    }
}
