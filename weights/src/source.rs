//! One interface to named tensors, whatever file they lie in.

use std::fmt::Debug;
use std::path::Path;

use bytes::Bytes;

use crate::{DType, GgufFile, OpenError, SafetensorsFile, Storage, TensorError, dequant};

/// What is known of a tensor without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, unique in its file.
    pub name: String,
    /// Extents, outermost first, as in PyTorch: `[rows, columns]`. Empty for a scalar.
    pub shape: Vec<usize>,
    /// How the elements are stored.
    pub dtype: DType,
    /// Size of the stored form (bytes).
    pub bytes: usize,
}

impl TensorInfo {
    /// How many elements the tensor has. Opening a file checks that this does not overflow.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Named tensors that can be read in any order, from any thread.
pub trait TensorSource: Debug + Send + Sync {
    /// All tensors, in the order of the file.
    fn tensors(&self) -> &[TensorInfo];

    /// Looks a tensor up by name; constant time.
    fn find(&self, name: &str) -> Option<&TensorInfo>;

    /// The stored bytes, shared with the file; nothing is copied, no alignment is promised.
    fn raw(&self, name: &str) -> Result<Bytes, TensorError>;

    /// Hints that a tensor's pages are not needed soon, so that a pass over a large file keeps a small footprint.
    fn release(&self, _name: &str) {}

    /// Looks a tensor up by name.
    fn info(&self, name: &str) -> Result<&TensorInfo, TensorError> {
        self.find(name).ok_or_else(|| TensorError::Missing(name.to_owned()))
    }

    /// Decodes the elements `start .. start + out.len()`, in row-major order, into `out`. The range must fill whole
    /// blocks of the stored type. Integers and doubles round to the nearest `f32`; booleans become 0 and 1.
    fn decode_range(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), TensorError> {
        let info = self.info(name)?;
        let refused = || TensorError::Range {
            tensor: name.to_owned(),
            dtype: info.dtype,
            elements: info.elements(),
            start,
            end: start.saturating_add(out.len()),
        };
        let end = start.checked_add(out.len()).filter(|&end| end <= info.elements()).ok_or_else(refused)?;
        let first = info.dtype.bytes_for(start).ok_or_else(refused)?;
        let last = info.dtype.bytes_for(end).ok_or_else(refused)?;
        let raw = self.raw(name)?;
        let stored = raw.get(first..last).ok_or_else(refused)?;
        dequant::decode(info.dtype, stored, out)
    }

    /// Decodes a whole tensor into `out`, which must have exactly its number of elements.
    fn decode_into(&self, name: &str, out: &mut [f32]) -> Result<(), TensorError> {
        let info = self.info(name)?;
        if out.len() != info.elements() {
            return Err(TensorError::Length { dtype: info.dtype, bytes: info.bytes, elements: out.len() });
        }
        self.decode_range(name, 0, out)
    }

    /// Decodes a whole tensor. Allocates four bytes per element; opening proved that the file backs each of them.
    fn to_f32(&self, name: &str) -> Result<Vec<f32>, TensorError> {
        let mut out = vec![0.0; self.info(name)?.elements()];
        self.decode_into(name, &mut out)?;
        Ok(out)
    }

    /// Decodes a whole tensor after checking that its shape is the one that the caller's network needs.
    fn to_f32_shaped(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorError> {
        let info = self.info(name)?;
        if info.shape != shape {
            return Err(TensorError::Shape {
                tensor: name.to_owned(),
                found: info.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        self.to_f32(name)
    }
}

/// Opens a weight file of any known format, by its first bytes rather than its name.
pub fn open(path: &Path) -> Result<Box<dyn TensorSource>, OpenError> {
    let storage = Storage::open(path)?;
    if storage.bytes().starts_with(b"GGUF") {
        return Ok(Box::new(GgufFile::parse(storage)?));
    }
    #[cfg(feature = "parquet")]
    if storage.bytes().starts_with(b"PAR1") {
        return Ok(Box::new(crate::v2::V2File::parse(storage)?));
    }
    // A safetensors file starts with the length of its header (u64, little-endian), then the header's brace.
    if storage.bytes().get(8) == Some(&b'{') {
        return Ok(Box::new(SafetensorsFile::parse(storage)?));
    }
    Err(OpenError::UnknownFormat)
}
