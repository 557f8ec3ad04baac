//! Turns the traces of a generation into ambiguity, surprise and a verdict, and tells evolution what it saw.
//!
//! Called by: generator. Calls nobody; its events go to evolution. Owns: the calibration of surprise. Capacity: [`CALLS_MAX`].
//! A restart loses the calibration, which fills again with the next generations.

use mneme_base::Embedding;
use mneme_engine_api::Generation;
use mneme_evolution::trigger::ConformalRank;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::time::Instant;

use crate::call::{ActorError, ActorStatus, Request, Slot};
use crate::evolution::EvolutionHandle;

/// Observations at once.
const CALLS_MAX: usize = 256;
/// P-values are told after this many observations; before, a rank says nothing.
const OBSERVATIONS_MIN: u64 = 20;
/// At or below this p-value of surprise a generation is suspect by itself.
const SUSPECT_P: f64 = 0.05;
/// At or below this p-value of ambiguity several continuations are fair.
const ASK_P: f64 = 0.1;

/// A generation to be judged.
#[derive(Debug, Clone)]
pub struct Observation {
    /// Place in meaning space of what was asked; without it evolution learns nothing of it.
    pub situation: Option<Embedding>,
    /// Mean entropy (nats a token).
    pub ambiguity: f32,
    /// Mean surprise ratio.
    pub surprise: f32,
    /// Mean probability of the tokens.
    pub confidence: f32,
    /// Mean -log Z of a composition (nats a token).
    pub disagreement: f32,
    /// A constraint was in force.
    pub structural: bool,
}

impl Observation {
    /// Summarises the traces of a generation.
    pub fn of(generation: &Generation, situation: Option<Embedding>, structural: bool) -> Self {
        let count = generation.tokens.len().max(1) as f32;
        let mean = |pick: fn(&mneme_engine_api::TokenTrace) -> f32| {
            generation.tokens.iter().map(pick).filter(|x| x.is_finite()).sum::<f32>() / count
        };
        Self {
            situation,
            ambiguity: mean(|token| token.ambiguity),
            surprise: mean(|token| token.surprise),
            confidence: mean(|token| token.confidence),
            disagreement: generation.disagreement,
            structural,
        }
    }
}

/// What is said of a generation.
#[derive(Debug, Clone, PartialEq)]
pub struct UncertaintyReport {
    /// Mean entropy (nats a token).
    pub ambiguity: f32,
    /// Mean surprise ratio.
    pub surprise: f32,
    /// Mean probability of the tokens.
    pub confidence: f32,
    /// Mean -log Z of a composition (nats a token).
    pub disagreement: f32,
    /// Conformal p-value of the surprise; `None` until enough was seen.
    pub p_value: Option<f64>,
    /// `serve`, `ask` or `suspect`.
    pub verdict: &'static str,
}

/// Where the uncertainty can be called.
#[derive(Debug, Clone)]
pub struct UncertaintyHandle {
    pub(crate) slot: Slot<Message>,
}

impl UncertaintyHandle {
    pub(crate) fn new() -> Self {
        Self { slot: Slot::new("uncertainty", CALLS_MAX) }
    }

    /// Judges a generation.
    pub async fn observe(&self, observation: Observation, deadline: Instant) -> Result<UncertaintyReport, ActorError> {
        self.slot.call(observation, deadline, Message::Observe).await
    }

    /// How the actor is.
    pub fn status(&self) -> ActorStatus {
        self.slot.status()
    }
}

/// What the uncertainty is told.
pub(crate) enum Message {
    /// Judge a generation.
    Observe(Request<Observation, UncertaintyReport>),
}

/// What the uncertainty starts from.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) evolution: EvolutionHandle,
    /// Seed of the tie-breaks of ranks.
    pub(crate) seed: u64,
}

/// What the uncertainty owns.
pub(crate) struct State {
    evolution: EvolutionHandle,
    surprise: ConformalRank,
    ambiguity: ConformalRank,
    observed: u64,
}

/// The uncertainty's actor.
pub(crate) struct UncertaintyActor;

impl Actor for UncertaintyActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, _: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        Ok(State {
            evolution: arguments.evolution,
            surprise: ConformalRank::new(arguments.seed),
            ambiguity: ConformalRank::new(arguments.seed ^ 1),
            observed: 0,
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let Message::Observe(request) = message;
        let report = state.observe(&request.input);
        state.evolution.observed(request.input);
        let _ = request.reply.send(Ok(report));
        Ok(())
    }
}

impl State {
    fn observe(&mut self, observation: &Observation) -> UncertaintyReport {
        let p_surprise = self.surprise.observe(f64::from(observation.surprise));
        let p_ambiguity = self.ambiguity.observe(f64::from(observation.ambiguity));
        self.observed += 1;
        let known = self.observed >= OBSERVATIONS_MIN;
        let verdict = match () {
            () if known && p_surprise <= SUSPECT_P => "suspect",
            () if known && p_ambiguity <= ASK_P => "ask",
            () => "serve",
        };
        UncertaintyReport {
            ambiguity: observation.ambiguity,
            surprise: observation.surprise,
            confidence: observation.confidence,
            disagreement: observation.disagreement,
            p_value: known.then_some(p_surprise),
            verdict,
        }
    }
}
