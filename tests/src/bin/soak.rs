//! A daemon under load for as long as wanted: clients that write, ask, generate and forget, a folder that changes, upkeep, and an
//! engine that is killed again and again. At the end: what went wrong, and whether memory, files, threads or disk grow.
//!
//! The number of live memories is kept level, so that growth of anything else is a leak. Everything acknowledged is looked up
//! again: what is missing, or is back after it was forgotten, fails the run.

#![expect(clippy::print_stdout, reason = "the report is told on standard output")]

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mneme_tests::random::Random;
use mneme_tests::slope::{Slope, slope};
use mneme_tests::{Daemon, Raw, Setup};
use serde_json::{Value, json};

/// Part of the run that is left out of the slopes: caches fill and pools grow to their size in it.
const WARM_UP: f64 = 0.25;
/// Samples of the daemon's figures in a run, at most one a second.
const SAMPLES: u64 = 600;
/// Files in the watched folder.
const FILES: usize = 40;
/// Answers that are part of the contract under load and engine kills; anything else is an error.
const EXPECTED: [&str; 4] = ["busy", "engine_unavailable", "deadline_exceeded", "cancelled"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Runs the daemon under load and reports slopes and errors.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long (minutes).
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// Clients at the same time.
    #[arg(long, default_value_t = 16)]
    clients: usize,
    /// Memories that each client keeps alive; beyond them it forgets its oldest.
    #[arg(long, default_value_t = 200)]
    live: usize,
    /// Pause of a client between two requests (milliseconds).
    #[arg(long, default_value_t = 40)]
    pause_ms: u64,
    /// Seconds between two kills of the engine.
    #[arg(long, default_value_t = 45)]
    kill_every: u64,
    /// The real engine with its models, instead of the stand-in process.
    #[arg(long)]
    real: bool,
    /// Share of calls that may fail in an unexpected way.
    #[arg(long, default_value_t = 0.0)]
    error_budget: f64,
    /// Chooses what the clients do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write the report as JSON here too.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// Reads one figure of a sample.
type Figure = fn(&Sample) -> f64;

/// What one client saw.
#[derive(Debug, Default)]
struct Tally {
    calls: BTreeMap<&'static str, u64>,
    expected: BTreeMap<String, u64>,
    unexpected: BTreeMap<String, u64>,
    lost: Vec<String>,
    slowest: Duration,
}

/// The daemon's figures at a moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    hours: f64,
    resident: f64,
    files: f64,
    threads: f64,
    disk: f64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the tests lie in no workspace")?;
    let programs = build(root, arguments.real)?;
    let folder = tempfile::Builder::new().prefix("mneme-soak-").tempdir()?;
    let engine = if arguments.real { "mneme-engine" } else { "mneme-engine-fake" };
    let setup = Setup::new(programs.join("mnemed"), folder.path())
        .set(format!("engine.program={}", programs.join(engine).display()))
        .set("engine.restarts_max=1000")
        .set("engine.backoff_max=1s")
        .set("evolution.load_max=1")
        .set("evolution.pause_on_battery=false")
        .set("housekeeping.compact_interval=30s")
        .set("housekeeping.purge_interval=60s")
        .set("watch.poll=10s")
        .set("log.level=warn")
        .set(format!("paths.assets_dir={}", root.join(".assets").display()));
    let mut daemon = setup.start();
    let notes = folder.path().join("notes");
    fs_err::create_dir_all(&notes)?;
    daemon.client().ok("watch.add", json!({"folder": notes, "namespace": "notes"}));

    let end = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let stop = Arc::new(AtomicBool::new(false));
    let kills = Arc::new(AtomicU64::new(0));
    let log = drain_log(&mut daemon)?;
    let tallies: Vec<Tally>;
    let samples = {
        let clients: Vec<_> = (0..arguments.clients)
            .map(|number| {
                let (socket, stop) = (daemon.socket.clone(), Arc::clone(&stop));
                let (seed, live, pause) = (arguments.seed, arguments.live, Duration::from_millis(arguments.pause_ms));
                std::thread::spawn(move || client(&socket, number, seed, live, pause, &stop))
            })
            .collect();
        let others = [
            spawn_until(&stop, Duration::from_millis(500), {
                let (notes, mut random) = (notes.clone(), Random::new(arguments.seed ^ 0xf11e));
                move || change_a_file(&notes, &mut random)
            }),
            spawn_until(&stop, Duration::from_secs(arguments.kill_every.max(1)), {
                let (pid, kills) = (daemon.pid(), Arc::clone(&kills));
                move || kill_children(pid, &kills)
            }),
        ];
        let samples = sample_until(&daemon, &setup.folder.join("state"), end, arguments);
        stop.store(true, Ordering::Release);
        let ended: Vec<_> = clients.into_iter().map(std::thread::JoinHandle::join).collect();
        for other in others {
            let _ = other.join();
        }
        let ended: std::result::Result<Vec<_>, _> = ended.into_iter().collect();
        tallies = ended.map_err(|_| "a client panicked; its words are above")?;
        samples
    };
    let status = daemon.client().ok("admin.status", json!({}));
    let evolution = daemon.client().ok("evolve.status", json!({}));
    let (exit, _) = daemon.stop();
    let warnings = log.join().unwrap_or_default();
    report(arguments, &tallies, &samples, &status, &evolution, kills.load(Ordering::Relaxed), exit.success(), &warnings)
}

/// Builds the programs that the run needs, in this program's own profile folder.
fn build(root: &Path, real: bool) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["build", "--release", "--quiet", "-p", "mneme-daemon", "-p", "mneme-engine-api"]);
    if real {
        command.args(["-p", "mneme-engine"]);
    }
    if !command.status()?.success() {
        return Err("the programs could not be built; the compiler's words are above".into());
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().ok_or("this program lies in no folder")?.to_path_buf())
}

/// Takes the daemon's log away as it comes, so that a full pipe never stops it; returns how often each line's start was seen.
fn drain_log(daemon: &mut Daemon) -> Result<std::thread::JoinHandle<BTreeMap<String, u64>>> {
    let stderr = daemon.take_stderr().ok_or("the daemon's log cannot be read")?;
    Ok(std::thread::spawn(move || {
        use std::io::BufRead as _;
        let mut seen = BTreeMap::new();
        for line in std::io::BufReader::new(stderr).lines().map_while(std::io::Result::ok) {
            // Level and module, without time and figures.
            let words: Vec<&str> = line.split_whitespace().skip(1).take(6).collect();
            *seen.entry(words.join(" ")).or_insert(0) += 1;
        }
        seen
    }))
}

fn spawn_until(
    stop: &Arc<AtomicBool>,
    every: Duration,
    mut work: impl FnMut() + Send + 'static,
) -> std::thread::JoinHandle<()> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        let mut next = Instant::now() + every;
        while !stop.load(Ordering::Acquire) {
            if Instant::now() >= next {
                work();
                next += every;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    })
}

/// Writes, replaces or removes one file of the watched folder.
fn change_a_file(notes: &Path, random: &mut Random) {
    let path = notes.join(format!("note-{}.md", random.below(FILES)));
    if random.below(4) == 0 {
        let _ = fs_err::remove_file(&path);
        return;
    }
    let text = format!("# Note\n\nThe {} met the {} at {} o'clock.\n", word(random), word(random), random.below(24));
    // As editors do: a new file takes the old one's place.
    let draft = notes.join(".draft");
    if fs_err::write(&draft, text).is_ok() {
        let _ = fs_err::rename(&draft, &path);
    }
}

const WORDS: [&str; 24] = [
    "harbour",
    "lantern",
    "clerk",
    "garden",
    "captain",
    "ledger",
    "velvet",
    "bridge",
    "letter",
    "orchard",
    "physician",
    "violin",
    "cellar",
    "admiral",
    "kitchen",
    "sermon",
    "coach",
    "tailor",
    "window",
    "market",
    "tavern",
    "river",
    "parson",
    "theatre",
];

fn word(random: &mut Random) -> &'static str {
    WORDS[random.below(WORDS.len())]
}

/// Kills the daemon's children as a crash would.
fn kill_children(pid: u32, kills: &AtomicU64) {
    let listed = fs_err::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let more = fs_err::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(std::result::Result::ok);
    let mut children: Vec<i32> = listed.split_whitespace().filter_map(|child| child.parse().ok()).collect();
    for task in more {
        let text = fs_err::read_to_string(task.path().join("children")).unwrap_or_default();
        children.extend(text.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
    }
    children.sort_unstable();
    children.dedup();
    for child in children.into_iter().filter_map(rustix::process::Pid::from_raw) {
        if rustix::process::kill_process(child, rustix::process::Signal::KILL).is_ok() {
            kills.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// One client's life.
fn client(socket: &Path, number: usize, seed: u64, live: usize, pause: Duration, stop: &AtomicBool) -> Tally {
    let mut random = Random::new(seed.wrapping_mul(1_000_003) ^ number as u64);
    let mut raw = Raw::connect(socket);
    raw.ok("hello", json!({"protocol": 1, "client": format!("soak-{number}")}));
    let namespace = format!("soak-{number}");
    let mut own: VecDeque<(String, String)> = VecDeque::new();
    let mut gone: VecDeque<String> = VecDeque::new();
    let mut tally = Tally::default();
    let mut serial = 0_u64;
    while !stop.load(Ordering::Acquire) {
        let (kind, method, params) = match random.below(100) {
            // Level: a client that has all it may have forgets as often as it writes.
            0..30 if own.len() > live => {
                let (id, _) = &own[0];
                ("forget", "memory.forget", json!({"select": {"ids": [id]}}))
            }
            0..30 => {
                serial += 1;
                let text = format!(
                    "Entry {serial} of client {number}: the {} spoke with the {} about the {}.",
                    word(&mut random),
                    word(&mut random),
                    word(&mut random)
                );
                ("remember", "memory.remember", json!({"text": text, "namespace": namespace}))
            }
            30..60 => {
                let query = format!("what did the {} say about the {}", word(&mut random), word(&mut random));
                ("recall", "memory.recall", json!({"query": query, "namespaces": [namespace], "limit": 5}))
            }
            60..75 => match own.get(random.below(own.len())) {
                Some((id, _)) => ("get", "memory.get", json!({"id": id})),
                None => continue,
            },
            75..80 => match gone.get(random.below(gone.len())) {
                Some(id) => ("get forgotten", "memory.get", json!({"id": id})),
                None => continue,
            },
            80..94 => {
                let prompt = format!("The {} and the {}", word(&mut random), word(&mut random));
                ("generate", "generate", json!({"prompt": prompt, "tokens_max": 16, "namespace": namespace}))
            }
            94..97 => ("evolve.status", "evolve.status", json!({})),
            _ => ("stats", "memory.stats", json!({})),
        };
        let before = Instant::now();
        let answer = raw.call_with(method, params.clone(), json!({"deadline_ms": 20_000}));
        tally.slowest = tally.slowest.max(before.elapsed());
        *tally.calls.entry(kind).or_insert(0) += 1;
        let error = answer["error"]["data"]["kind"].as_str();
        match (kind, error) {
            ("remember", None) => {
                let id = answer["result"]["id"].as_str().unwrap_or_default().to_owned();
                own.push_back((id, params["text"].as_str().unwrap_or_default().to_owned()));
            }
            ("forget", None) => {
                if let Some((id, _)) = own.pop_front() {
                    gone.push_back(id);
                }
                if gone.len() > 200 {
                    gone.pop_front();
                }
            }
            ("get", None) => {
                let found = answer["result"]["text"].as_str().unwrap_or_default();
                let id = params["id"].as_str().unwrap_or_default();
                if !own.iter().any(|(known, text)| known == id && text == found) {
                    tally.lost.push(format!("{id} came back as {found:?}"));
                }
            }
            ("get", Some("not_found")) => tally.lost.push(format!("{} is gone", params["id"])),
            ("get forgotten", None) => tally.lost.push(format!("{} was forgotten and is back", params["id"])),
            ("get forgotten", Some("not_found")) | (_, None) => {}
            (_, Some(kind)) if EXPECTED.contains(&kind) => *tally.expected.entry(kind.to_owned()).or_insert(0) += 1,
            (_, Some(_)) => {
                *tally.unexpected.entry(format!("{method}: {}", answer["error"]["message"])).or_insert(0) += 1;
            }
        }
        std::thread::sleep(pause);
    }
    tally
}

fn sample_until(daemon: &Daemon, state: &Path, end: Instant, arguments: &Arguments) -> Vec<Sample> {
    let start = Instant::now();
    let total = end.saturating_duration_since(start);
    let every = (total / SAMPLES as u32).max(Duration::from_secs(1));
    let bar = ProgressBar::new(total.as_secs().max(1));
    if let Ok(style) = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}") {
        bar.set_style(style);
    }
    let mut samples = Vec::new();
    while Instant::now() < end {
        std::thread::sleep(every.min(end.saturating_duration_since(Instant::now())));
        let sample = Sample {
            hours: start.elapsed().as_secs_f64() / 3_600.0,
            resident: status_kib(daemon.pid(), "VmRSS:") / 1_024.0,
            files: count(&format!("/proc/{}/fd", daemon.pid())),
            threads: count(&format!("/proc/{}/task", daemon.pid())),
            disk: bytes_below(state) as f64 / 1_048_576.0,
        };
        bar.set_position(start.elapsed().as_secs());
        bar.set_message(format!("{} clients, {:.1} MiB", arguments.clients, sample.resident));
        samples.push(sample);
    }
    bar.finish_and_clear();
    samples
}

fn status_kib(pid: u32, field: &str) -> f64 {
    let text = fs_err::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(f64::NAN)
}

fn count(folder: &str) -> f64 {
    fs_err::read_dir(folder).map_or(f64::NAN, |entries| entries.count() as f64)
}

fn bytes_below(folder: &Path) -> u64 {
    let entries = fs_err::read_dir(folder).into_iter().flatten().filter_map(std::result::Result::ok);
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_below(&entry.path()),
            Ok(found) => found.len(),
            Err(_) => 0,
        })
        .sum()
}

#[expect(clippy::too_many_arguments, reason = "one place gathers all that the run gave")]
fn report(
    arguments: &Arguments,
    tallies: &[Tally],
    samples: &[Sample],
    status: &Value,
    evolution: &Value,
    kills: u64,
    ended_well: bool,
    warnings: &BTreeMap<String, u64>,
) -> Result<bool> {
    let mut calls: BTreeMap<&str, u64> = BTreeMap::new();
    let (mut expected, mut unexpected) = (BTreeMap::new(), BTreeMap::new());
    let mut lost = Vec::new();
    for tally in tallies {
        tally.calls.iter().for_each(|(kind, count)| *calls.entry(kind).or_insert(0) += count);
        tally.expected.iter().for_each(|(kind, count)| *expected.entry(kind.clone()).or_insert(0) += count);
        tally.unexpected.iter().for_each(|(kind, count)| *unexpected.entry(kind.clone()).or_insert(0) += count);
        lost.extend(tally.lost.iter().cloned());
    }
    let total: u64 = calls.values().sum();
    let failed: u64 = unexpected.values().sum();
    let slowest = tallies.iter().map(|tally| tally.slowest).max().unwrap_or_default();
    let kept = &samples[(samples.len() as f64 * WARM_UP) as usize..];
    let of = |value: Figure| {
        slope(&kept.iter().map(|sample| (sample.hours, value(sample))).collect::<Vec<_>>(), arguments.seed)
    };
    let rows: [(&str, &str, Option<Slope>, Figure); 4] = [
        ("resident memory", "MiB", of(|sample| sample.resident), |sample| sample.resident),
        ("open files", "", of(|sample| sample.files), |sample| sample.files),
        ("threads", "", of(|sample| sample.threads), |sample| sample.threads),
        ("state folder", "MiB", of(|sample| sample.disk), |sample| sample.disk),
    ];
    println!(
        "{} minutes, {} clients, {kills} kills of engine or trainer; daemon ended {}",
        arguments.minutes,
        arguments.clients,
        if ended_well { "well" } else { "BADLY" }
    );
    println!("calls {total}: {}", listing(&calls));
    println!("answers that tell of load or kills: {}", listing(&expected));
    println!("errors outside the contract: {failed}; acknowledged and lost, or forgotten and back: {}", lost.len());
    println!("slowest answer {} ms", slowest.as_millis());
    println!(
        "memories at the end {}, engine restarts {}; the loop observed {} generations, trained {} adapters, accepted {}, rejected {}",
        status["memories"],
        status["engine_restarts"],
        evolution["observed"],
        evolution["trained"],
        evolution["accepted"],
        evolution["rejected"]
    );
    println!("\n| figure | first | last | slope per hour | 95 % interval | |\n|---|---|---|---|---|---|");
    let mut slopes = serde_json::Map::new();
    for (name, unit, found, value) in &rows {
        let (first, last) = (kept.first().map_or(f64::NAN, value), kept.last().map_or(f64::NAN, value));
        let Some(found) = found else {
            println!("| {name} | {first:.1} | {last:.1} | too few samples | | |");
            continue;
        };
        let verdict = if found.grows() { "grows" } else { "no growth shown" };
        println!(
            "| {name} {unit} | {first:.1} | {last:.1} | {:+.2} | [{:+.2}, {:+.2}] | {verdict} |",
            found.value, found.low, found.high
        );
        slopes.insert((*name).to_owned(), json!({"per_hour": found.value, "low": found.low, "high": found.high}));
    }
    for (words, count) in unexpected.iter().take(10) {
        println!("error x{count}: {words}");
    }
    lost.iter().take(10).for_each(|words| println!("LOST: {words}"));
    for (words, count) in warnings.iter().take(12) {
        println!("log x{count}: {words}");
    }
    if let Some(path) = &arguments.json {
        let report = json!({
            "minutes": arguments.minutes, "clients": arguments.clients, "kills": kills, "calls": calls, "expected": expected,
            "unexpected": unexpected, "lost": lost, "slowest_ms": slowest.as_millis() as u64, "slopes": slopes,
            "samples": samples.iter().map(|s| [s.hours, s.resident, s.files, s.threads, s.disk]).collect::<Vec<_>>(),
        });
        fs_err::write(path, serde_json::to_vec_pretty(&report)?)?;
    }
    let within = failed as f64 <= arguments.error_budget * total.max(1) as f64;
    Ok(within && lost.is_empty() && ended_well)
}

fn listing<K: AsRef<str>>(counts: &BTreeMap<K, u64>) -> String {
    if counts.is_empty() {
        return String::from("none");
    }
    counts.iter().map(|(kind, count)| format!("{} {count}", kind.as_ref())).collect::<Vec<_>>().join(", ")
}
