//! The engine of a daemon that was told to have none: every call says so.

use mneme_base::Embedding;

use crate::engine::{CancelToken, Engine, EngineError};
use crate::types::{
    CanvasEvent, EmbedPurpose, EngineInfo, GenerateRequest, Generation, ScoreItem, ScoreOutcome, TrainEvent, TrainJob,
    TrainOutcome,
};

/// No engine, and the reason.
#[derive(Debug, Clone)]
pub struct AbsentEngine {
    /// Why there is none, and what to do about it.
    pub reason: String,
}

impl AbsentEngine {
    fn error<T>(&self) -> Result<T, EngineError> {
        Err(EngineError::Unavailable { reason: self.reason.clone() })
    }
}

impl Engine for AbsentEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo { name: String::from("none"), ..EngineInfo::unknown() }
    }

    fn embed(&self, _: &[String], _: EmbedPurpose, _: &CancelToken) -> Result<Vec<Embedding>, EngineError> {
        self.error()
    }

    fn generate(
        &self,
        _: &GenerateRequest,
        _: &mut dyn FnMut(CanvasEvent),
        _: &CancelToken,
    ) -> Result<Generation, EngineError> {
        self.error()
    }

    fn score(&self, _: &[ScoreItem], _: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError> {
        self.error()
    }

    fn train(&self, _: &TrainJob, _: &mut dyn FnMut(TrainEvent), _: &CancelToken) -> Result<TrainOutcome, EngineError> {
        self.error()
    }
}
