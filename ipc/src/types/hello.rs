//! The handshake: versions, limits, names.

use mneme_base::BootId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{params, result};

params! {
    /// The first request on a connection.
    HelloParams {
        /// The protocol version that the client speaks.
        protocol: u32,
        /// The client's name, such as `cli` or `mcp:claude-code`; becomes part of provenance. 1 to 64 bytes.
        client: String,
        /// The client's own version, for the log.
        #[serde(default)]
        client_version: Option<String>,
        /// The client's session or conversation; becomes part of provenance.
        #[serde(default)]
        session: Option<String>,
    }
}

/// What the daemon will take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// The longest line (bytes).
    pub frame_bytes_max: u64,
    /// Requests under way at once on one connection.
    pub requests_in_flight_max: u32,
    /// The longest text of a memory (bytes).
    pub text_bytes_max: u64,
    /// The most hits of a recall.
    pub recall_limit_max: u64,
    /// Memories in one `memory.import` request.
    pub import_batch_max: u64,
    /// How long a connection that waits for no answer may be silent (milliseconds).
    pub idle_timeout_ms: u64,
}

result! {
    /// The daemon's answer.
    HelloResult {
        /// The version that is spoken from here on.
        protocol: u32,
        /// The oldest version that this daemon still speaks.
        protocol_min: u32,
        /// The daemon's name and version.
        server: String,
        /// This run of the daemon: another one means that streams and tasks of before are gone.
        boot: BootId,
        /// What it will take.
        limits: Limits,
    }
}

params! {
    /// Asks whether the daemon is there.
    #[derive(Default)]
    PingParams {}
}

result! {
    /// It is.
    PingResult {
        /// This run of the daemon.
        boot: BootId,
    }
}
