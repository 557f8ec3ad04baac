//! The commands, one file for each family.

mod config;
mod doctor;
mod evolve;
mod generate;
mod hook;
mod install;
mod mcp;
mod memory;
mod service;
mod skill;
mod status;
mod task;
mod top;
mod transfer;
mod ui;
mod watch;
mod weights;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory as _;
use mneme_client_sdk::blocking::Client;
use mneme_client_sdk::{CallOptions, ClientOptions, default_socket};

use crate::args::{Arguments, Command};
use crate::error::CommandError;
use crate::output::Output;

/// How long upkeep and backups may take: as long as the daemon lets them.
const UPKEEP_TIMEOUT: Duration = Duration::from_mins(30);

/// What every command gets.
pub(crate) struct Session {
    pub(crate) out: Output,
    options: ClientOptions,
    timeout: Duration,
}

impl Session {
    /// Connects to the daemon.
    pub(crate) fn client(&self) -> Result<Client, CommandError> {
        Ok(Client::connect(self.options.clone())?)
    }

    /// Options of a call with the user's patience.
    pub(crate) fn call(&self) -> CallOptions {
        CallOptions { timeout: Some(self.timeout), ..CallOptions::default() }
    }

    /// Options of a call that rewrites or copies the whole store: a store of gigabytes takes minutes.
    pub(crate) fn patient_call(&self) -> CallOptions {
        CallOptions { timeout: Some(self.timeout.max(UPKEEP_TIMEOUT)), ..CallOptions::default() }
    }

    /// The daemon's socket.
    pub(crate) fn socket(&self) -> &std::path::Path {
        &self.options.socket
    }
}

/// Runs a command.
pub(crate) fn run(arguments: Arguments, out: Output) -> Result<ExitCode, CommandError> {
    let timeout = Duration::from_secs(arguments.timeout.clamp(1, 86_400));
    let mut options = ClientOptions::new("cli").socket(arguments.socket.unwrap_or_else(default_socket));
    options.call_timeout = timeout;
    let session = Session { out, options, timeout };
    let json = arguments.json;
    match arguments.command {
        Command::Status => status::status(&session),
        Command::Remember(args) => memory::remember(&session, args),
        Command::Recall(args) => memory::recall(&session, args),
        Command::Get { id } => memory::get(&session, id),
        Command::Forget(args) => memory::forget(&session, args),
        Command::Generate(args) => generate::generate(&session, args),
        Command::Feedback(args) => generate::feedback(&session, args),
        Command::Task(command) => task::run(&session, command),
        Command::Watch(command) => watch::run(&session, command),
        Command::Evolve(command) => evolve::run(&session, command),
        Command::Export(args) => transfer::export(&session, args),
        Command::Import(args) => return transfer::import(&session, args),
        Command::Backup { folder } => transfer::backup(&session, &folder),
        Command::Restore { folder } => return transfer::restore(&session, &folder),
        Command::Compact => transfer::compact(&session),
        Command::Metrics => status::metrics(&session),
        Command::Doctor => return doctor::run(&session),
        Command::Service(command) => service::run(&session, command),
        Command::Config(command) => config::run(&session, command),
        Command::Mcp => return mcp::run(&session),
        Command::Install(args) => install::run(&session, args),
        Command::Uninstall(args) => install::uninstall(&session, &args),
        Command::Hook { event } => {
            hook::run(&session, event);
            Ok(())
        }
        Command::Ui(args) => ui::run(&session, &args),
        Command::Top(args) => top::run(&session, &args),
        Command::Weights { arguments } => return weights::run(json, arguments),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "mneme", &mut text);
            write_out(&text)
        }
        Command::Man => {
            let mut text = Vec::new();
            clap_mangen::Man::new(Arguments::command()).render(&mut text)?;
            write_out(&text)
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// Writes bytes to standard output; a reader that has seen enough is no error.
fn write_out(bytes: &[u8]) -> Result<(), CommandError> {
    match std::io::stdout().write_all(bytes) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// An absolute path for the daemon, which runs in another folder.
fn absolute(path: &std::path::Path) -> Result<String, CommandError> {
    let absolute = std::path::absolute(path)?;
    let text = absolute.to_str().map(str::to_owned);
    text.ok_or_else(|| CommandError::usage(format!("path {} is not UTF-8", absolute.display())))
}
