//! The transformer on slices of f32 and packed weights, without libtorch: how it is served on a CPU.
//!
//! It computes what [`crate::nn::backbone`] computes, with fewer copies: small windows are bound by the cost of each
//! operation rather than by arithmetic. No gradient passes through.

use mneme_engine_api::EngineError;
use mneme_quant::floats::{self, Attention, KeyValues, Rotary, Seen};
use mneme_quant::{ActivationScaling, PackedWeights, QuantizedActivations, gemm_quantized};
use tch::Tensor;

use crate::error::{ModelError, Result};
use crate::generator::rows_of;
use crate::nn::adapter::Slot;
use crate::nn::backbone::{Additions, Backbone, BackboneConfig};
use crate::nn::cache::KvCache;
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::visibility::Open;

/// A norm as numbers.
#[derive(Debug)]
pub(crate) struct PlainNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    epsilon: f32,
    is_centred: bool,
}

impl PlainNorm {
    pub(crate) fn of(norm: &Norm) -> Result<Self> {
        Ok(Self {
            weight: rows_of(norm.weight())?,
            bias: norm.bias().map(rows_of).transpose()?.unwrap_or_default(),
            epsilon: norm.epsilon() as f32,
            is_centred: norm.is_centred(),
        })
    }

    /// Normalises rows into `out`.
    pub(crate) fn apply(&self, x: &[f32], out: &mut Vec<f32>, threads: usize) {
        out.resize(x.len(), 0.0);
        if self.is_centred {
            floats::layer_norm(x, &self.weight, &self.bias, self.epsilon, out, threads);
        } else {
            floats::rms_norm(x, &self.weight, self.epsilon, out, threads);
        }
    }
}

/// A linear layer as packed codes; its activations are quantised for each token and group.
#[derive(Debug)]
pub(crate) struct PlainLinear {
    codes: PackedWeights,
    bias: Vec<f32>,
}

impl PlainLinear {
    /// The packed weights of a layer; `None` for a dense one.
    pub(crate) fn of(layer: &Linear) -> Result<Option<Self>> {
        let Some(codes) = layer.codes() else { return Ok(None) };
        let bias = layer.bias().map(rows_of).transpose()?.unwrap_or_default();
        Ok(Some(Self { codes: codes.clone(), bias }))
    }

    /// Multiplies rows into `out`.
    ///
    /// # Shapes
    /// `x: [rows, inputs]` -> `out: [rows, outputs]`.
    pub(crate) fn apply(&self, x: &[f32], rows: usize, out: &mut Vec<f32>, threads: usize) -> Result<()> {
        multiply_into(&self.codes, x, rows, out, threads)?;
        if !self.bias.is_empty() {
            out.chunks_exact_mut(self.bias.len()).for_each(|row| floats::add(row, &self.bias, 1));
        }
        Ok(())
    }
}

/// `out = x W^T`; the output is resized and overwritten.
pub(crate) fn multiply_into(
    codes: &PackedWeights,
    x: &[f32],
    rows: usize,
    out: &mut Vec<f32>,
    threads: usize,
) -> Result<()> {
    out.resize(rows * codes.outputs(), 0.0);
    let scaling = ActivationScaling::PerTokenGroup;
    QuantizedActivations::quantize(x, rows, codes, scaling, threads)
        .and_then(|activations| gemm_quantized(codes, &activations, out, threads))
        .map_err(|error| EngineError::Internal { reason: format!("packed product failed: {error}") }.into())
}

#[derive(Debug)]
struct PlainBlock {
    attention_norm: PlainNorm,
    qkv: PlainLinear,
    output: PlainLinear,
    feed_norm: PlainNorm,
    gate_up: PlainLinear,
    down: PlainLinear,
}

/// The layers of a network whose weights are packed.
#[derive(Debug)]
pub(crate) struct Plain {
    blocks: Vec<PlainBlock>,
    final_norm: PlainNorm,
    rotary: Rotary,
    threads: usize,
}

/// What one evaluation writes into and throws away.
#[derive(Debug, Default)]
struct Scratch {
    normed: Vec<f32>,
    qkv: Vec<f32>,
    attended: Vec<f32>,
    wide: Vec<f32>,
    gated: Vec<f32>,
    change: Vec<f32>,
}

impl Plain {
    /// Takes the layers of a network; `None` when one of them is dense or the network is not on a CPU.
    pub(crate) fn of(backbone: &Backbone, threads: usize) -> Result<Option<Self>> {
        if backbone.device.is_cuda() {
            return Ok(None);
        }
        let mut blocks = Vec::with_capacity(backbone.blocks.len());
        for block in &backbone.blocks {
            let layers = [&block.qkv, &block.output, &block.gate_up, &block.down];
            let mut layers = layers.into_iter().map(PlainLinear::of).collect::<Result<Vec<_>>>()?.into_iter();
            let mut next = || layers.next().flatten();
            let (Some(qkv), Some(output), Some(gate_up), Some(down)) = (next(), next(), next(), next()) else {
                return Ok(None);
            };
            let attention_norm = PlainNorm::of(&block.attention_norm)?;
            let feed_norm = PlainNorm::of(&block.feed_norm)?;
            blocks.push(PlainBlock { attention_norm, qkv, output, feed_norm, gate_up, down });
        }
        let BackboneConfig { positions, head, rope_theta, .. } = backbone.config;
        let rotary = Rotary::new(positions as usize, head as usize, rope_theta);
        Ok(Some(Self { blocks, final_norm: PlainNorm::of(&backbone.final_norm)?, rotary, threads }))
    }

    /// Runs embedded tokens through all blocks and gives the normed hidden states.
    ///
    /// # Shapes
    /// `x: [rows, hidden]` -> `[rows, hidden]`. `seen` counts from the start of the cache; `open`: the rows that are being unmasked or written.
    pub(crate) fn hidden(
        &self,
        config: &BackboneConfig,
        mut x: Vec<f32>,
        positions: &[usize],
        (seen, open): (&Seen, &Open),
        mut cache: Option<&mut KvCache>,
        additions: Additions<'_>,
    ) -> Result<Vec<f32>> {
        let rows = positions.len();
        let (heads, kv_heads, head) = (config.heads as usize, config.kv_heads as usize, config.head as usize);
        let stride = (heads + 2 * kv_heads) * head;
        let first = cache.as_ref().map_or(0, |cache| cache.len() as usize);
        // Without a cache all layers share one store: each overwrites what the one before it wrote.
        let mut own = if cache.is_none() { Some(KeyValues::new(kv_heads, head, rows)) } else { None };
        let threads = self.threads;
        let mut sides = additions.sides();
        let mut scratch = Scratch::default();
        scratch.attended.resize(rows * heads * head, 0.0);
        for (index, block) in self.blocks.iter().enumerate() {
            let Scratch { normed, qkv, attended, wide, gated, change } = &mut scratch;
            let adapt = |slot: Slot, x: &[f32], y: &mut [f32]| -> Result<()> {
                let (inputs, outputs) = (x.len() / rows, y.len() / rows);
                for adapter in additions.adapters {
                    let reached = adapter.reached(rows as i64, open);
                    let (start, end) = (reached.start as usize, reached.end as usize);
                    if start >= end {
                        continue;
                    }
                    let (x, y) = (&x[start * inputs..end * inputs], &mut y[start * outputs..end * outputs]);
                    if let Some(low_rank) = adapter.layers.get(index).and_then(|slots| slots.get(slot as usize)) {
                        low_rank.plain()?.add_to(x, adapter.scale() as f32, y, threads);
                    }
                    for delta in adapter.deltas.iter().filter(|delta| delta.block == index) {
                        let mut change = Vec::new();
                        multiply_into(&delta.packed(threads)?[slot as usize], x, end - start, &mut change, threads)?;
                        change.iter_mut().for_each(|value| *value *= adapter.strength as f32);
                        floats::add(y, &change, threads);
                    }
                }
                Ok(())
            };
            block.attention_norm.apply(&x, normed, threads);
            block.qkv.apply(normed, rows, qkv, threads)?;
            adapt(Slot::Qkv, normed, qkv)?;
            self.rotary.apply(qkv, stride, heads + kv_heads, positions, threads);
            let store = match (cache.as_deref_mut(), own.as_mut()) {
                (Some(cache), _) => cache.plain(index),
                (None, own) => own,
            };
            let store = store.ok_or_else(|| ModelError::load("cache", "it is not one for packed weights"))?;
            store.write(first, qkv, stride, heads * head, (heads + kv_heads) * head);
            Attention { queries: qkv, stride, heads, seen }.run(store, attended, threads);
            block.output.apply(attended, rows, change, threads)?;
            adapt(Slot::Output, attended, change)?;
            floats::add(&mut x, change, threads);
            if let Some((conditioner, memories)) = additions.memories
                && conditioner.is_behind(index)
            {
                let mixed = Tensor::f_from_slice(&x)?.f_view([rows as i64, config.hidden])?;
                x = rows_of(&conditioner.mix(index, &mixed, memories)?)?;
            }
            block.feed_norm.apply(&x, normed, threads);
            block.gate_up.apply(normed, rows, wide, threads)?;
            adapt(Slot::GateUp, normed, wide)?;
            let width = config.feed_forward as usize;
            let inner: &[f32] = if config.gated {
                gated.resize(rows * width, 0.0);
                floats::swiglu(wide, width, gated, threads);
                gated
            } else {
                floats::gelu_tanh(wide, threads);
                wide
            };
            block.down.apply(inner, rows, change, threads)?;
            adapt(Slot::Down, inner, change)?;
            floats::add(&mut x, change, threads);
            if additions.has_control() {
                let stream = Tensor::f_from_slice(&x)?.f_view([rows as i64, config.hidden])?;
                x = rows_of(&additions.control(index, stream, &mut sides)?)?;
            }
        }
        let mut out = Vec::new();
        self.final_norm.apply(&x, &mut out, threads);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use mneme_diffusion::random::{seeded, uniform};
    use tch::{Device, Kind};

    use super::*;
    use crate::load::random;
    use crate::nn::adapter::Adapter;
    use crate::nn::backbone::Window;
    use crate::nn::visibility::{SegmentKind, SegmentRole, Visibility};
    use crate::runtime::{Precision, Runtime};

    const ROWS: i64 = 12;

    #[test]
    fn slices_compute_what_libtorch_does_and_an_adapter_of_undecided_rows_leaves_the_decided_bit_for_bit() {
        let config = BackboneConfig {
            vocabulary: 50,
            hidden: 64,
            layers: 3,
            heads: 4,
            kv_heads: 2,
            head: 16,
            feed_forward: 96,
            gated: true,
            rope_theta: 1e4,
            norm_epsilon: 1e-5,
            positions: 64,
            shift: true,
            mask_token: 49,
        };
        let runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Int8, threads: 2 };
        let slices = random(config.clone(), runtime, 3).unwrap();
        let tensors = Backbone { plain: None, ..random(config.clone(), runtime, 3).unwrap() };
        assert!(slices.plain.is_some());
        let _guard = tch::no_grad_guard();
        let mut rng = seeded(9);
        let zero = Adapter::for_diffusion(&config, 2, Device::Cpu, || uniform(&mut rng)).unwrap();
        let middle = Adapter::for_middles(&config, 2, Device::Cpu, || uniform(&mut rng)).unwrap();
        for (_, tensor) in zero.named().into_iter().chain(middle.named()) {
            let drawn: Vec<f32> = (0..tensor.numel()).map(|_| uniform(&mut rng) as f32 - 0.5).collect();
            tensor.shallow_clone().copy_(&Tensor::from_slice(&drawn).view_as(tensor));
        }
        let tokens: Vec<i64> = (0..ROWS).map(|i| if i >= 5 && i % 3 == 2 { 49 } else { i * 7 % 48 }).collect();
        let positions: Vec<i64> = (0..ROWS).collect();
        let role = |i: u32| SegmentRole { segment: i / 4, seen: 0, kind: SegmentKind::Masked };
        let segments: Vec<SegmentRole> = (0..ROWS as u32).map(role).collect();
        let hidden = |backbone: &Backbone, visibility, adapters: &[&Adapter]| {
            let window = Window { tokens: &tokens, positions: &positions, visibility };
            rows_of(&backbone.hidden(&window, None, Additions::adapters(adapters)).unwrap()).unwrap()
        };
        let largest = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
        let (causal, draft) = (Visibility::Causal, Visibility::Draft { decided: 5 });
        for visibility in [causal, draft, Visibility::All, Visibility::Middle, Visibility::Segments(&segments)] {
            let adapters = [&zero, &middle];
            let (made, right) = (hidden(&slices, visibility, &adapters), hidden(&tensors, visibility, &adapters));
            let error = largest(&made, &right);
            // Sums in another order may round an activation to its other neighbour.
            assert!(error < 0.1, "{visibility:?}: {error}");
            let base = hidden(&slices, visibility, &[]);
            let changed = largest(&made, &base);
            assert!(changed == 0.0 || changed > 0.5, "{visibility:?}: {changed}");
            let decided = match visibility {
                Visibility::Causal => base.len(),
                Visibility::Draft { decided } => decided * config.hidden as usize,
                _ => 0,
            };
            assert_eq!(made[..decided], base[..decided], "{visibility:?}");
            assert!(decided == base.len() || changed > 0.0, "{visibility:?}");
            // Each of the two acts on the rows that it was made for, and on no others.
            let other = if visibility == Visibility::Middle { &zero } else { &middle };
            assert_eq!(hidden(&slices, visibility, &[other]), base, "{visibility:?}");
        }
    }
}
