//! The formats: how a matrix of weights becomes codes, scales and minimums, and back.
//!
//! A value is `(code - offset) * scale` when symmetric and `code * scale + minimum` otherwise; codes are packed row by row,
//! lowest bits first, each row starting at a byte. Scales and minimums are 16-bit floats, and codes are chosen *after* those
//! are rounded, so the rounding of a scale is never an error twice.

mod decode;
mod encode;
mod error;
mod fit;
pub mod pack;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::dispatch::Path;
pub(crate) use decode::decode_one;
pub(crate) use encode::encode_one;
pub use error::CodecError;
pub(crate) use fit::fit_group;

/// A matrix has at most this many weights; 7-billion-parameter models stay far below it in each tensor.
pub const WEIGHTS_MAX: usize = 1 << 34;
/// Most iterations of the HQQ fit.
pub const HQQ_ITERATIONS_MAX: u32 = 1_000;

/// Bits of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Width {
    /// Codes 0, 1, 2 for -1, 0, 1; stored in 2 bits (see [`pack::pack_trits`] for 1.6).
    Ternary,
    /// 2 bits.
    Two,
    /// 4 bits.
    Four,
    /// 8 bits.
    Eight,
}

impl Width {
    /// Bits that a stored code takes.
    pub const fn bits(self) -> usize {
        match self {
            Self::Ternary | Self::Two => 2,
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The largest code.
    pub const fn code_max(self) -> u8 {
        match self {
            Self::Ternary => 2,
            Self::Two => 3,
            Self::Four => 15,
            Self::Eight => 255,
        }
    }

    /// The code of zero in the symmetric scheme.
    pub const fn offset(self) -> u8 {
        match self {
            Self::Ternary => 1,
            Self::Two => 2,
            Self::Four => 8,
            Self::Eight => 128,
        }
    }
}

/// Weights that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// All of them.
    Tensor,
    /// Those of a row: an output channel of a `[out, in]` matrix.
    OutChannel,
    /// Those of a column: an input channel.
    InChannel,
    /// Runs of 32, 64, 128 or 256 along a row; the last of a row may be shorter.
    Group(u32),
}

/// The arithmetic of a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheme {
    /// `(code - offset) * scale`.
    Symmetric,
    /// `code * scale + minimum`.
    ScaleMin,
}

/// How scales and minimums are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// From the largest and smallest value; ternary takes the mean magnitude (BitNet b1.58, equation 3). Fastest.
    Range,
    /// By a search for the least squared error.
    LeastSquares,
    /// By half-quadratic splitting on the minimum (HQQ, p = 0.7); scale+min only.
    Hqq {
        /// Most iterations; 20 is usual.
        iterations: u32,
    },
}

/// A complete format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Spec {
    /// Bits of a code.
    pub width: Width,
    /// Weights that share a scale.
    pub granularity: Granularity,
    /// The arithmetic of a code.
    pub scheme: Scheme,
    /// How scales are found.
    pub fit: Fit,
}

impl Spec {
    /// 8 bits, symmetric, a scale for each output channel.
    pub const fn int8() -> Self {
        Self { width: Width::Eight, granularity: Granularity::OutChannel, scheme: Scheme::Symmetric, fit: Fit::Range }
    }

    /// 4 bits with minimums, by least squares, in groups of this many.
    pub const fn int4(group: u32) -> Self {
        Self {
            width: Width::Four,
            granularity: Granularity::Group(group),
            scheme: Scheme::ScaleMin,
            fit: Fit::LeastSquares,
        }
    }

    /// 2 bits with minimums, by least squares, in groups of this many. Collapses small models unless they were trained for it.
    pub const fn int2(group: u32) -> Self {
        Self { width: Width::Two, ..Self::int4(group) }
    }

    /// Refuses combinations that mean nothing.
    pub fn validate(self) -> Result<(), CodecError> {
        if let Granularity::Group(size) = self.granularity
            && !matches!(size, 32 | 64 | 128 | 256)
        {
            return Err(CodecError::GroupSize { size });
        }
        if self.width == Width::Ternary && self.scheme == Scheme::ScaleMin {
            return Err(CodecError::TernaryMinimum);
        }
        if let Fit::Hqq { iterations } = self.fit {
            if self.scheme != Scheme::ScaleMin {
                return Err(CodecError::HqqSymmetric);
            }
            if iterations == 0 || iterations > HQQ_ITERATIONS_MAX {
                return Err(CodecError::HqqIterations { iterations });
            }
        }
        Ok(())
    }

    /// Scales that a matrix of this shape has.
    pub fn scales(self, rows: usize, columns: usize) -> usize {
        if rows == 0 || columns == 0 {
            return 0;
        }
        match self.granularity {
            Granularity::Tensor => 1,
            Granularity::OutChannel => rows,
            Granularity::InChannel => columns,
            Granularity::Group(size) => rows * columns.div_ceil(size as usize),
        }
    }

    /// Bytes that the codes of one row take.
    pub fn row_bytes(self, columns: usize) -> usize {
        (columns * self.width.bits()).div_ceil(8)
    }

    /// Bits for each weight of a matrix of this shape, with scales, minimums and the padding of rows; 0 when empty.
    ///
    /// ```
    /// use mneme_quant::codec::Spec;
    /// assert_eq!(Spec::int4(128).bits_per_weight(4096, 4096), 4.25);
    /// ```
    pub fn bits_per_weight(self, rows: usize, columns: usize) -> f64 {
        if rows == 0 || columns == 0 {
            return 0.0;
        }
        let floats = if self.scheme == Scheme::ScaleMin { 2 } else { 1 };
        let bytes = rows * self.row_bytes(columns) + self.scales(rows, columns) * floats * 2;
        bytes as f64 * 8.0 / (rows as f64 * columns as f64)
    }

    pub(crate) fn grid(self) -> Grid {
        let code_max = f32::from(self.width.code_max());
        let offset = f32::from(self.width.offset());
        match self.scheme {
            Scheme::ScaleMin => Grid { low: 0.0, high: code_max, offset: 0 },
            // 8 bits leave -128 out, so that the largest magnitude has a code on both sides.
            Scheme::Symmetric if self.width == Width::Eight => Grid { low: -127.0, high: 127.0, offset: 128 },
            Scheme::Symmetric => Grid { low: -offset, high: code_max - offset, offset: self.width.offset() },
        }
    }
}

/// The values that `(x - minimum) / scale` is rounded to, and what turns them into codes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Grid {
    pub(crate) low: f32,
    pub(crate) high: f32,
    pub(crate) offset: u8,
}

/// A scale and a minimum that a 16-bit float holds exactly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Params {
    pub(crate) scale: f32,
    pub(crate) minimum: f32,
}

impl Params {
    /// What is multiplied with to find a code; 0 when the scale is.
    pub(crate) fn inverse(self) -> f32 {
        if self.scale == 0.0 { 0.0 } else { 1.0 / self.scale }
    }
}

/// A quantised matrix.
///
/// # Shapes
/// `rows x columns`, row by row. For a linear layer rows are outputs and columns inputs.
#[derive(Clone, PartialEq)]
pub struct Quantized {
    spec: Spec,
    rows: usize,
    columns: usize,
    codes: Vec<u8>,
    scales: Vec<f16>,
    minimums: Vec<f16>,
}

impl std::fmt::Debug for Quantized {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quantized")
            .field("spec", &self.spec)
            .field("rows", &self.rows)
            .field("columns", &self.columns)
            .finish_non_exhaustive()
    }
}

impl Quantized {
    /// Quantises a matrix. Not-a-number and infinite weights are refused; an empty matrix is fine.
    pub fn quantize(
        values: &[f32],
        rows: usize,
        columns: usize,
        spec: Spec,
        threads: usize,
    ) -> Result<Self, CodecError> {
        Self::quantize_on(Path::best(), values, rows, columns, spec, threads)
    }

    /// As [`Self::quantize`], on a given path (the best one if this processor does not run it).
    pub fn quantize_on(
        path: Path,
        values: &[f32],
        rows: usize,
        columns: usize,
        spec: Spec,
        threads: usize,
    ) -> Result<Self, CodecError> {
        check_shape(values.len(), rows, columns)?;
        spec.validate()?;
        encode::quantize(path.or_best(), values, rows, columns, spec, threads.max(1))
    }

    /// Puts together stored parts, after checking their lengths, codes of a ternary matrix and finiteness of the floats.
    /// Minimums are empty for a symmetric format.
    pub fn from_parts(
        spec: Spec,
        rows: usize,
        columns: usize,
        codes: Vec<u8>,
        scales: Vec<f16>,
        minimums: Vec<f16>,
    ) -> Result<Self, CodecError> {
        spec.validate()?;
        check_shape(rows.saturating_mul(columns), rows, columns)?;
        let scales_expected = spec.scales(rows, columns);
        let minimums_expected = if spec.scheme == Scheme::ScaleMin { scales_expected } else { 0 };
        let codes_expected = if columns == 0 { 0 } else { rows * spec.row_bytes(columns) };
        check_length("codes", codes.len(), codes_expected)?;
        check_length("scales", scales.len(), scales_expected)?;
        check_length("minimums", minimums.len(), minimums_expected)?;
        if let Some(index) = scales.iter().chain(&minimums).position(|value| !value.is_finite()) {
            return Err(CodecError::ScaleRange { index });
        }
        Ok(Self { spec, rows, columns, codes, scales, minimums })
    }

    /// The format.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Packed codes: [`Spec::row_bytes`] for each row.
    pub fn codes(&self) -> &[u8] {
        &self.codes
    }

    /// Scales: one, one for each row or column, or for each row one for each group.
    pub fn scales(&self) -> &[f16] {
        &self.scales
    }

    /// Minimums, as many as scales; none when symmetric.
    pub fn minimums(&self) -> &[f16] {
        &self.minimums
    }

    /// Bits for each weight, everything counted.
    pub fn bits_per_weight(&self) -> f64 {
        self.spec.bits_per_weight(self.rows, self.columns)
    }

    /// All weights, row by row. Large results are written past the caches.
    pub fn dequantize(&self, threads: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.rows * self.columns];
        self.dequantize_into(&mut out, threads).expect("the buffer is as long as the matrix");
        out
    }

    /// As [`Self::dequantize`], into a buffer of `rows * columns`.
    pub fn dequantize_into(&self, out: &mut [f32], threads: usize) -> Result<(), CodecError> {
        self.dequantize_into_on(Path::best(), out, threads)
    }

    /// As [`Self::dequantize_into`], on a given path (the best one if this processor does not run it).
    pub fn dequantize_into_on(&self, path: Path, out: &mut [f32], threads: usize) -> Result<(), CodecError> {
        check_length("output", out.len(), self.rows * self.columns)?;
        decode::dequantize(path.or_best(), self, 0, out, threads.max(1));
        Ok(())
    }

    /// A tile: rows `first..end` into a buffer of `(end - first) * columns`, on this thread. For tiles that stay in the cache.
    pub fn dequantize_rows(&self, first: usize, end: usize, out: &mut [f32]) -> Result<(), CodecError> {
        if first > end || end > self.rows {
            return Err(CodecError::Rows { first, end, rows: self.rows });
        }
        check_length("output", out.len(), (end - first) * self.columns)?;
        decode::dequantize(Path::best(), self, first, out, 1);
        Ok(())
    }

    /// The codes of one row, one byte each.
    pub fn row_codes(&self, row: usize, out: &mut [u8]) -> Result<(), CodecError> {
        if row >= self.rows {
            return Err(CodecError::Rows { first: row, end: row + 1, rows: self.rows });
        }
        check_length("output", out.len(), self.columns)?;
        let bytes = self.spec.row_bytes(self.columns);
        pack::unpack(&self.codes[row * bytes..(row + 1) * bytes], self.spec.width.bits(), out);
        Ok(())
    }

    /// Index of the scale of a weight.
    pub(crate) fn scale_index(&self, row: usize, column: usize) -> usize {
        match self.spec.granularity {
            Granularity::Tensor => 0,
            Granularity::OutChannel => row,
            Granularity::InChannel => column,
            Granularity::Group(size) => row * self.columns.div_ceil(size as usize) + column / size as usize,
        }
    }

    pub(crate) fn params(&self, index: usize) -> Params {
        let minimum = self.minimums.get(index).map_or(0.0, |minimum| minimum.to_f32());
        Params { scale: self.scales[index].to_f32(), minimum }
    }
}

fn check_shape(values: usize, rows: usize, columns: usize) -> Result<(), CodecError> {
    match rows.checked_mul(columns) {
        Some(product) if product == values && values <= WEIGHTS_MAX => Ok(()),
        _ => Err(CodecError::Shape { rows, columns, values }),
    }
}

fn check_length(part: &'static str, found: usize, expected: usize) -> Result<(), CodecError> {
    if found == expected { Ok(()) } else { Err(CodecError::PartLength { part, found, expected }) }
}
