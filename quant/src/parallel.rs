//! How work is cut for threads.

/// Weights below which another thread costs more than it saves.
const PART_WEIGHTS_MIN: usize = 32 << 10;

/// Rows for each of at most `threads` parts of a matrix; at least one.
pub(crate) fn part_rows(rows: usize, columns: usize, threads: usize) -> usize {
    let parts = threads.min((rows * columns / PART_WEIGHTS_MIN).max(1));
    rows.div_ceil(parts.max(1)).max(1)
}
