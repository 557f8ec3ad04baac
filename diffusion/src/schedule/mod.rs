//! Noise schedules: how much of a text is masked, or how much of a signal is noise, at a time between 0 and 1.
//!
//! Time 0 is clean, time 1 is all noise. [`DiscreteSchedule`] is for masked tokens, [`ContinuousSchedule`] for vectors,
//! [`TimeSampling`] draws the times of a training batch, and [`corrupt`] and [`MaskFamily`] mask token sequences.

mod continuous;
mod corrupt;
mod discrete;
mod times;

pub use continuous::ContinuousSchedule;
pub use corrupt::{CorruptError, Corruption, CorruptionPlan, MaskFamily, complement, corrupt, corrupt_exactly};
pub use discrete::DiscreteSchedule;
pub use times::{TimeSample, TimeSampling, steps_down};

/// The smallest training time (LLaDA, arXiv 2502.09992): below it almost nothing is masked and the weight explodes.
pub const TIME_MIN: f64 = 1e-3;
/// Loss weights are clipped here in training (dimensionless); larger ones come from times where one token in twenty is masked.
pub const LOSS_WEIGHT_MAX: f64 = 20.0;
