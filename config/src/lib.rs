//! Files, environment and flags become one validated [`Config`]. Knows nothing of the rest of Mneme.
//!
//! Layers, later ones win: compiled defaults, the system's `/etc/mneme/config.toml`, the user's
//! `$XDG_CONFIG_HOME/mneme/config.toml`, `MNEME_SECTION__KEY` variables, `section.key=value` flags.
//! No other crate parses settings or reads the environment.
//!
//! ```
//! use mneme_config::{Config, Sources};
//! let sources = Sources::bare("/home/ada").flag("server.frame_bytes_max=8MiB");
//! let config = Config::load(&sources).unwrap();
//! assert_eq!(config.server.frame_bytes_max.bytes(), 8 << 20);
//!
//! let error = Config::load(&Sources::bare("/home/ada").flag("server.connections_max=0")).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "flag --set server.connections_max=0: server.connections_max is 0, allowed: 1 to 65536",
//! );
//! ```
//!
//! Reading order: [`value`] (sizes, durations), [`schema`] (every setting with its bound), [`load`], [`reload`].

pub mod error;
pub mod load;
pub mod reload;
pub mod schema;
mod sections;
pub mod value;

pub use error::{ConfigError, Fault, Origin};
pub use load::{SOCKET_PATH_BYTES_MAX, SourceFile, Sources};
pub use reload::{Reloader, Update};
pub use schema::{
    Change, Config, EngineProgram, EngineSettings, EvolutionSettings, GenerationSettings, HousekeepingSettings,
    KeyInfo, Level, LogFormat, LogSettings, MemorySettings, MetricsSettings, PathSettings, Reload, ServerSettings,
    StateEngine, WatchSettings, reference, settings,
};
pub use value::ByteSize;
