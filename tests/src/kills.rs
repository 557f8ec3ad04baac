//! Kills trainer, engine and daemon at random points of the loop, and looks after each kill whether everything still holds:
//! no acknowledged memory is lost, the log of decisions has no gap and makes a consistent state, every adapter that may serve
//! has its whole file, the file is what its job makes without any kill, byte by byte, and never changes, nothing lies on disk
//! that nobody keeps, and one trainer runs at a time, the daemon's own.
//!
//! A moment by chance hits what lasts, which is training and shadow. So some kills wait for what is over in a moment: a trainer's
//! outcome that is not judged yet, and a decision whose effects are not carried out yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;
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
/// The longest wait for a decision before a kill.
const DECISION_WAIT: Duration = Duration::from_secs(3);
/// The longest wait for an outcome: a job with many texts takes some seconds.
const OUTCOME_WAIT: Duration = Duration::from_secs(15);
/// The longest time from a trainer's outcome to the kill: the daemon looks after its trainer every 50 ms.
const AFTER_OUTCOME_MS: usize = 120;
/// Kills of one job's trainer: with three failures a job is given up, and nothing is accepted any more.
const KILLS_A_JOB: usize = 2;
/// After so many kills each memory's text is compared, and not their number alone.
const TEXTS_EVERY: usize = 10;
/// A question waits so long (ms), less than [`PATIENCE`]: an answer that comes late is one, and no answer is a hang.
const QUESTION_MS: u64 = 5_000;
/// Lines of the daemon's log that are shown when something does not hold.
const TAIL: usize = 40;

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

impl Sweep {
    /// Where the stand-in keeps each job.
    fn jobs(&self) -> PathBuf {
        self.folder.join("jobs")
    }
}

/// What was hit.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Kills by victim.
    pub victims: BTreeMap<&'static str, usize>,
    /// Kills by the station that the loop was at.
    pub stations: BTreeMap<String, usize>,
    /// Kills by what they waited for.
    pub moments: BTreeMap<&'static str, usize>,
    /// The longest time from the start of a daemon to its first answer.
    pub start_max: Duration,
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
    tail: VecDeque<String>,
}

impl Said {
    fn hear(&mut self, line: String) {
        self.resumed += usize::from(line.contains("training goes on after step"));
        if line.contains("consistent state") || line.contains("panicked") {
            self.problems.push(line.clone());
        }
        if self.tail.len() == TAIL {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }
}

/// Says, when something does not hold, what was hit last and what the daemon does: before it is killed itself.
struct Witness {
    daemon: u32,
    what: String,
    said: Arc<Mutex<Said>>,
}

impl Witness {
    fn tell(&self) -> String {
        let mut text = format!("after {}; the daemon {} has these threads:\n", self.what, self.daemon);
        for task in fs_err::read_dir(format!("/proc/{}/task", self.daemon)).into_iter().flatten().filter_map(Result::ok)
        {
            let read = |name: &str| fs_err::read_to_string(task.path().join(name)).unwrap_or_default();
            let status = read("status");
            let of = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
            let switches = (of("voluntary_ctxt_switches"), of("nonvoluntary_ctxt_switches"));
            let wchan = read("wchan");
            let _ = writeln!(text, "  {} {} wchan {wchan} {switches:?}", of("Name:"), of("State:"));
        }
        text.push_str("the end of its log:\n");
        for line in &self.said.lock().unwrap_or_else(PoisonError::into_inner).tail {
            let _ = writeln!(text, "  {line}");
        }
        text
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = std::io::Write::write_all(&mut std::io::stderr(), self.tell().as_bytes());
        }
    }
}

struct State<'a> {
    sweep: &'a Sweep,
    draws: Random,
    texts: Vec<Value>,
    sent: Vec<ContentHash>,
    files: BTreeMap<String, Vec<u8>>,
    /// Kills of trainers, by adapter.
    trainers: BTreeMap<String, usize>,
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
        .variable("FAKE_ENGINE_STEP_MS", STEP_MS)
        .variable("FAKE_ENGINE_KEEP_JOBS", &sweep.jobs().display().to_string());
    fs_err::create_dir_all(sweep.jobs()).map_err(|error| error.to_string())?;
    let text = include_str!("../data/pepys-1660.jsonl");
    let texts = text.lines().map(serde_json::from_str).collect::<Result<_, _>>().map_err(|error| error.to_string())?;
    let mut state = State {
        sweep,
        draws: Random::new(sweep.seed),
        texts,
        sent: Vec::new(),
        files: BTreeMap::new(),
        trainers: BTreeMap::new(),
        said: Arc::default(),
        rows: 0,
        tally: Tally::default(),
    };
    let mut daemon = state.start(&setup);
    state.feed(&daemon, 4)?;
    for point in 0..sweep.points {
        let mut witness =
            Witness { daemon: daemon.pid(), what: format!("{point} kills"), said: Arc::clone(&state.said) };
        let told = |error: String, witness: &Witness| format!("{error}\n{}", witness.tell());
        state.act(&daemon).map_err(|error| told(error, &witness))?;
        let moment = state.wait(&daemon).map_err(|error| told(error, &witness))?;
        let (victim, station) = state.kill(&daemon, moment).map_err(|error| told(error, &witness))?;
        witness.what = format!("kill {} of {}: {victim} at {station}, {moment}", point + 1, sweep.points);
        if victim == "daemon" {
            drop(witness);
            daemon.kill();
            let began = Instant::now();
            daemon = state.start(&setup);
            let what = format!("kill {} of {}: {victim} at {station}, {moment}", point + 1, sweep.points);
            witness = Witness { daemon: daemon.pid(), what, said: Arc::clone(&state.said) };
            drop(daemon.client());
            state.tally.start_max = state.tally.start_max.max(began.elapsed());
        }
        state.check(&daemon, point).map_err(|error| told(error, &witness))?;
        tell(&witness.what);
    }
    let witness = Witness { daemon: daemon.pid(), what: String::from("all kills"), said: Arc::clone(&state.said) };
    state.settle(&daemon).map_err(|error| format!("{error}\n{}", witness.tell()))?;
    state.texts(&mut daemon.client())?;
    drop(witness);
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
                said.lock().unwrap_or_else(PoisonError::into_inner).hear(line);
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
                    let mut memory = self.texts[self.sent.len() % self.texts.len()].clone();
                    let round = self.sent.len() / self.texts.len();
                    let mut text = memory["text"].as_str().unwrap_or_default().to_owned();
                    if round > 0 {
                        let _ = write!(text, " So to bed, the {round} time.");
                    }
                    self.sent.push(ContentHash::of(text.as_bytes()));
                    memory["text"] = json!(text);
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
                let question = json!({"prompt": "Up betimes, and to my office", "tokens_max": 4});
                client.call_with("generate", question, json!({"deadline_ms": QUESTION_MS}));
            }
            1 => {}
            _ => drop(client.call("evolve.run", json!({}))),
        }
        Ok(())
    }

    /// Waits for the moment of the kill; says what was waited for.
    fn wait(&mut self, daemon: &Daemon) -> Result<&'static str, String> {
        let moment = match self.draws.below(4) {
            // Most of the time none is on its way.
            0 | 1 => self.wait_for_outcome(daemon),
            2 => Self::wait_for_decision(daemon)?,
            _ => "by chance",
        };
        if moment == "by chance" {
            std::thread::sleep(Duration::from_millis(self.draws.below(GAP_MS) as u64));
        }
        *self.tally.moments.entry(moment).or_default() += 1;
        Ok(moment)
    }

    fn wait_for_outcome(&mut self, daemon: &Daemon) -> &'static str {
        let Some(folder) = trainers(daemon.pid(), &self.sweep.folder).into_iter().find_map(|(_, job)| job) else {
            return "by chance";
        };
        let until = Instant::now() + OUTCOME_WAIT;
        while Instant::now() < until {
            if folder.join("outcome.json").exists() {
                std::thread::sleep(Duration::from_millis(self.draws.below(AFTER_OUTCOME_MS) as u64));
                return "after an outcome";
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        "by chance"
    }

    fn wait_for_decision(daemon: &Daemon) -> Result<&'static str, String> {
        let mut client = daemon.client();
        let mut newest = || -> Result<Value, String> {
            let page = Self::ok(&mut client, "evolve.log", json!({"limit": 1}))?;
            Ok(page["decisions"][0]["id"].clone())
        };
        let before = newest()?;
        let until = Instant::now() + DECISION_WAIT;
        while Instant::now() < until {
            if newest()? != before {
                return Ok("after a decision");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok("by chance")
    }

    /// Kills the engine or the trainer, or says that the daemon is to be killed.
    fn kill(&mut self, daemon: &Daemon, moment: &str) -> Result<(&'static str, String), String> {
        if moment != "by chance" {
            // Asking for the station would take longer than the moment lasts.
            *self.tally.victims.entry("daemon").or_default() += 1;
            *self.tally.stations.entry(moment.to_owned()).or_default() += 1;
            return Ok(("daemon", String::from("a station that ends")));
        }
        let status = Self::ok(&mut daemon.client(), "evolve.status", json!({}))?;
        let station = status["state"].as_str().unwrap_or("?").to_owned();
        let serves = |words: &[String]| words.iter().any(|word| word == "serve");
        let engine = crate::children(daemon.pid()).into_iter().find(|pid| serves(&words(*pid)));
        let trainer =
            trainers(daemon.pid(), &self.sweep.folder).into_iter().find_map(|(pid, job)| Some((pid, name(&job?))));
        let trainer = trainer.filter(|(_, job)| self.trainers.get(job).copied().unwrap_or(0) < KILLS_A_JOB);
        // A trainer runs for a short part of the time only: when one does, it is hit most often.
        let wish = self.draws.below(6);
        let victim = match (wish, engine, trainer) {
            (0..=3, _, Some((pid, job))) => {
                *self.trainers.entry(job).or_default() += 1;
                kill(pid, "trainer")
            }
            (0 | 1 | 4, Some(pid), _) => kill(pid, "engine"),
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
        if point.is_multiple_of(TEXTS_EVERY) {
            self.texts(&mut client)?;
        }
        let until = Instant::now() + PATIENCE;
        // The kernel ends a trainer with its daemon; that takes a moment.
        let mut own = trainers(daemon.pid(), &self.sweep.folder);
        while own.len() > 1 || own.iter().any(|(pid, _)| parent(*pid).is_some_and(|parent| parent != daemon.pid())) {
            let strangers = own.iter().filter(|(pid, _)| parent(*pid) != Some(daemon.pid())).count();
            if own.len() - strangers > 1 || Instant::now() > until {
                return Err(format!("trainers run that are not the one of daemon {}: {own:?}", daemon.pid()));
            }
            std::thread::sleep(Duration::from_millis(5));
            own = trainers(daemon.pid(), &self.sweep.folder);
        }
        // What is being removed right now may still lie there for a moment.
        loop {
            match self.files(&mut client) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                other => return other,
            }
        }
    }

    /// Every text that was acknowledged is there, and none besides.
    fn texts(&self, client: &mut Raw) -> Result<(), String> {
        let (mut found, mut after) = (Vec::new(), Value::Null);
        loop {
            let page = Self::ok(client, "memory.export", json!({"after": after, "limit": 1_000}))?;
            let texts = page["memories"].as_array().cloned().unwrap_or_default();
            found.extend(
                texts.iter().map(|memory| ContentHash::of(memory["text"].as_str().unwrap_or_default().as_bytes())),
            );
            after = page["next"].clone();
            if after.is_null() {
                break;
            }
        }
        let mut sent = self.sent.clone();
        sent.sort_unstable();
        found.sort_unstable();
        if sent == found {
            Ok(())
        } else {
            Err(format!("{} texts were acknowledged; {} are there, not the same", sent.len(), found.len()))
        }
    }

    /// The adapter of the job that the loop has, if it has one.
    fn job(client: &mut Raw, status: &Value) -> Result<Option<String>, String> {
        if !matches!(status["state"].as_str(), Some("propose" | "train" | "validate" | "scale")) {
            return Ok(None);
        }
        let rows = all_rows(client)?;
        let proposed = rows.iter().rev().find(|row| row["to"] == "propose" && row["from"] == "suspect");
        Ok(proposed.and_then(|row| row["adapter"].as_str()).map(str::to_owned))
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
        // The one job's own folder is no stranger.
        kept.extend(Self::job(client, &status)?);
        let folders = folders(&self.sweep.folder.join("state/adapters"));
        let strangers: Vec<&String> = folders.iter().filter(|folder| !kept.contains(*folder)).collect();
        if strangers.is_empty() { Ok(()) } else { Err(format!("nobody keeps {strangers:?}")) }
    }

    /// Trains an adapter's job once more, without a kill: the bytes must be the same.
    fn retrain(&self, path: &Path, bytes: &[u8]) -> Result<(), String> {
        let id = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let text = fs_err::read(self.sweep.jobs().join(format!("{id}.json"))).map_err(|error| error.to_string())?;
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

/// The trainers of a sweep, whoever started them, with the folders of their jobs.
fn trainers(daemon: u32, sweep: &Path) -> Vec<(u32, Option<PathBuf>)> {
    let all = fs_err::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    let pids = all.filter_map(|entry| entry.file_name().to_string_lossy().parse::<u32>().ok());
    let mut found: Vec<(u32, Option<PathBuf>)> = Vec::new();
    for pid in pids {
        let words = words(pid);
        let job = words.iter().map(Path::new).find(|word| word.starts_with(sweep) && word.ends_with("job.json"));
        // A child that has not become a trainer yet has its daemon's words.
        if let Some(job) = job.filter(|_| pid != daemon && words.iter().any(|word| word == "train")) {
            found.push((pid, job.parent().map(Path::to_path_buf)));
        }
    }
    found
}

fn name(folder: &Path) -> String {
    folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The process that a process is a child of.
fn parent(pid: u32) -> Option<u32> {
    let status = fs_err::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

/// The words of a process's command line.
fn words(pid: u32) -> Vec<String> {
    let words = fs_err::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

fn folders(root: &Path) -> Vec<String> {
    let entries = fs_err::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    entries
        .filter(|entry| entry.path().is_dir())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
