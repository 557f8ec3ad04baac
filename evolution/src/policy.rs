//! All settings of the loop in one place, with the reason for each default.

use serde::{Deserialize, Serialize};

use crate::data::DataPolicy;
use crate::gate::GatePolicy;

/// The settings. Probabilities are 0 to 1, losses nats a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Seed of every draw; the same events with the same seed give the same decisions.
    pub seed: u64,
    /// Probability of any false alarm, ever.
    pub trigger_alpha: f64,
    /// The share of events that count as ambiguous.
    pub ambiguous_p: f64,
    /// Contexts that are told apart at most.
    pub contexts_max: usize,
    /// Situations nearer than this to a context's centre belong to it (cosine distance).
    pub context_radius: f32,
    /// Bounds of the gate.
    pub gate: GatePolicy,
    /// Selection of text.
    pub data: DataPolicy,
    /// Probability that a useless adapter passes the shadow.
    pub shadow_alpha: f64,
    /// Probability that a harmless adapter is ever rolled back.
    pub rollback_alpha: f64,
    /// Differences are cut to this size before they are bet on (nats a token): a few times a usual gain.
    pub shadow_clip: f64,
    /// Texts after which a shadow without evidence is given up.
    pub shadow_texts_max: u32,
    /// Adapters in shadow at once; each costs one more scoring per real text.
    pub trials_max: usize,
    /// Contexts that wait for training at once.
    pub queue_max: usize,
    /// Stored adapters that are tried on a context before it is trained for.
    pub stored_tries_max: usize,
    /// CPU seconds of training a day (UTC).
    pub cpu_seconds_a_day: f64,
    /// Training stops above this load, 0 to 1.
    pub load_max: f32,
    /// Stopped training goes on below this load, 0 to 1.
    pub load_resume: f32,
    /// Passes over the text.
    pub epochs: f64,
    /// Tokens in an optimiser step.
    pub tokens_per_step: u32,
    /// A job of fewer steps is not worth its start.
    pub steps_min: u32,
    /// Steps of a job at most.
    pub steps_max: u32,
    /// Tokens that a CPU second trains, for the estimate of a job's cost (measured: LoRA 337, one of 2 cores).
    pub tokens_per_cpu_second: f64,
    /// Failures of a job before it is abandoned.
    pub failures_max: u32,
    /// Fresh tokens that a context needs after a rejection before it is proposed again; doubles with each rejection.
    pub fresh_tokens_min: u64,
    /// Fixed share of the online-Bayes weights.
    pub share: f64,
    /// Adapters with a smaller weight are not served.
    pub weight_min: f64,
    /// Whether a control signal exists for L1.
    pub control_signal: bool,
    /// Observations after which what was learned between two rows is written down; so many may be lost at a crash.
    pub checkpoint_every: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            seed: 0,
            trigger_alpha: 0.05,
            ambiguous_p: 0.1,
            contexts_max: 64,
            context_radius: 0.6,
            gate: GatePolicy::default(),
            data: DataPolicy::default(),
            shadow_alpha: 0.05,
            rollback_alpha: 0.05,
            shadow_clip: 0.25,
            shadow_texts_max: 200,
            trials_max: 4,
            queue_max: 16,
            stored_tries_max: 2,
            cpu_seconds_a_day: 1_800.0,
            load_max: 0.5,
            load_resume: 0.3,
            epochs: 3.0,
            tokens_per_step: 256,
            steps_min: 8,
            steps_max: 400,
            tokens_per_cpu_second: 300.0,
            failures_max: 3,
            fresh_tokens_min: 2_000,
            share: 0.01,
            weight_min: 0.05,
            control_signal: false,
            checkpoint_every: 32,
        }
    }
}
