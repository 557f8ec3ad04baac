//! Normalisation, always in f32.

use tch::{Kind, Tensor};

use crate::error::Result;

/// Root-mean-square norm, or layer norm when it is centred.
#[derive(Debug)]
pub struct Norm {
    /// `[hidden] f32`.
    weight: Tensor,
    /// `[hidden] f32`.
    bias: Option<Tensor>,
    epsilon: f64,
    centred: bool,
}

impl Norm {
    /// RMSNorm (Zhang and Sennrich 2019): `x / sqrt(mean(x^2) + epsilon) * weight`.
    pub fn rms(weight: Tensor, epsilon: f64) -> Self {
        Self { weight, bias: None, epsilon, centred: false }
    }

    /// LayerNorm: `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
    pub fn layer(weight: Tensor, bias: Option<Tensor>, epsilon: f64) -> Self {
        Self { weight, bias, epsilon, centred: true }
    }

    /// Normalises each row and hands it over in `kind`.
    ///
    /// # Shapes
    /// `x: [length, hidden] f32` -> `[length, hidden] kind`.
    pub fn forward(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let shape = self.weight.size();
        let normed = if self.centred {
            x.f_layer_norm(shape, Some(&self.weight), self.bias.as_ref(), self.epsilon, false)?
        } else {
            x.f_rms_norm(shape, Some(&self.weight), self.epsilon)?
        };
        Ok(if kind == Kind::Float { normed } else { normed.f_to_kind(kind)? })
    }

    /// The learnt offset.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What is added to the variance.
    pub fn epsilon(&self) -> f64 {
        self.epsilon
    }

    /// Whether it is a layer norm.
    pub fn is_centred(&self) -> bool {
        self.centred
    }

    /// The learnt scale, for training and inspection.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }
}
