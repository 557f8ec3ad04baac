//! The columns of Parquet V2, the words in them, and the hash of a tensor's content.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use mneme_quant::{Fit, Granularity, Scheme, Spec, Width};

use crate::DType;

/// Key in the footer that says which version of the format the file has.
pub(super) const VERSION_KEY: &str = "mneme.weights.version";
/// The version written and read.
pub(super) const VERSION: &str = "2";
/// Prefix of the footer's keys that belong to the user of the format.
pub(super) const USER_PREFIX: &str = "mneme.weights.user.";
/// Real models have some hundreds of tensors (rows).
pub(super) const ROWS_MAX: usize = 1 << 16;
/// Longest name of a tensor (bytes).
pub(super) const NAME_BYTES_MAX: usize = 1 << 10;

/// Bytes and texts are read as views, so that they alias the file. The file itself says only BYTE_ARRAY.
pub(super) fn schema() -> SchemaRef {
    let column = |name: &str, kind: DataType| Field::new(name, kind, false);
    Arc::new(Schema::new(vec![
        column("name", DataType::Utf8View),
        column("shape", DataType::Utf8View),
        column("dtype", DataType::Utf8View),
        column("bits", DataType::Int32),
        column("axis", DataType::Int32),
        column("group", DataType::Int32),
        column("scheme", DataType::Utf8View),
        column("codes", DataType::BinaryView),
        column("scales", DataType::BinaryView),
        column("minimums", DataType::BinaryView),
        column("hash", DataType::BinaryView),
    ]))
}

/// What a row is, in the words of the columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) dtype: DType,
    pub(super) bits: i32,
    pub(super) axis: i32,
    pub(super) group: i32,
    pub(super) scheme: &'static str,
}

impl Words {
    pub(super) fn plain(dtype: DType) -> Self {
        Self { dtype, bits: 0, axis: -1, group: 0, scheme: "plain" }
    }

    pub(super) fn attachment() -> Self {
        Self { scheme: "attachment", ..Self::plain(DType::U8) }
    }

    pub(super) fn quantized(spec: Spec) -> Self {
        let (axis, group) = match spec.granularity {
            Granularity::Tensor => (-1, 0),
            Granularity::OutChannel => (0, 0),
            Granularity::InChannel => (1, 0),
            Granularity::Group(size) => (1, size as i32),
        };
        let dtype = match spec.width {
            Width::Ternary => DType::Ternary,
            Width::Two => DType::Int2,
            Width::Four => DType::Int4,
            Width::Eight => DType::Int8,
        };
        let scheme = match spec.scheme {
            Scheme::Symmetric => "symmetric",
            Scheme::ScaleMin => "scale_min",
        };
        Self { dtype, bits: spec.width.bits() as i32, axis, group, scheme }
    }
}

/// The format that a row's words describe; how its scales were found is not kept, because decoding does not need it.
pub(super) fn spec_of(dtype: DType, axis: i32, group: i32, scheme: &str) -> Option<Spec> {
    let width = match dtype {
        DType::Int8 => Width::Eight,
        DType::Int4 => Width::Four,
        DType::Int2 => Width::Two,
        DType::Ternary => Width::Ternary,
        _ => return None,
    };
    let granularity = match (axis, group) {
        (-1, 0) => Granularity::Tensor,
        (0, 0) => Granularity::OutChannel,
        (1, 0) => Granularity::InChannel,
        (1, group) => Granularity::Group(u32::try_from(group).ok()?),
        _ => return None,
    };
    let scheme = match scheme {
        "symmetric" => Scheme::Symmetric,
        "scale_min" => Scheme::ScaleMin,
        _ => return None,
    };
    let spec = Spec { width, granularity, scheme, fit: Fit::Range };
    spec.validate().ok().map(|()| spec)
}

/// Rows and columns of a tensor: the last axis are the columns, all others the rows.
pub(super) fn matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let columns = shape.last().copied().unwrap_or(1);
    let rows = shape.iter().rev().skip(1).try_fold(1_usize, |rows, &extent| rows.checked_mul(extent))?;
    Some((rows, columns))
}

/// The BLAKE3 hash of a tensor: its type and shape, then its parts with their lengths. Names do not enter, so equal
/// tensors have equal hashes in any file.
pub fn content_hash(dtype: DType, shape: &[usize], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"mneme.weights.tensor.v2\0");
    hasher.update(dtype.name().as_bytes());
    hasher.update(&[0]);
    hasher.update(&(shape.len() as u64).to_le_bytes());
    for &extent in shape {
        hasher.update(&(extent as u64).to_le_bytes());
    }
    // Absent parts at the end do not count, so that a plain tensor hashes alike wherever it lies.
    let present = parts.iter().rposition(|part| !part.is_empty()).map_or(0, |last| last + 1);
    for part in &parts[..present] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}
