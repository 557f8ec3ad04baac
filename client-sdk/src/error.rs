//! Why a call gave no result.

use std::path::PathBuf;

use mneme_ipc::{ErrorBody, ErrorKind};

/// Why a call gave no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing listens on the socket.
    #[error("daemon is not running at {}", socket.display())]
    NotRunning {
        /// The socket.
        socket: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The socket belongs to somebody else.
    #[error("daemon at {} refuses this user", socket.display())]
    Forbidden {
        /// The socket.
        socket: PathBuf,
    },
    /// The connection was lost, and the call is not one that may be sent twice.
    #[error("connection to the daemon was lost")]
    Disconnected,
    /// The deadline passed.
    #[error("daemon did not answer within {millis} ms")]
    Timeout {
        /// The time that was given.
        millis: u64,
    },
    /// The caller gave the call up. Whether it was carried out is not known.
    #[error("call was cancelled")]
    Cancelled,
    /// The daemon answered with an error.
    #[error("{0}")]
    Daemon(ErrorBody),
    /// The daemon sent something that is not the protocol.
    #[error("daemon sent what this client cannot read: {problem}")]
    Protocol {
        /// What is wrong with it.
        problem: String,
    },
    /// The client's own runtime could not be started.
    #[error("client could not start")]
    Runtime(#[source] std::io::Error),
}

impl ClientError {
    /// The daemon's kind of error, if it is the daemon's.
    pub const fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Daemon(body) => Some(body.kind()),
            _ => None,
        }
    }

    /// What to do next, for a person.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotRunning { .. } => Some("start it with 'mneme service start' or 'mnemed'".into()),
            Self::Forbidden { .. } => Some("each user has a daemon of their own; check MNEME_SOCKET".into()),
            Self::Timeout { .. } => Some("see 'mneme status' for what it is doing".into()),
            Self::Protocol { .. } => Some("client and daemon are of different versions; upgrade both".into()),
            Self::Daemon(body) => body.data.hint.clone(),
            Self::Disconnected | Self::Cancelled | Self::Runtime(_) => None,
        }
    }
}
