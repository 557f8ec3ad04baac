//! The little dense linear algebra that GPTQ needs, on square matrices row by row in 64 bits.

use rayon::prelude::*;

/// The lower Cholesky factor of a symmetric positive definite matrix, in place of its lower half; None when it is not one.
///
/// Costs `size^3 / 3` multiplications.
pub(crate) fn cholesky(matrix: &mut [f64], size: usize) -> Option<()> {
    for column in 0..size {
        let (above, rest) = matrix.split_at_mut(column * size);
        let (row, below) = rest.split_at_mut(size);
        let _ = above;
        let pivot = row[column] - dot(&row[..column], &row[..column]);
        if !(pivot > 0.0 && pivot.is_finite()) {
            return None;
        }
        let root = pivot.sqrt();
        row[column] = root;
        let row = &*row;
        below.par_chunks_mut(size).with_min_len(32).for_each(|other| {
            other[column] = (other[column] - dot(&other[..column], &row[..column])) / root;
        });
    }
    Some(())
}

/// The inverse of a lower triangular matrix, as a lower triangular matrix; the upper half of the result is zero.
pub(crate) fn invert_lower(lower: &[f64], size: usize) -> Vec<f64> {
    // Column `c` of the inverse, by forward substitution; stored as a row, so that the inner loops run along memory.
    let mut transposed = vec![0.0; size * size];
    transposed.par_chunks_mut(size.max(1)).enumerate().for_each(|(column, out)| {
        out[column] = 1.0 / lower[column * size + column];
        for row in column + 1..size {
            let sum = dot(&lower[row * size + column..row * size + row], &out[column..row]);
            out[row] = -sum / lower[row * size + row];
        }
    });
    transpose(&transposed, size)
}

/// The transposed matrix.
pub(crate) fn transpose(matrix: &[f64], size: usize) -> Vec<f64> {
    let mut out = vec![0.0; matrix.len()];
    for row in 0..size {
        for column in 0..size {
            out[column * size + row] = matrix[row * size + column];
        }
    }
    out
}

/// A dot product in eight lanes, which the compiler may keep in vectors.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left.zip(right) {
        for lane in 0..8 {
            lanes[lane] += a[lane] * b[lane];
        }
    }
    lanes.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_factor_times_its_transpose_is_the_matrix_and_its_inverse_undoes_it() {
        let size = 37;
        let root: Vec<f64> = (0..size * size).map(|i| ((i * 7919 % 101) as f64 - 50.0) / 50.0).collect();
        let mut matrix = vec![0.0; size * size];
        for row in 0..size {
            for column in 0..size {
                matrix[row * size + column] = dot(&root[row * size..][..size], &root[column * size..][..size]);
            }
            matrix[row * size + row] += 1.0;
        }
        let mut lower = matrix.clone();
        cholesky(&mut lower, size).unwrap();
        let inverse = invert_lower(&lower, size);
        for row in 0..size {
            for column in 0..=row {
                let product = dot(&lower[row * size..][..=column], &lower[column * size..][..=column]);
                assert!((product - matrix[row * size + column]).abs() < 1e-9);
                let unit: f64 = (column..=row).map(|k| lower[row * size + k] * inverse[k * size + column]).sum();
                assert!((unit - f64::from(u8::from(row == column))).abs() < 1e-9);
            }
        }
        assert!(cholesky(&mut [-1.0], 1).is_none());
    }
}
