//! The torture program in short: kill -9, failing writes and, where the machine allows it, power cuts.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics, in its helpers too")]

use std::process::Command;

/// Runs the program on the default engine; says what it printed.
fn torture(arguments: &[&str]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_mneme-torture"))
        .args(["--engine", "redb", "--folder"])
        .arg(folder.path().join("torture"))
        .args(arguments)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}");
    printed
}

#[test]
fn nothing_acknowledged_is_lost_when_the_writer_is_killed() {
    let printed = torture(&["--kills", "8"]);
    assert!(printed.contains("| kill -9, redb | 8 |"), "{printed}");
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_is_cut() {
    let printed = torture(&["--cuts", "3"]);
    if let Some(line) = printed.lines().find(|line| line.starts_with("skipped:")) {
        println!("{line}");
        return;
    }
    assert!(printed.contains("| power cut, redb | 3 |"), "{printed}");
}

#[test]
fn nothing_acknowledged_is_lost_when_a_write_fails_and_nothing_hangs() {
    if !Command::new("cc").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: failing writes need cc for the shim");
        return;
    }
    let printed = torture(&["--faults", "150"]);
    assert!(printed.contains("| ENOSPC for good, redb |"), "{printed}");
}
