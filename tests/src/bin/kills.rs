//! Kills the parts of a running loop at random points, and kills a real trainer until its adapter is done.
//!
//! `cargo xtask kills [--points N] [--seed N] [--real N]`
#![expect(clippy::print_stdout, reason = "a long check tells how far it is")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use mneme_base::{AdapterId, ContentHash};
use mneme_engine_api::{AdapterLevel, TrainJob, TrainText};
use mneme_tests::kills::{Sweep, run};

/// Optimiser steps of the real job: three checkpoints.
const REAL_STEPS: u32 = 80;
/// A real job that takes longer than this hangs.
const REAL_PATIENCE: Duration = Duration::from_hours(1);

type Failure = Box<dyn std::error::Error>;

/// Kills and looks.
#[derive(Debug, Parser)]
#[command(name = "kills")]
struct Arguments {
    /// Kills of daemon, engine and trainer around the stand-in engine.
    #[arg(long, default_value_t = 200)]
    points: usize,
    /// Seed of victims and moments.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Kills of a real trainer; its adapter must be the same bytes as without them. Needs the models.
    #[arg(long, default_value_t = 0)]
    real: usize,
    /// The real engine's program; beside this one when it is not given.
    #[arg(long)]
    engine: Option<PathBuf>,
}

fn main() -> ExitCode {
    match all(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Builds the daemon and the stand-in engine in this program's own profile, and says where they lie.
fn build() -> Result<PathBuf, Failure> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the tests lie in no workspace")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["build", "--quiet", "-p", "mneme-tests", "--bins"]);
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    if !command.status()?.success() {
        return Err("the programs could not be built; the compiler's words are above".into());
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().ok_or("this program lies in no folder")?.to_path_buf())
}

fn all(arguments: &Arguments) -> Result<(), Failure> {
    let beside = build()?;
    let folder = tempfile::Builder::new().prefix("mneme-kills-").tempdir()?;
    if arguments.points > 0 {
        let sweep = Sweep {
            daemon: beside.join("e2e-mnemed"),
            engine: beside.join("e2e-mneme-engine-fake"),
            folder: folder.path().join("loop"),
            points: arguments.points,
            seed: arguments.seed,
        };
        fs_err::create_dir_all(&sweep.folder)?;
        let tally = run(&sweep, &mut |line| println!("{line}"))?;
        println!("\n{} kills, nothing lost: {:?}", arguments.points, tally.victims);
        println!("the loop was at {:?}; moments: {:?}", tally.stations, tally.moments);
        println!("a daemon that was killed answered again within {} ms", tally.start_max.as_millis());
        println!("{} memories, {} decisions, stations entered: {:?}", tally.memories, tally.decisions, tally.entered);
        println!(
            "{} trainings went on from a checkpoint; {} adapters accepted, each byte for byte what its job makes without kills",
            tally.resumed, tally.adapters
        );
    }
    if arguments.real > 0 {
        let program = arguments.engine.clone().unwrap_or_else(|| beside.join("mneme-engine"));
        real(&program, folder.path(), arguments)?;
    }
    Ok(())
}

/// Trains the same job twice, the second time with kills, and compares the adapters byte by byte.
fn real(program: &Path, folder: &Path, arguments: &Arguments) -> Result<(), Failure> {
    let text = include_str!("../../data/pepys-1660.jsonl");
    let texts: Vec<TrainText> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .enumerate()
        .map(|(index, value)| TrainText {
            memory: index.to_string(),
            text: value["text"].as_str().unwrap_or_default().into(),
        })
        .collect();
    let job = |name: &str| TrainJob {
        adapter: AdapterId::from_bytes([7; 16]),
        level: AdapterLevel::Lora,
        train: texts.iter().take(40).cloned().collect(),
        held_out: Vec::new(),
        replay: Vec::new(),
        guard: Vec::new(),
        placebo: Vec::new(),
        parent: None,
        steps_max: REAL_STEPS,
        scale: 1.0,
        seed: arguments.seed,
        folder: folder.join(name).display().to_string(),
    };
    let before = Instant::now();
    train(program, &job("whole"), None)?;
    let whole = before.elapsed();
    println!("the job takes {:.0} s without kills", whole.as_secs_f64());
    let interrupted = job("killed");
    for kill in 0..arguments.real {
        // Spread over the job, loading included; a job that is done is not killed any more.
        let after = whole.mul_f64(0.15 + 0.6 * ((kill * 7 + 3) % 10) as f64 / 10.0);
        let done = train(program, &interrupted, Some(after))?;
        println!(
            "kill {} of {} after {:.1} s: {}",
            kill + 1,
            arguments.real,
            after.as_secs_f64(),
            if done { "done" } else { "killed" }
        );
        if done {
            break;
        }
    }
    train(program, &interrupted, None)?;
    let hash = |name: &str| -> Result<ContentHash, Failure> {
        Ok(ContentHash::of(&fs_err::read(folder.join(name).join("adapter.safetensors"))?))
    };
    let (whole, killed) = (hash("whole")?, hash("killed")?);
    if whole != killed {
        return Err(format!("the adapters differ: {whole} without kills, {killed} with them").into());
    }
    println!("the adapter is the same, byte for byte: {whole}");
    Ok(())
}

/// Runs the trainer; kills it after a time. Whether it came to its end.
fn train(program: &Path, job: &TrainJob, kill_after: Option<Duration>) -> Result<bool, Failure> {
    let folder = Path::new(&job.folder);
    fs_err::create_dir_all(folder)?;
    let path = folder.join("job.json");
    fs_err::write(&path, serde_json::to_vec(job)?)?;
    let mut child =
        Command::new(program).arg("train").arg(&path).args(["--threads", "1"]).stdout(Stdio::null()).spawn()?;
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() { Ok(true) } else { Err(format!("the trainer ended with {status}").into()) };
        }
        if began.elapsed() >= kill_after.unwrap_or(REAL_PATIENCE) {
            child.kill()?;
            child.wait()?;
            return if kill_after.is_some() { Ok(false) } else { Err("the trainer hangs".into()) };
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
