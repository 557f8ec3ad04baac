//! The searchable columns beside the store: postings, codes, signatures and filters, none of which hold a text.
//!
//! Reading order: [`bitmap`], [`columns`], [`tokens`], [`cues`], [`text`], [`vectors`], [`halves`], [`duplicates`],
//! then `sections` and `stored`: the same as a checked file.

pub mod bitmap;
pub mod columns;
pub mod cues;
pub mod duplicates;
pub mod halves;
pub(crate) mod sections;
pub(crate) mod stored;
pub mod text;
pub mod tokens;
pub mod vectors;
