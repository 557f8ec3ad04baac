//! Combines several distributions of the next token into one: with and without a condition, or of several adapters.
//!
//! [`classifier_free`] sharpens a condition; [`compose`] and [`mix`] join models with [`Weights`]; [`OnlineWeights`] learns the weights from
//! what each model lost on the text that came.

mod classifier_free;
mod composition;
mod online;

pub use classifier_free::{classifier_free, classifier_free_normalized};
pub use composition::{Composed, Weights, compose, mix};
pub use online::OnlineWeights;

/// Models that are composed are at most this many: each costs a network evaluation.
pub const MODELS_MAX: usize = 64;

/// Why distributions could not be combined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GuidanceError {
    /// Rows or weights differ in number or length.
    #[error("{what} has length {length}, it has to be {expected}")]
    Length {
        /// What was given.
        what: &'static str,
        /// Its length.
        length: usize,
        /// The length that fits.
        expected: usize,
    },
    /// No model, or too many.
    #[error("{count} models cannot be combined, 1 to {MODELS_MAX} can")]
    Models {
        /// Models given.
        count: usize,
    },
    /// A weight is negative, not a number, or all are zero.
    #[error("weights are not on the simplex: weight {index} is {value}")]
    Weight {
        /// The first weight at fault.
        index: usize,
        /// Its value.
        value: String,
    },
    /// A value is NaN or `+inf`.
    #[error("{what} holds a value that is not a number or infinite at {index}")]
    Value {
        /// What was given.
        what: &'static str,
        /// Where.
        index: usize,
    },
    /// No token is possible under all models at once.
    #[error("no token is possible under all models that have weight")]
    Disjoint,
}
