//! The state machine: takes events, decides, and says what is to be done.
//!
//! ```text
//! SERVE -> SUSPECT -> PROPOSE -> TRAIN -> VALIDATE -> SHADOW -> COMMIT -> RETRIEVE
//!             |                    ^          |  \        \-> REJECT
//!             \-> RETRIEVE (stored adapter)   |   \-> REJECT        COMMIT -> ROLLBACK, RETIRE
//!                        on trial first)      \-> SCALE -> VALIDATE
//! ```
//!
//! Two kinds of state. [`State`] is the fold of all rows: each decision is one row, journaled before its effect, and
//! applied as a whole, so that a kill between any two rows leaves a consistent state from which [`Evolution::handle`] goes
//! on. What is learned between rows is soft and written as a [`Checkpoint`].
//!
//! One job at a time; one trial per context; one adapter serves a context. A context without an adapter is the base model,
//! bit for bit.

mod check;
mod event;
mod observed;
mod orders;
mod plan;
mod row;
mod soft;
mod state;
mod steps;

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::{AdapterId, ContentHash, Embedding, MemoryId, Timestamp};
use mneme_engine_api::AdapterLevel;
use serde::{Deserialize, Serialize};

pub use event::{Action, Command, Event, Notice};
#[cfg(test)]
pub(crate) use orders::IMPORT_BYTES_MAX;
pub use row::{Cause, Change, JobSpec, LogRow, Origin, Stage};
pub use soft::Checkpoint;
use soft::{Role, Soft};
pub use state::{ContextRecord, Job, JobPhase, Pointer, Proposal, State, Trial};

use crate::context::ContextId;
use crate::data::TextRecord;
use crate::policy::Policy;
use crate::registry::{CardState, Entry, SkillCard};
use crate::trigger::Suspicion;

/// Rows that do not make a history.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A row is missing.
    #[error("log row {found} follows row {before}, row {} is missing", before + 1)]
    Gap {
        /// The row before the gap.
        before: u64,
        /// The row after it.
        found: u64,
    },
}

/// What the machine knows of its surroundings since it was started; never stored.
#[derive(Debug, Clone, Default)]
struct Surroundings {
    /// Levels that the engine trains; none before an engine is there.
    trains: Vec<AdapterLevel>,
    /// Whether the machine is too busy; none before the first tick.
    busy: Option<bool>,
    on_battery: bool,
    /// Whether the trainer was told about the job since the start.
    job_issued: bool,
    /// Why nothing is trained although something waits.
    waiting: Option<String>,
    /// Observations since the last checkpoint.
    unsaved: u32,
}

/// What serves a situation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// The context.
    pub context: ContextId,
    /// The adapter.
    pub adapter: AdapterId,
    /// Its weight, 0 to 1; the rest is the base's.
    pub weight: f64,
    /// The factor of its update.
    pub scale: f64,
    /// Hash of its file.
    pub file_hash: ContentHash,
}

/// The loop at a glance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The station.
    pub stage: Stage,
    /// Whether the user paused it.
    pub paused: bool,
    /// Why nothing is trained although something waits.
    pub waiting: Option<String>,
    /// Contexts that wait.
    pub queue: Vec<Proposal>,
    /// The job.
    pub job: Option<JobSpec>,
    /// Whether the job runs.
    pub running: bool,
    /// Adapters in shadow, with their texts so far and mean gain (nats a token).
    pub trials: Vec<(Trial, u32, f64)>,
    /// What serves, per context.
    pub serving: BTreeMap<ContextId, AdapterId>,
    /// CPU seconds spent today and allowed a day.
    pub cpu_seconds: (f64, f64),
    /// The most suspect contexts first, at most five.
    pub suspicions: Vec<Suspicion>,
    /// Rows so far.
    pub rows: u64,
    /// Texts of the user in view: those that a next job would choose from.
    pub texts: u64,
}

/// The loop. Costs of [`Evolution::handle`]: microseconds for observations, a bootstrap (milliseconds) for an outcome.
#[derive(Debug, Clone)]
pub struct Evolution {
    policy: Policy,
    state: State,
    soft: Soft,
    around: Surroundings,
}

impl Evolution {
    /// Starts a loop that has seen nothing.
    pub fn new(policy: Policy) -> Self {
        let soft = Soft::new(&policy);
        Self { policy, state: State::default(), soft, around: Surroundings::default() }
    }

    /// Rebuilds a loop from its rows (any order, repeats are ignored) and its last checkpoint. The checkpoint may be older
    /// or newer than the rows, or absent: then evidence and texts in view start afresh. Nothing trains before an engine and
    /// a tick are reported; [`Self::reconcile`] says what may have to be done again.
    pub fn restore(
        policy: Policy,
        rows: impl IntoIterator<Item = LogRow>,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, RestoreError> {
        let rows: BTreeMap<u64, LogRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let mut state = State::default();
        for row in rows.values() {
            state.follow(row)?;
        }
        Ok(Self::resume(policy, state, checkpoint))
    }

    /// As [`Self::restore`], from a state that followed the rows already.
    pub fn resume(policy: Policy, state: State, checkpoint: Option<Checkpoint>) -> Self {
        let base = checkpoint.as_ref().map(|checkpoint| checkpoint.base);
        let mut soft = checkpoint.map_or_else(|| Soft::new(&policy), |checkpoint| checkpoint.soft);
        if base.is_some_and(|base| base != state.base) {
            soft.trigger.reset(policy.seed);
        }
        soft.texts.forget(state.registry.forgotten());
        soft.trigger.set_bounds(policy.trigger_alpha, policy.ambiguous_p);
        soft.follow(&state, &policy);
        Self { policy, state, soft, around: Surroundings::default() }
    }

    /// Takes an event and returns what is to be done, in order. Never fails: what does not fit is answered by a notice.
    pub fn handle(&mut self, event: Event, now: Timestamp) -> Vec<Action> {
        let mut out = Vec::new();
        match event {
            Event::Engine { base_hash, trains } => self.on_engine(base_hash, trains, now, &mut out),
            Event::Calibrated { surprise, ambiguity, reading } => {
                self.soft.trigger.calibrate(&surprise, &ambiguity);
                self.soft.trigger.calibrate_reading(&reading);
                self.around.unsaved = self.policy.checkpoint_every;
            }
            Event::Generated { situation, ambiguity, surprise, structural } => {
                let context = self.assign(&situation);
                let advice = self.soft.trigger.observe(context, ambiguity, surprise, structural);
                self.on_advice(context, advice, now, &mut out);
            }
            Event::Judged { situation, feedback } => {
                let context = self.assign(&situation);
                let advice = self.soft.trigger.observe_feedback(context, feedback);
                self.on_advice(context, advice, now, &mut out);
            }
            Event::Read { situation, surprise } => {
                let context = self.assign(&situation);
                let advice = self.soft.trigger.observe_reading(context, surprise);
                self.on_advice(context, advice, now, &mut out);
            }
            Event::UserText { memory, time, tokens, situation, signature, authorship } => {
                if authorship.may_train() && !self.state.registry.is_forgotten(memory) {
                    let context = self.assign(&situation);
                    self.soft.texts.insert(TextRecord { memory, time, tokens, signature, context });
                    self.around.unsaved += 1;
                }
            }
            Event::Trained(outcome) => self.on_trained(*outcome, now, &mut out),
            Event::TrainingFailed { adapter, reason, cpu_seconds } => {
                self.on_failed(adapter, &reason, cpu_seconds, now, &mut out);
            }
            Event::CannotTrain { adapter, reason } => self.on_cannot_train(adapter, &reason, now, &mut out),
            Event::Preempted { adapter } => self.on_preempted(adapter, now, &mut out),
            Event::Scored { context, tokens, base_loss, adapted } => {
                self.on_scored(context, tokens, base_loss, &adapted);
            }
            Event::Unusable { adapter, reason } => self.on_unusable(adapter, &reason, now, &mut out),
            Event::Forgotten(memories) => self.on_forgotten(memories, now, &mut out),
            Event::Command(command) => self.on_command(command, now, &mut out),
            Event::Tick { load, on_battery } => {
                let limit = if self.around.busy == Some(true) { self.policy.load_resume } else { self.policy.load_max };
                // A load that is not a number counts as busy.
                self.around.busy = Some(load.is_nan() || load > limit);
                self.around.on_battery = on_battery;
            }
        }
        while self.step(now, &mut out) {}
        self.save(&mut out);
        out
    }

    /// Actions that may have been lost with the last run, each harmless to repeat: call once after [`Self::restore`], before
    /// the first event. The job is taken up by itself at the first tick.
    pub fn reconcile(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for entry in self.state.registry.iter().filter(|entry| entry.state == CardState::Retired) {
            actions.push(Action::RetireAdapter { adapter: entry.card.adapter });
        }
        for (context, pointer) in &self.state.pointers {
            if let Some(adapter) = pointer.active {
                actions.push(Action::ActivateAdapter { adapter, context: *context });
            }
        }
        for trial in &self.state.trials {
            actions.push(Action::ShadowAdapter { adapter: trial.adapter, context: trial.context });
        }
        actions
    }

    /// What serves a situation; none means the base, bit for bit: outside every context, of another base, or with too
    /// small a weight. The adapter with the largest weight of [`Self::mixture`].
    pub fn route(&self, situation: &Embedding) -> Option<Served> {
        self.mixture(situation).into_iter().max_by(|a, b| a.weight.total_cmp(&b.weight))
    }

    /// Everything that serves a situation, with online-Bayes weights; what is missing to 1 is the base's. Besides the adapter
    /// that was committed last, the one before it is mixed in; adapters on trial are weighed and do not serve.
    pub fn mixture(&self, situation: &Embedding) -> Vec<Served> {
        self.weighed(situation).unwrap_or_default()
    }

    fn weighed(&self, situation: &Embedding) -> Option<Vec<Served>> {
        let context = self.soft.trigger.contexts().find(situation)?;
        let active = self.state.pointers.get(&context)?.active?;
        let weights = self.soft.weights.get(&context)?;
        let may_serve = |adapter: AdapterId, state: CardState| {
            let entry = self.state.registry.get(adapter)?;
            (entry.state == state && Some(entry.card.base_hash) == self.state.base).then_some(&entry.card)
        };
        let beside = self.state.beside(context);
        let serving: Vec<(&SkillCard, f64)> = weights
            .adapters()
            .filter_map(|(adapter, weight)| {
                let card = if adapter == active {
                    may_serve(adapter, CardState::Active)
                } else if Some(adapter) == beside {
                    may_serve(adapter, CardState::Superseded).or_else(|| may_serve(adapter, CardState::Active))
                } else {
                    None
                };
                Some((card?, weight))
            })
            .collect();
        let total = (weights.none() + serving.iter().map(|(_, weight)| weight).sum::<f64>()).max(f64::MIN_POSITIVE);
        let served = serving.into_iter().map(|(card, own)| Served {
            context,
            adapter: card.adapter,
            weight: own / total,
            scale: card.scale,
            file_hash: card.file_hash,
        });
        Some(served.filter(|served| served.weight >= self.policy.weight_min).collect())
    }

    /// Which adapters to score on a real text of this situation, besides the base; the result goes into
    /// [`Event::Scored`]. None when no adapter is on trial or serves there.
    pub fn watched(&self, situation: &Embedding) -> Option<(ContextId, Vec<AdapterId>)> {
        let context = self.soft.trigger.contexts().find(situation)?;
        let of_base = |adapter: &AdapterId| {
            self.state.registry.get(*adapter).is_some_and(|entry| Some(entry.card.base_hash) == self.state.base)
        };
        let here = self.soft.comparisons.iter().filter(|comparison| comparison.context == context);
        let adapters: Vec<AdapterId> = here.map(|comparison| comparison.adapter).filter(of_base).collect();
        (!adapters.is_empty()).then_some((context, adapters))
    }

    /// Whether a situation's context needs adaptation by the evidence so far, and why or why not.
    pub fn should_evolve(&self, situation: &Embedding) -> Option<(bool, Suspicion)> {
        self.soft.trigger.should_evolve(self.soft.trigger.contexts().find(situation)?)
    }

    /// Whether the base's surprise at texts that it knows is known: see [`Event::Calibrated`].
    pub const fn is_calibrated(&self) -> bool {
        self.soft.trigger.is_calibrated()
    }

    /// The loop at a glance.
    pub fn status(&self, now: Timestamp) -> Status {
        let progress = |trial: &Trial| {
            let found = self.comparison(trial.adapter, trial.context, Role::Trial);
            found.map_or((*trial, 0, 0.0), |c| (*trial, c.texts, c.gain_mean()))
        };
        let mut suspicions = self.soft.trigger.suspicions();
        suspicions.truncate(5);
        Status {
            stage: self.state.stage(),
            paused: self.state.paused,
            waiting: self.around.waiting.clone(),
            queue: self.state.queue.clone(),
            job: self.state.job.as_ref().map(|job| job.spec.clone()),
            running: self.state.job.as_ref().is_some_and(|job| job.running) && self.around.job_issued,
            trials: self.state.trials.iter().map(progress).collect(),
            serving: self.state.pointers.iter().filter_map(|(context, p)| Some((*context, p.active?))).collect(),
            cpu_seconds: (self.state.spent(now), self.policy.cpu_seconds_a_day),
            suspicions,
            rows: self.state.rows,
            texts: self.soft.texts.iter().count() as u64,
        }
    }

    /// Whether an adapter's files are still needed. At a start whatever else lies in the adapters' folder may be deleted: a
    /// kill between a rejection and its [`Action::RetireAdapter`] leaves such files.
    pub fn keeps(&self, adapter: AdapterId) -> bool {
        self.state.job.as_ref().is_some_and(|job| job.spec.adapter == adapter)
            || self.state.registry.get(adapter).is_some_and(|entry| entry.state != CardState::Retired)
    }

    /// Every memory of the store here that an adapter learned, that is judged on, or that may still be trained on. The store and this log are not written at once,
    /// and a feed of changes may have gaps: at a start, and after a gap, whatever of these the store no longer has goes into
    /// [`Event::Forgotten`].
    pub fn memories_in_use(&self) -> BTreeSet<MemoryId> {
        let mut memories = self.memories_used();
        memories.extend(self.soft.texts.iter().map(|text| text.memory));
        memories
    }

    /// Of these the ones that left something: an adapter, a job, a count of how often they were judged on.
    fn memories_used(&self) -> BTreeSet<MemoryId> {
        let cards = self.state.registry.iter().filter(|entry| entry.state != CardState::Retired);
        let mut memories: BTreeSet<MemoryId> = cards.flat_map(Entry::own_lineage).collect();
        memories.extend(self.state.job.iter().flat_map(|job| job.spec.memories().copied()));
        memories.extend(self.state.uses.keys().copied());
        memories
    }

    /// The durable state.
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// The settings.
    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Takes other settings; they hold from the next event on.
    pub fn set_policy(&mut self, policy: Policy) {
        self.soft.trigger.set_bounds(policy.trigger_alpha, policy.ambiguous_p);
        self.policy = policy;
    }

    /// What is learned since the start, to be stored now: at a clean shutdown.
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint { rows: self.state.rows, base: self.state.base, soft: self.soft.clone() }
    }

    fn save(&mut self, out: &mut Vec<Action>) {
        if self.around.unsaved >= self.policy.checkpoint_every.max(1) {
            self.around.unsaved = 0;
            out.push(Action::Checkpoint(Box::new(self.checkpoint())));
        }
    }

    /// The context of a situation, opened when there is none.
    fn assign(&mut self, situation: &Embedding) -> ContextId {
        let (context, dropped) = self.soft.trigger.assign(situation, &self.state.kept());
        if let Some(dropped) = dropped {
            self.soft.texts.drop_context(dropped);
        }
        self.around.unsaved += 1;
        context
    }

    fn comparison(&self, adapter: AdapterId, context: ContextId, role: Role) -> Option<&soft::Comparison> {
        self.soft.comparisons.iter().find(|c| (c.adapter, c.context, c.role) == (adapter, context, role))
    }

    /// Writes a row and makes its change: the only way in which the durable state changes.
    fn record(&mut self, draft: Draft, now: Timestamp, out: &mut Vec<Action>) {
        let row = LogRow {
            id: self.state.rows + 1,
            time: now,
            from: draft.from,
            to: draft.to,
            adapter: draft.adapter,
            context: draft.context,
            reason: draft.reason,
            numbers: draft.numbers.into_iter().filter(|(_, value)| value.is_finite()).collect(),
            change: draft.change,
        };
        self.state.apply(&row);
        self.soft.follow(&self.state, &self.policy);
        out.push(Action::Journal(Box::new(row)));
    }
}

/// A row before it has a number and a time.
#[derive(Debug)]
struct Draft {
    from: Stage,
    to: Stage,
    adapter: Option<AdapterId>,
    context: Option<ContextId>,
    reason: String,
    numbers: BTreeMap<String, f64>,
    change: Change,
}

impl Draft {
    fn new(from: Stage, to: Stage, reason: impl Into<String>, change: Change) -> Self {
        Self { from, to, adapter: None, context: None, reason: reason.into(), numbers: BTreeMap::new(), change }
    }

    fn about(mut self, adapter: impl Into<Option<AdapterId>>, context: impl Into<Option<ContextId>>) -> Self {
        self.adapter = adapter.into();
        self.context = context.into();
        self
    }

    fn number(mut self, name: &str, value: f64) -> Self {
        self.numbers.insert(name.to_owned(), value);
        self
    }

    fn numbers(mut self, numbers: BTreeMap<String, f64>) -> Self {
        self.numbers.extend(numbers);
        self
    }
}

#[cfg(test)]
mod tests;
