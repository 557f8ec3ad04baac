//! What adapts the frozen base: low-rank updates of every linear layer (LoRA, Hu et al. 2021), full updates of selected
//! layers, or a control network beside it.

use std::ops::Range;
use std::sync::OnceLock;

use mneme_engine_api::AdapterLevel;
use mneme_quant::floats::LowRankFactors;
use mneme_quant::{PackedWeights, Spec};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::generator::rows_of;
use crate::nn::backbone::BackboneConfig;
use crate::nn::control::ControlNet;
use crate::nn::visibility::Open;

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

/// Blocks that [`AdapterLevel::Layers`] trains: the last ones, which hold what is written rather than how.
pub const LAYERS_TRAINED: usize = 2;

/// Full updates of one block.
#[derive(Debug)]
pub struct Delta {
    /// Which block.
    pub block: usize,
    /// For each slot `[output, input] f32`, added to the frozen weights.
    pub slots: [Tensor; 4],
    /// The same in 8 bits, for networks on slices; made when they are first needed.
    packed: OnceLock<[PackedWeights; 4]>,
}

impl Delta {
    /// Wraps updates that were read or made elsewhere.
    pub fn new(block: usize, slots: [Tensor; 4]) -> Self {
        Self { block, slots, packed: OnceLock::new() }
    }

    /// The updates in 8 bits. An adapter that is trained must not be used through these.
    pub(crate) fn packed(&self, threads: usize) -> Result<&[PackedWeights; 4]> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let pack = |tensor: &Tensor| -> Result<PackedWeights> {
            let size = tensor.size();
            PackedWeights::from_f32(&rows_of(tensor)?, size[0] as usize, size[1] as usize, Spec::int8(), threads)
                .map_err(|error| ModelError::load("adapter", error.to_string()))
        };
        let [qkv, output, gate_up, down] = &self.slots;
        let made = [pack(qkv)?, pack(output)?, pack(gate_up)?, pack(down)?];
        Ok(self.packed.get_or_init(|| made))
    }
}

/// What is added to a linear layer, without its factor.
#[derive(Debug, Clone, Copy)]
pub enum Change<'a> {
    /// `x A^T B^T`.
    LowRank(&'a LowRank),
    /// `x D^T`.
    Full(&'a Tensor),
}

impl Change<'_> {
    /// What is added to the layer's output, without the scale.
    ///
    /// # Shapes
    /// `x: [length, input] kind` -> `[length, outputs] kind`.
    pub(crate) fn forward(&self, x: &Tensor, kind: Kind) -> Result<Tensor> {
        match self {
            Self::LowRank(low_rank) => low_rank.forward(x, kind),
            Self::Full(delta) => Ok(x.f_linear(&delta.f_to_kind(kind)?, None::<&Tensor>)?),
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
    /// The factors as numbers, made when they are first needed.
    plain: OnceLock<LowRankFactors>,
}

impl LowRank {
    /// Wraps factors that were read or made elsewhere.
    pub fn new(a: Tensor, b: Vec<Tensor>) -> Result<Self> {
        let rank = b.first().and_then(|b| b.size().get(1).copied()).unwrap_or(0);
        let stacked = a.size().first().copied().unwrap_or(0);
        if !(1..=RANK_MAX).contains(&rank) || stacked != rank * b.len() as i64 {
            return Err(ModelError::load("adapter", format!("rank {rank} does not fit {stacked} stacked rows")));
        }
        Ok(Self { a, b, rank, plain: OnceLock::new() })
    }

    /// The factors as numbers. An adapter that is trained changes its tensors: it must not be used through these.
    pub(crate) fn plain(&self) -> Result<&LowRankFactors> {
        if let Some(plain) = self.plain.get() {
            return Ok(plain);
        }
        let input = self.a.size().get(1).copied().unwrap_or(0) as usize;
        let b = self.b.iter().map(rows_of).collect::<Result<Vec<_>>>()?;
        let made = LowRankFactors::new(&rows_of(&self.a)?, input, self.rank as usize, &b)
            .ok_or_else(|| ModelError::load("adapter", "its factors do not fit each other"))?;
        Ok(self.plain.get_or_init(|| made))
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
    /// Only those of a hole that is written left to right with the text after it in view.
    Middle,
}

impl Reach {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Everywhere, Self::Undecided, Self::Middle];

    /// Its name in files.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Everywhere => "everywhere",
            Self::Undecided => "undecided",
            Self::Middle => "middle",
        }
    }
}

/// Updates bound to one base model; its level says which of the parts are there.
#[derive(Debug, Default)]
pub struct Adapter {
    /// L2: for each layer the four slots; empty in others.
    pub layers: Vec<[LowRank; 4]>,
    /// L3: full updates of selected blocks.
    pub deltas: Vec<Delta>,
    /// L1: a control network.
    pub control: Option<ControlNet>,
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
    /// What is added.
    pub change: Change<'a>,
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
        Ok(Self { layers, strength: 1.0, ..Self::default() })
    }

    /// A new adapter of a level that changes nothing.
    pub fn of_level(
        level: AdapterLevel,
        config: &BackboneConfig,
        device: Device,
        uniform: impl FnMut() -> f64,
    ) -> Result<Self> {
        match level {
            AdapterLevel::ControlNet => {
                let control = Some(ControlNet::zeroed(config, device, uniform)?);
                Ok(Self { control, strength: 1.0, ..Self::default() })
            }
            AdapterLevel::Layers => {
                let mut deltas = Vec::new();
                for block in config.layers.saturating_sub(LAYERS_TRAINED)..config.layers {
                    let zeros = |slot: Slot| -> Result<Tensor> {
                        let (input, outputs) = slot.widths(config);
                        Ok(Tensor::f_zeros([outputs.iter().sum::<i64>(), input], (Kind::Float, device))?)
                    };
                    let [qkv, output, gate_up, down] = Slot::ALL.map(zeros);
                    deltas.push(Delta::new(block, [qkv?, output?, gate_up?, down?]));
                }
                Ok(Self { deltas, strength: 1.0, ..Self::default() })
            }
            AdapterLevel::Lora => Self::zeroed(config, RANK, device, uniform),
            AdapterLevel::Composition => {
                Err(ModelError::load("adapter", "a composition of adapters has no weights of its own"))
            }
        }
    }

    /// What it is, by its parts.
    pub fn level(&self) -> AdapterLevel {
        if self.control.is_some() {
            AdapterLevel::ControlNet
        } else if self.deltas.is_empty() {
            AdapterLevel::Lora
        } else {
            AdapterLevel::Layers
        }
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

    /// An adapter for holes that are written left to right with the text after them in view. It changes nothing yet.
    pub fn for_middles(
        config: &BackboneConfig,
        rank: i64,
        device: Device,
        uniform: impl FnMut() -> f64,
    ) -> Result<Self> {
        Ok(Self { reach: Reach::Middle, mask: None, ..Self::for_diffusion(config, rank, device, uniform)? })
    }

    /// The same adapter with this strength in its weights: one factor of each pair is multiplied, and the strength is 1.
    pub fn into_full_strength(self, factor: f64) -> Result<Self> {
        let factor = self.strength * factor;
        for slots in &self.layers {
            for b in slots.iter().flat_map(|low_rank| &low_rank.b) {
                let _ = b.shallow_clone().f_mul_scalar_(factor)?;
            }
        }
        let full = self.deltas.iter().flat_map(|delta| &delta.slots);
        let control = self.control.iter().flat_map(|control| control.blocks.iter().map(|block| &block.write));
        for tensor in full.chain(control) {
            let _ = tensor.shallow_clone().f_mul_scalar_(factor)?;
        }
        Ok(Self { strength: 1.0, ..self })
    }

    /// Its updates of one layer in a window of `length` rows, of which `open` are being unmasked or written.
    pub(crate) fn updates(
        &self,
        block: usize,
        slot: Slot,
        length: i64,
        open: &Open,
    ) -> impl Iterator<Item = Update<'_>> {
        let rows = self.reached(length, open);
        let low_rank = self.layers.get(block).map(|slots| (Change::LowRank(&slots[slot as usize]), self.scale()));
        let full = self.deltas.iter().filter(move |delta| delta.block == block);
        let full = full.map(move |delta| (Change::Full(&delta.slots[slot as usize]), self.strength));
        low_rank.into_iter().chain(full).map(move |(change, scale)| Update { change, scale, rows: rows.clone() })
    }

    /// The rows that it changes.
    pub(crate) fn reached(&self, length: i64, open: &Open) -> Range<i64> {
        match self.reach {
            Reach::Everywhere => 0..length,
            Reach::Undecided if !open.is_middle => open.rows.clone(),
            Reach::Middle if open.is_middle => open.rows.clone(),
            Reach::Undecided | Reach::Middle => 0..0,
        }
    }

    /// The factor that multiplies every update.
    pub(crate) fn scale(&self) -> f64 {
        let rank = self.layers.first().map_or(RANK, |slots| slots[0].rank);
        self.strength * ALPHA / rank as f64
    }

    /// All factors with their names, in the order of an adapter file.
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        let mut all = Vec::new();
        for (index, control) in self.control.iter().flat_map(|control| control.blocks.iter().enumerate()) {
            let parts = [("read", &control.read), ("mix", &control.mix), ("write", &control.write)];
            all.extend(parts.map(|(part, tensor)| (format!("control.{index}.{part}"), tensor)));
        }
        for delta in &self.deltas {
            let slots = Slot::ALL.iter().zip(&delta.slots);
            all.extend(slots.map(|(slot, tensor)| (format!("layers.{}.{}.delta", delta.block, slot.name()), tensor)));
        }
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
