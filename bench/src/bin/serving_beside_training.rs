//! How long an answer takes while a job trains, against how long it takes without: in one run, in turns.
//!
//! `cargo xtask bench serving_beside_training [--engine PROGRAM] [--requests N]`
//!
//! One client asks for short continuations and thinks between them, as a person's agent does. Blocks of requests with a
//! training job under way take turns with blocks without; the trainer is the real one, on one thread, with text enough never
//! to end by itself. It is stopped while a call is under way and a moment after; the table says how far it came in between.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use mneme_base::AdapterId;
use mneme_bench::streams::{Failure, default_file, streams};
use mneme_engine_api::{
    AdapterLevel, CancelToken, Engine as _, EngineProcess, GenerateRequest, GenerationMode, ProcessOptions, TrainJob,
    TrainText,
};

/// Blocks of each kind.
const BLOCKS: usize = 3;
/// Time between an answer and the next request: longer than the trainer waits before it goes on.
const THINKING: Duration = Duration::from_millis(450);
/// Requests at the start that are not counted: weights are read, kernels chosen.
const WARM_UP: usize = 6;
/// Tokens of an answer.
const TOKENS: u32 = 8;
/// The trainer has loaded its weights and trains.
const TRAINER_START: Duration = Duration::from_mins(2);
const TIMEOUT: Duration = Duration::from_mins(5);

/// Measures answers beside training.
#[derive(Debug, Parser)]
#[command(name = "serving_beside_training")]
struct Arguments {
    /// The engine's program; beside this one when it is not given.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// Requests of one block.
    #[arg(long, default_value_t = 40)]
    requests: usize,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let own = std::env::current_exe()?;
    let beside = own.parent().ok_or("this program lies in no folder")?.join("mneme-engine");
    let options = ProcessOptions {
        arguments: vec!["--threads".into(), "1".into()],
        start_timeout: TIMEOUT,
        ..ProcessOptions::new(arguments.engine.clone().unwrap_or(beside))
    };
    let engine = EngineProcess::new(options);
    let texts = streams(&default_file())?.into_iter().next().unwrap_or_default();
    if texts.len() < 200 {
        return Err("200 texts to train on are needed".into());
    }
    let folder = tempfile::tempdir()?;
    (0..WARM_UP).try_for_each(|number| ask(&engine, &texts, number).map(drop))?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    let steps = AtomicU32::new(0);
    let mut trained = Duration::ZERO;
    for block in 0..BLOCKS {
        without.extend(block_of(&engine, &texts, arguments.requests, block)?);
        let cancel_block = CancelToken::default();
        let job = job(&texts, folder.path());
        let before = steps.load(Ordering::Relaxed);
        with.extend(std::thread::scope(|scope| -> Result<Vec<Duration>, Failure> {
            let training = scope.spawn(|| {
                let mut observe = |event: mneme_engine_api::TrainEvent| steps.store(event.step, Ordering::Relaxed);
                engine.train(&job, &mut observe, &cancel_block)
            });
            let until = Instant::now() + TRAINER_START;
            while steps.load(Ordering::Relaxed) == before && Instant::now() < until && !training.is_finished() {
                std::thread::sleep(Duration::from_millis(20));
            }
            let began = Instant::now();
            let times = block_of(&engine, &texts, arguments.requests, block);
            trained += began.elapsed();
            cancel_block.cancel();
            let ended = training.join().map_err(|_| "the training thread ended early")?;
            if !matches!(ended, Err(mneme_engine_api::EngineError::Cancelled)) {
                return Err(format!("training did not go on beside the requests: {ended:?}").into());
            }
            times
        })?);
    }
    println!("\n| | p50 | p90 | p99 | requests |\n|---|---|---|---|---|");
    row("nothing trains", &mut without);
    row("a job trains", &mut with);
    let ratio = |share: f64| quantile(&with, share).as_secs_f64() / quantile(&without, share).as_secs_f64();
    println!("| ratio | {:.2} | {:.2} | {:.2} | |", ratio(0.5), ratio(0.9), ratio(0.99));
    println!(
        "\nthe job made {} steps, in {:.0} s beside the requests and before them",
        steps.load(Ordering::Relaxed),
        trained.as_secs_f64()
    );
    Ok(())
}

fn job(texts: &[String], folder: &std::path::Path) -> TrainJob {
    let text = |(index, text): (usize, &String)| TrainText { memory: index.to_string(), text: text.clone() };
    TrainJob {
        adapter: AdapterId::from_bytes([3; 16]),
        level: AdapterLevel::Lora,
        train: texts.iter().take(200).enumerate().map(text).collect(),
        held_out: Vec::new(),
        replay: Vec::new(),
        guard: Vec::new(),
        placebo: Vec::new(),
        parent: None,
        steps_max: 100_000,
        scale: 1.0,
        seed: 1,
        folder: folder.join("job").display().to_string(),
    }
}

fn block_of(engine: &EngineProcess, texts: &[String], requests: usize, block: usize) -> Result<Vec<Duration>, Failure> {
    (0..requests)
        .map(|number| {
            std::thread::sleep(THINKING);
            ask(engine, texts, block * requests + number)
        })
        .collect()
}

fn ask(engine: &EngineProcess, texts: &[String], number: usize) -> Result<Duration, Failure> {
    let prompt: Vec<&str> = texts[number % texts.len()].split_whitespace().take(24).collect();
    let request =
        GenerateRequest { mode: GenerationMode::Ar, ..GenerateRequest::continuation(prompt.join(" "), TOKENS) };
    let before = Instant::now();
    engine.generate(&request, &mut |_| {}, &CancelToken::with_deadline(TIMEOUT))?;
    Ok(before.elapsed())
}

fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let place = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(place).copied().unwrap_or_default()
}

fn row(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let ms = |share: f64| quantile(times, share).as_secs_f64() * 1e3;
    println!("| {name} | {:.1} ms | {:.1} ms | {:.1} ms | {} |", ms(0.5), ms(0.9), ms(0.99), times.len());
}
