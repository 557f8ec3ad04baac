//! The durable state: the fold of all rows, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::{AdapterId, ContentHash, Embedding, MemoryId, Timestamp};
use mneme_engine_api::{AdapterLevel, TrainOutcome};
use serde::{Deserialize, Serialize};

use super::RestoreError;
use super::row::{Cause, Change, JobSpec, LogRow, Origin, Stage};
use crate::context::ContextId;
use crate::gate::{Decision, Verdict};
use crate::registry::{CardState, Entry, Registry, Source};
use crate::router::LevelBandit;

/// A context that waits for adaptation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// Which context.
    pub context: ContextId,
    /// Why.
    pub cause: Cause,
    /// Whether the failure is mostly one of structure.
    pub structural: bool,
    /// Stored adapters that were tried on it since.
    pub tried: Vec<AdapterId>,
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobPhase {
    /// It trains.
    Training,
    /// Its outcome is there and not yet judged.
    Judging,
    /// Its adapter is scaled and judged again.
    Scaling,
}

/// The one job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// What it is to do.
    pub spec: JobSpec,
    /// Why.
    pub cause: Cause,
    /// Whether the failure is mostly one of structure.
    pub structural: bool,
    /// Where it stands.
    pub phase: JobPhase,
    /// Stored adapters that were tried on its context before: not once more when the context has to wait again.
    #[serde(default)]
    pub tried: Vec<AdapterId>,
    /// Whether it was started and not stopped since.
    pub running: bool,
    /// Failures so far.
    pub failures: u32,
    /// CPU seconds that its outcomes report, summed.
    pub cpu_seconds: f64,
    /// Its last outcome.
    pub outcome: Option<TrainOutcome>,
    /// The factor of its update now.
    pub scale: f64,
    /// The largest factor known to forget little enough.
    pub scale_low: f64,
    /// The smallest factor known to forget too much; 0 when none is.
    pub scale_high: f64,
    /// Bisections so far.
    pub scale_tries: u32,
}

/// An adapter in the shadow of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which adapter.
    pub adapter: AdapterId,
    /// Which context.
    pub context: ContextId,
    /// Where it comes from.
    pub origin: Origin,
}

/// What serves a context, and what served it before: a rollback moves the pointer back.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Pointer {
    /// The adapter that serves; the base when absent.
    pub active: Option<AdapterId>,
    /// Those before it, oldest first.
    pub history: Vec<AdapterId>,
}

/// What is remembered of a context's jobs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContextRecord {
    /// The context's centre when it was last suspected.
    pub centroid: Embedding,
    /// Rejections since the last commit.
    pub rejections: u32,
    /// Its tokens at the last rejection.
    pub tokens_then: u64,
    /// Whether an L2 adapter was accepted here.
    pub lora_accepted: bool,
    /// Whether a later L2 job gained nothing more.
    pub lora_plateaued: bool,
}

/// The state of the loop that survives everything: rebuilt from the rows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    /// Rows so far.
    pub rows: u64,
    /// The base weights; none before the first engine.
    pub base: Option<ContentHash>,
    /// Whether the user paused training.
    pub paused: bool,
    /// Contexts that wait, oldest first.
    pub queue: Vec<Proposal>,
    /// The one job.
    pub job: Option<Job>,
    /// Adapters in shadow.
    pub trials: Vec<Trial>,
    /// All cards.
    pub registry: Registry,
    /// What serves each context.
    pub pointers: BTreeMap<ContextId, Pointer>,
    /// What is remembered of contexts.
    pub contexts: BTreeMap<ContextId, ContextRecord>,
    /// What the levels have paid.
    pub levels: LevelBandit,
    /// How often each memory was judged on.
    pub uses: BTreeMap<MemoryId, u32>,
    /// The day (UTC) of `spent_seconds`.
    pub spent_day: String,
    /// CPU seconds of training on that day.
    pub spent_seconds: f64,
    /// Rounds of evidence begun, as of the last alarm.
    pub rounds: u64,
}

impl State {
    /// Makes the next row's change; a row that was followed already changes nothing.
    pub fn follow(&mut self, row: &LogRow) -> Result<(), RestoreError> {
        if row.id > self.rows + 1 {
            return Err(RestoreError::Gap { before: self.rows, found: row.id });
        }
        if row.id == self.rows + 1 {
            self.apply(row);
        }
        Ok(())
    }

    /// Makes a row's change. Total: a row that does not fit the state changes nothing but the count.
    pub fn apply(&mut self, row: &LogRow) {
        self.rows = row.id;
        match &row.change {
            Change::Base { base_hash } => self.change_base(*base_hash),
            Change::Paused { paused } => self.paused = *paused,
            Change::Suspected { cause, centroid, structural, rounds } => {
                self.rounds = self.rounds.max(*rounds);
                self.suspect(row.context, *cause, centroid, *structural);
            }
            Change::Proposed { spec, cause } => self.propose(spec, *cause),
            Change::Tried => self.begin_trial(row, Origin::Stored),
            Change::Started => self.with_job(|job| job.running = true),
            Change::Suspended => self.with_job(|job| job.running = false),
            Change::Failed => self.with_job(|job| {
                job.running = false;
                job.failures += 1;
            }),
            Change::Returned => self.requeue_job(),
            Change::Abandoned { tokens } => {
                self.job = None;
                self.remember_rejection(row.context, *tokens);
            }
            Change::Trained { outcome } => self.with_job(|job| {
                job.running = false;
                job.phase = JobPhase::Judging;
                job.cpu_seconds += outcome.cpu_seconds;
                job.outcome = Some(outcome.clone());
            }),
            Change::Rejected { verdict, tokens } => self.reject(row, verdict, *tokens),
            Change::Scaled { verdict } => self.scale(verdict),
            Change::Accepted { card } => {
                let level = card.level;
                self.count_uses();
                self.levels.observe(level, true, card.scores.gain.map_or(0.0, |gain| gain.mean), card.cpu_seconds);
                let taken = self.registry.insert((**card).clone(), CardState::Shadow, Source::Made).is_ok();
                self.job = None;
                if taken {
                    self.begin_trial(row, Origin::Trained);
                }
            }
            Change::Committed => self.commit(row),
            Change::ShadowFailed { origin, tokens } => {
                self.end_trials(|trial| row.is_about(trial.adapter, trial.context));
                if let (Origin::Trained, Some(adapter)) = (origin, row.adapter) {
                    self.retire(adapter);
                    self.remember_rejection(row.context, *tokens);
                }
            }
            Change::RolledBack { to } => self.roll_back(row, *to),
            Change::Forgotten { memories } => self.forget(memories),
            Change::Retired => {
                if let Some(adapter) = row.adapter {
                    self.retire(adapter);
                }
            }
            Change::Pinned { pinned } => {
                if let Some(adapter) = row.adapter {
                    self.registry.set_pinned(adapter, *pinned);
                }
            }
            Change::Imported { card, foreign } => {
                // A known name or a forgotten memory was refused before the row was written.
                let source = Source::Imported { foreign: foreign.clone() };
                _ = self.registry.insert((**card).clone(), CardState::Superseded, source);
            }
        }
        self.spend(row);
    }

    fn with_job(&mut self, change: impl FnOnce(&mut Job)) {
        if let Some(job) = &mut self.job {
            change(job);
        }
    }

    /// Counts the CPU seconds that a row reports on its day.
    fn spend(&mut self, row: &LogRow) {
        if let Some(seconds) = row.numbers.get("cpu_seconds").filter(|_| row.spends()) {
            let day = row.time.date();
            if self.spent_day != day {
                self.spent_day = day;
                self.spent_seconds = 0.0;
            }
            self.spent_seconds += seconds;
        }
    }

    /// CPU seconds spent on the day of `now`.
    pub fn spent(&self, now: Timestamp) -> f64 {
        if self.spent_day == now.date() { self.spent_seconds } else { 0.0 }
    }

    fn change_base(&mut self, base: ContentHash) {
        self.base = Some(base);
        self.requeue_job();
        let of_base = |registry: &Registry, adapter| registry.get(adapter).is_some_and(|e| e.card.base_hash == base);
        let registry = &self.registry;
        let lost: Vec<Trial> = self.trials.iter().filter(|t| !of_base(registry, t.adapter)).copied().collect();
        self.end_trials(|trial| lost.contains(trial));
        for trial in lost {
            self.settle(trial.adapter, CardState::RolledBack);
        }
    }

    /// Drops the job and lets its context wait again.
    fn requeue_job(&mut self) {
        if let Some(job) = self.job.take() {
            let (context, cause) = (job.spec.context, job.cause);
            let proposal = Proposal { context, cause, structural: job.structural, tried: job.tried };
            self.queue.insert(0, proposal);
        }
    }

    fn suspect(&mut self, context: Option<ContextId>, cause: Cause, centroid: &Embedding, structural: bool) {
        let Some(context) = context else { return };
        let fresh = ContextRecord {
            centroid: centroid.clone(),
            rejections: 0,
            tokens_then: 0,
            lora_accepted: false,
            lora_plateaued: false,
        };
        let record = self.contexts.entry(context).or_insert(fresh);
        record.centroid = centroid.clone();
        match self.queue.iter_mut().find(|proposal| proposal.context == context) {
            Some(known) => {
                known.structural |= structural;
                if cause == Cause::Asked {
                    known.cause = cause;
                }
            }
            None => self.queue.push(Proposal { context, cause, structural, tried: Vec::new() }),
        }
    }

    fn propose(&mut self, spec: &JobSpec, cause: Cause) {
        let proposal = self.queue.iter().find(|proposal| proposal.context == spec.context);
        let structural = proposal.is_some_and(|proposal| proposal.structural);
        let tried = proposal.map(|proposal| proposal.tried.clone()).unwrap_or_default();
        self.queue.retain(|proposal| proposal.context != spec.context);
        self.job = Some(Job {
            spec: spec.clone(),
            cause,
            structural,
            phase: JobPhase::Training,
            tried,
            running: false,
            failures: 0,
            cpu_seconds: 0.0,
            outcome: None,
            scale: 1.0,
            scale_low: 0.0,
            scale_high: 0.0,
            scale_tries: 0,
        });
    }

    fn begin_trial(&mut self, row: &LogRow, origin: Origin) {
        let (Some(adapter), Some(context)) = (row.adapter, row.context) else { return };
        if let Some(proposal) = self.queue.iter_mut().find(|proposal| proposal.context == context) {
            proposal.tried.push(adapter);
        }
        if !self.trials.iter().any(|trial| trial.context == context) {
            self.trials.push(Trial { adapter, context, origin });
        }
    }

    fn end_trials(&mut self, ends: impl Fn(&Trial) -> bool) {
        self.trials.retain(|trial| !ends(trial));
    }

    fn count_uses(&mut self) {
        if let Some(job) = &self.job {
            for memory in &job.spec.held_out {
                *self.uses.entry(*memory).or_insert(0) += 1;
            }
        }
    }

    fn reject(&mut self, row: &LogRow, verdict: &Verdict, tokens: u64) {
        self.count_uses();
        if let Some(job) = self.job.take() {
            self.levels.observe(job.spec.level, false, 0.0, job.cpu_seconds);
            if let Some(record) = self.contexts.get_mut(&job.spec.context)
                && job.spec.level == AdapterLevel::Lora
                && verdict.plateau
            {
                record.lora_plateaued = true;
            }
        }
        self.remember_rejection(row.context, tokens);
    }

    fn remember_rejection(&mut self, context: Option<ContextId>, tokens: u64) {
        if let Some(record) = context.and_then(|context| self.contexts.get_mut(&context)) {
            record.rejections = record.rejections.saturating_add(1);
            record.tokens_then = tokens;
        }
    }

    fn scale(&mut self, verdict: &Verdict) {
        self.count_uses();
        let Decision::Scale { factor } = verdict.decision else { return };
        self.with_job(|job| {
            // A factor below the last one means that the last one forgot too much.
            if factor < job.scale {
                job.scale_high = job.scale;
            } else {
                job.scale_low = job.scale;
            }
            job.scale = factor;
            job.scale_tries += 1;
            job.phase = JobPhase::Scaling;
            job.outcome = None;
            job.running = false;
        });
    }

    fn commit(&mut self, row: &LogRow) {
        let (Some(adapter), Some(context)) = (row.adapter, row.context) else { return };
        if self.registry.get(adapter).is_none_or(|entry| entry.state == CardState::Retired) {
            return;
        }
        self.end_trials(|trial| trial.context == context);
        self.queue.retain(|proposal| proposal.context != context);
        let pointer = self.pointers.entry(context).or_default();
        let before = pointer.active.replace(adapter).filter(|before| *before != adapter);
        pointer.history.extend(before);
        self.registry.set_state(adapter, CardState::Active);
        if let Some(before) = before {
            self.settle(before, CardState::Superseded);
        }
        let level = self.registry.get(adapter).map(|entry| entry.card.level);
        if let Some(record) = self.contexts.get_mut(&context) {
            record.rejections = 0;
            if level == Some(AdapterLevel::Lora) {
                record.lora_accepted = true;
                record.lora_plateaued = false;
            }
        }
    }

    /// Gives an adapter a state, unless it still serves or is tried somewhere.
    fn settle(&mut self, adapter: AdapterId, state: CardState) {
        let serves = self.pointers.values().any(|pointer| pointer.active == Some(adapter));
        self.registry.set_state(adapter, if serves { CardState::Active } else { state });
    }

    fn roll_back(&mut self, row: &LogRow, to: Option<AdapterId>) {
        let (Some(adapter), Some(context)) = (row.adapter, row.context) else { return };
        self.end_trials(|trial| trial.context == context && trial.adapter == adapter);
        if let Some(pointer) = self.pointers.get_mut(&context)
            && pointer.active == Some(adapter)
        {
            pointer.active = to;
            if let Some(place) = to.and_then(|to| pointer.history.iter().rposition(|known| *known == to)) {
                pointer.history.truncate(place);
            }
        }
        self.registry.set_pinned(adapter, false);
        self.settle(adapter, CardState::RolledBack);
        if let Some(to) = to {
            self.registry.set_state(to, CardState::Active);
        }
    }

    /// What a rollback in a context would return to: the last one before that may still serve.
    pub fn rollback_target(&self, context: ContextId) -> Option<AdapterId> {
        let pointer = self.pointers.get(&context)?;
        let may_serve = |adapter: &&AdapterId| {
            self.registry.get(**adapter).is_some_and(|entry| {
                Some(**adapter) != pointer.active
                    && Some(entry.card.base_hash) == self.base
                    && matches!(entry.state, CardState::Superseded | CardState::Active)
            })
        };
        pointer.history.iter().rev().find(may_serve).copied()
    }

    /// The adapter that served a context before the one that does, as long as it may: it stays in the mixture, so that a person
    /// who returns to an old way of writing is followed without training.
    pub fn beside(&self, context: ContextId) -> Option<AdapterId> {
        let on_trial = |adapter| self.trials.iter().any(|trial| trial.context == context && trial.adapter == adapter);
        self.pointers.get(&context)?.active?;
        self.rollback_target(context).filter(|adapter| !on_trial(*adapter))
    }

    fn forget(&mut self, memories: &[MemoryId]) {
        let memories: BTreeSet<MemoryId> = memories.iter().copied().collect();
        for adapter in self.registry.forget(&memories) {
            self.retire(adapter);
        }
        let uses = |job: &Job| job.spec.memories().any(|memory| memories.contains(memory));
        if self.job.as_ref().is_some_and(uses) {
            self.requeue_job();
        }
        self.uses.retain(|memory, _| !memories.contains(memory));
    }

    /// Takes an adapter out of everything, for good. A job that started from it begins anew.
    fn retire(&mut self, adapter: AdapterId) {
        if self.job.as_ref().is_some_and(|job| job.spec.parent == Some(adapter)) {
            self.requeue_job();
        }
        self.end_trials(|trial| trial.adapter == adapter);
        for pointer in self.pointers.values_mut() {
            if pointer.active == Some(adapter) {
                pointer.active = None;
            }
            pointer.history.retain(|known| *known != adapter);
        }
        self.registry.set_state(adapter, CardState::Retired);
    }

    /// Contexts that something refers to; they are not dropped for new ones.
    pub fn kept(&self) -> BTreeSet<ContextId> {
        let mut kept: BTreeSet<ContextId> = self.queue.iter().map(|proposal| proposal.context).collect();
        kept.extend(self.job.iter().map(|job| job.spec.context));
        kept.extend(self.trials.iter().map(|trial| trial.context));
        kept.extend(self.pointers.iter().filter(|(_, pointer)| pointer.active.is_some()).map(|(context, _)| *context));
        kept
    }

    /// The gain of what serves a context over the base (nats a token), when it was measured there.
    pub fn best_gain(&self, context: ContextId) -> f64 {
        let active = self.pointers.get(&context).and_then(|pointer| pointer.active);
        let entry = active.and_then(|adapter| self.registry.get(adapter));
        entry.filter(|entry| entry.card.context == context).and_then(Entry::measured_gain).unwrap_or(0.0)
    }

    /// The station that the loop as a whole is at.
    pub fn stage(&self) -> Stage {
        match &self.job {
            Some(Job { phase: JobPhase::Training, running: false, failures: 0, .. }) => Stage::Propose,
            Some(Job { phase: JobPhase::Training, .. }) => Stage::Train,
            Some(Job { phase: JobPhase::Judging, .. }) => Stage::Validate,
            Some(Job { phase: JobPhase::Scaling, .. }) => Stage::Scale,
            None if !self.trials.is_empty() => Stage::Shadow,
            None if !self.queue.is_empty() => Stage::Suspect,
            None if self.pointers.values().any(|pointer| pointer.active.is_some()) => Stage::Retrieve,
            None => Stage::Serve,
        }
    }
}

impl LogRow {
    fn is_about(&self, adapter: AdapterId, context: ContextId) -> bool {
        self.adapter == Some(adapter) && self.context == Some(context)
    }

    /// Whether its number `cpu_seconds` is newly spent time.
    const fn spends(&self) -> bool {
        matches!(self.change, Change::Trained { .. } | Change::Failed | Change::Abandoned { .. })
    }
}
