//! Long-running tasks: submit, watch, cancel. A task outlives the connection that submitted it.

use mneme_base::{TaskId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::generate::{GenerateParams, GenerateResult};
use super::{params, result};

/// What a task does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Work {
    /// Generates.
    Generate(Box<GenerateParams>),
    /// Writes a backup into an empty folder.
    Backup {
        /// Absolute path of the folder.
        folder: String,
    },
    /// Compacts the store.
    Compact,
}

params! {
    /// Starts a task and returns at once. Repeatable with the same `op_id`.
    TaskSubmitParams {
        /// What to do.
        work: Work,
    }
}

result! {
    /// The task is accepted.
    TaskSubmitResult {
        /// Its name.
        task: TaskId,
    }
}

/// Where a task is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waiting for its turn.
    Queued,
    /// Under way.
    Running,
    /// Done.
    Succeeded,
    /// Ended with an error.
    Failed,
    /// Cancelled.
    Cancelled,
}

params! {
    /// Asks where a task is.
    #[derive(Default)]
    TaskStatusParams {
        /// Which; all recent ones when missing.
        #[serde(default)]
        task: Option<TaskId>,
    }
}

result! {
    /// One task.
    TaskView {
        /// Its name.
        task: TaskId,
        /// `generate`, `backup` or `compact`.
        work: String,
        /// Where it is.
        state: TaskState,
        /// When it was submitted.
        submitted_at: Timestamp,
        /// When it ended.
        #[serde(default)]
        ended_at: Option<Timestamp>,
        /// How far it is, 0 to 1.
        progress: f32,
        /// The error, when it failed.
        #[serde(default)]
        error: Option<String>,
        /// The result of a generation.
        #[serde(default)]
        generation: Option<Box<GenerateResult>>,
    }
}

result! {
    /// Tasks, newest first.
    TaskStatusResult {
        /// The tasks.
        tasks: Vec<TaskView>,
    }
}

params! {
    /// Stops a task at its next step.
    TaskCancelParams {
        /// Which.
        task: TaskId,
    }
}

result! {
    /// What the task was when the cancel arrived.
    TaskCancelResult {
        /// Whether it was still to be stopped.
        cancelled: bool,
    }
}

params! {
    /// Follows a task: its events come as `task.event` notifications until it ends, then this request is answered.
    TaskEventsParams {
        /// Which.
        task: TaskId,
    }
}

/// What happens to a task; the content of a `task.event` notification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskEvent {
    /// Which task.
    pub task: TaskId,
    /// Counts its events from 0; a gap means that a slow reader was skipped over.
    pub sequence: u64,
    /// What happened.
    pub event: TaskEventKind,
}

/// What happens to a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum TaskEventKind {
    /// It began.
    Started,
    /// The canvas crystallises.
    Canvas {
        /// Steps done.
        step: u32,
        /// Steps expected in all.
        steps_total: u32,
        /// The canvas; undecided tokens are shown as `░`.
        canvas: String,
        /// Tokens decided.
        decided: u32,
        /// Tokens in holes.
        holes: u32,
    },
    /// It went on.
    Progress {
        /// 0 to 1.
        progress: f32,
        /// What it is doing.
        doing: String,
    },
    /// It ended.
    Ended {
        /// How.
        state: TaskState,
    },
}
