//! What the daemon knows of an engine. Knows nothing of libtorch, sockets of clients, or the memory store.
//!
//! The engine is a child process; this crate is the typed language between it and the daemon, so that the daemon links no
//! tensor library and the tests need none. Reading order: [`engine`] (the trait), [`types`] (its nouns),
//! [`wire`] (frames between the processes), [`serve`] (the engine's end), [`process`] (the daemon's end), `trainer`, [`fake`].

pub mod absent;
pub mod engine;
pub mod fake;
pub mod process;
pub mod serve;
pub mod trainer;
pub mod types;
pub mod wire;

pub use absent::AbsentEngine;
pub use engine::{CancelToken, Engine, EngineError};
pub use fake::FakeEngine;
pub use process::{EngineProcess, ProcessOptions};
pub use serve::serve;
pub use types::{
    AdapterLevel, AdapterUse, CanvasEvent, Condition, Constraint, EmbedPurpose, EngineInfo, GenerateRequest,
    Generation, GenerationMode, Guidance, Sampler, ScoreItem, ScoreOutcome, ScoredToken, Segment, TokenTrace,
    TrainEvent, TrainJob, TrainOutcome, TrainText,
};
