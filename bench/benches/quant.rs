//! ArrowQuant against the memory's speed, and (with `serve`) call by call against peers in another process.
//!
//! `cargo bench -p mneme-bench --bench quant` prints each kernel's rate and its share of the measured read bandwidth.
//! `... -- serve` reads lines from standard input: `case WHAT KEY=VALUE ...` sets one up, `run` answers with the
//! nanoseconds of one call, by the wall and of the calling thread, so that `bench/peers/quant.py` alternates calls of ours and of the peers in one run.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, Write};
use std::time::Instant;

use mneme_quant::codec::{Fit, Granularity, Quantized, Scheme, Spec, Width};
use mneme_quant::scan::{Query, RowsI8, scan_top_k};
use mneme_quant::{PackedWeights, gemm, probe};
use rustix::time::{ClockId, clock_gettime};

/// Memory-bound cases walk over this much, several times the largest cache share that a core can count on (bytes).
const COLD_BYTES: usize = 1 << 30;
/// What one timed read of memory goes through (bytes).
const READ_BYTES: usize = 128 << 20;
/// Rounds whose median is reported.
const ROUNDS: usize = 15;

type Call = Box<dyn FnMut()>;

fn main() -> io::Result<()> {
    let serve = std::env::args().any(|argument| argument == "serve");
    if serve { serve_lines() } else { print_table() }
}

fn noise(count: usize) -> Vec<f32> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    (0..count).map(|_| next() + next() + next() + next() - 2.0).collect()
}

/// The settings of a case, `key=value`.
struct Settings(HashMap<String, String>);

impl Settings {
    fn parse(words: &str) -> Self {
        let pairs = words.split_whitespace().filter_map(|word| word.split_once('='));
        Self(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
    }

    fn number(&self, key: &str, otherwise: usize) -> usize {
        self.0.get(key).and_then(|value| value.parse().ok()).unwrap_or(otherwise)
    }

    fn spec(&self) -> Spec {
        let width = match self.number("bits", 4) {
            2 => Width::Two,
            8 => Width::Eight,
            _ => Width::Four,
        };
        let granularity = match self.number("group", 128) {
            0 => Granularity::OutChannel,
            group => Granularity::Group(group as u32),
        };
        let scheme = if self.number("minimum", 0) == 1 { Scheme::ScaleMin } else { Scheme::Symmetric };
        let fit = if self.number("least", 0) == 1 { Fit::LeastSquares } else { Fit::Range };
        Spec { width, granularity, scheme, fit }
    }
}

/// A call to be timed, and the bytes or operations that one call goes through.
fn case(what: &str, settings: &Settings) -> Option<(Call, f64)> {
    let threads = settings.number("threads", 1);
    match what {
        "read" => {
            let bytes = vec![1_u8; COLD_BYTES];
            let mut turn = 0;
            let call = move || {
                let windows = bytes.len() / READ_BYTES;
                let window = &bytes[turn % windows * READ_BYTES..][..READ_BYTES];
                turn += 1;
                std::hint::black_box(probe::read_all(window, threads));
            };
            Some((Box::new(call), READ_BYTES as f64))
        }
        "scan" => {
            let dimensions = settings.number("dimensions", 384);
            let rows = settings.number("rows", COLD_BYTES / dimensions);
            let k = settings.number("k", 10);
            let codes: Vec<i8> = (0..rows * dimensions).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as i8).collect();
            let scales = vec![0.01_f32; rows];
            let query: Vec<i8> = (0..dimensions).map(|i| (i * 37 % 251) as i8).collect();
            let work = (codes.len() + scales.len() * 4) as f64;
            let call = move || {
                let view = RowsI8::new(&codes, &scales, dimensions).expect("the shape fits");
                let found = scan_top_k(view, Query::new(&query, 0.01), k, None, threads).expect("the query fits");
                std::hint::black_box(found);
            };
            Some((Box::new(call), work))
        }
        "quantize" | "dequantize" => {
            let (rows, columns) = (settings.number("rows", 4096), settings.number("columns", 4096));
            let spec = settings.spec();
            let values = noise(rows * columns);
            let work = values.len() as f64;
            if what == "quantize" {
                let call = move || {
                    let made = Quantized::quantize(&values, rows, columns, spec, threads);
                    std::hint::black_box(made.expect("noise is finite"));
                };
                return Some((Box::new(call), work));
            }
            let quantized = Quantized::quantize(&values, rows, columns, spec, threads).expect("noise is finite");
            let mut out = values;
            let call = move || {
                quantized.dequantize_into(&mut out, threads).expect("the buffer fits");
                std::hint::black_box(&mut out);
            };
            Some((Box::new(call), work))
        }
        "gemm" => {
            let (rows, outputs, inputs) =
                (settings.number("m", 1), settings.number("n", 4096), settings.number("k", 4096));
            let values = noise(outputs * inputs);
            let weights =
                PackedWeights::from_f32(&values, outputs, inputs, settings.spec(), 2).expect("the shape fits");
            let bytes = weights.as_bytes().len();
            let copies = if settings.number("cold", 0) == 1 { COLD_BYTES.div_ceil(bytes) } else { 1 };
            let all: Vec<PackedWeights> = (0..copies)
                .map(|_| PackedWeights::from_slice(weights.as_bytes()).expect("a copy of packed weights"))
                .collect();
            let activations = noise(rows * inputs);
            let mut out = vec![0.0; rows * outputs];
            let mut turn = 0;
            let call = move || {
                gemm(&all[turn % all.len()], &activations, rows, &mut out, threads).expect("the shapes fit");
                turn += 1;
                std::hint::black_box(&mut out);
            };
            let cold = settings.number("cold", 0) == 1;
            Some((Box::new(call), if cold { bytes as f64 } else { 2.0 * (rows * outputs * inputs) as f64 }))
        }
        _ => None,
    }
}

fn serve_lines() -> io::Result<()> {
    let mut current: Option<Call> = None;
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("case", rest) => {
                drop(current.take());
                let (what, words) = rest.split_once(' ').unwrap_or((rest, ""));
                current = case(what, &Settings::parse(words)).map(|(call, _)| call);
                writeln!(out, "{}", if current.is_some() { "ready" } else { "unknown" })?;
            }
            ("run", _) => match &mut current {
                Some(call) => {
                    let (start, own) = (Instant::now(), thread_nanos());
                    call();
                    let (wall, own) = (start.elapsed().as_nanos(), thread_nanos() - own);
                    writeln!(out, "{wall} {own}")?;
                }
                None => writeln!(out, "none")?,
            },
            _ => writeln!(out, "unknown")?,
        }
        out.flush()?;
    }
    Ok(())
}

/// Nanoseconds of this thread on a processor: for one thread the fair clock on a busy machine.
fn thread_nanos() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

/// The rate of one round of calls (work per nanosecond), by the thread's own time when the caller's is the only one.
fn rate(call: &mut Call, work: f64, threads: usize) -> f64 {
    // Short calls are repeated, so that the clock's grain does not matter.
    let mut calls = 0_u32;
    let (start, own) = (Instant::now(), thread_nanos());
    while calls == 0 || start.elapsed().as_millis() < 10 {
        call();
        calls += 1;
    }
    let nanos = if threads == 1 { (thread_nanos() - own) as f64 } else { start.elapsed().as_nanos() as f64 };
    work * f64::from(calls) / nanos
}

fn spread(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_by(f64::total_cmp);
    [values[0], values[values.len() / 2], values[values.len() - 1]]
}

/// Rates of a case, and with `read` its share of the memory's speed in the same round.
fn rates(what: &str, words: &str, mut read: Option<&mut (Call, f64)>) -> ([f64; 3], Option<[f64; 3]>) {
    let settings = Settings::parse(words);
    let threads = settings.number("threads", 1);
    let (mut call, work) = case(what, &settings).expect("the table names cases that exist");
    call();
    let (mut own, mut shares) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ceiling = read.as_mut().map(|(read, bytes)| rate(read, *bytes, threads));
        let found = rate(&mut call, work, threads);
        own.push(found);
        shares.extend(ceiling.map(|ceiling| found / ceiling));
    }
    (spread(own), read.map(|_| spread(shares)))
}

fn print_table() -> io::Result<()> {
    let mut out = io::stdout().lock();
    let filter: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let wanted = |name: &str| filter.is_empty() || filter.iter().any(|word| name.contains(word.as_str()));
    writeln!(out, "path {:?}; min / median / max of {ROUNDS} rounds", mneme_quant::Path::best())?;
    for threads in [1, 2] {
        let mut read = case("read", &Settings::parse(&format!("threads={threads}"))).expect("reading is a case");
        let ceiling = spread((0..ROUNDS).map(|_| rate(&mut read.0, read.1, threads)).collect());
        line(&mut out, &format!("read threads={threads}"), ceiling, "GB/s", None)?;
        let mut memory_bound = vec!["scan dimensions=384".to_owned()];
        let shapes = [(1536, 576), (576, 1536), (8192, 2048), (4096, 4096)];
        let formats = ["bits=8 group=0", "bits=4 group=128", "bits=4 group=32", "bits=2 group=64"];
        for (n, k) in shapes {
            memory_bound.extend(formats.iter().map(|format| format!("gemm cold=1 m=1 n={n} k={k} {format}")));
        }
        for name in memory_bound.iter().map(|name| format!("{name} threads={threads}")).filter(|name| wanted(name)) {
            let (what, words) = name.split_once(' ').expect("a case and its settings");
            let (rates, shares) = rates(what, words, Some(&mut read));
            line(&mut out, &name, rates, "GB/s", shares)?;
        }
        drop(read);
        let mut others = Vec::new();
        for what in ["quantize", "dequantize"] {
            for format in
                ["bits=8 group=0", "bits=4 group=128", "bits=4 group=32 minimum=1", "bits=2 group=64 minimum=1"]
            {
                others.push((format!("{what} {format}"), "Gelem/s"));
            }
        }
        for (n, k) in shapes {
            for m in [16, 64, 128, 512] {
                others.extend(formats.iter().map(|format| (format!("gemm m={m} n={n} k={k} {format}"), "Gop/s")));
            }
        }
        for (name, unit) in others {
            let name = format!("{name} threads={threads}");
            if wanted(&name) {
                let (what, words) = name.split_once(' ').expect("a case and its settings");
                line(&mut out, &name, rates(what, words, None).0, unit, None)?;
            }
        }
    }
    Ok(())
}

fn line(out: &mut impl Write, name: &str, rates: [f64; 3], unit: &str, shares: Option<[f64; 3]>) -> io::Result<()> {
    let mut text = format!("{name:<56} {:>8.2} {:>8.2} {:>8.2} {unit}", rates[0], rates[1], rates[2]);
    if let Some([low, median, high]) = shares {
        let _ = write!(text, "   of read: {:.0} {:.0} {:.0} %", low * 100.0, median * 100.0, high * 100.0);
    }
    writeln!(out, "{text}")
}
