//! Linear layers whose weights are dense or packed by ArrowQuant.

use mneme_quant::PackedWeights;
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::generator::rows_of;
use crate::nn::adapter::Update;
use crate::nn::plain::multiply_into;

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

    /// The same layer with a bias.
    pub fn with_bias(mut self, bias: Tensor) -> Result<Self> {
        self.bias = Some(bias);
        Ok(self)
    }

    /// Whether gradients pass through it.
    pub fn is_dense(&self) -> bool {
        matches!(self.weight, Weight::Dense(_))
    }

    /// Its packed weights; `None` for a dense layer.
    pub fn codes(&self) -> Option<&PackedWeights> {
        match &self.weight {
            Weight::Packed { codes, .. } => Some(codes),
            Weight::Dense(_) => None,
        }
    }

    /// Its bias.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// Applies the layer to rows and hands the numbers over; for packed weights without a detour through libtorch.
    ///
    /// # Shapes
    /// `x: [rows, input]` -> `[rows * output] f32`.
    pub fn rows(&self, x: &Tensor, kind: Kind) -> Result<Vec<f32>> {
        match (&self.weight, &self.bias) {
            (Weight::Packed { codes, threads }, None) => {
                let mut out = Vec::new();
                let rows = x.size().first().copied().unwrap_or(0) as usize;
                multiply_into(codes, &rows_of(x)?, rows, &mut out, *threads)?;
                Ok(out)
            }
            _ => rows_of(&self.forward(x, &[], kind)?.f_to_kind(Kind::Float)?),
        }
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
        for Update { change, scale, rows } in updates.iter().filter(|update| !update.rows.is_empty()) {
            if *rows == (0..length) {
                y = y.f_add(&scaled(change.forward(x, kind)?, *scale)?)?;
                continue;
            }
            let (count, after) = (rows.end - rows.start, length - rows.end);
            let added = scaled(change.forward(&x.f_narrow(0, rows.start, count)?, kind)?, *scale)?;
            let changed = y.f_narrow(0, rows.start, count)?.f_add(&added)?;
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
    let mut out = Vec::new();
    multiply_into(codes, &rows_of(x)?, rows, &mut out, threads)?;
    Ok(Tensor::f_from_slice(&out)?.f_view([rows as i64, codes.outputs() as i64])?)
}
