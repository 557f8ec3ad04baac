//! The transformer: pre-norm, rotary positions, grouped keys and values.
//!
//! One definition expresses SmolLM2 and Llama (RMS norm, gated feed-forward), Qwen2 and Dream (biases on queries, keys and
//! values), LLaDA (full attention) and MDLM (layer norm, plain GELU feed-forward, adaLN folded into weights).

use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::nn::adapter::{Adapter, LowRank, Slot};
use crate::nn::cache::KvCache;
use crate::nn::conditioner::Conditioner;
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::rope::{Rope, Rotation};
use crate::nn::visibility::Visibility;

/// The shape of a transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct BackboneConfig {
    /// Rows of the token embedding.
    pub vocabulary: i64,
    /// Width of the residual stream.
    pub hidden: i64,
    /// Blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: i64,
    /// Key and value heads; divides `heads`.
    pub kv_heads: i64,
    /// Width of a head.
    pub head: i64,
    /// Width of the feed-forward layer.
    pub feed_forward: i64,
    /// Whether the feed-forward layer is SwiGLU; otherwise it is one layer with tanh-GELU.
    pub gated: bool,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Added to the variance in norms.
    pub norm_epsilon: f64,
    /// The longest window with its prefix.
    pub positions: i64,
    /// Whether the logits of a position come from the row before it, as in an autoregressive model.
    pub shift: bool,
    /// The token that stands for "not decided yet".
    pub mask_token: i64,
}

/// One block.
#[derive(Debug)]
pub struct Block {
    /// Norm before attention.
    pub attention_norm: Norm,
    /// Queries, keys and values side by side.
    pub qkv: Linear,
    /// Attention's output.
    pub output: Linear,
    /// Norm before the feed-forward layer.
    pub feed_norm: Norm,
    /// Gate and up projection side by side, or the one projection of a plain layer.
    pub gate_up: Linear,
    /// Down projection.
    pub down: Linear,
}

/// A transformer with its weights.
#[derive(Debug)]
pub struct Backbone {
    /// Its shape.
    pub config: BackboneConfig,
    /// `[vocabulary, hidden]` in the compute kind.
    pub(crate) embedding: Tensor,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: Norm,
    pub(crate) head: Linear,
    pub(crate) rope: Rope,
    pub(crate) kind: Kind,
    pub(crate) device: Device,
}

/// What is added to the base network in one evaluation; nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Additions<'a> {
    /// Low-rank updates, summed.
    pub adapters: &'a [&'a Adapter],
    /// A conditioner, and the memories that it projected: `[memories, hidden] f32`.
    pub memories: Option<(&'a Conditioner, &'a Tensor)>,
}

impl<'a> Additions<'a> {
    /// Adapters and no memories.
    pub fn adapters(adapters: &'a [&'a Adapter]) -> Self {
        Self { adapters, memories: None }
    }
}

/// The tokens of one evaluation.
#[derive(Debug, Clone, Copy)]
pub struct Window<'a> {
    /// Token ids, `[length]`.
    pub tokens: &'a [i64],
    /// The position of each.
    pub positions: &'a [i64],
    /// Who sees whom.
    pub visibility: Visibility<'a>,
}

impl Backbone {
    /// An empty cache for windows up to `capacity` positions.
    pub fn cache(&self, capacity: i64) -> Result<KvCache> {
        let config = &self.config;
        KvCache::new(config.layers, config.kv_heads, config.head, capacity, self.kind, self.device)
    }

    /// Whether gradients pass through all layers.
    pub fn is_trainable(&self) -> bool {
        let dense = |b: &Block| b.qkv.is_dense() && b.output.is_dense() && b.gate_up.is_dense() && b.down.is_dense();
        self.head.is_dense() && self.blocks.iter().all(dense)
    }

    /// The device of all tensors.
    pub fn device(&self) -> Device {
        self.device
    }

    /// Runs the window after the cache's committed prefix and returns the normed hidden states. The window's keys and
    /// values are written behind the prefix and stay scratch until they are committed.
    ///
    /// # Shapes
    /// `[length, hidden]` in the compute kind.
    pub fn hidden(
        &self,
        window: &Window<'_>,
        mut cache: Option<&mut KvCache>,
        additions: Additions<'_>,
    ) -> Result<Tensor> {
        let length = window.tokens.len() as i64;
        if length == 0 || window.positions.len() != window.tokens.len() {
            return Err(ModelError::load(
                "window",
                format!("{} positions for {length} tokens", window.positions.len()),
            ));
        }
        if let Some(bad) = window.tokens.iter().find(|t| !(0..self.config.vocabulary).contains(*t)) {
            let problem = format!("token {bad} is outside 0..{}", self.config.vocabulary);
            return Err(ModelError::load("window", problem));
        }
        let prefix = cache.as_ref().map_or(0, |cache| cache.len());
        let mask = window.visibility.mask(prefix, length, self.device)?;
        let rotation = self.rope.at(window.positions)?;
        let tokens = Tensor::f_from_slice(window.tokens)?.f_to_device(self.device)?;
        // The residual stream is f32: bf16 would lose the small updates of late layers.
        let mut x = self.embedding.f_index_select(0, &tokens)?.f_to_kind(Kind::Float)?;
        for (index, block) in self.blocks.iter().enumerate() {
            let updates = |slot: Slot| -> Vec<(&LowRank, f64)> {
                additions
                    .adapters
                    .iter()
                    .filter_map(|a| Some((a.layers.get(index)?.get(slot as usize)?, a.scale())))
                    .collect()
            };
            let normed = block.attention_norm.forward(&x, self.kind)?;
            let qkv = block.qkv.forward(&normed, &updates(Slot::Qkv), self.kind)?;
            let attended = self.attend(&qkv, index, &rotation, mask.as_ref(), cache.as_deref_mut())?;
            x = x.f_add(&block.output.forward(&attended, &updates(Slot::Output), self.kind)?)?;
            if let Some((conditioner, memories)) = additions.memories {
                x = conditioner.mix(index, &x, memories)?;
            }
            let normed = block.feed_norm.forward(&x, self.kind)?;
            let wide = block.gate_up.forward(&normed, &updates(Slot::GateUp), self.kind)?;
            x = x.f_add(&block.down.forward(&self.activate(&wide)?, &updates(Slot::Down), self.kind)?)?;
        }
        self.final_norm.forward(&x, self.kind)
    }

    /// Logits of every row of hidden states.
    ///
    /// # Shapes
    /// `hidden: [rows, hidden] kind` -> `[rows, vocabulary] f32`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden, &[], self.kind)?.f_to_kind(Kind::Float)?)
    }

    fn activate(&self, wide: &Tensor) -> Result<Tensor> {
        if !self.config.gated {
            return Ok(wide.f_gelu("tanh")?);
        }
        let gate = wide.f_narrow(1, 0, self.config.feed_forward)?.f_silu()?;
        Ok(gate.f_mul(&wide.f_narrow(1, self.config.feed_forward, self.config.feed_forward)?)?)
    }

    /// Attention of all heads.
    ///
    /// # Shapes
    /// `qkv: [length, (heads + 2 kv_heads) * head]` -> `[length, heads * head]`.
    fn attend(
        &self,
        qkv: &Tensor,
        layer: usize,
        rotation: &Rotation,
        mask: Option<&Tensor>,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let BackboneConfig { heads, kv_heads, head, .. } = self.config;
        let length = qkv.size().first().copied().unwrap_or(0);
        let group = heads / kv_heads;
        let all = qkv.f_view([length, heads + 2 * kv_heads, head])?;
        // Queries and keys are rotated together, then split; head-major order makes each head one matrix.
        let rotated = rotation.apply(&all.f_narrow(1, 0, heads + kv_heads)?, self.kind)?.f_transpose(0, 1)?;
        let queries = rotated.f_narrow(0, 0, heads)?.f_reshape([kv_heads, group * length, head])?;
        let keys = rotated.f_narrow(0, heads, kv_heads)?;
        let values = all.f_narrow(1, heads + kv_heads, kv_heads)?.f_transpose(0, 1)?;
        let (keys, values) = match cache {
            Some(cache) => cache.extend(layer, &keys, &values)?,
            None => (keys, values),
        };
        let seen = keys.size().get(1).copied().unwrap_or(0);
        // The heads of a group share keys and values: their queries are stacked into one matrix.
        let scores = queries.f_bmm(&keys.f_transpose(1, 2)?)?.f_to_kind(Kind::Float)?;
        let scores = scores.f_mul_scalar(1.0 / (head as f64).sqrt())?;
        let scores = match mask {
            Some(mask) => {
                scores.f_view([kv_heads, group, length, seen])?.f_add(mask)?.f_view([kv_heads, group * length, seen])?
            }
            None => scores,
        };
        let weights = scores.f_softmax(-1, Kind::Float)?.f_to_kind(self.kind)?;
        let mixed = weights.f_bmm(&values)?.f_view([heads, length, head])?;
        Ok(mixed.f_transpose(0, 1)?.f_reshape([length, heads * head])?)
    }
}
