//! Carries out what the loop decides: each row first, its effects after it.
//!
//! A row that cannot be written (a full disk, a busy memory) waits with all that follows it, and is tried again at the next event or
//! tick. Until then nothing new is observed, so that little waits; what is forgotten is taken out of service and off the disk all the
//! same, for that needs no row to be repeated after a crash: the store says what it no longer has.

use std::collections::BTreeSet;

use mneme_base::{AdapterId, MemoryId};
use mneme_evolution::machine::{Action, Change, Event, Evolution, JobSpec, Notice};
use mneme_memory::Refusal;
use ractor::ActorRef;

use super::rows::{read_history, write_checkpoint, write_row, write_snapshot};
use super::{JOURNAL_TIMEOUT, Message, State, remove_folder};
use crate::call::{ActorError, deadline_in};
use crate::memory::MemoryHandle;

/// Memories whose presence is asked for at once: their texts come with the answer.
const ASKED_AT_ONCE: usize = 256;

impl State {
    /// Feeds an event and carries out what follows. `Err` when the event was not taken, for rows before it still wait.
    pub(super) async fn happened(
        &mut self,
        myself: &ActorRef<Message>,
        event: Event,
    ) -> Result<Vec<Notice>, ActorError> {
        if let Err(error) = self.catch_up(myself).await
            && !must_be_taken(&event)
        {
            return Err(error);
        }
        let now = self.now();
        let actions = self.evolution.handle(event, now);
        Ok(self.carry_out(myself, actions).await)
    }

    /// As [`State::happened`], for events that nobody waits for.
    pub(super) async fn heard(&mut self, myself: &ActorRef<Message>, event: Event) {
        if let Err(error) = self.happened(myself, event).await {
            tracing::debug!(%error, "an observation was passed over: decisions wait to be written");
        }
    }

    /// Carries out actions in their order, as far as their rows can be written.
    pub(super) async fn carry_out(&mut self, myself: &ActorRef<Message>, actions: Vec<Action>) -> Vec<Notice> {
        let mut notices = Vec::new();
        for action in actions {
            if let Action::Notify(notice) = action {
                tracing::debug!(?notice, "evolution notice");
                notices.push(notice);
            } else {
                self.waiting.push_back(action);
            }
        }
        let first = self.waiting.len();
        match self.catch_up(myself).await {
            Ok(()) => {}
            Err(error) if is_final(&error) => {
                notices.push(Notice::Refused { reason: format!("the store does not take the decision: {error}") });
            }
            Err(error) => {
                tracing::warn!(%error, waiting = first, "evolution's decision cannot be written yet");
                self.forget_at_once();
            }
        }
        notices
    }

    /// Carries out what waits, up to the first row that still cannot be written.
    pub(super) async fn catch_up(&mut self, myself: &ActorRef<Message>) -> Result<(), ActorError> {
        while let Some(action) = self.waiting.pop_front() {
            if let Action::Journal(row) = &action {
                if let Err(error) = write_row(&self.arguments.memory, row).await {
                    if is_final(&error) {
                        tracing::error!(%error, row = row.id, reason = row.reason, "a decision is given up that the store refuses");
                    }
                    self.waiting.push_front(action);
                    if is_final(&error) {
                        self.go_back().await;
                    }
                    return Err(error);
                }
                tracing::info!(from = %row.from, to = %row.to, reason = row.reason, "evolution decided");
                *self.stations.entry(row.to).or_insert(0) += 1;
                self.arguments.last_row.store(row.id, std::sync::atomic::Ordering::Release);
            }
            self.take_effect(myself, action).await;
        }
        self.write_down().await;
        Ok(())
    }

    /// Goes back to what is written. A row that the store will never take must not hold up all that come after it; what followed from
    /// it falls with it, and what was observed stays.
    async fn go_back(&mut self) {
        self.forget_at_once();
        let (snapshot, written) = match read_history(&self.arguments.memory).await {
            Ok(history) => history,
            Err(error) => {
                tracing::warn!(%error, "the decisions before it are read again later");
                return;
            }
        };
        let policy = self.arguments.tuned.get().policy.clone();
        let observed = self.evolution.checkpoint();
        self.evolution = Evolution::resume(policy, written.state, Some(observed));
        self.stations = written.stations;
        self.snapshot = snapshot;
        self.waiting.clear();
        // What is told once is told again: the engine, a job to be gone on with, what was forgotten.
        self.engine_seen = None;
        self.look_for_forgotten = true;
        if let Some((_, cancel)) = &self.job {
            cancel.cancel();
        }
    }

    async fn take_effect(&mut self, myself: &ActorRef<Message>, action: Action) {
        match action {
            Action::Checkpoint(checkpoint) => {
                if let Err(error) = write_checkpoint(&self.arguments.memory, &checkpoint).await {
                    // It may be lost by design: that costs evidence and no decision.
                    tracing::warn!(%error, "evolution's checkpoint was left out");
                }
            }
            // The next start takes the job up.
            Action::StartTraining(_) | Action::ScaleAdapter { .. } if self.leaving => {}
            Action::StartTraining(spec) => self.start_job(myself, spec, 1.0),
            Action::ScaleAdapter { adapter, factor } => {
                if let Some(spec) = self.job_spec(adapter) {
                    self.start_job(myself, spec, factor as f32);
                }
            }
            Action::StopTraining { adapter } => self.stop_job(adapter),
            Action::RetireAdapter { adapter } => self.retire(adapter),
            // Rows are written and notices told before; what serves and what is compared is read from the loop's own state at each
            // request.
            Action::Journal(_)
            | Action::Notify(_)
            | Action::ShadowAdapter { .. }
            | Action::ActivateAdapter { .. }
            | Action::DeactivateAdapter { .. } => {}
            _ => tracing::warn!("evolution asked for something this build does not know"),
        }
    }

    fn retire(&mut self, adapter: AdapterId) {
        self.stop_job(adapter);
        remove_folder(&self.folder_of(adapter));
    }

    /// The effects of forgetting, of rows that wait.
    fn forget_at_once(&mut self) {
        let mut forgets = false;
        let mut gone = Vec::new();
        for action in &self.waiting {
            match action {
                Action::Journal(row) => forgets = matches!(row.change, Change::Forgotten { .. }),
                Action::StopTraining { adapter } | Action::RetireAdapter { adapter } if forgets => gone.push(*adapter),
                _ => {}
            }
        }
        gone.into_iter().for_each(|adapter| self.retire(adapter));
    }

    /// Writes the whole state down once in many rows.
    async fn write_down(&mut self) {
        if !self.snapshot.is_old(self.evolution.state().rows) {
            return;
        }
        let renewed = self.snapshot.renewed(self.evolution.state(), &self.stations);
        if let Err(error) = write_snapshot(&self.arguments.memory, &mut self.snapshot, renewed).await {
            tracing::warn!(%error, "evolution's state is written down later");
            self.snapshot.postpone(self.evolution.state().rows);
        }
    }

    fn job_spec(&self, adapter: AdapterId) -> Option<JobSpec> {
        self.evolution.state().job.as_ref().map(|job| job.spec.clone()).filter(|spec| spec.adapter == adapter)
    }

    /// Asks the store which memories in use are gone: the store and the log are not written at once, and a feed has gaps. What cannot
    /// be asked now is asked at the next tick.
    pub(super) async fn find_forgotten(&mut self, myself: &ActorRef<Message>) {
        self.look_for_forgotten = false;
        let in_use: Vec<MemoryId> = self.evolution.memories_in_use().into_iter().collect();
        if in_use.is_empty() {
            return;
        }
        match missing(&self.arguments.memory, &in_use).await {
            Ok(missing) if missing.is_empty() => {}
            Ok(missing) => self.heard(myself, Event::Forgotten(missing)).await,
            Err(error) => {
                tracing::warn!(%error, "whether memories in use were forgotten is asked again");
                self.look_for_forgotten = true;
            }
        }
    }
}

/// Which of these memories the store does not have (any more).
pub(super) async fn missing(memory: &MemoryHandle, ids: &[MemoryId]) -> Result<Vec<MemoryId>, ActorError> {
    let mut missing = Vec::new();
    for page in ids.chunks(ASKED_AT_ONCE) {
        let found = memory.get_all(page.to_vec(), deadline_in(JOURNAL_TIMEOUT)).await?;
        let found: BTreeSet<MemoryId> = found.into_iter().map(|memory| memory.id).collect();
        missing.extend(page.iter().copied().filter(|id| !found.contains(id)));
    }
    Ok(missing)
}

/// Whether the store will not take a row however often it is asked: it has room and refuses what the row is.
const fn is_final(error: &ActorError) -> bool {
    matches!(error, ActorError::Refused(Refusal::Invalid { .. }))
}

/// Whether an event counts even while rows wait: what is forgotten must leave, and a job's end or an engine is told once.
pub(super) const fn must_be_taken(event: &Event) -> bool {
    matches!(
        event,
        Event::Forgotten(_)
            | Event::Trained(_)
            | Event::TrainingFailed { .. }
            | Event::CannotTrain { .. }
            | Event::Unusable { .. }
            | Event::Preempted { .. }
            | Event::Engine { .. }
            | Event::Calibrated { .. }
    )
}
