//! Progress bars on a terminal; plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Below this a step is over before a bar can be read (bytes).
const SHOWN_BYTES_MIN: u64 = 8 << 20;

/// A bar over bytes. Away from a terminal it prints one line at the start instead.
pub(crate) fn bytes(total: u64, verb: &str, name: &str) -> ProgressBar {
    if total < SHOWN_BYTES_MIN {
        return ProgressBar::hidden();
    }
    if !std::io::stderr().is_terminal() {
        println!("  {verb} {name} ({} MB)", total.div_ceil(1_000_000));
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    let bar = ProgressBar::new(total).with_style(style).with_message(format!("{verb} {name}"));
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// Replaces the bar by a line.
pub(crate) fn finish(bar: &ProgressBar, verb: &str, name: &str) {
    bar.finish_and_clear();
    if std::io::stderr().is_terminal() {
        println!("  {verb} {name}");
    }
}
