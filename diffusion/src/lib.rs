//! Pure maths of masked diffusion: schedules, samplers, constraints, composition, uncertainty.
//! Knows nothing of tensors, networks, text or files: it works on slices of `f32` and on token ids.
//!
//! Reading order: [`numeric`] and [`random`] (the ground), [`schedule`] (noise).

pub mod numeric;
pub mod random;
pub mod schedule;
