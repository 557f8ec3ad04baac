//! Dot products of int8 rows with one query: the scalar definition and the choice of a SIMD form.

use super::ScanError;
use crate::dispatch::Path;

/// Rows are padded to this many codes in a prepared query, the widest vector of any path (bytes).
pub(super) const LANES: usize = 64;

/// A query with what the kernels need beside its codes.
#[derive(Debug, Clone)]
pub(super) struct PreparedQuery {
    /// The codes, then zeros up to a multiple of [`LANES`].
    pub(super) padded: Vec<i8>,
    /// The padded codes as 16-bit values; empty unless the path multiplies those.
    #[cfg(target_arch = "x86_64")]
    pub(super) wide: Vec<i16>,
    /// Codes without padding.
    pub(super) dimensions: usize,
    /// Sum of the codes.
    #[cfg(target_arch = "x86_64")]
    pub(super) sum: i32,
}

impl PreparedQuery {
    pub(super) fn new(path: Path, codes: &[i8]) -> Self {
        let mut padded = codes.to_vec();
        padded.resize(codes.len().next_multiple_of(LANES), 0);
        let _ = path;
        Self {
            #[cfg(target_arch = "x86_64")]
            wide: if path == Path::Avx2 { padded.iter().map(|code| i16::from(*code)).collect() } else { Vec::new() },
            #[cfg(target_arch = "x86_64")]
            sum: codes.iter().map(|code| i32::from(*code)).sum(),
            padded,
            dimensions: codes.len(),
        }
    }
}

/// The exact dot product of two int8 vectors of one length, at most [`super::DIMENSIONS_MAX`] long.
///
/// ```
/// assert_eq!(mneme_quant::scan::dot_i8(&[1, -2, 127], &[3, 4, -128]).unwrap(), 3 - 8 - 127 * 128);
/// ```
pub fn dot_i8(a: &[i8], b: &[i8]) -> Result<i32, ScanError> {
    dot_i8_on(Path::best(), a, b)
}

/// As [`dot_i8`], on a given path (the best one if this processor does not run it).
pub fn dot_i8_on(path: Path, a: &[i8], b: &[i8]) -> Result<i32, ScanError> {
    if a.len() != b.len() {
        return Err(ScanError::QueryDimensions { query: b.len(), rows: a.len() });
    }
    if a.len() > super::DIMENSIONS_MAX {
        return Err(ScanError::Dimensions { dimensions: a.len() });
    }
    if a.is_empty() {
        return Ok(0);
    }
    let path = path.or_best();
    let mut dot = [0];
    dots_of_rows(path, a, &PreparedQuery::new(path, b), &mut dot);
    Ok(dot[0])
}

/// Dot products of `dots.len()` rows with a query. `codes` holds exactly those rows; `path` is one that this processor runs.
pub(super) fn dots_of_rows(path: Path, codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    assert_eq!(codes.len(), dots.len() * query.dimensions, "one row of codes for each dot product");
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 | Path::Amx => super::x86::dots_avx512(codes, query, dots),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => super::x86::dots_avx2(codes, query, dots),
        #[cfg(target_arch = "aarch64")]
        Path::Neon | Path::NeonI8mm => super::neon::dots_neon(codes, query, dots),
        _ => dots_scalar(codes, query, dots),
    }
}

fn dots_scalar(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    for (row, dot) in codes.chunks_exact(query.dimensions).zip(dots) {
        *dot = row.iter().zip(&query.padded).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum();
    }
}
