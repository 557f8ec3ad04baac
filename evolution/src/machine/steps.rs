//! The decisions: first what each event changes, then the steps that follow from the state by themselves.
//!
//! A step needs nothing but the state, so a machine that was killed before a step takes it after its restart.

use super::{
    Action, Advice, BTreeMap, CardState, Cause, Change, Command, ContentHash, ContextId, Draft, Embedding, Evolution,
    JobPhase, JobSpec, MemoryId, Notice, Origin, Proposal, Role, SkillCard, Stage, Suspicion, Timestamp, Trial, gate,
};
use crate::data::{select, uses_of};
use crate::gate::{Decision, Past, Verdict};
use crate::random::mix;
use crate::router::{LevelBandit, LoraHistory, Need};
use mneme_base::AdapterId;
use mneme_engine_api::{AdapterLevel, TrainOutcome};

/// The share of structural events above which a context's failure counts as one of structure.
const STRUCTURAL_SHARE: f64 = 0.5;

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

    pub(super) fn on_forgotten(&mut self, mut memories: Vec<MemoryId>, now: Timestamp, out: &mut Vec<Action>) {
        memories.sort_unstable();
        memories.dedup();
        memories.retain(|memory| !self.state.registry.is_forgotten(*memory));
        if memories.is_empty() {
            return;
        }
        let all = memories.iter().copied().collect();
        let retired = self.state.registry.made_from(&all);
        let serving: Vec<(AdapterId, ContextId)> =
            retired.iter().flat_map(|adapter| self.served_by(*adapter)).collect();
        let job = self
            .state
            .job
            .as_ref()
            .filter(|job| job.spec.train.iter().chain(&job.spec.held_out).any(|memory| all.contains(memory)));
        let job = job.map(|job| job.spec.adapter);
        self.soft.texts.forget(&all);
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
        // The texts in view changed: an old checkpoint must not bring the forgotten ones back.
        self.around.unsaved = self.policy.checkpoint_every;
    }

    fn served_by(&self, adapter: AdapterId) -> Vec<(AdapterId, ContextId)> {
        let serves = self.state.pointers.iter().filter(|(_, pointer)| pointer.active == Some(adapter));
        serves.map(|(context, _)| (adapter, *context)).collect()
    }

    pub(super) fn on_command(&mut self, command: Command, now: Timestamp, out: &mut Vec<Action>) {
        let stage = self.state.stage();
        match command {
            Command::Pause | Command::Resume => {
                let paused = command == Command::Pause;
                if self.state.paused != paused {
                    let reason = if paused { "the user paused training" } else { "the user resumed training" };
                    self.record(Draft::new(stage, stage, reason, Change::Paused { paused }), now, out);
                }
            }
            Command::Pin { adapter, pinned } => match self.state.registry.get(adapter).map(|entry| entry.state) {
                None | Some(CardState::Retired) => refuse(out, format!("adapter {adapter} is not known or is retired")),
                Some(_) => {
                    let reason = if pinned { "the user pinned it" } else { "the user unpinned it" };
                    let draft = Draft::new(stage, stage, reason, Change::Pinned { pinned }).about(adapter, None);
                    self.record(draft, now, out);
                }
            },
            Command::Rollback { adapter } => self.on_rollback(adapter, now, out),
            Command::Retire { adapter } => {
                let entry = self.state.registry.get(adapter).filter(|entry| entry.state != CardState::Retired);
                if entry.is_none() {
                    return refuse(out, format!("adapter {adapter} is not known or is retired"));
                }
                let serving = self.served_by(adapter);
                let draft =
                    Draft::new(stage, Stage::Retire, "the user retired it", Change::Retired).about(adapter, None);
                self.record(draft, now, out);
                out.extend(
                    serving.into_iter().map(|(adapter, context)| Action::DeactivateAdapter { adapter, context }),
                );
                out.push(Action::RetireAdapter { adapter });
            }
            Command::RunNow { situation } => self.on_run_now(situation.as_ref(), now, out),
            Command::Import { card } => self.on_import(card, now, out),
        }
    }

    fn on_rollback(&mut self, adapter: AdapterId, now: Timestamp, out: &mut Vec<Action>) {
        let mut contexts: Vec<ContextId> = self.served_by(adapter).into_iter().map(|(_, context)| context).collect();
        contexts.extend(self.state.trials.iter().filter(|trial| trial.adapter == adapter).map(|trial| trial.context));
        if contexts.is_empty() {
            return refuse(out, format!("adapter {adapter} serves nothing and is not on trial"));
        }
        for context in contexts {
            self.roll_back(adapter, context, "the user took it back".to_owned(), BTreeMap::new(), now, out);
        }
    }

    fn roll_back(
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

    fn on_run_now(&mut self, situation: Option<&Embedding>, now: Timestamp, out: &mut Vec<Action>) {
        let contexts = self.soft.trigger.contexts();
        let chosen = match situation {
            Some(situation) => contexts.find(situation),
            None => {
                contexts.iter().map(|c| c.id).max_by_key(|id| (self.soft.texts.tokens(*id), std::cmp::Reverse(*id)))
            }
        };
        let Some(context) = chosen.and_then(|id| contexts.get(id)) else {
            return refuse(out, "nothing is known that could be trained on".to_owned());
        };
        let (context, centroid) = (context.id, context.centroid.clone());
        if self.state.job.as_ref().is_some_and(|job| job.spec.context == context) {
            return refuse(out, format!("a job for {context} is under way"));
        }
        let tokens = self.soft.texts.tokens(context) as f64;
        let rounds = self.soft.trigger.rounds_begun();
        let change = Change::Suspected { cause: Cause::Asked, centroid, structural: false, rounds };
        let draft = Draft::new(Stage::Serve, Stage::Suspect, "the user asked for training", change);
        self.record(draft.about(None, context).number("tokens", tokens), now, out);
    }

    fn on_import(&mut self, card: Box<SkillCard>, now: Timestamp, out: &mut Vec<Action>) {
        let adapter = card.adapter;
        if let Err(error) = self.state.registry.clone().insert((*card).clone(), CardState::Superseded) {
            return refuse(out, error.to_string());
        }
        let stage = self.state.stage();
        let draft =
            Draft::new(stage, stage, "a card was imported; it is tried where it may help", Change::Imported { card });
        self.record(draft.about(adapter, None), now, out);
    }

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
            parent: None,
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

    /// Why no training may run now.
    fn held_up(&self) -> Option<&'static str> {
        match self.around.busy {
            _ if self.state.paused => Some("training is paused by the user"),
            _ if self.state.base.is_none() || self.around.trains.is_empty() => Some("no engine that trains is there"),
            None => Some("the load of the machine is not known yet"),
            Some(_) if self.around.on_battery => Some("the machine runs on battery"),
            Some(true) => Some("the machine is busy"),
            Some(false) => None,
        }
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

    /// Plans a job, or says why there is none now.
    fn plan(&self, proposal: &Proposal, now: Timestamp) -> Result<(JobSpec, BTreeMap<String, f64>), String> {
        if let Some(why) = self.held_up() {
            return Err(why.to_owned());
        }
        let context = proposal.context;
        let asked = proposal.cause == Cause::Asked;
        let record = self.state.contexts.get(&context).ok_or("its record is missing")?;
        let pointer = self.state.pointers.get(&context);
        let active = pointer.and_then(|pointer| pointer.active).and_then(|adapter| self.state.registry.get(adapter));
        if active.is_some_and(|entry| entry.pinned) {
            return Err("the adapter that serves it is pinned".to_owned());
        }
        if self.state.trials.len() >= self.policy.trials_max {
            return Err(format!("{} adapters are in shadow, no more are allowed", self.state.trials.len()));
        }
        let tokens = self.soft.texts.tokens(context);
        let fresh = tokens.saturating_sub(record.tokens_then);
        let needed = match record.rejections {
            0 => 0,
            n => self.policy.fresh_tokens_min.saturating_mul(1 << (n - 1).min(16)),
        };
        if fresh < needed && !asked {
            return Err(format!(
                "it was rejected {} times; {fresh} of {needed} fresh tokens are there",
                record.rejections
            ));
        }
        let selection = select(&self.soft.texts, context, &self.policy.data).map_err(|error| error.to_string())?;
        let need = Need {
            structural: proposal.structural,
            control_signal: self.policy.control_signal,
            lora: match (record.lora_accepted, record.lora_plateaued) {
                (true, true) => LoraHistory::Plateaued,
                (true, false) => LoraHistory::Accepted,
                (false, _) => LoraHistory::None,
            },
        };
        let seed = mix(self.policy.seed ^ mix(self.state.rows));
        let level = self.state.levels.choose(&need, &self.around.trains, seed);
        let level =
            level.ok_or_else(|| format!("no level is open of {:?}", LevelBandit::open(&need, &self.around.trains)))?;
        let (steps, cost) = self.steps(selection.train_tokens, asked, now)?;
        let numbers = BTreeMap::from([
            ("train_tokens".to_owned(), selection.train_tokens as f64),
            ("duplicates".to_owned(), selection.duplicates as f64),
            ("in_gap".to_owned(), selection.in_gap as f64),
            ("cpu_seconds_expected".to_owned(), cost),
            ("cpu_seconds_today".to_owned(), self.state.spent(now)),
        ]);
        let spec = JobSpec {
            adapter: adapter_id(seed, self.state.rows, now),
            level,
            context,
            train: selection.train,
            held_out: selection.held_out,
            train_tokens: selection.train_tokens,
            replay_fraction: self.policy.data.replay_fraction.clamp(0.0, 0.9),
            placebo: self.policy.gate.placebo_required,
            steps_max: steps,
            seed,
        };
        Ok((spec, numbers))
    }

    /// Steps for a number of tokens and their expected cost (CPU seconds, with the placebo), within today's budget.
    fn steps(&self, train_tokens: u64, asked: bool, now: Timestamp) -> Result<(u32, f64), String> {
        let policy = &self.policy;
        let replay = 1.0 / (1.0 - policy.data.replay_fraction.clamp(0.0, 0.9));
        let tokens_per_step = f64::from(policy.tokens_per_step.max(1));
        let wished = (train_tokens as f64 * policy.epochs * replay / tokens_per_step).ceil() as u32;
        let wished = wished.clamp(policy.steps_min, policy.steps_max.max(policy.steps_min));
        let arms = if policy.gate.placebo_required { 2.0 } else { 1.0 };
        let step_cost = arms * tokens_per_step / policy.tokens_per_cpu_second.max(1e-3);
        let left = (policy.cpu_seconds_a_day - self.state.spent(now)).max(0.0);
        let affordable = if asked { wished } else { (left / step_cost) as u32 };
        if affordable < policy.steps_min {
            return Err(format!("today's budget has {left:.0} CPU seconds left, a job needs more"));
        }
        let steps = wished.min(affordable);
        Ok((steps, f64::from(steps) * step_cost))
    }
}

fn refuse(out: &mut Vec<Action>, reason: String) {
    out.push(Action::Notify(Notice::Refused { reason }));
}

/// A UUID of version 7 made of the time, the seed and the row, so that the same history makes the same names.
fn adapter_id(seed: u64, row: u64, now: Timestamp) -> AdapterId {
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&(now.as_millis().max(0) as u64).to_be_bytes()[2..]);
    bytes[6..8].copy_from_slice(&(0x7000 | (row & 0x0FFF) as u16).to_be_bytes());
    bytes[8..].copy_from_slice(&mix(seed ^ row.rotate_left(32)).to_be_bytes());
    bytes[8] = 0x80 | (bytes[8] & 0x3F);
    AdapterId::from_bytes(bytes)
}
