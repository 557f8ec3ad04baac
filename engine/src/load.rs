//! Builds networks from files of weights. A file is data only: every name, shape and length is checked.

use std::path::Path;

use mneme_quant::{PackedWeights, Spec};
use mneme_weights::gguf::unpermute_rotary_rows;
use mneme_weights::{GgufFile, TensorSource};
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::backbone::{Backbone, BackboneConfig, Block};
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::rope::Rope;
use crate::runtime::{Precision, Runtime};

/// Windows and their prefixes may be this long: the longest prompt and the longest canvas together fit.
const POSITIONS_MAX: i64 = 8_192;

/// The group length of SmolLM2's own 4-bit weights.
const INT4: Spec = Spec::int4(32);

/// Bounds on shapes that a file may claim, so that no absurd number reaches an allocation.
const WIDTH_MAX: u64 = 1 << 20;

/// Reads tensors of one file onto a device.
pub(crate) struct Reader<'a> {
    pub(crate) source: &'a dyn TensorSource,
    pub(crate) runtime: Runtime,
}

impl Reader<'_> {
    /// Decodes a tensor of a known shape.
    pub(crate) fn tensor(&self, name: &str, shape: &[i64], kind: Kind) -> Result<Tensor> {
        let values = self.values(name, shape)?;
        self.place(&values, shape, kind)
    }

    fn values(&self, name: &str, shape: &[i64]) -> Result<Vec<f32>> {
        let shape: Vec<usize> = shape.iter().map(|extent| *extent as usize).collect();
        let values = self.source.to_f32_shaped(name, &shape)?;
        self.source.release(name);
        Ok(values)
    }

    fn place(&self, values: &[f32], shape: &[i64], kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_from_slice(values)?.f_view(shape)?.f_to_kind(kind)?.f_to_device(self.runtime.device)?)
    }

    /// A tensor that decodes into the compute kind.
    pub(crate) fn weight(&self, name: &str, shape: &[i64]) -> Result<Tensor> {
        self.tensor(name, shape, self.runtime.compute)
    }

    /// Query or key rows of a GGUF file, brought back into the half-split rotary layout.
    fn rotary(&self, name: &str, heads: i64, head: i64, input: i64) -> Result<Vec<f32>> {
        let values = self.values(name, &[heads * head, input])?;
        unpermute_rotary_rows(&values, heads as usize, head as usize)
            .ok_or_else(|| ModelError::load(name, "its rows do not divide into heads"))
    }

    /// A linear layer of these weights in the form that the runtime wants.
    fn linear(&self, values: &[f32], input: i64, int4: Spec) -> Result<Linear> {
        let outputs = values.len() / input as usize;
        let spec = match self.runtime.precision {
            Precision::Dense => {
                return Ok(Linear::dense(self.place(values, &[outputs as i64, input], self.runtime.compute)?, None));
            }
            Precision::Int8 => Spec::int8(),
            Precision::Int4 => int4,
        };
        let codes = PackedWeights::from_f32(values, outputs, input as usize, spec, self.runtime.threads)
            .map_err(|error| ModelError::load("linear layer", error.to_string()))?;
        Ok(Linear::packed(codes, None, self.runtime.threads))
    }
}

/// Loads a Llama-style network such as SmolLM2 from a GGUF file, with the token that becomes the mask.
pub fn llama_from_gguf(file: &GgufFile, mask_token: i64, shift: bool, runtime: Runtime) -> Result<Backbone> {
    let config = llama_config(file, mask_token, shift)?;
    let reader = Reader { source: file, runtime };
    let BackboneConfig { hidden, heads, kv_heads, head, feed_forward, vocabulary, .. } = config;
    let mut blocks = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let norm = |part: &str| -> Result<Norm> {
            Ok(Norm::rms(reader.tensor(&name(part), &[hidden], Kind::Float)?, config.norm_epsilon))
        };
        let qkv = [
            reader.rotary(&name("attn_q"), heads, head, hidden)?,
            reader.rotary(&name("attn_k"), kv_heads, head, hidden)?,
            reader.values(&name("attn_v"), &[kv_heads * head, hidden])?,
        ];
        let gate_up = [
            reader.values(&name("ffn_gate"), &[feed_forward, hidden])?,
            reader.values(&name("ffn_up"), &[feed_forward, hidden])?,
        ];
        let output = reader.values(&name("attn_output"), &[hidden, heads * head])?;
        let down = reader.values(&name("ffn_down"), &[hidden, feed_forward])?;
        blocks.push(Block {
            attention_norm: norm("attn_norm")?,
            qkv: reader.linear(&qkv.concat(), hidden, INT4)?,
            output: reader.linear(&output, heads * head, INT4)?,
            feed_norm: norm("ffn_norm")?,
            gate_up: reader.linear(&gate_up.concat(), hidden, INT4)?,
            down: reader.linear(&down, feed_forward, INT4)?,
        });
    }
    let words = reader.values("token_embd.weight", &[vocabulary, hidden])?;
    // Beside packed layers the table is only looked up, never multiplied: half precision loses nothing of its 8-bit codes.
    let is_dense = runtime.precision == Precision::Dense;
    let embedding = reader.place(&words, &[vocabulary, hidden], if is_dense { runtime.compute } else { Kind::Half })?;
    let head_layer = match file.find("output.weight") {
        Some(_) => reader.linear(&reader.values("output.weight", &[vocabulary, hidden])?, hidden, Spec::int8())?,
        None if is_dense => Linear::dense(embedding.shallow_clone(), None),
        None => reader.linear(&words, hidden, Spec::int8())?,
    };
    let final_norm = Norm::rms(reader.tensor("output_norm.weight", &[hidden], Kind::Float)?, config.norm_epsilon);
    Ok(Backbone {
        rope: Rope::new(config.positions, head, config.rope_theta, runtime.device)?,
        head: head_layer,
        embedding,
        blocks,
        final_norm,
        kind: runtime.compute,
        device: runtime.device,
        config,
    })
}

fn llama_config(file: &GgufFile, mask_token: i64, shift: bool) -> Result<BackboneConfig> {
    let whole = |key: &str| -> Result<i64> {
        let value = file.model_value(key).and_then(mneme_weights::MetadataValue::as_u64);
        match value {
            Some(value) if (1..=WIDTH_MAX).contains(&value) => Ok(value as i64),
            other => Err(ModelError::load(format!("key {key}"), format!("{other:?} is not within 1..={WIDTH_MAX}"))),
        }
    };
    let real = |key: &str| -> Result<f64> {
        let value = file.model_value(key).and_then(mneme_weights::MetadataValue::as_f64);
        value
            .filter(|v| v.is_finite() && *v > 0.0)
            .ok_or_else(|| ModelError::load(format!("key {key}"), "it is missing"))
    };
    let (hidden, heads, kv_heads) =
        (whole("embedding_length")?, whole("attention.head_count")?, whole("attention.head_count_kv")?);
    if hidden % heads != 0 || heads % kv_heads != 0 || (hidden / heads) % 2 != 0 {
        return Err(ModelError::load(
            "shape",
            format!("{hidden} wide with {heads} and {kv_heads} heads does not divide"),
        ));
    }
    let embedding = file.info("token_embd.weight")?;
    let vocabulary = embedding.shape.first().copied().unwrap_or(0) as i64;
    if !(0..vocabulary).contains(&mask_token) {
        return Err(ModelError::load("mask token", format!("{mask_token} is outside 0..{vocabulary}")));
    }
    Ok(BackboneConfig {
        vocabulary,
        hidden,
        layers: whole("block_count")? as usize,
        heads,
        kv_heads,
        head: hidden / heads,
        feed_forward: whole("feed_forward_length")?,
        gated: true,
        rope_theta: real("rope.freq_base")?,
        norm_epsilon: real("attention.layer_norm_rms_epsilon")?,
        positions: POSITIONS_MAX.min(whole("context_length")?),
        shift,
        mask_token,
    })
}

/// Opens a GGUF file.
pub fn open_gguf(path: &Path) -> Result<GgufFile> {
    Ok(GgufFile::open(path)?)
}
