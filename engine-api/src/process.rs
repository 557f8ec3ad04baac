//! An engine in a child process, seen from the daemon: started on first need, restarted within limits, killed when it hangs.
//!
//! A native abort, an out-of-memory kill or a hang of the child costs the calls that were under way, and nothing else.

mod connection;

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use mneme_base::Embedding;

use self::connection::{Calls, Connection, Heard, Waiting, forward_log, greet, is_behind_another, read_replies};
use crate::engine::{CancelToken, Engine, EngineError};
use crate::trainer::Trainer;
use crate::types::{
    CanvasEvent, EmbedPurpose, EngineInfo, GenerateRequest, Generation, ScoreItem, ScoreOutcome, TrainEvent, TrainJob,
    TrainOutcome,
};
use crate::wire::{Ask, Tell, ToEngine, WireError, write_frame};

/// Events of one call that wait for its caller; a slow caller loses canvas events, never the result.
const CALL_EVENTS_MAX: usize = 64;
/// How long after the last call a held trainer goes on: between the calls of one conversation it stays held.
const TRAINER_WAITS: Duration = Duration::from_millis(300);
/// How long a call that nobody waits for any more may take to end, before its process counts as hung: it delays only those behind it.
const CANCEL_GRACE: Duration = Duration::from_secs(20);
/// How often a waiting call looks whether it was cancelled (milliseconds).
const CANCEL_POLL_MS: u64 = 20;
/// How long a process may say nothing before it is asked whether it is there, and then until it answers; `hang_grace` if that is
/// longer. A machine that swaps stands still for a second.
const PING_PATIENCE_MIN: Duration = Duration::from_secs(2);

/// Environment that keeps the memory of the engine's tensor library bounded under changing shapes. It must be set before the
/// process starts: caches of compiled kernels grow with every new shape, and glibc keeps an arena for every thread.
pub const ENVIRONMENT: [(&str, &str); 4] = [
    ("LRU_CACHE_CAPACITY", "1"),
    ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"),
    ("MALLOC_ARENA_MAX", "2"),
    ("OMP_WAIT_POLICY", "passive"),
];

/// What the daemon sets for its own allocator and no engine may inherit: with it, each tensor would be a mapping of its own.
pub(crate) const NOT_INHERITED: [&str; 2] = ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"];

/// A command for a process of the engine, with the environment that it needs.
pub(crate) fn command(program: &std::path::Path) -> Command {
    let mut command = Command::new(program);
    NOT_INHERITED.iter().for_each(|name| {
        command.env_remove(name);
    });
    command.envs(ENVIRONMENT);
    command
}

/// How an engine process is started and watched.
#[derive(Debug, Clone)]
pub struct ProcessOptions {
    /// The program, such as `mneme-engine`.
    pub program: PathBuf,
    /// Arguments after `serve` or `train JOB`.
    pub arguments: Vec<OsString>,
    /// Environment variables that are set for it.
    pub environment: Vec<(OsString, OsString)>,
    /// How long it may take from start to greeting: models are loaded in it.
    pub start_timeout: Duration,
    /// How long a call may run past its own deadline before the process counts as hung and is killed; and how long it may leave
    /// what is written to it unread.
    pub hang_grace: Duration,
    /// Starts allowed within `restart_window`; more, and the engine stays away until the window has passed.
    pub restarts_max: u32,
    /// See `restarts_max`.
    pub restart_window: Duration,
    /// Pause before a restart; doubles with each restart of the window up to `backoff_max`.
    pub backoff_min: Duration,
    /// The longest pause before a restart.
    pub backoff_max: Duration,
    /// The longest that a generation may take; and the deadline of other calls whose token has none.
    pub call_timeout: Duration,
}

impl ProcessOptions {
    /// Settings for a program that suit a desktop.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            start_timeout: Duration::from_mins(1),
            // A step of a large canvas on a busy machine takes a second or two, and a new process has to load its models.
            hang_grace: Duration::from_secs(5),
            restarts_max: 5,
            restart_window: Duration::from_mins(1),
            backoff_min: Duration::ZERO,
            backoff_max: Duration::from_secs(30),
            call_timeout: Duration::from_mins(2),
        }
    }
}

/// A running child and what its reader thread shares with the callers.
#[derive(Debug)]
struct Running {
    child: Child,
    writer: Arc<Mutex<UnixStream>>,
    calls: Calls,
    info: EngineInfo,
    /// Set when its connection ended: garbage on it, or the end of the process.
    broken: Arc<AtomicBool>,
    heard: Arc<Heard>,
}

/// The state of the supervision. Its lock is held for moments only, never while a process starts or ends.
#[derive(Debug, Default)]
struct Supervision {
    running: Option<Running>,
    /// One caller is starting a process; the others wait for it.
    starting: bool,
    starts: VecDeque<Instant>,
    last_failure: Option<String>,
}

/// An engine that lives in a child process. Cheap to share; calls may come from many threads.
#[derive(Debug)]
pub struct EngineProcess {
    options: RwLock<Arc<ProcessOptions>>,
    supervision: Mutex<Supervision>,
    /// Wakes those that wait for a start.
    start_ended: Condvar,
    /// The running process; 0 when there is none. Beside the lock: it is asked for where nobody may wait.
    pid: AtomicU32,
    last_info: RwLock<Option<EngineInfo>>,
    next_call: AtomicU64,
    restarts: AtomicU64,
    active: AtomicU64,
    last_used: Mutex<Instant>,
    trainer: Trainer,
    /// Calls that somebody waits for, and when the last of them ended.
    awaited: AtomicU64,
    last_awaited: Mutex<Instant>,
}

impl EngineProcess {
    /// Prepares an engine; nothing is started yet.
    pub fn new(options: ProcessOptions) -> Self {
        Self {
            options: RwLock::new(Arc::new(options)),
            supervision: Mutex::default(),
            start_ended: Condvar::new(),
            pid: AtomicU32::new(0),
            last_info: RwLock::default(),
            next_call: AtomicU64::new(1),
            restarts: AtomicU64::new(0),
            active: AtomicU64::new(0),
            last_used: Mutex::new(Instant::now()),
            trainer: Trainer::default(),
            awaited: AtomicU64::new(0),
            last_awaited: Mutex::new(Instant::now()),
        }
    }

    /// Puts other options into force: bounds of time from the next call on, what the process is started with from its next start on.
    pub fn set_options(&self, options: ProcessOptions) {
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }

    /// The options in force.
    pub fn options(&self) -> Arc<ProcessOptions> {
        Arc::clone(&self.options.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How often the process was started again after the first time.
    pub fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Relaxed)
    }

    /// The process id, while it runs. Never waits.
    pub fn pid(&self) -> Option<u32> {
        Some(self.pid.load(Ordering::Acquire)).filter(|pid| *pid != 0)
    }

    /// How long no call has been made; `None` while one is under way.
    pub fn idle_for(&self) -> Option<Duration> {
        let idle = self.last_used.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
        (self.active.load(Ordering::Acquire) == 0).then_some(idle)
    }

    /// The trainer's process id, while one runs.
    pub fn trainer_pid(&self) -> Option<u32> {
        self.trainer.pid()
    }

    /// Starts the process now, if it is not running, and returns what it is.
    pub fn ensure_started(&self) -> Result<EngineInfo, EngineError> {
        self.with_running(&CancelToken::default(), |running| Ok(running.info.clone()))
    }

    /// Ends the process, if it runs.
    pub fn stop(&self) {
        let running = self.take_running(&mut self.lock());
        if let Some(running) = running {
            end(running);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Supervision> {
        self.supervision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_running(&self, supervision: &mut Supervision) -> Option<Running> {
        self.pid.store(0, Ordering::Release);
        supervision.running.take()
    }

    /// Runs `use_it` with a live process, starting one when there is none. Whoever finds a start under way waits for it as long as
    /// the token allows; whoever starts goes on to the start's end, which the next call profits from.
    fn with_running<T>(
        &self,
        cancel: &CancelToken,
        use_it: impl FnOnce(&Running) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let mut supervision = self.lock();
        while supervision.starting {
            cancel.check()?;
            let poll = Duration::from_millis(CANCEL_POLL_MS);
            supervision = self.start_ended.wait_timeout(supervision, poll).unwrap_or_else(PoisonError::into_inner).0;
        }
        let died = supervision.running.as_mut().and_then(|running| match running.child.try_wait() {
            Ok(None) if running.broken.load(Ordering::Acquire) => Some(String::from("its connection broke")),
            Ok(None) => None,
            Ok(Some(status)) => Some(format!("process ended with {status}")),
            Err(error) => Some(format!("process cannot be observed: {error}")),
        });
        let mut dead = None;
        if let Some(reason) = died {
            tracing::warn!(reason, "engine died");
            supervision.last_failure = Some(reason);
            dead = self.take_running(&mut supervision);
        }
        if supervision.running.is_none() {
            let starting = self.admit_start(&mut supervision).map(|()| {
                supervision.starting = true;
                Starting(self)
            });
            drop(supervision);
            // A process may take its time to die, and a new one to load its models: not under the lock.
            if let Some(dead) = dead {
                end(dead);
            }
            let started = starting?.start();
            supervision = self.lock();
            if let Err(error) = started {
                supervision.last_failure = Some(error.to_string());
                return Err(error);
            }
        }
        let stopped = || EngineError::Unavailable { reason: String::from("it was stopped while it started") };
        use_it(supervision.running.as_ref().ok_or_else(stopped)?)
    }

    fn admit_start(&self, supervision: &mut Supervision) -> Result<(), EngineError> {
        let options = self.options();
        let now = Instant::now();
        while supervision.starts.front().is_some_and(|start| now.duration_since(*start) > options.restart_window) {
            supervision.starts.pop_front();
        }
        if supervision.starts.len() as u32 >= options.restarts_max {
            let last = supervision.last_failure.as_deref().unwrap_or("unknown reason");
            let reason = format!(
                "it was started {} times in {} s and is left alone for a while; last failure: {last}",
                supervision.starts.len(),
                options.restart_window.as_secs()
            );
            return Err(EngineError::Unavailable { reason });
        }
        // The first restart comes at once; a process that dies again gets longer and longer pauses.
        let doubled = supervision.starts.len().checked_sub(2).map(|n| options.backoff_min * (1_u32 << n.min(16)));
        if let (Some(pause), Some(last)) = (doubled, supervision.starts.back()) {
            let left = pause.min(options.backoff_max).saturating_sub(now.duration_since(*last));
            if !left.is_zero() {
                let reason = format!("it failed and is started again in {} ms", left.as_millis());
                return Err(EngineError::Unavailable { reason });
            }
        }
        if !supervision.starts.is_empty() {
            self.restarts.fetch_add(1, Ordering::Relaxed);
        }
        supervision.starts.push_back(now);
        Ok(())
    }

    fn start(&self) -> Result<Running, EngineError> {
        let options = self.options();
        let unavailable = |what: &str, error: &dyn std::fmt::Display| EngineError::Unavailable {
            reason: format!("{what} {}: {error}", options.program.display()),
        };
        let (ours, theirs) = UnixStream::pair().map_err(|error| unavailable("no socket pair for", &error))?;
        let mut child = command(&options.program)
            .arg("serve")
            .args(&options.arguments)
            .envs(options.environment.iter().cloned())
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| unavailable("cannot start", &error))?;
        if let Some(stderr) = child.stderr.take() {
            forward_log(stderr);
        }
        tracing::info!(pid = child.id(), program = %options.program.display(), "engine started");
        match greet(&ours, options.start_timeout, options.hang_grace) {
            Ok(info) => {
                let calls = Calls::default();
                let reader = ours.try_clone().map_err(|error| unavailable("no second handle for", &error))?;
                let broken = Arc::new(AtomicBool::new(false));
                let heard = Arc::new(Heard::new());
                let (for_reader, breaks, hears) = (Arc::clone(&calls), Arc::clone(&broken), Arc::clone(&heard));
                std::thread::Builder::new()
                    .name("engine-reader".into())
                    .spawn(move || read_replies(reader, &for_reader, &breaks, &hears))
                    .map_err(|error| unavailable("no reader thread for", &error))?;
                Ok(Running { child, writer: Arc::new(Mutex::new(ours)), calls, info, broken, heard })
            }
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(unavailable("no greeting from", &error))
            }
        }
    }

    /// Sends a call and waits for its end, passing on what comes in between.
    fn call(
        &self,
        cancel: &CancelToken,
        ask: impl FnOnce(u64) -> Ask,
        mut observe: impl FnMut(CanvasEvent),
    ) -> Result<Tell, EngineError> {
        cancel.check()?;
        let _active = Active::enter(self);
        let options = self.options();
        let within = cancel.remaining().unwrap_or(options.call_timeout);
        let call = self.next_call.fetch_add(1, Ordering::Relaxed);
        let frame = ToEngine { call, body: ask(u64::try_from(within.as_millis()).unwrap_or(u64::MAX).max(1)) };
        let mut hung_at = Instant::now() + within + options.hang_grace;
        let (receiver, connection) = match self.send(&frame, hung_at, cancel) {
            // It died between two calls and nobody had noticed: the call was not delivered, so a new process may have it.
            Err(EngineError::Unavailable { .. }) => self.send(&frame, hung_at, cancel)?,
            sent => sent?,
        };
        let Connection { writer, calls, heard, pid } = connection;
        // A start may have taken some of the time.
        hung_at = hung_at.max(Instant::now() + options.hang_grace);
        let say = |call, body| {
            let frame = ToEngine { call, body };
            let sent = write_frame(&mut *writer.lock().unwrap_or_else(PoisonError::into_inner), &frame);
            if sent.is_err() {
                // Half a frame may be on its way: nothing that follows it would be understood.
                self.discard(pid, "it could not be written to");
            }
        };
        let patience = options.hang_grace.max(PING_PATIENCE_MIN);
        let mut cancel_sent = false;
        let mut pinged: Option<Instant> = None;
        loop {
            match receiver.recv_timeout(Duration::from_millis(CANCEL_POLL_MS)) {
                Ok(Tell::Canvas(event)) => observe(event),
                Ok(Tell::Failed(error)) => return Err(error),
                Ok(tell) => return Ok(tell),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(EngineError::Unavailable { reason: format!("process {pid} died during the call") });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !cancel_sent && let Err(reason) = cancel.check() {
                cancel_sent = true;
                tracing::debug!(call, %reason, "engine call is being cancelled");
                hung_at = hung_at.min(Instant::now() + CANCEL_GRACE.max(options.hang_grace));
                say(call, Ask::Cancel { call });
            }
            // A process that works answers a ping at once, whatever it works on; one that was stopped answers nothing.
            pinged = pinged.filter(|at| heard.last() < *at);
            match pinged {
                None if heard.last().elapsed() >= patience => {
                    pinged = Some(Instant::now());
                    // Under a number of its own: nobody waits for what it answers, only that it does.
                    say(self.next_call.fetch_add(1, Ordering::Relaxed), Ask::Ping);
                }
                Some(at) if at.elapsed() >= patience => {
                    calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&call);
                    tracing::warn!(pid, "engine answers no ping and is killed");
                    self.discard(pid, "it stood still and was killed");
                    let reason = format!("process {pid} stood still and was killed");
                    return Err(EngineError::Unavailable { reason });
                }
                _ => {}
            }
            if Instant::now() >= hung_at {
                if !is_behind_another(&calls, call) {
                    self.kill_hung(pid);
                }
                return Err(EngineError::DeadlineExceeded);
            }
        }
    }

    /// Delivers a call to a live process; what comes back arrives at the receiver.
    fn send(
        &self,
        frame: &ToEngine,
        hung_at: Instant,
        cancel: &CancelToken,
    ) -> Result<(Receiver<Tell>, Connection), EngineError> {
        let (replies, receiver) = sync_channel(CALL_EVENTS_MAX);
        let connection = self.with_running(cancel, |running| {
            let mut calls = running.calls.lock().unwrap_or_else(PoisonError::into_inner);
            // Checked under the lock that the reader takes for its clearing: no call is left behind without a waker.
            if running.broken.load(Ordering::Acquire) {
                return Err(EngineError::Unavailable { reason: String::from("its connection broke") });
            }
            calls.insert(frame.call, Waiting { replies, lane: frame.body.lane(), hung_at });
            drop(calls);
            Ok(Connection {
                writer: Arc::clone(&running.writer),
                calls: Arc::clone(&running.calls),
                heard: Arc::clone(&running.heard),
                pid: running.child.id(),
            })
        })?;
        let sent = write_frame(&mut *connection.writer.lock().unwrap_or_else(PoisonError::into_inner), frame);
        let Err(error) = sent else {
            return Ok((receiver, connection));
        };
        connection.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(&frame.call);
        // A frame over the limit is the caller's fault, everything else the connection's.
        if let WireError::TooLong { bytes } = error {
            return Err(EngineError::invalid("request", format!("has {bytes} bytes, too many for one call")));
        }
        let pid = connection.pid;
        self.discard(pid, "it could not be written to");
        Err(EngineError::Unavailable { reason: format!("process {pid} cannot be written to: {error}") })
    }

    fn kill_hung(&self, pid: u32) {
        tracing::warn!(pid, "engine hangs past its deadline and is killed");
        self.discard(pid, "it hung past a deadline and was killed");
    }

    /// Ends that process, unless another one took its place already.
    fn discard(&self, pid: u32, reason: &str) {
        let mut supervision = self.lock();
        if supervision.running.as_ref().is_some_and(|running| running.child.id() == pid) {
            supervision.last_failure = Some(reason.to_owned());
            let running = self.take_running(&mut supervision);
            drop(supervision);
            if let Some(running) = running {
                end(running);
            }
        }
    }
}

/// A start under way; with its end, however it comes, the others wait no longer.
struct Starting<'a>(&'a EngineProcess);

impl Starting<'_> {
    fn start(self) -> Result<(), EngineError> {
        let running = self.0.start()?;
        *self.0.last_info.write().unwrap_or_else(PoisonError::into_inner) = Some(running.info.clone());
        let mut supervision = self.0.lock();
        self.0.pid.store(running.child.id(), Ordering::Release);
        supervision.running = Some(running);
        Ok(())
    }
}

impl Drop for Starting<'_> {
    fn drop(&mut self) {
        self.0.lock().starting = false;
        self.0.start_ended.notify_all();
    }
}

/// Counts a call for as long as it lives.
struct Active<'a>(&'a EngineProcess);

impl<'a> Active<'a> {
    fn enter(process: &'a EngineProcess) -> Self {
        process.active.fetch_add(1, Ordering::AcqRel);
        Self(process)
    }
}

/// Holds the trainer for as long as it lives: somebody waits for the answer.
struct Awaited<'a>(&'a EngineProcess);

impl<'a> Awaited<'a> {
    fn enter(process: &'a EngineProcess) -> Self {
        process.awaited.fetch_add(1, Ordering::AcqRel);
        process.trainer.hold();
        Self(process)
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        *self.0.last_awaited.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.awaited.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        *self.0.last_used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.active.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Engine for EngineProcess {
    fn info(&self) -> EngineInfo {
        // Before the first start there is nothing to say yet; callers that need the truth call `ensure_started`.
        let known = self.last_info.read().unwrap_or_else(PoisonError::into_inner).clone();
        known.unwrap_or_else(EngineInfo::unknown)
    }

    fn embed(
        &self,
        texts: &[String],
        purpose: EmbedPurpose,
        cancel: &CancelToken,
    ) -> Result<Vec<Embedding>, EngineError> {
        // Stored texts are embedded and scored behind the scenes; a question is asked by somebody.
        let _awaited = (purpose == EmbedPurpose::Query).then(|| Awaited::enter(self));
        let ask = |within_ms| Ask::Embed { texts: texts.to_vec(), purpose, within_ms };
        match self.call(cancel, ask, |_| {})? {
            Tell::Embedded(vectors) if vectors.len() == texts.len() => vectors
                .into_iter()
                .map(|vector| Embedding::normalized(vector).map_err(|error| unexpected(&error.to_string())))
                .collect(),
            Tell::Embedded(vectors) => Err(unexpected(&format!("{} vectors for {} texts", vectors.len(), texts.len()))),
            _ => Err(unexpected("another reply than vectors")),
        }
    }

    fn generate(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> Result<Generation, EngineError> {
        let _awaited = Awaited::enter(self);
        // However long its caller would wait.
        let cancel = &cancel.within(self.options().call_timeout);
        let ask = |within_ms| Ask::Generate { request: Box::new(request.clone()), within_ms };
        match self.call(cancel, ask, observe)? {
            Tell::Generated(generation) => Ok(*generation),
            _ => Err(unexpected("another reply than a generation")),
        }
    }

    fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError> {
        let ask = |within_ms| Ask::Score { items: items.to_vec(), within_ms };
        match self.call(cancel, ask, |_| {})? {
            Tell::Scored(scores) if scores.len() == items.len() => Ok(scores),
            _ => Err(unexpected("another reply than a score for each text")),
        }
    }

    /// Trains in a process of its own (`PROGRAM train JOB`), so that serving goes on beside it. While a generation or a
    /// question is under way, and for a moment after it, the trainer is stopped: it would share caches and memory with what
    /// somebody waits for. Texts that are embedded or scored behind the scenes do not stop it.
    fn train(
        &self,
        job: &TrainJob,
        observe: &mut dyn FnMut(TrainEvent),
        cancel: &CancelToken,
    ) -> Result<TrainOutcome, EngineError> {
        let idle = || {
            let last = self.last_awaited.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            self.awaited.load(Ordering::Acquire) == 0 && last >= TRAINER_WAITS
        };
        crate::trainer::run(&self.options(), job, observe, cancel, &self.trainer, &idle)
    }
}

fn unexpected(what: &str) -> EngineError {
    EngineError::Internal { reason: format!("engine process sent {what}") }
}

fn end(mut running: Running) {
    let _ = running.child.kill();
    let _ = running.child.wait();
    running.calls.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_gets_its_own_settings_of_the_allocator_and_not_the_daemons() {
        let command = command("mneme-engine".as_ref());
        let set: Vec<_> = command.get_envs().collect();
        for name in NOT_INHERITED {
            assert!(set.contains(&(name.as_ref(), None)), "{name} is taken away: {set:?}");
        }
        assert!(set.contains(&("MALLOC_ARENA_MAX".as_ref(), Some("2".as_ref()))));
    }
}
