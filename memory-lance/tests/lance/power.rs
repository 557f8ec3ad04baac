//! The power is cut under a store with its copy: the store has what it acknowledged, and the copy becomes what the store is. With
//! `MNEME_CUTS=60 cargo test -p mneme-memory-lance --test lance power -- --nocapture` it prints how many heads had to be repaired.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Pid, Signal, kill_process};

use crate::disk::{Disk, neighbour, unavailable};
use crate::faults::{end_within_a_step, start, verify};

/// The size of the file system.
const IMAGE_BYTES: u64 = 192 << 20;

#[test]
fn the_copy_is_whole_again_after_the_power_was_cut() {
    if let Some(reason) = unavailable() {
        println!("skipped: {reason}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let disk = match Disk::create(folder.path(), IMAGE_BYTES) {
        Ok(disk) => disk,
        Err(error) => {
            println!("skipped: {error}");
            return;
        }
    };
    let cuts: u64 = std::env::var("MNEME_CUTS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let (mut quarantined, mut within) = (0, 0);
    for cut in 0..cuts {
        let place = disk.place.join(cut.to_string());
        fs_err::create_dir_all(&place).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let beside = {
            let (place, stop) = (disk.place.clone(), Arc::clone(&stop));
            std::thread::spawn(move || neighbour(&place, &stop))
        };
        let mut child = start(&place, &[]);
        let pid = Pid::from_child(&child);
        let ended = end_within_a_step(&mut child, cut, |child| {
            // It may have ended by itself: then it is cut after the last sync.
            let _ = kill_process(pid, Signal::STOP);
            disk.cut_power().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        });
        within += u64::from(ended.within.is_some());
        stop.store(true, Ordering::SeqCst);
        beside.join().unwrap();
        disk.unmount().unwrap();
        disk.mount().unwrap();
        verify(&place, ended.rounds);
        for table in ["memories", "vectors"] {
            quarantined += u64::from(place.join(format!("lance/{table}.lance/quarantine")).exists());
        }
        fs_err::remove_dir_all(&place).unwrap();
    }
    println!("| cuts | within a step | lost | unopenable | heads repaired |\n|---|---|---|---|---|");
    println!("| {cuts} | {within} | 0 | 0 | {quarantined} |");
    assert!(within > 0, "some of the cuts have to come in the middle of a step");
}
