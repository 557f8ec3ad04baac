//! The key-value metadata of a GGUF file.

use super::cursor::Cursor;
use crate::OpenError;

/// Arrays may hold arrays, but nothing real nests them; a hostile file could nest them to exhaust the stack (levels).
const ARRAY_DEPTH_MAX: usize = 4;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types of the GGUF specification")]
pub enum MetadataValue {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    U64(u64),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Array(MetadataArray),
}

/// A metadata array; typed, so that a long array costs what its elements cost.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the variants are the types of the GGUF specification")]
pub enum MetadataArray {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F32(Vec<f32>),
    F64(Vec<f64>),
    Bool(Vec<bool>),
    String(Vec<String>),
    Array(Vec<MetadataArray>),
}

impl MetadataValue {
    /// The value as a whole number that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Self::U8(value) => Some(value.into()),
            Self::U16(value) => Some(value.into()),
            Self::U32(value) => Some(value.into()),
            Self::U64(value) => Some(value),
            Self::I8(value) => value.try_into().ok(),
            Self::I16(value) => value.try_into().ok(),
            Self::I32(value) => value.try_into().ok(),
            Self::I64(value) => value.try_into().ok(),
            _ => None,
        }
    }

    /// The value as a float.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Self::F32(value) => Some(value.into()),
            Self::F64(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a truth value.
    pub fn as_bool(&self) -> Option<bool> {
        match *self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a list of texts.
    pub fn as_strings(&self) -> Option<&[String]> {
        match self {
            Self::Array(MetadataArray::String(values)) => Some(values),
            _ => None,
        }
    }

    /// The value as a list of floats.
    pub fn as_f32s(&self) -> Option<&[f32]> {
        match self {
            Self::Array(MetadataArray::F32(values)) => Some(values),
            _ => None,
        }
    }

    /// The value as a list of signed integers.
    pub fn as_i32s(&self) -> Option<&[i32]> {
        match self {
            Self::Array(MetadataArray::I32(values)) => Some(values),
            _ => None,
        }
    }
}

impl MetadataArray {
    /// How many elements the array has.
    pub fn len(&self) -> usize {
        match self {
            Self::U8(values) => values.len(),
            Self::I8(values) => values.len(),
            Self::U16(values) => values.len(),
            Self::I16(values) => values.len(),
            Self::U32(values) => values.len(),
            Self::I32(values) => values.len(),
            Self::U64(values) => values.len(),
            Self::I64(values) => values.len(),
            Self::F32(values) => values.len(),
            Self::F64(values) => values.len(),
            Self::Bool(values) => values.len(),
            Self::String(values) => values.len(),
            Self::Array(values) => values.len(),
        }
    }

    /// Whether the array has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Reads a type tag and the value after it.
pub(super) fn read_value(cursor: &mut Cursor<'_>) -> Result<MetadataValue, OpenError> {
    const WHAT: &str = "a metadata value";
    Ok(match cursor.u32("a metadata type")? {
        0 => MetadataValue::U8(u8::from_le_bytes(cursor.array(WHAT)?)),
        1 => MetadataValue::I8(i8::from_le_bytes(cursor.array(WHAT)?)),
        2 => MetadataValue::U16(u16::from_le_bytes(cursor.array(WHAT)?)),
        3 => MetadataValue::I16(i16::from_le_bytes(cursor.array(WHAT)?)),
        4 => MetadataValue::U32(u32::from_le_bytes(cursor.array(WHAT)?)),
        5 => MetadataValue::I32(i32::from_le_bytes(cursor.array(WHAT)?)),
        6 => MetadataValue::F32(f32::from_le_bytes(cursor.array(WHAT)?)),
        7 => MetadataValue::Bool(read_bool(cursor.array(WHAT)?)?),
        8 => MetadataValue::String(cursor.string("a metadata string")?),
        9 => MetadataValue::Array(read_array(cursor, 1)?),
        10 => MetadataValue::U64(u64::from_le_bytes(cursor.array(WHAT)?)),
        11 => MetadataValue::I64(i64::from_le_bytes(cursor.array(WHAT)?)),
        12 => MetadataValue::F64(f64::from_le_bytes(cursor.array(WHAT)?)),
        tag => return Err(unknown_type(tag)),
    })
}

fn read_array(cursor: &mut Cursor<'_>, depth: usize) -> Result<MetadataArray, OpenError> {
    if depth > ARRAY_DEPTH_MAX {
        return Err(malformed(format!("metadata arrays are nested deeper than {ARRAY_DEPTH_MAX}")));
    }
    let tag = cursor.u32("a metadata array type")?;
    Ok(match tag {
        0 => MetadataArray::U8(read_plain(cursor, u8::from_le_bytes)?),
        1 => MetadataArray::I8(read_plain(cursor, i8::from_le_bytes)?),
        2 => MetadataArray::U16(read_plain(cursor, u16::from_le_bytes)?),
        3 => MetadataArray::I16(read_plain(cursor, i16::from_le_bytes)?),
        4 => MetadataArray::U32(read_plain(cursor, u32::from_le_bytes)?),
        5 => MetadataArray::I32(read_plain(cursor, i32::from_le_bytes)?),
        6 => MetadataArray::F32(read_plain(cursor, f32::from_le_bytes)?),
        7 => {
            let bytes = read_plain(cursor, u8::from_le_bytes)?;
            MetadataArray::Bool(bytes.into_iter().map(|byte| read_bool([byte])).collect::<Result<_, _>>()?)
        }
        8 => {
            let count = cursor.count(size_of::<u64>(), "a metadata string array")?;
            MetadataArray::String((0..count).map(|_| cursor.string("a metadata string")).collect::<Result<_, _>>()?)
        }
        9 => {
            let count = cursor.count(size_of::<u32>() + size_of::<u64>(), "a nested metadata array")?;
            MetadataArray::Array((0..count).map(|_| read_array(cursor, depth + 1)).collect::<Result<_, _>>()?)
        }
        10 => MetadataArray::U64(read_plain(cursor, u64::from_le_bytes)?),
        11 => MetadataArray::I64(read_plain(cursor, i64::from_le_bytes)?),
        12 => MetadataArray::F64(read_plain(cursor, f64::from_le_bytes)?),
        tag => return Err(unknown_type(tag)),
    })
}

fn read_plain<T, const N: usize>(cursor: &mut Cursor<'_>, convert: fn([u8; N]) -> T) -> Result<Vec<T>, OpenError> {
    let count = cursor.count(N, "a metadata array")?;
    let bytes = cursor.take((count * N) as u64, "a metadata array")?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|&element| convert(element)).collect())
}

fn read_bool([byte]: [u8; 1]) -> Result<bool, OpenError> {
    match byte {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(malformed(format!("boolean metadata has the value {other}, expected 0 or 1"))),
    }
}

fn unknown_type(tag: u32) -> OpenError {
    malformed(format!("unknown metadata type {tag}"))
}

fn malformed(reason: String) -> OpenError {
    OpenError::Malformed { format: "GGUF", reason }
}
