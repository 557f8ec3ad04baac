//! Set-up, demo, tests and tidiness: cargo xtask.

fn main() {}
