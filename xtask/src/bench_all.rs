//! `cargo xtask bench all`: every benchmark, one after another, each with machine, date and commit above what it printed.
//!
//! The pages of `docs/benchmarks` quote figures and say what they mean; what a run printed stands in `docs/benchmarks/runs`, so that
//! a reader can compare the two.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use crate::command::cargo;
use crate::later::{Benchmark, Kind, LONG};
use crate::workspace::Workspace;

/// Where what was printed is kept, from the workspace's root.
const RUNS: &str = "docs/benchmarks/runs";

/// Runs all benchmarks but the long ones, or those whose names follow. One that fails is written down as failed and stops no other.
pub(crate) fn run(workspace: &Workspace, benchmarks: &[Benchmark<'_>], wanted: &[String]) -> anyhow::Result<ExitCode> {
    let is_wanted = |name: &str| {
        if wanted.is_empty() { !LONG.contains(&name) } else { wanted.iter().any(|other| other == name) }
    };
    let chosen: Vec<&Benchmark<'_>> = benchmarks.iter().filter(|found| is_wanted(found.name)).collect();
    if let Some(unknown) = wanted.iter().find(|name| !benchmarks.iter().any(|found| found.name == name.as_str())) {
        println!("there is no benchmark {unknown}; 'cargo xtask bench' lists them");
        return Ok(ExitCode::from(2));
    }
    let folder = workspace.root.join(RUNS);
    fs_err::create_dir_all(&folder)?;
    let head = header(&workspace.root);
    let mut failed = Vec::new();
    for (number, benchmark) in chosen.iter().enumerate() {
        println!("== {} ({} of {})", benchmark.name, number + 1, chosen.len());
        let mut page = format!("{head}command: cargo xtask bench {}\n\n", benchmark.name);
        let outcome = benchmark.command(&workspace.root, &[]).and_then(|mut command| shown(&mut command, &mut page));
        if !matches!(outcome, Ok(true)) {
            if let Err(error) = outcome {
                println!("error: {error:#}");
            }
            page.push_str("\nFAILED\n");
            failed.push(benchmark.name);
        }
        fs_err::write(folder.join(format!("{}.txt", benchmark.name)), page)?;
    }
    println!("\n{} benchmarks, {} failed; what they printed is in {RUNS}", chosen.len(), failed.len());
    failed.iter().for_each(|name| println!("  failed: {name}"));
    Ok(if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Machine, date and commit.
fn header(root: &Path) -> String {
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).current_dir(root).stderr(Stdio::null()).output();
        output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let processors = fs_err::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let changed =
        if said("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty() { "" } else { " with changes" };
    format!(
        "machine: {}, {cores} cores, {}\ndate: {}\ncommit: {}{changed}\nload before: {}\n",
        model.trim_start_matches([' ', '\t', ':']),
        said("uname", &["-sr"]),
        said("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        said("git", &["rev-parse", "--short", "HEAD"]),
        fs_err::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').take(3).collect::<Vec<_>>().join(" "),
    )
}

/// Runs a command, shows its standard output as it comes and keeps it too. Returns whether it ended well.
fn shown(command: &mut Command, page: &mut String) -> anyhow::Result<bool> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).into_owned();
            let _ = writeln!(std::io::stdout(), "{line}");
            page.push_str(&line);
            page.push('\n');
        }
    }
    Ok(child.wait()?.success())
}

impl Benchmark<'_> {
    /// The command that runs it; a table of peers is preceded by the build of our part.
    pub(crate) fn command(&self, root: &Path, arguments: &[String]) -> anyhow::Result<Command> {
        let mut command = cargo(root);
        match self.kind {
            Kind::Program => {
                command.args(["run", "--quiet", "--release", "--package", self.package, "--bin", self.name, "--"])
            }
            Kind::Target => command.args(["bench", "--quiet", "--package", self.package, "--bench", self.name, "--"]),
            Kind::Peers(table) => return table.command(root, arguments),
        };
        command.args(arguments);
        Ok(command)
    }
}
