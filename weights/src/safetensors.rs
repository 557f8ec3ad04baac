//! Reads safetensors files: a JSON header and the plain bytes of the tensors.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use ::safetensors::{Dtype, SafeTensors};
use bytes::Bytes;

use crate::{DType, OpenError, Storage, TensorError, TensorInfo, TensorSource};

/// An open safetensors file. Opening parses the header and checks every offset; the tensors stay on disk.
#[derive(Debug)]
pub struct SafetensorsFile {
    storage: Storage,
    tensors: Vec<TensorInfo>,
    ranges: Vec<Range<usize>>,
    by_name: HashMap<String, usize>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Maps and parses a file. Cost: the header, microseconds per tensor.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::parse(Storage::open(path)?)
    }

    /// Parses bytes that are already mapped or in memory.
    pub fn parse(storage: Storage) -> Result<Self, OpenError> {
        let malformed = |reason: String| OpenError::Malformed { format: "safetensors", reason };
        // The crate checks that shapes, types and offsets agree, and that tensors cover the file without holes or overlap.
        let (header_bytes, header) = SafeTensors::read_metadata(storage.bytes()).map_err(OpenError::Safetensors)?;
        let data_start = header_bytes
            .checked_add(size_of::<u64>())
            .filter(|&start| start <= storage.bytes().len())
            .ok_or_else(|| malformed(format!("header of {header_bytes} bytes leaves the file")))?;
        let data_bytes = storage.bytes().len() - data_start;

        let names = header.offset_keys();
        let mut tensors = Vec::with_capacity(names.len());
        let mut ranges = Vec::with_capacity(names.len());
        let mut by_name = HashMap::with_capacity(names.len());
        for name in names {
            let entry = header.info(&name).ok_or_else(|| malformed(format!("tensor {name:?} is listed but absent")))?;
            let dtype = dtype_of(entry.dtype).ok_or_else(|| OpenError::UnsupportedDType {
                tensor: name.clone(),
                dtype: format!("{:?}", entry.dtype),
            })?;
            let (start, end) = entry.data_offsets;
            let bytes = entry
                .shape
                .iter()
                .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
                .and_then(|elements| dtype.bytes_for(elements))
                .filter(|&bytes| end <= data_bytes && end.checked_sub(start) == Some(bytes))
                .ok_or_else(|| {
                    malformed(format!("tensor {name:?} {:?} {dtype} does not fit bytes {start}..{end}", entry.shape))
                })?;
            if by_name.insert(name.clone(), tensors.len()).is_some() {
                return Err(malformed(format!("tensor {name:?} appears twice")));
            }
            ranges.push(data_start + start..data_start + end);
            tensors.push(TensorInfo { name, shape: entry.shape.clone(), dtype, bytes });
        }
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        Ok(Self { storage, tensors, ranges, by_name, metadata })
    }

    /// The free-form `__metadata__` of the header.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn range(&self, name: &str) -> Option<Range<usize>> {
        self.by_name.get(name).and_then(|&index| self.ranges.get(index)).cloned()
    }
}

impl TensorSource for SafetensorsFile {
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

fn dtype_of(dtype: Dtype) -> Option<DType> {
    Some(match dtype {
        Dtype::F64 => DType::F64,
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        Dtype::I64 => DType::I64,
        Dtype::U64 => DType::U64,
        Dtype::I32 => DType::I32,
        Dtype::U32 => DType::U32,
        Dtype::I16 => DType::I16,
        Dtype::U16 => DType::U16,
        Dtype::I8 => DType::I8,
        Dtype::U8 => DType::U8,
        Dtype::BOOL => DType::Bool,
        _ => return None,
    })
}
