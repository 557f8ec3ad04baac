//! What the machine is told, and what it asks for.

use std::collections::BTreeSet;

use mneme_base::{AdapterId, ContentHash, Embedding, MemoryId, Timestamp};
use mneme_engine_api::{AdapterLevel, TrainOutcome};
use serde::{Deserialize, Serialize};

use super::{Checkpoint, JobSpec, LogRow};
use crate::context::ContextId;
use crate::data::{Authorship, Signature};
use crate::registry::SkillCard;
use crate::trigger::Feedback;

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// An engine is there: its base weights and what it can train. Sent at every start of an engine.
    Engine {
        /// Hash of the base weights.
        base_hash: ContentHash,
        /// Levels it can train.
        trains: Vec<AdapterLevel>,
    },
    /// Scores of events that needed no adaptation, such as the base model's on its own kind of text; sent once per base.
    Calibrated {
        /// Surprise ratios.
        surprise: Vec<f32>,
        /// Ambiguities (nats).
        ambiguity: Vec<f32>,
        /// Surprise at texts, as in [`Event::Read`].
        reading: Vec<f32>,
    },
    /// A text of the user was read by what serves its context.
    Read {
        /// Its embedding.
        situation: Embedding,
        /// Mean residual of its tokens: 1 less the probability that each was given.
        surprise: f32,
    },
    /// An answer was generated.
    Generated {
        /// Embedding of what was asked.
        situation: Embedding,
        /// Mean entropy of its tokens (nats).
        ambiguity: f32,
        /// Mean residual over the expected residual; 1 when calibrated.
        surprise: f32,
        /// Whether what failed was structure (constraint, schema, outline).
        structural: bool,
    },
    /// The user judged an answer.
    Judged {
        /// Embedding of what was asked.
        situation: Embedding,
        /// The user's word.
        feedback: Feedback,
    },
    /// A text arrived that may be the user's.
    UserText {
        /// The memory that holds it.
        memory: MemoryId,
        /// When it was written.
        time: Timestamp,
        /// Its length (tokens, or characters / 4).
        tokens: u32,
        /// Its embedding.
        situation: Embedding,
        /// Its sketch, by [`Signature::of`].
        signature: Signature,
        /// Whose it is; only the user's own or accepted text is kept.
        authorship: Authorship,
    },
    /// The trainer finished: after [`Action::StartTraining`] or [`Action::ScaleAdapter`].
    Trained(Box<TrainOutcome>),
    /// The trainer failed.
    TrainingFailed {
        /// The adapter it worked on.
        adapter: AdapterId,
        /// Why, in words.
        reason: String,
        /// CPU seconds it had spent.
        cpu_seconds: f64,
    },
    /// The engine cannot train the job's level after all: another level is chosen.
    CannotTrain {
        /// The adapter it was to make.
        adapter: AdapterId,
        /// Why, in words.
        reason: String,
    },
    /// The trainer stopped by itself (load, signal) with a checkpoint; it can go on.
    Preempted {
        /// The adapter it worked on.
        adapter: AdapterId,
    },
    /// A real text that arrived after the adapters were trained was scored under the base and the adapters that
    /// [`Evolution::watched`](super::Evolution::watched) named.
    Scored {
        /// The context it belongs to.
        context: ContextId,
        /// Its tokens.
        tokens: u32,
        /// Its loss under the base (nats a token).
        base_loss: f32,
        /// Its loss under each adapter, same masks (nats a token).
        adapted: Vec<(AdapterId, f32)>,
    },
    /// An adapter's file cannot be read by the engine, which reads well without it: it can neither serve nor prove itself.
    Unusable {
        /// The adapter.
        adapter: AdapterId,
        /// Why, in words.
        reason: String,
    },
    /// The user forgot memories. None may be missed: see
    /// [`Evolution::memories_in_use`](super::Evolution::memories_in_use).
    Forgotten(Vec<MemoryId>),
    /// The user gave an order.
    Command(Command),
    /// Time passes; sent every few seconds. Nothing trains before the first one.
    Tick {
        /// Load of the machine, 0 to 1 (PSI, or the request rate over what is usual).
        load: f32,
        /// Whether it runs on battery.
        on_battery: bool,
    },
}

/// An order of the user.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// Train nothing until resumed; what serves goes on serving.
    Pause,
    /// Go on.
    Resume,
    /// Pin or unpin an adapter.
    Pin {
        /// Which adapter.
        adapter: AdapterId,
        /// Whether to pin it.
        pinned: bool,
    },
    /// Take an adapter out of every context that it serves.
    Rollback {
        /// Which adapter.
        adapter: AdapterId,
    },
    /// Retire an adapter for good.
    Retire {
        /// Which adapter.
        adapter: AdapterId,
    },
    /// Train now for this situation, or for the context with most text.
    RunNow {
        /// The situation.
        situation: Option<Embedding>,
    },
    /// Take a card in, by [`SkillCard::import`]. Its file must be there, hash to the card's `file_hash` and be readable by the
    /// engine. It serves nothing before it has passed a shadow here.
    Import {
        /// The card.
        card: Box<SkillCard>,
        /// The memories it learned that are not in the store here.
        foreign: BTreeSet<MemoryId>,
        /// Loss on guard texts of the base and of the adapter (nats a token), paired: what it forgets.
        guard: Vec<(f32, f32)>,
    },
}

/// Something to do. Actions are carried out in order; a [`Action::Journal`] must be durable before the next is begun.
/// All others may be repeated without harm: after a restart [`Evolution::reconcile`](super::Evolution::reconcile) gives
/// those that may have been lost.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Append this row.
    Journal(Box<LogRow>),
    /// Replace the one stored checkpoint by this.
    Checkpoint(Box<Checkpoint>),
    /// Start this job, or go on from its checkpoint.
    StartTraining(JobSpec),
    /// Stop the job; its checkpoint stays unless [`Action::RetireAdapter`] follows.
    StopTraining {
        /// The job's adapter.
        adapter: AdapterId,
    },
    /// Set the factor of the adapter's update (of one factor of each pair, from the trained file), judge it again on the
    /// same texts, and answer with [`Event::Trained`].
    ScaleAdapter {
        /// The adapter.
        adapter: AdapterId,
        /// The factor, 0 to 1, relative to what was trained.
        factor: f64,
    },
    /// Score the adapter on real texts of the context from now on.
    ShadowAdapter {
        /// The adapter.
        adapter: AdapterId,
        /// The context.
        context: ContextId,
    },
    /// Serve the adapter in the context.
    ActivateAdapter {
        /// The adapter.
        adapter: AdapterId,
        /// The context.
        context: ContextId,
    },
    /// Serve it there no more; its file stays.
    DeactivateAdapter {
        /// The adapter.
        adapter: AdapterId,
        /// The context.
        context: ContextId,
    },
    /// Delete the adapter's file, checkpoints and scratch.
    RetireAdapter {
        /// The adapter.
        adapter: AdapterId,
    },
    /// Tell the user.
    Notify(Notice),
}

/// Something to tell the user that is no decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Notice {
    /// Several answers were fair: ask which was meant, or abstain.
    Ask {
        /// The context.
        context: ContextId,
    },
    /// An order was not carried out.
    Refused {
        /// Why.
        reason: String,
    },
    /// A message of the trainer was of no use any more.
    Ignored {
        /// Why.
        reason: String,
    },
}
