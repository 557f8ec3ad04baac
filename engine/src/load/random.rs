//! Networks of random weights: for measuring what a shape costs, and for tests that need no file.

use mneme_diffusion::random::{seeded, uniform};
use mneme_quant::{Fit, PackedWeights, Spec};
use tch::{Kind, Tensor};

use super::INT4;
use crate::error::{ModelError, Result};
use crate::nn::backbone::{Backbone, BackboneConfig, Block, Words};
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::rope::Rope;
use crate::runtime::{Precision, Runtime};

/// A network of this shape with weights drawn uniformly, of variance one over the inputs. The head is tied to the words.
pub fn random(config: BackboneConfig, runtime: Runtime, seed: u64) -> Result<Backbone> {
    let mut rng = seeded(seed);
    let mut values = |outputs: i64, input: i64| -> Vec<f32> {
        let bound = (3.0 / input as f64).sqrt();
        (0..outputs * input).map(|_| ((uniform(&mut rng) * 2.0 - 1.0) * bound) as f32).collect()
    };
    let linear = |values: &[f32], input: i64, int4: Spec| -> Result<Linear> {
        let outputs = values.len() / input as usize;
        let spec = match runtime.precision {
            Precision::Dense => {
                let weight =
                    Tensor::f_from_slice(values)?.f_view([outputs as i64, input])?.f_to_kind(runtime.compute)?;
                return Ok(Linear::dense(weight.f_to_device(runtime.device)?, None));
            }
            Precision::Int8 => Spec::int8(),
            // How well codes fit does not change what they cost.
            Precision::Int4 => Spec { fit: Fit::Range, ..int4 },
        };
        let codes = PackedWeights::from_f32(values, outputs, input as usize, spec, runtime.threads)
            .map_err(|error| ModelError::load("random weights", error.to_string()))?;
        Ok(Linear::packed(codes, None, runtime.threads))
    };
    let norm = || -> Result<Norm> {
        let ones = Tensor::f_ones([config.hidden], (Kind::Float, runtime.device))?;
        Ok(Norm::rms(ones, config.norm_epsilon))
    };
    let (queries, keys) = (config.heads * config.head, config.kv_heads * config.head);
    let wide = if config.gated { 2 * config.feed_forward } else { config.feed_forward };
    let mut blocks = Vec::with_capacity(config.layers);
    for _ in 0..config.layers {
        blocks.push(Block {
            attention_norm: norm()?,
            qkv: linear(&values(queries + 2 * keys, config.hidden), config.hidden, INT4)?,
            output: linear(&values(config.hidden, queries), queries, INT4)?,
            feed_norm: norm()?,
            gate_up: linear(&values(wide, config.hidden), config.hidden, INT4)?,
            down: linear(&values(config.hidden, config.feed_forward), config.feed_forward, INT4)?,
        });
    }
    let words = values(config.vocabulary, config.hidden);
    let table = Tensor::f_from_slice(&words)?.f_view([config.vocabulary, config.hidden])?;
    let table = table.f_to_kind(runtime.compute)?.f_to_device(runtime.device)?;
    Backbone {
        rope: Rope::new(config.positions, config.head, config.rope_theta, runtime.device)?,
        head: linear(&words, config.hidden, Spec::int8())?,
        embedding: Words::Table(table),
        blocks,
        final_norm: norm()?,
        kind: runtime.compute,
        device: runtime.device,
        config,
        plain: None,
    }
    .finished(runtime)
}
