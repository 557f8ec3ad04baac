//! Rotary position embedding (Su et al. 2021), in the half-split layout that Llama checkpoints on PyTorch use.

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};

/// Cosines and sines of every position, computed once.
#[derive(Debug)]
pub struct Rope {
    /// `[positions, head] f32`, the halves repeated.
    cosine: Tensor,
    /// `[positions, head] f32`, the first half negated: it multiplies the swapped halves.
    sine: Tensor,
    head: i64,
    positions: i64,
}

/// The rows of [`Rope`] that one window needs.
#[derive(Debug)]
pub struct Rotation {
    cosine: Tensor,
    sine: Tensor,
    half: i64,
}

impl Rope {
    /// Tabulates `positions` positions. Angles are computed in f64: f32 loses digits at large positions.
    pub fn new(positions: i64, head: i64, theta: f64, device: Device) -> Result<Self> {
        let half = head / 2;
        let mut cosine = Vec::with_capacity((positions * head) as usize);
        let mut sine = Vec::with_capacity((positions * head) as usize);
        for position in 0..positions {
            let angle = |i: i64| position as f64 * theta.powf(-2.0 * (i % half) as f64 / head as f64);
            cosine.extend((0..head).map(|i| angle(i).cos() as f32));
            sine.extend((0..head).map(|i| if i < half { -angle(i).sin() } else { angle(i).sin() } as f32));
        }
        let table = |values: &[f32]| -> Result<Tensor> {
            Ok(Tensor::f_from_slice(values)?.f_view([positions, head])?.f_to_device(device)?)
        };
        Ok(Self { cosine: table(&cosine)?, sine: table(&sine)?, head, positions })
    }

    /// Picks the rows of a window.
    pub fn at(&self, positions: &[i64]) -> Result<Rotation> {
        if let Some(bad) = positions.iter().find(|p| !(0..self.positions).contains(*p)) {
            return Err(ModelError::load("window", format!("position {bad} is outside 0..{}", self.positions)));
        }
        let index = Tensor::f_from_slice(positions)?.f_to_device(self.cosine.device())?;
        Ok(Rotation {
            cosine: self.cosine.f_index_select(0, &index)?.f_unsqueeze(1)?,
            sine: self.sine.f_index_select(0, &index)?.f_unsqueeze(1)?,
            half: self.head / 2,
        })
    }
}

impl Rotation {
    /// Rotates every head.
    ///
    /// # Shapes
    /// `x: [length, heads, head]` of any kind -> the same shape and kind; the arithmetic is f32.
    pub fn apply(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let swapped = x.f_roll([self.half], [-1])?;
        let rotated = x.f_mul(&self.cosine)?.f_addcmul(&swapped, &self.sine)?;
        Ok(if kind == Kind::Float { rotated } else { rotated.f_to_kind(kind)? })
    }
}
