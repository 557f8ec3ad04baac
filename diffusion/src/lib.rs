//! Pure maths of masked diffusion: schedules, samplers, constraints, composition, uncertainty.
//! Knows nothing of tensors, networks, files or tokenizers: it works on slices of `f32` and on token ids.
//!
//! The smallest example is at [`sampler`]: a canvas with a hole, a network that is a slice of logits, and the loop between them.
//!
//! Reading order: [`numeric`] and [`random`] (the ground), [`schedule`] (noise), [`sampler`] (filling a canvas), [`guidance`] (several
//! distributions as one), [`constraint`] (regular expressions and schemas), [`energy`] (soft preferences), [`uncertainty`] (how sure that
//! was, and when to raise an alarm), [`continuous`] (vectors instead of tokens), [`oracle`] (a small world in which all of it is known
//! exactly).

pub mod constraint;
pub mod continuous;
pub mod energy;
pub mod guidance;
pub mod numeric;
pub mod oracle;
pub mod random;
pub mod sampler;
pub mod schedule;
pub mod uncertainty;
