//! Loads diffusion models as their authors publish them: `config.json` and safetensors of LLaDA, Dream and MDLM, and of the
//! Llama family that they grew from.
//!
//! Names of tensors follow the published checkpoints. MDLM conditions its norms on time (adaLN); its checkpoints are trained with the
//! time held at 0, so that the modulation is a constant and folds into norms and layers exactly.

use std::path::Path;
use std::sync::Arc;

use mneme_weights::{SafetensorsFile, TensorSource};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::{INT4, POSITIONS_MAX, Part, Reader, WIDTH_MAX};
use crate::error::{ModelError, Result};
use crate::nn::backbone::{Backbone, BackboneConfig, Block, Words};
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::rope::Rope;
use crate::runtime::Runtime;
use mneme_quant::Spec;

/// The file with a model's shape.
const CONFIG: &str = "config.json";
/// The file with its weights.
const WEIGHTS: &str = "model.safetensors";
/// A configuration is at most this long (bytes).
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Width of MDLM's embedding of the time, and the epsilon of its norms.
const MDLM_TIME_WIDTH: i64 = 256;
const MDLM_EPSILON: f64 = 1e-5;
const MDLM_THETA: f64 = 1e4;

/// What a model's folder says about itself.
#[derive(Debug)]
struct Description {
    family: Family,
    values: Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Left to right; also the shape of SmolLM2.
    Llama,
    /// Llama with full attention, no shift, and names of its own.
    Llada,
    /// Qwen2 with full attention and a shift.
    Dream,
    /// A DiT with layer norms and folded adaLN.
    Mdlm,
}

impl Description {
    fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(CONFIG);
        if fs_err::metadata(&path)?.len() > CONFIG_BYTES_MAX {
            return Err(ModelError::load(CONFIG, format!("is longer than {CONFIG_BYTES_MAX} bytes")));
        }
        let values: Value = serde_json::from_slice(&fs_err::read(&path)?)
            .map_err(|error| ModelError::load(path.display().to_string(), error.to_string()))?;
        let name = values.get("model_type").and_then(Value::as_str).unwrap_or_default().to_lowercase();
        let family = match name.as_str() {
            "llama" => Family::Llama,
            "llada" => Family::Llada,
            "dream" => Family::Dream,
            "mdlm" => Family::Mdlm,
            other => {
                let problem = format!("model_type is {other:?}, known are llama, llada, dream and mdlm");
                return Err(ModelError::load(CONFIG, problem));
            }
        };
        Ok(Self { family, values })
    }

    /// The first of these keys that is there, as a positive whole number.
    fn whole(&self, keys: &[&str]) -> Result<i64> {
        let found = keys.iter().find_map(|key| self.values.get(key)).and_then(Value::as_u64);
        match found {
            Some(value) if (1..=WIDTH_MAX).contains(&value) => Ok(value as i64),
            other => Err(ModelError::load(CONFIG, format!("{} is {other:?}, allowed are 1..={WIDTH_MAX}", keys[0]))),
        }
    }

    fn real(&self, key: &str, default: Option<f64>) -> Result<f64> {
        let found = self.values.get(key).and_then(Value::as_f64).or(default);
        found
            .filter(|value| value.is_finite() && *value > 0.0)
            .ok_or_else(|| ModelError::load(CONFIG, format!("{key} is {:?}, must be positive", self.values.get(key))))
    }

    fn config(&self, vocabulary: i64, mask: Option<i64>) -> Result<BackboneConfig> {
        let is_mdlm = self.family == Family::Mdlm;
        let hidden = self.whole(&["hidden_size", "d_model", "hidden_dim"])?;
        let heads = self.whole(&["num_attention_heads", "n_heads"])?;
        let kv_heads = if is_mdlm { heads } else { self.whole(&["num_key_value_heads", "n_kv_heads"])? };
        if hidden % heads != 0 || heads % kv_heads != 0 || (hidden / heads) % 2 != 0 {
            let problem = format!("{hidden} wide with {heads} and {kv_heads} heads does not divide");
            return Err(ModelError::load(CONFIG, problem));
        }
        let mask_token = match mask {
            Some(mask) => mask,
            None if is_mdlm => vocabulary - 1,
            None => self.whole(&["mask_token_id"])?,
        };
        if !(0..vocabulary).contains(&mask_token) {
            return Err(ModelError::load(CONFIG, format!("mask token {mask_token} is outside 0..{vocabulary}")));
        }
        Ok(BackboneConfig {
            vocabulary,
            hidden,
            layers: self.whole(&["num_hidden_layers", "n_layers", "n_blocks"])? as usize,
            heads,
            kv_heads,
            head: hidden / heads,
            feed_forward: if is_mdlm { 4 * hidden } else { self.whole(&["intermediate_size", "mlp_hidden_size"])? },
            gated: !is_mdlm,
            rope_theta: if is_mdlm { MDLM_THETA } else { self.real("rope_theta", None)? },
            norm_epsilon: if is_mdlm { MDLM_EPSILON } else { self.real("rms_norm_eps", Some(1e-5))? },
            positions: self
                .whole(&["max_position_embeddings", "max_sequence_length", "model_length"])?
                .min(POSITIONS_MAX),
            shift: matches!(self.family, Family::Llama | Family::Dream),
            mask_token,
        })
    }
}

/// Loads a model from a folder. `mask_token`: overrides, or for a Llama supplies, what the configuration says.
///
/// Networks of the families that see both sides (LLaDA, Dream, MDLM) are to be run with [`Visibility::All`]; a Llama may be run
/// either way.
///
/// [`Visibility::All`]: crate::nn::visibility::Visibility::All
pub fn open(folder: &Path, mask_token: Option<i64>, runtime: Runtime) -> Result<Backbone> {
    let description = Description::read(folder)?;
    let file = Arc::new(SafetensorsFile::open(&folder.join(WEIGHTS))?);
    let reader = Reader { source: &*file, runtime };
    let words = match description.family {
        Family::Llama | Family::Dream => "model.embed_tokens.weight",
        Family::Llada => "model.transformer.wte.weight",
        Family::Mdlm => "backbone.vocab_embed.embedding",
    };
    let vocabulary = file.info(words)?.shape.first().copied().unwrap_or(0) as i64;
    let config = description.config(vocabulary, mask_token)?;
    let parts = match description.family {
        Family::Mdlm => mdlm(&reader, &config)?,
        family => llama(&reader, &config, &Names::of(family), words)?,
    };
    let table = reader.weight(words, &[vocabulary, config.hidden])?;
    Backbone {
        rope: Rope::new(config.positions, config.head, config.rope_theta, runtime.device)?,
        head: parts.head,
        embedding: Words::Table(table),
        blocks: parts.blocks,
        final_norm: parts.final_norm,
        kind: runtime.compute,
        device: runtime.device,
        config,
        plain: None,
    }
    .finished(runtime)
}

/// What the families build differently.
struct Parts {
    blocks: Vec<Block>,
    final_norm: Norm,
    head: Linear,
}

/// Names of the tensors of one family of gated networks.
struct Names {
    blocks: &'static str,
    attention_norm: &'static str,
    query: &'static str,
    key: &'static str,
    value: &'static str,
    output: &'static str,
    feed_norm: &'static str,
    gate: &'static str,
    up: &'static str,
    down: &'static str,
    final_norm: &'static str,
    head: &'static str,
}

impl Names {
    fn of(family: Family) -> Self {
        if family == Family::Llada {
            return Self {
                blocks: "model.transformer.blocks",
                attention_norm: "attn_norm",
                query: "q_proj",
                key: "k_proj",
                value: "v_proj",
                output: "attn_out",
                feed_norm: "ff_norm",
                gate: "ff_proj",
                up: "up_proj",
                down: "ff_out",
                final_norm: "model.transformer.ln_f.weight",
                head: "model.transformer.ff_out.weight",
            };
        }
        Self {
            blocks: "model.layers",
            attention_norm: "input_layernorm",
            query: "self_attn.q_proj",
            key: "self_attn.k_proj",
            value: "self_attn.v_proj",
            output: "self_attn.o_proj",
            feed_norm: "post_attention_layernorm",
            gate: "mlp.gate_proj",
            up: "mlp.up_proj",
            down: "mlp.down_proj",
            final_norm: "model.norm.weight",
            head: "lm_head.weight",
        }
    }
}

fn llama(reader: &Reader<'_>, config: &BackboneConfig, names: &Names, words: &str) -> Result<Parts> {
    let BackboneConfig { hidden, heads, kv_heads, head, feed_forward, vocabulary, .. } = *config;
    let norm = |name: &str| -> Result<Norm> {
        Ok(Norm::rms(reader.tensor(name, &[hidden], Kind::Float)?, config.norm_epsilon))
    };
    let mut blocks = Vec::with_capacity(config.layers.min(WIDTH_MAX as usize));
    for layer in 0..config.layers {
        let name = |part: &str| format!("{}.{layer}.{part}", names.blocks);
        let linear = |own: &str, parts: &[(&str, i64)], input: i64| -> Result<Linear> {
            let full: Vec<(String, i64)> =
                parts.iter().map(|(part, outputs)| (name(&format!("{part}.weight")), *outputs)).collect();
            let parts_of: Vec<Part<'_>> = full.iter().map(|(name, outputs)| Part::plain(name, *outputs)).collect();
            let layer = reader.linear(own, &parts_of, input, INT4, None)?;
            let with_bias = |part: &&(&str, i64)| reader.source.find(&name(&format!("{}.bias", part.0))).is_some();
            if parts.iter().filter(with_bias).count() == 0 {
                return Ok(layer);
            }
            // One of several may not be without: what is missing is an error, not a zero.
            let bias = |(part, outputs): &(&str, i64)| reader.weight(&name(&format!("{part}.bias")), &[*outputs]);
            layer.with_bias(Tensor::f_cat(&parts.iter().map(bias).collect::<Result<Vec<_>>>()?, 0)?)
        };
        let (queries, keys) = (heads * head, kv_heads * head);
        blocks.push(Block {
            attention_norm: norm(&name(&format!("{}.weight", names.attention_norm)))?,
            qkv: linear("qkv", &[(names.query, queries), (names.key, keys), (names.value, keys)], hidden)?,
            output: linear("output", &[(names.output, hidden)], queries)?,
            feed_norm: norm(&name(&format!("{}.weight", names.feed_norm)))?,
            gate_up: linear("gate_up", &[(names.gate, feed_forward), (names.up, feed_forward)], hidden)?,
            down: linear("down", &[(names.down, hidden)], feed_forward)?,
        });
    }
    // A checkpoint without a head shares the table of words.
    let head_name = if reader.source.find(names.head).is_some() { names.head } else { words };
    Ok(Parts {
        blocks,
        final_norm: norm(names.final_norm)?,
        head: reader.linear("head", &[Part::plain(head_name, vocabulary)], hidden, Spec::int8(), None)?,
    })
}

fn mdlm(reader: &Reader<'_>, config: &BackboneConfig) -> Result<Parts> {
    let BackboneConfig { hidden, feed_forward, vocabulary, .. } = *config;
    // Sums and products of the folding are f32, whatever the network computes in.
    let read = |name: &str, shape: &[i64]| -> Result<Tensor> {
        let name = format!("backbone.{name}");
        Ok(reader.tensor(&name, shape, Kind::Float)?.f_to_device(Device::Cpu)?)
    };
    let shape = &reader.source.info("backbone.sigma_map.mlp.2.weight")?.shape;
    let width = shape.first().copied().unwrap_or(0) as i64;
    // The embedding of time 0: cosines are 1, sines are 0.
    let half = [MDLM_TIME_WIDTH / 2];
    let options = (Kind::Float, Device::Cpu);
    let time = Tensor::f_cat(&[Tensor::f_ones(half, options)?, Tensor::f_zeros(half, options)?], 0)?;
    let dense = |x: &Tensor, name: &str, outputs: i64, inputs: i64| -> Result<Tensor> {
        let weight = read(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(x.f_linear(&weight, Some(read(&format!("{name}.bias"), &[outputs])?))?)
    };
    let condition = dense(&time, "sigma_map.mlp.0", width, MDLM_TIME_WIDTH)?.f_silu()?;
    let condition = dense(&condition, "sigma_map.mlp.2", width, width)?.f_silu()?;
    let modulation = |name: &str, parts: i64| -> Result<Vec<Tensor>> {
        Ok(dense(&condition, &format!("{name}.adaLN_modulation"), parts * hidden, width)?.f_chunk(parts, 0)?)
    };
    let place = |tensor: &Tensor, kind: Kind| -> Result<Tensor> {
        Ok(tensor.f_to_kind(kind)?.f_to_device(reader.runtime.device)?)
    };
    // norm(x) w (1 + scale) + shift.
    let norm = |name: &str, shift: &Tensor, scale: &Tensor| -> Result<Norm> {
        let weight = read(name, &[hidden])?.f_mul(&scale.f_add_scalar(1.0)?)?;
        let (weight, bias) = (place(&weight, Kind::Float)?, place(shift, Kind::Float)?);
        Ok(Norm::layer(weight, Some(bias), config.norm_epsilon))
    };
    let linear = |weight: &Tensor, bias: Option<&Tensor>, int4: Spec| -> Result<Linear> {
        let size = weight.size();
        let layer = reader.packed(&crate::generator::rows_of(weight)?, size[0], size[1], int4)?;
        match bias {
            Some(bias) => layer.with_bias(place(bias, reader.runtime.compute)?),
            None => Ok(layer),
        }
    };
    let mut blocks = Vec::with_capacity(config.layers.min(WIDTH_MAX as usize));
    for layer in 0..config.layers {
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let parts = modulation(&format!("blocks.{layer}"), 6)?;
        let [shift, scale, gate, feed_shift, feed_scale, feed_gate] = parts.as_slice() else {
            return Err(ModelError::load(name("adaLN_modulation"), "it does not split into six"));
        };
        // A gate on a layer's output scales the rows of its weights, and its bias.
        let gated = |part: &str, gate: &Tensor, inputs: i64| -> Result<Tensor> {
            Ok(read(&name(&format!("{part}.weight")), &[hidden, inputs])?.f_mul(&gate.f_unsqueeze(1)?)?)
        };
        let up_bias = read(&name("mlp.0.bias"), &[feed_forward])?;
        let down_bias = read(&name("mlp.2.bias"), &[hidden])?.f_mul(feed_gate)?;
        blocks.push(Block {
            attention_norm: norm(&name("norm1.weight"), shift, scale)?,
            qkv: linear(&read(&name("attn_qkv.weight"), &[3 * hidden, hidden])?, None, INT4)?,
            output: linear(&gated("attn_out", gate, hidden)?, None, INT4)?,
            feed_norm: norm(&name("norm2.weight"), feed_shift, feed_scale)?,
            gate_up: linear(&read(&name("mlp.0.weight"), &[feed_forward, hidden])?, Some(&up_bias), INT4)?,
            down: linear(&gated("mlp.2", feed_gate, feed_forward)?, Some(&down_bias), INT4)?,
        });
    }
    let parts = modulation("output_layer", 2)?;
    let [shift, scale] = parts.as_slice() else {
        return Err(ModelError::load("output_layer.adaLN_modulation", "it does not split into two"));
    };
    let head_bias = read("output_layer.linear.bias", &[vocabulary])?;
    Ok(Parts {
        blocks,
        final_norm: norm("output_layer.norm_final.weight", shift, scale)?,
        head: linear(&read("output_layer.linear.weight", &[vocabulary, hidden])?, Some(&head_bias), Spec::int8())?,
    })
}
