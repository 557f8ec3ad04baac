//! Everything a person does with the daemon, from the command line. A client of the socket like any other.

mod args;
mod commands;
mod error;
mod output;
mod reference;

use std::process::ExitCode;

use clap::Parser as _;

pub use reference::reference;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments = args::Arguments::parse();
    let out = output::Output::new(arguments.json);
    match commands::run(arguments, out) {
        Ok(code) => code,
        Err(error) => {
            out.error(&error);
            error.exit_code()
        }
    }
}
