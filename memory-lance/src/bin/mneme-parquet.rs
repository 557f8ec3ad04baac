//! Turns an export of `mneme export` (JSON lines) into Parquet and back.
//!
//! ```text
//! mneme-parquet to-parquet EXPORT.jsonl OUT.parquet
//! mneme-parquet to-jsonl   IN.parquet   OUT.jsonl
//! ```
//! Both directions go through a store in memory and its write gate, so that what comes out is what `mneme import` would take.

#![expect(clippy::print_stderr, reason = "a program for people")]

use std::error::Error;
use std::io::{BufReader, BufWriter};
use std::process::ExitCode;

use mneme_memory::transfer::{self, ImportReport};
use mneme_memory::{DurableOptions, DurableStore};
use mneme_memory_lance::parquet;

const USAGE: &str = "usage: mneme-parquet to-parquet EXPORT.jsonl OUT.parquet | to-jsonl IN.parquet OUT.jsonl";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(text) => {
            eprintln!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            let mut text = format!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<String, Box<dyn Error>> {
    let [direction, from, to] = arguments else { return Err(USAGE.into()) };
    let store = DurableStore::in_memory(DurableOptions::default())?;
    let input = fs_err::File::open(from)?;
    let (report, written) = match direction.as_str() {
        "to-parquet" => {
            let report = transfer::import(&store, &mut BufReader::new(input))?;
            (report, parquet::export(&store, None, fs_err::File::create(to)?.into_parts().0)?)
        }
        "to-jsonl" => {
            let report = parquet::import(&store, input.into_parts().0)?;
            (report, transfer::export(&store, None, &mut BufWriter::new(fs_err::File::create(to)?))?)
        }
        _ => return Err(USAGE.into()),
    };
    let ImportReport { known, refused, .. } = report;
    Ok(format!("{written} memories written to {to}; {known} were there twice, {refused} were refused by the gate"))
}
