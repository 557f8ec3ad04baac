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
//! Reading order: [`dtype`], [`source`], [`storage`], [`safetensors`], [`gguf`], [`dequant`], and with the feature `parquet`
//! [`v2`], [`sidecar`], [`convert`], [`probe`]; [`error`].

#[cfg(feature = "parquet")]
pub mod convert;
pub mod dequant;
pub mod dtype;
pub mod error;
pub mod gguf;
mod mapping;
#[cfg(feature = "parquet")]
pub mod probe;
pub mod safetensors;
#[cfg(feature = "parquet")]
pub mod sidecar;
pub mod source;
pub mod storage;
#[cfg(feature = "parquet")]
pub mod v2;

pub use dtype::DType;
pub use error::{OpenError, TensorError};
pub use gguf::{GgufFile, GgufVocabulary, MetadataArray, MetadataValue};
pub use safetensors::SafetensorsFile;
pub use source::{TensorInfo, TensorSource, open};
pub use storage::Storage;
#[cfg(feature = "parquet")]
pub use {
    error::WriteError,
    v2::{V2File, V2Writer},
};
