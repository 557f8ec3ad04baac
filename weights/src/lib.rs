//! WeightLoader: reads model weights from safetensors and GGUF files without copying them. Knows nothing of networks,
//! tokenizers or sockets, and trusts no file.
//!
//! ```
//! use mneme_weights::{GgufFile, TensorSource};
//! # fn show(path: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! let file = GgufFile::open(path)?;
//! for tensor in file.tensors() {
//!     println!("{} {:?} {}", tensor.name, tensor.shape, tensor.dtype);
//! }
//! let norm: Vec<f32> = file.to_f32("output_norm.weight")?;
//! # Ok(()) }
//! ```
//!
//! Reading order: [`dtype`], [`source`], [`storage`], [`safetensors`], [`gguf`], [`dequant`], [`error`].

pub mod dequant;
pub mod dtype;
pub mod error;
pub mod gguf;
mod mapping;
pub mod safetensors;
pub mod source;
pub mod storage;

pub use dtype::DType;
pub use error::{OpenError, TensorError};
pub use gguf::{GgufFile, GgufVocabulary, MetadataArray, MetadataValue};
pub use safetensors::SafetensorsFile;
pub use source::{TensorInfo, TensorSource, open};
pub use storage::Storage;
