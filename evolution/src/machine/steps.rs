//! The steps that follow from the state by themselves.
//!
//! A step needs nothing but the state, so a machine that was killed before a step takes it after its restart.

use std::collections::BTreeMap;

use mneme_base::{AdapterId, Timestamp};
use mneme_engine_api::TrainOutcome;

use super::row::{Change, JobSpec, Origin, Stage};
use super::soft::Role;
use super::state::{JobPhase, Proposal, Trial};
use super::{Action, Draft, Evolution};
use crate::context::ContextId;
use crate::data::uses_of;
use crate::gate::{self, Decision, Past, Verdict};
use crate::registry::SkillCard;

impl Evolution {
    /// Takes the next step that follows from the state; false when there is none.
    pub(super) fn step(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        self.around.waiting = None;
        self.judge(now, out)
            || self.settle_comparisons(now, out)
            || self.hold_or_start_job(now, out)
            || self.next_proposal(now, out)
    }

    /// VALIDATE -> SHADOW, SCALE or REJECT.
    fn judge(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let Some(job) = self.state.job.clone().filter(|job| job.phase == JobPhase::Judging) else { return false };
        let Some(outcome) = &job.outcome else { return false };
        let (adapter, context) = (job.spec.adapter, job.spec.context);
        let past = Past {
            uses: uses_of(&self.state.uses, &job.spec.held_out),
            best_gain: self.state.best_gain(context),
            scale_low: job.scale_low,
            scale_high: job.scale_high,
            scale: job.scale,
            scale_tries: job.scale_tries,
        };
        let verdict = gate::judge(outcome, &past, &self.policy.gate, job.spec.seed);
        let numbers = verdict.numbers();
        let reasons = verdict.reasons.join("; ");
        let tokens = self.soft.texts.tokens(context);
        let (to, reason, change) = match verdict.decision {
            Decision::Accept => {
                let reason = format!("every gate holds at scale {:.3}; it is now compared on real text", job.scale);
                match self.card(&job.spec, outcome, verdict, job.scale, job.cpu_seconds, now) {
                    Some(card) => (Stage::Shadow, reason, Change::Accepted { card: Box::new(card) }),
                    None => (Stage::Reject, "its context is gone".to_owned(), Change::Abandoned { tokens }),
                }
            }
            Decision::Scale { factor } => {
                (Stage::Scale, format!("scaled to {factor:.3}: {reasons}"), Change::Scaled { verdict })
            }
            Decision::Reject => (Stage::Reject, reasons, Change::Rejected { verdict, tokens }),
        };
        let draft = Draft::new(Stage::Validate, to, reason, change).about(adapter, context).numbers(numbers);
        self.record(draft.number("uses", f64::from(past.uses)).number("scale", job.scale), now, out);
        self.around.job_issued = false;
        match to {
            Stage::Shadow => out.push(Action::ShadowAdapter { adapter, context }),
            Stage::Reject => out.push(Action::RetireAdapter { adapter }),
            // The scaling is asked for by the step that starts jobs, when the machine has time for it.
            _ => {}
        }
        true
    }

    fn card(
        &self,
        spec: &JobSpec,
        outcome: &TrainOutcome,
        scores: Verdict,
        scale: f64,
        cpu_seconds: f64,
        now: Timestamp,
    ) -> Option<SkillCard> {
        let record = self.state.contexts.get(&spec.context)?;
        Some(SkillCard {
            adapter: spec.adapter,
            base_hash: outcome.base_hash,
            parent: spec.parent,
            level: spec.level,
            context: spec.context,
            centroid: record.centroid.clone(),
            radius: self.policy.context_radius,
            lineage: spec.train.clone(),
            judged_on: spec.held_out.clone(),
            scores,
            scale,
            seed: spec.seed,
            file_hash: outcome.adapter_hash,
            bytes: outcome.bytes,
            cpu_seconds,
            made: now,
        })
    }

    /// SHADOW -> COMMIT or REJECT, RETRIEVE -> ROLLBACK.
    fn settle_comparisons(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        for trial in self.state.trials.clone() {
            if self.settle_trial(trial, now, out) {
                return true;
            }
        }
        for comparison in self.soft.comparisons.iter().filter(|comparison| comparison.role == Role::Serving) {
            let pinned = self.state.registry.get(comparison.adapter).is_none_or(|entry| entry.pinned);
            if pinned || !comparison.harm.holds_at(self.policy.rollback_alpha) {
                continue;
            }
            let reason = format!(
                "on {} real texts it did worse than the base: {:.4} nats a token",
                comparison.texts,
                comparison.gain_mean()
            );
            let numbers = BTreeMap::from([
                ("harm_wealth".to_owned(), comparison.harm.process().peak()),
                ("texts".to_owned(), f64::from(comparison.texts)),
                ("gain_nats".to_owned(), comparison.gain_mean()),
            ]);
            let (adapter, context) = (comparison.adapter, comparison.context);
            self.roll_back(adapter, context, reason, numbers, now, out);
            return true;
        }
        false
    }

    fn settle_trial(&mut self, trial: Trial, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let Trial { adapter, context, origin } = trial;
        let Some(comparison) = self.comparison(adapter, context, Role::Trial) else { return false };
        let gains = comparison.gain.holds_at(self.policy.shadow_alpha);
        let harms = comparison.harm.holds_at(self.policy.rollback_alpha);
        let texts = comparison.texts;
        let exhausted = texts >= self.policy.shadow_texts_max;
        if !gains && !harms && !exhausted {
            return false;
        }
        let gain = comparison.gain_mean();
        let before = self.state.pointers.get(&context).and_then(|pointer| pointer.active);
        let (to, reason, change) = if gains && !harms {
            let reason = format!("on {texts} real texts it gained {gain:.4} nats a token over what served");
            (Stage::Commit, reason, Change::Committed)
        } else {
            let what = if harms { "it did worse than what served" } else { "no gain was shown" };
            let tokens = self.soft.texts.tokens(context);
            (Stage::Reject, format!("{what} on {texts} real texts"), Change::ShadowFailed { origin, tokens })
        };
        let draft = Draft::new(Stage::Shadow, to, reason, change)
            .about(adapter, context)
            .number("gain_wealth", comparison.gain.process().peak())
            .number("harm_wealth", comparison.harm.process().peak())
            .number("texts", f64::from(texts))
            .number("gain_nats", gain);
        self.record(draft, now, out);
        if to == Stage::Commit {
            // What was surprising under the old adapter says nothing of the new one.
            self.soft.trigger.restart(context);
            let before = before.filter(|before| *before != adapter);
            out.extend(before.map(|adapter| Action::DeactivateAdapter { adapter, context }));
            out.push(Action::ActivateAdapter { adapter, context });
        } else if origin == Origin::Trained {
            out.push(Action::RetireAdapter { adapter });
        }
        true
    }

    pub(super) fn roll_back(
        &mut self,
        adapter: AdapterId,
        context: ContextId,
        reason: String,
        numbers: BTreeMap<String, f64>,
        now: Timestamp,
        out: &mut Vec<Action>,
    ) {
        let serves = self.state.pointers.get(&context).is_some_and(|pointer| pointer.active == Some(adapter));
        let to = self.state.rollback_target(context).filter(|_| serves);
        let from = if serves { Stage::Retrieve } else { Stage::Shadow };
        let draft = Draft::new(from, Stage::Rollback, reason, Change::RolledBack { to }).about(adapter, context);
        self.record(draft.numbers(numbers), now, out);
        self.soft.trigger.restart(context);
        if serves {
            out.push(Action::DeactivateAdapter { adapter, context });
        }
        out.extend(to.map(|adapter| Action::ActivateAdapter { adapter, context }));
    }

    pub(super) fn served_by(&self, adapter: AdapterId) -> Vec<(AdapterId, ContextId)> {
        let serves = self.state.pointers.iter().filter(|(_, pointer)| pointer.active == Some(adapter));
        serves.map(|(context, _)| (adapter, *context)).collect()
    }

    /// TRAIN -> TRAIN: stops a running job when it must give way, starts a waiting one when it may run.
    fn hold_or_start_job(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let Some(job) = self.state.job.as_ref().filter(|job| job.phase != JobPhase::Judging) else { return false };
        let (spec, phase, scale) = (job.spec.clone(), job.phase, job.scale);
        let running = job.running && self.around.job_issued;
        let (adapter, context) = (spec.adapter, spec.context);
        let stage = self.state.stage();
        match (running, self.held_up()) {
            (true, Some(why)) => {
                let draft = Draft::new(stage, stage, format!("the job waits: {why}"), Change::Suspended);
                self.record(draft.about(adapter, context), now, out);
                self.around.job_issued = false;
                out.push(Action::StopTraining { adapter });
                true
            }
            (false, None) => {
                let reason = match (phase, stage) {
                    (JobPhase::Scaling, _) => format!("the scaled adapter is judged at {scale:.3}"),
                    (_, Stage::Propose) => "the job starts".to_owned(),
                    _ => "the job goes on".to_owned(),
                };
                let to = if phase == JobPhase::Scaling { Stage::Scale } else { Stage::Train };
                self.record(Draft::new(stage, to, reason, Change::Started).about(adapter, context), now, out);
                self.around.job_issued = true;
                out.push(match phase {
                    JobPhase::Scaling => Action::ScaleAdapter { adapter, factor: scale },
                    _ => Action::StartTraining(spec),
                });
                true
            }
            (false, Some(why)) => {
                self.around.waiting = Some(why.to_owned());
                false
            }
            (true, None) => false,
        }
    }

    /// SUSPECT -> RETRIEVE (a stored adapter is tried) or PROPOSE (a job).
    fn next_proposal(&mut self, now: Timestamp, out: &mut Vec<Action>) -> bool {
        for proposal in self.state.queue.clone() {
            let context = proposal.context;
            let on_trial = self.state.trials.iter().any(|trial| trial.context == context);
            let has_job = self.state.job.as_ref().is_some_and(|job| job.spec.context == context);
            if on_trial || has_job {
                continue;
            }
            if self.try_stored(&proposal, now, out) {
                return true;
            }
            if self.state.job.is_some() {
                continue;
            }
            match self.plan(&proposal, now) {
                Ok((spec, numbers)) => {
                    let reason = format!(
                        "{:?} on {} texts ({} tokens), judged on {} later ones, at most {} steps",
                        spec.level,
                        spec.train.len(),
                        spec.train_tokens,
                        spec.held_out.len(),
                        spec.steps_max
                    );
                    let adapter = spec.adapter;
                    let change = Change::Proposed { spec, cause: proposal.cause };
                    let draft = Draft::new(Stage::Suspect, Stage::Propose, reason, change).about(adapter, context);
                    self.record(draft.numbers(numbers), now, out);
                    return true;
                }
                Err(why) => self.around.waiting = Some(format!("{context}: {why}")),
            }
        }
        false
    }

    fn try_stored(&mut self, proposal: &Proposal, now: Timestamp, out: &mut Vec<Action>) -> bool {
        let (Some(base), Some(record)) = (self.state.base, self.state.contexts.get(&proposal.context)) else {
            return false;
        };
        let context = proposal.context;
        let active = self.state.pointers.get(&context).and_then(|pointer| pointer.active);
        if proposal.tried.len() >= self.policy.stored_tries_max
            || self.state.trials.len() >= self.policy.trials_max
            || active.and_then(|adapter| self.state.registry.get(adapter)).is_some_and(|entry| entry.pinned)
        {
            return false;
        }
        let candidates = self.state.registry.near(&record.centroid, base);
        let fits = |adapter: AdapterId| Some(adapter) != active && !proposal.tried.contains(&adapter);
        let found = candidates.iter().find(|(entry, _)| fits(entry.card.adapter));
        let Some((adapter, distance)) = found.map(|(entry, distance)| (entry.card.adapter, *distance)) else {
            return false;
        };
        let reason = "an adapter stored for a similar context is tried before anything is trained";
        let draft = Draft::new(Stage::Suspect, Stage::Retrieve, reason, Change::Tried).about(adapter, context);
        self.record(draft.number("distance", f64::from(distance)), now, out);
        out.push(Action::ShadowAdapter { adapter, context });
        true
    }
}
