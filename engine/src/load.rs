//! Builds networks from files of weights. A file is data only: every name, shape and length is checked.

use std::path::Path;

use mneme_weights::gguf::unpermute_rotary_rows;
use mneme_weights::{GgufFile, TensorSource};
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::backbone::{Backbone, BackboneConfig, Block};
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::rope::Rope;
use crate::runtime::Runtime;

/// Windows and their prefixes may be this long: SmolLM2's own limit is 8,192, which no canvas reaches.
const POSITIONS_MAX: i64 = 4_096;

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
    fn rotary(&self, name: &str, heads: i64, head: i64, input: i64) -> Result<Tensor> {
        let values = self.values(name, &[heads * head, input])?;
        let values = unpermute_rotary_rows(&values, heads as usize, head as usize)
            .ok_or_else(|| ModelError::load(name, "its rows do not divide into heads"))?;
        self.place(&values, &[heads * head, input], self.runtime.compute)
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
            reader.weight(&name("attn_v"), &[kv_heads * head, hidden])?,
        ];
        let gate_up = [
            reader.weight(&name("ffn_gate"), &[feed_forward, hidden])?,
            reader.weight(&name("ffn_up"), &[feed_forward, hidden])?,
        ];
        blocks.push(Block {
            attention_norm: norm("attn_norm")?,
            qkv: Linear::dense(Tensor::f_cat(&qkv, 0)?, None),
            output: Linear::dense(reader.weight(&name("attn_output"), &[hidden, heads * head])?, None),
            feed_norm: norm("ffn_norm")?,
            gate_up: Linear::dense(Tensor::f_cat(&gate_up, 0)?, None),
            down: Linear::dense(reader.weight(&name("ffn_down"), &[hidden, feed_forward])?, None),
        });
    }
    let embedding = reader.weight("token_embd.weight", &[vocabulary, hidden])?;
    let head_weight = match file.find("output.weight") {
        Some(_) => reader.weight("output.weight", &[vocabulary, hidden])?,
        None => embedding.shallow_clone(),
    };
    let final_norm = Norm::rms(reader.tensor("output_norm.weight", &[hidden], Kind::Float)?, config.norm_epsilon);
    Ok(Backbone {
        rope: Rope::new(config.positions, head, config.rope_theta, runtime.device)?,
        head: Linear::dense(head_weight, None),
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
