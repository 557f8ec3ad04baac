//! Prints `PROTOCOL.md`.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(mneme_ipc::doc::render().as_bytes())
}
