//! The same network on slices of f32 and packed 8-bit weights, without libtorch: how it is served on a CPU.
//!
//! A short question is some hundred operations of tens of microseconds: here they cost their arithmetic and little else. Texts of a
//! batch lie one behind the other without padding; only attention looks at each by itself.
//!
//! A few channels of BERT's activations are many times larger than the others, and 8 bits for both lose too much: so activations are
//! multiplied as the sum of two 8-bit parts, which is 16 bits for the price of two products of 8.

use mneme_engine_api::EngineError;
use mneme_quant::floats::{self, Attention, KeyValues, Seen};
use mneme_quant::parallel::for_each_item;
use mneme_quant::{ActivationScaling, Granularity, PackedWeights, QuantizedActivations, Spec, gemm_quantized};
use mneme_weights::{SafetensorsFile, TensorSource};

use super::bert::{HEAD, NORM_EPSILON, Shape};
use crate::error::{ModelError, Result};

/// Weights and activations of so many inputs share a scale: one step of a tile unit.
const GROUP: u32 = 64;
/// Adding and taking away 1.5 * 2^23 rounds a small f32 to the nearest whole number, in every instruction set.
const ROUNDING: f32 = 12_582_912.0;

#[derive(Debug)]
struct Norm {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Norm {
    fn apply(&self, x: &[f32], out: &mut [f32], threads: usize) {
        floats::layer_norm(x, &self.weight, &self.bias, NORM_EPSILON as f32, out, threads);
    }
}

#[derive(Debug)]
struct Layer {
    codes: PackedWeights,
    bias: Vec<f32>,
}

impl Layer {
    /// `out = x W^T + bias`; the output is resized and overwritten.
    fn apply(&self, x: &[f32], rows: usize, out: &mut Vec<f32>, scratch: &mut Scratch, threads: usize) -> Result<()> {
        let Scratch { rest, second } = scratch;
        out.resize(rows * self.codes.outputs(), 0.0);
        second.resize(out.len(), 0.0);
        rest.resize(x.len(), 0.0);
        rest_of_codes(x, self.codes.inputs(), rest);
        let multiply = |x: &[f32], out: &mut [f32]| {
            QuantizedActivations::quantize(x, rows, &self.codes, ActivationScaling::PerTokenGroup, threads)
                .and_then(|activations| gemm_quantized(&self.codes, &activations, out, threads))
                .map_err(|error| EngineError::Internal { reason: format!("packed product failed: {error}") })
        };
        multiply(x, out)?;
        multiply(rest, second)?;
        floats::add(out, second, threads);
        out.chunks_exact_mut(self.bias.len()).for_each(|row| floats::add(row, &self.bias, 1));
        Ok(())
    }
}

/// What products write into and throw away.
#[derive(Debug, Default)]
struct Scratch {
    rest: Vec<f32>,
    second: Vec<f32>,
}

/// What 8-bit codes leave of rows: `x - scale * round(x / scale)`, the scale of each group as the product's own.
fn rest_of_codes(x: &[f32], inputs: usize, rest: &mut [f32]) {
    for (x, rest) in x.chunks(inputs).zip(rest.chunks_mut(inputs)) {
        for (x, rest) in x.chunks(GROUP as usize).zip(rest.chunks_mut(GROUP as usize)) {
            let scale = x.iter().fold(0.0_f32, |largest, value| largest.max(value.abs())) / 127.0;
            let inverse = if scale.is_normal() { 1.0 / scale } else { 0.0 };
            for (rest, value) in rest.iter_mut().zip(x) {
                *rest = value - ((value * inverse + ROUNDING) - ROUNDING) * scale;
            }
        }
    }
}

#[derive(Debug)]
struct Block {
    qkv: Layer,
    output: Layer,
    attention_norm: Norm,
    up: Layer,
    down: Layer,
    feed_norm: Norm,
}

/// The network.
#[derive(Debug)]
pub(super) struct SliceBert {
    shape: Shape,
    /// `[vocabulary, hidden]`.
    words: Vec<f32>,
    /// `[positions, hidden]`, with the constant segment embedding added.
    places: Vec<f32>,
    norm: Norm,
    blocks: Vec<Block>,
    threads: usize,
}

impl SliceBert {
    /// Loads the network and packs its layers: some 10 million weights, tens of milliseconds.
    pub(super) fn load(file: &SafetensorsFile, threads: usize) -> Result<Self> {
        let shape = Shape::of(file)?;
        let (hidden, wide) = (shape.hidden, shape.wide);
        let read = |name: &str, extents: &[usize]| -> Result<Vec<f32>> {
            let values = file.to_f32_shaped(name, extents)?;
            file.release(name);
            Ok(values)
        };
        let norm = |name: &str| -> Result<Norm> {
            let part = |part: &str| read(&format!("{name}.{part}"), &[hidden]);
            Ok(Norm { weight: part("weight")?, bias: part("bias")? })
        };
        let spec = Spec { granularity: Granularity::Group(GROUP), ..Spec::int8() };
        let layer = |names: &[String], outputs: usize, inputs: usize| -> Result<Layer> {
            let (mut weight, mut bias) = (Vec::new(), Vec::new());
            for name in names {
                weight.extend(read(&format!("{name}.weight"), &[outputs, inputs])?);
                bias.extend(read(&format!("{name}.bias"), &[outputs])?);
            }
            let codes = PackedWeights::from_f32(&weight, outputs * names.len(), inputs, spec, threads)
                .map_err(|error| ModelError::load(names.join(", "), error.to_string()))?;
            Ok(Layer { codes, bias })
        };
        let mut blocks = Vec::with_capacity(shape.layers);
        for index in 0..shape.layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let qkv = ["query", "key", "value"].map(|which| name(&format!("attention.self.{which}")));
            blocks.push(Block {
                qkv: layer(&qkv, hidden, hidden)?,
                output: layer(&[name("attention.output.dense")], hidden, hidden)?,
                attention_norm: norm(&name("attention.output.LayerNorm"))?,
                up: layer(&[name("intermediate.dense")], wide, hidden)?,
                down: layer(&[name("output.dense")], hidden, wide)?,
                feed_norm: norm(&name("output.LayerNorm"))?,
            });
        }
        let segments = read("embeddings.token_type_embeddings.weight", &[shape.segments, hidden])?;
        let mut places = read("embeddings.position_embeddings.weight", &[shape.positions, hidden])?;
        places.chunks_exact_mut(hidden).for_each(|place| floats::add(place, &segments[..hidden], 1));
        Ok(Self {
            words: read("embeddings.word_embeddings.weight", &[shape.vocabulary, hidden])?,
            places,
            norm: norm("embeddings.LayerNorm")?,
            blocks,
            threads,
            shape,
        })
    }

    /// Embeds texts given as token ids.
    ///
    /// # Shapes
    /// For each text a vector `[hidden] f32`, the mean over its tokens, not scaled to unit length.
    pub(super) fn embed(&self, texts: &[&[i64]]) -> Result<Vec<Vec<f32>>> {
        self.shape.check(texts)?;
        let (hidden, threads) = (self.shape.hidden, self.threads);
        let rows: usize = texts.iter().map(|tokens| tokens.len()).sum();
        let mut normed = Vec::with_capacity(rows * hidden);
        for (place, id) in texts.iter().flat_map(|tokens| tokens.iter().enumerate()) {
            let word = &self.words[*id as usize * hidden..][..hidden];
            normed.extend(word.iter().zip(&self.places[place * hidden..]).map(|(word, place)| word + place));
        }
        let mut x = vec![0.0; rows * hidden];
        self.norm.apply(&normed, &mut x, threads);
        let heads = hidden / HEAD as usize;
        let mut spans: Vec<Span> = texts.iter().map(|tokens| Span::new(heads, tokens.len())).collect();
        let mut attended = vec![0.0; rows * hidden];
        let (mut wide, mut change, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
        for block in &self.blocks {
            block.qkv.apply(&x, rows, &mut wide, &mut scratch, threads)?;
            attend(&mut spans, &wide, hidden, &mut attended, threads);
            block.output.apply(&attended, rows, &mut change, &mut scratch, threads)?;
            floats::add(&mut change, &x, threads);
            block.attention_norm.apply(&change, &mut x, threads);
            block.up.apply(&x, rows, &mut wide, &mut scratch, threads)?;
            floats::gelu_erf(&mut wide, threads);
            block.down.apply(&wide, rows, &mut change, &mut scratch, threads)?;
            floats::add(&mut change, &x, threads);
            block.feed_norm.apply(&change, &mut x, threads);
        }
        let mut rest = x.as_slice();
        let pool = |tokens: &&[i64]| {
            let (text, after) = rest.split_at(tokens.len() * hidden);
            rest = after;
            let mut mean = vec![0.0; hidden];
            text.chunks_exact(hidden).for_each(|row| floats::add(&mut mean, row, 1));
            mean.iter_mut().for_each(|value| *value /= tokens.len() as f32);
            mean
        };
        Ok(texts.iter().map(pool).collect())
    }
}

/// One text's place in the batch: its keys and values, and that every token sees all of it.
struct Span {
    store: KeyValues,
    seen: Seen,
}

impl Span {
    fn new(heads: usize, length: usize) -> Self {
        let seen = Seen { until: vec![length; length], mask: None, positions: length };
        Self { store: KeyValues::new(heads, HEAD as usize, length), seen }
    }
}

/// Attention of every text over itself. `qkv: [rows, 3 * hidden]` -> `out: [rows, hidden]`.
fn attend(spans: &mut [Span], qkv: &[f32], hidden: usize, out: &mut [f32], threads: usize) {
    let stride = 3 * hidden;
    let run = |span: &mut Span, queries: &[f32], out: &mut [f32], threads: usize| {
        span.store.write(0, queries, stride, hidden, 2 * hidden);
        Attention { queries, stride, heads: hidden / HEAD as usize, seen: &span.seen }.run(&span.store, out, threads);
    };
    if let [span] = spans {
        return run(span, qkv, out, threads);
    }
    let mut parts = Vec::with_capacity(spans.len());
    let (mut qkv, mut out) = (qkv, out);
    for span in spans {
        let length = span.seen.positions;
        let (queries, after) = qkv.split_at(length * stride);
        let (own, later) = out.split_at_mut(length * hidden);
        (qkv, out) = (after, later);
        parts.push((span, queries, own));
    }
    for_each_item(parts, threads, |_, (span, queries, out)| run(span, queries, out, 1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_parts_of_eight_bits_hold_sixteen_of_an_activation() {
        let inputs = 150;
        let x: Vec<f32> =
            (0..3 * inputs).map(|i| ((i * 37 % 101) as f32 - 50.0) * if i % 50 == 7 { 40.0 } else { 0.1 }).collect();
        let weight: Vec<f32> = (0..inputs).map(|i| if i == 20 { 1.0 } else { 0.0 }).collect();
        let spec = Spec { granularity: Granularity::Group(GROUP), ..Spec::int8() };
        let layer = Layer { codes: PackedWeights::from_f32(&weight, 1, inputs, spec, 1).unwrap(), bias: vec![0.5] };
        let mut out = Vec::new();
        layer.apply(&x, 3, &mut out, &mut Scratch::default(), 1).unwrap();
        for (row, made) in out.iter().enumerate() {
            let right = x[row * inputs + 20] + 0.5;
            // The largest of the group is 2,000: 8 bits alone would err by up to 8.
            assert!((made - right).abs() < 0.1, "{made} {right}");
        }
        let mut rest = vec![f32::NAN; 4];
        rest_of_codes(&[0.0; 4], 4, &mut rest);
        assert_eq!(rest, [0.0; 4]);
    }
}
