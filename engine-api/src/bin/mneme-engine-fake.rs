//! mneme-engine-fake: the fake engine as a process, with the manners of `mneme-engine`.

use std::process::ExitCode;

fn main() -> ExitCode {
    mneme_engine_api::fake::program::main()
}
