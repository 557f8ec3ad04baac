//! Tasks: what runs longer than a request. They outlive the connection that submitted them, and are remembered for a while.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mneme_base::{Embedding, Namespace, OpId, TaskId, Timestamp};
use mneme_engine_api::CancelToken;
use mneme_ipc::types::{GenerateResult, TaskEvent, TaskEventKind, TaskState, TaskView};
use tokio::sync::broadcast;

/// Tasks that are remembered; the oldest ended ones make way.
const TASKS_MAX: usize = 256;
/// Events that wait for a slow follower; older ones are skipped over.
const EVENTS_MAX: usize = 256;

/// Names of feedback on one task that are remembered, so that feedback sent again counts once.
const FEEDBACK_MAX: usize = 16;

/// What is kept of a generation for feedback on it.
#[derive(Debug, Clone)]
pub struct Generated {
    /// What was asked, in meaning space.
    pub situation: Option<Embedding>,
    /// The whole text.
    pub text: String,
    /// Where an accepted text is remembered.
    pub namespace: Namespace,
}

/// One task.
#[derive(Debug)]
struct Task {
    view: TaskView,
    op_id: Option<OpId>,
    cancel: CancelToken,
    sequence: u64,
    events: broadcast::Sender<TaskEvent>,
    generated: Option<Generated>,
    /// Feedback that was taken, by name.
    feedback: VecDeque<OpId>,
}

/// All tasks.
#[derive(Debug, Default, Clone)]
pub struct Tasks {
    tasks: Arc<Mutex<VecDeque<Task>>>,
}

/// A follower's view of a task: how it is now, and what happens next.
pub type Followed = (TaskView, broadcast::Receiver<TaskEvent>);

impl Tasks {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Task>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a task. `Err` with the former one when the `op_id` is known: it is the same task.
    pub fn begin(&self, work: &str, op_id: Option<OpId>, now: Timestamp) -> Result<(TaskId, CancelToken), TaskId> {
        let mut tasks = self.lock();
        if let Some(op_id) = op_id
            && let Some(task) = tasks.iter().find(|task| task.op_id == Some(op_id))
        {
            return Err(task.view.task);
        }
        while tasks.len() >= TASKS_MAX
            && let Some(index) = tasks.iter().position(|task| task.view.ended_at.is_some())
        {
            tasks.remove(index);
        }
        let id = TaskId::generate(now);
        let cancel = CancelToken::default();
        tasks.push_back(Task {
            view: TaskView {
                task: id,
                work: work.to_owned(),
                state: TaskState::Running,
                submitted_at: now,
                ended_at: None,
                progress: 0.0,
                error: None,
                generation: None,
            },
            op_id,
            cancel: cancel.clone(),
            sequence: 0,
            events: broadcast::channel(EVENTS_MAX).0,
            generated: None,
            feedback: VecDeque::new(),
        });
        Ok((id, cancel))
    }

    /// Tells followers what happens, and returns the event.
    pub fn tell(&self, id: TaskId, event: TaskEventKind) -> Option<TaskEvent> {
        let mut tasks = self.lock();
        let task = tasks.iter_mut().find(|task| task.view.task == id)?;
        match &event {
            TaskEventKind::Canvas { decided, holes, .. } => {
                task.view.progress = *decided as f32 / (*holes).max(1) as f32;
            }
            TaskEventKind::Progress { progress, .. } => task.view.progress = *progress,
            TaskEventKind::Started | TaskEventKind::Ended { .. } => {}
        }
        let event = TaskEvent { task: id, sequence: task.sequence, event };
        task.sequence += 1;
        let _ = task.events.send(event.clone());
        Some(event)
    }

    /// Ends a task.
    pub fn end(
        &self,
        id: TaskId,
        state: TaskState,
        error: Option<String>,
        generation: Option<(GenerateResult, Generated)>,
        now: Timestamp,
    ) {
        if let Some(task) = self.lock().iter_mut().find(|task| task.view.task == id) {
            task.view.state = state;
            task.view.error = error;
            task.view.ended_at = Some(now);
            if state == TaskState::Succeeded {
                task.view.progress = 1.0;
            }
            if let Some((result, generated)) = generation {
                task.view.generation = Some(Box::new(result));
                task.generated = Some(generated);
            }
        }
        self.tell(id, TaskEventKind::Ended { state });
    }

    /// One task, or all, newest first.
    pub fn views(&self, id: Option<TaskId>) -> Vec<TaskView> {
        let tasks = self.lock();
        tasks
            .iter()
            .rev()
            .filter(|task| id.is_none_or(|id| task.view.task == id))
            .map(|task| task.view.clone())
            .collect()
    }

    /// Follows a task.
    pub fn follow(&self, id: TaskId) -> Option<Followed> {
        let tasks = self.lock();
        tasks.iter().find(|task| task.view.task == id).map(|task| (task.view.clone(), task.events.subscribe()))
    }

    /// Asks a task to stop. `None` when there is no such task, `false` when it had ended.
    pub fn cancel(&self, id: TaskId) -> Option<bool> {
        let tasks = self.lock();
        let task = tasks.iter().find(|task| task.view.task == id)?;
        let running = task.view.ended_at.is_none();
        task.cancel.cancel();
        Some(running)
    }

    /// Asks every task to stop.
    pub fn cancel_all(&self) {
        self.lock().iter().for_each(|task| task.cancel.cancel());
    }

    /// Whether feedback of this name was taken before.
    pub fn has_feedback(&self, id: TaskId, op_id: OpId) -> bool {
        self.lock().iter().any(|task| task.view.task == id && task.feedback.contains(&op_id))
    }

    /// Remembers that feedback of this name was taken.
    pub fn keep_feedback(&self, id: TaskId, op_id: OpId) {
        if let Some(task) = self.lock().iter_mut().find(|task| task.view.task == id) {
            if task.feedback.len() >= FEEDBACK_MAX {
                task.feedback.pop_front();
            }
            task.feedback.push_back(op_id);
        }
    }

    /// What is kept of a generation.
    pub fn generated(&self, id: TaskId) -> Option<Generated> {
        self.lock().iter().find(|task| task.view.task == id)?.generated.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(0);

    #[test]
    fn the_same_op_id_is_the_same_task() {
        let tasks = Tasks::default();
        let (id, _) = tasks.begin("compact", Some(OpId::new(1)), NOW).unwrap();
        assert_eq!(tasks.begin("compact", Some(OpId::new(1)), NOW).unwrap_err(), id);
        assert_ne!(tasks.begin("compact", Some(OpId::new(2)), NOW).unwrap().0, id);
    }

    #[test]
    fn feedback_of_one_name_counts_once_and_names_make_way() {
        let tasks = Tasks::default();
        let (id, _) = tasks.begin("generate", None, NOW).unwrap();
        assert!(!tasks.has_feedback(id, OpId::new(1)));
        for name in 1..=FEEDBACK_MAX as u128 + 1 {
            tasks.keep_feedback(id, OpId::new(name));
        }
        assert!(tasks.has_feedback(id, OpId::new(2)));
        assert!(!tasks.has_feedback(id, OpId::new(1)), "the oldest made way");
    }

    #[test]
    fn old_ended_tasks_make_way_and_running_ones_stay() {
        let tasks = Tasks::default();
        let (running, _) = tasks.begin("generate", None, NOW).unwrap();
        for _ in 0..2 * TASKS_MAX {
            let (id, _) = tasks.begin("compact", None, NOW).unwrap();
            tasks.end(id, TaskState::Succeeded, None, None, NOW);
        }
        assert!(tasks.views(None).len() <= TASKS_MAX);
        assert_eq!(tasks.views(Some(running)).len(), 1);
    }

    #[test]
    fn a_follower_sees_events_in_order_and_the_end() {
        let tasks = Tasks::default();
        let (id, _) = tasks.begin("compact", None, NOW).unwrap();
        let (_, mut events) = tasks.follow(id).unwrap();
        tasks.tell(id, TaskEventKind::Started);
        tasks.end(id, TaskState::Failed, Some("no".into()), None, NOW);
        assert_eq!(events.try_recv().unwrap().sequence, 0);
        let end = events.try_recv().unwrap();
        assert_eq!((end.sequence, end.event), (1, TaskEventKind::Ended { state: TaskState::Failed }));
        assert_eq!(tasks.cancel(id), Some(false));
    }
}
