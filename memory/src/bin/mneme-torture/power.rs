//! Power cuts under the writer of a store.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mneme_memory::state::EngineKind;

use crate::disk::{Disk, neighbour};
use crate::report::Report;
use crate::verify::Model;
use crate::writer::{HANG, Writer};

/// The size of the file system.
const IMAGE_BYTES: u64 = 512 << 20;
/// A writer lives at most this long before the cut (ms).
const LIFE_MS_MAX: u64 = 500;

/// Cuts the power `cuts` times under writers of one store and verifies the store after each.
pub(crate) fn run(folder: &Path, engine: EngineKind, cuts: u64, seed: u64) -> std::io::Result<Report> {
    let mut report = Report::new(format!("power cut, {engine}"));
    let mut model = Model::new(engine, seed);
    let mut random = seed;
    // Root in a container may have neither loop devices nor the right to mount.
    let disk = Disk::create(folder, IMAGE_BYTES)
        .map_err(|error| std::io::Error::new(std::io::ErrorKind::Unsupported, error))?;
    let store = disk.place.join("store");
    while report.crashes < cuts {
        let stop = Arc::new(AtomicBool::new(false));
        let (place, stopped) = (disk.place.clone(), Arc::clone(&stop));
        let beside = std::thread::spawn(move || neighbour(&place, &stopped));
        let writer = Writer::start(&store, engine, seed, model.next..u64::MAX, &[])?;
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let during_open = (random >> 40).is_multiple_of(6);
        if !during_open && !writer.wait_until_open(HANG) {
            report.hangs += 1;
            report.note(format!("crash {}: the store did not open in {} s", report.crashes + 1, HANG.as_secs()));
        }
        std::thread::sleep(Duration::from_micros((random >> 33) % (LIFE_MS_MAX * 1_000)));
        writer.freeze();
        let cut = disk.cut_power();
        let before = model.next;
        let ended = writer.kill();
        stop.store(true, Ordering::SeqCst);
        let _ = beside.join();
        cut?;
        disk.unmount()?;
        disk.mount()?;
        report.crashes += 1;
        if let Some(fault) = ended.fault {
            report.unopenable += 1;
            report.note(format!("cut {}: {fault}", report.crashes));
            break;
        }
        report.add(model.verify(&store, engine, ended.acked));
        report.steps += model.next - before;
        if report.has_damage() {
            break;
        }
    }
    Ok(report)
}
