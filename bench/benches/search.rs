//! Vector search and whole recalls over many memories.
//!
//! `cargo bench -p mneme-bench --bench search -- recall 100000` indexes synthetic memories and prints sizes and latencies of whole
//! recalls. `... -- serve VECTORS QUERIES DIMENSIONS codes|halves|file THREADS` answers `bench/peers/search.py` call by call, so that calls of
//! ours and of the peers alternate in one run: it reads little-endian f32 rows, then lines `K FIRST_ALLOWED_PERCENT QUERY`, and
//! answers `NANOSECONDS ID ID ...`.

use std::fmt::Write as _;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use mneme_base::{ContentHash, Embedding, Lsn, MemoryId, Namespace, Provenance, Timestamp};
use mneme_memory::index::bitmap::Bitmap;
use mneme_memory::index::vectors::VectorView;
use mneme_memory::{HalfVectors, IndexOptions, Memory, MemoryKind, MemoryState, RecallIndex, RecallQuery};

/// Dimensions of the synthetic vectors.
const DIMENSIONS: usize = 384;
/// Recalls that are timed, after a tenth as many that are not.
const RECALLS: usize = 200;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["serve", vectors, queries, dimensions, precision, threads] => {
            serve(vectors, queries, dimensions.parse()?, precision, threads.parse()?)
        }
        ["recall", count] => recall(count.parse()?),
        [] => recall(10_000),
        _ => bail!("usage: recall COUNT | serve VECTORS QUERIES DIMENSIONS codes|halves|file THREADS"),
    }
}

fn read_rows(path: &str, dimensions: usize) -> Result<Vec<Embedding>> {
    let bytes = fs_err::read(path)?;
    bytes
        .chunks_exact(4 * dimensions)
        .map(|row| {
            let values = row.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
            Ok(Embedding::normalized(values)?)
        })
        .collect()
}

/// Resident bytes of this process.
fn resident() -> u64 {
    let pages = fs_err::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

/// Processor time of all threads of this process: on a busy machine it says more than the clock on the wall.
fn processor_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn serve(vectors: &str, queries: &str, dimensions: usize, precision: &str, threads: usize) -> Result<()> {
    let rows = read_rows(vectors, dimensions)?;
    let queries = read_rows(queries, dimensions)?;
    let before = resident();
    let started = Instant::now();
    let mut view = VectorView::new(match precision {
        "codes" => HalfVectors::None,
        "file" => HalfVectors::File(std::env::temp_dir()),
        _ => HalfVectors::Memory,
    });
    for (row, embedding) in rows.iter().enumerate() {
        view.set(row as u32, embedding);
    }
    let built = started.elapsed();
    let mut out = io::stdout().lock();
    writeln!(out, "{} {}", built.as_nanos(), resident().saturating_sub(before))?;
    out.flush()?;
    let mut masks: Vec<(usize, Bitmap)> = Vec::new();
    for line in io::stdin().lock().lines() {
        let line = line?;
        let numbers: Vec<usize> = line.split(' ').map(str::parse).collect::<std::result::Result<_, _>>()?;
        let [k, percent, number] = numbers.as_slice() else { bail!("a line is K PERCENT QUERY, not {line:?}") };
        if masks.iter().all(|(known, _)| known != percent) {
            let mut mask = Bitmap::with_rows(rows.len());
            (0..rows.len()).filter(|row| row % 100 < *percent).for_each(|row| mask.insert(row as u32));
            masks.push((*percent, mask));
        }
        let mask = masks.iter().find(|(known, _)| known == percent).map(|(_, mask)| mask).context("just put in")?;
        let embedding = queries.get(*number).context("no such query")?;
        let started = Instant::now();
        let query = view.query(embedding).context("the query has other dimensions")?;
        let found = view.top(&query, *k, mask, threads);
        let mut answer = started.elapsed().as_nanos().to_string();
        for scored in found {
            write!(answer, " {}", scored.row)?;
        }
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
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

    /// A word with about Zipf's frequencies over 50,000 words.
    fn word(&mut self) -> String {
        format!("w{}", (50_000_f64.powf(self.unit())) as u64)
    }

    fn vector(&mut self) -> Embedding {
        let values = (0..DIMENSIONS).map(|_| (self.unit() + self.unit() + self.unit() - 1.5) as f32).collect();
        Embedding::normalized(values).expect("noise is finite and not zero")
    }
}

fn memory(number: usize, numbers: &mut Numbers) -> Memory {
    let words = 4 + (numbers.next() % 20) as usize;
    let text: Vec<String> = (0..words).map(|_| numbers.word()).collect();
    let text = text.join(" ");
    let at = Timestamp::from_millis(1_700_000_000_000 + number as i64 * 60_000);
    Memory {
        id: MemoryId::generate(at),
        namespace: Namespace::default(),
        kind: MemoryKind::Message,
        content_hash: ContentHash::of(text.as_bytes()),
        text,
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
        evidence: 0,
        redactions: 0,
        lsn: Lsn(number as u64),
    }
}

fn recall(count: usize) -> Result<()> {
    let mut numbers = Numbers(7);
    let before = resident();
    let mut index = RecallIndex::new(IndexOptions {
        half_vectors: HalfVectors::File(std::env::temp_dir()),
        ..IndexOptions::default()
    });
    let (mut text_time, mut vector_time) = (std::time::Duration::ZERO, std::time::Duration::ZERO);
    // A thousand vectors are reused: making one costs more than indexing it.
    let vectors: Vec<Embedding> = (0..1_000).map(|_| numbers.vector()).collect();
    for number in 0..count {
        let memory = memory(number, &mut numbers);
        let started = Instant::now();
        index.upsert(&memory);
        text_time += started.elapsed();
        let pair = [vectors[number % 1_000].clone(), vectors[(number + 1) % 1_000].clone()];
        let started = Instant::now();
        index.set_embeddings(memory.id, &pair);
        vector_time += started.elapsed();
    }
    let per_second = |time: std::time::Duration| count as f64 / time.as_secs_f64();
    let codes = 2 * count * DIMENSIONS;
    print_line(&format!(
        "{count} memories, two views of {DIMENSIONS} dimensions, int8 codes in memory, half-precision copies in a file"
    ))?;
    print_line(&format!(
        "text and columns indexed: {:.0}/s; vectors: {:.0}/s",
        per_second(text_time),
        per_second(vector_time)
    ))?;
    let (resident, text) = (resident().saturating_sub(before) as f64, index.text_bytes() as f64);
    print_line(&format!(
        "resident {:.1} MB, index says {:.1} MB; int8 codes {:.1} MB + text index {:.1} MB = {:.2}x",
        resident / 1e6,
        index.bytes() as f64 / 1e6,
        codes as f64 / 1e6,
        text / 1e6,
        resident / (codes as f64 + text),
    ))?;
    let end = Timestamp::from_millis(1_700_000_000_000 + count as i64 * 60_000);
    let mut report = |name: &str, dense: bool, change: &dyn Fn(&mut RecallQuery)| -> Result<()> {
        let mut times = hdrhistogram::Histogram::<u64>::new(3)?;
        let mut processor = std::time::Duration::ZERO;
        for turn in 0..RECALLS + RECALLS / 10 {
            let words: Vec<String> = (0..6).map(|_| numbers.word()).collect();
            let mut query =
                RecallQuery::new(Namespace::default(), format!("what did Anna say about {}?", words.join(" ")), 10);
            change(&mut query);
            let embedding = dense.then(|| numbers.vector());
            let (started, processor_before) = (Instant::now(), processor_time());
            let found = index.recall(&query, embedding.as_ref(), end, &|_| None)?;
            processor += processor_time().saturating_sub(processor_before);
            if turn >= RECALLS / 10 {
                times.record(started.elapsed().as_micros() as u64)?;
            }
            std::hint::black_box(found);
        }
        let (p50, p99) = (times.value_at_quantile(0.5) as f64 / 1e3, times.value_at_quantile(0.99) as f64 / 1e3);
        let processor_ms = processor.as_secs_f64() * 1e3 / (RECALLS + RECALLS / 10) as f64;
        print_line(&format!("{name}: p50 {p50:.2} ms, p99 {p99:.2} ms, processor time {processor_ms:.2} ms a recall"))
    };
    report("recall from text", false, &|_| {})?;
    report("recall from text and two vector views", true, &|_| {})?;
    report("the same, one speaker of four", true, &|query| query.filter.speakers.push("Anna".into()))?;
    report("the same, with explanations", true, &|query| query.explain = true)
}

fn print_line(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout(), "{line}")?)
}
