//! The largest singular values of a matrix, by randomised subspace iteration.
//!
//! Halko, Martinsson and Tropp, "Finding structure with randomness" (2011), algorithm 4.4: sketch the range with random
//! vectors, sharpen it by multiplying with the matrix and its transpose, keep an orthonormal basis; the singular values of
//! the matrix within that basis are those of the matrix, from below.

use rayon::prelude::*;
use serde::Serialize;

/// Most singular values that are computed.
pub const RANK_MAX: usize = 64;
/// Vectors beyond the rank asked for; the usual allowance.
const OVERSAMPLING: usize = 8;
/// Multiplications with the transpose and the matrix; each squares the decay that separates wanted from unwanted.
const ITERATIONS: usize = 4;

/// Singular values and what they say.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spectrum {
    /// The largest singular values, descending; at most as many as the smaller side.
    pub singular_values: Vec<f64>,
    /// `|A|_F^2 / sigma_1^2`: how many directions carry the energy.
    pub stable_rank: f64,
    /// Share of the energy (squared Frobenius norm) that the listed values hold.
    pub energy: f64,
}

/// Computes the `rank` largest singular values of `values: [rows, columns]`, row-major. `None` for an empty matrix, one
/// that is not finite, or a length that does not fit.
///
/// # Cost
/// `2 (2 * 4 + 2) * rows * columns * (rank + 8)` operations on all threads. The first values are accurate to about a
/// thousandth; the last are underestimated when the spectrum is flat.
pub fn spectrum(values: &[f32], rows: usize, columns: usize, rank: usize) -> Option<Spectrum> {
    if rows == 0 || columns == 0 || rows.checked_mul(columns) != Some(values.len()) || rank == 0 {
        return None;
    }
    let energy: f64 = values.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    if !energy.is_finite() {
        return None;
    }
    let rank = rank.min(RANK_MAX).min(rows).min(columns);
    let width = (rank + OVERSAMPLING).min(rows).min(columns);
    let mut right = sketch(columns, width);
    let mut left = Vec::new();
    for _ in 0..=ITERATIONS {
        left = times(values, columns, &right);
        orthonormalize(&mut left);
        right = transposed_times(values, columns, &left);
        // The last pass keeps the lengths: they are the singular values.
    }
    let gram: Vec<Vec<f64>> = right.iter().map(|a| right.iter().map(|b| dot(a, b)).collect()).collect();
    let mut singular_values: Vec<f64> = eigenvalues(gram).into_iter().map(|value| value.max(0.0).sqrt()).collect();
    singular_values.sort_unstable_by(|a, b| b.total_cmp(a));
    singular_values.truncate(rank);
    debug_assert_eq!(left.len(), width);
    let first = singular_values.first().copied().unwrap_or(0.0);
    let held: f64 = singular_values.iter().map(|value| value * value).sum();
    Some(Spectrum {
        stable_rank: if first > 0.0 { energy / (first * first) } else { 0.0 },
        energy: if energy > 0.0 { (held / energy).min(1.0) } else { 0.0 },
        singular_values,
    })
}

/// Random numbers in -1..1 from a fixed generator (SplitMix64), so that a probe repeats.
fn sketch(length: usize, width: usize) -> Vec<Vec<f64>> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut random = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    };
    (0..width).map(|_| (0..length).map(|_| random()).collect()).collect()
}

/// `A x` for each vector.
fn times(values: &[f32], columns: usize, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    vectors
        .par_iter()
        .map(|vector| {
            values
                .chunks_exact(columns)
                .map(|row| row.iter().zip(vector).map(|(&a, &x)| f64::from(a) * x).sum())
                .collect()
        })
        .collect()
}

/// `A^T x` for each vector.
fn transposed_times(values: &[f32], columns: usize, vectors: &[Vec<f64>]) -> Vec<Vec<f64>> {
    vectors
        .par_iter()
        .map(|vector| {
            let mut out = vec![0.0; columns];
            for (row, &x) in values.chunks_exact(columns).zip(vector) {
                for (sum, &a) in out.iter_mut().zip(row) {
                    *sum += f64::from(a) * x;
                }
            }
            out
        })
        .collect()
}

/// Modified Gram-Schmidt, twice, because once loses orthogonality when vectors are nearly parallel. Vectors that vanish
/// become zero, which adds singular values of zero and nothing else.
fn orthonormalize(vectors: &mut [Vec<f64>]) {
    for index in 0..vectors.len() {
        let (done, rest) = vectors.split_at_mut(index);
        let vector = &mut rest[0];
        let before = dot(vector, vector).sqrt();
        for _ in 0..2 {
            for other in done.iter() {
                let overlap = dot(vector, other);
                for (value, &basis) in vector.iter_mut().zip(other) {
                    *value -= overlap * basis;
                }
            }
        }
        let norm = dot(vector, vector).sqrt();
        let scale = if norm > before * 1e-12 { 1.0 / norm } else { 0.0 };
        for value in vector.iter_mut() {
            *value *= scale;
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

/// Eigenvalues of a small symmetric matrix by cyclic Jacobi rotations (Golub and Van Loan, algorithm 8.5.3).
fn eigenvalues(mut matrix: Vec<Vec<f64>>) -> Vec<f64> {
    const SWEEPS_MAX: usize = 30;
    let size = matrix.len();
    for _ in 0..SWEEPS_MAX {
        let off: f64 = (0..size).flat_map(|p| (0..p).map(move |q| (p, q))).map(|(p, q)| matrix[p][q].powi(2)).sum();
        let diagonal: f64 = (0..size).map(|p| matrix[p][p].powi(2)).sum();
        if off <= diagonal * 1e-24 {
            break;
        }
        for p in 0..size {
            for q in p + 1..size {
                if matrix[p][q] == 0.0 {
                    continue;
                }
                let theta = (matrix[q][q] - matrix[p][p]) / (2.0 * matrix[p][q]);
                let tangent = theta.signum() / (theta.abs() + theta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = tangent * cosine;
                for row in &mut matrix {
                    let (a, b) = (row[p], row[q]);
                    row[p] = cosine * a - sine * b;
                    row[q] = sine * a + cosine * b;
                }
                let (above, below) = matrix.split_at_mut(q);
                for (first, second) in above[p].iter_mut().zip(&mut below[0]) {
                    let (a, b) = (*first, *second);
                    *first = cosine * a - sine * b;
                    *second = sine * a + cosine * b;
                }
            }
        }
    }
    (0..size).map(|index| matrix[index][index]).collect()
}
