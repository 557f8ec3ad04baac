//! Why a command failed, what to do next, and with which exit status.

use std::process::ExitCode;

use mneme_client_sdk::ClientError;
use mneme_ipc::ErrorKind;

/// Exit status when the daemon is not there (EX_UNAVAILABLE).
const EXIT_UNAVAILABLE: u8 = 69;
/// Exit status for wrong usage (EX_USAGE).
const EXIT_USAGE: u8 = 64;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CommandError {
    /// The daemon gave no result.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A file could not be read or written.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// Input that cannot be used.
    #[error("{problem}")]
    Usage {
        /// What is wrong with it.
        problem: String,
        /// What to do next.
        hint: Option<String>,
    },
    /// The configuration is faulty.
    #[error(transparent)]
    Config(#[from] mneme_config::ConfigError),
    /// Another program failed.
    #[error("{program} failed: {problem}")]
    Program {
        /// Which.
        program: String,
        /// What it said.
        problem: String,
    },
}

impl CommandError {
    /// Wrong usage without a hint.
    pub(crate) fn usage(problem: impl Into<String>) -> Self {
        Self::Usage { problem: problem.into(), hint: None }
    }

    /// What to do next.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::Client(error) => error.hint(),
            Self::Usage { hint, .. } => hint.clone(),
            Self::Config(_) => Some("'mneme config show' lists every key with its bounds".into()),
            Self::Io(_) | Self::Program { .. } => None,
        }
    }

    /// The error's name for programs.
    pub(crate) fn kind(&self) -> String {
        let kind = match self {
            Self::Client(ClientError::Daemon(body)) => body.kind(),
            Self::Client(ClientError::NotRunning { .. }) => return "not_running".into(),
            Self::Client(ClientError::Timeout { .. }) => ErrorKind::DeadlineExceeded,
            Self::Client(_) => return "connection".into(),
            Self::Io(_) => return "io".into(),
            Self::Usage { .. } => return "usage".into(),
            Self::Config(_) => return "config".into(),
            Self::Program { .. } => return "program".into(),
        };
        serde_json::to_value(kind).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }

    /// The exit status.
    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Client(ClientError::NotRunning { .. }) => ExitCode::from(EXIT_UNAVAILABLE),
            Self::Usage { .. } | Self::Config(_) => ExitCode::from(EXIT_USAGE),
            _ => ExitCode::FAILURE,
        }
    }
}
