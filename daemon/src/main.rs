//! mnemed: the program; everything is in the library, so that the end-to-end suite runs the same code.

use std::process::ExitCode;

fn main() -> ExitCode {
    mneme_daemon::program::main()
}
