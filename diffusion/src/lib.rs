//! Pure maths of masked diffusion: schedules, samplers, constraints, composition, uncertainty.
//! Knows nothing of tensors, networks, text or files: it works on slices of `f32` and on token ids.
//!
//! Reading order: [`numeric`] and [`random`] (the ground), [`schedule`] (noise), [`sampler`] (filling a canvas),
//! [`guidance`] (several distributions as one),
//! [`constraint`] (regular expressions and schemas), [`uncertainty`] (how sure
//! that was), [`oracle`] (a small world in which all of it is known exactly).

pub mod constraint;
pub mod guidance;
pub mod numeric;
pub mod oracle;
pub mod random;
pub mod sampler;
pub mod schedule;
pub mod uncertainty;
