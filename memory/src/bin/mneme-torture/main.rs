//! Torture of the durable store: power cuts, kill -9, failing writes. Prints a table; the exit status is 1 when anything that
//! was acknowledged is lost, a store does not open, is in a wrong state, or a writer hangs.
//!
//! ```text
//! mneme-torture [--engine redb|sled|all] [--cuts N] [--kills N] [--faults STRIDE] [--seed N] [--folder DIR]
//! ```
//! `--cuts` needs root, a loop device and ext4; `--faults 1` lets every write and sync fail once, `--faults 7` every seventh;
//! 0 leaves a mode out. Without any of the three: 20 cuts, 40 kills, every 31st call.

#![expect(clippy::print_stdout, reason = "a program for people")]

mod child;
mod disk;
mod faults;
mod kill;
mod power;
mod report;
mod script;
mod verify;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

use mneme_memory::state::EngineKind;

use crate::report::Report;

/// What was asked for.
struct Arguments {
    engines: Vec<EngineKind>,
    cuts: u64,
    kills: u64,
    fault_stride: u64,
    seed: u64,
    folder: PathBuf,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "child") {
        return match child_arguments(&arguments) {
            Ok((folder, engine, seed, from, to)) => child::run(&folder, engine, seed, from, to),
            Err(error) => fail(&error),
        };
    }
    let result = parse(&arguments).and_then(|arguments| run(&arguments).map_err(|error| error.to_string()));
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &str) -> ExitCode {
    println!("error: {error}");
    ExitCode::from(2)
}

fn child_arguments(arguments: &[String]) -> Result<(PathBuf, EngineKind, u64, u64, u64), String> {
    let [_, folder, engine, seed, from, to] = arguments else { return Err("a writer takes five arguments".into()) };
    let number = |text: &String| text.parse::<u64>().map_err(|_| format!("{text:?} is not a number"));
    let engine = engine.parse().map_err(|error: mneme_memory::state::UnknownEngine| error.to_string())?;
    Ok((folder.into(), engine, number(seed)?, number(from)?, number(to)?))
}

fn parse(arguments: &[String]) -> Result<Arguments, String> {
    let mut parsed = Arguments {
        engines: vec![EngineKind::Redb, EngineKind::Sled],
        cuts: 0,
        kills: 0,
        fault_stride: 0,
        seed: 1,
        folder: std::env::temp_dir().join(format!("mneme-torture-{}", std::process::id())),
    };
    let mut any = false;
    let mut rest = arguments.iter();
    while let Some(name) = rest.next() {
        let value = rest.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value:?} is not a number"));
        match name.as_str() {
            "--engine" if value == "all" => {}
            "--engine" => {
                let engine = value.parse().map_err(|error: mneme_memory::state::UnknownEngine| error.to_string())?;
                parsed.engines = vec![engine];
            }
            "--cuts" => (parsed.cuts, any) = (number()?, true),
            "--kills" => (parsed.kills, any) = (number()?, true),
            "--faults" => (parsed.fault_stride, any) = (number()?, true),
            "--seed" => parsed.seed = number()?,
            "--folder" => parsed.folder = value.into(),
            _ => return Err(format!("{name} is not known; see the head of this program's source")),
        }
    }
    if !any {
        (parsed.cuts, parsed.kills, parsed.fault_stride) = (20, 40, 31);
    }
    Ok(parsed)
}

/// Runs what was asked for; says whether nothing went wrong.
fn run(arguments: &Arguments) -> std::io::Result<bool> {
    println!("{}", Report::head());
    let mut clean = true;
    let mut tell = |report: &Report| {
        println!("{}", report.row());
        if let Some(failure) = &report.first_failure {
            println!("\nfirst failure of {}: {failure}\n", report.name);
        }
        clean &= report.is_clean();
    };
    for engine in &arguments.engines {
        let folder = |mode: &str| -> std::io::Result<PathBuf> {
            let folder = arguments.folder.join(format!("{engine}-{mode}"));
            fs_err::create_dir_all(&folder)?;
            Ok(folder)
        };
        if arguments.kills > 0 {
            tell(&kill::run(&folder("kill")?, *engine, arguments.kills, arguments.seed)?);
        }
        if arguments.cuts > 0 {
            match disk::unavailable() {
                Some(reason) => println!("\nskipped: {reason}\n"),
                None => match power::run(&folder("power")?, *engine, arguments.cuts, arguments.seed) {
                    Err(error) if error.kind() == std::io::ErrorKind::Unsupported => println!("\nskipped: {error}\n"),
                    report => tell(&report?),
                },
            }
        }
        if arguments.fault_stride > 0 {
            let reports = faults::run(&folder("faults")?, *engine, arguments.fault_stride, arguments.seed)?;
            reports.iter().for_each(&mut tell);
        }
    }
    if clean {
        fs_err::remove_dir_all(&arguments.folder)?;
    } else {
        println!("\nthe stores are kept in {}", arguments.folder.display());
    }
    Ok(clean)
}
