//! The program mnemed as the end-to-end suite runs it: cargo builds a package's own programs before its tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    mneme_daemon::program::main()
}
