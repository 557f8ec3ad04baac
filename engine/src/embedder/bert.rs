//! BERT (Devlin et al. 2018) as sentence encoder: post-norm blocks, learnt positions, mean pooling.

use mneme_weights::{SafetensorsFile, TensorSource};
use tch::{Device, Kind, Tensor};

use crate::error::{ModelError, Result};
use crate::load::Reader;
use crate::nn::linear::Linear;
use crate::nn::norm::Norm;
use crate::runtime::Runtime;

/// Added to the variance in BERT's norms.
pub(super) const NORM_EPSILON: f64 = 1e-12;
/// Layers that are looked for; the largest BERT has 24.
const LAYERS_MAX: usize = 256;
/// Width of an attention head; all MiniLM sizes use it.
pub(super) const HEAD: i64 = 32;

/// The sizes of a network, read off its tensors.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) hidden: usize,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    pub(super) segments: usize,
    pub(super) wide: usize,
    pub(super) layers: usize,
}

impl Shape {
    pub(super) fn of(file: &SafetensorsFile) -> Result<Self> {
        let extent = |name: &str, axis: usize| -> Result<usize> {
            let info = file.info(name)?;
            let extent = info.shape.get(axis).copied().filter(|extent| *extent > 0);
            extent.ok_or_else(|| ModelError::load(name, format!("its shape is {:?}", info.shape)))
        };
        let hidden = extent("embeddings.word_embeddings.weight", 1)?;
        if !hidden.is_multiple_of(HEAD as usize) {
            return Err(ModelError::load("embedder", format!("{hidden} is no multiple of the head width {HEAD}")));
        }
        let has = |layer: usize| file.find(&format!("encoder.layer.{layer}.attention.self.query.weight")).is_some();
        Ok(Self {
            hidden,
            vocabulary: extent("embeddings.word_embeddings.weight", 0)?,
            positions: extent("embeddings.position_embeddings.weight", 0)?,
            segments: extent("embeddings.token_type_embeddings.weight", 0)?,
            wide: extent("encoder.layer.0.intermediate.dense.weight", 0)?,
            layers: (0..LAYERS_MAX).take_while(|layer| has(*layer)).count(),
        })
    }

    /// Refuses texts that are empty or too long, and tokens that do not exist.
    pub(super) fn check(&self, texts: &[&[i64]]) -> Result<()> {
        let longest = texts.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        if longest == 0 || longest > self.positions || texts.iter().any(|tokens| tokens.is_empty()) {
            return Err(ModelError::load("batch", format!("its longest text has {longest} tokens")));
        }
        let known = 0..self.vocabulary as i64;
        match texts.iter().flat_map(|tokens| tokens.iter()).find(|id| !known.contains(*id)) {
            Some(bad) => Err(ModelError::load("batch", format!("token {bad} is outside 0..{}", self.vocabulary))),
            None => Ok(()),
        }
    }
}

#[derive(Debug)]
struct Block {
    qkv: Linear,
    output: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_norm: Norm,
}

/// The network.
#[derive(Debug)]
pub struct Bert {
    /// `[vocabulary, hidden] f32`.
    words: Tensor,
    /// `[positions, hidden] f32`, with the constant segment embedding added.
    places: Tensor,
    norm: Norm,
    blocks: Vec<Block>,
    hidden: i64,
    shape: Shape,
    kind: Kind,
    device: Device,
}

impl Bert {
    /// Loads the network; its sizes are those of the tensors in the file.
    pub fn load(file: &SafetensorsFile, runtime: Runtime) -> Result<Self> {
        let shape = Shape::of(file)?;
        let [hidden, vocabulary, positions, segments, wide] =
            [shape.hidden, shape.vocabulary, shape.positions, shape.segments, shape.wide].map(|extent| extent as i64);
        let reader = Reader { source: file, runtime };
        let vector = |name: &str, width: i64| reader.tensor(name, &[width], Kind::Float);
        let norm = |name: &str| -> Result<Norm> {
            let bias = vector(&format!("{name}.bias"), hidden)?;
            Ok(Norm::layer(vector(&format!("{name}.weight"), hidden)?, Some(bias), NORM_EPSILON))
        };
        let linear = |name: &str, out: i64, input: i64| -> Result<Linear> {
            let bias = reader.weight(&format!("{name}.bias"), &[out])?;
            Ok(Linear::dense(reader.weight(&format!("{name}.weight"), &[out, input])?, Some(bias)))
        };
        let mut blocks = Vec::new();
        for index in 0..shape.layers {
            let name = |part: &str| format!("encoder.layer.{index}.{part}");
            let stacked = |kind: &str, shape: &[i64]| -> Result<Tensor> {
                let part = |which: &str| reader.weight(&name(&format!("attention.self.{which}.{kind}")), shape);
                Ok(Tensor::f_cat(&[part("query")?, part("key")?, part("value")?], 0)?)
            };
            blocks.push(Block {
                qkv: Linear::dense(stacked("weight", &[hidden, hidden])?, Some(stacked("bias", &[hidden])?)),
                output: linear(&name("attention.output.dense"), hidden, hidden)?,
                attention_norm: norm(&name("attention.output.LayerNorm"))?,
                up: linear(&name("intermediate.dense"), wide, hidden)?,
                down: linear(&name("output.dense"), hidden, wide)?,
                feed_norm: norm(&name("output.LayerNorm"))?,
            });
        }
        let segment =
            reader.tensor("embeddings.token_type_embeddings.weight", &[segments, hidden], Kind::Float)?.f_get(0)?;
        let places = reader.tensor("embeddings.position_embeddings.weight", &[positions, hidden], Kind::Float)?;
        Ok(Self {
            words: reader.tensor("embeddings.word_embeddings.weight", &[vocabulary, hidden], Kind::Float)?,
            places: places.f_add(&segment)?,
            norm: norm("embeddings.LayerNorm")?,
            blocks,
            hidden,
            shape,
            kind: runtime.compute,
            device: runtime.device,
        })
    }

    /// Dimensions of its vectors.
    pub fn dimensions(&self) -> usize {
        self.hidden as usize
    }

    /// Embeds texts given as token ids; all are padded to one length, a multiple of `bucket`.
    ///
    /// # Shapes
    /// For each text a vector `[hidden] f32`, the mean over its tokens, not scaled to unit length.
    pub fn embed(&self, texts: &[&[i64]], bucket: usize) -> Result<Vec<Vec<f32>>> {
        self.shape.check(texts)?;
        let _guard = tch::no_grad_guard();
        let count = texts.len() as i64;
        let longest = texts.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
        let length = longest.next_multiple_of(bucket.max(1)).min(self.shape.positions);
        let mut ids = vec![0_i64; texts.len() * length];
        let mut weights = vec![0.0_f32; texts.len() * length];
        let mut hide = vec![f32::NEG_INFINITY; texts.len() * length];
        for (text, tokens) in texts.iter().enumerate() {
            let row = text * length..text * length + tokens.len();
            ids[row.clone()].copy_from_slice(tokens);
            weights[row.clone()].fill(1.0 / tokens.len() as f32);
            hide[row].fill(0.0);
        }
        let length = length as i64;
        let full = texts.iter().all(|tokens| tokens.len() as i64 == length);
        let ids = Tensor::f_from_slice(&ids)?.f_to_device(self.device)?;
        let words = self.words.f_index_select(0, &ids)?.f_view([count, length, self.hidden])?;
        let x = words.f_add(&self.places.f_narrow(0, 0, length)?)?.f_view([count * length, self.hidden])?;
        let mut x = self.norm.forward(&x, Kind::Float)?;
        let hide = if full {
            None
        } else {
            let shape = [count, 1, 1, length];
            Some(Tensor::f_from_slice(&hide)?.f_view(shape)?.f_to_device(self.device)?.f_to_kind(self.kind)?)
        };
        for block in &self.blocks {
            x = self.block(block, &x, hide.as_ref(), count, length)?;
        }
        let weights = Tensor::f_from_slice(&weights)?.f_view([count, 1, length])?.f_to_device(self.device)?;
        let pooled = weights.f_bmm(&x.f_view([count, length, self.hidden])?)?.f_view([count, self.hidden])?;
        Ok(Vec::<Vec<f32>>::try_from(&pooled)?)
    }

    fn block(&self, block: &Block, x: &Tensor, hide: Option<&Tensor>, count: i64, length: i64) -> Result<Tensor> {
        let heads = self.hidden / HEAD;
        let input = if self.kind == Kind::Float { x.shallow_clone() } else { x.f_to_kind(self.kind)? };
        let qkv = block.qkv.forward(&input, &[], self.kind)?.f_view([count, length, 3, heads, HEAD])?;
        let part = |index: i64| -> Result<Tensor> { Ok(qkv.f_select(2, index)?.f_transpose(1, 2)?) };
        let attended =
            Tensor::f_scaled_dot_product_attention(&part(0)?, &part(1)?, &part(2)?, hide, 0.0, false, None, false)?;
        let attended = attended.f_transpose(1, 2)?.f_reshape([count * length, self.hidden])?;
        let x = x.f_add(&block.output.forward(&attended, &[], self.kind)?)?;
        let x = block.attention_norm.forward(&x, Kind::Float)?;
        let input = if self.kind == Kind::Float { x.shallow_clone() } else { x.f_to_kind(self.kind)? };
        let wide = block.up.forward(&input, &[], self.kind)?.f_gelu("none")?;
        let x = x.f_add(&block.down.forward(&wide, &[], self.kind)?)?;
        block.feed_norm.forward(&x, Kind::Float)
    }
}
