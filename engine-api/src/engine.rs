//! The trait that every engine stands behind: the real one on libtorch, and the fake one of the tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mneme_base::Embedding;
use serde::{Deserialize, Serialize};

use crate::types::{
    CanvasEvent, EmbedPurpose, EngineInfo, GenerateRequest, Generation, ScoreItem, ScoreOutcome, TrainEvent, TrainJob,
    TrainOutcome,
};

/// Tells a running piece of work that nobody wants its result any more. Cheap to clone; checked between steps.
#[derive(Debug, Clone, Default)]
pub struct CancelToken {
    cancelled: Arc<AtomicBool>,
    deadline: Option<Instant>,
}

impl CancelToken {
    /// A token whose work is also cancelled when this much time has passed.
    pub fn with_deadline(after: Duration) -> Self {
        Self { cancelled: Arc::default(), deadline: Instant::now().checked_add(after) }
    }

    /// The same token with a deadline this far from now, or with its own when that is earlier: who cancels one cancels both.
    #[must_use]
    pub fn within(&self, after: Duration) -> Self {
        let latest = Instant::now().checked_add(after);
        let deadline = match (self.deadline, latest) {
            (Some(own), Some(latest)) => Some(own.min(latest)),
            (own, latest) => own.or(latest),
        };
        Self { cancelled: Arc::clone(&self.cancelled), deadline }
    }

    /// Asks the work to stop at its next step.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// The time until the deadline, when there is one.
    pub fn remaining(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Fails when the work should stop; for use with `?` between steps.
    pub fn check(&self) -> Result<(), EngineError> {
        if self.cancelled.load(Ordering::Acquire) {
            return Err(EngineError::Cancelled);
        }
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(EngineError::DeadlineExceeded);
        }
        Ok(())
    }
}

/// Why an engine gave no result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A parameter is out of its bounds.
    #[error("{parameter} {problem}")]
    Invalid {
        /// Which parameter.
        parameter: String,
        /// Its value and its bound.
        problem: String,
    },
    /// No text can satisfy the constraint in the space it was given.
    #[error("constraint cannot be satisfied: {problem}")]
    Unsatisfiable {
        /// Why.
        problem: String,
    },
    /// The work was cancelled.
    #[error("work was cancelled")]
    Cancelled,
    /// The deadline passed.
    #[error("deadline passed before the work was done")]
    DeadlineExceeded,
    /// This engine cannot do that.
    #[error("engine {engine} does not support {feature}")]
    Unsupported {
        /// Which engine.
        engine: String,
        /// What was asked.
        feature: String,
    },
    /// Weights, tokenizer or adapter could not be loaded.
    #[error("could not load {what}: {problem}")]
    Load {
        /// Which file or part.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The engine is not running, or died during the work.
    #[error("engine is unavailable: {reason}")]
    Unavailable {
        /// What is known of it.
        reason: String,
    },
    /// The engine failed inside.
    #[error("engine failed: {reason}")]
    Internal {
        /// What is known of it.
        reason: String,
    },
}

impl EngineError {
    /// A parameter that is out of its bounds.
    pub fn invalid(parameter: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { parameter: parameter.into(), problem: problem.into() }
    }
}

/// Turns text into vectors and canvases into text.
///
/// Calls block; the caller gives each a thread. Every call checks its [`CancelToken`] at least once a step. No input from
/// outside makes an implementation panic.
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Says what it is: names, dimensions, hashes, limits. Cheap.
    fn info(&self) -> EngineInfo;

    /// Embeds texts, in their order. Texts longer than the model's window are cut.
    fn embed(
        &self,
        texts: &[String],
        purpose: EmbedPurpose,
        cancel: &CancelToken,
    ) -> Result<Vec<Embedding>, EngineError>;

    /// Fills a canvas. `observe` sees it crystallise, at most once a step. Same seed, inputs and build: same output.
    fn generate(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> Result<Generation, EngineError>;

    /// Scores texts by the log-likelihood that the causal mode gives them after their context, in their order.
    fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError>;

    /// Trains one adapter and judges it on held-out text. Resumes from `job.folder` when a checkpoint is there.
    fn train(
        &self,
        job: &TrainJob,
        observe: &mut dyn FnMut(TrainEvent),
        cancel: &CancelToken,
    ) -> Result<TrainOutcome, EngineError>;
}
