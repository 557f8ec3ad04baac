//! The evidence for the evolution loop: bits a character on the next entry of a person's stream, per tenth of the stream,
//! for the loop and for everything that it has to beat, with the real engine.
//!
//! `cargo xtask bench evolution [--minutes N] [--out FOLDER] [--report] [FILE]`
//!
//! Each entry is predicted before it is learned. Entries are sampled evenly within a tenth and cut to a length; jobs train
//! on the entries between them, go through the gates and then through the shadow on the sampled entries, exactly as the
//! loop does. What was measured is written line by line, so that a run that was stopped goes on where it was.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

mod cache;
mod chain;
mod measure;
mod plot;
mod report;
mod results;
mod stream;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use mneme_bench::streams::{Failure, default_file, shared};

/// Measures the loop against frozen, cache, retrieval, kNN-LM, ungated training, placebo and shuffled time.
#[derive(Debug, Parser)]
#[command(name = "evolution")]
struct Arguments {
    /// A diary (`.jsonl.gz`) or a chat (`.json`); of a chat the speaker who wrote most is taken.
    file: Option<PathBuf>,
    /// CPU minutes to spend, in this run and in those before it with the same folder.
    #[arg(long, default_value_t = 40.0)]
    minutes: f64,
    /// Where measurements, adapters, table and plot are kept.
    #[arg(long, default_value = "target/bench-evolution")]
    out: PathBuf,
    /// Other people's text (`.jsonl.zst`), which is replayed and guarded.
    #[arg(long)]
    base: Option<PathBuf>,
    /// Other people's text (`.jsonl.zst`) for placebo adapters; only lines of the source `books` are read.
    #[arg(long)]
    others: Option<PathBuf>,
    /// The engine's program; beside this one when it is not given.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// Threads of the engine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Sampled entries of a tenth.
    #[arg(long, default_value_t = 16)]
    entries: usize,
    /// Entries are cut to this length (characters).
    #[arg(long, default_value_t = 600)]
    chars: usize,
    /// Optimiser steps of a job.
    #[arg(long, default_value_t = 48)]
    steps: u32,
    /// After which tenths a job trains.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 6, 8])]
    jobs: Vec<usize>,
    /// Seed of sampling, training and intervals.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only prints what was measured so far.
    #[arg(long)]
    report: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.entries < 2 || arguments.chars < 100 {
        return Err("at least 2 entries of at least 100 characters are needed".into());
    }
    let file = arguments.file.clone().unwrap_or_else(default_file);
    let stream = stream::Stream::read(&file, arguments.entries, arguments.chars)?;
    let base = arguments.base.clone().unwrap_or_else(|| shared("corpus/valid.jsonl.zst"));
    let others = arguments.others.clone().unwrap_or_else(|| shared("corpus/train.jsonl.zst"));
    fs_err::create_dir_all(&arguments.out)?;
    let mut results = results::Results::open(&arguments.out.join("results.jsonl"))?;
    if !arguments.report {
        let texts = stream::BaseTexts::read(&base, &others, arguments.chars)?;
        let mut bench = measure::Bench::new(arguments, &stream, &texts, &mut results)?;
        match chain::run(&mut bench, arguments) {
            Err(error) if error.is::<measure::BudgetSpent>() => println!("{error}; the report is of what was measured"),
            other => other?,
        }
    }
    report::print(&stream, &results, arguments)
}
