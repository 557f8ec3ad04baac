//! The commands that the documents show are run as they stand there: a newcomer types them too.

#![expect(clippy::print_stdout, reason = "a skipped test says so")]

use std::path::{Path, PathBuf};
use std::process::Command;

use mneme_tests::Setup;

const MNEMED: &str = env!("CARGO_BIN_EXE_e2e-mnemed");
const MNEME: &str = env!("CARGO_BIN_EXE_e2e-mneme");

/// Lines that this suite cannot run as they stand: building, and a service where there is no service manager. The daemon that
/// the others talk to is started by the test.
const ELSEWHERE: [&str; 6] = ["cargo ", "export PATH=", "mneme service ", "pip ", "npm ", "sudo "];

/// What the stand-in engine cannot do; the demonstration does it with the real one.
const NEEDS_A_MODEL: &str = "--json-schema";

/// The shell commands of a document, in order.
fn commands(document: &Path) -> String {
    let text = fs_err::read_to_string(document).expect("the document is there");
    let mut script = String::new();
    let mut inside = false;
    for line in text.lines() {
        match line.trim_end() {
            "```sh" => inside = true,
            "```" => inside = false,
            _ if !inside || ELSEWHERE.iter().any(|start| line.starts_with(start)) => {}
            _ if line.contains(NEEDS_A_MODEL) => {}
            _ => {
                script.push_str(line);
                script.push('\n');
            }
        }
    }
    script
}

fn installed(program: &str) -> bool {
    Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs a document's commands in one shell against a daemon with the stand-in engine.
fn run(document: &str) {
    let root: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_path_buf();
    let script = commands(&root.join(document));
    for program in ["bash", "python3", "nc"] {
        if (program == "bash" || script.contains(&format!("{program} -"))) && !installed(program) {
            println!("skipped: {program} is not installed");
            return;
        }
    }
    assert!(script.lines().count() >= 5, "{document} shows hardly any command: {script}");
    let folder = tempfile::tempdir().expect("a folder");
    let setup = Setup::new(MNEMED, folder.path());
    let _daemon = setup.start();
    let bin = folder.path().join("bin");
    fs_err::create_dir(&bin).expect("a folder");
    std::os::unix::fs::symlink(MNEME, bin.join("mneme")).expect("a link");
    std::os::unix::fs::symlink(MNEMED, bin.join("mnemed")).expect("a link");
    // Where the socket lies on a machine with a session.
    fs_err::create_dir(folder.path().join("session")).expect("a folder");
    std::os::unix::fs::symlink(folder.path().join("run"), folder.path().join("session/mneme")).expect("a link");
    fs_err::create_dir_all(folder.path().join("notes")).expect("a folder");
    let script = script.replace("/tmp/", &format!("{}/", folder.path().display()));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("bash")
        .args(["-eux", "-o", "pipefail", "-c", &script])
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", path)
        .env("HOME", folder.path())
        .env("XDG_RUNTIME_DIR", folder.path().join("session"))
        .env("MNEME_PATHS__STATE_DIR", folder.path().join("state"))
        .env("MNEME_ENGINE__PROGRAM", "fake")
        .output()
        .expect("bash runs");
    assert!(
        output.status.success(),
        "{document}: {}\n--- what it printed\n{}\n--- what it ran\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn the_tutorial_can_be_typed_as_it_stands() {
    run("docs/tutorial.md");
}

#[test]
fn the_readme_can_be_typed_as_it_stands() {
    run("README.md");
}

#[test]
fn the_operations_page_can_be_typed_as_it_stands() {
    run("docs/operations.md");
}
