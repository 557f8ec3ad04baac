//! kill -9 at random moments: while the store opens, writes, rewrites its files, changes generation.

use std::path::Path;
use std::time::Duration;

use mneme_memory::state::EngineKind;

use crate::report::Report;
use crate::verify::Model;
use crate::writer::{HANG, Writer};

/// A writer lives at most this long (ms).
const LIFE_MS_MAX: u64 = 250;

/// Kills `kills` writers of one store, one after the other, and verifies the store after each.
pub(crate) fn run(folder: &Path, engine: EngineKind, kills: u64, seed: u64) -> std::io::Result<Report> {
    let mut report = Report::new(format!("kill -9, {engine}"));
    let mut model = Model::new(engine, seed);
    let mut random = seed;
    while report.crashes < kills {
        let writer = Writer::start(folder, engine, seed, model.next..u64::MAX, &[])?;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // One in four dies while it opens: its life is counted from its start, not from its first word.
        let during_open = (random >> 40).is_multiple_of(4);
        if !during_open && !writer.wait_until_open(HANG) {
            report.hangs += 1;
            report.note(format!("crash {}: the store did not open in {} s", report.crashes + 1, HANG.as_secs()));
        }
        std::thread::sleep(Duration::from_micros((random >> 33) % (LIFE_MS_MAX * 1_000)));
        let before = model.next;
        let ended = writer.kill();
        report.crashes += 1;
        if let Some(fault) = ended.fault {
            report.unopenable += 1;
            report.note(format!("crash {}: {fault}", report.crashes));
            break;
        }
        report.add(model.verify(folder, engine, ended.acked));
        report.steps += model.next - before;
        if report.has_damage() {
            break;
        }
    }
    Ok(report)
}
