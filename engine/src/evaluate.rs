//! Measures what the generator is worth: perplexity left to right and by diffusion, holes filled, drafts kept.
//!
//! Reading order: [`interval`] and [`overlap`] (the arithmetic), [`perplexity`] (bounds on held-out tokens), [`writing`] (what is
//! written through the engine's own requests).

pub mod interval;
pub mod overlap;
pub mod perplexity;
pub mod writing;
