//! Fuzzes frames and requests for a time, or for a number of inputs.

#![expect(clippy::print_stdout, reason = "a command line tool speaks on standard output")]

use std::time::{Duration, Instant};

use clap::Parser;
use mneme_tests::fuzz::{Until, run};

const CORPUS: &str = include_str!("../../data/fuzz/requests.jsonl");

/// Fuzzes everything that reads bytes from outside.
#[derive(Debug, Parser)]
struct Arguments {
    /// How long (seconds).
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many inputs, instead of a time.
    #[arg(long)]
    inputs: Option<u64>,
    /// Where the inputs start.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() {
    let arguments = Arguments::parse();
    let until = arguments.inputs.map_or(Until::Elapsed(Duration::from_secs(arguments.seconds)), Until::Inputs);
    let started = Instant::now();
    let tally = run(CORPUS, arguments.seed, until);
    let rate = tally.inputs as f64 / started.elapsed().as_secs_f64();
    println!("{} inputs ({rate:.0} a second), {} read as requests, no findings", tally.inputs, tally.accepted);
}
