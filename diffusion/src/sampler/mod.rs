//! Iterative unmasking as a pure state machine: the caller evaluates the network, the sampler decides.
//!
//! ```
//! use mneme_diffusion::random::seeded;
//! use mneme_diffusion::sampler::{Canvas, DiscreteSampler, LogitRows, SamplerConfig};
//!
//! // Tokens 0..4 and a mask token 4: a prompt of one token and a hole of three.
//! let canvas = Canvas::continuation(&[2], 3, 4).unwrap();
//! let mut sampler = DiscreteSampler::new(canvas, SamplerConfig { steps: 2, ..SamplerConfig::default() }).unwrap();
//! let mut rng = seeded(0);
//! while !sampler.is_done() {
//!     let positions = sampler.wanted();
//!     // A network would read `sampler.canvas().tokens()`; this one likes token 1 everywhere.
//!     let logits: Vec<f32> = positions.iter().flat_map(|_| [0.0, 3.0, 0.0, 0.0, 9.0]).collect();
//!     let rows = LogitRows::new(&positions, 5, &logits).unwrap();
//!     let report = sampler.step(&rows, &mut rng).unwrap();
//!     assert!(!report.committed.is_empty());
//! }
//! assert_eq!(sampler.canvas().tokens(), [2, 1, 1, 1]);
//! ```
//!
//! [`Canvas`] and [`LogitRows`] are what goes in, [`CommitRule`], [`Pacing`] and [`Draw`] how it is decided, [`TokenTrace`] what comes
//! out; [`lengths`] ranks candidate lengths of a hole, [`verify`] turns a diffusion draft into exact autoregressive samples.

mod canvas;
mod draw;
pub mod lengths;
mod machine;
mod rows;
mod rules;
pub mod verify;

pub use canvas::{CANVAS_TOKENS_MAX, Canvas, Piece, Slot};
pub use draw::Draw;
pub use machine::{Blocks, DiscreteSampler, SamplerConfig, StepReport, TokenTrace};
pub use rows::LogitRows;
pub use rules::{CommitRule, Pacing};

/// A sampler takes at most this many steps for one block.
pub const STEPS_MAX: u32 = 4_096;

/// Why a sampler could not be made or could not step. The sampler is unchanged after an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplerError {
    /// The canvas is beyond its limit.
    #[error("canvas has {length} tokens, at most {limit} are accepted")]
    CanvasTooLong {
        /// Tokens asked for.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A parameter is outside its bounds.
    #[error("sampler parameter {parameter} is {value}, it has to be {bound}")]
    Parameter {
        /// Its name.
        parameter: &'static str,
        /// Its value.
        value: String,
        /// What is accepted.
        bound: &'static str,
    },
    /// The logits are not rows times vocabulary.
    #[error("logits have {values} values, {rows} rows of {vocab} do not fit")]
    Shape {
        /// Positions given.
        rows: usize,
        /// Row length given.
        vocab: usize,
        /// Values given.
        values: usize,
    },
    /// Positions of rows are not strictly rising.
    #[error("positions of the logit rows are not strictly rising")]
    PositionsUnordered,
    /// A position that is to be decided has no row.
    #[error("no logits for position {position}, which is to be decided")]
    MissingRow {
        /// The position.
        position: usize,
    },
    /// A row is no distribution over tokens: NaN, `+inf`, or nothing but the mask possible.
    #[error("logits of position {position} are no distribution: a NaN, an infinity, or no token possible")]
    BadRow {
        /// The position.
        position: usize,
    },
    /// A proposed token is the mask, or outside the vocabulary, or its position is not open.
    #[error("token {token} cannot be decided at position {position}")]
    BadProposal {
        /// The position.
        position: usize,
        /// The token.
        token: u32,
    },
}

impl SamplerError {
    pub(crate) fn parameter(parameter: &'static str, value: impl ToString, bound: &'static str) -> Self {
        Self::Parameter { parameter, value: value.to_string(), bound }
    }
}
