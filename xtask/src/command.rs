//! Runs other programs: shows what is run, passes their output through, and keeps the lines that matter.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::Context as _;

/// Lines of a child's output that wait for the reader; a child that writes faster waits.
const LINES_MAX: usize = 1024;

/// The cargo that runs this tool.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    // These describe the run of xtask itself and would mislead build scripts of the nested run.
    for (name, _) in std::env::vars_os() {
        let inherited = name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR";
        if inherited {
            command.env_remove(name);
        }
    }
    command
}

/// Whether `cargo NAME` exists.
pub(crate) fn has_cargo_tool(root: &Path, name: &str) -> bool {
    cargo(root)
        .args([name, "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Prints the command as a person would type it.
pub(crate) fn announce(command: &Command) {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    println!("$ {program} {}", arguments.join(" "));
}

/// Runs to the end with inherited output.
pub(crate) fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    announce(command);
    command.status().with_context(|| format!("could not start {}", command.get_program().to_string_lossy()))
}

/// Runs to the end, passes both streams through line by line, and hands every line to `on_line` too.
pub(crate) fn tee(command: &mut Command, mut on_line: impl FnMut(&str) + Send) -> anyhow::Result<ExitStatus> {
    announce(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", command.get_program().to_string_lossy()))?;
    let stdout = child.stdout.take().context("standard output was piped")?;
    let stderr = child.stderr.take().context("standard error was piped")?;
    let (lines, inbox) = std::sync::mpsc::sync_channel::<String>(LINES_MAX);
    std::thread::scope(|scope| {
        let more = lines.clone();
        scope.spawn(move || forward(stdout, &lines));
        scope.spawn(move || forward(stderr, &more));
        for line in inbox {
            // A closed standard output must not stop the child's work from being judged.
            let _ = writeln!(std::io::stdout(), "{line}");
            on_line(&line);
        }
    });
    child.wait().context("could not wait for the child")
}

fn forward(stream: impl Read, lines: &std::sync::mpsc::SyncSender<String>) {
    for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
        if lines.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
            return;
        }
    }
}
