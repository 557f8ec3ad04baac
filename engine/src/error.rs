//! Why a network could not be loaded or run. Turned into the engine's public error at its edge.

use mneme_engine_api::EngineError;

/// A failure inside the networks, their loading or their training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// libtorch refused an operation: shapes, memory or an unsupported kind.
    #[error("tensor operation failed")]
    Tensor(#[from] tch::TchError),
    /// A file of weights could not be opened.
    #[error("weights could not be opened")]
    Weights(#[from] mneme_weights::OpenError),
    /// A tensor is missing or has another shape than the network needs.
    #[error("tensor could not be read")]
    TensorFile(#[from] mneme_weights::TensorError),
    /// A part of a model is not what the network needs.
    #[error("could not load {what}: {problem}")]
    Load {
        /// Which file or part.
        what: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("file could not be read or written")]
    Io(#[from] std::io::Error),
    /// The engine's own refusals: bad parameters, cancelled work.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl ModelError {
    /// A part that could not be loaded.
    pub fn load(what: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Load { what: what.into(), problem: problem.into() }
    }

    /// Writes an error with all its causes on one line.
    fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }
}

impl From<ModelError> for EngineError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Engine(error) => error,
            ModelError::Load { what, problem } => Self::Load { what, problem },
            ModelError::Weights(_) | ModelError::TensorFile(_) => {
                Self::Load { what: "weights".into(), problem: error.chain() }
            }
            ModelError::Tensor(_) | ModelError::Io(_) => Self::Internal { reason: error.chain() },
        }
    }
}

/// The result of work on networks.
pub type Result<T> = std::result::Result<T, ModelError>;
