//! The nouns of the engine's language: requests, results and events. All are plain data with serde forms.

use std::fmt;

use mneme_base::{AdapterId, ContentHash, EmbeddingGeneration};
use serde::{Deserialize, Serialize};

/// A canvas has at most this many tokens in all, text and holes together.
pub const CANVAS_TOKENS_MAX: u32 = 2_048;
/// One embed call takes at most this many texts.
pub const EMBED_TEXTS_MAX: usize = 256;
/// One score call takes at most this many items.
pub const SCORE_ITEMS_MAX: usize = 256;
/// A sampler takes at most this many steps for one canvas.
pub const STEPS_MAX: u32 = 1_024;
/// A generation is guided by at most this many memories.
pub const CONDITIONS_MAX: usize = 32;

/// What an engine is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Its name and version, such as `mneme-engine 0.1.0` or `fake`.
    pub name: String,
    /// The generation of its embeddings.
    pub embedding_generation: EmbeddingGeneration,
    /// Their dimensions.
    pub embedding_dimensions: u32,
    /// The generator's name.
    pub model: String,
    /// Hash of the generator's base weights: adapters are bound to it.
    pub base_hash: ContentHash,
    /// The longest canvas it takes (tokens).
    pub canvas_tokens_max: u32,
    /// Adapter levels that it can train.
    pub trains: Vec<AdapterLevel>,
}

impl EngineInfo {
    /// What is said of an engine that has not been started yet.
    pub fn unknown() -> Self {
        Self {
            name: String::from("not started"),
            embedding_generation: EmbeddingGeneration(String::new()),
            embedding_dimensions: 0,
            model: String::new(),
            base_hash: ContentHash::from_bytes([0; 32]),
            canvas_tokens_max: 0,
            trains: Vec::new(),
        }
    }
}

/// What a text is embedded for; some models treat the two differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmbedPurpose {
    /// A question.
    Query,
    /// Something that is stored.
    Document,
}

/// A piece of the canvas.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    /// Text that stays as it is.
    Text(String),
    /// A hole to be filled.
    Hole {
        /// At least this many tokens.
        tokens_min: u32,
        /// At most this many tokens; lengths between are tried and the likeliest is kept.
        tokens_max: u32,
    },
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
            Self::Hole { tokens_min, tokens_max } => write!(f, "Hole({tokens_min}..={tokens_max})"),
        }
    }
}

/// A memory that guides a generation.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// The memory's text, labelled as data when it is put into a prompt.
    pub text: String,
    /// Its vector, when there is one of the engine's generation.
    pub embedding: Option<Vec<f32>>,
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Condition({} bytes)", self.text.len())
    }
}

/// How memories reach the generator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Guidance {
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

/// What the filled text must be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Constraint {
    /// The hole's text matches this regular expression as a whole.
    Regex(String),
    /// The hole's text is JSON that this schema accepts (the schema as JSON text).
    JsonSchema(String),
}

/// How tokens are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GenerationMode {
    /// Left to right.
    Ar,
    /// By iterative unmasking.
    Diffusion,
    /// Diffusion drafts a block, the causal mode of the same network verifies it. A hole inside a text is written left to right with the
    /// text after it in view.
    #[default]
    Auto,
}

/// Which positions are decided first in diffusion.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Sampler {
    /// The most probable tokens first.
    #[default]
    Confidence,
    /// The largest gap between first and second first.
    Margin,
    /// The lowest entropy first.
    Entropy,
    /// Everything at least this probable at once.
    Threshold {
        /// The probability, above 0 and at most 1.
        tau: f32,
    },
    /// As many as keep the summed entropy of the earlier ones under this bound.
    EntropyBound {
        /// The bound (nats), at least 0.
        gamma: f32,
    },
    /// Confidence, with decided tokens masked again now and then.
    Remasking {
        /// The largest probability of masking a decided token again, 0 to 1.
        eta: f32,
    },
}

/// An adapter to use, and its prior weight in the composition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterUse {
    /// Which adapter.
    pub id: AdapterId,
    /// Its folder.
    pub folder: String,
    /// Its weight, 0 to 1; what is missing to 1 is the base model's.
    pub weight: f32,
    /// The factor of its update, 0 to 1: one factor of each pair is multiplied by it.
    pub scale: f32,
}

/// A canvas to fill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// The canvas: text and holes, at least one hole.
    pub canvas: Vec<Segment>,
    /// An instruction in the model's chat form around the canvas, instead of plain continuation.
    pub instruction: Option<String>,
    /// Memories that guide it, best first.
    pub conditions: Vec<Condition>,
    /// How they reach the generator.
    pub guidance: Guidance,
    /// Strength of classifier-free guidance; 0 switches it off.
    pub guidance_scale: f32,
    /// What each hole must be.
    pub constraint: Option<Constraint>,
    /// How tokens are decided.
    pub mode: GenerationMode,
    /// Which positions come first in diffusion.
    pub sampler: Sampler,
    /// Diffusion steps for each block; 0 lets the engine choose.
    pub steps: u32,
    /// Tokens for each block of semi-autoregressive diffusion; 0 lets the engine choose.
    pub block: u32,
    /// Sampling temperature; 0 is greedy.
    pub temperature: f32,
    /// Seed of all draws.
    pub seed: u64,
    /// Adapters to compose with.
    pub adapters: Vec<AdapterUse>,
}

impl GenerateRequest {
    /// A continuation of a prompt by at most `tokens_max` tokens, with every other setting at its default.
    pub fn continuation(prompt: impl Into<String>, tokens_max: u32) -> Self {
        Self {
            canvas: vec![Segment::Text(prompt.into()), Segment::Hole { tokens_min: 1, tokens_max }],
            instruction: None,
            conditions: Vec::new(),
            guidance: Guidance::default(),
            guidance_scale: 0.0,
            constraint: None,
            mode: GenerationMode::default(),
            sampler: Sampler::default(),
            steps: 0,
            block: 0,
            temperature: 0.0,
            seed: 0,
            adapters: Vec::new(),
        }
    }
}

/// The canvas while it crystallises.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CanvasEvent {
    /// Steps done.
    pub step: u32,
    /// Steps expected in all; may shrink.
    pub steps_total: u32,
    /// The canvas as text; undecided tokens are shown as `░`.
    pub canvas: String,
    /// Tokens decided so far, of those in holes.
    pub decided: u32,
    /// Tokens in holes.
    pub holes: u32,
}

/// How one filled token came about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenTrace {
    /// The token as text.
    pub text: String,
    /// Probability of the token when it was decided, 0 to 1.
    pub confidence: f32,
    /// Entropy of the distribution it was drawn from (nats).
    pub ambiguity: f32,
    /// Its residual over the residual expected at that mask rate: 1 when calibrated.
    pub surprise: f32,
    /// The step at which it was decided.
    pub step: u32,
}

/// A filled canvas.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The whole canvas.
    pub text: String,
    /// The text of each hole, in order.
    pub fills: Vec<String>,
    /// Every filled token, in order of position.
    pub tokens: Vec<TokenTrace>,
    /// The mode that was used.
    pub mode: GenerationMode,
    /// Network evaluations that were spent.
    pub steps: u32,
    /// In `auto`: drafted tokens that were accepted, 0 to 1.
    pub acceptance: Option<f32>,
    /// Adapters that had a share, with their posterior weight.
    pub adapters: Vec<(AdapterId, f32)>,
    /// How much the composed models disagreed: mean -log Z (nats a token).
    pub disagreement: f32,
    /// Why it ended: `length`, `stop`, `constraint`.
    pub finish: String,
}

/// A text to score after a context.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct ScoreItem {
    /// What comes before; may be empty. Equal contexts in one call are computed once.
    pub context: String,
    /// What is scored.
    pub text: String,
    /// Score under this adapter alone (its weight is ignored), instead of the base.
    pub adapter: Option<AdapterUse>,
    /// Whether every token is told and not only their sum: for evaluation, never for serving.
    pub detail: bool,
}

impl ScoreItem {
    /// A text after a context under the base model.
    pub fn new(context: impl Into<String>, text: impl Into<String>) -> Self {
        Self { context: context.into(), text: text.into(), adapter: None, detail: false }
    }
}

impl fmt::Debug for ScoreItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScoreItem({} + {} bytes)", self.context.len(), self.text.len())
    }
}

/// The likelihood of a text after its context.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct ScoreOutcome {
    /// Sum of log-probabilities (nats); at most 0.
    pub log_likelihood: f64,
    /// Tokens scored.
    pub tokens: u32,
    /// Every token in order; empty unless it was asked for.
    pub detail: Vec<ScoredToken>,
}

/// A token of a scored text, and the distribution that it was judged by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ScoredToken {
    /// The token in the generator's vocabulary; a hash where an engine has none.
    pub id: u32,
    /// Its length in the text (bytes).
    pub bytes: u32,
    /// Its log-probability (nats).
    pub log_likelihood: f32,
    /// Entropy of the distribution (nats).
    pub entropy: f32,
    /// Probability that two draws from it agree: 1 less the Gini index.
    pub agreement: f32,
    /// Probability of its likeliest token.
    pub top: f32,
}

/// How deep an adaptation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdapterLevel {
    /// L0: composition of what there is.
    Composition,
    /// L1: a control network beside the frozen base.
    ControlNet,
    /// L2: low-rank updates.
    Lora,
    /// L3: selected layers.
    Layers,
}

/// A text to train or judge on, with the memory it came from.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainText {
    /// The memory's id, for lineage.
    pub memory: String,
    /// Its text.
    pub text: String,
}

impl fmt::Debug for TrainText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrainText({}, {} bytes)", self.memory, self.text.len())
    }
}

/// One training job: data, budget, seed. The same job gives the same adapter, interrupted or not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainJob {
    /// The adapter to make.
    pub adapter: AdapterId,
    /// How deep it goes.
    pub level: AdapterLevel,
    /// The user's text to learn.
    pub train: Vec<TrainText>,
    /// Later text of the user, judged on and never learned.
    pub held_out: Vec<TrainText>,
    /// Base text: replayed in training.
    pub replay: Vec<TrainText>,
    /// Base text that forgetting is measured on.
    pub guard: Vec<TrainText>,
    /// Text of somebody else, as much as `train`, for the placebo control; empty skips it.
    pub placebo: Vec<TrainText>,
    /// The adapter whose weights this one starts from, and its placebo too: it is judged on the same held-out texts.
    #[serde(default)]
    pub parent: Option<AdapterUse>,
    /// Optimiser steps at most.
    pub steps_max: u32,
    /// The factor of the update that is judged, 0 to 1. A folder that holds the trained adapter already is not trained again:
    /// the adapter is scaled (one factor of each pair) and judged anew.
    pub scale: f32,
    /// Seed of initialisation, order and masks.
    pub seed: u64,
    /// Where checkpoints and the adapter are written.
    pub folder: String,
}

/// Progress of a training job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainEvent {
    /// Optimiser steps done.
    pub step: u32,
    /// Optimiser steps in all.
    pub steps_total: u32,
    /// Mean training loss since the last event (nats a token).
    pub loss: f32,
    /// What it is doing: `train`, `validate`, `placebo`.
    pub phase: String,
}

/// A trained adapter and the evidence about it. Losses are nats a token, paired: the same masks for every arm.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainOutcome {
    /// The adapter.
    pub adapter: AdapterId,
    /// Its level.
    pub level: AdapterLevel,
    /// Hash of the base weights it is bound to.
    pub base_hash: ContentHash,
    /// Hash of the adapter's file.
    pub adapter_hash: ContentHash,
    /// Its size on disk.
    pub bytes: u64,
    /// Parameters it trained.
    pub parameters: u64,
    /// Loss of the base on each held-out text.
    pub held_out_base: Vec<f32>,
    /// Loss of the adapter on each held-out text.
    pub held_out_adapted: Vec<f32>,
    /// Loss of the placebo adapter on each held-out text; empty when it was skipped.
    pub held_out_placebo: Vec<f32>,
    /// Loss of the base on each held-out text with retrieved training text before it; empty when unsupported.
    pub held_out_retrieval: Vec<f32>,
    /// Loss of the adapter with the same retrieved text before it, which is how the two are served; empty when unsupported.
    #[serde(default)]
    pub held_out_retrieval_adapted: Vec<f32>,
    /// Loss of the adapter that it started from on each held-out text; empty without one.
    #[serde(default)]
    pub held_out_parent: Vec<f32>,
    /// Loss of the base on each guard text.
    pub guard_base: Vec<f32>,
    /// Loss of the adapter on each guard text.
    pub guard_adapted: Vec<f32>,
    /// Tokens of each held-out text, the weights of its losses.
    pub held_out_tokens: Vec<u32>,
    /// Training texts whose rare strings the adapter reproduces more often than the base.
    pub canaries_extracted: u32,
    /// CPU seconds spent.
    pub cpu_seconds: f64,
}
