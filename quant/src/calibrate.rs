//! What calibration data says of a layer: the curvature of its error, and the ranges of its activations.
//!
//! For masked diffusion models calibrate on partly masked text (a visible prefix, the rest masked at a uniform grid of mask
//! ratios), and collect ranges by mask ratio rather than by step: few-step sampling visits few steps, but any ratio.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::gemm::ActivationScaling;

/// Groups of mask ratios, unless told otherwise (Q-DiT's and our default).
pub const RATIO_GROUPS_DEFAULT: usize = 10;
/// Most inputs of a Hessian: 2 GiB of it.
pub const HESSIAN_INPUTS_MAX: usize = 1 << 14;

/// Why calibration data was refused.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CalibrateError {
    /// Too many inputs, or none.
    #[error("hessian of {inputs} inputs, must be 1 to {HESSIAN_INPUTS_MAX}")]
    Inputs {
        /// How many.
        inputs: usize,
    },
    /// Activations that are not rows of the layer's inputs.
    #[error("{values} activations are not rows of {inputs}")]
    Shape {
        /// Values given.
        values: usize,
        /// Inputs of the layer.
        inputs: usize,
    },
    /// An activation that is not a finite number.
    #[error("activation {index} is not finite")]
    NotFinite {
        /// Its index.
        index: usize,
    },
    /// A mask ratio outside of 0 to 1, or no groups at all.
    #[error("mask ratio {ratio} in {groups} groups, the ratio must be 0 to 1 and the groups 1 to 1000")]
    Ratio {
        /// The ratio.
        ratio: f64,
        /// The groups.
        groups: usize,
    },
}

/// The curvature of a linear layer's squared error: the mean of `2 x x^T` over the tokens seen.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Hessian {
    inputs: usize,
    tokens: u64,
    /// Sums of products, row by row; the lower half is filled.
    sums: Vec<f64>,
}

impl std::fmt::Debug for Hessian {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hessian").field("inputs", &self.inputs).field("tokens", &self.tokens).finish_non_exhaustive()
    }
}

impl Hessian {
    /// An empty one.
    pub fn new(inputs: usize) -> Result<Self, CalibrateError> {
        if inputs == 0 || inputs > HESSIAN_INPUTS_MAX {
            return Err(CalibrateError::Inputs { inputs });
        }
        Ok(Self { inputs, tokens: 0, sums: vec![0.0; inputs * inputs] })
    }

    /// Adds activations `[tokens, inputs]`, with every token's weight (1 for plain calibration). Nothing is added on an error.
    pub fn add(&mut self, activations: &[f32], weight: f64) -> Result<(), CalibrateError> {
        check(activations, self.inputs)?;
        let inputs = self.inputs;
        // Columns as rows, so that each entry is a dot product along memory.
        let tokens = activations.len() / inputs;
        let mut columns = vec![0.0_f32; activations.len()];
        for (token, row) in activations.chunks_exact(inputs).enumerate() {
            for (input, value) in row.iter().enumerate() {
                columns[input * tokens + token] = *value;
            }
        }
        let column = |input: usize| &columns[input * tokens..(input + 1) * tokens];
        self.sums.par_chunks_mut(inputs).enumerate().for_each(|(row, sums)| {
            for (other, sum) in sums[..=row].iter_mut().enumerate() {
                *sum += weight * dot(column(row), column(other));
            }
        });
        self.tokens += tokens as u64;
        Ok(())
    }

    /// Inputs of the layer.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Tokens seen.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// One entry.
    pub fn get(&self, row: usize, column: usize) -> f64 {
        let (row, column) = (row.max(column), row.min(column));
        2.0 * self.sums[row * self.inputs + column] / self.tokens.max(1) as f64
    }

    /// The whole symmetric matrix, row by row.
    pub(crate) fn matrix(&self) -> Vec<f64> {
        let size = self.inputs;
        (0..size * size).map(|index| self.get(index / size, index % size)).collect()
    }

    /// The layer's mean squared output error when its weights change by `difference` `[outputs, inputs]`:
    /// `difference H difference^T / 2`, summed over outputs.
    pub fn output_error(&self, difference: &[f32]) -> Result<f64, CalibrateError> {
        check(difference, self.inputs)?;
        let matrix = self.matrix();
        let error = |row: &[f32]| -> f64 {
            let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            matrix.chunks_exact(self.inputs).zip(&row).map(|(h, value)| value * crate::linalg::dot(h, &row)).sum()
        };
        Ok(difference.par_chunks(self.inputs).map(error).sum::<f64>() / 2.0)
    }
}

fn check(values: &[f32], inputs: usize) -> Result<(), CalibrateError> {
    if inputs == 0 || !values.len().is_multiple_of(inputs) {
        return Err(CalibrateError::Shape { values: values.len(), inputs });
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(CalibrateError::NotFinite { index }),
        None => Ok(()),
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut total = 0.0;
    for (a, b) in a.chunks(4096).zip(b.chunks(4096)) {
        let mut lanes = [0.0_f32; 16];
        for (a, b) in a.chunks(16).zip(b.chunks(16)) {
            for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
                *lane += a * b;
            }
        }
        total += lanes.iter().map(|lane| f64::from(*lane)).sum::<f64>();
    }
    total
}

/// Largest magnitudes of a layer's activations, by mask ratio.
///
/// The three arms of activation quantisation: [`Self::static_scaling`] is one scale for all, [`Self::grouped_scaling`] one
/// for each group of mask ratios, and [`ActivationScaling::PerToken`] needs no calibration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActivationRanges {
    largest: Vec<f32>,
    tokens: Vec<u64>,
}

impl ActivationRanges {
    /// An empty collector for this many groups of mask ratios; [`RATIO_GROUPS_DEFAULT`] is usual.
    pub fn new(groups: usize) -> Result<Self, CalibrateError> {
        if groups == 0 || groups > 1000 {
            return Err(CalibrateError::Ratio { ratio: 0.0, groups });
        }
        Ok(Self { largest: vec![0.0; groups], tokens: vec![0; groups] })
    }

    /// The group of a mask ratio: equal parts of 0 to 1, the upper ends excluded but for the last.
    pub fn group(&self, ratio: f64) -> Result<usize, CalibrateError> {
        let groups = self.largest.len();
        if !(0.0..=1.0).contains(&ratio) {
            return Err(CalibrateError::Ratio { ratio, groups });
        }
        Ok(((ratio * groups as f64) as usize).min(groups - 1))
    }

    /// Adds activations `[tokens, inputs]` that were seen at this mask ratio.
    pub fn add(&mut self, ratio: f64, activations: &[f32], inputs: usize) -> Result<(), CalibrateError> {
        let group = self.group(ratio)?;
        check(activations, inputs)?;
        self.largest[group] = activations.iter().fold(self.largest[group], |largest, value| largest.max(value.abs()));
        self.tokens[group] += (activations.len() / inputs) as u64;
        Ok(())
    }

    /// One scale for all mask ratios; per token while nothing was seen.
    pub fn static_scaling(&self) -> ActivationScaling {
        scaling(self.largest.iter().copied().fold(0.0, f32::max))
    }

    /// The scale for a mask ratio, from its own group; from all groups when its own saw nothing.
    pub fn grouped_scaling(&self, ratio: f64) -> Result<ActivationScaling, CalibrateError> {
        let group = self.group(ratio)?;
        Ok(if self.tokens[group] == 0 { self.static_scaling() } else { scaling(self.largest[group]) })
    }
}

fn scaling(largest: f32) -> ActivationScaling {
    let scale = largest / 127.0;
    if scale.is_normal() { ActivationScaling::Static(scale) } else { ActivationScaling::PerToken }
}
