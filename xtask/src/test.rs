//! `cargo xtask test`: everything that has to pass before a change lands, in the order of what fails fastest.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Args;

use crate::command::{cargo, has_cargo_tool, status, tee};
use crate::setup;
use crate::tidy;
use crate::workspace::{Workspace, target_folder};

/// By which a script says that it was skipped, as automake's do.
const EXIT_SKIPPED: i32 = 77;
/// The members that need libtorch or Lance.
const HEAVY: &[&str] = &["mneme-engine", LANCE];
/// The member that needs Lance.
const LANCE: &str = "mneme-memory-lance";

/// Options of `test`.
#[derive(Debug, Default, Args)]
pub(crate) struct TestArguments {
    /// Leave out set-up and the members that need libtorch or Lance.
    #[arg(long)]
    light: bool,
}

/// What one step came to.
struct Step {
    name: String,
    took: Duration,
    outcome: Outcome,
}

#[derive(Clone, Copy)]
enum Outcome {
    /// A check without a count.
    Check { passed: bool },
    /// Tests with counts; `whole` is false when the runner failed without saying which test did.
    Tests { passed: u64, failed: u64, whole: bool },
    /// Not possible here.
    Skipped,
}

/// Runs every step, whatever the others came to, and prints a summary whose last line is `N passed, N failed`.
pub(crate) fn run(workspace: &Workspace, arguments: &TestArguments) -> ExitCode {
    let started = Instant::now();
    let mut suite = Suite { root: &workspace.root, steps: Vec::new() };
    // Lance is the dearest part of the build: its member is left out while it is only a crate root.
    let heavy: Vec<&str> = HEAVY
        .iter()
        .copied()
        .filter(|name| !arguments.light && (*name != LANCE || workspace.depends_on(name, "lance")))
        .collect();
    let left_out: Vec<&str> = HEAVY.iter().copied().filter(|name| !heavy.contains(name)).collect();
    let members: Vec<String> = ["--workspace".to_owned()]
        .into_iter()
        .chain(left_out.iter().flat_map(|name| ["--exclude".to_owned(), (*name).to_owned()]))
        .collect();

    if !arguments.light {
        suite.step("setup", |_| {
            setup::run(workspace, &setup::SetupArguments::default()).map(|()| Outcome::Check { passed: true })
        });
    }
    suite.check("format", &["fmt", "--all", "--check"]);
    suite.step("tidy", |_| {
        let findings = tidy::check(workspace, false)?;
        for finding in findings.errors.iter().map(|text| format!("error: {text}")) {
            println!("{finding}");
        }
        println!(
            "{} errors, {} warnings ('cargo xtask tidy' lists them)",
            findings.errors.len(),
            findings.warnings.len()
        );
        Ok(Outcome::Check { passed: findings.errors.is_empty() })
    });
    // Clippy needs the metadata of every dependency, which the tests do not build: for Lance that would be half as much again.
    // `cargo clippy -p mneme-memory-lance --all-targets` does it where somebody works on it.
    let mut linted = members.clone();
    if !left_out.contains(&LANCE) {
        linted.extend(["--exclude".to_owned(), LANCE.to_owned()]);
    }
    suite.clippy(&linted);
    suite.tests(&members);
    if !left_out.contains(&LANCE) {
        suite.lance_copy(&members);
    }
    suite.doctests(&members);
    suite.clients(&members);
    suite.deny();
    suite.summary(started.elapsed(), &left_out)
}

struct Suite<'a> {
    root: &'a Path,
    steps: Vec<Step>,
}

impl Suite<'_> {
    fn step(&mut self, name: &str, work: impl FnOnce(&Path) -> anyhow::Result<Outcome>) {
        println!("\n== {name}");
        let started = Instant::now();
        let outcome = work(self.root).unwrap_or_else(|error| {
            println!("error: {error:#}");
            Outcome::Check { passed: false }
        });
        self.steps.push(Step { name: name.to_owned(), took: started.elapsed(), outcome });
    }

    fn check(&mut self, name: &str, arguments: &[&str]) {
        self.step(name, |root| Ok(Outcome::Check { passed: status(cargo(root).args(arguments))?.success() }));
    }

    fn clippy(&mut self, members: &[String]) {
        self.step("clippy", |root| {
            let mut command = cargo(root);
            command.arg("clippy").args(members).args(["--all-targets", "--keep-going", "--", "-D", "warnings"]);
            Ok(Outcome::Check { passed: status(&mut command)?.success() })
        });
    }

    fn tests(&mut self, members: &[String]) {
        self.step("tests", |root| {
            let mut command = cargo(root);
            let nextest = has_cargo_tool(root, "nextest");
            if nextest {
                // nextest kills a test that hangs, as .config/nextest.toml says.
                command.args(["nextest", "run"]).args(members).arg("--no-fail-fast");
            } else {
                println!("cargo-nextest is not installed: cargo test runs instead, and a hang is not ended");
                command.arg("test").args(members).args(["--no-fail-fast", "--lib", "--bins", "--tests"]);
            }
            count(&mut command)
        });
    }

    /// The daemon with its feature `lance`, which nothing else is built with: with the same members as the tests, so that Lance is not
    /// built twice.
    fn lance_copy(&mut self, members: &[String]) {
        self.step("daemon with a lance copy", |root| {
            let mut command = cargo(root);
            if has_cargo_tool(root, "nextest") {
                command.args(["nextest", "run"]);
            } else {
                command.arg("test");
            }
            command.args(members).args(["--features", "mneme-tests/lance", "--test", "lance_copy"]);
            count(&mut command)
        });
    }

    fn doctests(&mut self, members: &[String]) {
        self.step("doctests", |root| {
            let mut command = cargo(root);
            command.arg("test").args(members).args(["--doc", "--no-fail-fast"]);
            count(&mut command)
        });
    }

    /// The clients in other languages, against the daemon that was just built, and the Python module: each folder's own
    /// `run-tests.sh`.
    fn clients(&mut self, members: &[String]) {
        self.step("programs for the clients", |root| {
            let mut command = cargo(root);
            // With the same members as the tests, so that the same features are on and nothing is built twice.
            command.arg("build").args(members).args([
                "--bin",
                "mnemed",
                "--bin",
                "mneme",
                "--bin",
                "mneme-engine-fake",
            ]);
            Ok(Outcome::Check { passed: status(&mut command)?.success() })
        });
        for script in client_scripts(self.root) {
            let shown = script.strip_prefix(self.root).unwrap_or(&script).display().to_string();
            self.step(&shown, |root| {
                let programs = target_folder(root).join("debug");
                let mut command = Command::new("sh");
                command
                    .arg(&script)
                    .env("MNEMED", programs.join("mnemed"))
                    .env("MNEME", programs.join("mneme"))
                    .env("MNEME_ENGINE_FAKE", programs.join("mneme-engine-fake"))
                    .current_dir(script.parent().unwrap_or(root));
                let status = status(&mut command)?;
                Ok(if status.code() == Some(EXIT_SKIPPED) {
                    Outcome::Skipped
                } else {
                    Outcome::Check { passed: status.success() }
                })
            });
        }
    }

    fn deny(&mut self) {
        self.step("licences and advisories", |root| {
            if !has_cargo_tool(root, "deny") {
                println!("cargo-deny is not installed: skipped ('cargo install cargo-deny' gives it)");
                return Ok(Outcome::Skipped);
            }
            // Advisories need the network; licences, bans and sources are facts of the lock file.
            Ok(Outcome::Check {
                passed: status(cargo(root).args(["deny", "check", "licenses", "bans", "sources"]))?.success(),
            })
        });
    }

    fn summary(&self, took: Duration, left_out: &[&str]) -> ExitCode {
        println!("\n== summary");
        let (mut passed, mut failed) = (0, 0);
        for step in &self.steps {
            let (word, detail) = match step.outcome {
                Outcome::Check { passed: true } => ("ok", String::new()),
                Outcome::Check { passed: false } => ("FAILED", String::new()),
                Outcome::Skipped => ("skipped", String::new()),
                Outcome::Tests { passed, failed, whole } => (
                    if failed == 0 && whole { "ok" } else { "FAILED" },
                    format!(
                        "{passed} passed, {failed} failed{}",
                        if whole { "" } else { "; the run did not end well" }
                    ),
                ),
            };
            println!("{word:>8}  {:<28} {:>6.1} s  {detail}", step.name, step.took.as_secs_f64());
            match step.outcome {
                Outcome::Check { passed: true } => passed += 1,
                Outcome::Check { passed: false } => failed += 1,
                Outcome::Skipped => {}
                Outcome::Tests { passed: good, failed: bad, whole } => {
                    passed += good;
                    failed += bad + u64::from(!whole);
                }
            }
        }
        if !left_out.is_empty() {
            println!("left out: {}", left_out.join(", "));
        }
        println!("took {:.0} s; checks count as one test each", took.as_secs_f64());
        println!("{passed} passed, {failed} failed");
        if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// Runs a test runner and adds up what its summaries say.
fn count(command: &mut Command) -> anyhow::Result<Outcome> {
    let mut counted = Counted::default();
    let status = tee(command, |line| counted.read(line))?;
    // nextest exits with 4 when there is nothing to run, unittest with 5: neither is a failure of a test.
    let whole = status.success() || counted.failed > 0;
    Ok(Outcome::Tests { passed: counted.passed, failed: counted.failed, whole })
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    passed: u64,
    failed: u64,
    /// unittest says how many ran before it says how many failed.
    ran: u64,
}

impl Counted {
    /// Understands the closing lines of nextest, of `cargo test` and of unittest.
    fn read(&mut self, line: &str) {
        let line = strip_colours(line);
        let line = line.trim();
        if line.starts_with("Summary [") || line.starts_with("test result:") {
            self.passed += before(line, " passed").unwrap_or(0);
            // A test that hangs or is killed has failed too.
            self.failed +=
                [" failed", " timed out", " exec failed"].iter().filter_map(|word| before(line, word)).sum::<u64>();
        } else if let Some(rest) = line.strip_prefix("Ran ") {
            self.ran = rest.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        } else if line == "OK" || line.starts_with("OK (") {
            self.passed += self.ran;
        } else if line.starts_with("FAILED (") {
            let bad: u64 = ["failures=", "errors="].iter().filter_map(|word| after(line, word)).sum();
            self.failed += bad;
            self.passed += self.ran.saturating_sub(bad);
        }
    }
}

/// The number that stands right before `word`.
fn before(line: &str, word: &str) -> Option<u64> {
    let head = &line[..line.find(word)?];
    let digits = head.bytes().rev().take_while(u8::is_ascii_digit).count();
    head[head.len() - digits..].parse().ok()
}

/// The number that stands right after `word`.
fn after(line: &str, word: &str) -> Option<u64> {
    let tail = &line[line.find(word)? + word.len()..];
    let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
    tail[..digits].parse().ok()
}

fn strip_colours(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        if letter == '\u{1b}' {
            letters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            out.push(letter);
        }
    }
    out
}

/// Suites that are not cargo's: a folder of a client or of the end-to-end suite with a `run-tests.sh`.
fn client_scripts(root: &Path) -> Vec<PathBuf> {
    let mut scripts: Vec<_> = ["client-sdk", "tests"]
        .iter()
        .filter_map(|folder| fs_err::read_dir(root.join(folder)).ok())
        .flat_map(|entries| entries.flatten().map(|entry| entry.path()))
        .chain([root.join("python-native")])
        .map(|folder| folder.join("run-tests.sh"))
        .filter(|script| script.is_file())
        .collect();
    scripts.sort();
    scripts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(lines: &[&str]) -> (u64, u64) {
        let mut counted = Counted::default();
        for line in lines {
            counted.read(line);
        }
        (counted.passed, counted.failed)
    }

    #[test]
    fn the_summaries_of_three_runners_are_understood() {
        assert_eq!(counted(&["     Summary [   0.9s] 26 tests run: 26 passed, 0 skipped"]), (26, 0));
        assert_eq!(
            counted(&[
                "\u{1b}[31m     Summary\u{1b}[0m [  1.0s] 9 tests run: 5 passed (1 slow), 3 failed, 1 timed out, 2 skipped"
            ]),
            (5, 4)
        );
        assert_eq!(
            counted(&[
                "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
                "test result: FAILED. 7 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            ]),
            (9, 1)
        );
        assert_eq!(counted(&["Ran 12 tests in 0.1s", "", "OK (skipped=1)"]), (12, 0));
        assert_eq!(counted(&["Ran 12 tests in 0.1s", "", "FAILED (failures=2, errors=1)"]), (9, 3));
        assert_eq!(counted(&["running 3 tests", "nothing of note passed here"]), (0, 0));
    }
}
