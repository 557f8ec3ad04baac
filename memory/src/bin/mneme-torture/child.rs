//! The writer: does step after step and says so after each, until it is killed or the store fails.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use mneme_memory::DurableStore;
use mneme_memory::state::EngineKind;

use crate::script::{options, run_step};
use crate::verify::chain;

/// The exit status of a writer whose store reported a fault.
pub(crate) const FAULT_STATUS: u8 = 3;

/// Runs steps `from` to `to` (exclusive).
pub(crate) fn run(folder: &Path, engine: EngineKind, seed: u64, from: u64, to: u64) -> ExitCode {
    let mut out = std::io::stdout().lock();
    let mut say = |line: &str| {
        // The parent is gone when this fails, and then nobody counts on anything.
        let _ = writeln!(out, "{line}").and_then(|()| out.flush());
    };
    let store = match DurableStore::open(folder, options(engine)) {
        Ok(store) => store,
        Err(error) => {
            say(&format!("fault open {}", chain(&error)));
            std::process::exit(FAULT_STATUS.into());
        }
    };
    say("open");
    for step in from..to {
        if let Err(error) = run_step(&store, seed, step) {
            say(&format!("fault {step} {}", chain(&error)));
            // As the daemon does: no further use of the store, no destructor that could wait for the disk.
            std::process::exit(FAULT_STATUS.into());
        }
        say(&format!("ack {step}"));
    }
    ExitCode::SUCCESS
}
