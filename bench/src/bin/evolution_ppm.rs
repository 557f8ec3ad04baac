//! The cache that the evolution loop must beat: bits a character on a person's stream, per tenth, of models that were
//! frozen after the first tenth and of the same models that go on learning.
//!
//! `cargo run --release -p mneme-bench --bin evolution_ppm -- [--base FILE] [FILE ...]`
//!
//! A file is a diary (`.jsonl.gz`, lines of `{"text": ...}` in order of time) or a chat (`.json`, sessions of turns; each
//! speaker is a stream of their own). Streams of several files are pooled tenth by tenth. `--base` names a `.jsonl.zst` of
//! other people's text that both models read first. Without files: the diary below `../shared` (or `MNEME_SHARED`).
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use mneme_bench::streams::{Failure, base_texts, default_file, streams};
use mneme_evolution::ppm::Ppm;
use mneme_evolution::prequential::{Pair, Part, measure, split};

/// Parts of the stream.
const PARTS: usize = 10;
/// Characters of base text that are read: about a million contexts, 100 MB.
const BASE_CHARS_MAX: usize = 1_000_000;

fn main() -> ExitCode {
    match run(std::env::args_os().skip(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: impl Iterator<Item = OsString>) -> Result<(), Failure> {
    let (mut files, mut base) = (Vec::new(), Vec::new());
    while let Some(argument) = arguments.next() {
        if argument == "--base" {
            base = base_texts(Path::new(&arguments.next().ok_or("--base needs a file")?), None, BASE_CHARS_MAX)?;
        } else {
            files.push(PathBuf::from(argument));
        }
    }
    if files.is_empty() {
        files.push(default_file());
    }
    let streams: Vec<Vec<String>> = files.iter().map(|file| streams(file)).collect::<Result<Vec<_>, _>>()?.concat();
    let chars = |texts: &[String]| texts.iter().map(|text| text.chars().count()).sum::<usize>();
    let total: usize = streams.iter().map(|texts| chars(texts)).sum();
    println!("{} streams, {total} characters; {} characters of base text", streams.len(), chars(&base));
    for (name, order) in [("unigram", 0), ("order-6 PPM", 6)] {
        let mut model = Ppm::new(order);
        for text in &base {
            model.learn(text);
            model.learn("\n");
        }
        let mut parts = vec![Vec::new(); PARTS];
        for texts in &streams {
            for (part, pairs) in parts.iter_mut().zip(costs(texts, model.clone())) {
                part.extend(pairs);
            }
        }
        table(&format!("{name}: frozen after the first tenth, against learning"), &parts);
    }
    Ok(())
}

/// Costs of the entries of every tenth under a model that stops learning after the first one, and under one that goes on.
fn costs(texts: &[String], mut learning: Ppm) -> Vec<Vec<Pair>> {
    let chars: Vec<u64> = texts.iter().map(|text| text.chars().count() as u64).collect();
    let mut frozen: Option<Ppm> = None;
    let mut parts = Vec::new();
    for range in split(&chars, PARTS) {
        let mut pairs = Vec::new();
        for (text, chars) in texts[range.clone()].iter().zip(&chars[range]) {
            // Entries are separate documents: the line break stands for the boundary in both models.
            let frozen_bits = frozen.as_ref().map(|model| model.cost("\n", text));
            let bits = learning.learn(text);
            learning.learn("\n");
            pairs.push(Pair { chars: *chars, baseline_bits: frozen_bits.unwrap_or(bits), arm_bits: bits });
        }
        frozen.get_or_insert_with(|| learning.clone());
        parts.push(pairs);
    }
    parts
}

fn table(title: &str, parts: &[Vec<Pair>]) {
    println!("\n{title}");
    println!("tenth  entries  frozen bpc  learning bpc  gain %  95% interval");
    for (index, pairs) in parts.iter().enumerate() {
        row(&format!("{:>5}", index + 1), &measure(pairs, 1));
    }
    row("2..10", &measure(&parts[1..].concat(), 1));
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
