//! `cargo xtask torture`: cuts the power, kills and lets calls fail under the store, and with `--lance` under the store's copy too.
//!
//! The store is tortured by `mneme-torture`. The copy is by three tests of `mneme-memory-lance`, which take their numbers from the
//! environment: linking Lance into a program of its own would cost more than they run.

use std::process::{Command, ExitCode};

use clap::Args;

use crate::command::{cargo, status};
use crate::later;
use crate::workspace::Workspace;

/// Without a number for any of the modes, each takes this.
const CUTS: u64 = 20;
/// See [`CUTS`].
const KILLS: u64 = 40;
/// See [`CUTS`].
const FAULTS: u64 = 31;
/// The package of the copy, and its test program.
const COPY: [&str; 4] = ["--package", "mneme-memory-lance", "--test", "lance"];

/// Options of `torture`.
#[derive(Debug, Default, Args)]
pub(crate) struct TortureArguments {
    /// Power cuts, which need root, a loop device and ext4; without a number for any mode 20.
    #[arg(long)]
    cuts: Option<u64>,
    /// Kills of the writing process; without a number for any mode 40.
    #[arg(long)]
    kills: Option<u64>,
    /// Every so manieth write, sync or change of a name fails once, 1 for all of them; without a number for any mode 31.
    #[arg(long)]
    faults: Option<u64>,
    /// The same under the copy as Lance tables too, behind the store's. Each of its runs takes seconds.
    #[arg(long)]
    lance: bool,
    /// The state engine: redb, sled or all.
    #[arg(long)]
    engine: Option<String>,
    /// Chooses the moments.
    #[arg(long)]
    seed: Option<u64>,
    /// Where the stores lie; those of a failed run are kept.
    #[arg(long)]
    folder: Option<std::path::PathBuf>,
}

/// How often each mode is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Numbers {
    cuts: u64,
    kills: u64,
    faults: u64,
}

impl TortureArguments {
    fn numbers(&self) -> Numbers {
        if [self.cuts, self.kills, self.faults].iter().all(Option::is_none) {
            return Numbers { cuts: CUTS, kills: KILLS, faults: FAULTS };
        }
        let [cuts, kills, faults] = [self.cuts, self.kills, self.faults].map(Option::unwrap_or_default);
        Numbers { cuts, kills, faults }
    }

    fn passed_on(&self) -> Vec<String> {
        let Numbers { cuts, kills, faults } = self.numbers();
        let mut passed: Vec<String> =
            [("--cuts", cuts), ("--kills", kills), ("--faults", faults)].into_iter().flat_map(named).collect();
        passed.extend(self.engine.iter().flat_map(|engine| named(("--engine", engine))));
        passed.extend(self.seed.iter().flat_map(|seed| named(("--seed", seed))));
        passed.extend(self.folder.iter().flat_map(|folder| named(("--folder", folder.display()))));
        passed
    }
}

fn named<T: ToString>((name, value): (&str, T)) -> [String; 2] {
    [name.to_owned(), value.to_string()]
}

/// Tortures what was asked for; a store that fails is no reason to leave the copy out.
pub(crate) fn run(workspace: &Workspace, arguments: &TortureArguments) -> anyhow::Result<ExitCode> {
    let store = later::program_with(workspace, later::TORTURE, &arguments.passed_on())?;
    if !arguments.lance {
        return Ok(store);
    }
    let Some(mut copy) = copy(workspace, arguments.numbers()) else { return Ok(store) };
    let copy = status(&mut copy)?.success();
    Ok(if copy { store } else { ExitCode::FAILURE })
}

/// The command that tortures the copy; `None` when every mode was left out.
fn copy(workspace: &Workspace, numbers: Numbers) -> Option<Command> {
    let modes = [
        ("MNEME_KILLS", numbers.kills, "faults::a_copy_whose_process_was_killed_comes_back"),
        ("MNEME_CUTS", numbers.cuts, "power::the_copy_is_whole_again_after_the_power_was_cut"),
        (
            "MNEME_FAULT_STRIDE",
            numbers.faults,
            "faults::the_store_acknowledges_and_the_copy_recovers_whichever_call_fails",
        ),
    ];
    let mut command = cargo(&workspace.root);
    command.arg("test").args(COPY).args(["--", "--nocapture", "--test-threads", "1", "--exact"]);
    let wanted = modes.into_iter().filter(|(_, number, _)| *number > 0);
    let mut any = false;
    for (variable, number, test) in wanted {
        command.env(variable, number.to_string()).arg(test);
        any = true;
    }
    any.then_some(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_for_one_mode_leaves_the_others_out() {
        let all = TortureArguments::default();
        assert_eq!(all.numbers(), Numbers { cuts: 20, kills: 40, faults: 31 });
        let kills = TortureArguments { kills: Some(3), seed: Some(7), ..TortureArguments::default() };
        assert_eq!(kills.numbers(), Numbers { cuts: 0, kills: 3, faults: 0 });
        let passed = ["--cuts", "0", "--kills", "3", "--faults", "0", "--seed", "7"];
        assert_eq!(kills.passed_on(), passed);
    }

    #[test]
    fn the_copy_is_tortured_by_tests_that_are_there() {
        let workspace = Workspace::find().unwrap();
        assert!(copy(&workspace, Numbers { cuts: 0, kills: 0, faults: 0 }).is_none());
        let command = copy(&workspace, Numbers { cuts: 1, kills: 2, faults: 0 }).unwrap();
        let tests: Vec<String> = command
            .get_args()
            .filter_map(|argument| argument.to_str())
            .filter_map(|a| Some(a.split_once("::")?.1.to_owned()))
            .collect();
        assert_eq!(tests.len(), 2);
        let folder = workspace.root.join("memory-lance/tests/lance");
        let sources = ["faults.rs", "power.rs"].map(|file| fs_err::read_to_string(folder.join(file)).unwrap());
        for test in tests {
            assert!(sources.iter().any(|source| source.contains(&format!("fn {test}()"))), "{test}");
        }
        let kills = command.get_envs().find(|(name, _)| *name == "MNEME_KILLS").and_then(|(_, value)| value);
        assert_eq!(kills, Some("2".as_ref()));
    }
}
