//! A short sweep of kills over the loop; `cargo xtask kills` runs the long one.

use mneme_tests::kills::{Sweep, run};

#[test]
fn the_loop_survives_kills_of_trainer_engine_and_daemon_at_random_points() {
    let folder = tempfile::tempdir().unwrap();
    let sweep = Sweep {
        daemon: env!("CARGO_BIN_EXE_e2e-mnemed").into(),
        engine: env!("CARGO_BIN_EXE_e2e-mneme-engine-fake").into(),
        folder: folder.path().to_path_buf(),
        points: 8,
        seed: 11,
    };
    let tally = run(&sweep, &mut |_| {}).unwrap();
    assert_eq!(tally.victims.values().sum::<usize>(), 8);
    assert!(tally.decisions > 3, "{tally:?}");
}
