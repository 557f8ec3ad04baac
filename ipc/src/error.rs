//! Errors as they travel: a code, a message, a hint, and when to come again. What is inside stays in the daemon's log.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What went wrong, by name. The numbers are JSON-RPC's where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The line is not JSON, or not UTF-8.
    ParseError,
    /// The JSON is not a request.
    InvalidRequest,
    /// There is no such method.
    MethodNotFound,
    /// A parameter is unknown, missing or out of its bounds.
    InvalidParams,
    /// The daemon failed inside; its log says more.
    Internal,
    /// The frame is over the limit; the connection is closed.
    FrameTooLarge,
    /// The client speaks a version that this daemon does not.
    UnsupportedVersion,
    /// The first request was not `hello`.
    HelloRequired,
    /// Too much is under way: come again after `retry_after_ms`.
    Busy,
    /// The deadline passed.
    DeadlineExceeded,
    /// The work was cancelled.
    Cancelled,
    /// What was named does not exist.
    NotFound,
    /// The `op_id` was used for something else, or the thing was changed in between.
    Conflict,
    /// A source wrote more than its quota.
    QuotaExceeded,
    /// The store refuses writes.
    ReadOnly,
    /// The engine is away or cannot do this.
    EngineUnavailable,
    /// No text satisfies the constraint.
    Unsatisfiable,
    /// The daemon is shutting down.
    ShuttingDown,
    /// This client may not do this.
    Forbidden,
    /// The store failed; the daemon exits to recover.
    StoreFailed,
    /// A kind that this build does not know (from a newer daemon).
    #[serde(other)]
    Unknown,
}

impl ErrorKind {
    /// The number on the wire.
    pub const fn code(self) -> i32 {
        match self {
            Self::ParseError => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::Internal | Self::Unknown => -32603,
            Self::FrameTooLarge => -32001,
            Self::UnsupportedVersion => -32002,
            Self::HelloRequired => -32003,
            Self::Busy => -32004,
            Self::DeadlineExceeded => -32005,
            Self::Cancelled => -32006,
            Self::NotFound => -32007,
            Self::Conflict => -32008,
            Self::QuotaExceeded => -32009,
            Self::ReadOnly => -32010,
            Self::EngineUnavailable => -32011,
            Self::Unsatisfiable => -32012,
            Self::ShuttingDown => -32013,
            Self::Forbidden => -32014,
            Self::StoreFailed => -32015,
        }
    }

    /// Whether the same request may succeed later without being changed.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Busy | Self::QuotaExceeded | Self::EngineUnavailable | Self::ShuttingDown | Self::ReadOnly)
    }

    /// Every kind, in the order of the protocol page.
    pub const ALL: [Self; 20] = [
        Self::ParseError,
        Self::InvalidRequest,
        Self::MethodNotFound,
        Self::InvalidParams,
        Self::Internal,
        Self::FrameTooLarge,
        Self::UnsupportedVersion,
        Self::HelloRequired,
        Self::Busy,
        Self::DeadlineExceeded,
        Self::Cancelled,
        Self::NotFound,
        Self::Conflict,
        Self::QuotaExceeded,
        Self::ReadOnly,
        Self::EngineUnavailable,
        Self::Unsatisfiable,
        Self::ShuttingDown,
        Self::Forbidden,
        Self::StoreFailed,
    ];
}

/// What a program needs to know of an error beside its text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// The kind by name: stable, unlike the message.
    pub kind: ErrorKind,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// When the same request may be sent again (milliseconds from now).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

/// The `error` member of a response.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// The number of the kind.
    pub code: i32,
    /// One lowercase sentence: what was attempted, the value, the bound.
    pub message: String,
    /// The rest.
    pub data: ErrorData,
}

impl ErrorBody {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { code: kind.code(), message: message.into(), data: ErrorData { kind, hint: None, retry_after_ms: None } }
    }

    /// Adds what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.data.hint = Some(hint.into());
        self
    }

    /// Adds when to come again.
    #[must_use]
    pub fn retry_after_ms(mut self, millis: u64) -> Self {
        self.data.retry_after_ms = Some(millis);
        self
    }

    /// The kind.
    pub const fn kind(&self) -> ErrorKind {
        self.data.kind
    }
}

impl std::fmt::Display for ErrorBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ErrorBody {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct() {
        let mut codes: Vec<i32> = ErrorKind::ALL.iter().map(|kind| kind.code()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn a_kind_from_a_newer_daemon_is_tolerated() {
        let data: ErrorData = serde_json::from_str(r#"{"kind":"out_of_cheese","extra":1}"#).unwrap();
        assert_eq!(data.kind, ErrorKind::Unknown);
    }
}
