//! service install, uninstall, status, start, stop: systemd on Linux, launchd on macOS.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mneme_config::{Config, Sources};
use mneme_ipc::methods;
use mneme_ipc::types as wire;

use super::Session;
use crate::args::ServiceCommand;
use crate::error::CommandError;
use crate::output::{bold, dim, good, line, warn};

/// How long a daemon may take to listen after its start.
const START_TIMEOUT: Duration = Duration::from_secs(20);
const SOCKET_UNIT: &str = include_str!("../../../systemd/mneme.socket");
const SERVICE_UNIT: &str = include_str!("../../../systemd/mneme.service");
const LAUNCHD_PLIST: &str = include_str!("../../../systemd/dev.mneme.daemon.plist");

/// One file of the service.
struct UnitFile {
    path: PathBuf,
    text: String,
}

pub(super) fn run(session: &Session, command: ServiceCommand) -> Result<(), CommandError> {
    match command {
        ServiceCommand::Install { print, now } => install(session, print, now),
        ServiceCommand::Uninstall => uninstall(session),
        ServiceCommand::Status => {
            status();
            Ok(())
        }
        ServiceCommand::Start => start(session),
        ServiceCommand::Stop => stop(session),
    }
}

/// The daemon's program.
pub(super) fn find_daemon() -> Option<PathBuf> {
    find_program("mnemed")
}

/// A program of ours: beside this one, else on the path.
pub(super) fn find_program(name: &str) -> Option<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path).map(|folder| folder.join(name)).collect();
    beside.into_iter().chain(on_path).find(|candidate| candidate.is_file())
}

pub(super) fn daemon_or_error() -> Result<PathBuf, CommandError> {
    find_daemon().ok_or_else(|| CommandError::Usage {
        problem: String::from("mnemed is neither beside this program nor on the path"),
        hint: Some(String::from("install both programs into one folder")),
    })
}

fn config_home() -> PathBuf {
    let xdg = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    xdg.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".config"))
}

fn unit_files() -> Result<Vec<UnitFile>, CommandError> {
    let daemon = daemon_or_error()?;
    let config = Config::load(&Sources::from_process(None, Vec::new()))?;
    let fill = |template: &str| {
        template
            .replace("@MNEMED@", &daemon.display().to_string())
            .replace("@STATE@", &config.paths.state_dir.display().to_string())
    };
    if cfg!(target_os = "macos") {
        let agents = PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join("Library/LaunchAgents");
        return Ok(vec![UnitFile { path: agents.join("dev.mneme.daemon.plist"), text: fill(LAUNCHD_PLIST) }]);
    }
    let folder = config_home().join("systemd/user");
    Ok(vec![
        UnitFile { path: folder.join("mneme.socket"), text: fill(SOCKET_UNIT) },
        UnitFile { path: folder.join("mneme.service"), text: fill(SERVICE_UNIT) },
    ])
}

fn install(session: &Session, print: bool, now: bool) -> Result<(), CommandError> {
    let files = unit_files()?;
    if print {
        for file in &files {
            line(bold(format!("# {}", file.path.display())));
            line(file.text.trim_end());
        }
        return Ok(());
    }
    let config = Config::load(&Sources::from_process(None, Vec::new()))?;
    fs_err::create_dir_all(&config.paths.state_dir)?;
    for file in &files {
        if let Some(folder) = file.path.parent() {
            fs_err::create_dir_all(folder)?;
        }
        let known = fs_err::read_to_string(&file.path).ok();
        if known.as_deref() == Some(file.text.as_str()) {
            line(dim(format!("unchanged {}", file.path.display())));
            continue;
        }
        if known.is_some() {
            let backup = file
                .path
                .with_extension(format!("{}.bak", file.path.extension().unwrap_or_default().to_string_lossy()));
            fs_err::copy(&file.path, &backup)?;
            line(dim(format!("kept the former one as {}", backup.display())));
        }
        fs_err::write(&file.path, &file.text)?;
        line(format!("{} {}", good("wrote"), file.path.display()));
    }
    let commands: &[&[&str]] = if cfg!(target_os = "macos") {
        &[&["launchctl", "load", "-w", "~/Library/LaunchAgents/dev.mneme.daemon.plist"]]
    } else {
        &[
            &["systemctl", "--user", "daemon-reload"],
            &["systemctl", "--user", "enable", "--now", "mneme.socket", "mneme.service"],
        ]
    };
    if now {
        for command in commands {
            manager(command)?;
        }
        line(good("the service is enabled and started"));
    } else {
        line("next:");
        commands.iter().for_each(|command| line(format!("  {}", command.join(" "))));
        if cfg!(target_os = "linux") {
            line(dim("  loginctl enable-linger      # to keep it running while you are logged out"));
        }
    }
    session.out.remark("memories live in the state folder and are not touched by install or uninstall");
    Ok(())
}

/// Runs the service manager.
fn manager(command: &[&str]) -> Result<String, CommandError> {
    let failed = |problem: String| CommandError::Program { program: command.join(" "), problem };
    let (program, arguments) = command.split_first().expect("commands are not empty");
    let output = Command::new(program).args(arguments).output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

fn uninstall(session: &Session) -> Result<(), CommandError> {
    if cfg!(target_os = "linux")
        && is_installed()
        && let Err(error) = manager(&["systemctl", "--user", "disable", "--now", "mneme.socket", "mneme.service"])
    {
        line(warn(error));
    }
    for file in unit_files()? {
        match fs_err::remove_file(&file.path) {
            Ok(()) => line(format!("{} {}", good("removed"), file.path.display())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    session.out.remark("memories stay; 'mneme config show' names the state folder");
    Ok(())
}

/// Whether the unit files are there.
pub(super) fn is_installed() -> bool {
    unit_files().is_ok_and(|files| files.iter().all(|file| file.path.exists()))
}

fn status() {
    if !is_installed() {
        line("no service is installed; 'mneme service install' writes one");
        return;
    }
    let output = Command::new("systemctl").args(["--user", "--no-pager", "status", "mneme.service"]).output();
    match output {
        Ok(output) => line(String::from_utf8_lossy(&output.stdout).trim_end()),
        Err(error) => line(warn(format!("systemctl cannot be asked: {error}"))),
    }
}

fn start(session: &Session) -> Result<(), CommandError> {
    if session.client().is_ok() {
        line("the daemon runs already");
        return Ok(());
    }
    if is_installed() && manager(&["systemctl", "--user", "start", "mneme.service"]).is_ok() {
        return wait_for(session);
    }
    let daemon = daemon_or_error()?;
    let config = Config::load(&Sources::from_process(None, Vec::new()))?;
    let folder = config.paths.state_dir.join("log");
    fs_err::create_dir_all(&folder)?;
    let log = fs_err::OpenOptions::new().create(true).append(true).open(folder.join("mnemed.out"))?;
    spawn_detached(&daemon, log.into_parts().0)?;
    wait_for(session)?;
    session.out.remark(format!("its log is {}", folder.join("mnemed.out").display()));
    Ok(())
}

/// Starts the daemon so that it outlives this program and its terminal.
fn spawn_detached(daemon: &Path, log: std::fs::File) -> Result<(), CommandError> {
    use std::os::unix::process::CommandExt as _;
    let second = log.try_clone()?;
    Command::new(daemon)
        .stdin(Stdio::null())
        .stdout(Stdio::from(log))
        .stderr(Stdio::from(second))
        // A process group of its own: the terminal's signals do not reach it.
        .process_group(0)
        .spawn()?;
    Ok(())
}

fn wait_for(session: &Session) -> Result<(), CommandError> {
    let until = Instant::now() + START_TIMEOUT;
    loop {
        match session.client() {
            Ok(client) => {
                let hello = client.hello()?;
                line(format!("{} {} at {}", good("started"), hello.server, session.socket().display()));
                return Ok(());
            }
            Err(error) if Instant::now() >= until => return Err(error),
            Err(_) => std::thread::park_timeout(Duration::from_millis(20)),
        }
    }
}

fn stop(session: &Session) -> Result<(), CommandError> {
    if is_installed() && manager(&["systemctl", "--user", "stop", "mneme.service"]).is_ok() {
        line(good("stopped"));
        return Ok(());
    }
    let client = session.client()?;
    let pid = client.call_with::<methods::Status>(wire::StatusParams {}, session.call())?.pid;
    let result = client.call_with::<methods::Drain>(wire::DrainParams {}, session.call())?;
    drop(client);
    let until = Instant::now() + START_TIMEOUT;
    while Instant::now() < until && is_alive(pid) {
        std::thread::park_timeout(Duration::from_millis(20));
    }
    session.out.result(&result, |_| line(good("stopped")))
}

fn is_alive(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
}
