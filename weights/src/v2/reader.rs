//! Reads Parquet V2: every tensor is a slice of the mapped file.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use arrow::array::{Array, AsArray, BinaryViewArray, Int32Array, StringViewArray};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use bytes::Bytes;
use half::f16;
use mneme_quant::codec::WEIGHTS_MAX;
use mneme_quant::{Granularity, Quantized, Scheme, Spec};
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::file::metadata::PageIndexPolicy;

use super::schema::{self, content_hash, matrix, spec_of};
use crate::{DType, OpenError, Storage, TensorError, TensorInfo, TensorSource, dequant};

/// The parts of a quantised tensor, shared with the file.
#[derive(Debug, Clone)]
pub struct QuantizedParts {
    /// The format. How the scales were found is not stored and reads as `Fit::Range`.
    pub spec: Spec,
    /// Rows: the product of all axes but the last.
    pub rows: usize,
    /// Columns: the last axis.
    pub columns: usize,
    /// Packed codes, row by row.
    pub codes: Bytes,
    /// Scales, f16 little-endian.
    pub scales: Bytes,
    /// Minimums, f16 little-endian; empty for symmetric formats.
    pub minimums: Bytes,
}

impl QuantizedParts {
    /// Copies rows `first..end` into a matrix of their own, for decoding or repacking.
    pub fn rows(&self, first: usize, end: usize) -> Option<Result<Quantized, mneme_quant::codec::CodecError>> {
        if first > end || end > self.rows {
            return None;
        }
        let row_bytes = self.spec.row_bytes(self.columns);
        let per_row = match self.spec.granularity {
            Granularity::OutChannel => Some(1),
            Granularity::Group(size) => Some(self.columns.div_ceil(size as usize)),
            Granularity::Tensor | Granularity::InChannel => None,
        };
        let halves = |bytes: &Bytes| -> Vec<f16> {
            let all = bytes.as_chunks::<2>().0;
            let wanted = match per_row {
                Some(per_row) if !all.is_empty() => &all[first * per_row..end * per_row],
                // No row needs no scale, whatever the matrix has.
                _ if first == end => &[],
                _ => all,
            };
            wanted.iter().map(|&half| f16::from_le_bytes(half)).collect()
        };
        let codes = self.codes[first * row_bytes..end * row_bytes].to_vec();
        let (scales, minimums) = (halves(&self.scales), halves(&self.minimums));
        Some(Quantized::from_parts(self.spec, end - first, self.columns, codes, scales, minimums))
    }
}

/// An open Parquet V2 file. Opening reads the footer and one page of each tensor; the tensors stay on disk.
#[derive(Debug)]
pub struct V2File {
    storage: Storage,
    tensors: Vec<TensorInfo>,
    rows: Vec<Row>,
    by_name: HashMap<String, usize>,
    attachments: BTreeMap<String, Row>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct Row {
    shape: Vec<usize>,
    dtype: DType,
    spec: Option<Spec>,
    codes: Bytes,
    scales: Bytes,
    minimums: Bytes,
    hash: [u8; 32],
}

impl V2File {
    /// Maps and parses a file.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        Self::parse(Storage::open(path)?)
    }

    /// Parses bytes that are already mapped or in memory.
    pub fn parse(storage: Storage) -> Result<Self, OpenError> {
        // The library answers some malformed files with a panic; that must not end the process.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Self::parse_inner(storage)))
            .unwrap_or_else(|_| Err(malformed("the Parquet library panicked".to_owned())))
    }

    fn parse_inner(storage: Storage) -> Result<Self, OpenError> {
        let options =
            ArrowReaderOptions::new().with_schema(schema::schema()).with_page_index_policy(PageIndexPolicy::Skip);
        let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(storage.bytes().clone(), options)
            .map_err(OpenError::Parquet)?;
        let file = builder.metadata().file_metadata();
        let mut metadata = BTreeMap::new();
        let mut version = None;
        for pair in file.key_value_metadata().into_iter().flatten() {
            let value = pair.value.clone().unwrap_or_default();
            if pair.key == schema::VERSION_KEY {
                version = Some(value);
            } else if let Some(key) = pair.key.strip_prefix(schema::USER_PREFIX) {
                metadata.insert(key.to_owned(), value);
            }
        }
        if version.as_deref() != Some(schema::VERSION) {
            return Err(malformed(format!("{} is {version:?}, expected {:?}", schema::VERSION_KEY, schema::VERSION)));
        }
        let rows = file.num_rows();
        if !(0..=schema::ROWS_MAX as i64).contains(&rows) {
            return Err(malformed(format!("{rows} rows, at most {} are read", schema::ROWS_MAX)));
        }
        let mut opened = Self {
            storage,
            tensors: Vec::new(),
            rows: Vec::new(),
            by_name: HashMap::new(),
            attachments: BTreeMap::new(),
            metadata,
        };
        for batch in builder.with_batch_size(256).build().map_err(OpenError::Parquet)? {
            opened.add(&batch.map_err(OpenError::Arrow)?)?;
        }
        if (opened.rows.len() + opened.attachments.len()) as i64 != rows {
            return Err(malformed(format!("the footer promises {rows} rows")));
        }
        // Each page that parsing touched brought its cached neighbours along; none of them is needed yet.
        opened.storage.release(0..opened.storage.bytes().len());
        Ok(opened)
    }

    fn add(&mut self, batch: &RecordBatch) -> Result<(), OpenError> {
        let columns = Columns::of(batch)?;
        for index in 0..batch.num_rows() {
            let name = columns.name.value(index);
            if name.is_empty() || name.len() > schema::NAME_BYTES_MAX {
                return Err(malformed(format!("a name of {} bytes", name.len())));
            }
            let refused = |what: &str| malformed(format!("tensor {name:?}: {what}"));
            let shape: Vec<usize> =
                serde_json::from_str(columns.shape.value(index)).map_err(|_| refused("no shape"))?;
            let dtype = DType::from_name(columns.dtype.value(index)).ok_or_else(|| refused("unknown dtype"))?;
            let elements = shape
                .iter()
                .try_fold(1_usize, |product, &extent| product.checked_mul(extent))
                .filter(|&elements| elements <= WEIGHTS_MAX)
                .ok_or_else(|| refused("too many elements"))?;
            let scheme = columns.scheme.value(index);
            let bytes = |column: &BinaryViewArray| self.shared(column.value(index));
            let hash = columns.hash.value(index).try_into().map_err(|_| refused("the hash does not have 32 bytes"))?;
            let spec = spec_of(dtype, columns.axis.value(index), columns.group.value(index), scheme);
            let row = Row {
                spec,
                codes: bytes(columns.codes),
                scales: bytes(columns.scales),
                minimums: bytes(columns.minimums),
                dtype,
                hash,
                shape,
            };
            let fits = match spec {
                Some(spec) => quantized_fits(&row, spec),
                None => {
                    ["plain", "attachment"].contains(&scheme)
                        && dtype.bytes_for(elements) == Some(row.codes.len())
                        && row.scales.is_empty()
                        && row.minimums.is_empty()
                }
            };
            if !fits {
                return Err(refused("its parts do not have the lengths that its shape and format need"));
            }
            let known = self.by_name.contains_key(name) || self.attachments.contains_key(name);
            if known {
                return Err(refused("appears twice"));
            }
            if scheme == "attachment" {
                self.attachments.insert(name.to_owned(), row);
                continue;
            }
            self.by_name.insert(name.to_owned(), self.tensors.len());
            let bytes = row.codes.len() + row.scales.len() + row.minimums.len();
            self.tensors.push(TensorInfo { name: name.to_owned(), shape: row.shape.clone(), dtype, bytes });
            self.rows.push(row);
        }
        Ok(())
    }

    /// The part of the mapping that a value lies in; short values live inside their view and are copied.
    fn shared(&self, value: &[u8]) -> Bytes {
        let file = self.storage.bytes().as_ptr_range();
        let value_range = value.as_ptr_range();
        if !value.is_empty() && file.start <= value_range.start && value_range.end <= file.end {
            self.storage.bytes().slice_ref(value)
        } else {
            Bytes::copy_from_slice(value)
        }
    }

    /// The user's metadata in the footer.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Names of the attachments, in alphabetical order.
    pub fn attachments(&self) -> impl Iterator<Item = &str> {
        self.attachments.keys().map(String::as_str)
    }

    /// The bytes of an attachment.
    pub fn attachment(&self, name: &str) -> Option<Bytes> {
        self.attachments.get(name).map(|row| row.codes.clone())
    }

    /// The hash that was stored with a tensor.
    pub fn hash(&self, name: &str) -> Result<[u8; 32], TensorError> {
        Ok(self.row(name)?.hash)
    }

    /// Reads a tensor (or attachment) in full and compares it with its hash.
    pub fn verify(&self, name: &str) -> Result<(), TensorError> {
        let row = self.attachments.get(name).map_or_else(|| self.row(name), Ok)?;
        if content_hash(row.dtype, &row.shape, &[&row.codes, &row.scales, &row.minimums]) == row.hash {
            Ok(())
        } else {
            Err(TensorError::HashMismatch { tensor: name.to_owned() })
        }
    }

    /// The parts of a quantised tensor; `None` when the tensor is plain.
    pub fn quantized(&self, name: &str) -> Result<Option<QuantizedParts>, TensorError> {
        let row = self.row(name)?;
        Ok(row.spec.map(|spec| {
            let (rows, columns) = matrix(&row.shape).expect("opening checked the shape");
            QuantizedParts {
                spec,
                rows,
                columns,
                codes: row.codes.clone(),
                scales: row.scales.clone(),
                minimums: row.minimums.clone(),
            }
        }))
    }

    fn row(&self, name: &str) -> Result<&Row, TensorError> {
        self.by_name
            .get(name)
            .and_then(|&index| self.rows.get(index))
            .ok_or_else(|| TensorError::Missing(name.to_owned()))
    }
}

impl TensorSource for V2File {
    fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.get(name).and_then(|&index| self.tensors.get(index))
    }

    /// For quantised tensors the codes; [`V2File::quantized`] gives the scales as well.
    fn raw(&self, name: &str) -> Result<Bytes, TensorError> {
        Ok(self.row(name)?.codes.clone())
    }

    fn release(&self, name: &str) {
        let Ok(row) = self.row(name) else { return };
        let start = self.storage.bytes().as_ptr() as usize;
        let offset = (row.codes.as_ptr() as usize).wrapping_sub(start);
        if offset < self.storage.bytes().len() {
            self.storage.release(offset..offset + row.codes.len());
        }
    }

    /// As for other sources; a quantised tensor may be cut anywhere.
    fn decode_range(&self, name: &str, start: usize, out: &mut [f32]) -> Result<(), TensorError> {
        let info = self.info(name)?;
        let wanted = out.len();
        let refused = || TensorError::Range {
            tensor: name.to_owned(),
            dtype: info.dtype,
            elements: info.elements(),
            start,
            end: start.saturating_add(wanted),
        };
        let end = start.checked_add(out.len()).filter(|&end| end <= info.elements()).ok_or_else(refused)?;
        let Some(parts) = self.quantized(name)? else {
            let first = info.dtype.bytes_for(start).ok_or_else(refused)?;
            let last = info.dtype.bytes_for(end).ok_or_else(refused)?;
            let raw = self.raw(name)?;
            return dequant::decode(info.dtype, raw.get(first..last).ok_or_else(refused)?, out);
        };
        if out.is_empty() {
            return Ok(());
        }
        let codec = |source| TensorError::Codec { tensor: name.to_owned(), source };
        // A stripe of rows at a time, so that a large tensor is never copied whole.
        let stripe_rows = (1_usize << 20).div_ceil(parts.columns);
        let mut row = start / parts.columns;
        let mut filled = 0;
        while filled < out.len() {
            let row_end = parts.rows.min(row + stripe_rows).min(end.div_ceil(parts.columns));
            let values = parts.rows(row, row_end).ok_or_else(refused)?.map_err(codec)?.dequantize(1);
            let skip = (start + filled) - row * parts.columns;
            let count = (values.len() - skip).min(out.len() - filled);
            out[filled..filled + count].copy_from_slice(&values[skip..skip + count]);
            filled += count;
            row = row_end;
        }
        Ok(())
    }
}

/// The columns of a batch, by their names and types.
struct Columns<'a> {
    name: &'a StringViewArray,
    shape: &'a StringViewArray,
    dtype: &'a StringViewArray,
    axis: &'a Int32Array,
    group: &'a Int32Array,
    scheme: &'a StringViewArray,
    codes: &'a BinaryViewArray,
    scales: &'a BinaryViewArray,
    minimums: &'a BinaryViewArray,
    hash: &'a BinaryViewArray,
}

impl<'a> Columns<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, OpenError> {
        let column = |name: &str| {
            batch
                .column_by_name(name)
                .filter(|column| column.null_count() == 0)
                .ok_or_else(|| malformed(format!("no column {name:?}")))
        };
        let text =
            |name: &str| column(name)?.as_string_view_opt().ok_or_else(|| malformed(format!("{name:?} is not text")));
        let bytes =
            |name: &str| column(name)?.as_binary_view_opt().ok_or_else(|| malformed(format!("{name:?} is not bytes")));
        let number = |name: &str| {
            column(name)?.as_primitive_opt::<Int32Type>().ok_or_else(|| malformed(format!("{name:?} is not a number")))
        };
        Ok(Self {
            name: text("name")?,
            shape: text("shape")?,
            dtype: text("dtype")?,
            axis: number("axis")?,
            group: number("group")?,
            scheme: text("scheme")?,
            codes: bytes("codes")?,
            scales: bytes("scales")?,
            minimums: bytes("minimums")?,
            hash: bytes("hash")?,
        })
    }
}

fn quantized_fits(row: &Row, spec: Spec) -> bool {
    let Some((rows, columns)) = matrix(&row.shape) else { return false };
    let halves = spec.scales(rows, columns).checked_mul(2);
    let minimums = if spec.scheme == Scheme::ScaleMin { halves } else { Some(0) };
    let codes = if columns == 0 { Some(0) } else { rows.checked_mul(spec.row_bytes(columns)) };
    codes == Some(row.codes.len()) && halves == Some(row.scales.len()) && minimums == Some(row.minimums.len())
}

fn malformed(reason: String) -> OpenError {
    OpenError::Malformed { format: "Parquet V2", reason }
}
