//! Low-rank adapters (LoRA, Hu et al. 2021) beside the frozen weights of every linear layer.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::backbone::BackboneConfig;

/// Rank of new adapters: about 1% of the parameters of the base model.
pub const RANK: i64 = 4;

/// The scale of an update is `ALPHA / rank`; with the rank above it is 2, as is common for small ranks.
pub const ALPHA: f64 = 8.0;

/// An adapter file may not claim a larger rank: it is checked before allocation.
pub const RANK_MAX: i64 = 64;

/// The four linear layers of a block; each may be several projections side by side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Queries, keys and values.
    Qkv,
    /// Attention's output.
    Output,
    /// Gate and up projection.
    GateUp,
    /// Down projection.
    Down,
}

impl Slot {
    /// All slots, in the order of an adapter file.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qkv => "qkv",
            Self::Output => "output",
            Self::GateUp => "gate_up",
            Self::Down => "down",
        }
    }

    /// The input width and the width of each projection side by side.
    pub fn widths(self, config: &BackboneConfig) -> (i64, Vec<i64>) {
        let (queries, keys) = (config.heads * config.head, config.kv_heads * config.head);
        match self {
            Self::Qkv => (config.hidden, vec![queries, keys, keys]),
            Self::Output => (queries, vec![config.hidden]),
            Self::GateUp if config.gated => (config.hidden, vec![config.feed_forward; 2]),
            Self::GateUp => (config.hidden, vec![config.feed_forward]),
            Self::Down => (config.feed_forward, vec![config.hidden]),
        }
    }
}

/// The update of one linear layer: for each projection `scale * B A`, with `A` stacked.
#[derive(Debug)]
pub struct LowRank {
    /// `[projections * rank, input] f32`.
    pub a: Tensor,
    /// For each projection `[output, rank] f32`.
    pub b: Vec<Tensor>,
    rank: i64,
}

impl LowRank {
    /// Wraps factors that were read or made elsewhere.
    pub fn new(a: Tensor, b: Vec<Tensor>) -> Result<Self> {
        let rank = b.first().and_then(|b| b.size().get(1).copied()).unwrap_or(0);
        let stacked = a.size().first().copied().unwrap_or(0);
        if !(1..=RANK_MAX).contains(&rank) || stacked != rank * b.len() as i64 {
            return Err(ModelError::load("adapter", format!("rank {rank} does not fit {stacked} stacked rows")));
        }
        Ok(Self { a, b, rank })
    }

    /// The update of the layer's output, without the scale.
    ///
    /// # Shapes
    /// `x: [length, input]` -> `[length, outputs] kind`.
    pub(crate) fn forward(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        let down = x.f_linear(&self.a.f_to_kind(kind)?, None::<&Tensor>)?;
        let mut parts = Vec::with_capacity(self.b.len());
        for (own, b) in down.f_split(self.rank, 1)?.iter().zip(&self.b) {
            parts.push(own.f_linear(&b.f_to_kind(kind)?, None::<&Tensor>)?);
        }
        if parts.len() == 1 {
            return parts.pop().ok_or_else(|| ModelError::load("adapter", "it has no projection"));
        }
        Ok(Tensor::f_cat(&parts, 1)?)
    }
}

/// Which rows of a window an adapter changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Reach {
    /// All of them.
    #[default]
    Everywhere,
    /// Only those that are being unmasked: what reads left to right computes what the base computes, bit for bit.
    Undecided,
}

impl Reach {
    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Everywhere => "everywhere",
            Self::Undecided => "undecided",
        }
    }
}

/// Low-rank updates of all layers, bound to one base model.
#[derive(Debug)]
pub struct Adapter {
    /// For each layer the four slots.
    pub layers: Vec<[LowRank; 4]>,
    /// Factor on all updates; the forgetting gate bisects it. 1 is as trained.
    pub strength: f64,
    /// Which rows it changes.
    pub reach: Reach,
    /// What is added to the embedding of the mask token. `[hidden] f32`.
    pub mask: Option<Tensor>,
}

/// The update of one layer in one evaluation.
#[derive(Debug, Clone)]
pub struct Update<'a> {
    /// The factors.
    pub factors: &'a LowRank,
    /// What multiplies them.
    pub scale: f64,
    /// The rows that are changed.
    pub rows: Range<i64>,
}

impl Adapter {
    /// A new adapter whose updates are zero: `A` is drawn, `B` is zero (Hu et al. 2021, section 4.1).
    ///
    /// `uniform` draws numbers in `[0, 1)`; the caller seeds it.
    pub fn zeroed(
        config: &BackboneConfig,
        rank: i64,
        device: Device,
        mut uniform: impl FnMut() -> f64,
    ) -> Result<Self> {
        let mut layers = Vec::with_capacity(config.layers);
        for _ in 0..config.layers {
            let mut slot = |slot: Slot| -> Result<LowRank> {
                let (input, outputs) = slot.widths(config);
                let rows = rank * outputs.len() as i64;
                // Kaiming-uniform with a = sqrt(5): the bound is 1 / sqrt(input).
                let bound = 1.0 / (input as f64).sqrt();
                let values: Vec<f32> = (0..rows * input).map(|_| ((uniform() * 2.0 - 1.0) * bound) as f32).collect();
                let a = Tensor::f_from_slice(&values)?.f_view([rows, input])?.f_to_device(device)?;
                let zeros = |out: &i64| Ok(Tensor::f_zeros([*out, rank], (Kind::Float, device))?);
                LowRank::new(a, outputs.iter().map(zeros).collect::<Result<_>>()?)
            };
            layers.push([slot(Slot::Qkv)?, slot(Slot::Output)?, slot(Slot::GateUp)?, slot(Slot::Down)?]);
        }
        Ok(Self { layers, strength: 1.0, reach: Reach::Everywhere, mask: None })
    }

    /// A new adapter for masked diffusion: it changes only what is being unmasked, and learns an embedding of the mask.
    /// Its updates are scaled by 1 whatever the rank.
    pub fn for_diffusion(
        config: &BackboneConfig,
        rank: i64,
        device: Device,
        uniform: impl FnMut() -> f64,
    ) -> Result<Self> {
        let mask = Some(Tensor::f_zeros([config.hidden], (Kind::Float, device))?);
        let strength = rank as f64 / ALPHA;
        Ok(Self { strength, reach: Reach::Undecided, mask, ..Self::zeroed(config, rank, device, uniform)? })
    }

    /// The same adapter with this strength in its weights: one factor of each pair is multiplied, and the strength is 1.
    pub fn into_full_strength(self, factor: f64) -> Result<Self> {
        let factor = self.strength * factor;
        for slots in &self.layers {
            for b in slots.iter().flat_map(|low_rank| &low_rank.b) {
                let _ = b.shallow_clone().f_mul_scalar_(factor)?;
            }
        }
        Ok(Self { strength: 1.0, ..self })
    }

    /// The factor that multiplies every update.
    pub(crate) fn scale(&self) -> f64 {
        let rank = self.layers.first().map_or(RANK, |slots| slots[0].rank);
        self.strength * ALPHA / rank as f64
    }

    /// All factors with their names, in the order of an adapter file.
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        let mut all = Vec::new();
        for (layer, slots) in self.layers.iter().enumerate() {
            for (slot, low_rank) in Slot::ALL.iter().zip(slots) {
                all.push((format!("layers.{layer}.{}.a", slot.name()), &low_rank.a));
                for (index, b) in low_rank.b.iter().enumerate() {
                    all.push((format!("layers.{layer}.{}.b{index}", slot.name()), b));
                }
            }
        }
        if let Some(mask) = &self.mask {
            all.push(("mask".into(), mask));
        }
        all
    }

    /// How many numbers it trains.
    pub fn parameters(&self) -> u64 {
        self.named().iter().map(|(_, tensor)| tensor.numel() as u64).sum()
    }
}
