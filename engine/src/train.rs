//! Trains adapters and judges them on held-out text.
//!
//! Reading order: [`batch`] (texts as one window, with masks), [`learner`] (loss, gradients, AdamW), `recompute` (gradients
//! block by block), [`checkpoint`] (exact resume), [`judge`] (losses of every arm, paired), [`job`] (one training job from start
//! to outcome). Adapting the base itself: [`corpus`] (windows of text), [`segments`] (undecided parts behind a clean text),
//! [`objective`] (their loss), [`distil`] (fewer steps), [`base`] (the run).

pub mod base;
pub mod batch;
pub mod checkpoint;
pub mod corpus;
pub mod distil;
pub mod job;
pub mod judge;
pub mod learner;
pub mod objective;
mod recompute;
pub mod segments;
