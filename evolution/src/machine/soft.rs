//! What is learned between two rows: evidence, texts in view, weights, running tests. Written down now and then as one
//! checkpoint; a crash loses at most the observations since. That only costs evidence, never validity: which
//! observations are lost does not depend on what they said.

use std::collections::BTreeMap;

use mneme_base::{AdapterId, ContentHash};
use serde::{Deserialize, Serialize};

use super::state::State;
use crate::context::{ContextId, Contexts};
use crate::data::Texts;
use crate::eprocess::GainTest;
use crate::policy::Policy;
use crate::router::BayesWeights;
use crate::trigger::Trigger;

/// What was learned since the start, as of a number of rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// Rows that it has seen.
    pub rows: u64,
    /// The base weights that its scores are of.
    pub base: Option<ContentHash>,
    pub(super) soft: Soft,
}

/// Whether an adapter is on trial, serves, or served before and is still mixed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Role {
    Trial,
    Serving,
    Beside,
}

/// The running comparison of an adapter in a context.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Comparison {
    pub(super) adapter: AdapterId,
    pub(super) context: ContextId,
    pub(super) role: Role,
    pub(super) gain: GainTest,
    pub(super) harm: GainTest,
    pub(super) texts: u32,
    pub(super) gain_sum: f64,
}

impl Comparison {
    /// Mean gain so far (nats a token).
    pub(super) fn gain_mean(&self) -> f64 {
        self.gain_sum / f64::from(self.texts.max(1))
    }

    /// Takes the losses of one text (nats a token).
    pub(super) fn observe(&mut self, reference: f64, adapted: f64) {
        let gain = reference - adapted;
        if gain.is_finite() {
            self.gain.observe(gain);
            self.harm.observe(gain);
            self.texts = self.texts.saturating_add(1);
            self.gain_sum += gain;
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Soft {
    pub(super) trigger: Trigger,
    pub(super) texts: Texts,
    pub(super) weights: BTreeMap<ContextId, BayesWeights>,
    pub(super) comparisons: Vec<Comparison>,
}

impl Soft {
    pub(super) fn new(policy: &Policy) -> Self {
        let contexts = Contexts::new(policy.context_radius, policy.contexts_max);
        Self {
            trigger: Trigger::new(policy.trigger_alpha, policy.ambiguous_p, contexts, policy.seed),
            texts: Texts::default(),
            weights: BTreeMap::new(),
            comparisons: Vec::new(),
        }
    }

    /// Brings tests, weights and contexts in line with the durable state, after a row or a restart.
    pub(super) fn follow(&mut self, state: &State, policy: &Policy) {
        self.trigger.raise_rounds(state.rounds);
        for context in state.kept() {
            if let Some(record) = state.contexts.get(&context) {
                self.trigger.ensure_context(context, &record.centroid);
            }
        }
        let trials = state.trials.iter().map(|trial| (trial.adapter, trial.context, Role::Trial));
        let serving =
            state.pointers.iter().filter_map(|(context, pointer)| Some((pointer.active?, *context, Role::Serving)));
        let beside =
            state.pointers.keys().filter_map(|context| Some((state.beside(*context)?, *context, Role::Beside)));
        let wanted: Vec<(AdapterId, ContextId, Role)> = trials.chain(serving).chain(beside).collect();
        self.comparisons.retain(|c| wanted.contains(&(c.adapter, c.context, c.role)));
        for (adapter, context, role) in &wanted {
            let known = self.comparisons.iter().any(|c| (c.adapter, c.context, c.role) == (*adapter, *context, *role));
            if !known {
                self.comparisons.push(Comparison {
                    adapter: *adapter,
                    context: *context,
                    role: *role,
                    gain: GainTest::for_gain(policy.shadow_clip),
                    harm: GainTest::for_harm(policy.shadow_clip),
                    texts: 0,
                    gain_sum: 0.0,
                });
            }
            self.weights.entry(*context).or_insert_with(|| BayesWeights::new(policy.share)).add(*adapter);
        }
        for (context, weights) in &mut self.weights {
            let gone: Vec<AdapterId> = weights
                .adapters()
                .map(|(adapter, _)| adapter)
                .filter(|adapter| !wanted.iter().any(|(a, c, _)| a == adapter && c == context))
                .collect();
            for adapter in gone {
                weights.remove(adapter);
            }
        }
        self.weights.retain(|_, weights| weights.adapters().next().is_some());
    }
}
