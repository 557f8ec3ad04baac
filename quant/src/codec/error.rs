//! Why weights are refused.

use super::{HQQ_ITERATIONS_MAX, WEIGHTS_MAX};

/// Why a matrix was not quantised, or its parts not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// The values are not as many as the shape says, or too many.
    #[error("matrix of {rows} x {columns} does not match {values} values (at most {WEIGHTS_MAX})")]
    Shape {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        columns: usize,
        /// Values given.
        values: usize,
    },
    /// A value that is not a finite number.
    #[error("weight {index} is not finite")]
    NotFinite {
        /// Its index, row by row.
        index: usize,
    },
    /// A scale or minimum that a 16-bit float cannot hold.
    #[error("scale {index} exceeds the range of a 16-bit float")]
    ScaleRange {
        /// Its index.
        index: usize,
    },
    /// A group size that is not offered.
    #[error("group of {size} weights, must be 32, 64, 128 or 256")]
    GroupSize {
        /// The size.
        size: u32,
    },
    /// Ternary codes with minimums.
    #[error("ternary codes are symmetric, they have no minimum")]
    TernaryMinimum,
    /// HQQ moves minimums; the symmetric scheme has none.
    #[error("hqq needs the scale+min scheme")]
    HqqSymmetric,
    /// Too many iterations, or none.
    #[error("hqq with {iterations} iterations, must be 1 to {HQQ_ITERATIONS_MAX}")]
    HqqIterations {
        /// How many.
        iterations: u32,
    },
    /// A stored part has the wrong length.
    #[error("{part} holds {found}, the format needs {expected}")]
    PartLength {
        /// Which part.
        part: &'static str,
        /// Its length.
        found: usize,
        /// What the format needs.
        expected: usize,
    },
    /// A range of rows that the matrix does not have.
    #[error("rows {first}..{end} of a matrix of {rows}")]
    Rows {
        /// First row asked for.
        first: usize,
        /// End of the range.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
}
