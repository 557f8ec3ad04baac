//! `mneme weights`: hands its arguments to `mneme-weights`, which reads model files. This program knows the wire and nothing of Arrow.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode};

use super::service::find_program;
use crate::error::CommandError;

/// The program that does the work.
const PROGRAM: &str = "mneme-weights";

/// Runs it with the same streams; its exit status becomes ours.
pub(super) fn run(json: bool, arguments: Vec<OsString>) -> Result<ExitCode, CommandError> {
    let program = find_program(PROGRAM).ok_or_else(|| CommandError::Usage {
        problem: format!("{PROGRAM} is neither beside this program nor on the path"),
        hint: Some(format!("build it with 'cargo build --release -p {PROGRAM}' and put it beside mneme")),
    })?;
    pass_on(&program, json, arguments)
}

fn pass_on(program: &Path, json: bool, arguments: Vec<OsString>) -> Result<ExitCode, CommandError> {
    let mut command = Command::new(program);
    if json {
        command.arg("--json");
    }
    let failed = |problem: String| CommandError::Program { program: PROGRAM.into(), problem };
    let status = command.args(arguments).status().map_err(|error| failed(error.to_string()))?;
    // Without a code a signal ended it.
    let code = status.code().ok_or_else(|| failed(status.to_string()))?;
    Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)))
}

#[cfg(all(test, unix))]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Arguments, Command as Task};

    fn parsed(words: &[&str]) -> (bool, Vec<OsString>) {
        let arguments = Arguments::parse_from(words);
        let Task::Weights { arguments: rest } = arguments.command else { panic!("another command") };
        (arguments.json, rest)
    }

    #[test]
    fn whatever_follows_goes_on_unread_and_the_exit_status_comes_back() {
        let words = ["mneme", "--json", "weights", "convert", "a", "b", "--quantize", "int4", "--help"];
        let (json, rest) = parsed(&words);
        assert!(json);
        assert_eq!(rest, ["convert", "a", "b", "--quantize", "int4", "--help"]);
        assert_eq!(parsed(&["mneme", "weights", "--help"]).1, ["--help"]);
        let script = |text: &str| vec![OsString::from("-c"), OsString::from(text)];
        let code = pass_on(Path::new("/bin/sh"), false, script("exit 3")).unwrap();
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::from(3)));
        assert!(pass_on(Path::new("/bin/sh"), false, script("kill -9 $$")).is_err());
        assert!(pass_on(Path::new("/no/such/program"), false, Vec::new()).is_err());
    }
}
