//! Linear layers whose weights are dense or packed by ArrowQuant.

use mneme_engine_api::EngineError;
use mneme_quant::{PackedWeights, gemm};
use tch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::adapter::LowRank;

/// A linear layer: `y = x W^T + bias`.
#[derive(Debug)]
pub struct Linear {
    weight: Weight,
    /// `[output]` in the compute kind.
    bias: Option<Tensor>,
}

#[derive(Debug)]
enum Weight {
    /// `[output, input]` in the compute kind.
    Dense(Tensor),
    /// Integer codes; activations are quantised for each token. No gradient passes through.
    Packed { codes: PackedWeights, threads: usize },
}

impl Linear {
    /// A layer with plain weights.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight: Weight::Dense(weight), bias }
    }

    /// A layer with packed weights, multiplied by so many threads. Its activations are f32.
    pub fn packed(codes: PackedWeights, bias: Option<Tensor>, threads: usize) -> Self {
        Self { weight: Weight::Packed { codes, threads }, bias }
    }

    /// Whether gradients pass through it.
    pub fn is_dense(&self) -> bool {
        matches!(self.weight, Weight::Dense(_))
    }

    /// Applies the layer and adds the updates of adapters, each times its scale.
    ///
    /// # Shapes
    /// `x: [length, input] kind` -> `[length, output] kind`.
    pub fn forward(&self, x: &Tensor, updates: &[(&LowRank, f64)], kind: Kind) -> Result<Tensor> {
        let mut y = match &self.weight {
            Weight::Dense(weight) => x.f_linear(weight, self.bias.as_ref())?,
            Weight::Packed { codes, threads } => {
                let y = multiply(codes, x, *threads)?;
                match &self.bias {
                    Some(bias) => y.f_add(bias)?,
                    None => y,
                }
            }
        };
        for (low_rank, scale) in updates {
            y = y.f_add(&low_rank.forward(x, kind)?.f_mul_scalar(*scale)?)?;
        }
        Ok(y)
    }
}

/// Copies the activations out of libtorch and the product back in: two copies of what is small beside the weights.
fn multiply(codes: &PackedWeights, x: &Tensor, threads: usize) -> Result<Tensor> {
    let rows = x.size().first().copied().unwrap_or(0) as usize;
    let mut activations = vec![0.0_f32; x.numel()];
    x.f_contiguous()?.f_copy_data(&mut activations, x.numel())?;
    let mut out = vec![0.0_f32; rows * codes.outputs()];
    gemm(codes, &activations, rows, &mut out, threads)
        .map_err(|error| EngineError::Internal { reason: format!("packed product failed: {error}") })?;
    Ok(Tensor::f_from_slice(&out)?.f_view([rows as i64, codes.outputs() as i64])?)
}
