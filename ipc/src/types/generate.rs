//! Generation and feedback on it.

use mneme_base::{AdapterId, MemoryId, Namespace, TaskId, TrustTier};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{params, result};

/// A piece of the canvas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SegmentParam {
    /// Text that stays as it is.
    Text(String),
    /// A hole to be filled.
    Hole {
        /// At least this many tokens.
        #[serde(default = "one")]
        tokens_min: u32,
        /// At most this many tokens.
        tokens_max: u32,
    },
}

const fn one() -> u32 {
    1
}

/// How memories reach the generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuidanceParam {
    /// Not at all.
    None,
    /// As labelled text before the canvas.
    #[default]
    Prompt,
    /// Through cross-attention on projected embeddings.
    CrossAttention,
    /// Both.
    Both,
}

/// How tokens are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ModeParam {
    /// Left to right.
    Ar,
    /// By iterative unmasking.
    Diffusion,
    /// Diffusion drafts, the causal mode of the same network verifies; a hole inside a text is written left to right with both sides in view.
    #[default]
    Auto,
}

/// What each hole must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ConstraintParam {
    /// Matches this regular expression as a whole.
    Regex(String),
    /// Is JSON that this schema accepts.
    JsonSchema(serde_json::Value),
}

params! {
    /// Writes from memory.
    #[derive(Default)]
    GenerateParams {
        /// What to continue; `{{hole:N}}` marks a hole of at most N tokens. Or give `canvas`.
        #[serde(default)]
        prompt: Option<String>,
        /// Text and holes, instead of `prompt`.
        #[serde(default)]
        canvas: Vec<SegmentParam>,
        /// An instruction in the model's chat form, instead of plain continuation.
        #[serde(default)]
        instruction: Option<String>,
        /// Tokens to add after a prompt without holes; 64 when missing, at most the daemon's
        /// `generation.tokens_max`, which is 512 unless set and never above 1,024.
        #[serde(default)]
        tokens_max: Option<u32>,
        /// Memories of this namespace guide the text; no guidance when missing.
        #[serde(default)]
        namespace: Option<Namespace>,
        /// How many memories at most; 5 when missing, at most 32.
        #[serde(default)]
        memories_max: Option<u32>,
        /// How memories reach the generator.
        #[serde(default)]
        guidance: GuidanceParam,
        /// What to look for in the memory, instead of the canvas's own text.
        #[serde(default)]
        memory_query: Option<String>,
        /// What each hole must be.
        #[serde(default)]
        constraint: Option<ConstraintParam>,
        /// How tokens are decided.
        #[serde(default)]
        mode: ModeParam,
        /// Diffusion steps a block; the daemon's setting when missing.
        #[serde(default)]
        steps: Option<u32>,
        /// Tokens a block; the daemon's setting when missing.
        #[serde(default)]
        block: Option<u32>,
        /// Sampling temperature, 0 to 2; 0 is greedy.
        #[serde(default)]
        temperature: f32,
        /// Seed of all draws; 0 when missing.
        #[serde(default)]
        seed: u64,
        /// Send the canvas as it crystallises, as `task.event` notifications.
        #[serde(default)]
        stream: bool,
        /// Leave adapters out: the base model alone.
        #[serde(default)]
        base_only: bool,
    }
}

/// How one filled token came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenView {
    /// The token.
    pub text: String,
    /// Its probability when it was decided.
    pub confidence: f32,
    /// Entropy of its distribution (nats).
    pub ambiguity: f32,
    /// Its residual over the expected residual: 1 when calibrated.
    pub surprise: f32,
}

/// How unsure the generator was.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct UncertaintyView {
    /// Mean entropy (nats a token).
    pub ambiguity: f32,
    /// Mean surprise ratio.
    pub surprise: f32,
    /// Mean probability of the tokens.
    pub confidence: f32,
    /// How much composed models disagreed (nats a token).
    pub disagreement: f32,
    /// Conformal p-value of this surprise among earlier ones; missing until enough were seen.
    #[serde(default)]
    pub p_value: Option<f64>,
    /// What the loop made of it: `serve`, `ask` or `suspect`.
    pub verdict: String,
}

result! {
    /// The text.
    GenerateResult {
        /// Names this generation, for feedback.
        task: TaskId,
        /// The whole canvas.
        text: String,
        /// The text of each hole.
        fills: Vec<String>,
        /// Every filled token.
        tokens: Vec<TokenView>,
        /// Memories that guided it, best first.
        memories: Vec<MemoryId>,
        /// Adapters that had a share, with their weight.
        adapters: Vec<(AdapterId, f32)>,
        /// How unsure the generator was.
        uncertainty: UncertaintyView,
        /// The mode that was used.
        mode: ModeParam,
        /// Network evaluations spent.
        steps: u32,
        /// In `auto`: the share of drafted tokens that was accepted.
        #[serde(default)]
        acceptance: Option<f32>,
        /// Why it ended: `length`, `stop` or `constraint`.
        finish: String,
        /// The engine that wrote it.
        engine: String,
        /// What was not available.
        #[serde(default)]
        degraded: Vec<String>,
        /// Time spent in the daemon (milliseconds).
        took_ms: u64,
    }
}

/// What the user thinks of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Good as it is: may be learned from.
    #[default]
    Accept,
    /// Not good.
    Reject,
    /// It should have been `correction`: that may be learned from.
    Correct,
}

params! {
    /// Says what the user thinks of a generation.
    FeedbackParams {
        /// The generation.
        task: TaskId,
        /// The opinion.
        verdict: Verdict,
        /// What it should have been; with `correct` only.
        #[serde(default)]
        correction: Option<String>,
        /// How far the text that is kept of it may be trusted: `user`, unless somebody else than the user speaks. Only what is
        /// `user` is learned from.
        #[serde(default)]
        trust: Option<TrustTier>,
    }
}

result! {
    /// The feedback is recorded.
    FeedbackResult {
        /// The generation.
        task: TaskId,
        /// The memory that an accepted or corrected text became, if it did.
        #[serde(default)]
        memory: Option<MemoryId>,
    }
}
