//! The evolution loop as a person sees it: what it is doing, what it decided and why, and how to overrule it.

use std::collections::BTreeMap;

use mneme_base::{AdapterId, Timestamp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{params, result};

params! {
    /// Asks what the loop is doing.
    #[derive(Default)]
    EvolveStatusParams {}
}

/// An adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AdapterView {
    /// Its name.
    pub id: AdapterId,
    /// `composition`, `control_net`, `lora` or `layers`.
    pub level: String,
    /// `active`, `shadow`, `superseded`, `rolled_back` or `retired`.
    pub state: String,
    /// Never rolled back or retired by the loop itself.
    pub pinned: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// How many memories it was trained on.
    pub memories: u64,
    /// It came from elsewhere: its scores are a claim, what it was judged by here stands in its decisions.
    #[serde(default)]
    pub imported: bool,
    /// Held-out gain, confidence bounds, forgetting and other scores.
    pub scores: BTreeMap<String, f64>,
}

result! {
    /// What the loop is doing.
    EvolveStatusResult {
        /// The state: `serve`, `suspect`, `propose`, `train`, `validate`, `shadow`, ...
        state: String,
        /// Paused by the user, or by battery or load.
        #[serde(default)]
        paused: Option<String>,
        /// Generations and texts of the user observed since the daemon started.
        observed: u64,
        /// Training jobs begun; one that is interrupted and goes on counts once.
        trained: u64,
        /// Adapters accepted.
        accepted: u64,
        /// Adapters rejected.
        rejected: u64,
        /// Adapters rolled back.
        rolled_back: u64,
        /// Texts of the user in view: those a next job would choose from.
        texts_waiting: u64,
        /// Adapters, newest first.
        adapters: Vec<AdapterView>,
        /// Progress of the job under way, 0 to 1.
        #[serde(default)]
        progress: Option<f32>,
    }
}

params! {
    /// Returns decisions, newest first.
    #[derive(Default)]
    EvolveLogParams {
        /// At most this many; 50 when missing, at most 1,000.
        #[serde(default)]
        limit: Option<u32>,
        /// Only decisions before this row.
        #[serde(default)]
        before: Option<String>,
    }
}

/// One decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionView {
    /// Its name.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// The state before.
    pub from: String,
    /// The state after.
    pub to: String,
    /// The adapter it is about.
    #[serde(default)]
    pub adapter: Option<AdapterId>,
    /// Why, in words.
    pub reason: String,
    /// The numbers it rests on.
    pub numbers: BTreeMap<String, f64>,
}

result! {
    /// Decisions, newest first.
    EvolveLogResult {
        /// The decisions.
        decisions: Vec<DecisionView>,
    }
}

params! {
    /// Names one adapter.
    EvolveAdapterParams {
        /// Which.
        adapter: AdapterId,
    }
}

result! {
    /// One adapter with its decisions.
    EvolveShowResult {
        /// The adapter.
        adapter: AdapterView,
        /// The memories it was trained on.
        lineage: Vec<String>,
        /// Its decisions, oldest first.
        decisions: Vec<DecisionView>,
    }
}

params! {
    /// Compares two adapters, or one with the base.
    EvolveDiffParams {
        /// The first.
        a: AdapterId,
        /// The second; the base when missing.
        #[serde(default)]
        b: Option<AdapterId>,
    }
}

result! {
    /// What differs.
    EvolveDiffResult {
        /// Scores of the first, by name.
        a: BTreeMap<String, f64>,
        /// Scores of the second.
        b: BTreeMap<String, f64>,
        /// Memories that only the first was trained on.
        only_a: Vec<String>,
        /// Memories that only the second was trained on.
        only_b: Vec<String>,
    }
}

params! {
    /// Pins or unpins an adapter.
    EvolvePinParams {
        /// Which.
        adapter: AdapterId,
        /// Pinned or not.
        pinned: bool,
    }
}

params! {
    /// Stops the loop from training until it is resumed; a running job is stopped at its checkpoint.
    #[derive(Default)]
    EvolvePauseParams {}
}

params! {
    /// Lets the loop train again.
    #[derive(Default)]
    EvolveResumeParams {}
}

params! {
    /// Proposes a job now, instead of waiting for a trigger. Its gates stay the same.
    #[derive(Default)]
    EvolveRunParams {}
}

params! {
    /// Asks for a part of an adapter as a skill: its card and its file as one stream of bytes.
    EvolveExportParams {
        /// Which.
        adapter: AdapterId,
        /// Where the part starts (bytes); 0 when missing.
        #[serde(default)]
        offset: u64,
    }
}

result! {
    /// A part of a skill.
    EvolveExportResult {
        /// The bytes, in base64 (RFC 4648, section 4).
        data: String,
        /// The skill's whole length (bytes).
        total: u64,
        /// Where the next part starts; missing at the end.
        #[serde(default)]
        next: Option<u64>,
    }
}

params! {
    /// Sends a part of a skill. Parts come in order; one that is sent again is taken again. With the last part the skill is checked
    /// and taken in, or refused as a whole.
    EvolveImportParams {
        /// BLAKE3 of the whole skill (hexadecimal): names the upload.
        hash: String,
        /// Its whole length (bytes).
        total: u64,
        /// Where this part starts (bytes).
        offset: u64,
        /// The part, in base64 (RFC 4648, section 4).
        data: String,
    }
}

result! {
    /// What became of the part.
    EvolveImportResult {
        /// How much of the skill is here (bytes).
        received: u64,
        /// With the last part: the adapter.
        #[serde(default)]
        adapter: Option<AdapterId>,
        /// With the last part: the loop's state after it.
        #[serde(default)]
        state: Option<String>,
        /// With the last part: what happened, in words.
        #[serde(default)]
        message: Option<String>,
    }
}

result! {
    /// The loop took the command.
    EvolveCommandResult {
        /// The state after it.
        state: String,
        /// What happened, in words.
        message: String,
    }
}
