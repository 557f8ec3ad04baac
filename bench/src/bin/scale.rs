//! How a store of many memories imports, opens and what it takes: one row a size.
//! `cargo xtask bench scale [-- --memories 10000 --memories 100000 --memories 1000000 --folder DIR]`
//!
//! Memories are about 40 words over a vocabulary of 50,000 with Zipf's frequencies, in threads of 50 with four speakers; each gets two
//! vectors of 384 dimensions (its own and with context). Opening is measured in a process of its own, twice: with the index file
//! and without it. Resident memory is compared with int8 codes and text index, disk with the bytes of all rows.

#![expect(clippy::print_stdout, reason = "a benchmark prints its result")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use clap::Parser;
use mneme_base::{ContentHash, Embedding, EmbeddingGeneration, Lsn, MemoryId, Namespace, OpId, Provenance, Timestamp};
use mneme_memory::{
    Document, DurableOptions, DurableStore, MaintenanceTask, Memory, MemoryKind, MemoryState, MemoryStore, Operation,
    OperationKind, RecallQuery, Scan,
};

/// Components of a vector.
const DIMENSIONS: usize = 384;
/// Memories of one import transaction.
const IMPORT_BATCH: usize = 20_000;
/// Memories whose vectors are stored at once.
const VECTOR_BATCH: usize = 5_000;
/// Distinct vectors: making one costs more than storing it.
const VECTORS: usize = 1_009;
/// Recalls that are timed.
const RECALLS: usize = 50;
/// Goals of the project.
const IMPORT_GOAL: f64 = 20_000.0;
const OPEN_GOAL_S: f64 = 3.0;
const RESIDENT_GOAL: f64 = 1.3;
const DISK_GOAL: f64 = 2.0;

/// Import, opening, memory and disk of large stores.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many memories; may be given more than once.
    #[arg(long, default_values_t = [10_000, 100_000])]
    memories: Vec<usize>,
    /// Where the stores are made; by default the temporary folder. A million memories take some 6 GB.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// Opens a store and prints figures for the parent process.
    #[arg(long, hide = true)]
    open: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.open {
        return open(folder);
    }
    println!(
        "| memories | import/s | vectors/s | index file, s | open, s | without file, s | after kill -9, s | resident MiB | of codes + text | disk MiB | of rows | recall p50 ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|");
    for count in &arguments.memories {
        let parent = arguments.folder.clone().unwrap_or_else(std::env::temp_dir);
        let folder = tempfile::tempdir_in(parent).context("could not make a folder for the store")?;
        row(*count, folder.path())?;
    }
    Ok(())
}

fn row(count: usize, folder: &Path) -> anyhow::Result<()> {
    let store = DurableStore::open(folder, DurableOptions::default())?;
    let mut numbers = Numbers(7);
    let (mut import, mut done) = (0.0, 0);
    while done < count {
        let batch: Vec<Memory> = (done..count.min(done + IMPORT_BATCH)).map(|at| memory(at, &mut numbers)).collect();
        let wanted = batch.len() as u64;
        let started = Instant::now();
        let report = store.import(batch)?;
        import += started.elapsed().as_secs_f64();
        ensure!(report.imported == wanted, "{} of {wanted} were imported", report.imported);
        done += wanted as usize;
    }
    let vectors = store_vectors(&store, &mut numbers)?;
    let now = Timestamp::from_millis(1_800_000_000_000);
    store.maintain(MaintenanceTask::Cleanup, now)?;
    let started = Instant::now();
    store.write_index_file()?;
    let written = started.elapsed().as_secs_f64();
    store.maintain(MaintenanceTask::Compact, now)?;
    let factor = store.maintain(MaintenanceTask::Compact, now)?.measure;
    let disk = bytes_below(folder) as f64;
    drop(store);
    let opened = child(folder)?;
    // A killed process leaves the state engine's file as it was in the middle of things.
    let killed = child(folder)?;
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "recall") {
            fs_err::remove_file(path)?;
        }
    }
    let rebuilt = child(folder)?;
    let rows = opened.rows;
    let word = |met: bool| if met { "" } else { " (missed)" };
    println!(
        "| {count} | {:.0}{} | {:.0} | {written:.2} | {:.2}{} | {:.2} | {:.2} | {:.0} | {:.2}x{} | {:.0} | {:.2}x{} | {:.1} |",
        count as f64 / import,
        word(count as f64 / import >= IMPORT_GOAL),
        count as f64 / vectors,
        opened.open,
        word(opened.open <= OPEN_GOAL_S),
        rebuilt.open,
        killed.open,
        opened.resident / MIB,
        opened.resident / opened.index,
        word(opened.resident <= RESIDENT_GOAL * opened.index),
        disk / MIB,
        disk / rows,
        word(disk <= DISK_GOAL * rows),
        opened.recall,
    );
    if let Some(factor) = factor {
        eprintln!("{count}: state engine's files are {factor:.2} times its rows");
    }
    Ok(())
}

const MIB: f64 = (1 << 20) as f64;

fn store_vectors(store: &DurableStore, numbers: &mut Numbers) -> anyhow::Result<f64> {
    let pool: Vec<Embedding> = (0..VECTORS).map(|_| numbers.vector()).collect();
    let generation = EmbeddingGeneration("bench".into());
    store.set_generation(&generation)?;
    let mut scan = Scan { limit: VECTOR_BATCH, ..Scan::default() };
    let (mut seconds, mut at) = (0.0, 0);
    loop {
        let page = store.scan(&scan)?;
        let Some(last) = page.last() else { return Ok(seconds) };
        scan.after = Some(last.id);
        let vectors: Vec<_> = page
            .iter()
            .map(|memory| {
                at += 1;
                (memory.id, vec![pool[at % VECTORS].clone(), pool[at * 7 % VECTORS].clone()])
            })
            .collect();
        let started = Instant::now();
        store.store_embeddings(&generation, vectors)?;
        seconds += started.elapsed().as_secs_f64();
    }
}

/// What a process that opened the store says.
struct Opened {
    open: f64,
    resident: f64,
    index: f64,
    rows: f64,
    recall: f64,
}

fn child(folder: &Path) -> anyhow::Result<Opened> {
    let output = Command::new(std::env::current_exe()?).arg("--open").arg(folder).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let numbers: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [open, resident, index, rows, recall] => Ok(Opened { open, resident, index, rows, recall }),
        _ => anyhow::bail!("opening failed: {text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}

/// Opens a store, prints what it took, and ends as if it were killed.
fn open(folder: &Path) -> anyhow::Result<()> {
    let started = Instant::now();
    let store = DurableStore::open(folder, DurableOptions::default())?;
    let open = started.elapsed().as_secs_f64();
    let resident = resident();
    let mut numbers = Numbers(99);
    let mut times = Vec::new();
    for _ in 0..RECALLS {
        let words: Vec<String> = (0..5).map(|_| numbers.word()).collect();
        let query = RecallQuery::new(Namespace::default(), words.join(" "), 10);
        let vector = numbers.vector();
        let started = Instant::now();
        store.recall(&query, Some(&vector), Timestamp::from_millis(1_800_000_000_000))?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let sizes = store.index_sizes();
    println!("{open} {resident} {} {} {}", sizes.codes + sizes.text, store.row_bytes()?, times[times.len() / 2]);
    // Something is written and the process is gone before the store is closed.
    let document = Document { collection: "bench".into(), key: "killed".into(), value: Some(vec![1]) };
    let kind = OperationKind::Documents(vec![document]);
    let op_id = OpId::new(u128::from(std::process::id()));
    store.apply(&[Operation { op_id, kind }], Timestamp::from_millis(1_800_000_000_000))?;
    std::process::exit(0);
}

fn resident() -> f64 {
    let pages = fs_err::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<f64>().ok());
    pages.unwrap_or(0.0) * 4096.0
}

fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs_err::read_dir(folder) else { return 0 };
    let size = |entry: fs_err::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// A small generator of numbers (SplitMix64), the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn word(&mut self) -> String {
        format!("w{}", 50_000_f64.powf(self.unit()) as u64)
    }

    fn vector(&mut self) -> Embedding {
        let values = (0..DIMENSIONS).map(|_| (self.unit() + self.unit() + self.unit() - 1.5) as f32).collect();
        Embedding::normalized(values).expect("noise is finite and not zero")
    }
}

fn memory(number: usize, numbers: &mut Numbers) -> Memory {
    let count = 25 + (numbers.next() % 30) as usize;
    let words: Vec<String> = (0..count).map(|_| numbers.word()).collect();
    let at = Timestamp::from_millis(1_700_000_000_000 + number as i64);
    Memory {
        id: MemoryId::generate(at),
        namespace: Namespace::default(),
        kind: MemoryKind::Message,
        text: words.join(" "),
        speaker: Some(["Anna", "Ben", "Chris", "Dora"][number % 4].into()),
        thread: Some(format!("thread {}", number / 50)),
        position: Some((number % 50) as u64),
        metadata: std::collections::BTreeMap::new(),
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
