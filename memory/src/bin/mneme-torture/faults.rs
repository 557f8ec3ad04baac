//! The Nth write or sync fails, with EIO or ENOSPC, once or for good: the writer has to end within ten seconds, and nothing
//! that it acknowledged may be lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use mneme_memory::state::EngineKind;

use crate::report::Report;
use crate::verify::Model;
use crate::writer::{HANG, Writer};

const SHIM: &str = include_str!("shim.c");
/// Steps of one writer: enough for batches, vectors, a purge and a change of generation.
const STEPS: u64 = 33;
/// Error number, in words, and for good.
const VARIANTS: [(i32, &str, bool); 4] =
    [(5, "EIO once", false), (5, "EIO for good", true), (28, "ENOSPC once", false), (28, "ENOSPC for good", true)];

/// Compiles the shim; an error says why there can be none here.
pub(crate) fn compile_shim(folder: &Path) -> std::io::Result<PathBuf> {
    let (source, library) = (folder.join("shim.c"), folder.join("shim.so"));
    fs_err::write(&source, SHIM)?;
    let output =
        Command::new("cc").args(["-O2", "-shared", "-fPIC", "-o"]).args([&library, &source]).arg("-ldl").output()?;
    if output.status.success() {
        return Ok(library);
    }
    Err(std::io::Error::other(format!("cc failed: {}", String::from_utf8_lossy(&output.stderr))))
}

/// Lets every `stride`th call fail in each variant, each in a fresh store.
pub(crate) fn run(folder: &Path, engine: EngineKind, stride: u64, seed: u64) -> std::io::Result<Vec<Report>> {
    let shim = compile_shim(folder)?;
    let total = count_calls(folder, &shim, engine, seed)?;
    let mut reports = Vec::new();
    for (number, words, sticky) in VARIANTS {
        let mut report = Report::new(format!("{words}, {engine}"));
        let mut at = 1 + (seed % stride.max(1));
        while at <= total {
            one(folder, &shim, engine, seed, (at, number, sticky), &mut report)?;
            at += stride.max(1);
        }
        reports.push(report);
    }
    Ok(reports)
}

fn environment(shim: &Path, store: &Path, at: u64, number: i32, sticky: bool) -> Vec<(&'static str, String)> {
    vec![
        ("LD_PRELOAD", shim.to_string_lossy().into_owned()),
        ("MNEME_FAULT_PATH", store.to_string_lossy().into_owned()),
        ("MNEME_FAULT_AT", at.to_string()),
        ("MNEME_FAULT_ERRNO", number.to_string()),
        ("MNEME_FAULT_STICKY", u8::from(sticky).to_string()),
    ]
}

fn count_calls(folder: &Path, shim: &Path, engine: EngineKind, seed: u64) -> std::io::Result<u64> {
    let store = fresh(folder)?;
    let count = folder.join("count");
    let mut environment = environment(shim, &store, 0, 5, false);
    environment.push(("MNEME_FAULT_COUNT", count.to_string_lossy().into_owned()));
    let ended = Writer::start(&store, engine, seed, 0..STEPS, &environment)?.wait(Duration::from_mins(1));
    if ended.is_none_or(|ended| ended.acked != Some(STEPS - 1)) {
        return Err(std::io::Error::other("the writer did not end without faults"));
    }
    let text = fs_err::read_to_string(&count)?;
    text.trim().parse().map_err(|_| std::io::Error::other(format!("the shim counted {text:?}")))
}

fn fresh(folder: &Path) -> std::io::Result<PathBuf> {
    let store = folder.join("store");
    if store.exists() {
        fs_err::remove_dir_all(&store)?;
    }
    fs_err::create_dir_all(&store)?;
    // The shim compares real paths.
    fs_err::canonicalize(&store)
}

fn one(
    folder: &Path,
    shim: &Path,
    engine: EngineKind,
    seed: u64,
    (at, number, sticky): (u64, i32, bool),
    report: &mut Report,
) -> std::io::Result<()> {
    let store = fresh(folder)?;
    let environment = environment(shim, &store, at, number, sticky);
    let writer = Writer::start(&store, engine, seed, 0..STEPS, &environment)?;
    report.crashes += 1;
    let Some(ended) = writer.wait(HANG) else {
        report.hangs += 1;
        report.note(format!("call {at}: the writer did not end in {} s", HANG.as_secs()));
        return Ok(());
    };
    report.faults_seen += u64::from(ended.fault.is_some());
    let mut model = Model::new(engine, seed);
    let result = model.verify(&store, engine, ended.acked);
    report.steps += model.next;
    if let Err(failure) = &result {
        report.note(format!("call {at}: {failure:?}"));
    }
    report.add(result);
    Ok(())
}
