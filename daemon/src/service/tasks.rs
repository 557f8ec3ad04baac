//! Tasks: submit, follow, cancel.

use std::sync::Arc;

use mneme_base::TaskId;
use mneme_ipc::types as wire;
use mneme_ipc::types::{TaskEventKind, TaskState};
use mneme_ipc::{ErrorBody, ErrorKind};
use tokio::time::Instant;

use super::{Context, Service, TASK_TIMEOUT, no_task};
use crate::convert;

impl Service {
    pub(super) fn submit(
        self: &Arc<Self>,
        work: wire::Work,
        context: &Context,
    ) -> Result<wire::TaskSubmitResult, ErrorBody> {
        let name = match &work {
            wire::Work::Generate(params) => {
                // What is wrong with it is said now and not in a task that failed.
                convert::generation(params, self.defaults())?;
                "generate"
            }
            wire::Work::Backup { .. } => "backup",
            wire::Work::Compact => "compact",
        };
        let (id, cancel) = match self.tasks.begin(name, context.op_id, self.clock.now()) {
            Ok(begun) => begun,
            Err(known) => return Ok(wire::TaskSubmitResult { task: known }),
        };
        let service = Arc::clone(self);
        tokio::spawn(async move {
            let deadline = Instant::now() + TASK_TIMEOUT;
            match work {
                wire::Work::Generate(params) => {
                    let _ = service.run_generation(id, *params, cancel, None, deadline).await;
                }
                wire::Work::Backup { folder } => service.run_upkeep(id, service.backup(folder, deadline)).await,
                wire::Work::Compact => service.run_upkeep(id, service.compact(deadline)).await,
            }
        });
        Ok(wire::TaskSubmitResult { task: id })
    }

    pub(super) async fn run_upkeep(
        &self,
        id: TaskId,
        work: impl Future<Output = Result<wire::UpkeepResult, ErrorBody>>,
    ) {
        self.tell(id, TaskEventKind::Started, None);
        let (state, error) = match work.await {
            Ok(_) => (TaskState::Succeeded, None),
            Err(error) => (TaskState::Failed, Some(error.message)),
        };
        self.tasks.end(id, state, error, None, self.clock.now());
    }

    pub(super) fn task_status(&self, task: Option<TaskId>) -> Result<wire::TaskStatusResult, ErrorBody> {
        let tasks = self.tasks.views(task);
        if let (Some(task), true) = (task, tasks.is_empty()) {
            return Err(no_task(task));
        }
        Ok(wire::TaskStatusResult { tasks })
    }

    pub(super) fn task_cancel(&self, task: TaskId) -> Result<wire::TaskCancelResult, ErrorBody> {
        let cancelled = self.tasks.cancel(task).ok_or_else(|| no_task(task))?;
        Ok(wire::TaskCancelResult { cancelled })
    }

    pub(super) async fn task_events(&self, task: TaskId, context: &Context) -> Result<wire::TaskView, ErrorBody> {
        let (view, mut events) = self.tasks.follow(task).ok_or_else(|| no_task(task))?;
        if view.ended_at.is_some() {
            return Ok(view);
        }
        loop {
            let event = match tokio::time::timeout_at(context.deadline, events.recv()).await {
                Ok(Ok(event)) => event,
                Ok(Err(tokio::sync::broadcast::error::RecvError::Lagged(_))) => continue,
                Ok(Err(tokio::sync::broadcast::error::RecvError::Closed)) => break,
                Err(_) => {
                    let message = format!("task {task} was still running at the deadline");
                    return Err(ErrorBody::new(ErrorKind::DeadlineExceeded, message));
                }
            };
            let ended = matches!(event.event, TaskEventKind::Ended { .. });
            let _ = context.events.try_send(event);
            if ended {
                break;
            }
        }
        self.tasks.views(Some(task)).pop().ok_or_else(|| no_task(task))
    }
}
