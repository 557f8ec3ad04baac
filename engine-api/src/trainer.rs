//! A training job in a process of its own: `PROGRAM train JOB.json`, events as JSON lines on its standard output.
//!
//! SIGTERM asks it to write a checkpoint and leave; the same job started again goes on from there.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mneme_base::ContentHash;

use crate::engine::{CancelToken, EngineError};
use crate::process::{ProcessOptions, command};
use crate::types::{TrainEvent, TrainJob, TrainOutcome};

/// The job as the trainer reads it, in the job's folder. It holds the texts, so it is gone when the trainer is.
pub const JOB_FILE: &str = "job.json";
/// The hash of the job that the outcome beside it belongs to.
const HASH_FILE: &str = "job.hash";
/// The result as the trainer leaves it, in the job's folder.
pub const OUTCOME_FILE: &str = "outcome.json";
/// The status by which a trainer says that it cannot train a job's level at all (EX_UNAVAILABLE); trying again is of no use.
pub const EXIT_UNSUPPORTED: u8 = 69;
/// The status of a trainer whose daemon is gone (EX_TEMPFAIL): nobody reads it.
const EXIT_ORPHAN: u8 = 75;
/// The variable that tells a trainer the process id of the one that started it.
const PARENT: &str = "MNEME_TRAINER_PARENT";
/// How long a trainer may take from SIGTERM to its end before it is killed: one optimiser step and a checkpoint.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long the last lines of an ended trainer are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often a running trainer is looked after (milliseconds).
const POLL_MS: u64 = 50;
/// Event lines that wait for us; a trainer that writes faster waits.
const EVENTS_MAX: usize = 64;

/// The trainer that runs, if one does, and whether it is held.
#[derive(Debug, Default)]
pub(crate) struct Trainer(Mutex<Option<Job>>);

#[derive(Debug, Clone, Copy)]
struct Job {
    pid: u32,
    held: bool,
}

impl Trainer {
    fn lock(&self) -> MutexGuard<'_, Option<Job>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.lock().map(|child| child.pid)
    }

    /// Stops it where it is; it keeps its memory and loses nothing.
    pub(crate) fn hold(&self) {
        if let Some(child) = self.lock().as_mut().filter(|child| !child.held) {
            child.held = true;
            signal(child.pid, rustix::process::Signal::STOP);
        }
    }

    /// Lets it go on.
    fn go_on(&self) {
        if let Some(child) = self.lock().as_mut().filter(|child| child.held) {
            child.held = false;
            signal(child.pid, rustix::process::Signal::CONT);
        }
    }
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Ends this process when the one that started it ends, however that ends: no trainer outlives its daemon, beside whose next
/// trainer it would write into the same folder. What it has not written into its checkpoint is lost. Called by the trainer itself, first of
/// all; a training that a person started by hand goes on.
pub fn end_with_parent() {
    let Some(parent) = std::env::var(PARENT).ok().and_then(|text| text.parse().ok()) else { return };
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    // It may have ended before that: then this process is another one's child.
    if rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero).map(i32::from) != Some(parent) {
        tracing::warn!("nobody waits for this training");
        std::process::exit(i32::from(EXIT_ORPHAN));
    }
}

fn unavailable(what: &str, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unavailable { reason: format!("{what}: {error}") }
}

/// Runs a job to its end, or to its checkpoint when it is cancelled.
pub(crate) fn run(
    options: &ProcessOptions,
    job: &TrainJob,
    observe: &mut dyn FnMut(TrainEvent),
    cancel: &CancelToken,
    trainer: &Trainer,
    idle: &dyn Fn() -> bool,
) -> Result<TrainOutcome, EngineError> {
    cancel.check()?;
    let folder = std::path::Path::new(&job.folder);
    fs_err::create_dir_all(folder).map_err(|error| unavailable("job folder cannot be made", &error))?;
    let outcome_path = folder.join(OUTCOME_FILE);
    let job_path = folder.join(JOB_FILE);
    let hash_path = folder.join(HASH_FILE);
    let text = serde_json::to_vec_pretty(job).map_err(|error| unavailable("job cannot be written", &error))?;
    let hash = ContentHash::of(&text).to_string();
    if fs_err::read_to_string(&hash_path).is_ok_and(|before| before == hash) {
        // The same job as before: when it had ended, its outcome stands.
        if let Some(outcome) = read_outcome(&outcome_path)? {
            return Ok(outcome);
        }
    } else {
        match fs_err::remove_file(&outcome_path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(unavailable("old outcome cannot be removed", &error));
            }
            _ => {}
        }
        fs_err::write(&hash_path, hash).map_err(|error| unavailable("job cannot be written", &error))?;
    }
    // Before it is written: a full disk takes a part of it.
    let _texts = Removed(&job_path);
    fs_err::write(&job_path, text).map_err(|error| unavailable("job cannot be written", &error))?;
    let mut child = command(&options.program)
        .arg("train")
        .env(PARENT, std::process::id().to_string())
        .arg(&job_path)
        .args(&options.arguments)
        .envs(options.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| unavailable("trainer cannot be started", &error))?;
    *trainer.lock() = Some(Job { pid: child.id(), held: false });
    let watched = watch(&mut child, observe, cancel, trainer, idle);
    *trainer.lock() = None;
    let status = watched?;
    match read_outcome(&outcome_path)? {
        Some(outcome) => Ok(outcome),
        None if cancel.check().is_err() => Err(EngineError::Cancelled),
        None if status.code() == Some(i32::from(EXIT_UNSUPPORTED)) => Err(EngineError::Unsupported {
            engine: options.program.display().to_string(),
            feature: format!("training of level {:?}", job.level),
        }),
        None => Err(EngineError::Internal { reason: format!("trainer ended with {status} and left no outcome") }),
    }
}

/// Removes a file at its end, however that comes.
struct Removed<'a>(&'a std::path::Path);

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        match fs_err::remove_file(self.0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::error!(%error, "texts of a training job stay on disk");
            }
            _ => {}
        }
    }
}

fn watch(
    child: &mut Child,
    observe: &mut dyn FnMut(TrainEvent),
    cancel: &CancelToken,
    trainer: &Trainer,
    idle: &dyn Fn() -> bool,
) -> Result<std::process::ExitStatus, EngineError> {
    let stdout = child.stdout.take().expect("standard output was asked for as a pipe");
    let (sender, receiver) = sync_channel(EVENTS_MAX);
    let read = move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if let Ok(event) = serde_json::from_str::<TrainEvent>(&line)
                && sender.send(event).is_err()
            {
                return;
            }
        }
    };
    std::thread::Builder::new()
        .name("trainer-events".into())
        .spawn(read)
        .map_err(|error| unavailable("trainer cannot be read", &error))?;
    let mut kill_at = None;
    let mut reading = true;
    loop {
        if reading {
            match receiver.recv_timeout(Duration::from_millis(POLL_MS)) {
                Ok(event) => observe(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => reading = false,
            }
        } else {
            // Its output is closed, so its end is near: nothing else to wait for.
            std::thread::park_timeout(Duration::from_millis(POLL_MS));
        }
        if let Some(status) = child.try_wait().map_err(|error| unavailable("trainer cannot be observed", &error))? {
            // Its last lines may still be on their way through the pipe; the reader ends at the pipe's end, so this does too.
            while let Ok(event) = receiver.recv_timeout(LAST_LINES) {
                observe(event);
            }
            return Ok(status);
        }
        let stopping = kill_at.is_some() || cancel.check().is_err();
        // A held trainer hears no signal to leave.
        if stopping || idle() {
            trainer.go_on();
        }
        if kill_at.is_none() && stopping {
            signal(child.id(), rustix::process::Signal::TERM);
            kill_at = Some(Instant::now() + STOP_GRACE);
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            tracing::warn!(pid = child.id(), "trainer did not leave in time and is killed");
            let _ = child.kill();
        }
    }
}

fn read_outcome(path: &std::path::Path) -> Result<Option<TrainOutcome>, EngineError> {
    match fs_err::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| EngineError::Load { what: String::from("training outcome"), problem: error.to_string() }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unavailable("training outcome cannot be read", &error)),
    }
}
