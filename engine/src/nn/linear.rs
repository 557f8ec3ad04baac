//! Linear layers whose weights are dense or packed by ArrowQuant.

use mneme_engine_api::EngineError;
use mneme_quant::{PackedWeights, gemm};
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::adapter::Update;

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

    /// The gradient of the input, given that of the output; dense layers only.
    ///
    /// # Shapes
    /// `gradient: [length, output] kind` -> `[length, input] kind`.
    pub(crate) fn backward(&self, gradient: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::Dense(weight) => Ok(gradient.f_matmul(weight)?),
            Weight::Packed { .. } => Err(ModelError::load("linear layer", "no gradient passes packed weights")),
        }
    }

    /// Applies the layer and adds the updates of adapters, each times its scale, to the rows that they reach.
    ///
    /// # Shapes
    /// `x: [length, input] kind` -> `[length, output] kind`.
    pub fn forward(&self, x: &Tensor, updates: &[Update<'_>], kind: Kind) -> Result<Tensor> {
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
        let length = x.size().first().copied().unwrap_or(0);
        for Update { factors, scale, rows } in updates.iter().filter(|update| !update.rows.is_empty()) {
            if *rows == (0..length) {
                y = y.f_add(&scaled(factors.forward(x, kind)?, *scale)?)?;
                continue;
            }
            let (count, after) = (rows.end - rows.start, length - rows.end);
            let change = scaled(factors.forward(&x.f_narrow(0, rows.start, count)?, kind)?, *scale)?;
            let changed = y.f_narrow(0, rows.start, count)?.f_add(&change)?;
            y = Tensor::f_cat(&[y.f_narrow(0, 0, rows.start)?, changed, y.f_narrow(0, rows.end, after)?], 0)?;
        }
        Ok(y)
    }
}

/// Times a scale that is often 1.
fn scaled(change: Tensor, scale: f64) -> Result<Tensor> {
    #[expect(clippy::float_cmp, reason = "exactly 1 changes nothing")]
    let is_one = scale == 1.0;
    if is_one { Ok(change) } else { Ok(change.f_mul_scalar(scale)?) }
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
