//! Finds the rows nearest to a query by int8 dot products: exact, one pass over the codes, bound by memory.
//!
//! A row's score is `dot(codes, query) * row_scale * query_scale`, the dot product in exact 32-bit integers, so that every
//! path and every number of threads gives the same scores in the same order.

mod dot;
#[cfg(target_arch = "aarch64")]
mod neon;
mod sketch;
mod split;
#[cfg(target_arch = "aarch64")]
mod split_neon;
#[cfg(target_arch = "x86_64")]
mod split_x86;
mod top;
#[cfg(target_arch = "x86_64")]
mod x86;

use rayon::prelude::*;

use crate::dispatch::Path;
use dot::{PreparedQuery, dots_of_rows};
pub use dot::{dot_i8, dot_i8_on};
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::sdot;
pub use sketch::{Plan, scan_split_top_k};
pub use split::{SplitQuery, SplitRows};
use top::TopK;

/// Vectors longer than this are refused: the dot product of two such rows of -128 still fits an `i32` (codes).
pub const DIMENSIONS_MAX: usize = 1 << 16;
/// Rows whose dot products are computed before their scores are ranked; the dots stay in the first-level cache.
const BLOCK_ROWS: usize = 256;
/// A thread gets at least this many bytes of codes, or starting it costs more than it saves.
const THREAD_BYTES_MIN: usize = 256 << 10;

/// Why a scan or a row's quantisation was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// Rows of no dimensions, or of too many.
    #[error("rows have {dimensions} dimensions, must be 1 to {DIMENSIONS_MAX}")]
    Dimensions {
        /// How many.
        dimensions: usize,
    },
    /// The codes are not `scales * dimensions` long.
    #[error("codes hold {codes} values, {rows} rows of {dimensions} dimensions need {rows} x {dimensions}")]
    CodesLength {
        /// Codes given.
        codes: usize,
        /// Rows, by the number of scales.
        rows: usize,
        /// Dimensions of each.
        dimensions: usize,
    },
    /// A row that is not there.
    #[error("row {row} is not one of {rows} rows")]
    Row {
        /// Which.
        row: usize,
        /// How many there are.
        rows: usize,
    },
    /// More rows than a `u32` numbers.
    #[error("scan of {rows} rows, at most {} are numbered", u32::MAX)]
    RowsMax {
        /// How many.
        rows: usize,
    },
    /// The query is not as long as the rows.
    #[error("query has {query} dimensions, rows have {rows}")]
    QueryDimensions {
        /// The query's.
        query: usize,
        /// The rows'.
        rows: usize,
    },
    /// The bitmap of allowed rows is too short.
    #[error("bitmap has {words} words of 64 bits, {rows} rows need {}", rows.div_ceil(64))]
    BitmapLength {
        /// Words given.
        words: usize,
        /// Rows.
        rows: usize,
    },
    /// A value that is not a finite number.
    #[error("value {index} is not finite")]
    NotFinite {
        /// Where.
        index: usize,
    },
}

/// Rows of int8 codes, each with its scale; borrowed, so that they may lie in a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct RowsI8<'a> {
    codes: &'a [i8],
    scales: &'a [f32],
    dimensions: usize,
}

impl<'a> RowsI8<'a> {
    /// Takes codes `[rows, dimensions]` row by row and scales `[rows]`. Costs nothing: scales are not read.
    pub fn new(codes: &'a [i8], scales: &'a [f32], dimensions: usize) -> Result<Self, ScanError> {
        if dimensions == 0 || dimensions > DIMENSIONS_MAX {
            return Err(ScanError::Dimensions { dimensions });
        }
        let rows = scales.len();
        if u32::try_from(rows).is_err() {
            return Err(ScanError::RowsMax { rows });
        }
        if rows.checked_mul(dimensions) != Some(codes.len()) {
            return Err(ScanError::CodesLength { codes: codes.len(), rows, dimensions });
        }
        Ok(Self { codes, scales, dimensions })
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.scales.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.scales.is_empty()
    }

    /// Codes in each row.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }
}

/// A quantised query.
#[derive(Debug, Clone, Copy)]
pub struct Query<'a> {
    /// Its codes, as many as the rows have dimensions.
    pub codes: &'a [i8],
    /// Its scale; multiplies every score.
    pub scale: f32,
}

impl<'a> Query<'a> {
    /// A query of these codes and this scale.
    pub fn new(codes: &'a [i8], scale: f32) -> Self {
        Self { codes, scale }
    }
}

/// A row that was found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScoredRow {
    /// Its number.
    pub row: u32,
    /// Its score; larger is nearer.
    pub score: f32,
}

/// Quantises one vector: codes `round(x / scale)` in -127..=127 with `scale = max|x| / 127`. A zero vector has scale 0.
pub fn quantize_row_i8(values: &[f32]) -> Result<(Vec<i8>, f32), ScanError> {
    let mut codes = vec![0; values.len()];
    let scale = quantize_row_i8_into(values, &mut codes)?;
    Ok((codes, scale))
}

/// As [`quantize_row_i8`], into a slice of the same length; gives the scale.
pub fn quantize_row_i8_into(values: &[f32], codes: &mut [i8]) -> Result<f32, ScanError> {
    if codes.len() != values.len() {
        return Err(ScanError::QueryDimensions { query: values.len(), rows: codes.len() });
    }
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        return Err(ScanError::NotFinite { index });
    }
    let largest = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    // In f64: the inverse of a subnormal scale would be infinite in f32.
    let inverse = if largest > 0.0 { 127.0 / f64::from(largest) } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (f64::from(*value) * inverse).round_ties_even() as i8;
    }
    Ok(largest / 127.0)
}

/// The `k` best of the allowed rows, best first, ties by the lower row.
///
/// `allowed` is a bitmap, row `r` is bit `r % 64` of word `r / 64`; no bitmap allows every row. Rows whose score is NaN
/// (their scale is) are left out. Reads each allowed row once; `threads` above what the work repays are not started.
pub fn scan_top_k(
    rows: RowsI8<'_>,
    query: Query<'_>,
    k: usize,
    allowed: Option<&[u64]>,
    threads: usize,
) -> Result<Vec<ScoredRow>, ScanError> {
    scan_top_k_on(Path::best(), rows, query, k, allowed, threads)
}

/// As [`scan_top_k`], on a given path (the best one if this processor does not run it).
pub fn scan_top_k_on(
    path: Path,
    rows: RowsI8<'_>,
    query: Query<'_>,
    k: usize,
    allowed: Option<&[u64]>,
    threads: usize,
) -> Result<Vec<ScoredRow>, ScanError> {
    let mut results = scan_batch_top_k_on(path, rows, &[query], k, allowed, threads)?;
    Ok(results.pop().expect("one result for each query"))
}

/// The `k` best rows for each query, in the order of the queries. The codes are read from memory once for the whole batch.
pub fn scan_batch_top_k(
    rows: RowsI8<'_>,
    queries: &[Query<'_>],
    k: usize,
    allowed: Option<&[u64]>,
    threads: usize,
) -> Result<Vec<Vec<ScoredRow>>, ScanError> {
    scan_batch_top_k_on(Path::best(), rows, queries, k, allowed, threads)
}

/// As [`scan_batch_top_k`], on a given path (the best one if this processor does not run it).
pub fn scan_batch_top_k_on(
    path: Path,
    rows: RowsI8<'_>,
    queries: &[Query<'_>],
    k: usize,
    allowed: Option<&[u64]>,
    threads: usize,
) -> Result<Vec<Vec<ScoredRow>>, ScanError> {
    for query in queries {
        if query.codes.len() != rows.dimensions {
            return Err(ScanError::QueryDimensions { query: query.codes.len(), rows: rows.dimensions });
        }
    }
    if let Some(bitmap) = allowed
        && bitmap.len() < rows.len().div_ceil(64)
    {
        return Err(ScanError::BitmapLength { words: bitmap.len(), rows: rows.len() });
    }
    let k = k.min(rows.len());
    if k == 0 || queries.is_empty() {
        return Ok(vec![Vec::new(); queries.len()]);
    }
    let path = path.or_best();
    let prepared: Vec<PreparedQuery> = queries.iter().map(|query| PreparedQuery::new(path, query.codes)).collect();
    let scan = Scan { path, rows, queries, prepared: &prepared, k, allowed };
    let parts = threads.clamp(1, (rows.codes.len() / THREAD_BYTES_MIN).max(1));
    let mut best = if parts == 1 {
        scan.part(0, rows.len())
    } else {
        // Blocks are whole words of the bitmap.
        let part_rows = rows.len().div_ceil(parts).next_multiple_of(BLOCK_ROWS);
        (0..parts)
            .into_par_iter()
            .map(|part| scan.part((part * part_rows).min(rows.len()), ((part + 1) * part_rows).min(rows.len())))
            .reduce_with(|mut left, right| {
                left.iter_mut().zip(right).for_each(|(left, right)| left.merge(right));
                left
            })
            .expect("there is at least one part")
    };
    Ok(best.drain(..).map(TopK::into_sorted).collect())
}

struct Scan<'a> {
    path: Path,
    rows: RowsI8<'a>,
    queries: &'a [Query<'a>],
    prepared: &'a [PreparedQuery],
    k: usize,
    allowed: Option<&'a [u64]>,
}

impl Scan<'_> {
    /// The best of rows `first..end`, for each query. `first` is a multiple of [`BLOCK_ROWS`].
    fn part(&self, first: usize, end: usize) -> Vec<TopK> {
        let mut best: Vec<TopK> = self.queries.iter().map(|_| TopK::new(self.k)).collect();
        let mut dots = [0_i32; BLOCK_ROWS];
        let mut start = first;
        while start < end {
            let stop = (start + BLOCK_ROWS).min(end);
            self.block(start, stop, &mut dots, &mut best);
            start = stop;
        }
        best
    }

    fn block(&self, start: usize, stop: usize, dots: &mut [i32; BLOCK_ROWS], best: &mut [TopK]) {
        let Some(bitmap) = self.allowed else {
            return self.run(start, stop, dots, best);
        };
        // Runs of allowed rows: a sparse bitmap costs as much as the rows that it allows, not as all rows.
        let mut row = start;
        while row < stop {
            let word = bitmap[row / 64] >> (row % 64);
            if word == 0 {
                row = (row / 64 + 1) * 64;
                continue;
            }
            row += word.trailing_zeros() as usize;
            let run = (bitmap[row / 64] >> (row % 64)).trailing_ones() as usize;
            let run_stop = (row + run).min(stop);
            if row < stop {
                self.run(row, run_stop, dots, best);
            }
            row = run_stop;
        }
    }

    fn run(&self, start: usize, stop: usize, dots: &mut [i32; BLOCK_ROWS], best: &mut [TopK]) {
        let dimensions = self.rows.dimensions;
        let codes = &self.rows.codes[start * dimensions..stop * dimensions];
        let scales = &self.rows.scales[start..stop];
        let dots = &mut dots[..stop - start];
        for ((query, prepared), best) in self.queries.iter().zip(self.prepared).zip(best) {
            dots_of_rows(self.path, codes, prepared, dots);
            for (offset, (dot, scale)) in dots.iter().zip(scales).enumerate() {
                best.offer(ScoredRow { row: (start + offset) as u32, score: *dot as f32 * *scale * query.scale });
            }
        }
    }
}
