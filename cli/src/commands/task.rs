//! task status, follow, cancel.

use indicatif::ProgressBar;
use mneme_ipc::methods;
use mneme_ipc::types as wire;

use super::Session;
use super::generate::{show, show_result};
use crate::args::TaskCommand;
use crate::error::CommandError;
use crate::output::{dim, line, safe};

pub(super) fn run(session: &Session, command: TaskCommand) -> Result<(), CommandError> {
    let client = session.client()?;
    match command {
        TaskCommand::Status { task } => {
            let params = wire::TaskStatusParams { task };
            let result = client.call_with::<methods::TaskStatus>(params, session.call())?;
            session.out.result(&result, |result| {
                if result.tasks.is_empty() {
                    line(dim("no recent tasks"));
                }
                result.tasks.iter().for_each(show_task);
            })
        }
        TaskCommand::Follow { task } => {
            let bar = if session.out.is_json() { ProgressBar::hidden() } else { ProgressBar::new(100) };
            let params = wire::TaskEventsParams { task };
            let followed =
                client.call_streaming::<methods::TaskEvents>(params, session.call(), |event| show(&bar, &event.event));
            bar.finish_and_clear();
            session.out.result(&followed?, show_task)
        }
        TaskCommand::Cancel { task } => {
            let params = wire::TaskCancelParams { task };
            let result = client.call_with::<methods::TaskCancel>(params, session.call())?;
            session.out.result(&result, |result| {
                line(if result.cancelled { "it will stop at its next step" } else { "it had ended already" });
            })
        }
    }
}

fn show_task(task: &wire::TaskView) {
    let state = serde_json::to_value(task.state).unwrap_or_default();
    let state = state.as_str().unwrap_or_default().to_owned();
    line(format!("{}  {:<9} {:<10} {:>3.0}%", task.task, task.work, state, f64::from(task.progress) * 100.0));
    if let Some(error) = &task.error {
        line(format!("  {}", safe(error)));
    }
    if let Some(generation) = &task.generation {
        show_result(generation);
    }
}
