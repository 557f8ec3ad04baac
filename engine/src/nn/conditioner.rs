//! Memories inside the network: cross-attention to their projected embeddings, behind gates that start at zero.
//!
//! With zero gates the network is what it was, bit for bit (the way of ControlNet, Zhang et al. 2023, and Flamingo's tanh gates,
//! Alayrac et al. 2022), so that an untrained conditioner changes nothing.

use mneme_weights::{SafetensorsFile, TensorSource};
use tch::{Device, Kind, Tensor};

use crate::adapter_file::{Stored, encode, replace};
use crate::error::{ModelError, Result};
use crate::nn::backbone::BackboneConfig;
use crate::nn::norm::Norm;

/// A block in every so many attends to memories.
pub const EVERY: usize = 3;
/// The file inside a conditioner's folder.
pub const NAME: &str = "conditioner.safetensors";

/// What the metadata must say.
const FORMAT: &str = "mneme-conditioner/1";

/// Cross-attention of one block.
#[derive(Debug)]
struct Cross {
    norm: Norm,
    /// `[hidden, hidden] f32` each.
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    /// `[1] f32`: the share is its tanh.
    gate: Tensor,
}

/// Projects embeddings of memories and mixes them into the residual stream of every third block.
#[derive(Debug)]
pub struct Conditioner {
    /// `[hidden, dimensions] f32`.
    projection: Tensor,
    blocks: Vec<Cross>,
    heads: i64,
    dimensions: i64,
}

impl Conditioner {
    /// A new conditioner with zero gates; `uniform` draws numbers in `[0, 1)`.
    pub fn zeroed(
        config: &BackboneConfig,
        dimensions: i64,
        device: Device,
        mut uniform: impl FnMut() -> f64,
    ) -> Result<Self> {
        let hidden = config.hidden;
        let mut matrix = |rows: i64, columns: i64| -> Result<Tensor> {
            let bound = 1.0 / (columns as f64).sqrt();
            let values: Vec<f32> = (0..rows * columns).map(|_| ((uniform() * 2.0 - 1.0) * bound) as f32).collect();
            Ok(Tensor::f_from_slice(&values)?.f_view([rows, columns])?.f_to_device(device)?)
        };
        let projection = matrix(hidden, dimensions)?;
        let mut blocks = Vec::new();
        for _ in 0..config.layers.div_ceil(EVERY) {
            blocks.push(Cross {
                norm: Norm::rms(Tensor::f_ones([hidden], (Kind::Float, device))?, config.norm_epsilon),
                query: matrix(hidden, hidden)?,
                key: matrix(hidden, hidden)?,
                value: matrix(hidden, hidden)?,
                output: matrix(hidden, hidden)?,
                gate: Tensor::f_zeros([1], (Kind::Float, device))?,
            });
        }
        Ok(Self { projection, blocks, heads: config.heads, dimensions })
    }

    /// Reads a trained conditioner, whose file names the base it belongs to.
    pub fn read(
        folder: &std::path::Path,
        config: &BackboneConfig,
        dimensions: i64,
        base: mneme_base::ContentHash,
        device: Device,
    ) -> Result<Self> {
        let file = SafetensorsFile::open(&folder.join(NAME))?;
        if let Some(other) = file.metadata().get("format").filter(|format| *format != FORMAT) {
            return Err(ModelError::load("conditioner", format!("its format is {other}, expected {FORMAT}")));
        }
        if file.metadata().get("base_hash").map(String::as_str) != Some(base.to_string().as_str()) {
            return Err(ModelError::load("conditioner", format!("it does not belong to base {base}")));
        }
        let tensor = |name: &str, shape: &[i64]| -> Result<Tensor> {
            let extents: Vec<usize> = shape.iter().map(|extent| *extent as usize).collect();
            let values = file.to_f32_shaped(name, &extents)?;
            Ok(Tensor::f_from_slice(&values)?.f_view(shape)?.f_to_device(device)?)
        };
        let square = [config.hidden, config.hidden];
        let mut blocks = Vec::new();
        for index in 0..config.layers.div_ceil(EVERY) {
            let name = |part: &str| format!("blocks.{index}.{part}");
            blocks.push(Cross {
                norm: Norm::rms(tensor(&name("norm"), &[config.hidden])?, config.norm_epsilon),
                query: tensor(&name("query"), &square)?,
                key: tensor(&name("key"), &square)?,
                value: tensor(&name("value"), &square)?,
                output: tensor(&name("output"), &square)?,
                gate: tensor(&name("gate"), &[1])?,
            });
        }
        let projection = tensor("projection", &[config.hidden, dimensions])?;
        Ok(Self { projection, blocks, heads: config.heads, dimensions })
    }

    /// All tensors with their names, in the order of a file: what is trained and what is written.
    ///
    /// # Shapes
    /// `projection: [hidden, dimensions]`; for each block `norm: [hidden]`, `query`, `key`, `value`, `output:
    /// [hidden, hidden]`, `gate: [1]`; all f32.
    pub fn named(&self) -> Vec<(String, &Tensor)> {
        let mut all = vec![("projection".to_owned(), &self.projection)];
        for (index, cross) in self.blocks.iter().enumerate() {
            let parts = [
                ("norm", cross.norm.weight()),
                ("query", &cross.query),
                ("key", &cross.key),
                ("value", &cross.value),
                ("output", &cross.output),
                ("gate", &cross.gate),
            ];
            all.extend(parts.map(|(part, tensor)| (format!("blocks.{index}.{part}"), tensor)));
        }
        all
    }

    /// Writes it so that a crash leaves the old file or the new one; `base` is what it was trained on.
    pub fn write(&self, folder: &std::path::Path, base: mneme_base::ContentHash) -> Result<()> {
        let tensors = self.named().into_iter().map(|(name, tensor)| (name, tensor.shallow_clone())).collect();
        let metadata = [("format", FORMAT.to_owned()), ("base_hash", base.to_string())];
        fs_err::create_dir_all(folder)?;
        replace(&folder.join(NAME), &encode(&metadata, tensors, Stored::F32)?)
    }

    /// How many numbers it trains.
    pub fn parameters(&self) -> u64 {
        self.named().iter().map(|(_, tensor)| tensor.numel() as u64).sum()
    }

    /// Projects embeddings of memories into the network's width.
    ///
    /// # Shapes
    /// `embeddings`: each `[dimensions]` -> `[memories, hidden] f32`.
    pub fn project(&self, embeddings: &[&[f32]]) -> Result<Tensor> {
        if embeddings.is_empty() || embeddings.iter().any(|one| one.len() as i64 != self.dimensions) {
            let problem = format!("{} embeddings, each needs {} dimensions", embeddings.len(), self.dimensions);
            return Err(ModelError::load("memories", problem));
        }
        let all = Tensor::f_from_slice(&embeddings.concat())?.f_view([embeddings.len() as i64, self.dimensions])?;
        Ok(all.f_to_device(self.projection.device())?.f_linear(&self.projection, None::<&Tensor>)?)
    }

    /// Whether memories are mixed in behind a block.
    pub fn is_behind(&self, block: usize) -> bool {
        block.is_multiple_of(EVERY) && block / EVERY < self.blocks.len()
    }

    /// The residual stream after memories were mixed in behind a block; unchanged behind blocks without cross-attention.
    ///
    /// # Shapes
    /// `x: [length, hidden] f32`, `memories: [memories, hidden] f32` -> `[length, hidden] f32`.
    pub(crate) fn mix(&self, block: usize, x: &Tensor, memories: &Tensor) -> Result<Tensor> {
        let Some(cross) = self.blocks.get(block / EVERY).filter(|_| block.is_multiple_of(EVERY)) else {
            return Ok(x.shallow_clone());
        };
        let hidden = x.size().get(1).copied().unwrap_or(0);
        let head = hidden / self.heads;
        let heads = |tensor: &Tensor, weight: &Tensor| -> Result<Tensor> {
            let rows = tensor.size().first().copied().unwrap_or(0);
            let wide = tensor.f_linear(weight, None::<&Tensor>)?;
            Ok(wide.f_view([rows, self.heads, head])?.f_transpose(0, 1)?)
        };
        let queries = heads(&cross.norm.forward(x, Kind::Float)?, &cross.query)?;
        let (keys, values) = (heads(memories, &cross.key)?, heads(memories, &cross.value)?);
        let scores = queries.f_bmm(&keys.f_transpose(1, 2)?)?.f_mul_scalar(1.0 / (head as f64).sqrt())?;
        let mixed = scores.f_softmax(-1, Kind::Float)?.f_bmm(&values)?.f_transpose(0, 1)?;
        let mixed = mixed.f_reshape([-1, hidden])?.f_linear(&cross.output, None::<&Tensor>)?;
        Ok(x.f_addcmul(&mixed, &cross.gate.f_tanh()?)?)
    }

    /// Opens or closes all gates; for tests and ablations.
    pub fn set_gates(&mut self, value: f64) -> Result<()> {
        let _guard = tch::no_grad_guard();
        for cross in &mut self.blocks {
            let _ = cross.gate.f_fill_(value)?;
        }
        Ok(())
    }
}
