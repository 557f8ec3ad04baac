//! What each observation changes: an engine, an alarm, an outcome, a failure, a score, a forgotten memory.

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::{AdapterId, ContentHash, MemoryId, Timestamp};
use mneme_engine_api::{AdapterLevel, TrainOutcome};

use super::row::{Cause, Change, Origin, Stage};
use super::soft::{Comparison, Role};
use super::state::{JobPhase, Trial};
use super::{Action, Draft, Evolution, Notice};
use crate::context::ContextId;
use crate::gate;
use crate::random::mix;
use crate::registry::CardState;
use crate::trigger::{Advice, Suspicion};

/// The share of structural answers above which a context's failure counts as one of structure.
pub(super) const STRUCTURAL_SHARE: f64 = 0.5;

impl Evolution {
    pub(super) fn on_engine(
        &mut self,
        base_hash: ContentHash,
        trains: Vec<AdapterLevel>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        self.around.trains = trains;
        if self.state.base == Some(base_hash) {
            return;
        }
        let job = self.state.job.as_ref().map(|job| job.spec.adapter);
        let first = self.state.base.is_none();
        let reason =
            if first { "the first base model" } else { "the base model changed: adapters of another base rest" };
        let stage = self.state.stage();
        self.record(Draft::new(stage, Stage::Serve, reason, Change::Base { base_hash }), now, out);
        if !first {
            self.soft.trigger.reset(mix(self.policy.seed ^ self.state.rows));
            self.around.unsaved = self.policy.checkpoint_every;
        }
        if let Some(adapter) = job {
            out.push(Action::StopTraining { adapter });
            out.push(Action::RetireAdapter { adapter });
        }
    }

    pub(super) fn on_advice(&mut self, context: ContextId, advice: Advice, now: Timestamp, out: &mut Vec<Action>) {
        match advice {
            Advice::Serve => {}
            Advice::Ask => out.push(Action::Notify(Notice::Ask { context })),
            Advice::Evolve(suspicion) => self.suspect(&suspicion, now, out),
        }
    }

    fn suspect(&mut self, suspicion: &Suspicion, now: Timestamp, out: &mut Vec<Action>) {
        let context = suspicion.context;
        let known = self.state.queue.iter().any(|proposal| proposal.context == context)
            || self.state.job.as_ref().is_some_and(|job| job.spec.context == context)
            || self.state.trials.iter().any(|trial| trial.context == context);
        if known || self.state.queue.len() >= self.policy.queue_max {
            return;
        }
        let Some(centroid) = self.soft.trigger.contexts().get(context).map(|c| c.centroid.clone()) else { return };
        let change = Change::Suspected {
            cause: Cause::Alarm,
            centroid,
            structural: suspicion.structural > STRUCTURAL_SHARE,
            rounds: self.soft.trigger.rounds_begun(),
        };
        let draft = Draft::new(Stage::Serve, Stage::Suspect, suspicion.reasons.join("; "), change)
            .about(None, context)
            .number("wealth", suspicion.wealth)
            .number("threshold", suspicion.threshold)
            .number("events", suspicion.events as f64)
            .number("p_mean", suspicion.p_mean)
            .number("structural", suspicion.structural);
        self.record(draft, now, out);
    }

    pub(super) fn on_trained(&mut self, outcome: TrainOutcome, now: Timestamp, out: &mut Vec<Action>) {
        let adapter = outcome.adapter;
        let expected =
            self.state.job.as_ref().filter(|job| {
                job.spec.adapter == adapter && matches!(job.phase, JobPhase::Training | JobPhase::Scaling)
            });
        let Some(job) = expected else {
            out.push(Action::Notify(Notice::Ignored { reason: format!("no job waits for adapter {adapter}") }));
            // What nobody waits for is scratch, unless its card is known and alive.
            let alive = self.state.registry.get(adapter).is_some_and(|entry| entry.state != CardState::Retired);
            if !alive && self.state.job.as_ref().is_none_or(|job| job.spec.adapter != adapter) {
                out.push(Action::RetireAdapter { adapter });
            }
            return;
        };
        let (context, from, level) = (
            job.spec.context,
            if job.phase == JobPhase::Scaling { Stage::Scale } else { Stage::Train },
            job.spec.level,
        );
        if let Err(error) = gate::check(&outcome) {
            return self.on_failed(adapter, &error.to_string(), 0.0, now, out);
        }
        if Some(outcome.base_hash) != self.state.base || outcome.level != level {
            return self.on_failed(adapter, "it was trained on another base or level", outcome.cpu_seconds, now, out);
        }
        let draft = Draft::new(
            from,
            Stage::Validate,
            "training ended, its evidence is judged",
            Change::Trained { outcome: outcome.clone() },
        )
        .about(adapter, context)
        .number("cpu_seconds", outcome.cpu_seconds)
        .number("parameters", outcome.parameters as f64)
        .number("bytes", outcome.bytes as f64);
        self.record(draft, now, out);
    }

    pub(super) fn on_failed(
        &mut self,
        adapter: AdapterId,
        reason: &str,
        cpu_seconds: f64,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let Some(job) =
            self.state.job.as_ref().filter(|job| job.spec.adapter == adapter && job.phase != JobPhase::Judging)
        else {
            out.push(Action::Notify(Notice::Ignored { reason: format!("no job of adapter {adapter} can fail") }));
            return;
        };
        let (context, failures) = (job.spec.context, job.failures + 1);
        let gives_up = failures >= self.policy.failures_max;
        let (to, words, change) = if gives_up {
            (Stage::Reject, "given up", Change::Abandoned { tokens: self.soft.texts.tokens(context) })
        } else {
            (Stage::Train, "tried again", Change::Failed)
        };
        let draft = Draft::new(Stage::Train, to, format!("training failed and is {words}: {reason}"), change)
            .about(adapter, context)
            .number("failures", f64::from(failures))
            .number("cpu_seconds", if cpu_seconds.is_finite() { cpu_seconds.max(0.0) } else { 0.0 });
        self.record(draft, now, out);
        if gives_up {
            out.push(Action::RetireAdapter { adapter });
        }
    }

    /// Chooses among the other levels from here on, until an engine is reported anew.
    pub(super) fn on_cannot_train(&mut self, adapter: AdapterId, reason: &str, now: Timestamp, out: &mut Vec<Action>) {
        let Some(job) =
            self.state.job.as_ref().filter(|job| job.spec.adapter == adapter && job.phase == JobPhase::Training)
        else {
            out.push(Action::Notify(Notice::Ignored {
                reason: format!("no job of adapter {adapter} is to be trained"),
            }));
            return;
        };
        let (context, level) = (job.spec.context, job.spec.level);
        self.around.trains.retain(|trained| *trained != level);
        let reason = format!("the engine cannot train {level:?}, another level is chosen: {reason}");
        let draft = Draft::new(Stage::Train, Stage::Suspect, reason, Change::Returned).about(adapter, context);
        self.record(draft, now, out);
        out.push(Action::RetireAdapter { adapter });
    }

    pub(super) fn on_preempted(&mut self, adapter: AdapterId, now: Timestamp, out: &mut Vec<Action>) {
        if let Some(job) = self.state.job.as_ref().filter(|job| job.spec.adapter == adapter && job.running) {
            let context = job.spec.context;
            // It stopped because the machine is busy: wait for a tick that says otherwise.
            self.around.busy = Some(true);
            let draft = Draft::new(Stage::Train, Stage::Train, "the trainer gave way to other work", Change::Suspended);
            self.record(draft.about(adapter, context), now, out);
        }
    }

    pub(super) fn on_scored(&mut self, context: ContextId, tokens: u32, base_loss: f32, adapted: &[(AdapterId, f32)]) {
        let loss_of =
            |adapter: AdapterId| adapted.iter().find(|(id, _)| *id == adapter).map(|(_, loss)| f64::from(*loss));
        let active = self.state.pointers.get(&context).and_then(|pointer| pointer.active);
        let base = f64::from(base_loss);
        // A newcomer is compared with what serves now; what serves is compared with the base.
        let served = active.and_then(loss_of).unwrap_or(base);
        for comparison in self.soft.comparisons.iter_mut().filter(|comparison| comparison.context == context) {
            if let Some(loss) = loss_of(comparison.adapter) {
                comparison.observe(if comparison.role == Role::Trial { served } else { base }, loss);
            }
        }
        if let Some(weights) = self.soft.weights.get_mut(&context) {
            let whole = f64::from(tokens);
            let losses: Vec<(AdapterId, f64)> =
                adapted.iter().map(|(adapter, loss)| (*adapter, f64::from(*loss) * whole)).collect();
            weights.observe(base * whole, &losses);
        }
        self.around.unsaved += 1;
    }

    /// Ends the trials of an adapter that cannot be read, and takes it out of what it serves: it would answer nothing, and no text
    /// would ever count for or against it.
    pub(super) fn on_unusable(&mut self, adapter: AdapterId, reason: &str, now: Timestamp, out: &mut Vec<Action>) {
        let trials: Vec<Trial> = self.state.trials.iter().filter(|trial| trial.adapter == adapter).copied().collect();
        for Trial { context, origin, .. } in trials {
            let tokens = self.soft.texts.tokens(context);
            let change = Change::ShadowFailed { origin, tokens };
            let reason = format!("it cannot be read: {reason}");
            self.record(Draft::new(Stage::Shadow, Stage::Reject, reason, change).about(adapter, context), now, out);
            if origin == Origin::Trained {
                out.push(Action::RetireAdapter { adapter });
            }
        }
        let is_used = |comparison: &&Comparison| comparison.adapter == adapter && comparison.role != Role::Trial;
        let contexts: Vec<ContextId> = self.soft.comparisons.iter().filter(is_used).map(|used| used.context).collect();
        for context in contexts {
            self.roll_back(adapter, context, format!("it cannot be read: {reason}"), BTreeMap::new(), now, out);
        }
    }

    pub(super) fn on_forgotten(&mut self, mut memories: Vec<MemoryId>, now: Timestamp, out: &mut Vec<Action>) {
        memories.sort_unstable();
        memories.dedup();
        let gone: BTreeSet<MemoryId> = memories.iter().copied().collect();
        // What is only in view leaves without a row, and so does what the loop never saw: a row for each would stay for ever. Should an
        // old checkpoint bring a text back, the start finds that the store does not have it.
        if self.soft.texts.forget(&gone) {
            self.around.unsaved += 1;
        }
        let used = self.memories_used();
        memories.retain(|memory| used.contains(memory) && !self.state.registry.is_forgotten(*memory));
        if memories.is_empty() {
            return;
        }
        let all = memories.iter().copied().collect();
        let retired = self.state.registry.made_from(&all);
        let serving: Vec<(AdapterId, ContextId)> =
            retired.iter().flat_map(|adapter| self.served_by(*adapter)).collect();
        let job = self.state.job.as_ref().filter(|job| {
            let from_retired = job.spec.parent.is_some_and(|parent| retired.contains(&parent));
            from_retired || job.spec.memories().any(|memory| all.contains(memory))
        });
        let job = job.map(|job| job.spec.adapter);
        let reason = format!("{} memories were forgotten; {} adapters learned them", memories.len(), retired.len());
        let stage = self.state.stage();
        let to = if retired.is_empty() { stage } else { Stage::Retire };
        let draft = Draft::new(stage, to, reason, Change::Forgotten { memories })
            .about(retired.first().copied(), None)
            .number("memories", all.len() as f64)
            .number("retired", retired.len() as f64);
        self.record(draft, now, out);
        if let Some(adapter) = job {
            out.push(Action::StopTraining { adapter });
            out.push(Action::RetireAdapter { adapter });
        }
        out.extend(serving.into_iter().map(|(adapter, context)| Action::DeactivateAdapter { adapter, context }));
        out.extend(retired.into_iter().map(|adapter| Action::RetireAdapter { adapter }));
    }
}
