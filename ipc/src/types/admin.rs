//! Watching folders, and running the daemon.

use std::collections::BTreeMap;

use mneme_base::{BootId, Lsn, Namespace, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{params, result};

params! {
    /// Keeps the text and Markdown files of a folder in memory as they change.
    WatchAddParams {
        /// Absolute path of the folder.
        folder: String,
        /// The drawer; `default` when missing.
        #[serde(default)]
        namespace: Namespace,
    }
}

params! {
    /// Stops watching a folder.
    WatchRemoveParams {
        /// Absolute path of the folder.
        folder: String,
        /// Forget what was read from it.
        #[serde(default)]
        forget: bool,
    }
}

params! {
    /// Lists watched folders.
    #[derive(Default)]
    WatchListParams {}
}

/// A watched folder.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WatchView {
    /// Its absolute path.
    pub folder: String,
    /// The drawer.
    pub namespace: Namespace,
    /// Files that are in memory.
    pub files: u64,
    /// When it was last looked through from end to end.
    #[serde(default)]
    pub scanned_at: Option<Timestamp>,
    /// What is wrong with it.
    #[serde(default)]
    pub problem: Option<String>,
}

result! {
    /// Watched folders.
    WatchListResult {
        /// The folders.
        folders: Vec<WatchView>,
    }
}

params! {
    /// Asks how the daemon is.
    #[derive(Default)]
    StatusParams {}
}

/// One actor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ActorView {
    /// Its name.
    pub name: String,
    /// `running`, `restarting` or `stopped`.
    pub state: String,
    /// How often it was restarted.
    pub restarts: u64,
    /// Requests that it is dealing with.
    pub in_flight: u64,
    /// Requests that it takes at once.
    pub capacity: u64,
}

result! {
    /// How the daemon is.
    StatusResult {
        /// Name and version.
        server: String,
        /// This run.
        boot: BootId,
        /// Its process id.
        pid: u32,
        /// When it started.
        started_at: Timestamp,
        /// `healthy`, or what is wrong.
        health: String,
        /// Its resident memory (bytes).
        rss_bytes: u64,
        /// Open connections.
        connections: u64,
        /// Requests answered, by method.
        requests: BTreeMap<String, u64>,
        /// Errors answered, by kind.
        errors: BTreeMap<String, u64>,
        /// The last change.
        lsn: Lsn,
        /// Memories that recall can return.
        memories: u64,
        /// The engine: its name, or why it is away.
        engine: String,
        /// How often the engine was restarted.
        engine_restarts: u64,
        /// The actors.
        actors: Vec<ActorView>,
        /// The state folder.
        state_dir: String,
    }
}

params! {
    /// Writes a verified copy of the store into an empty folder, while it is in use.
    BackupParams {
        /// Absolute path of the folder.
        folder: String,
    }
}

result! {
    /// What an upkeep step did.
    UpkeepResult {
        /// Rows or files dealt with, by step.
        items: BTreeMap<String, u64>,
        /// Bytes given back to the disk.
        bytes_freed: u64,
    }
}

params! {
    /// Purges forgotten bytes and compacts the store now.
    #[derive(Default)]
    CompactParams {}
}

params! {
    /// Reads the configuration again.
    #[derive(Default)]
    ReloadParams {}
}

result! {
    /// How the configuration differs from the one that the daemon was started with.
    ReloadResult {
        /// Settings that have another value in force than at the start, as `section.key = value`.
        applied: Vec<String>,
        /// Keys whose new value waits for a restart.
        restart_needed: Vec<String>,
    }
}

params! {
    /// Stops the daemon: no new requests, what is under way ends, everything is flushed.
    #[derive(Default)]
    DrainParams {}
}

result! {
    /// It will.
    DrainResult {
        /// Requests that are still under way.
        in_flight: u64,
    }
}

params! {
    /// Asks for counters in Prometheus' text form.
    #[derive(Default)]
    MetricsParams {}
}

result! {
    /// Counters.
    MetricsResult {
        /// Prometheus text format 0.0.4.
        text: String,
    }
}
