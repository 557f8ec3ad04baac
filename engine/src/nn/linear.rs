//! Linear layers whose weights are dense or packed by ArrowQuant.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::nn::adapter::LowRank;

/// A linear layer: `y = x W^T + bias`.
#[derive(Debug)]
pub struct Linear {
    /// `[output, input]` in the compute kind.
    weight: Tensor,
    /// `[output]` in the compute kind.
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer with plain weights.
    pub fn dense(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// Applies the layer and adds the updates of adapters, each times its scale.
    ///
    /// # Shapes
    /// `x: [length, input] kind` -> `[length, output] kind`.
    pub fn forward(&self, x: &Tensor, updates: &[(&LowRank, f64)], kind: Kind) -> Result<Tensor> {
        let mut y = x.f_linear(&self.weight, self.bias.as_ref())?;
        for (low_rank, scale) in updates {
            y = y.f_add(&low_rank.forward(x, kind)?.f_mul_scalar(*scale)?)?;
        }
        Ok(y)
    }
}
