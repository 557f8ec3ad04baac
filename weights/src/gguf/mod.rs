//! Reads GGUF files (versions 2 and 3, little-endian): metadata, vocabulary, tensors.
//!
//! Layout, after the specification of ggml: magic, version, counts, key-value metadata, tensor descriptions, padding to
//! `general.alignment`, data. Extents are stored innermost first; this crate turns them round to PyTorch's order.
//!
//! Beware: for llama-type models the *content* of `attn_q.weight` and `attn_k.weight` is row-permuted for interleaved
//! rotary embedding. [`unpermute_rotary_rows`] gives back the half-split order that PyTorch checkpoints use.

mod cursor;
mod metadata;
mod names;
mod vocabulary;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use cursor::Cursor;

pub use metadata::{MetadataArray, MetadataValue};
pub use names::huggingface_name;
pub use vocabulary::GgufVocabulary;

use crate::{DType, OpenError, Storage, TensorError, TensorInfo, TensorSource};

/// ggml tensors have at most four axes.
const AXES_MAX: u32 = 4;
/// A tensor description takes at least a name length, an axis count, a type and an offset (bytes).
const TENSOR_INFO_BYTES_MIN: usize = 8 + 4 + 4 + 8;
/// A key-value pair takes at least a key length, a type and one byte (bytes).
const KEY_VALUE_BYTES_MIN: usize = 8 + 4 + 1;
/// The alignment when the file names none (bytes).
const ALIGNMENT_DEFAULT: u64 = 32;
/// No real file aligns to more than a huge page (bytes).
const ALIGNMENT_MAX: u64 = 1 << 21;

/// An open GGUF file. Opening parses the header and checks every offset; the tensors stay on disk.
#[derive(Debug)]
pub struct GgufFile {
    storage: Storage,
    metadata: Vec<(String, MetadataValue)>,
    metadata_by_key: HashMap<String, usize>,
    tensors: Vec<TensorInfo>,
    ranges: Vec<Range<usize>>,
    by_name: HashMap<String, usize>,
}

impl GgufFile {
    /// Maps and parses a file. Cost: the header; a vocabulary of 50,000 tokens takes some milliseconds.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::parse(Storage::open(path)?)
    }

    /// Parses bytes that are already mapped or in memory.
    pub fn parse(storage: Storage) -> Result<Self, OpenError> {
        let mut cursor = Cursor::new(storage.bytes());
        if cursor.take(4, "the magic number")? != b"GGUF" {
            return Err(OpenError::UnknownFormat);
        }
        let version = cursor.u32("the version")?;
        if !(2..=3).contains(&version) {
            let supported = "2 and 3, little-endian, are read";
            return Err(OpenError::UnsupportedVersion { format: "GGUF", version, supported });
        }
        let tensor_count = cursor.count(TENSOR_INFO_BYTES_MIN, "the tensor count")?;
        let metadata_count = cursor.count(KEY_VALUE_BYTES_MIN, "the metadata count")?;

        let mut metadata = Vec::new();
        let mut metadata_by_key = HashMap::new();
        for _ in 0..metadata_count {
            let key = cursor.string("a metadata key")?;
            let value = metadata::read_value(&mut cursor)?;
            if metadata_by_key.insert(key.clone(), metadata.len()).is_some() {
                return Err(malformed(format!("metadata key {key:?} appears twice")));
            }
            metadata.push((key, value));
        }

        let descriptions = (0..tensor_count).map(|_| read_tensor_info(&mut cursor)).collect::<Result<Vec<_>, _>>()?;
        let alignment = match metadata_by_key.get("general.alignment").and_then(|&index| metadata.get(index)) {
            None => ALIGNMENT_DEFAULT,
            Some((_, value)) => value
                .as_u64()
                .filter(|alignment| alignment.is_power_of_two() && *alignment <= ALIGNMENT_MAX)
                .ok_or_else(|| malformed(format!("general.alignment is {value:?}, expected a power of two")))?,
        };
        let data_start = (cursor.offset() as u64).next_multiple_of(alignment);

        let mut tensors = Vec::with_capacity(descriptions.len());
        let mut ranges = Vec::with_capacity(descriptions.len());
        let mut by_name = HashMap::with_capacity(descriptions.len());
        for (info, offset) in descriptions {
            if offset % alignment != 0 {
                return Err(malformed(format!(
                    "tensor {:?} starts at {offset}, not a multiple of {alignment}",
                    info.name
                )));
            }
            let range = usize::try_from(offset.saturating_add(data_start))
                .ok()
                .and_then(|start| Some(start..start.checked_add(info.bytes)?))
                .filter(|range| range.end <= storage.bytes().len())
                .ok_or_else(|| {
                    malformed(format!("tensor {:?} ({} bytes at {offset}) leaves the file", info.name, info.bytes))
                })?;
            if by_name.insert(info.name.clone(), tensors.len()).is_some() {
                return Err(malformed(format!("tensor {:?} appears twice", info.name)));
            }
            ranges.push(range);
            tensors.push(info);
        }
        refuse_overlap(&tensors, &ranges)?;
        Ok(Self { storage, metadata, metadata_by_key, tensors, ranges, by_name })
    }

    /// All metadata, in the order of the file.
    pub fn metadata(&self) -> &[(String, MetadataValue)] {
        &self.metadata
    }

    /// Looks a metadata value up by key; constant time.
    pub fn get(&self, key: &str) -> Option<&MetadataValue> {
        self.metadata_by_key.get(key).and_then(|&index| self.metadata.get(index)).map(|(_, value)| value)
    }

    /// The model's architecture (`llama`, `qwen2`, `bert`), the prefix of its other keys.
    pub fn architecture(&self) -> Option<&str> {
        self.get("general.architecture")?.as_str()
    }

    /// Looks up `<architecture>.<key>`, for example `block_count` or `attention.head_count`.
    pub fn model_value(&self, key: &str) -> Option<&MetadataValue> {
        self.get(&format!("{}.{key}", self.architecture()?))
    }

    /// The embedded tokenizer, `None` when the file has none.
    pub fn vocabulary(&self) -> Result<Option<GgufVocabulary>, OpenError> {
        vocabulary::read(self)
    }

    fn range(&self, name: &str) -> Option<Range<usize>> {
        self.by_name.get(name).and_then(|&index| self.ranges.get(index)).cloned()
    }
}

impl TensorSource for GgufFile {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&index| self.tensors.get(index))
    }

    fn raw(&self, name: &str) -> Result<Bytes, TensorError> {
        let range = self.range(name).ok_or_else(|| TensorError::Missing(name.to_owned()))?;
        Ok(self.storage.slice(range).expect("parse checked every range"))
    }

    fn release(&self, name: &str) {
        if let Some(range) = self.range(name) {
            self.storage.release(range);
        }
    }
}

/// Reorders the rows of a GGUF llama `attn_q`/`attn_k` matrix from interleaved to half-split rotary order, the order of
/// PyTorch checkpoints. Within each head, GGUF row `2 i + h` is PyTorch row `h * head_dim / 2 + i` (`h` in 0..2).
///
/// # Shapes
/// `weight: [heads * head_dim, columns]` row-major, `head_dim` even; the elements may be the bytes of quantised rows, since
/// rows move whole. Returns `None` when the length does not fit.
pub fn unpermute_rotary_rows<T: Copy>(weight: &[T], heads: usize, head_dim: usize) -> Option<Vec<T>> {
    let rows = heads.checked_mul(head_dim).filter(|&rows| rows > 0 && head_dim.is_multiple_of(2))?;
    if !weight.len().is_multiple_of(rows) {
        return None;
    }
    let columns = weight.len() / rows;
    let mut out = Vec::with_capacity(weight.len());
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (side, index) = (within / (head_dim / 2), within % (head_dim / 2));
        let from = (head * head_dim + 2 * index + side) * columns;
        out.extend_from_slice(&weight[from..from + columns]);
    }
    Some(out)
}

fn read_tensor_info(cursor: &mut Cursor<'_>) -> Result<(TensorInfo, u64), OpenError> {
    let name = cursor.string("a tensor name")?;
    let axes = cursor.u32("an axis count")?;
    if axes > AXES_MAX {
        return Err(malformed(format!("tensor {name:?} has {axes} axes, at most {AXES_MAX} are possible")));
    }
    let mut shape = Vec::with_capacity(axes as usize);
    for _ in 0..axes {
        let extent = cursor.u64("an extent")?;
        shape.push(usize::try_from(extent).map_err(|_| malformed(format!("tensor {name:?} has the extent {extent}")))?);
    }
    shape.reverse();
    let tag = cursor.u32("a tensor type")?;
    let offset = cursor.u64("a tensor offset")?;
    let dtype = dtype_of(tag)
        .ok_or_else(|| OpenError::UnsupportedDType { tensor: name.clone(), dtype: ggml_type_name(tag) })?;
    let row = shape.last().copied().unwrap_or(1);
    let bytes = shape
        .iter()
        .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
        .filter(|_| row.is_multiple_of(dtype.block_elements()))
        .and_then(|elements| dtype.bytes_for(elements))
        .ok_or_else(|| malformed(format!("tensor {name:?} cannot have the shape {shape:?} in {dtype}")))?;
    Ok((TensorInfo { name, shape, dtype, bytes }, offset))
}

/// Overlap has no honest use and would let a small file pose as a large one.
fn refuse_overlap(tensors: &[TensorInfo], ranges: &[Range<usize>]) -> Result<(), OpenError> {
    let mut order: Vec<usize> = (0..ranges.len()).filter(|&index| !ranges[index].is_empty()).collect();
    order.sort_unstable_by_key(|&index| ranges[index].start);
    for pair in order.windows(2) {
        if ranges[pair[0]].end > ranges[pair[1]].start {
            let (first, second) = (&tensors[pair[0]].name, &tensors[pair[1]].name);
            return Err(malformed(format!("tensors {first:?} and {second:?} overlap")));
        }
    }
    Ok(())
}

fn dtype_of(tag: u32) -> Option<DType> {
    Some(match tag {
        0 => DType::F32,
        1 => DType::F16,
        2 => DType::Q4_0,
        3 => DType::Q4_1,
        8 => DType::Q8_0,
        12 => DType::Q4K,
        14 => DType::Q6K,
        24 => DType::I8,
        25 => DType::I16,
        26 => DType::I32,
        27 => DType::I64,
        28 => DType::F64,
        30 => DType::BF16,
        _ => return None,
    })
}

/// The names that ggml gives to types which exist but are not decoded here.
fn ggml_type_name(tag: u32) -> String {
    let name = match tag {
        6 => "Q5_0",
        7 => "Q5_1",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        13 => "Q5_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ type",
        34 | 35 => "a ternary type",
        39 => "MXFP4",
        _ => return format!("{tag} (unknown)"),
    };
    format!("{name} ({tag})")
}

fn malformed(reason: String) -> OpenError {
    OpenError::Malformed { format: "GGUF", reason }
}
