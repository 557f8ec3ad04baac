//! What can go wrong while opening a weight file and while reading a tensor from it.

use crate::DType;

/// Why a weight file cannot be opened. Opening never panics and never allocates by a length that the file does not back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The operating system refused; the error names the path.
    #[error("cannot map the weight file")]
    Io(#[from] std::io::Error),
    /// A directory, pipe or device; mapping one would block or fault.
    #[error("{0} is not a regular file")]
    NotAFile(String),
    /// No known magic number.
    #[error("the file is neither GGUF, Parquet nor safetensors")]
    UnknownFormat,
    /// The file ends inside the thing named.
    #[error("the file ends inside {what}: {needed} bytes needed at offset {offset}, {available} left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where the read started (bytes from the start of the file).
        offset: usize,
        /// How many bytes the read needs.
        needed: u64,
        /// How many bytes are left.
        available: usize,
    },
    /// The version of the format is not one that this crate reads.
    #[error("{format} version {version} is not supported ({supported})")]
    UnsupportedVersion {
        /// Name of the format.
        format: &'static str,
        /// The version found.
        version: u32,
        /// The versions that are read.
        supported: &'static str,
    },
    /// A tensor has an element type that this crate does not decode.
    #[error("tensor {tensor:?} has the unsupported element type {dtype}")]
    UnsupportedDType {
        /// Name of the tensor.
        tensor: String,
        /// The type as the format names it.
        dtype: String,
    },
    /// The bytes contradict the format.
    #[error("malformed {format} file: {reason}")]
    Malformed {
        /// Name of the format.
        format: &'static str,
        /// What is wrong, with the value and the bound.
        reason: String,
    },
    /// The safetensors header was refused.
    #[error("malformed safetensors header")]
    Safetensors(#[source] ::safetensors::SafeTensorError),
}

/// Why a tensor cannot be read from an open file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// No tensor has this name.
    #[error("there is no tensor named {0:?}")]
    Missing(String),
    /// The range is outside the tensor or cuts a block.
    #[error(
        "elements {start}..{end} of tensor {tensor:?} ({dtype}, {elements} elements) cannot be decoded: \
         the range must lie inside and fill whole blocks of {}", dtype.block_elements()
    )]
    Range {
        /// Name of the tensor.
        tensor: String,
        /// Its element type.
        dtype: DType,
        /// How many elements it has.
        elements: usize,
        /// First element asked for.
        start: usize,
        /// One past the last element asked for.
        end: usize,
    },
    /// The bytes and the elements do not belong together.
    #[error("{bytes} bytes of {dtype} do not decode into {elements} elements")]
    Length {
        /// The element type.
        dtype: DType,
        /// Bytes given.
        bytes: usize,
        /// Elements wanted.
        elements: usize,
    },
    /// The tensor does not have the shape that the caller needs.
    #[error("tensor {tensor:?} has the shape {found:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// The shape in the file.
        found: Vec<usize>,
        /// The shape wanted.
        expected: Vec<usize>,
    },
}
