//! The program: reads the configuration, boots, waits for signals, stops in order.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use mneme_config::{Config, Reload, Reloader, Sources, Update};
use mneme_ipc::types::ReloadResult;
use mneme_ipc::{ErrorBody, ErrorKind};
use mneme_memory::StoreError;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::boot::{BootError, Daemon, boot};
use crate::lock::FolderLock;
use crate::service::ReloadReply;
use crate::{logging, systemd};

/// Threads of the runtime; blocking work has threads of its own.
const WORKERS_MAX: usize = 4;
/// Exit status for a configuration that cannot be used: restarting would not help (EX_CONFIG).
const EXIT_CONFIG: u8 = 78;
/// Exit status after a fault while running: restarting may help (EX_SOFTWARE).
const EXIT_FAULT: u8 = 70;
/// How long blocking work that is still under way may take once everything else has stopped: with drain_timeout and the actors'
/// own end below what service managers wait.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(4);
/// Reloads that wait; one is as good as many.
const UPDATES_MAX: usize = 4;

/// The daemon of Mneme. Stays in the foreground; run it under systemd, launchd, or with `mneme service start`.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Read this configuration instead of the user's.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key, such as `memory.engine=redb`. May be repeated.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// Check the backup in this folder, put it in the place of the store and end. What was there is kept beside it.
    #[arg(long, value_name = "FOLDER")]
    restore: Option<PathBuf>,
}

/// Runs the daemon until a signal, a drain or a fault ends it.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    crate::allocator::restart_with_environment();
    let sources = Sources::from_process(arguments.config, arguments.set);
    let config = match Config::load(&sources) {
        Ok(config) => Arc::new(config),
        Err(error) => return fail(&error, Some("'mneme config check' explains every key"), EXIT_CONFIG),
    };
    if let Some(backup) = arguments.restore {
        return restore(&config, &backup);
    }
    let log = match logging::start(&config) {
        Ok(log) => log,
        Err(error) => return fail(error.as_ref(), None, EXIT_CONFIG),
    };
    logging::log_panics();
    crate::limits::raise_file_limit(u64::from(config.server.connections_max));
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error, None, EXIT_FAULT),
    };
    let (code, lock) = runtime.block_on(run(config, sources, log));
    // Blocking work hears of no end: a step of upkeep or of the engine that takes long is left behind, and what it wrote is whole or
    // is not there.
    let before = Instant::now();
    runtime.shutdown_timeout(LEAVE_TIMEOUT);
    if before.elapsed() >= LEAVE_TIMEOUT {
        tracing::warn!(after_ms = LEAVE_TIMEOUT.as_millis() as u64, "work that did not end was left behind");
    }
    drop(lock);
    code
}

/// Restores a backup and says what came of it, in one line of JSON for `mneme restore`.
fn restore(config: &Config, backup: &std::path::Path) -> ExitCode {
    let restored = match crate::restore::restore(config, backup) {
        Ok(restored) => restored,
        Err(error) => return fail(&error, error.hint(), EXIT_FAULT),
    };
    match writeln!(std::io::stdout(), "{}", serde_json::json!(restored)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error, None, EXIT_FAULT),
    }
}

fn fail(error: &dyn std::error::Error, hint: Option<&str>, code: u8) -> ExitCode {
    eprint!("error: {error}");
    let mut source = error.source();
    while let Some(inner) = source {
        eprint!(": {inner}");
        source = inner.source();
    }
    eprintln!();
    if let Some(hint) = hint {
        eprintln!("hint: {hint}");
    }
    ExitCode::from(code)
}

/// Runs until the daemon ends; gives the lock of its folder back, when it had one.
async fn run(config: Arc<Config>, sources: Sources, log: logging::LogHandle) -> (ExitCode, Option<FolderLock>) {
    // Signals are taken before the start, so that one that arrives during it is not lost.
    let signals = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
    let [Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)] = signals else {
        return (fail(&std::io::Error::other("signals cannot be taken"), None, EXIT_FAULT), None);
    };
    let mut daemon = match boot(Arc::clone(&config)).await {
        Ok(daemon) => daemon,
        Err(error) => {
            return (fail(&error, error.hint(), exit_code(&error)), None);
        }
    };
    let (updates, mut updated) = mpsc::channel(UPDATES_MAX);
    let hand_over = move |update| {
        let _ = updates.try_send(update);
    };
    let reloader = match Reloader::start(sources, config, hand_over) {
        Ok(reloader) => Some(reloader),
        Err(error) => {
            tracing::warn!(%error, "configuration is not watched");
            None
        }
    };
    let watchdog = tokio::spawn(systemd::feed_watchdog(Arc::clone(&daemon.service)));
    systemd::ready();
    let mut wishes = daemon.take_reloads();
    let mut asked = Vec::new();
    let fault = loop {
        tokio::select! {
            _ = terminate.recv() => break None,
            _ = interrupt.recv() => break None,
            reason = daemon.ended() => break reason,
            _ = hangup.recv() => reload(reloader.as_ref()),
            Some(reply) = next(&mut wishes) => if reloader.is_some() {
                asked.push(reply);
                reload(reloader.as_ref());
            },
            Some(update) = updated.recv() => {
                // What was read before somebody asked is no answer to them.
                let answers = matches!(update, Update::Changed { asked: true, .. } | Update::Refused { asked: true, .. });
                let outcome = apply(&daemon, update, &log);
                if answers {
                    for reply in asked.drain(..) {
                        let _ = reply.send(outcome.clone());
                    }
                }
            }
        }
    };
    systemd::stopping();
    watchdog.abort();
    drop(reloader);
    let lock = daemon.stop().await;
    let code = match fault {
        None => ExitCode::SUCCESS,
        Some(reason) => fail(&std::io::Error::other(reason), Some("the log above says more"), EXIT_FAULT),
    };
    (code, Some(lock))
}

/// What a start that failed ends with. Only what a person has to put right ends with the status that service managers do not
/// restart on: folder, lock, socket, a copy that this build cannot keep. A store or an actor that could not start may well start the next time.
const fn exit_code(error: &BootError) -> u8 {
    match error {
        BootError::Folder { .. }
        | BootError::Lock(_)
        | BootError::Listen(_)
        | BootError::Store(StoreError::Projection { .. }) => EXIT_CONFIG,
        BootError::Store(_) | BootError::Actors(_) => EXIT_FAULT,
    }
}

async fn next(wishes: &mut Option<mpsc::Receiver<ReloadReply>>) -> Option<ReloadReply> {
    match wishes {
        Some(wishes) => wishes.recv().await,
        None => None,
    }
}

fn reload(reloader: Option<&Reloader>) {
    systemd::reloading();
    match reloader {
        Some(reloader) => reloader.reload(),
        None => systemd::ready(),
    }
}

fn apply(daemon: &Daemon, update: Update, log: &logging::LogHandle) -> Result<ReloadResult, ErrorBody> {
    let outcome = match update {
        Update::Changed { config, changes, .. } => {
            for change in &changes {
                let needs_restart = change.reload == Reload::Restart;
                tracing::info!(key = change.key, from = change.from, to = change.to, needs_restart, "setting changed");
            }
            log.configure(&config.log);
            Ok(daemon.configure(&config))
        }
        Update::Refused { error, .. } => {
            tracing::error!(%error, "configuration refused; the last good one stays in force");
            let message = format!("configuration refused, the last good one stays in force: {error}");
            Err(ErrorBody::new(ErrorKind::InvalidParams, message).hint("'mneme config check' explains every key"))
        }
    };
    systemd::ready();
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_person_has_to_put_right_ends_with_the_status_that_is_not_restarted_on() {
        let code = |error: BootError| exit_code(&error);
        let closed = mneme_memory::StoreError::Closed { reason: "input/output error".into() };
        assert_eq!(code(BootError::Store(closed)), EXIT_FAULT);
        assert_eq!(code(BootError::Actors(mneme_actors::system::StartError::new("no row yet"))), EXIT_FAULT);
        let held = crate::lock::LockError::Held { folder: PathBuf::from("/state"), holder: "pid 1".into() };
        assert_eq!(code(BootError::Lock(held)), EXIT_CONFIG);
        let source = std::io::Error::other("not a folder");
        assert_eq!(code(BootError::Folder { folder: PathBuf::from("/state"), source }), EXIT_CONFIG);
    }
}
