//! Rows of the log: every decision in words and numbers, with the change of state that it makes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mneme_base::{AdapterId, ContentHash, Embedding, MemoryId, Timestamp};
use mneme_engine_api::{AdapterLevel, TrainOutcome};
use serde::{Deserialize, Serialize};

use crate::context::ContextId;
use crate::gate::Verdict;
use crate::registry::SkillCard;

/// A station of the loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Answers are served; nothing is suspected.
    Serve,
    /// A context is suspected.
    Suspect,
    /// A job is proposed.
    Propose,
    /// A job trains.
    Train,
    /// Its outcome is judged.
    Validate,
    /// Its adapter is compared on real text.
    Shadow,
    /// The adapter serves its context.
    Commit,
    /// The adapter's update is scaled and judged again.
    Scale,
    /// The adapter is not good enough.
    Reject,
    /// A stored adapter is tried or served.
    Retrieve,
    /// An adapter was taken back.
    Rollback,
    /// An adapter is gone for good.
    Retire,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Serve => "SERVE",
            Self::Suspect => "SUSPECT",
            Self::Propose => "PROPOSE",
            Self::Train => "TRAIN",
            Self::Validate => "VALIDATE",
            Self::Shadow => "SHADOW",
            Self::Commit => "COMMIT",
            Self::Scale => "SCALE",
            Self::Reject => "REJECT",
            Self::Retrieve => "RETRIEVE",
            Self::Rollback => "ROLLBACK",
            Self::Retire => "RETIRE",
        })
    }
}

/// Why a context is to be trained for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The trigger alarmed.
    Alarm,
    /// The user asked for it: the daily budget and the wait after a rejection do not hold it up.
    Asked,
}

/// What a training job is to do. The store gives the texts by their ids; the engine gets them as a `TrainJob`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The adapter to make.
    pub adapter: AdapterId,
    /// How deep it goes.
    pub level: AdapterLevel,
    /// The context it is for.
    pub context: ContextId,
    /// Memories to learn, oldest first.
    pub train: Vec<MemoryId>,
    /// Memories to judge on, oldest first, all later than those to learn.
    pub held_out: Vec<MemoryId>,
    /// Memories of neighbouring contexts that an adapter serves: forgetting is measured on them too, besides base text.
    pub guard: Vec<MemoryId>,
    /// Tokens to learn.
    pub train_tokens: u64,
    /// The share of base text in training, 0.2 to 0.5.
    pub replay_fraction: f64,
    /// The adapter that it starts from: the one that serves the context, so that what was learned is kept.
    #[serde(default)]
    pub parent: Option<AdapterId>,
    /// Whether to train a placebo adapter on as many tokens of somebody else's text.
    pub placebo: bool,
    /// Optimiser steps at most.
    pub steps_max: u32,
    /// Seed of initialisation, order and masks.
    pub seed: u64,
}

impl JobSpec {
    /// All memories that the job reads.
    pub fn memories(&self) -> impl Iterator<Item = &MemoryId> {
        self.train.iter().chain(&self.held_out).chain(&self.guard)
    }
}

/// Where an adapter on trial comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It was just trained for this context.
    Trained,
    /// It was stored for another one.
    Stored,
}

/// The change of state that a row makes: the state is the fold of all rows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    /// The engine's base weights are these: jobs and trials on others end.
    Base {
        /// Their hash.
        base_hash: ContentHash,
    },
    /// The user paused or resumed the loop.
    Paused {
        /// Whether it is paused now.
        paused: bool,
    },
    /// A context waits for adaptation.
    Suspected {
        /// Why.
        cause: Cause,
        /// The context's centre, so that a restart knows it.
        centroid: Embedding,
        /// Whether the failure is mostly one of structure.
        structural: bool,
        /// Rounds of evidence begun so far: the price of all alarms before.
        rounds: u64,
    },
    /// A stored adapter is tried on the context.
    Tried,
    /// A job is ready to start.
    Proposed {
        /// What it is to do.
        spec: JobSpec,
        /// Why.
        cause: Cause,
    },
    /// The job runs (again).
    Started,
    /// The job waits.
    Suspended,
    /// The job failed and may be tried again.
    Failed,
    /// The engine cannot train the job's level: the context waits for a job of another.
    Returned,
    /// The job is given up.
    Abandoned {
        /// The context's tokens at that time: it waits for fresh ones.
        tokens: u64,
    },
    /// The job has an outcome.
    Trained {
        /// The evidence.
        outcome: TrainOutcome,
    },
    /// The outcome is not good enough.
    Rejected {
        /// The judgement.
        verdict: Verdict,
        /// The context's tokens at that time: it waits for fresh ones.
        tokens: u64,
    },
    /// The outcome needs a smaller update.
    Scaled {
        /// The judgement, with the factor.
        verdict: Verdict,
    },
    /// The outcome is good: the adapter goes into the shadow.
    Accepted {
        /// Its card.
        card: Box<SkillCard>,
    },
    /// The adapter proved itself on real text and serves the context, in place of the one that did.
    Committed,
    /// The adapter did not prove itself on real text.
    ShadowFailed {
        /// Where it came from: a trained one is retired.
        origin: Origin,
        /// The context's tokens at that time.
        tokens: u64,
    },
    /// The adapter no longer serves the context.
    RolledBack {
        /// What serves it instead; the base when absent.
        to: Option<AdapterId>,
    },
    /// Memories are forgotten, with all that was made from them.
    Forgotten {
        /// The memories.
        memories: Vec<MemoryId>,
    },
    /// An adapter is gone for good.
    Retired,
    /// The user pinned or unpinned an adapter.
    Pinned {
        /// Whether it is pinned now.
        pinned: bool,
    },
    /// A card was imported; it is served nowhere until it passes a shadow.
    Imported {
        /// The card.
        card: Box<SkillCard>,
        /// The memories it learned that were never in the store here.
        #[serde(default)]
        foreign: BTreeSet<MemoryId>,
    },
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogRow {
    /// Its number: 1, 2, 3 and so on without gaps.
    pub id: u64,
    /// When it was taken.
    pub time: Timestamp,
    /// The station before.
    pub from: Stage,
    /// The station after.
    pub to: Stage,
    /// The adapter it is about.
    pub adapter: Option<AdapterId>,
    /// The context it is about.
    pub context: Option<ContextId>,
    /// Why, in words.
    pub reason: String,
    /// The numbers it rests on; all finite.
    pub numbers: BTreeMap<String, f64>,
    /// What it changes.
    pub change: Change,
}

impl fmt::Display for LogRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5} {} {} -> {}", self.id, self.time, self.from, self.to)?;
        if let Some(context) = self.context {
            write!(f, " [{context}]")?;
        }
        if let Some(adapter) = self.adapter {
            write!(f, " {adapter}")?;
        }
        write!(f, ": {}", self.reason)
    }
}
