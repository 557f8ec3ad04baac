//! Kills trainer, engine and daemon at random points of the loop, and looks after each kill whether everything still holds:
//! no acknowledged memory is lost, the log of decisions has no gap and makes a consistent state, every adapter that may serve
//! has its whole file, the file is what its job makes without any kill, byte by byte, and never changes, nothing lies on disk
//! that nobody keeps, and one trainer runs at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use mneme_base::ContentHash;
use mneme_engine_api::fake::FakeEngine;
use mneme_engine_api::{CancelToken, Engine as _, TrainJob};
use serde_json::{Value, json};

use crate::random::Random;
use crate::{Daemon, PATIENCE, Raw, Setup};

/// Texts of one import.
const BATCH: usize = 40;
/// A job of so many texts, at so long a step, takes about half a second: long enough to be hit.
const STEP_MS: &str = "4";
/// The longest time between two kills.
const GAP_MS: usize = 500;
/// Rows of one page of the log.
const PAGE: usize = 1_000;

/// What a sweep needs.
#[derive(Debug, Clone)]
pub struct Sweep {
    /// The daemon's program.
    pub daemon: PathBuf,
    /// The stand-in engine's program.
    pub engine: PathBuf,
    /// A folder of its own.
    pub folder: PathBuf,
    /// Kills.
    pub points: usize,
    /// Seed of victims and moments.
    pub seed: u64,
}

/// What was hit.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Kills by victim.
    pub victims: BTreeMap<&'static str, usize>,
    /// Kills by the station that the loop was at.
    pub stations: BTreeMap<String, usize>,
    /// Decisions in the log at the end.
    pub decisions: usize,
    /// How often each station was entered.
    pub entered: BTreeMap<String, usize>,
    /// Memories acknowledged, all of them there at the end.
    pub memories: u64,
    /// Trainings that went on from a checkpoint.
    pub resumed: usize,
    /// Adapters that were accepted, each the same bytes as a training of its job without kills.
    pub adapters: usize,
}

/// What the daemons and trainers of a sweep said that matters.
#[derive(Debug, Default)]
struct Said {
    resumed: usize,
    problems: Vec<String>,
}

struct State<'a> {
    sweep: &'a Sweep,
    draws: Random,
    texts: Vec<Value>,
    sent: usize,
    files: BTreeMap<String, Vec<u8>>,
    said: Arc<Mutex<Said>>,
    rows: u64,
    tally: Tally,
}

/// Runs a sweep; `tell` hears of each kill. The error says what did not hold.
pub fn run(sweep: &Sweep, tell: &mut dyn FnMut(&str)) -> Result<Tally, String> {
    let setup = Setup::new(&sweep.daemon, &sweep.folder)
        .set(format!("engine.program={}", sweep.engine.display()))
        .set("evolution.load_max=1")
        .set("evolution.pause_on_battery=false")
        .set("evolution.level_max=L3")
        .set("engine.restarts_max=1000")
        .set("engine.restart_window=1s")
        .set("engine.backoff_min=10ms")
        .variable("FAKE_ENGINE_STEP_MS", STEP_MS);
    let text = include_str!("../data/pepys-1660.jsonl");
    let texts = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mut state = State {
        sweep,
        draws: Random::new(sweep.seed),
        texts,
        sent: 0,
        files: BTreeMap::new(),
        said: Arc::default(),
        rows: 0,
        tally: Tally::default(),
    };
    let mut daemon = state.start(&setup);
    state.feed(&daemon, 4)?;
    for point in 0..sweep.points {
        state.act(&daemon)?;
        std::thread::sleep(Duration::from_millis(state.draws.below(GAP_MS) as u64));
        let (victim, station) = state.kill(&daemon)?;
        if victim == "daemon" {
            daemon.kill();
            daemon = state.start(&setup);
        }
        state.check(&daemon, point)?;
        tell(&format!("{} of {}: {victim} at {station}", point + 1, sweep.points));
    }
    state.settle(&daemon)?;
    let (status, _) = daemon.stop();
    state.tally.resumed = state.said.lock().unwrap_or_else(PoisonError::into_inner).resumed;
    state.tally.adapters = state.files.len();
    if status.success() { Ok(state.tally) } else { Err(format!("the daemon ended with {status}")) }
}

impl State<'_> {
    /// Starts a daemon and reads its log away, which trainers write into too.
    fn start(&self, setup: &Setup) -> Daemon {
        let mut daemon = setup.start();
        let (stderr, said) = (daemon.take_stderr(), Arc::clone(&self.said));
        let read = move || {
            for line in std::io::BufReader::new(stderr.expect("it is taken once")).lines().map_while(Result::ok) {
                let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
                said.resumed += usize::from(line.contains("training goes on after step"));
                if line.contains("consistent state") || line.contains("panicked") {
                    said.problems.push(line);
                }
            }
        };
        std::thread::spawn(read);
        daemon
    }

    fn ok(client: &mut Raw, method: &str, params: Value) -> Result<Value, String> {
        let answer = client.call(method, params);
        if answer.get("error").is_some() { Err(format!("{method}: {answer}")) } else { Ok(answer["result"].clone()) }
    }

    /// Remembers new texts; each is acknowledged before anything is killed.
    fn feed(&mut self, daemon: &Daemon, batches: usize) -> Result<(), String> {
        let mut client = daemon.client();
        for _ in 0..batches {
            let memories: Vec<Value> = (0..BATCH)
                .map(|_| {
                    let mut memory = self.texts[self.sent % self.texts.len()].clone();
                    let round = self.sent / self.texts.len();
                    if round > 0 {
                        let text = memory["text"].as_str().unwrap_or_default().to_owned();
                        memory["text"] = json!(format!("{text} So to bed, the {round} time."));
                    }
                    self.sent += 1;
                    memory
                })
                .collect();
            Self::ok(&mut client, "memory.import", json!({"memories": memories}))?;
            self.tally.memories += BATCH as u64;
        }
        Ok(())
    }

    /// Something happens before the kill: new texts, a question, an order to train.
    fn act(&mut self, daemon: &Daemon) -> Result<(), String> {
        if self.draws.below(2) == 0 {
            self.feed(daemon, 1)?;
        }
        let mut client = daemon.client();
        match self.draws.below(3) {
            0 => {
                // While the engine is away it may be refused, which is an answer too.
                client.call("generate", json!({"prompt": "Up betimes, and to my office", "tokens_max": 4}));
            }
            1 => {}
            _ => drop(client.call("evolve.run", json!({}))),
        }
        Ok(())
    }

    /// Kills the engine or the trainer, or says that the daemon is to be killed.
    fn kill(&mut self, daemon: &Daemon) -> Result<(&'static str, String), String> {
        let status = Self::ok(&mut daemon.client(), "evolve.status", json!({}))?;
        let station = status["state"].as_str().unwrap_or("?").to_owned();
        let of =
            |kind: &str| children(daemon.pid()).into_iter().find(|(_, words)| words.iter().any(|word| word == kind));
        let (engine, trainer) = (of("serve"), of("train"));
        // A trainer runs for a short part of the time only: when one does, it is hit most often.
        let wish = self.draws.below(6);
        let victim = match (wish, engine, trainer) {
            (0..=3, _, Some((pid, _))) => kill(pid, "trainer"),
            (0 | 1 | 4, Some((pid, _)), _) => kill(pid, "engine"),
            _ => "daemon",
        };
        *self.tally.victims.entry(victim).or_default() += 1;
        *self.tally.stations.entry(station.clone()).or_default() += 1;
        Ok((victim, station))
    }

    fn check(&mut self, daemon: &Daemon, point: usize) -> Result<(), String> {
        let mut client = daemon.client();
        let stats = Self::ok(&mut client, "memory.stats", json!({}))?;
        if stats["memories"].as_u64() != Some(self.tally.memories) {
            return Err(format!("{} memories were acknowledged, there are {}", self.tally.memories, stats["memories"]));
        }
        let rows = all_rows(&mut client)?;
        let numbers: Vec<u64> = rows.iter().filter_map(|row| row["id"].as_str()?.parse().ok()).collect();
        if numbers.len() != rows.len() || numbers.iter().zip(1..).any(|(number, expected)| *number != expected) {
            return Err(format!("the log has a gap after kill {point}: {numbers:?}"));
        }
        if (numbers.len() as u64) < self.rows {
            return Err(format!("{} decisions were seen, {} are left", self.rows, numbers.len()));
        }
        self.rows = numbers.len() as u64;
        if let Some(problem) = self.said.lock().unwrap_or_else(PoisonError::into_inner).problems.first() {
            return Err(problem.clone());
        }
        let trainers =
            children(daemon.pid()).iter().filter(|(_, words)| words.iter().any(|word| word == "train")).count();
        if trainers > 1 {
            return Err(format!("{trainers} trainers run at a time"));
        }
        let until = Instant::now() + PATIENCE;
        // What is being removed right now may still lie there for a moment.
        loop {
            match self.files(&mut client) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                other => return other,
            }
        }
    }

    /// Adapters that may serve have their file, unchanged; what is gone for good lies nowhere.
    fn files(&mut self, client: &mut Raw) -> Result<(), String> {
        let status = Self::ok(client, "evolve.status", json!({}))?;
        let mut kept = BTreeSet::new();
        for adapter in status["adapters"].as_array().into_iter().flatten() {
            let (id, state) =
                (adapter["id"].as_str().unwrap_or_default(), adapter["state"].as_str().unwrap_or_default());
            let path = self.sweep.folder.join("state/adapters").join(id).join("adapter.txt");
            if state == "retired" {
                if path.exists() {
                    return Err(format!("adapter {id} is retired and its file is there"));
                }
                continue;
            }
            kept.insert(id.to_owned());
            let bytes = fs_err::read(&path).map_err(|error| format!("adapter {id} is {state}, its file: {error}"))?;
            match self.files.get(id) {
                Some(known) if *known == bytes => {}
                Some(_) => return Err(format!("the file of adapter {id} changed after it was accepted")),
                None => {
                    self.retrain(&path, &bytes)?;
                    self.files.insert(id.to_owned(), bytes);
                }
            }
        }
        let folders = folders(&self.sweep.folder.join("state/adapters"));
        let strangers: Vec<&String> = folders.iter().filter(|folder| !kept.contains(*folder)).collect();
        // The one job's own folder is no stranger.
        if strangers.len() > 1 { Err(format!("nobody keeps {strangers:?}")) } else { Ok(()) }
    }

    /// Trains an adapter's job once more, without a kill: the bytes must be the same.
    fn retrain(&self, path: &Path, bytes: &[u8]) -> Result<(), String> {
        let text = fs_err::read(path.with_file_name("job.json")).map_err(|error| error.to_string())?;
        let mut job: TrainJob = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let again = folder.path().join("again");
        job.folder = again.display().to_string();
        if let Some(parent) = &mut job.parent {
            // Its own file may be gone by now.
            let known = self.files.get(&parent.id.to_string()).ok_or("a parent was never accepted")?;
            fs_err::write(folder.path().join("adapter.txt"), known).map_err(|error| error.to_string())?;
            parent.folder = folder.path().display().to_string();
        }
        let outcome = FakeEngine::default().train(&job, &mut |_| {}, &CancelToken::default());
        let outcome = outcome.map_err(|error| error.to_string())?;
        if outcome.adapter_hash == ContentHash::of(bytes) {
            Ok(())
        } else {
            Err(format!("adapter {} is not what its job makes without kills", job.adapter))
        }
    }

    /// After all kills the loop still comes to decisions.
    fn settle(&mut self, daemon: &Daemon) -> Result<(), String> {
        self.feed(daemon, 2)?;
        let mut client = daemon.client();
        let decided = |rows: &[Value]| {
            let is_final = |row: &&Value| matches!(row["to"].as_str(), Some("shadow" | "reject" | "commit"));
            rows.iter().filter(is_final).count()
        };
        let before = decided(&all_rows(&mut client)?);
        let until = Instant::now() + 2 * PATIENCE;
        let mut asked = Instant::now();
        client.call("evolve.run", json!({}));
        loop {
            let rows = all_rows(&mut client)?;
            if decided(&rows) > before {
                self.tally.decisions = rows.len();
                for row in &rows {
                    *self.tally.entered.entry(row["to"].as_str().unwrap_or("?").to_owned()).or_default() += 1;
                }
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("the loop came to no decision any more: {:?}", rows.last()));
            }
            if asked.elapsed() > Duration::from_secs(2) {
                // A shadow needs new texts to be compared on.
                self.feed(daemon, 1)?;
                client.call("evolve.run", json!({}));
                asked = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn kill(pid: u32, name: &'static str) -> &'static str {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // It may have ended by itself a moment ago.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    name
}

fn all_rows(client: &mut Raw) -> Result<Vec<Value>, String> {
    let mut rows: Vec<Value> = Vec::new();
    loop {
        let before = rows.last().map(|row| row["id"].clone());
        let page = State::ok(client, "evolve.log", json!({"limit": PAGE, "before": before}))?;
        let page = page["decisions"].as_array().cloned().unwrap_or_default();
        let is_last = page.len() < PAGE;
        rows.extend(page);
        if is_last {
            rows.reverse();
            return Ok(rows);
        }
    }
}

/// Children of a process with the words of their command lines.
fn children(pid: u32) -> Vec<(u32, Vec<String>)> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(Result::ok) {
        let text = fs_err::read_to_string(entry.path().join("children")).unwrap_or_default();
        for child in text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()) {
            let words = fs_err::read(format!("/proc/{child}/cmdline")).unwrap_or_default();
            let words = words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            found.push((child, words));
        }
    }
    found
}

fn folders(root: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
