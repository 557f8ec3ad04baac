//! Turns an export of `mneme export` (JSON lines) into Parquet and back.
//!
//! ```text
//! mneme-parquet to-parquet EXPORT.jsonl OUT.parquet
//! mneme-parquet to-jsonl   IN.parquet   OUT.jsonl
//! ```
//! Both directions go through a store in memory and its write gate, so that what comes out is what `mneme import` would take. The status
//! is 1 also where something was left out.

#![expect(clippy::print_stderr, reason = "a program for people")]

use std::error::Error;
use std::io::{BufReader, BufWriter, Write as _};
use std::process::ExitCode;

use mneme_memory::transfer::{self, ImportReport};
use mneme_memory::{DurableOptions, DurableStore};
use mneme_memory_lance::parquet;

const USAGE: &str = "usage: mneme-parquet to-parquet EXPORT.jsonl OUT.parquet | to-jsonl IN.parquet OUT.jsonl";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok((text, whole)) => {
            eprintln!("{text}");
            if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE }
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

/// What was done, in words, and whether everything in the input is in the output.
fn run(arguments: &[String]) -> Result<(String, bool), Box<dyn Error>> {
    let [direction, from, to] = arguments else { return Err(USAGE.into()) };
    let store = DurableStore::in_memory(DurableOptions::default())?;
    let input = fs_err::File::open(from)?;
    let (report, written) = match direction.as_str() {
        "to-parquet" => {
            let report = transfer::import(&store, &mut BufReader::new(input))?;
            let file = fs_err::File::create(to)?;
            let written = parquet::export(&store, None, file.file().try_clone()?)?;
            file.sync_all()?;
            (report, written)
        }
        "to-jsonl" => {
            let report = parquet::import(&store, input.into_parts().0)?;
            let mut output = BufWriter::new(fs_err::File::create(to)?);
            let written = transfer::export(&store, None, &mut output)?;
            output.flush()?;
            output.get_ref().sync_all()?;
            (report, written)
        }
        _ => return Err(USAGE.into()),
    };
    let ImportReport { known, refused, .. } = report;
    let words =
        format!("{written} memories written to {to}; {known} were there twice, {refused} were refused by the gate");
    Ok((words, known == 0 && refused == 0))
}
