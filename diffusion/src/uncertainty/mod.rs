//! How unsure a generation is, and whether that is more than was to be expected.

mod residual;

pub use residual::{RATE_BINS_MAX, ResidualTable, ResidualTableBuilder, ResidualTableError};
