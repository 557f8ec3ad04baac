//! `mneme-engine train`: one job in a process of its own, at the lowest priority.

use std::io::Write as _;
use std::path::Path;

use mneme_engine::ArrowEngine;
use mneme_engine::assets::Assets;
use mneme_engine::runtime::Runtime;
use mneme_engine_api::trainer::OUTCOME_FILE;
use mneme_engine_api::{CancelToken, Engine as _, TrainEvent, TrainJob};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The kernel gives a trainer what nobody else wants.
const NICE: i32 = 19;

pub(crate) fn run(path: &Path, assets: Assets, runtime: Runtime) -> Result<(), Box<dyn std::error::Error>> {
    let job: TrainJob = serde_json::from_slice(&fs_err::read(path)?)?;
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::warn!(%error, "trainer keeps its priority");
    }
    let cancel = CancelToken::default();
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let stop = cancel.clone();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            stop.cancel();
        }
    })?;
    let mut out = std::io::stdout().lock();
    let mut observe = |event: TrainEvent| {
        // A reader that is gone does not stop the training.
        if let Ok(line) = serde_json::to_string(&event) {
            let _ = writeln!(out, "{line}");
            let _ = out.flush();
        }
    };
    let outcome = ArrowEngine::open(assets, runtime)?.train(&job, &mut observe, &cancel)?;
    let folder = Path::new(&job.folder);
    let temporary = folder.join("outcome.tmp");
    let mut file = fs_err::File::create(&temporary)?;
    file.write_all(&serde_json::to_vec_pretty(&outcome)?)?;
    file.sync_all()?;
    Ok(fs_err::rename(&temporary, folder.join(OUTCOME_FILE))?)
}
