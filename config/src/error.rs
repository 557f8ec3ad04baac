//! What can be wrong with a configuration, and where it stands.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value came from; an error points at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Compiled in.
    Default,
    /// A file; the line counts from 1.
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1; 0 when the position is unknown.
        line: usize,
    },
    /// An environment variable, by name.
    Environment(String),
    /// A `section.key=value` flag, as given.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("compiled default"),
            Self::File { path, line: 0 } => write!(out, "{}", path.display()),
            Self::File { path, line } => write!(out, "{}:{line}", path.display()),
            Self::Environment(name) => write!(out, "environment variable {name}"),
            Self::Flag(text) => write!(out, "flag --set {text}"),
        }
    }
}

/// One thing that is wrong: where, which key, what was found and what is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where the value stands.
    pub origin: Origin,
    /// The key, as `section.key`; empty when the text could not be read as TOML at all.
    pub key: String,
    /// The value as found, shortened.
    pub found: String,
    /// What is wrong, and the bound.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(out, "{} ", self.key)?;
        }
        if !self.found.is_empty() {
            write!(out, "is {}, ", self.found)?;
        }
        out.write_str(&self.problem)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file that should be read cannot be.
    #[error("could not read the configuration file {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is larger than a configuration can be; it is refused before it is read.
    #[error("configuration file {} has {bytes} bytes, at most {bytes_max} are read", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// One or more settings are wrong; all of them are listed, in the order of their layers.
    #[error("{}", list(.0))]
    Faults(Vec<Fault>),
}

fn list(faults: &[Fault]) -> String {
    faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("\n")
}
