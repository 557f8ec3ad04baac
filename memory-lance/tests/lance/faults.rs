//! Writes, syncs and names of the copy's files fail, with EIO or ENOSPC, once or for good; the process is killed. The store goes on
//! acknowledging, nothing hangs, and when the place is well again the copy is what the store is.
//!
//! A sweep over every call takes hours, every 20th minutes: `MNEME_FAULT_STRIDE=20 cargo test -p mneme-memory-lance --test lance faults -- --nocapture`
//! prints its table. The suite takes some of them.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mneme_memory::{DurableStore, ForgetSelector, MaintenanceTask, MemoryStore, OperationKind};

use crate::support::{apply, attach, embed, in_copy, in_store, now, options, remember};

/// What makes calls fail; the program that tortures the store's own files uses it too.
const SHIM: &str = include_str!("../../../memory/src/bin/mneme-torture/shim.c");
/// A folder, for the process that is tortured.
const CHILD: &str = "MNEME_LANCE_CHILD";
/// Rounds of the tortured process.
const ROUNDS: u64 = 4;
/// Memories of a round.
const ROUND: u64 = 6;
/// A process that has not ended by then hangs. It does some twenty steps, with Lance built without optimisation.
const HANG: Duration = Duration::from_secs(50);
/// Without a wish, so many calls of each kind of fault are tried.
const SAMPLES: u64 = 1;
/// Error number, in words, and for good.
const VARIANTS: [(i32, &str, bool); 4] =
    [(5, "EIO once", false), (5, "EIO for good", true), (28, "ENOSPC once", false), (28, "ENOSPC for good", true)];

fn paths(folder: &Path) -> (PathBuf, String) {
    (folder.join("store"), folder.join("lance").to_str().unwrap().to_owned())
}

/// The tortured process: it acknowledges rounds on its output; steps of the copy may fail, the store may not.
#[test]
fn a_process_that_is_tortured_by_the_other_tests() {
    let Some(folder) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    // The test runner may have begun a line.
    println!();
    let (store, place) = paths(&folder);
    let store = DurableStore::open(&store, options()).unwrap();
    let copy = mneme_memory_lance::LanceProjection::new(&place, crate::support::lance()).unwrap();
    store.attach(std::sync::Arc::new(copy)).unwrap();
    let (mut failed, mut acked) = (0, Vec::new());
    for round in 0..ROUNDS {
        let ids = remember(&store, round * ROUND..(round + 1) * ROUND);
        embed(&store, &ids[..3], 8);
        let mut steps = vec![MaintenanceTask::Follow];
        if round > 0 {
            apply(&store, 1_000 + round, OperationKind::Forget(ForgetSelector::Ids(vec![acked[0]])));
            acked.remove(0);
            steps.extend([MaintenanceTask::Compact, MaintenanceTask::Index, MaintenanceTask::Cleanup]);
        }
        if round == 2 {
            steps.extend([MaintenanceTask::Purge, MaintenanceTask::Follow]);
        }
        acked.extend(ids);
        for step in steps {
            say(&format!("begin {step:?}"));
            failed += usize::from(store.maintain(step, now()).is_err());
            say("end");
        }
        say(&format!("ack {round}"));
    }
    println!("failed {failed}");
}

fn say(words: &str) {
    let mut out = std::io::stdout();
    writeln!(out, "{words}").unwrap();
    out.flush().unwrap();
}

/// Steps of the copy that the tortured process does, in all.
const STEPS: u64 = 15;

/// What a process said until it was ended in the middle of a step.
pub(crate) struct Killed {
    /// Rounds that it acknowledged.
    pub(crate) rounds: u64,
    /// The step that it had begun and not ended.
    pub(crate) within: Option<String>,
}

/// Waits for the begin of one of the steps and a little longer, and ends the process with `end`. Each number is another moment.
pub(crate) fn end_within_a_step(child: &mut Child, number: u64, end: impl FnOnce(&mut Child)) -> Killed {
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(output).map_while(Result::ok);
    // 7 and 15 have no common divisor: as many numbers as there are steps meet each of them.
    let begins = 1 + number * 7 % STEPS;
    let mut said = Vec::new();
    while said.iter().filter(|line: &&String| line.starts_with("begin ")).count() < begins as usize {
        said.push(lines.next().expect("it does that many steps"));
    }
    std::thread::sleep(Duration::from_millis(number * 13 % 97));
    end(child);
    said.extend(lines);
    let rounds = said.iter().filter(|line| line.starts_with("ack ")).count() as u64;
    let last = said.iter().rfind(|line| line.starts_with("begin ") || *line == "end");
    Killed { rounds, within: last.and_then(|line| line.strip_prefix("begin ").map(str::to_owned)) }
}

pub(crate) fn start(folder: &Path, environment: &[(&str, String)]) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "faults::a_process_that_is_tortured_by_the_other_tests", "--nocapture"])
        .env(CHILD, folder)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What a process printed by its end; panics when it does not end.
fn ended(mut child: Child) -> (bool, String) {
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if begin.elapsed() > HANG => {
                child.kill().unwrap();
                panic!("the process hangs");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut printed = String::new();
    std::io::Read::read_to_string(&mut child.stdout.take().unwrap(), &mut printed).unwrap();
    (status.success(), printed)
}

fn number_after(printed: &str, word: &str) -> Option<u64> {
    printed.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).next_back()
}

/// The store has what was acknowledged, and the copy becomes what the store is.
pub(crate) fn verify(folder: &Path, rounds: u64) {
    let (store, place) = paths(folder);
    let store = DurableStore::open(&store, options()).unwrap();
    let memories = in_store(&store);
    let acked = rounds * ROUND - rounds.saturating_sub(1);
    assert!(memories.len() as u64 >= acked, "{} memories, {rounds} rounds were acknowledged", memories.len());
    let copy = attach(&store, &place);
    // What a crash left is found by steps that fail; a few of them have to be enough.
    let mut outcome = store.project();
    for _ in 0..3 {
        if outcome.is_err() {
            outcome = store.project();
        }
    }
    outcome.unwrap();
    assert_eq!(in_copy(&copy), memories);
    let embedded = store.vectors(&memories.iter().map(|memory| memory.id).collect::<Vec<_>>()).unwrap();
    assert_eq!(copy.vectors().unwrap().len(), embedded.into_iter().flatten().count());
}

fn shim(folder: &Path) -> Option<PathBuf> {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs_err::write(&source, SHIM).unwrap();
    let built =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").output();
    built.is_ok_and(|output| output.status.success()).then_some(library)
}

#[test]
fn the_store_acknowledges_and_the_copy_recovers_whichever_call_fails() {
    let folder = tempfile::tempdir().unwrap();
    // The shim compares real paths.
    let folder = fs_err::canonicalize(folder.path()).unwrap();
    let Some(shim) = shim(&folder) else {
        println!("skipped: failing calls need cc for the shim");
        return;
    };
    let fresh = |name: &str| {
        let place = folder.join(name);
        fs_err::create_dir_all(&place).unwrap();
        place
    };
    let environment = |place: &Path, at: u64, number: i32, sticky: bool| {
        vec![
            ("LD_PRELOAD", shim.to_str().unwrap().to_owned()),
            ("MNEME_FAULT_PATH", paths(place).1),
            ("MNEME_FAULT_AT", at.to_string()),
            ("MNEME_FAULT_ERRNO", number.to_string()),
            ("MNEME_FAULT_STICKY", u8::from(sticky).to_string()),
            ("MNEME_FAULT_NAMES", "1".to_owned()),
        ]
    };
    let place = fresh("count");
    let mut counting = environment(&place, 0, 5, false);
    let count = folder.join("calls");
    counting.push(("MNEME_FAULT_COUNT", count.to_str().unwrap().to_owned()));
    let (well, printed) = ended(start(&place, &counting));
    assert!(well && number_after(&printed, "failed ") == Some(0), "without faults: {printed}");
    verify(&place, ROUNDS);
    let calls: u64 = fs_err::read_to_string(&count).unwrap().trim().parse().unwrap();
    assert!(calls > 100, "the shim sees {calls} calls");
    let stride = std::env::var("MNEME_FAULT_STRIDE").ok().and_then(|text| text.parse().ok());
    let stride = stride.unwrap_or(calls / SAMPLES).max(1);
    println!("| fault | calls | runs | runs with a failed step | hangs | lost |\n|---|---|---|---|---|---|");
    for (variant, (number, words, sticky)) in VARIANTS.into_iter().enumerate() {
        let (mut runs, mut noticed) = (0, 0);
        let mut at = 1 + stride * (1 + variant as u64) / 5;
        while at <= calls {
            let place = fresh(&format!("{number}-{sticky}-{at}"));
            let (well, printed) = ended(start(&place, &environment(&place, at, number, sticky)));
            assert!(well, "{words}, call {at}: the store failed with its copy: {printed}");
            assert_eq!(number_after(&printed, "ack "), Some(ROUNDS - 1), "{words}, call {at}");
            runs += 1;
            noticed += u64::from(number_after(&printed, "failed ") > Some(0));
            verify(&place, ROUNDS);
            fs_err::remove_dir_all(&place).unwrap();
            at += stride;
        }
        println!("| {words} | {calls} | {runs} | {noticed} | 0 | 0 |");
        // A single call may be one that Lance can do without.
        assert!(noticed > 0 || !sticky, "{words}: a place that fails has to be noticed");
    }
}

#[test]
fn a_copy_whose_process_was_killed_comes_back() {
    let folder = tempfile::tempdir().unwrap();
    let kills: u64 = std::env::var("MNEME_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(4);
    let (mut within, mut working) = (std::collections::BTreeMap::<String, u64>::new(), 0);
    for kill in 0..kills {
        let place = folder.path().join(kill.to_string());
        fs_err::create_dir_all(&place).unwrap();
        let mut child = start(&place, &[]);
        let killed = end_within_a_step(&mut child, kill, |child| {
            child.kill().unwrap();
            child.wait().unwrap();
        });
        working += u64::from(fs_err::read(place.join("lance/lock")).is_ok_and(|words| words == b"working"));
        if let Some(step) = killed.within {
            *within.entry(step).or_default() += 1;
        }
        verify(&place, killed.rounds);
        fs_err::remove_dir_all(&place).unwrap();
    }
    println!("{kills} kills, {working} while tables were written, within steps: {within:?}");
    assert!(working > 0 && !within.is_empty(), "some of the kills have to come in the middle of a step");
}
