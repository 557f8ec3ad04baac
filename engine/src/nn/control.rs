//! A control network (L1): a narrow stream beside the frozen base that reads every block and adds to the residual stream through
//! matrices that start at zero (ControlNet, Zhang et al. 2023, arXiv 2302.05543; the side stream of ladder tuning, Sung et al. 2022).
//!
//! With zero matrices the base is what it was, bit for bit.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::nn::backbone::BackboneConfig;

/// Width of the side stream of new control networks.
pub const WIDTH: i64 = 64;
/// A file may not claim a wider one: it is checked before allocation.
pub const WIDTH_MAX: i64 = 4_096;

/// What the side stream does at one block.
#[derive(Debug)]
pub struct Control {
    /// `[width, hidden] f32`: reads the block's output.
    pub read: Tensor,
    /// `[width, width] f32`: mixes the side stream.
    pub mix: Tensor,
    /// `[hidden, width] f32`: writes into the residual stream; zero at first.
    pub write: Tensor,
}

/// A control network.
#[derive(Debug, Default)]
pub struct ControlNet {
    /// One for each block of the base.
    pub blocks: Vec<Control>,
}

impl ControlNet {
    /// A new one that changes nothing; `uniform` draws numbers in `[0, 1)`.
    pub fn zeroed(config: &BackboneConfig, device: Device, mut uniform: impl FnMut() -> f64) -> Result<Self> {
        let mut matrix = |rows: i64, columns: i64| -> Result<Tensor> {
            let bound = 1.0 / (columns as f64).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| ((uniform() * 2.0 - 1.0) * bound) as f32).collect();
            Ok(Tensor::f_from_slice(&values)?.f_view([rows, columns])?.f_to_device(device)?)
        };
        let mut blocks = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            blocks.push(Control {
                read: matrix(WIDTH, config.hidden)?,
                mix: matrix(WIDTH, WIDTH)?,
                write: Tensor::f_zeros([config.hidden, WIDTH], (Kind::Float, device))?,
            });
        }
        Ok(Self { blocks })
    }

    /// One step of the side stream behind a block: gives the residual stream with its share, and the side stream.
    ///
    /// `side' = side + silu((side + norm(x) read^T) mix^T)`, `x' = x + strength * side' write^T`; the norm is an RMS norm
    /// without weights.
    ///
    /// # Shapes
    /// `x: [length, hidden] f32`, `side: [length, width] f32` or nothing before the first block.
    pub(crate) fn step(
        &self,
        block: usize,
        x: &Tensor,
        side: Option<&Tensor>,
        strength: f64,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let Some(control) = self.blocks.get(block) else {
            return Ok((x.shallow_clone(), side.map(Tensor::shallow_clone)));
        };
        let hidden = x.size().get(1).copied().unwrap_or(0);
        let seen = x.f_rms_norm([hidden], None::<&Tensor>, NORM_EPSILON)?.f_linear(&control.read, None::<&Tensor>)?;
        let input = match side {
            Some(side) => side.f_add(&seen)?,
            None => seen,
        };
        let change = input.f_linear(&control.mix, None::<&Tensor>)?.f_silu()?;
        let side = match side {
            Some(side) => side.f_add(&change)?,
            None => change,
        };
        let share = side.f_linear(&control.write, None::<&Tensor>)?.f_mul_scalar(strength)?;
        Ok((x.f_add(&share)?, Some(side)))
    }
}

/// Added to the mean square in the side stream's norm.
const NORM_EPSILON: f64 = 1e-5;
