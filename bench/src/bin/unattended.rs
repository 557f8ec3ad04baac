//! The loop on its own for an hour: a daemon, the real engine, and a person's diary that arrives faster than it was written.
//!
//! `cargo xtask bench unattended [--minutes N] [--out FOLDER] [--daemon PROGRAM] [--engine PROGRAM] [FILE]`
//!
//! Entries are remembered at a steady pace, some are answered to and judged. Nobody tells the loop to train. What happens is
//! sampled twice a minute into `samples.jsonl`; at the end `summary.md` says what the loop decided and how memory and disk
//! grew. Towards the end other people's text comes under the same name, and a user takes an adapter back if the loop has
//! not done so by itself; the summary says which it was.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use mneme_base::{Timestamp, TrustTier};
use mneme_bench::streams::{Failure, base_texts, default_file, shared, streams};
use mneme_client_sdk::blocking::Client;
use mneme_client_sdk::{CallOptions, ClientError, ClientOptions};
use mneme_ipc::types as wire;
use mneme_ipc::{Method, methods};

/// Time between two samples.
const SAMPLE: Duration = Duration::from_secs(30);
/// Entries are cut to this length (characters).
const ENTRY_CHARS: usize = 600;
/// Every so many entries one is answered to.
const ANSWER_EVERY: usize = 6;
/// Tokens of an answer.
const ANSWER_TOKENS: u32 = 12;
/// The share of the run after which other people's text comes.
const DRIFT_AT: f64 = 0.7;
/// The share of the run after which the user takes an adapter back, if the loop has not.
const ROLLBACK_AT: f64 = 0.9;
/// Slopes are measured after this share of the run: what is loaded once is no growth.
const WARM_AT: f64 = 0.25;
/// A call on a busy machine.
const PATIENCE: Duration = Duration::from_mins(5);
/// The first entry's time: 1 January 1660, one entry a day.
const FIRST_DAY_MS: i64 = -9_782_640_000_000;
const DAY_MS: i64 = 86_400_000;

/// Runs daemon and loop unattended and reports what happened.
#[derive(Debug, Parser)]
#[command(name = "unattended")]
struct Arguments {
    /// A diary (`.jsonl.gz`).
    file: Option<PathBuf>,
    /// How long to run.
    #[arg(long, default_value_t = 60.0)]
    minutes: f64,
    /// Entries a minute.
    #[arg(long, default_value_t = 10.0)]
    pace: f64,
    /// Where state, samples and summary are kept; must be empty or new.
    #[arg(long, default_value = "target/unattended")]
    out: PathBuf,
    /// The daemon's program; beside this one when it is not given.
    #[arg(long)]
    daemon: Option<PathBuf>,
    /// The engine's program, `auto`, or `fake`.
    #[arg(long, default_value = "auto")]
    engine: String,
    /// CPU minutes of one training job.
    #[arg(long, default_value_t = 2)]
    job_minutes: u32,
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

/// Ends the daemon with the run, however it ends.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What is looked at twice a minute.
#[derive(Debug, Clone, serde::Serialize)]
struct Sample {
    minute: f64,
    entries: usize,
    answers: usize,
    daemon_rss: u64,
    engine_rss: u64,
    disk: u64,
    state: String,
    waiting: Option<String>,
    trained: u64,
    accepted: u64,
    rejected: u64,
    rolled_back: u64,
    cpu_daemon: f64,
}

fn call<M: Method>(client: &Client, params: M::Params) -> Result<M::Result, Failure> {
    Ok(client.call_with::<M>(params, CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() })?)
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = arguments.file.clone().unwrap_or_else(default_file);
    let entries = streams(&file)?.into_iter().max_by_key(Vec::len).unwrap_or_default();
    let others: Vec<String> =
        base_texts(&shared("corpus/valid.jsonl.zst"), Some("books"), usize::MAX).unwrap_or_default();
    fs_err::create_dir_all(&arguments.out)?;
    let home = fs_err::canonicalize(&arguments.out)?;
    let mut daemon = start(arguments, &home)?;
    let client = connect(&home)?;
    let mut samples = fs_err::File::create(home.join("samples.jsonl"))?;
    let (began, length) = (Instant::now(), Duration::from_secs_f64(arguments.minutes * 60.0));
    let (mut all, mut sent, mut answers, mut next_sample) = (Vec::new(), 0_usize, 0_usize, Duration::ZERO);
    let mut ordered = None;
    while began.elapsed() < length {
        if let Some(status) = daemon.0.try_wait()? {
            return Err(format!(
                "the daemon ended with {status} after {:.1} minutes",
                began.elapsed().as_secs_f64() / 60.0
            )
            .into());
        }
        let elapsed = began.elapsed();
        let share = elapsed.as_secs_f64() / length.as_secs_f64();
        if elapsed.as_secs_f64() / 60.0 * arguments.pace >= sent as f64 {
            let drifted = share > DRIFT_AT && !others.is_empty() && sent % 2 == 0;
            let text = if drifted { &others[sent % others.len()] } else { &entries[sent % entries.len()] };
            let text: String = text.chars().take(ENTRY_CHARS).collect();
            remember(&client, &text, sent)?;
            sent += 1;
            if sent % ANSWER_EVERY == 0 {
                answers += usize::from(answer(&client, &text, answers)?);
            }
        }
        if elapsed >= next_sample {
            let sample = sample(&client, &daemon, &home, elapsed, sent, answers)?;
            writeln!(samples, "{}", serde_json::to_string(&sample)?)?;
            next_sample = elapsed + SAMPLE;
            if share > ROLLBACK_AT && ordered.is_none() {
                ordered = Some(take_back(&client)?);
            }
            all.push(sample);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    let log = call::<methods::EvolveLog>(&client, wire::EvolveLogParams { limit: Some(1_000), ..Default::default() })?;
    let text = summary(arguments, &all, &log.decisions, ordered.as_ref().and_then(Option::as_deref));
    fs_err::write(home.join("summary.md"), &text)?;
    println!("{text}");
    call::<methods::Drain>(&client, wire::DrainParams {})?;
    let status = daemon.0.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}").into()) }
}

fn start(arguments: &Arguments, home: &Path) -> Result<Running, Failure> {
    let own = std::env::current_exe()?;
    let beside = own.parent().ok_or("this program lies in no folder")?.join("mnemed");
    let program = arguments.daemon.clone().unwrap_or(beside);
    let mut command = Command::new(&program);
    if let Some(assets) = std::env::var_os("MNEME_ASSETS") {
        command.env("MNEME_PATHS__ASSETS_DIR", assets).env_remove("MNEME_ASSETS");
    }
    let log = fs_err::File::create(home.join("mnemed.log"))?;
    command
        .env("HOME", home)
        .env("MNEME_PATHS__STATE_DIR", home.join("state"))
        .env("MNEME_PATHS__RUNTIME_DIR", home.join("run"))
        .env("MNEME_ENGINE__PROGRAM", &arguments.engine)
        .env("MNEME_ENGINE__THREADS", "1")
        // A person's month passes in an hour, and so does the loop's budget.
        .env("MNEME_EVOLUTION__CPU_MINUTES_PER_DAY", "1440")
        .env("MNEME_EVOLUTION__JOB_CPU_MINUTES_MAX", arguments.job_minutes.to_string())
        // The machine may be busy with other work; the run is about what the loop does, not about when.
        .env("MNEME_EVOLUTION__LOAD_MAX", "1")
        .env("MNEME_EVOLUTION__PAUSE_ON_BATTERY", "false")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(log.into_parts().0));
    Ok(Running(command.spawn().map_err(|error| format!("{} could not be started: {error}", program.display()))?))
}

fn connect(home: &Path) -> Result<Client, Failure> {
    let options = ClientOptions::new("unattended").socket(home.join("run/mneme.sock"));
    let until = Instant::now() + PATIENCE;
    loop {
        match Client::connect(options.clone()) {
            Ok(client) => return Ok(client),
            Err(ClientError::NotRunning { .. }) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn remember(client: &Client, text: &str, number: usize) -> Result<(), Failure> {
    let params = wire::RememberParams {
        text: text.to_owned(),
        trust: Some(TrustTier::User),
        valid_from: Some(Timestamp::from_millis(FIRST_DAY_MS + number as i64 * DAY_MS)),
        ..wire::RememberParams::default()
    };
    call::<methods::Remember>(client, params).map(|_| ())
}

/// Asks for a continuation of an entry's beginning and judges it; false when the engine was busy.
fn answer(client: &Client, text: &str, number: usize) -> Result<bool, Failure> {
    let prompt: String = text.split_whitespace().take(12).collect::<Vec<_>>().join(" ");
    let params = wire::GenerateParams {
        prompt: Some(prompt),
        tokens_max: Some(ANSWER_TOKENS),
        namespace: Some("default".parse()?),
        memories_max: Some(2),
        ..wire::GenerateParams::default()
    };
    let Ok(result) = call::<methods::Generate>(client, params) else { return Ok(false) };
    let verdict = if number.is_multiple_of(3) { wire::Verdict::Reject } else { wire::Verdict::Accept };
    call::<methods::Feedback>(
        client,
        wire::FeedbackParams { task: result.task, verdict, correction: None, trust: None },
    )?;
    Ok(true)
}

/// Takes back what serves, if the loop has taken nothing back; says what was done.
fn take_back(client: &Client) -> Result<Option<String>, Failure> {
    let status = call::<methods::EvolveStatus>(client, wire::EvolveStatusParams {})?;
    if status.rolled_back > 0 {
        return Ok(None);
    }
    let Some(serving) = status.adapters.iter().find(|adapter| adapter.state == "active") else {
        return Ok(Some("nothing served that could be taken back".to_owned()));
    };
    let adapter = serving.id;
    let done = call::<methods::EvolveRollback>(client, wire::EvolveAdapterParams { adapter })?;
    Ok(Some(format!("the user took {adapter} back: {}", done.message)))
}

fn sample(
    client: &Client,
    daemon: &Running,
    home: &Path,
    elapsed: Duration,
    entries: usize,
    answers: usize,
) -> Result<Sample, Failure> {
    let status = call::<methods::EvolveStatus>(client, wire::EvolveStatusParams {})?;
    let pid = daemon.0.id();
    let engine = children(pid).into_iter().filter(|child| command_of(*child).contains("serve")).map(rss).max();
    Ok(Sample {
        minute: elapsed.as_secs_f64() / 60.0,
        entries,
        answers,
        daemon_rss: rss(pid),
        engine_rss: engine.unwrap_or(0),
        disk: disk(&home.join("state")),
        state: status.state,
        waiting: status.paused,
        trained: status.trained,
        accepted: status.accepted,
        rejected: status.rejected,
        rolled_back: status.rolled_back,
        cpu_daemon: cpu(pid),
    })
}

fn children(pid: u32) -> Vec<u32> {
    let text = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let mut all: Vec<u32> = text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // Threads other than the first start children too.
    for entry in fs_err::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok) {
        let text = fs_err::read_to_string(entry.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all.sort_unstable();
    all.dedup();
    all
}

fn command_of(pid: u32) -> String {
    fs_err::read(format!("/proc/{pid}/cmdline"))
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Resident memory (bytes).
fn rss(pid: u32) -> u64 {
    let text = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// Processor time (seconds).
fn cpu(pid: u32) -> f64 {
    let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// Bytes of all files below a folder.
fn disk(folder: &Path) -> u64 {
    let entries = fs_err::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| if entry.path().is_dir() { disk(&entry.path()) } else { entry.metadata().map_or(0, |m| m.len()) })
        .sum()
}

/// The slope of a least-squares line (units an hour).
fn slope(samples: &[Sample], value: impl Fn(&Sample) -> u64) -> f64 {
    let n = samples.len() as f64;
    let x = |sample: &Sample| sample.minute / 60.0;
    let (mean_x, mean_y) =
        (samples.iter().map(x).sum::<f64>() / n, samples.iter().map(|s| value(s) as f64).sum::<f64>() / n);
    let top: f64 = samples.iter().map(|s| (x(s) - mean_x) * (value(s) as f64 - mean_y)).sum();
    let bottom: f64 = samples.iter().map(|s| (x(s) - mean_x).powi(2)).sum();
    if bottom > 0.0 { top / bottom } else { 0.0 }
}

fn summary(arguments: &Arguments, all: &[Sample], decisions: &[wire::DecisionView], ordered: Option<&str>) -> String {
    let mut text = String::new();
    let Some(last) = all.last() else { return "nothing was sampled\n".to_owned() };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let _ = writeln!(
        text,
        "{:.0} minutes, {} entries remembered, {} answers judged, engine {}, jobs of {} CPU minutes; daemon {:.1} CPU s.",
        last.minute,
        last.entries,
        last.answers,
        if arguments.engine == "fake" { "fake" } else { "real" },
        arguments.job_minutes,
        last.cpu_daemon
    );
    let _ = writeln!(
        text,
        "Jobs begun {}, adapters accepted into shadow {}, rejected {}, taken back {}.",
        last.trained, last.accepted, last.rejected, last.rolled_back
    );
    if let Some(ordered) = ordered {
        let _ = writeln!(text, "The loop took nothing back by itself; {ordered}.");
    }
    let warm: Vec<Sample> = all.iter().filter(|sample| sample.minute >= last.minute * WARM_AT).cloned().collect();
    let _ = writeln!(text, "\n| | at the end | slope after the first quarter, an hour |\n|---|---|---|");
    for (name, value) in [
        ("daemon, resident", (|s: &Sample| s.daemon_rss) as fn(&Sample) -> u64),
        ("engine, resident", |s| s.engine_rss),
        ("state on disk", |s| s.disk),
    ] {
        let _ = writeln!(
            text,
            "| {name} | {:.1} MiB | {:+.1} MiB |",
            mib(value(last)),
            slope(&warm, value) / f64::from(1 << 20)
        );
    }
    let _ = writeln!(text, "\nDecisions:\n");
    for row in decisions.iter().rev() {
        let _ = writeln!(text, "- {} -> {}: {}", row.from, row.to, row.reason);
    }
    text
}
