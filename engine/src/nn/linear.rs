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

    /// Applies the layer and, when there is one, an adapter's update times `scale`.
    ///
    /// # Shapes
    /// `x: [length, input] kind` -> `[length, output] kind`.
    pub fn forward(&self, x: &Tensor, update: Option<(&LowRank, f64)>, kind: Kind) -> Result<Tensor> {
        let base = x.f_linear(&self.weight, self.bias.as_ref())?;
        match update {
            Some((low_rank, scale)) => Ok(base.f_add(&low_rank.forward(x, kind)?.f_mul_scalar(scale)?)?),
            None => Ok(base),
        }
    }
}
