//! The transformer: pre-norm, rotary positions, grouped keys and values.
//!
//! One definition expresses SmolLM2 and Llama (RMS norm, gated feed-forward), Qwen2 and Dream (biases on queries, keys and
//! values), LLaDA (full attention) and MDLM (layer norm, plain GELU feed-forward, adaLN folded into weights).

use std::sync::Arc;

use mneme_weights::TensorSource;
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::generator::rows_of;
use crate::nn::adapter::{Adapter, Slot, Update};
use crate::nn::cache::KvCache;
use crate::nn::conditioner::Conditioner;
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::nn::plain::Plain;
use crate::nn::rope::{Rope, Rotation};
use crate::nn::visibility::{Open, SegmentKind, Visibility};
use crate::runtime::Runtime;

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

/// Where the vectors of tokens come from.
#[derive(Debug)]
pub(crate) enum Words {
    /// `[vocabulary, hidden]` in the compute kind.
    Table(Tensor),
    /// Rows of a tensor `[vocabulary, hidden]` in a file, decoded as they are needed.
    File {
        /// The file.
        source: Arc<dyn TensorSource>,
        /// The tensor.
        name: String,
    },
}

impl Words {
    /// Vectors of tokens, which were checked. `[tokens, hidden] f32`.
    fn look_up(&self, tokens: &[i64], hidden: i64, device: Device) -> Result<Tensor> {
        match self {
            Self::Table(table) => {
                let tokens = Tensor::f_from_slice(tokens)?.f_to_device(device)?;
                Ok(table.f_index_select(0, &tokens)?.f_to_kind(Kind::Float)?)
            }
            Self::File { .. } => {
                let rows = self.rows(tokens, hidden as usize)?;
                Ok(Tensor::f_from_slice(&rows)?.f_view([-1, hidden])?.f_to_device(device)?)
            }
        }
    }

    /// The same as numbers.
    fn rows(&self, tokens: &[i64], hidden: usize) -> Result<Vec<f32>> {
        match self {
            Self::Table(_) => rows_of(&self.look_up(tokens, hidden as i64, Device::Cpu)?),
            Self::File { source, name } => {
                let mut rows = vec![0.0; tokens.len() * hidden];
                for (row, token) in rows.chunks_exact_mut(hidden.max(1)).zip(tokens) {
                    source.decode_range(name, *token as usize * hidden, row)?;
                }
                Ok(rows)
            }
        }
    }
}

/// Who sees whom, as attention is computed.
#[derive(Debug)]
enum Scope {
    /// The whole window, with an additive mask.
    Window(Option<Tensor>),
    /// Parts of it, each behind the prefix on its own.
    Chunks {
        /// The parts.
        chunks: Vec<Chunk>,
        /// Whether keys and values are written into the cache, to be committed; gradients do not pass through it.
        kept: bool,
    },
}

/// Rows that attend to the prefix and to each other.
#[derive(Debug)]
struct Chunk {
    start: i64,
    rows: i64,
    /// `[1, 1, rows, prefix + rows]` in the compute kind.
    mask: Option<Tensor>,
}

/// A transformer with its weights.
#[derive(Debug)]
pub struct Backbone {
    /// Its shape.
    pub config: BackboneConfig,
    pub(crate) embedding: Words,
    pub(crate) blocks: Vec<Block>,
    pub(crate) final_norm: Norm,
    pub(crate) head: Linear,
    pub(crate) rope: Rope,
    /// The same layers without libtorch, when all are packed.
    pub(crate) plain: Option<Plain>,
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

    /// Room for the side stream of each control network.
    pub(crate) fn sides(&self) -> Vec<Option<Tensor>> {
        self.adapters.iter().map(|_| None).collect()
    }

    /// Whether any adapter is a control network.
    pub(crate) fn has_control(&self) -> bool {
        self.adapters.iter().any(|adapter| adapter.control.is_some())
    }

    /// The residual stream behind a block with the share of every control network.
    pub(crate) fn control(&self, block: usize, mut x: Tensor, sides: &mut [Option<Tensor>]) -> Result<Tensor> {
        for (adapter, side) in self.adapters.iter().zip(sides) {
            if let Some(control) = &adapter.control {
                (x, *side) = control.step(block, &x, side.as_ref(), adapter.strength)?;
            }
        }
        Ok(x)
    }
}

/// What all blocks of one evaluation share: who sees whom, and where each position is.
#[derive(Debug)]
pub(crate) struct Context {
    scope: Scope,
    rotation: Rotation,
    /// Rows of the window.
    length: i64,
    /// Those that are being unmasked or written.
    open: Open,
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
        if self.plain.is_some() {
            let (kv_heads, head) = (config.kv_heads as usize, config.head as usize);
            return Ok(KvCache::on_slices(config.layers, kv_heads, head, capacity.max(0) as usize));
        }
        KvCache::new(config.layers, config.kv_heads, config.head, capacity, self.kind, self.device)
    }

    /// Prepares the layers for slices when all are packed.
    pub(crate) fn finished(mut self, runtime: Runtime) -> Result<Self> {
        self.plain = Plain::of(&self, runtime.threads)?;
        Ok(self)
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
        if let Some(plain) = &self.plain {
            return self.hidden_on_slices(plain, window, cache, additions);
        }
        let context = self.context_after(window, prefix)?;
        let mut x = self.embed(window, additions)?;
        let mut sides = additions.sides();
        for index in 0..self.blocks.len() {
            x = self.block(index, x, &mut sides, &context, cache.as_deref_mut(), additions)?;
        }
        self.finish(&x)
    }

    /// What all blocks of an evaluation share.
    pub(crate) fn context(&self, window: &Window<'_>) -> Result<Context> {
        self.context_after(window, 0)
    }

    fn context_after(&self, window: &Window<'_>, prefix: i64) -> Result<Context> {
        let length = window.tokens.len() as i64;
        let scope = self.scope(&window.visibility, prefix, length)?;
        Ok(Context { scope, rotation: self.rope.at(window.positions)?, length, open: window.visibility.open(length) })
    }

    /// The residual stream before the first block. It is f32: bf16 would lose the small updates of late layers.
    pub(crate) fn embed(&self, window: &Window<'_>, additions: Additions<'_>) -> Result<Tensor> {
        let mut x = self.embedding.look_up(window.tokens, self.config.hidden, self.device)?;
        if !window.visibility.open(window.tokens.len() as i64).has_masks() {
            return Ok(x);
        }
        for mask in additions.adapters.iter().filter_map(|adapter| adapter.mask.as_ref()) {
            let tokens = Tensor::f_from_slice(window.tokens)?.f_to_device(self.device)?;
            let is_mask = tokens.f_eq(self.config.mask_token)?.f_to_kind(Kind::Float)?.f_unsqueeze(1)?;
            x = x.f_add(&is_mask.f_mul(mask)?)?;
        }
        Ok(x)
    }

    /// The normed hidden states behind the last block.
    pub(crate) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        self.final_norm.forward(x, self.kind)
    }

    /// One block. `sides`: the side streams of control networks.
    pub(crate) fn block(
        &self,
        index: usize,
        x: Tensor,
        sides: &mut [Option<Tensor>],
        context: &Context,
        cache: Option<&mut KvCache>,
        additions: Additions<'_>,
    ) -> Result<Tensor> {
        let block =
            self.blocks.get(index).ok_or_else(|| ModelError::load("network", format!("it has no block {index}")))?;
        let updates = |slot: Slot| -> Vec<Update<'_>> {
            let adapters = additions.adapters.iter();
            adapters.flat_map(|adapter| adapter.updates(index, slot, context.length, &context.open)).collect()
        };
        let normed = block.attention_norm.forward(&x, self.kind)?;
        let qkv = block.qkv.forward(&normed, &updates(Slot::Qkv), self.kind)?;
        let attended = self.attend(&qkv, index, &context.rotation, &context.scope, cache)?;
        let mut x = x.f_add(&block.output.forward(&attended, &updates(Slot::Output), self.kind)?)?;
        if let Some((conditioner, memories)) = additions.memories {
            x = conditioner.mix(index, &x, memories)?;
        }
        let normed = block.feed_norm.forward(&x, self.kind)?;
        let wide = block.gate_up.forward(&normed, &updates(Slot::GateUp), self.kind)?;
        let x = x.f_add(&block.down.forward(&self.activate(&wide)?, &updates(Slot::Down), self.kind)?)?;
        additions.control(index, x, sides)
    }

    /// As [`Backbone::hidden`], on slices. Tokens were checked.
    fn hidden_on_slices(
        &self,
        plain: &Plain,
        window: &Window<'_>,
        cache: Option<&mut KvCache>,
        additions: Additions<'_>,
    ) -> Result<Tensor> {
        let length = window.tokens.len();
        let positions: Vec<usize> =
            window.positions.iter().map(|p| usize::try_from(*p).unwrap_or(usize::MAX)).collect();
        if let Some(bad) = window.positions.iter().find(|p| !(0..self.config.positions).contains(*p)) {
            return Err(ModelError::load("window", format!("position {bad} is outside 0..{}", self.config.positions)));
        }
        let prefix = match &cache {
            Some(cache) => {
                cache.check_room(length as i64)?;
                cache.len() as usize
            }
            None => 0,
        };
        let hidden = self.config.hidden as usize;
        let mut x = self.embedding.rows(window.tokens, hidden)?;
        let open = window.visibility.open(length as i64);
        for mask in additions.adapters.iter().filter_map(|adapter| adapter.mask.as_ref()).filter(|_| open.has_masks()) {
            let mask = rows_of(mask)?;
            for (row, token) in x.chunks_exact_mut(hidden.max(1)).zip(window.tokens) {
                if *token == self.config.mask_token {
                    row.iter_mut().zip(&mask).for_each(|(x, mask)| *x += mask);
                }
            }
        }
        let seen = window.visibility.seen(prefix, length);
        let hidden = plain.hidden(&self.config, x, &positions, (&seen, &open), cache, additions)?;
        Ok(Tensor::f_from_slice(&hidden)?.f_view([length as i64, self.config.hidden])?)
    }

    /// Logits of every row of hidden states, as numbers.
    ///
    /// # Shapes
    /// `hidden: [rows, hidden] kind` -> `[rows * vocabulary]`.
    pub fn logit_rows(&self, hidden: &Tensor) -> Result<Vec<f32>> {
        self.head.rows(hidden, self.kind)
    }

    /// Logits of every row of hidden states.
    ///
    /// # Shapes
    /// `hidden: [rows, hidden] kind` -> `[rows, vocabulary] f32`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        Ok(self.head.forward(hidden, &[], self.kind)?.f_to_kind(Kind::Float)?)
    }

    /// The gradient of hidden states, given that of their logits.
    ///
    /// # Shapes
    /// `gradient: [rows, vocabulary] f32` -> `[rows, hidden] kind`.
    pub(crate) fn logits_backward(&self, gradient: &Tensor) -> Result<Tensor> {
        self.head.backward(&gradient.f_to_kind(self.kind)?)
    }

    fn activate(&self, wide: &Tensor) -> Result<Tensor> {
        if !self.config.gated {
            return Ok(wide.f_gelu("tanh")?);
        }
        let [gate, up] = two(wide, [self.config.feed_forward; 2], 1)?;
        Ok(gate.f_silu()?.f_mul(&up)?)
    }

    fn scope(&self, visibility: &Visibility<'_>, prefix: i64, length: i64) -> Result<Scope> {
        let Visibility::Segments(roles) = visibility else {
            return Ok(Scope::Window(visibility.mask(prefix, length, self.device)?));
        };
        let of = |rows: std::ops::Range<usize>| -> Result<Chunk> {
            let own = Visibility::Segments(&roles[rows.clone()]);
            let mask = own.mask(prefix, rows.len() as i64, self.device)?;
            let mask = mask.map(|mask| mask.f_to_kind(self.kind)?.f_unsqueeze(0)?.f_unsqueeze(0)).transpose()?;
            Ok(Chunk { start: rows.start as i64, rows: rows.len() as i64, mask })
        };
        let chunks = visibility.chunks().unwrap_or_default().into_iter().map(of).collect::<Result<_>>()?;
        let kept = roles.iter().all(|role| role.kind == SegmentKind::Suffix);
        Ok(Scope::Chunks { chunks, kept })
    }

    /// Attention of segments: each chunk of them on its own behind the prefix, by libtorch's fused kernel, which keeps no scores.
    /// Nothing is written into the cache, so that gradients pass.
    ///
    /// # Shapes
    /// `queries: [heads, length, head]`, `keys`, `values: [kv_heads, length, head]` -> `[length, heads * head]`.
    fn attend_chunks(
        &self,
        chunks: &[Chunk],
        layer: usize,
        [queries, keys, values]: [&Tensor; 3],
        cache: Option<&KvCache>,
    ) -> Result<Tensor> {
        let BackboneConfig { heads, kv_heads, head, .. } = self.config;
        let prefix = cache.map(|cache| cache.prefix(layer)).transpose()?;
        let mut parts = Vec::with_capacity(chunks.len());
        for Chunk { start, rows, mask } in chunks {
            // Each key and value head serves a group of query heads.
            let grouped = |prefix: Option<&Tensor>, own: &Tensor| -> Result<Tensor> {
                let own = own.f_narrow(1, *start, *rows)?;
                let all = match prefix {
                    Some(prefix) => Tensor::f_cat(&[prefix, &own], 1)?,
                    None => own,
                };
                let seen = all.size().get(1).copied().unwrap_or(0);
                let wide = all.f_unsqueeze(1)?.f_expand([kv_heads, heads / kv_heads, seen, head], false)?;
                Ok(wide.f_reshape([1, heads, seen, head])?)
            };
            let keys = grouped(prefix.as_ref().map(|(keys, _)| keys), keys)?;
            let values = grouped(prefix.as_ref().map(|(_, values)| values), values)?;
            let queries = queries.f_narrow(1, *start, *rows)?.f_unsqueeze(0)?;
            let mask = mask.as_ref();
            let mixed =
                Tensor::f_scaled_dot_product_attention(&queries, &keys, &values, mask, 0.0, false, None, false)?;
            parts.push(mixed.f_squeeze_dim(0)?.f_transpose(0, 1)?.f_reshape([*rows, heads * head])?);
        }
        Ok(Tensor::f_cat(&parts, 0)?)
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
        scope: &Scope,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor> {
        let BackboneConfig { heads, kv_heads, head, .. } = self.config;
        let length = qkv.size().first().copied().unwrap_or(0);
        let group = heads / kv_heads;
        let all = qkv.f_view([length, heads + 2 * kv_heads, head])?;
        // Queries and keys are rotated together, then split; head-major order makes each head one matrix.
        let [unrotated, values] = two(&all, [heads + kv_heads, kv_heads], 1)?;
        let rotated = rotation.apply(&unrotated, self.kind)?.f_transpose(0, 1)?;
        let [queries, keys] = two(&rotated, [heads, kv_heads], 0)?;
        let values = values.f_transpose(0, 1)?;
        let mask = match scope {
            Scope::Window(mask) => mask.as_ref(),
            Scope::Chunks { chunks, kept } => {
                let mixed = self.attend_chunks(chunks, layer, [&queries, &keys, &values], cache.as_deref())?;
                if let Some(cache) = cache.filter(|_| *kept) {
                    let _ = cache.extend(layer, &keys, &values)?;
                }
                return Ok(mixed);
            }
        };
        let queries = queries.f_reshape([kv_heads, group * length, head])?;
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

/// Splits a tensor in two. Going back, the parts are joined in one pass, where each narrowed part would be a whole of zeros.
fn two(tensor: &Tensor, sizes: [i64; 2], dimension: i64) -> Result<[Tensor; 2]> {
    let parts = tensor.f_split_with_sizes(sizes, dimension)?;
    parts.try_into().map_err(|_| ModelError::load("layer", format!("{:?} does not split in two", tensor.size())))
}
