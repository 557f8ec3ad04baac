//! How the elements of a tensor are stored, and how many bytes they take.

use std::fmt;

/// The storage type of a tensor's elements.
///
/// Block types (`Q4_0` and the like) pack a fixed number of elements along the last axis into a fixed number of bytes;
/// the layouts are those of ggml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the variants are the names that the formats themselves use")]
pub enum DType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    U64,
    I32,
    U32,
    I16,
    U16,
    I8,
    U8,
    Bool,
    /// Blocks of 32: f16 scale, 4-bit codes minus 8.
    Q4_0,
    /// Blocks of 32: f16 scale and minimum, 4-bit codes.
    Q4_1,
    /// Blocks of 32: f16 scale, signed bytes.
    Q8_0,
    /// Super-blocks of 256: f16 scale and minimum, eight 6-bit sub-scales and sub-minima, 4-bit codes.
    Q4K,
    /// Super-blocks of 256: f16 scale, sixteen signed 8-bit sub-scales, 6-bit codes minus 32.
    Q6K,
    /// ArrowQuant: 8-bit codes with scales beside them (Parquet V2 only).
    Int8,
    /// ArrowQuant: 4-bit codes with scales beside them.
    Int4,
    /// ArrowQuant: 2-bit codes with scales beside them.
    Int2,
    /// ArrowQuant: codes for -1, 0 and 1 with scales beside them, in 2 bits.
    Ternary,
}

impl DType {
    /// Elements per block; 1 for plain types.
    pub const fn block_elements(self) -> usize {
        match self {
            Self::Q4_0 | Self::Q4_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q6K => 256,
            _ => 1,
        }
    }

    /// Whether the elements are ArrowQuant codes, whose size depends on the rows and whose scales lie beside them.
    pub const fn is_quantized(self) -> bool {
        matches!(self, Self::Int8 | Self::Int4 | Self::Int2 | Self::Ternary)
    }

    /// Bytes per block; 0 for ArrowQuant codes, which have no blocks.
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::Int8 | Self::Int4 | Self::Int2 | Self::Ternary => 0,
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q6K => 210,
        }
    }

    /// Whether several elements share a block, so that ranges must start on a block boundary.
    pub const fn is_blocked(self) -> bool {
        self.block_elements() > 1
    }

    /// The bytes that `elements` elements take; `None` when they do not fill whole blocks, when the size overflows or when
    /// it depends on the shape.
    pub const fn bytes_for(self, elements: usize) -> Option<usize> {
        if self.is_quantized() || !elements.is_multiple_of(self.block_elements()) {
            return None;
        }
        (elements / self.block_elements()).checked_mul(self.block_bytes())
    }

    /// The name used in reports and in Parquet V2 (`f32`, `q4_1`, `q6_k`).
    pub const fn name(self) -> &'static str {
        match self {
            Self::F64 => "f64",
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::Bool => "bool",
            Self::Q4_0 => "q4_0",
            Self::Q4_1 => "q4_1",
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
            Self::Q6K => "q6_k",
            Self::Int8 => "int8",
            Self::Int4 => "int4",
            Self::Int2 => "int2",
            Self::Ternary => "ternary",
        }
    }

    /// Every type, in the order of declaration.
    pub const ALL: [Self; 22] = [
        Self::F64,
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::I64,
        Self::U64,
        Self::I32,
        Self::U32,
        Self::I16,
        Self::U16,
        Self::I8,
        Self::U8,
        Self::Bool,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q6K,
        Self::Int8,
        Self::Int4,
        Self::Int2,
        Self::Ternary,
    ];

    /// Finds the type with this [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }
}

impl fmt::Display for DType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
