//! A training job in a process of its own: `PROGRAM train JOB.json`, events as JSON lines on its standard output.
//!
//! SIGTERM asks it to write a checkpoint and leave; the same job started again goes on from there.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::{CancelToken, EngineError};
use crate::process::ProcessOptions;
use crate::types::{TrainEvent, TrainJob, TrainOutcome};

/// The job as the trainer reads it, in the job's folder.
pub const JOB_FILE: &str = "job.json";
/// The result as the trainer leaves it, in the job's folder.
pub const OUTCOME_FILE: &str = "outcome.json";
/// How long a trainer may take from SIGTERM to its end before it is killed: one optimiser step and a checkpoint.
const STOP_GRACE: Duration = Duration::from_secs(20);
/// How long the last lines of an ended trainer are waited for.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often a running trainer is looked after (milliseconds).
const POLL_MS: u64 = 50;
/// Event lines that wait for us; a trainer that writes faster waits.
const EVENTS_MAX: usize = 64;

fn unavailable(what: &str, error: &dyn std::fmt::Display) -> EngineError {
    EngineError::Unavailable { reason: format!("{what}: {error}") }
}

/// Runs a job to its end, or to its checkpoint when it is cancelled.
pub(crate) fn run(
    options: &ProcessOptions,
    job: &TrainJob,
    observe: &mut dyn FnMut(TrainEvent),
    cancel: &CancelToken,
    pid: &Mutex<Option<u32>>,
) -> Result<TrainOutcome, EngineError> {
    cancel.check()?;
    let folder = std::path::Path::new(&job.folder);
    fs_err::create_dir_all(folder).map_err(|error| unavailable("job folder cannot be made", &error))?;
    let outcome_path = folder.join(OUTCOME_FILE);
    let job_path = folder.join(JOB_FILE);
    let text = serde_json::to_vec_pretty(job).map_err(|error| unavailable("job cannot be written", &error))?;
    if fs_err::read(&job_path).is_ok_and(|before| before == text) {
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
        fs_err::write(&job_path, text).map_err(|error| unavailable("job cannot be written", &error))?;
    }
    let mut child = Command::new(&options.program)
        .arg("train")
        .arg(&job_path)
        .args(&options.arguments)
        .envs(options.environment.iter().cloned())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|error| unavailable("trainer cannot be started", &error))?;
    *pid.lock().unwrap_or_else(PoisonError::into_inner) = Some(child.id());
    let watched = watch(&mut child, observe, cancel);
    *pid.lock().unwrap_or_else(PoisonError::into_inner) = None;
    let status = watched?;
    match read_outcome(&outcome_path)? {
        Some(outcome) => Ok(outcome),
        None if cancel.check().is_err() => Err(EngineError::Cancelled),
        None => Err(EngineError::Internal { reason: format!("trainer ended with {status} and left no outcome") }),
    }
}

fn watch(
    child: &mut Child,
    observe: &mut dyn FnMut(TrainEvent),
    cancel: &CancelToken,
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
        if kill_at.is_none() && cancel.check().is_err() {
            terminate(child);
            kill_at = Some(Instant::now() + STOP_GRACE);
        }
        if kill_at.is_some_and(|at| Instant::now() >= at) {
            tracing::warn!(pid = child.id(), "trainer did not leave in time and is killed");
            let _ = child.kill();
        }
    }
}

fn terminate(child: &Child) {
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
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
