//! Builds networks from files of weights. A file is data only: every name, shape and length is checked.

pub mod published;
mod random;
mod stored;
mod tiles;

use std::path::Path;
use std::sync::Arc;

use mneme_quant::{PackedWeights, Quantized, Spec};
use mneme_weights::gguf::unpermute_rotary_rows;
use mneme_weights::{DType, GgufFile, TensorSource};
use tch::{Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::backbone::{Backbone, BackboneConfig, Block, Words};
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::rope::Rope;
use crate::runtime::{Precision, Runtime};
pub use random::random;
pub(crate) use tiles::Tiles;

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

    /// One part of a linear layer, its rows as this engine orders them.
    fn part(&self, part: &Part<'_>, input: i64) -> Result<Vec<f32>> {
        let values = self.values(part.name, &[part.outputs, input])?;
        part.ordered(&values)
    }

    /// The codes of a part as the file stores them, when they can be taken over as they are.
    fn stored(&self, part: &Part<'_>, input: i64) -> Option<(DType, Vec<u8>)> {
        let info = self.source.find(part.name)?;
        stored::block_bytes(info.dtype)?;
        if info.shape != [part.outputs as usize, input as usize] {
            return None;
        }
        let raw = self.source.raw(part.name).ok()?;
        Some((info.dtype, part.ordered(&raw).ok()?))
    }

    /// A linear layer of these parts, one under the other, in the form that the runtime wants.
    pub(crate) fn linear(
        &self,
        name: &str,
        parts: &[Part<'_>],
        input: i64,
        int4: Spec,
        tiles: Option<&Tiles>,
    ) -> Result<Linear> {
        let outputs: i64 = parts.iter().map(|part| part.outputs).sum();
        let values = || -> Result<Vec<f32>> {
            Ok(parts.iter().map(|part| self.part(part, input)).collect::<Result<Vec<_>>>()?.concat())
        };
        let spec = match self.runtime.precision {
            Precision::Dense => {
                return Ok(Linear::dense(self.place(&values()?, &[outputs, input], self.runtime.compute)?, None));
            }
            Precision::Int8 => Spec::int8(),
            Precision::Int4 => int4,
        };
        let refused = |error: mneme_quant::gemm::GemmError| ModelError::load(name, error.to_string());
        let make = || {
            if self.runtime.precision == Precision::Int4
                && let Some(taken) = self.taken_over(parts, outputs, input)
            {
                return PackedWeights::from_quantized(&taken).map_err(refused);
            }
            let (outputs, input) = (outputs as usize, input as usize);
            PackedWeights::from_f32(&values()?, outputs, input, spec, self.runtime.threads).map_err(refused)
        };
        let codes = match tiles {
            Some(tiles) => tiles.layer(name, outputs as usize, input as usize, make)?,
            None => make()?,
        };
        Ok(Linear::packed(codes, None, self.runtime.threads))
    }

    /// A linear layer of weights `[outputs, input]` that were computed rather than read.
    pub(crate) fn packed(&self, values: &[f32], outputs: i64, input: i64, int4: Spec) -> Result<Linear> {
        let spec = match self.runtime.precision {
            Precision::Dense => {
                return Ok(Linear::dense(self.place(values, &[outputs, input], self.runtime.compute)?, None));
            }
            Precision::Int8 => Spec::int8(),
            Precision::Int4 => int4,
        };
        let codes = PackedWeights::from_f32(values, outputs as usize, input as usize, spec, self.runtime.threads)
            .map_err(|error| ModelError::load("linear layer", error.to_string()))?;
        Ok(Linear::packed(codes, None, self.runtime.threads))
    }

    /// All parts with the codes of the file, when they share a format that has an exact counterpart.
    fn taken_over(&self, parts: &[Part<'_>], outputs: i64, input: i64) -> Option<Quantized> {
        let stored = parts.iter().map(|part| self.stored(part, input)).collect::<Option<Vec<_>>>()?;
        let dtype = stored.first()?.0;
        if stored.iter().any(|(other, _)| *other != dtype) {
            return None;
        }
        let blocks: Vec<u8> = stored.into_iter().flat_map(|(_, blocks)| blocks).collect();
        stored::matrix(dtype, &blocks, outputs as usize, input as usize)
    }
}

/// The form in which a GGUF file's layers are packed without loss: 4 bits when every layer is stored in blocks that are taken over
/// as they are, else 8 bits. A file that cannot be read is refused where it is loaded.
pub fn packed_form(path: &Path) -> Precision {
    let Ok(file) = open_gguf(path) else { return Precision::Int8 };
    let mut layers = file.tensors().iter().filter(|info| info.name.starts_with("blk.") && info.shape.len() == 2);
    if layers.all(|info| stored::block_bytes(info.dtype).is_some()) { Precision::Int4 } else { Precision::Int8 }
}

/// A tensor `[outputs, input]` that is part of a linear layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    name: &'a str,
    outputs: i64,
    /// Heads and their width, where the file interleaves rotary pairs as GGUF does.
    interleaved: Option<(i64, i64)>,
}

impl<'a> Part<'a> {
    pub(crate) fn plain(name: &'a str, outputs: i64) -> Self {
        Self { name, outputs, interleaved: None }
    }

    /// Query or key rows of a GGUF file, to be brought back into the half-split rotary layout.
    fn interleaved(name: &'a str, heads: i64, head: i64) -> Self {
        Self { name, outputs: heads * head, interleaved: Some((heads, head)) }
    }

    /// Rows in this engine's order, whatever their elements are.
    fn ordered<T: Copy>(&self, rows: &[T]) -> Result<Vec<T>> {
        let Some((heads, head)) = self.interleaved else { return Ok(rows.to_vec()) };
        unpermute_rotary_rows(rows, heads as usize, head as usize)
            .ok_or_else(|| ModelError::load(self.name, "its rows do not divide into heads"))
    }
}

/// Loads a Llama-style network such as SmolLM2 from a GGUF file, with the token that becomes the mask. `tiles`: where packed
/// layers are kept.
pub fn llama_from_gguf(file: &Arc<GgufFile>, mask_token: i64, shift: bool, runtime: Runtime) -> Result<Backbone> {
    llama_with_tiles(file, mask_token, shift, runtime, None)
}

/// As [`llama_from_gguf`], with a cache of packed layers.
pub(crate) fn llama_with_tiles(
    file: &Arc<GgufFile>,
    mask_token: i64,
    shift: bool,
    runtime: Runtime,
    tiles: Option<&Tiles>,
) -> Result<Backbone> {
    let config = llama_config(file, mask_token, shift)?;
    let reader = Reader { source: &**file, runtime };
    let BackboneConfig { hidden, heads, kv_heads, head, feed_forward, vocabulary, .. } = config;
    let mut blocks = Vec::with_capacity(config.layers);
    for layer in 0..config.layers {
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let norm = |part: &str| -> Result<Norm> {
            Ok(Norm::rms(reader.tensor(&name(part), &[hidden], Kind::Float)?, config.norm_epsilon))
        };
        let linear = |own: &str, parts: &[Part<'_>], input: i64| {
            reader.linear(&format!("blk.{layer}.{own}"), parts, input, INT4, tiles)
        };
        let (q, k, v) = (name("attn_q"), name("attn_k"), name("attn_v"));
        let qkv = [
            Part::interleaved(&q, heads, head),
            Part::interleaved(&k, kv_heads, head),
            Part::plain(&v, kv_heads * head),
        ];
        let (gate, up) = (name("ffn_gate"), name("ffn_up"));
        let gate_up = [Part::plain(&gate, feed_forward), Part::plain(&up, feed_forward)];
        blocks.push(Block {
            attention_norm: norm("attn_norm")?,
            qkv: linear("qkv", &qkv, hidden)?,
            output: linear("output", &[Part::plain(&name("attn_output"), hidden)], heads * head)?,
            feed_norm: norm("ffn_norm")?,
            gate_up: linear("gate_up", &gate_up, hidden)?,
            down: linear("down", &[Part::plain(&name("ffn_down"), hidden)], feed_forward)?,
        });
    }
    let words_name = "token_embd.weight";
    let head_name = if file.find("output.weight").is_some() { "output.weight" } else { words_name };
    let is_dense = runtime.precision == Precision::Dense;
    // Beside packed layers the table is only looked up, never multiplied: its rows are decoded from the file as they are needed.
    let embedding = if is_dense {
        Words::Table(reader.weight(words_name, &[vocabulary, hidden])?)
    } else {
        Words::File { source: Arc::clone(file) as Arc<dyn TensorSource>, name: words_name.into() }
    };
    let head_layer = match &embedding {
        Words::Table(table) if head_name == words_name => Linear::dense(table.shallow_clone(), None),
        _ => reader.linear("head", &[Part::plain(head_name, vocabulary)], hidden, Spec::int8(), tiles)?,
    };
    let final_norm = Norm::rms(reader.tensor("output_norm.weight", &[hidden], Kind::Float)?, config.norm_epsilon);
    Backbone {
        rope: Rope::new(config.positions, head, config.rope_theta, runtime.device)?,
        head: head_layer,
        embedding,
        blocks,
        final_norm,
        kind: runtime.compute,
        device: runtime.device,
        config,
        plain: None,
    }
    .finished(runtime)
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
pub fn open_gguf(path: &Path) -> Result<Arc<GgufFile>> {
    Ok(Arc::new(GgufFile::open(path)?))
}
