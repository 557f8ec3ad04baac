//! Durable writes against SQLite on the same disk, the rate of bulk import, and how long a store takes to open.
//!
//! ```text
//! mneme-durable-bench [--seconds N] [--memories N] [--folder DIR] [--rounds N]
//! ```
//! Writers take turns in each round, so that a noisy machine is as unfair to one as to the other; the table shows the median
//! round. Our clients hand single `remember` operations to one committer, as the daemon's do: it takes what has arrived
//! (group commit) and answers each after the fsync. SQLite's clients each commit their own transaction (WAL, FULL).

#![expect(clippy::print_stdout, reason = "a program for people")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant};

use mneme_base::{ContentHash, Lsn, MemoryId, Namespace, OpId, Provenance, Timestamp};
use mneme_memory::state::EngineKind;
use mneme_memory::{
    DurableOptions, DurableStore, Memory, MemoryKind, MemoryState, MemoryStore, Metadata, NewMemory, Operation,
    OperationKind, RecallQuery,
};

/// The text of a memory (bytes): three or four sentences.
const TEXT_BYTES: usize = 300;
/// Operations that the committer takes at once, at most.
const GROUP_MAX: usize = 256;
/// Memories of one import transaction.
const IMPORT_BATCH: usize = 5_000;
const SQLITE: &str = include_str!("sqlite.py");
const ENGINES: [EngineKind; 2] = [EngineKind::Redb, EngineKind::Sled];

type BoxError = Box<dyn std::error::Error>;

struct Arguments {
    seconds: f64,
    memories: usize,
    rounds: usize,
    folder: PathBuf,
}

fn main() -> ExitCode {
    match parse().and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse() -> Result<Arguments, BoxError> {
    let mut parsed = Arguments {
        seconds: 3.0,
        memories: 100_000,
        rounds: 3,
        folder: std::env::temp_dir().join(format!("mneme-durable-bench-{}", std::process::id())),
    };
    let mut rest = std::env::args().skip(1);
    while let Some(name) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--seconds" => parsed.seconds = value.parse()?,
            "--memories" => parsed.memories = value.parse()?,
            "--rounds" => parsed.rounds = value.parse()?,
            "--folder" => parsed.folder = value.into(),
            _ => return Err(format!("{name} is not known").into()),
        }
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> Result<(), BoxError> {
    fs_err::create_dir_all(&arguments.folder)?;
    writes(arguments)?;
    for engine in ENGINES {
        bulk(arguments, engine)?;
    }
    fs_err::remove_dir_all(&arguments.folder)?;
    Ok(())
}

/// What one round of writes gave.
#[derive(Debug, Clone, Copy)]
struct Rate {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

fn rate(mut latencies_ms: Vec<f64>, took: Duration) -> Rate {
    latencies_ms.sort_unstable_by(f64::total_cmp);
    let at = |q: f64| latencies_ms.get(((latencies_ms.len().max(1) - 1) as f64 * q) as usize).copied().unwrap_or(0.0);
    Rate { per_second: latencies_ms.len() as f64 / took.as_secs_f64(), p50_ms: at(0.5), p99_ms: at(0.99) }
}

fn writes(arguments: &Arguments) -> Result<(), BoxError> {
    println!("durable writes, {TEXT_BYTES} bytes of text, {} rounds of {} s", arguments.rounds, arguments.seconds);
    println!("| writer | clients | writes/s | p50 ms | p99 ms |");
    println!("|---|---|---|---|---|");
    for clients in [1, 16] {
        let mut rows: Vec<(String, Vec<Rate>)> = Vec::new();
        for round in 0..arguments.rounds {
            let mut add = |name: &str, measured: Rate| match rows.iter_mut().find(|(known, _)| known == name) {
                Some((_, rates)) => rates.push(measured),
                None => rows.push((name.to_owned(), vec![measured])),
            };
            let folder = |name: &str| -> Result<PathBuf, BoxError> {
                let folder = arguments.folder.join(format!("{name}-{clients}-{round}"));
                fs_err::create_dir_all(&folder)?;
                Ok(folder)
            };
            if clients == 1 {
                add("append + fdatasync of 512 bytes", raw(&folder("raw")?, arguments.seconds)?);
            }
            for engine in ENGINES {
                add(&format!("mneme, {engine}"), ours(&folder(engine.as_str())?, engine, clients, arguments.seconds)?);
            }
            add("SQLite WAL FULL", sqlite(&folder("sqlite")?, clients, arguments.seconds)?);
        }
        for (name, mut rates) in rows {
            rates.sort_unstable_by(|a, b| a.per_second.total_cmp(&b.per_second));
            let Rate { per_second, p50_ms, p99_ms } = rates[rates.len() / 2];
            println!("| {name} | {clients} | {per_second:.0} | {p50_ms:.2} | {p99_ms:.2} |");
        }
    }
    Ok(())
}

fn raw(folder: &Path, seconds: f64) -> Result<Rate, BoxError> {
    let mut file = fs_err::File::create(folder.join("file"))?;
    let begin = Instant::now();
    let mut latencies = Vec::new();
    while begin.elapsed().as_secs_f64() < seconds {
        let start = Instant::now();
        file.write_all(&[0x55; 512])?;
        file.sync_data()?;
        latencies.push(start.elapsed().as_secs_f64() * 1e3);
    }
    Ok(rate(latencies, begin.elapsed()))
}

fn options(engine: EngineKind) -> DurableOptions {
    DurableOptions { engine, ..DurableOptions::default() }
}

fn text(client: usize, number: usize) -> String {
    const WORDS: [&str; 12] = [
        "boat", "harbour", "letter", "engine", "garden", "winter", "signal", "copper", "river", "market", "lamp",
        "story",
    ];
    let mut text = format!("client {client} memory {number}");
    let mut state = (client as u64) << 32 | number as u64;
    while text.len() < TEXT_BYTES {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        text.push(' ');
        text.push_str(WORDS[(state >> 33) as usize % WORDS.len()]);
    }
    text
}

/// Single operations from many clients, committed in groups by one thread.
fn ours(folder: &Path, engine: EngineKind, clients: usize, seconds: f64) -> Result<Rate, BoxError> {
    type Request = (Operation, SyncSender<bool>);
    let store = DurableStore::open(folder, options(engine))?;
    let (sender, receiver) = sync_channel::<Request>(GROUP_MAX);
    let begin = Instant::now();
    let mut latencies = Vec::new();
    let mut fault = None;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..clients)
            .map(|client| {
                let sender = sender.clone();
                scope.spawn(move || {
                    let namespace: Namespace = "bench".parse().expect("a valid namespace");
                    let (reply, answer) = sync_channel(1);
                    let mut own = Vec::new();
                    for number in 0.. {
                        if begin.elapsed().as_secs_f64() >= seconds {
                            break;
                        }
                        let memory = NewMemory::note(namespace.clone(), text(client, number), "bench");
                        let op_id = OpId::new((client as u128) << 64 | number as u128);
                        let start = Instant::now();
                        let request = (Operation { op_id, kind: OperationKind::Remember(memory) }, reply.clone());
                        if sender.send(request).is_err() || answer.recv() != Ok(true) {
                            break;
                        }
                        own.push(start.elapsed().as_secs_f64() * 1e3);
                    }
                    own
                })
            })
            .collect();
        drop(sender);
        while let Ok(first) = receiver.recv() {
            let mut group = vec![first];
            group.extend(receiver.try_iter().take(GROUP_MAX - 1));
            let (operations, replies): (Vec<Operation>, Vec<SyncSender<bool>>) = group.into_iter().unzip();
            let now = Timestamp::from_millis(1_795_514_400_000 + begin.elapsed().as_millis() as i64);
            match store.apply(&operations, now) {
                // A client that has left wants no answer.
                Ok(_) => replies.iter().for_each(|reply| reply.send(true).unwrap_or_default()),
                Err(error) => {
                    fault = Some(error);
                    break;
                }
            }
        }
        drop(receiver);
        for worker in workers {
            latencies.extend(worker.join().unwrap_or_default());
        }
    });
    match fault {
        Some(error) => Err(error.into()),
        None => Ok(rate(latencies, begin.elapsed())),
    }
}

fn sqlite(folder: &Path, clients: usize, seconds: f64) -> Result<Rate, BoxError> {
    let output = Command::new("python3")
        .args(["-c", SQLITE])
        .arg(folder)
        .args([clients.to_string(), seconds.to_string(), TEXT_BYTES.to_string()])
        .output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = printed.split_whitespace().filter_map(|text| text.parse().ok()).collect();
    match numbers[..] {
        [count, p50_ms, p99_ms, took] => Ok(Rate { per_second: count / took, p50_ms, p99_ms }),
        _ => Err(format!("sqlite bench failed: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn memory(number: usize) -> Memory {
    let at = Timestamp::from_millis(1_795_514_400_000 + number as i64);
    let mut id = [0; 16];
    id[..6].copy_from_slice(&at.as_millis().to_be_bytes()[2..]);
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    Memory {
        id: MemoryId::from_bytes(id),
        namespace: Namespace::default(),
        kind: MemoryKind::Note,
        text: text(0, number),
        speaker: None,
        thread: None,
        position: None,
        metadata: Metadata::new(),
        provenance: Provenance::user("bench"),
        valid_from: at,
        valid_to: None,
        recorded_at: at,
        supersedes: None,
        superseded_by: None,
        state: MemoryState::Active,
        content_hash: ContentHash::from_bytes([0; 32]),
        evidence: 0,
        redactions: 0,
        lsn: Lsn::ZERO,
    }
}

/// Bulk import, apply in large batches, opening.
fn bulk(arguments: &Arguments, engine: EngineKind) -> Result<(), BoxError> {
    let folder = arguments.folder.join(format!("bulk-{engine}"));
    let store = DurableStore::open(&folder, options(engine))?;
    let memories: Vec<Memory> = (0..arguments.memories).map(memory).collect();
    let begin = Instant::now();
    for batch in memories.chunks(IMPORT_BATCH) {
        let report = store.import(batch.to_vec())?;
        if report.imported != batch.len() as u64 {
            return Err(format!("import took {} of {}", report.imported, batch.len()).into());
        }
    }
    let imported = memories.len() as f64 / begin.elapsed().as_secs_f64();
    let stats = store.stats();
    drop(store);
    let begin = Instant::now();
    let store = DurableStore::open(&folder, options(engine))?;
    let open = begin.elapsed();
    let found = store.recall(
        &RecallQuery::new(Namespace::default(), "memory 77 boat harbour", 10),
        None,
        Timestamp::from_millis(0),
    )?;
    let text_bytes = (arguments.memories * TEXT_BYTES) as f64;
    println!(
        "\n{engine}: {} memories: import {imported:.0}/s, open {:.2} s, disk {:.0} MiB ({:.2} x the texts), index {:.0} MiB, resident {:.0} MiB, {} hits",
        arguments.memories,
        open.as_secs_f64(),
        stats.disk_bytes as f64 / f64::from(1 << 20),
        stats.disk_bytes as f64 / text_bytes,
        store.stats().index_bytes as f64 / f64::from(1 << 20),
        resident_mib(),
        found.hits.len(),
    );
    Ok(())
}

/// Resident memory of this process (MiB); 0 where the system does not say.
fn resident_mib() -> f64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok()).map_or(0.0, |kib| kib / 1024.0)
}
