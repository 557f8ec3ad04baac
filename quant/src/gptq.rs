//! GPTQ: rounds the weights of a layer one input at a time, and moves each rounding error onto the inputs that come after, by
//! the curvature of the layer's own squared error (Frantar et al., "GPTQ", algorithm 1).
//!
//! ```text
//! U = upper Cholesky factor of (H + damping)^-1
//! for each input i:  error = (w[i] - rounded(w[i])) / U[i, i];   w[j] -= error * U[i, j] for j > i
//! ```

use rayon::prelude::*;

use crate::calibrate::Hessian;
use crate::codec::pack::pack;
use crate::codec::{CodecError, Granularity, Params, Quantized, Spec, decode_one, encode_one, fit_group};
use crate::dispatch::Path;
use crate::linalg::{cholesky, invert_lower, transpose};
use half::f16;

/// Share of the mean curvature that is added to the diagonal, as in the paper.
pub const DAMPING: f64 = 0.01;
/// Inputs whose errors are moved one by one before the rest is updated at once.
const BLOCK: usize = 128;
/// How often the damping is raised tenfold when the matrix is not positive definite.
const DAMPING_TRIES: u32 = 6;

/// Why a layer was not quantised.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GptqError {
    /// The weights or the format were refused.
    #[error("weights could not be quantised")]
    Codec(#[from] CodecError),
    /// The Hessian is of another number of inputs.
    #[error("hessian of {hessian} inputs, the layer has {inputs}")]
    Inputs {
        /// Its inputs.
        hessian: usize,
        /// The layer's.
        inputs: usize,
    },
    /// Scales must be found along a row.
    #[error("gptq rounds along rows, scales must be by output or by group")]
    Granularity,
    /// The Hessian is not positive definite, with any damping.
    #[error("hessian is not positive definite, even with a damping of {damping}")]
    Hessian {
        /// The largest that was tried.
        damping: f64,
    },
}

/// Quantises weights `[outputs, inputs]` so that the layer's outputs on the calibration data change least.
///
/// The order of inputs is kept, so that groups stay runs of the row. Inputs that no calibration token used are rounded
/// plainly. Costs `inputs^3 + outputs * inputs^2` multiplications.
pub fn gptq(
    weights: &[f32],
    outputs: usize,
    inputs: usize,
    spec: Spec,
    hessian: &Hessian,
    damping: f64,
) -> Result<Quantized, GptqError> {
    spec.validate()?;
    if hessian.inputs() != inputs {
        return Err(GptqError::Inputs { hessian: hessian.inputs(), inputs });
    }
    let group = match spec.granularity {
        Granularity::Group(size) => size as usize,
        Granularity::OutChannel => inputs.max(1),
        Granularity::Tensor | Granularity::InChannel => return Err(GptqError::Granularity),
    };
    if outputs.checked_mul(inputs) != Some(weights.len()) {
        return Err(CodecError::Shape { rows: outputs, columns: inputs, values: weights.len() }.into());
    }
    if let Some(index) = weights.iter().position(|value| !value.is_finite()) {
        return Err(CodecError::NotFinite { index }.into());
    }
    if weights.is_empty() {
        return Ok(Quantized::quantize(weights, outputs, inputs, spec, 1)?);
    }
    let upper = inverse_factor(hessian, damping)?;
    let row_bytes = spec.row_bytes(inputs);
    let rows: Vec<Row> = weights
        .par_chunks(inputs)
        .enumerate()
        .map(|(row, weights)| {
            one_row(weights, spec, group, &upper).map_err(|error| at_row(error, row, inputs.div_ceil(group)))
        })
        .collect::<Result<_, _>>()?;
    let mut codes = vec![0; outputs * row_bytes];
    for (row, bytes) in rows.iter().zip(codes.chunks_mut(row_bytes)) {
        pack(&row.codes, spec.width.bits(), bytes);
    }
    let scales = rows.iter().flat_map(|row| row.params.iter().map(|params| f16::from_f32(params.scale))).collect();
    let minimums = match spec.scheme {
        crate::codec::Scheme::Symmetric => Vec::new(),
        crate::codec::Scheme::ScaleMin => {
            rows.iter().flat_map(|row| row.params.iter().map(|params| f16::from_f32(params.minimum))).collect()
        }
    };
    Ok(Quantized::from_parts(spec, outputs, inputs, codes, scales, minimums)?)
}

struct Row {
    codes: Vec<u8>,
    params: Vec<Params>,
}

fn at_row(error: CodecError, row: usize, groups: usize) -> CodecError {
    match error {
        CodecError::ScaleRange { index } => CodecError::ScaleRange { index: row * groups + index },
        other => other,
    }
}

/// The upper Cholesky factor of the inverse of the damped Hessian, row by row.
fn inverse_factor(hessian: &Hessian, damping: f64) -> Result<Vec<f64>, GptqError> {
    let size = hessian.inputs();
    let mean = (0..size).map(|input| hessian.get(input, input)).sum::<f64>() / size as f64;
    let mut damping = damping.max(1e-9);
    for _ in 0..DAMPING_TRIES {
        let mut matrix = hessian.matrix();
        let added = if mean > 0.0 { damping * mean } else { 1.0 };
        for input in 0..size {
            matrix[input * size + input] += added;
        }
        if let Some(upper) = factor_of_inverse(matrix, size) {
            return Ok(upper);
        }
        damping *= 10.0;
    }
    Err(GptqError::Hessian { damping: damping / 10.0 })
}

/// With `H = L L^T`, the inverse is `M^T M` for `M = L^-1`; its own lower factor is found by Cholesky, and transposed.
fn factor_of_inverse(mut matrix: Vec<f64>, size: usize) -> Option<Vec<f64>> {
    cholesky(&mut matrix, size)?;
    let inverse_lower = invert_lower(&matrix, size);
    let columns = transpose(&inverse_lower, size);
    let mut inverse = matrix;
    inverse.par_chunks_mut(size).enumerate().for_each(|(row, out)| {
        for (column, value) in out.iter_mut().enumerate() {
            let start = row.max(column);
            *value = crate::linalg::dot(
                &columns[row * size + start..][..size - start],
                &columns[column * size + start..][..size - start],
            );
        }
    });
    cholesky(&mut inverse, size)?;
    let mut upper = transpose(&inverse, size);
    for row in 1..size {
        upper[row * size..row * size + row].fill(0.0);
    }
    Some(upper)
}

fn one_row(weights: &[f32], spec: Spec, group: usize, upper: &[f64]) -> Result<Row, CodecError> {
    let inputs = weights.len();
    let grid = spec.grid();
    let mut row: Vec<f32> = weights.to_vec();
    let mut codes = vec![0; inputs];
    let mut params = Vec::with_capacity(inputs.div_ceil(group));
    let mut errors = [0.0_f32; BLOCK];
    for block in (0..inputs).step_by(BLOCK) {
        let block_end = (block + BLOCK).min(inputs);
        for input in block..block_end {
            if input % group == 0 {
                let end = (input + group).min(inputs);
                let index = params.len();
                // The group's weights as they stand, with the errors moved so far; later parts of a group that is longer
                // than the block still lack this block's.
                let found = fit_group(Path::best(), &row[input..end], spec).ok_or(CodecError::ScaleRange { index })?;
                if !found.scale.is_finite() || !found.minimum.is_finite() {
                    return Err(CodecError::ScaleRange { index });
                }
                params.push(found);
            }
            let current = params[params.len() - 1];
            let value = row[input];
            codes[input] = encode_one(value, current.minimum, current.inverse(), grid);
            let factors = &upper[input * inputs..(input + 1) * inputs];
            let error = (value - decode_one(codes[input], current, spec)) / factors[input] as f32;
            errors[input - block] = error;
            for (weight, factor) in row[input + 1..block_end].iter_mut().zip(&factors[input + 1..block_end]) {
                *weight -= error * *factor as f32;
            }
        }
        for (offset, error) in errors[..block_end - block].iter().enumerate() {
            let factors = &upper[(block + offset) * inputs..(block + offset + 1) * inputs];
            for (weight, factor) in row[block_end..].iter_mut().zip(&factors[block_end..]) {
                *weight -= error * *factor as f32;
            }
        }
    }
    Ok(Row { codes, params })
}
