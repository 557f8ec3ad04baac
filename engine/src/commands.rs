//! The commands that people run.
#![expect(clippy::print_stdout, reason = "commands answer on standard output")]

pub(crate) mod bench;
pub(crate) mod curve;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod train;
