//! The tests of mneme-weights, in one binary so that they link once.

#![expect(clippy::float_cmp, reason = "decoding is exact: the same bits are wanted")]

mod convert;
mod dequant;
mod files;
mod readers;
mod tokenizers;
mod v2;
