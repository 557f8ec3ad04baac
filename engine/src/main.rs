//! `mneme-engine`: the process that holds the networks. The daemon starts it; people use its `eval` and `bench`.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mneme_engine::assets::Assets;
use mneme_engine::error::ModelError;
use mneme_engine::runtime::{ENVIRONMENT, Precision, Runtime};
use mneme_engine::{ArrowEngine, NAME, load};
use mneme_engine_api::{EngineError, trainer};
use tracing_subscriber::EnvFilter;

mod commands;

/// Runs Mneme's networks: embedding, generation, training.
#[derive(Debug, Parser)]
#[command(name = "mneme-engine", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Folder with models; found beside or above the working directory and the program when it is not given.
    #[arg(long, global = true, env = "MNEME_ASSETS")]
    assets: Option<PathBuf>,
    /// Threads of one tensor operation; 0 takes one for each processor.
    #[arg(long, global = true, default_value_t = 0, env = "MNEME_ENGINE_THREADS")]
    threads: usize,
    /// How weights are kept. When it is not given: on a processor the form that the generator's file stores, on a GPU dense.
    #[arg(long, global = true, value_enum, env = "MNEME_ENGINE_WEIGHTS")]
    weights: Option<Weights>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Weights {
    Dense,
    Int8,
    Int4,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves the engine protocol on a socket that is handed over as standard input.
    Serve,
    /// Runs one training job: events as JSON lines on standard output, the result beside the job. SIGTERM makes it write a
    /// checkpoint and leave; the same job goes on from there.
    Train(commands::train::Arguments),
    /// Measures perplexity left to right and by diffusion, holes filled and drafts kept.
    Eval(commands::eval::Arguments),
    /// Draws the learning curve of a run.
    Curve(commands::curve::Arguments),
    /// Generates text once and prints it: a quick look at the model.
    Generate(commands::generate::Arguments),
    /// Measures speed and memory on this machine.
    Bench(commands::bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if matches!(arguments.command, Command::Train(_)) {
        // Before anything is loaded: the one that asked may be gone by then.
        trainer::end_with_parent();
    }
    if let Some(error) = restart_with_environment() {
        // Without it memory grows more than it must; the work is the same.
        eprintln!("warning: could not restart with a bounded cache: {error}");
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut source = error.source();
            while let Some(error) = source {
                eprintln!("  because: {error}");
                source = error.source();
            }
            ExitCode::from(status_of(error.as_ref()))
        }
    }
}

/// The status to end with: what cannot be done at all is told apart, so that nobody tries it again.
fn status_of(error: &(dyn std::error::Error + 'static)) -> u8 {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let own = error.downcast_ref::<EngineError>().or_else(|| match error.downcast_ref::<ModelError>() {
            Some(ModelError::Engine(error)) => Some(error),
            _ => None,
        });
        if matches!(own, Some(EngineError::Unsupported { .. })) {
            return trainer::EXIT_UNSUPPORTED;
        }
        cause = error.source();
    }
    1
}

/// libtorch reads some settings before `main`: when they are missing, the program starts itself again with them.
fn restart_with_environment() -> Option<std::io::Error> {
    if ENVIRONMENT.iter().all(|(name, _)| std::env::var_os(name).is_some()) {
        return None;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Some(error),
    };
    let missing = ENVIRONMENT.iter().filter(|(name, _)| std::env::var_os(name).is_none()).copied();
    Some(std::process::Command::new(program).args(std::env::args_os().skip(1)).envs(missing).exec())
}

fn run(arguments: Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let precision = arguments.weights.map(|weights| match weights {
        Weights::Dense => Precision::Dense,
        Weights::Int8 => Precision::Int8,
        Weights::Int4 => Precision::Int4,
    });
    // A drawing needs no models.
    if let Command::Curve(arguments) = &arguments.command {
        return commands::curve::run(arguments);
    }
    let assets = Assets::find(arguments.assets.as_deref())?;
    let runtime = Runtime::start(arguments.threads, precision, load::packed_form(&assets.generator()));
    match arguments.command {
        Command::Serve => serve(assets, runtime),
        Command::Train(arguments) => commands::train::run(&arguments, assets, runtime.trainable()),
        Command::Eval(arguments) => commands::eval::run(&arguments, assets, runtime),
        Command::Generate(arguments) => commands::generate::run(&arguments, assets, runtime),
        Command::Curve(arguments) => commands::curve::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments, assets, runtime),
    }
}

fn serve(assets: Assets, runtime: Runtime) -> Result<(), Box<dyn std::error::Error>> {
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let engine = ArrowEngine::open(assets, runtime)?;
    tracing::info!(name = NAME, device = ?runtime.device, compute = ?runtime.compute, threads = runtime.threads, "engine ready");
    Ok(mneme_engine_api::serve(&engine, stream)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_trained_at_all_is_told_by_the_status() {
        let unsupported = || EngineError::Unsupported { engine: NAME.into(), feature: "training of this level".into() };
        let status = |error: Box<dyn std::error::Error>| status_of(error.as_ref());
        assert_eq!(status(unsupported().into()), trainer::EXIT_UNSUPPORTED);
        assert_eq!(status(ModelError::from(unsupported()).into()), trainer::EXIT_UNSUPPORTED);
        assert_eq!(status(EngineError::Cancelled.into()), 1);
        assert_eq!(status("name a job".into()), 1);
    }
}
