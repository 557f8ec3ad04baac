//! The fake engine as a program, with the manners of `mneme-engine`: for tests, and for machines without libtorch.
//!
//! `FAKE_ENGINE_FAULT` makes it misbehave on purpose at the first generation: `abort`, `kill` (as the kernel does when memory is
//! short), `memory` (an allocation fails), `hang`, `stopped` (SIGSTOP: not even its threads run) or `garbage`;
//! or `slow`: every generation goes on until it is told to stop, unless its text says `quick`.
//! `FAKE_ENGINE_UNTRAINABLE` names a level (`control_net`, `lora`, `layers`) that it says it trains and then cannot.
//! `FAKE_ENGINE_KEEP_JOBS` names a folder that every job is copied to before it is trained, as `ADAPTER.json`: it is removed when the
//! trainer ends, and who wants to train it once more needs it.
//! `FAKE_ENGINE_STEP_MS` makes each step of a training take so long: a training that ends at once cannot be interrupted.

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;

use mneme_base::Embedding;
use rustix::process::{Resource, Rlimit, Signal};

use super::FakeEngine;
use crate::engine::{CancelToken, Engine, EngineError};
use crate::serve::serve;
use crate::trainer::{EXIT_UNSUPPORTED, OUTCOME_FILE};
use crate::types::{
    CanvasEvent, EmbedPurpose, EngineInfo, GenerateRequest, Generation, ScoreItem, ScoreOutcome, Segment, TrainEvent,
    TrainJob, TrainOutcome,
};

/// Runs the fake engine as a process: `serve` or `train JOB.json`.
pub fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|what| what == "train") {
        crate::trainer::end_with_parent();
    }
    if let ["train", job] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..]
        && is_untrainable(Path::new(job))
    {
        return ExitCode::from(EXIT_UNSUPPORTED);
    }
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => serve_on_stdin(),
        ["train", job] => train(Path::new(job)),
        _ => Err(String::from("usage: mneme-engine-fake serve | train JOB.json")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve_on_stdin() -> Result<(), String> {
    let fd = std::io::stdin().as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
    let fault = std::env::var("FAKE_ENGINE_FAULT").ok();
    let engine = Faulty { inner: FakeEngine::default(), fault, stream: UnixStream::from(fd) };
    let stream = engine.stream.try_clone().map_err(|error| error.to_string())?;
    serve(&engine, stream).map_err(|error| error.to_string())
}

/// Whether this trainer is to refuse the job's level.
fn is_untrainable(path: &Path) -> bool {
    let Ok(level) = std::env::var("FAKE_ENGINE_UNTRAINABLE") else { return false };
    let job = fs_err::read(path).ok().and_then(|text| serde_json::from_slice::<TrainJob>(&text).ok());
    job.is_some_and(|job| serde_json::to_value(job.level).is_ok_and(|name| name == level.as_str()))
}

fn train(path: &Path) -> Result<(), String> {
    let text = fs_err::read_to_string(path).map_err(|error| error.to_string())?;
    let job: TrainJob = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    if let Some(kept) = std::env::var_os("FAKE_ENGINE_KEEP_JOBS") {
        let kept = Path::new(&kept).join(format!("{}.json", job.adapter));
        super::training::replace(&kept, text.as_bytes()).map_err(|error| error.to_string())?;
    }
    let mut out = std::io::stdout().lock();
    let pause = std::env::var("FAKE_ENGINE_STEP_MS").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut begun = false;
    let mut observe = |event: TrainEvent| {
        if !std::mem::replace(&mut begun, true) && event.step > 1 {
            eprintln!("training goes on after step {}", event.step - 1);
        }
        let line = serde_json::to_string(&event).expect("events are plain data");
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
        if pause > 0 {
            std::thread::sleep(std::time::Duration::from_millis(pause));
        }
    };
    let outcome =
        FakeEngine::default().train(&job, &mut observe, &CancelToken::default()).map_err(|error| error.to_string())?;
    let folder = Path::new(&job.folder);
    let temporary = folder.join("outcome.json.tmp");
    let bytes = serde_json::to_vec_pretty(&outcome).map_err(|error| error.to_string())?;
    fs_err::write(&temporary, bytes).map_err(|error| error.to_string())?;
    fs_err::rename(&temporary, folder.join(OUTCOME_FILE)).map_err(|error| error.to_string())
}

/// Sends itself a signal that cannot be caught; when it goes on after all, it has an answer.
fn fatal(signal: Signal) -> Result<Generation, EngineError> {
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    Err(EngineError::Internal { reason: "this process was to end".into() })
}

/// Bytes that may still be allocated before an allocation fails.
const MEMORY_LEFT: u64 = 64 << 20;

/// Allocates until there is no more: the allocator aborts the process, as libtorch's does.
fn exhaust_memory() -> ! {
    let pages = fs_err::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = pages.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0);
    let limit = Some(pages * rustix::param::page_size() as u64 + MEMORY_LEFT);
    let _ = rustix::process::setrlimit(Resource::As, Rlimit { current: limit, maximum: limit });
    let mut kept: Vec<Vec<u8>> = Vec::new();
    // Twice what is left, so that a system without such limits does not suffer.
    for _ in 0..2 * (MEMORY_LEFT >> 20) {
        kept.push(vec![1; 1 << 20]);
    }
    std::hint::black_box(&kept);
    std::process::abort()
}

fn asks_for_speed(request: &GenerateRequest) -> bool {
    request.canvas.iter().any(|segment| matches!(segment, Segment::Text(text) if text.contains("quick")))
}

/// The fake engine with a fault on demand.
#[derive(Debug)]
struct Faulty {
    inner: FakeEngine,
    fault: Option<String>,
    stream: UnixStream,
}

impl Engine for Faulty {
    fn info(&self) -> EngineInfo {
        self.inner.info()
    }

    fn embed(
        &self,
        texts: &[String],
        purpose: EmbedPurpose,
        cancel: &CancelToken,
    ) -> Result<Vec<Embedding>, EngineError> {
        self.inner.embed(texts, purpose, cancel)
    }

    fn generate(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> Result<Generation, EngineError> {
        match self.fault.as_deref() {
            Some("abort") => std::process::abort(),
            Some("kill") => fatal(Signal::KILL),
            Some("memory") => exhaust_memory(),
            Some("stopped") => fatal(Signal::STOP),
            Some("hang") => loop {
                std::thread::park();
            },
            // Until it is told to stop, as an engine does between steps; quick when it is asked to be.
            Some("slow") if !asks_for_speed(request) => loop {
                cancel.check()?;
                std::thread::sleep(std::time::Duration::from_millis(2));
            },
            Some("garbage") => {
                let _ = (&self.stream).write_all(&[0xff; 4096]);
                self.inner.generate(request, observe, cancel)
            }
            _ => self.inner.generate(request, observe, cancel),
        }
    }

    fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError> {
        self.inner.score(items, cancel)
    }

    fn train(
        &self,
        job: &TrainJob,
        observe: &mut dyn FnMut(TrainEvent),
        cancel: &CancelToken,
    ) -> Result<TrainOutcome, EngineError> {
        self.inner.train(job, observe, cancel)
    }
}
