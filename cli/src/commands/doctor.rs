//! doctor: looks at the whole set-up, says what is wrong and what to do about it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::ExitCode;

use mneme_config::{Config, EngineProgram, Sources};
use mneme_ipc::methods;
use mneme_ipc::types as wire;
use serde::Serialize;

use super::{Session, service};
use crate::error::CommandError;
use crate::output::{bad, dim, good, line, warn};

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Finding {
    Good,
    Remark,
    Fault,
}

/// One check.
#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    finding: Finding,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl Check {
    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, finding: Finding::Good, found: found.into(), next: None }
    }

    fn remark(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, finding: Finding::Remark, found: found.into(), next: Some(next.into()) }
    }

    fn fault(name: &'static str, found: impl Into<String>, next: impl Into<String>) -> Self {
        Self { name, finding: Finding::Fault, found: found.into(), next: Some(next.into()) }
    }
}

/// Runs every check; exits with 1 when one found a fault.
pub(super) fn run(session: &Session) -> Result<ExitCode, CommandError> {
    let mut checks = Vec::new();
    match Config::load(&Sources::from_process(None, Vec::new())) {
        Ok(config) => {
            checks.push(Check::good("configuration", "valid"));
            checks.extend(folders(&config));
            checks.push(disk(&config));
            checks.push(engine(&config));
            checks.push(models(&config));
        }
        Err(error) => {
            checks.push(Check::fault(
                "configuration",
                error.to_string(),
                "correct the file; 'mneme config check' tells when it is right",
            ));
        }
    }
    checks.push(match service::find_daemon() {
        Some(path) => Check::good("program", format!("mnemed is {}", path.display())),
        None => Check::fault("program", "mnemed was not found", "put mnemed beside mneme or on the path"),
    });
    checks.push(if service::is_installed() {
        Check::good("service", "installed")
    } else {
        Check::remark("service", "not installed", "'mneme service install' starts the daemon with your session")
    });
    checks.extend(daemon(session));
    session.out.result(&checks, |checks| checks.iter().for_each(show))?;
    let faulty = checks.iter().any(|check| check.finding == Finding::Fault);
    Ok(if faulty { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show(check: &Check) {
    let mark = match check.finding {
        Finding::Good => good("ok  "),
        Finding::Remark => warn("note"),
        Finding::Fault => bad("FAIL"),
    };
    line(format!("{mark} {:<14} {}", check.name, check.found));
    if let Some(next) = &check.next {
        line(dim(format!("     -> {next}")));
    }
}

fn folders(config: &Config) -> Vec<Check> {
    let socket = config.paths.socket();
    let mut checks = vec![folder("state folder", &config.paths.state_dir)];
    checks.push(folder("socket folder", &config.paths.runtime_dir));
    if socket.exists() && std::os::unix::net::UnixStream::connect(&socket).is_err() {
        let next = "start the daemon: it replaces a stale socket by itself";
        checks.push(Check::remark("socket", format!("{} is there and nobody answers", socket.display()), next));
    }
    checks
}

fn folder(name: &'static str, path: &Path) -> Check {
    let Ok(metadata) = fs_err::metadata(path) else {
        return Check::remark(
            name,
            format!("{} does not exist yet", path.display()),
            "the daemon makes it at its start",
        );
    };
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        let found = format!("{} belongs to user {}", path.display(), metadata.uid());
        return Check::fault(name, found, format!("chown it to user {us}, or set another folder in the configuration"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        let found =
            format!("{} can be entered by others (mode {:o})", path.display(), metadata.permissions().mode() & 0o777);
        return Check::fault(name, found, format!("chmod 700 {}", path.display()));
    }
    if rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_err() {
        return Check::fault(
            name,
            format!("{} cannot be written to", path.display()),
            "check its permissions and mount",
        );
    }
    Check::good(name, path.display().to_string())
}

fn disk(config: &Config) -> Check {
    let existing = config.paths.state_dir.ancestors().find(|path| path.exists());
    let Some(stat) = existing.and_then(|path| rustix::fs::statvfs(path).ok()) else {
        return Check::remark("disk", "cannot be asked", "check that the state folder's disk is mounted");
    };
    let free = stat.f_bavail * stat.f_frsize;
    let watermark = config.memory.disk_watermark.bytes();
    let text = format!("{} free", crate::output::bytes(free));
    if free <= watermark {
        let next = format!("free space: below {} the store is read-only", crate::output::bytes(watermark));
        return Check::fault("disk", text, next);
    }
    Check::good("disk", text)
}

fn engine(config: &Config) -> Check {
    let name = "engine";
    let beside = || std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("mneme-engine")));
    match &config.engine.program {
        EngineProgram::None => Check::remark(name, "switched off", "engine.program = \"auto\" switches it on"),
        EngineProgram::Fake => {
            Check::remark(name, "the stand-in without a model", "engine.program = \"auto\" uses the real one")
        }
        EngineProgram::Path(path) if path.is_file() => Check::good(name, path.display().to_string()),
        EngineProgram::Path(path) => {
            Check::fault(name, format!("{} does not exist", path.display()), "correct engine.program")
        }
        EngineProgram::Auto => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let on_path = std::env::split_paths(&path).map(|folder| folder.join("mneme-engine"));
            match beside().into_iter().chain(on_path).find(|candidate| candidate.is_file()) {
                Some(program) => Check::good(name, program.display().to_string()),
                None => Check::fault(
                    name,
                    "mneme-engine was not found; recall is by text only and nothing is generated",
                    "put mneme-engine beside mnemed (from a checkout: 'cargo build --release -p mneme-engine')",
                ),
            }
        }
    }
}

fn models(config: &Config) -> Check {
    let name = "models";
    if matches!(config.engine.program, EngineProgram::None | EngineProgram::Fake) {
        return Check::good(name, "not needed by this engine");
    }
    let folder = config.paths.assets_dir.join("models");
    let wanted = ["all-MiniLM-L6-v2/model.safetensors", "smollm2-135m-instruct/smollm2.gguf"];
    let missing: Vec<&str> = wanted.into_iter().filter(|file| !folder.join(file).is_file()).collect();
    if missing.is_empty() {
        return Check::good(name, folder.display().to_string());
    }
    let found = format!("{} lacks {}", folder.display(), missing.join(" and "));
    Check::fault(name, found, "'cargo xtask setup' fetches them; or set paths.assets_dir to where they are")
}

fn daemon(session: &Session) -> Vec<Check> {
    let client = match session.client() {
        Ok(client) => client,
        Err(error) => {
            let next = error.hint().unwrap_or_else(|| String::from("'mneme service start' starts it"));
            return vec![Check::fault("daemon", error.to_string(), next)];
        }
    };
    let status = client.call_with::<methods::Status>(wire::StatusParams {}, session.call());
    let stats = client.call_with::<methods::Stats>(wire::StatsParams {}, session.call());
    let (status, stats) = match (status, stats) {
        (Ok(status), Ok(stats)) => (status, stats),
        (Err(error), _) | (_, Err(error)) => {
            return vec![Check::fault("daemon", error.to_string(), "look into its log")];
        }
    };
    let mut checks = vec![if status.health == "healthy" {
        Check::good("daemon", format!("{} answers, pid {}", status.server, status.pid))
    } else {
        Check::fault("daemon", status.health.clone(), "look into its log")
    }];
    let restarts: u64 = status.actors.iter().map(|actor| actor.restarts).sum();
    if restarts > 0 || status.engine_restarts > 0 {
        let found = format!("{restarts} restarts of actors, {} of the engine", status.engine_restarts);
        checks.push(Check::remark("restarts", found, "look into its log for what failed"));
    }
    if stats.embeddings_pending > 0 {
        let found = format!("{} memories have no vector yet", stats.embeddings_pending);
        checks.push(Check::remark(
            "vectors",
            found,
            "they are filled in while the engine runs; recall is by text for them",
        ));
    }
    checks
}
