//! Long-lived actors and their supervision. Knows nothing of the wire, of libtorch or of Lance.
//!
//! Calls form a DAG: watcher, generator -> memory; generator -> uncertainty -> evolution -> memory; housekeeper -> memory. The
//! way back up is an event. Each actor is one file in five parts: header, handle, message, state, actor.
//!
//! Reading order: [`call`] (permits, deadlines, slots), [`supervisor`], [`memory`], [`generator`], [`uncertainty`],
//! [`evolution`], [`watcher`], [`housekeeper`], [`system`] (the wiring).

pub mod call;
pub mod evolution;
pub mod generator;
pub mod housekeeper;
pub mod memory;
pub mod supervisor;
pub mod system;
mod tunables;
pub mod uncertainty;
pub mod watcher;

pub use call::{ActorError, ActorStatus};
pub use evolution::{EvolutionHandle, SkillPart, SkillReceipt, SkillUpload};
pub use generator::{GenerateAnswer, GenerateAsk, GeneratorHandle};
pub use memory::{MemoryHandle, RecallAsk};
pub use system::{System, SystemOptions};
pub use tunables::Tunables;
pub use uncertainty::{Observation, UncertaintyHandle, UncertaintyReport};
pub use watcher::{WatchFolder, WatcherHandle, WatcherOptions};
