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
    /// The Parquet library refused the file.
    #[cfg(feature = "parquet")]
    #[error("malformed Parquet file")]
    Parquet(#[source] ::parquet::errors::ParquetError),
    /// The Arrow library refused the file.
    #[cfg(feature = "parquet")]
    #[error("malformed Arrow file")]
    Arrow(#[source] arrow::error::ArrowError),
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
    /// The parts of a quantised tensor do not fit each other.
    #[cfg(feature = "parquet")]
    #[error("tensor {tensor:?} cannot be dequantised")]
    Codec {
        /// Name of the tensor.
        tensor: String,
        /// The codec's reason.
        #[source]
        source: mneme_quant::codec::CodecError,
    },
    /// The stored bytes are not those that were written.
    #[error("tensor {tensor:?} does not have the content that its hash promises")]
    HashMismatch {
        /// Name of the tensor.
        tensor: String,
    },
}

/// Why a weight file cannot be written.
#[cfg(feature = "parquet")]
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The operating system refused.
    #[error("cannot write the weight file")]
    Io(#[from] std::io::Error),
    /// The Parquet library refused.
    #[error("cannot write the Parquet file")]
    Parquet(#[from] ::parquet::errors::ParquetError),
    /// The Arrow library refused.
    #[error("cannot write the Arrow file")]
    Arrow(#[from] arrow::error::ArrowError),
    /// Two tensors have the same name.
    #[error("tensor {0:?} was written before")]
    Duplicate(String),
    /// The bytes do not fit the shape, or a part is too long for a Parquet page.
    #[error("tensor {tensor:?} cannot be stored: {reason}")]
    Tensor {
        /// Name of the tensor.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The source could not be read.
    #[error("cannot read tensor {tensor:?}")]
    Read {
        /// Name of the tensor.
        tensor: String,
        /// The reader's reason.
        #[source]
        source: TensorError,
    },
    /// A tensor could not be quantised.
    #[error("cannot quantise tensor {tensor:?}")]
    Codec {
        /// Name of the tensor.
        tensor: String,
        /// The codec's reason.
        #[source]
        source: mneme_quant::codec::CodecError,
    },
}
