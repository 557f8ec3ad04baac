//! Trains adapters and judges them on held-out text.
//!
//! Reading order: [`batch`] (texts as one window, with masks), [`learner`] (loss, gradients, AdamW), [`checkpoint`] (exact
//! resume), [`judge`] (losses of every arm, paired), [`job`] (one training job from start to outcome).

pub mod batch;
pub mod checkpoint;
pub mod job;
pub mod judge;
pub mod learner;
