//! The cache that the evolution loop must beat: bits a character on a person's stream, per tenth, of models that were
//! frozen after the first tenth and of the same models that go on learning.
//!
//! `cargo run --release -p mneme-bench --bin evolution_ppm [FILE.jsonl.gz]`; without a file it reads
//! `../shared/eval/pepys/diary_1660_1665.jsonl.gz` (or below `MNEME_SHARED`). Lines are `{"text": ...}` in order of time.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mneme_evolution::ppm::Ppm;
use mneme_evolution::prequential::{Pair, Part, by_part, measure, split};

/// Parts of the stream.
const PARTS: usize = 10;
/// Bytes of a line at most: a longer one is no diary entry.
const LINE_BYTES_MAX: usize = 4 << 20;

fn main() -> ExitCode {
    let path = std::env::args_os().nth(1).map_or_else(default_file, PathBuf::from);
    let texts = match read(&path) {
        Ok(texts) => texts,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let chars: Vec<u64> = texts.iter().map(|text| text.chars().count() as u64).collect();
    let ranges = split(&chars, PARTS);
    let first = ranges.first().map_or(0, |range| range.end);
    println!("{} entries, {} characters in {}", texts.len(), chars.iter().sum::<u64>(), path.display());

    let unigram = costs(&texts, first, 0);
    let ppm = costs(&texts, first, 6);

    let pairs = |baseline: &[f64], arm: &[f64]| -> Vec<Pair> {
        let bits = baseline.iter().zip(arm);
        bits.zip(&chars).map(|((b, a), chars)| Pair { chars: *chars, baseline_bits: *b, arm_bits: *a }).collect()
    };
    table("unigram: frozen after the first tenth, against learning", &pairs(&unigram.frozen, &unigram.learning), first);
    table("order-6 PPM: frozen after the first tenth, against learning", &pairs(&ppm.frozen, &ppm.learning), first);
    ExitCode::SUCCESS
}

/// Bits of each entry.
struct Costs {
    frozen: Vec<f64>,
    learning: Vec<f64>,
}

/// Costs of every entry under a model that learns on, and under one that stops after `first` entries.
fn costs(texts: &[String], first: usize, order: usize) -> Costs {
    let mut learning = Ppm::new(order);
    let mut frozen: Option<Ppm> = None;
    let mut costs = Costs { frozen: Vec::new(), learning: Vec::new() };
    for (index, text) in texts.iter().enumerate() {
        if index == first {
            frozen = Some(learning.clone());
        }
        // Entries are separate documents: the line break stands for the boundary in both models.
        let frozen_bits = frozen.as_ref().map(|model| model.cost("\n", text));
        let bits = learning.learn(text);
        learning.learn("\n");
        costs.frozen.push(frozen_bits.unwrap_or(bits));
        costs.learning.push(bits);
    }
    costs
}

fn table(title: &str, pairs: &[Pair], first: usize) {
    println!("\n{title}");
    println!("tenth  entries  frozen bpc  learning bpc  gain %  95% interval");
    for (index, part) in by_part(pairs, PARTS, 1).iter().enumerate() {
        row(&format!("{:>5}", index + 1), part);
    }
    row("2..10", &measure(pairs.get(first..).unwrap_or_default(), 1));
}

fn row(name: &str, part: &Part) {
    let Part { entries, baseline, arm, gain, gain_lower, gain_upper, .. } = part;
    println!(
        "{name}  {entries:>7}  {baseline:>10.4}  {arm:>12.4}  {:>6.1}  {:>5.1} to {:.1}",
        gain * 100.0,
        gain_lower * 100.0,
        gain_upper * 100.0
    );
}

fn default_file() -> PathBuf {
    let shared = std::env::var_os("MNEME_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    shared.join("eval/pepys/diary_1660_1665.jsonl.gz")
}

fn read(path: &Path) -> Result<Vec<String>, Box<dyn std::error::Error>> {
    let file = fs_err::File::open(path)?;
    let mut texts = Vec::new();
    for line in BufReader::new(flate2::read::GzDecoder::new(file)).split(b'\n') {
        let line = line?;
        if line.len() > LINE_BYTES_MAX {
            return Err(format!(
                "line {} has {} bytes, at most {LINE_BYTES_MAX} are read",
                texts.len() + 1,
                line.len()
            )
            .into());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let value: serde_json::Value = serde_json::from_slice(&line)?;
        let text = value.get("text").and_then(serde_json::Value::as_str);
        texts.push(text.ok_or_else(|| format!("line {} has no text", texts.len() + 1))?.to_owned());
    }
    Ok(texts)
}
