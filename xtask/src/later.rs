//! Commands whose work is done by a program elsewhere in the workspace; where it does not exist yet, they say so.

use std::process::{Command, ExitCode};

use cargo_metadata::TargetKind;
use clap::Args;

use crate::command::{cargo, status};
use crate::peers::{TABLES, Table};
use crate::setup;
use crate::workspace::Workspace;

/// Exit code of a command whose parts do not exist yet.
pub(crate) const MISSING: u8 = 2;

/// Arguments that go to the program unread.
#[derive(Debug, Args)]
pub(crate) struct PassedOn {
    /// Handed to the program.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// A program of the workspace that does a task's work.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// The task's name.
    task: &'static str,
    package: &'static str,
    name: &'static str,
    /// Features that it needs.
    features: &'static [&'static str],
    /// Whether it needs the models.
    set_up: bool,
}

/// The main job on real input.
pub(crate) const DEMO: Program =
    Program { task: "demo", package: "mneme-tests", name: "demo", features: &[], set_up: true };
/// Mutated input for everything that reads bytes from outside.
pub(crate) const FUZZ: Program =
    Program { task: "fuzz", package: "mneme-tests", name: "fuzz", features: &[], set_up: false };
/// Power cuts, kills and failing writes.
pub(crate) const TORTURE: Program =
    Program { task: "torture", package: "mneme-memory", name: "mneme-torture", features: &[], set_up: false };
/// Load for hours.
pub(crate) const SOAK: Program =
    Program { task: "soak", package: "mneme-tests", name: "soak", features: &[], set_up: false };
/// Kills of the loop's processes.
pub(crate) const KILLS: Program =
    Program { task: "kills", package: "mneme-tests", name: "kills", features: &[], set_up: false };

/// Runs a program in the release profile, or says that it is missing.
pub(crate) fn program(workspace: &Workspace, program: Program, passed: &PassedOn) -> anyhow::Result<ExitCode> {
    program_with(workspace, program, &passed.arguments)
}

/// As [`program`], with arguments that were read here.
pub(crate) fn program_with(workspace: &Workspace, program: Program, passed: &[String]) -> anyhow::Result<ExitCode> {
    let Program { task, package, name, features, set_up } = program;
    if !workspace.has_target(package, &TargetKind::Bin, name) {
        println!("cargo xtask {task} is not possible yet: package {package} has no program {name}");
        return Ok(ExitCode::from(MISSING));
    }
    if set_up {
        setup::run(workspace, &setup::SetupArguments::default())?;
    }
    let mut command = cargo(&workspace.root);
    command.args(["run", "--quiet", "--release", "--package", package, "--bin", name]);
    if !features.is_empty() {
        command.arg("--features").arg(features.join(","));
    }
    command.arg("--").args(passed);
    Ok(if status(&mut command)?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A benchmark of the workspace.
#[derive(Debug)]
pub(crate) struct Benchmark<'a> {
    /// How it is called.
    pub(crate) name: &'a str,
    /// Where it is.
    pub(crate) package: &'a str,
    /// What runs it.
    pub(crate) kind: Kind,
}

/// What runs a benchmark.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// A program of the bench package.
    Program,
    /// A bench target.
    Target,
    /// A script that sets our program beside peers.
    Peers(Table),
}

/// Benchmarks that take most of an hour each: `all` leaves them out unless they are named.
pub(crate) const LONG: [&str; 4] = ["evolution", "retrieval", "serving_beside_training", "unattended"];

/// Runs one benchmark or all, or lists them.
pub(crate) fn bench(workspace: &Workspace, passed: &PassedOn) -> anyhow::Result<ExitCode> {
    let mut found = Vec::new();
    for package in workspace.packages() {
        for target in &package.targets {
            let is_program = package.name.as_str() == "mneme-bench" && target.kind.contains(&TargetKind::Bin);
            if target.kind.contains(&TargetKind::Bench) || is_program {
                let kind = if is_program { Kind::Program } else { Kind::Target };
                found.push(Benchmark { name: &target.name, package: package.name.as_str(), kind });
            }
        }
    }
    for table in &TABLES {
        found.push(Benchmark { name: table.name, package: table.package, kind: Kind::Peers(*table) });
    }
    let Some((wanted, rest)) = passed.arguments.split_first() else {
        println!("cargo xtask bench all [NAMES], or cargo xtask bench NAME [ARGUMENTS], where NAME is one of:");
        for benchmark in found {
            let long = if LONG.contains(&benchmark.name) {
                "  (most of an hour; 'all' runs it only when it is named)"
            } else {
                ""
            };
            println!("  {:<24} {}{long}", benchmark.name, benchmark.package);
        }
        println!("  {CLIENTS:<24} client-sdk (needs python3)");
        return Ok(ExitCode::SUCCESS);
    };
    if wanted == CLIENTS {
        return clients(workspace, rest);
    }
    if wanted == "all" {
        return crate::bench_all::run(workspace, &found, rest);
    }
    let Some(benchmark) = found.iter().find(|benchmark| benchmark.name == wanted) else {
        println!("there is no benchmark {wanted}; 'cargo xtask bench' lists them");
        return Ok(ExitCode::from(MISSING));
    };
    let mut command = benchmark.command(&workspace.root, rest)?;
    Ok(if status(&mut command)?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The benchmark of the clients beside the bare socket, which is a script: the clients are.
const CLIENTS: &str = "clients";

/// Builds daemon and command line in the release profile and measures what a client costs.
fn clients(workspace: &Workspace, rest: &[String]) -> anyhow::Result<ExitCode> {
    let mut build = cargo(&workspace.root);
    build.args(["build", "--release", "-p", "mneme-daemon", "-p", "mneme-cli", "--bins"]);
    if !status(&mut build)?.success() {
        return Ok(ExitCode::FAILURE);
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.root.join("target"), Into::into);
    let programs: std::path::PathBuf = target.join("release");
    let python = std::env::var_os("MNEME_PYTHON").unwrap_or_else(|| "python3".into());
    let mut command = Command::new(python);
    command
        .arg(workspace.root.join("client-sdk/clients-bench.py"))
        .arg("--daemon")
        .arg(programs.join("mnemed"))
        .arg("--mneme")
        .arg(programs.join("mneme"))
        .args(rest);
    Ok(if status(&mut command)?.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
