//! `cargo xtask`: sets a fresh machine up, runs the tests and the demonstration, and keeps the house tidy.
//!
//! Reading order: [`workspace`], [`setup`], [`test`], [`tidy`], [`cross`], [`later`], [`torture`], [`peers`].

#![expect(clippy::print_stdout, reason = "a command line tool speaks on standard output")]

mod bench_all;
mod command;
mod cross;
mod later;
mod peers;
mod setup;
mod test;
mod tidy;
mod torture;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Set-up, tests, demonstration and measurements of Mneme.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Fetches libtorch, models and protoc into the user's cache and links them as .assets.
    Setup(setup::SetupArguments),
    /// Sets up and runs every check and test; ends with "N passed, N failed".
    Test(test::TestArguments),
    /// Checks the forbidden arrows, file headers, generated documents and other rules of the house.
    Tidy(tidy::TidyArguments),
    /// Sets up, starts the daemon and shows the main job on real input.
    Demo(later::PassedOn),
    /// Runs a benchmark by name; without a name lists them.
    Bench(later::PassedOn),
    /// Fuzzes frames, requests, the engine's wire and configuration.
    Fuzz(later::PassedOn),
    /// Builds kernels, weight readers and tokenizers for 64-bit ARM and runs their tests under emulation.
    Cross(cross::CrossArguments),
    /// Cuts the power, kills and lets calls fail, again and again, and checks that nothing acknowledged is lost.
    Torture(torture::TortureArguments),
    /// Runs the daemon under load and reports the slopes of memory, files and disk.
    Soak(later::PassedOn),
    /// Kills trainer, engine and daemon at random points of the evolution loop and looks whether everything still holds.
    Kills(later::PassedOn),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Workspace::find().and_then(|workspace| match arguments.task {
        Task::Setup(arguments) => setup::run(&workspace, &arguments).map(|()| ExitCode::SUCCESS),
        Task::Test(arguments) => Ok(test::run(&workspace, &arguments)),
        Task::Tidy(arguments) => tidy::run(&workspace, &arguments),
        Task::Demo(passed) => later::program(&workspace, later::DEMO, &passed),
        Task::Bench(passed) => later::bench(&workspace, &passed),
        Task::Fuzz(passed) => later::program(&workspace, later::FUZZ, &passed),
        Task::Cross(arguments) => cross::run(&workspace, &arguments),
        Task::Torture(arguments) => torture::run(&workspace, &arguments),
        Task::Soak(passed) => later::program(&workspace, later::SOAK, &passed),
        Task::Kills(passed) => later::program(&workspace, later::KILLS, &passed),
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints what went wrong, outermost first, and then what a person can do about it.
fn complain(error: &anyhow::Error) {
    let mut hints = Vec::new();
    let mut layers = Vec::new();
    for layer in error.chain().map(ToString::to_string) {
        let (hint, said): (Vec<_>, Vec<_>) =
            layer.lines().map(str::to_owned).partition(|line| line.starts_with("hint: "));
        hints.extend(hint);
        layers.push(said.join("\n"));
    }
    eprintln!("error: {}", layers.join(": "));
    for hint in hints {
        eprintln!("{hint}");
    }
}
