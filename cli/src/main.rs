//! mneme: the command line.

fn main() {}
