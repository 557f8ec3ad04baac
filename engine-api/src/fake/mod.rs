//! An engine without weights: hashed n-gram embeddings and a small n-gram infiller. Honest, deterministic, quick; for tests.
//!
//! It keeps every promise of the [`Engine`] trait, so that what is built on it is built on the real thing's manners. What it
//! writes is word salad of its conditions and adapters; nobody should use it for more than tests.

mod ngram;
pub mod program;
mod training;

use std::path::Path;
use std::time::Instant;

use mneme_base::{ContentHash, Embedding, EmbeddingGeneration};

use crate::engine::{CancelToken, Engine, EngineError};
use crate::types::{
    AdapterLevel, CANVAS_TOKENS_MAX, CanvasEvent, Constraint, EmbedPurpose, EngineInfo, GenerateRequest, Generation,
    GenerationMode, ScoreItem, ScoreOutcome, ScoredToken, Segment, TokenTrace, TrainEvent, TrainJob, TrainOutcome,
};
use ngram::{Model, words};
use training::{Learning, replace};

/// Dimensions of the hashed embeddings.
pub const FAKE_DIMENSIONS: usize = 256;
/// The file of an adapter in its folder: the texts' words, one text a line.
const ADAPTER_FILE: &str = "adapter.txt";
/// What the base model has read.
const BASE_TEXT: &str = include_str!("base.txt");
/// The share of an adapter's or a condition's model when it is mixed with the base.
const GUIDE_SHARE: f64 = 0.7;

/// The engine without weights.
#[derive(Debug)]
pub struct FakeEngine {
    base: Model,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self { base: Model::of(BASE_TEXT.lines()) }
    }
}

impl FakeEngine {
    fn base_hash() -> ContentHash {
        ContentHash::of(BASE_TEXT.as_bytes())
    }

    fn load_adapter(folder: &str) -> Result<Model, EngineError> {
        Ok(Model::of(Self::adapter_lines(folder)?.lines()))
    }

    fn adapter_lines(folder: &str) -> Result<String, EngineError> {
        fs_err::read_to_string(Path::new(folder).join(ADAPTER_FILE))
            .map_err(|error| EngineError::Load { what: String::from("adapter"), problem: error.to_string() })
    }

    /// The models that take part in a generation, with their shares; the shares sum to 1.
    fn mixture(&self, request: &GenerateRequest) -> Result<Vec<(Model, f64)>, EngineError> {
        let mut models = Vec::new();
        let mut rest = 1.0;
        if !request.conditions.is_empty() {
            let texts = request.conditions.iter().map(|condition| condition.text.as_str());
            models.push((Model::of(texts), GUIDE_SHARE * rest));
            rest *= 1.0 - GUIDE_SHARE;
        }
        for adapter in &request.adapters {
            let share = f64::from(adapter.weight * adapter.scale).clamp(0.0, 1.0) * GUIDE_SHARE * rest;
            models.push((Self::load_adapter(&adapter.folder)?, share));
            rest -= share;
        }
        models.push((self.base.clone(), rest.max(0.0)));
        Ok(models)
    }
}

fn validate(request: &GenerateRequest) -> Result<(), EngineError> {
    let holes: u64 = request
        .canvas
        .iter()
        .map(|segment| match segment {
            Segment::Hole { tokens_max, .. } => u64::from(*tokens_max),
            Segment::Text(_) => 0,
        })
        .sum();
    if holes == 0 {
        return Err(EngineError::invalid("canvas", "has no hole to fill"));
    }
    if holes > u64::from(CANVAS_TOKENS_MAX) {
        return Err(EngineError::invalid(
            "canvas",
            format!("has {holes} tokens in holes, at most {CANVAS_TOKENS_MAX} are allowed"),
        ));
    }
    for segment in &request.canvas {
        if let Segment::Hole { tokens_min, tokens_max } = segment
            && tokens_min > tokens_max
        {
            return Err(EngineError::invalid("canvas", format!("has a hole of {tokens_min} to {tokens_max} tokens")));
        }
    }
    if !(0.0..=2.0).contains(&request.temperature) {
        return Err(EngineError::invalid("temperature", format!("is {}, allowed are 0 to 2", request.temperature)));
    }
    if request.constraint.is_some() && !is_string_schema(request) {
        return Err(EngineError::Unsupported {
            engine: "fake".into(),
            feature: String::from("constraints other than the JSON schema of a string"),
        });
    }
    Ok(())
}

/// Whether the holes must be JSON strings: the one constraint that words can be brought into afterwards.
fn is_string_schema(request: &GenerateRequest) -> bool {
    let Some(Constraint::JsonSchema(schema)) = &request.constraint else { return false };
    serde_json::from_str::<serde_json::Value>(schema)
        .is_ok_and(|schema| schema == serde_json::json!({"type": "string"}))
}

impl Engine for FakeEngine {
    fn info(&self) -> EngineInfo {
        EngineInfo {
            name: String::from("fake"),
            embedding_generation: EmbeddingGeneration(String::from("fake-hashed-ngrams/1")),
            embedding_dimensions: FAKE_DIMENSIONS as u32,
            model: String::from("fake trigrams"),
            base_hash: Self::base_hash(),
            canvas_tokens_max: CANVAS_TOKENS_MAX,
            trains: vec![AdapterLevel::ControlNet, AdapterLevel::Lora, AdapterLevel::Layers],
        }
    }

    fn embed(&self, texts: &[String], _: EmbedPurpose, cancel: &CancelToken) -> Result<Vec<Embedding>, EngineError> {
        texts
            .iter()
            .map(|text| {
                cancel.check()?;
                Ok(hashed_embedding(text))
            })
            .collect()
    }

    fn generate(
        &self,
        request: &GenerateRequest,
        observe: &mut dyn FnMut(CanvasEvent),
        cancel: &CancelToken,
    ) -> Result<Generation, EngineError> {
        validate(request)?;
        let models = self.mixture(request)?;
        let mut random = SplitMix(request.seed);
        let mut text = String::new();
        let mut fills = Vec::new();
        let mut tokens = Vec::new();
        let holes_total: u32 = request.canvas.iter().map(hole_tokens).sum();
        for segment in &request.canvas {
            let Segment::Hole { tokens_max, .. } = segment else {
                if let Segment::Text(fixed) = segment {
                    text.push_str(fixed);
                }
                continue;
            };
            let mut fill = String::new();
            for _ in 0..*tokens_max {
                cancel.check()?;
                let choice = ngram::next_word(&models, &words(&format!("{text}{fill}")), request.temperature, || {
                    random.next_unit()
                });
                let piece = if text.is_empty() && fill.is_empty() || (text.ends_with(' ') && fill.is_empty()) {
                    choice.word.clone()
                } else {
                    format!(" {}", choice.word)
                };
                fill.push_str(&piece);
                tokens.push(TokenTrace {
                    text: piece,
                    confidence: choice.probability as f32,
                    ambiguity: choice.entropy as f32,
                    surprise: choice.surprise as f32,
                    step: tokens.len() as u32,
                });
                let decided = tokens.len() as u32;
                let left = "░".repeat((holes_total - decided) as usize);
                observe(CanvasEvent {
                    step: decided,
                    steps_total: holes_total,
                    canvas: format!("{text}{fill}{left}"),
                    decided,
                    holes: holes_total,
                });
            }
            if is_string_schema(request) {
                fill = serde_json::Value::String(fill).to_string();
            }
            text.push_str(&fill);
            fills.push(fill);
        }
        let steps = tokens.len() as u32;
        Ok(Generation {
            text,
            fills,
            tokens,
            mode: GenerationMode::Ar,
            steps,
            acceptance: None,
            adapters: request.adapters.iter().map(|adapter| (adapter.id, adapter.weight)).collect(),
            disagreement: 0.0,
            finish: String::from("length"),
        })
    }

    fn score(&self, items: &[ScoreItem], cancel: &CancelToken) -> Result<Vec<ScoreOutcome>, EngineError> {
        items
            .iter()
            .map(|item| {
                cancel.check()?;
                let mut models = vec![(Model::of([item.context.as_str()]), 0.5), (self.base.clone(), 0.5)];
                if let Some(adapter) = &item.adapter {
                    let share = f64::from(adapter.scale).clamp(0.0, 1.0) * GUIDE_SHARE;
                    models.iter_mut().for_each(|(_, other)| *other *= 1.0 - share);
                    models.push((Self::load_adapter(&adapter.folder)?, share));
                }
                let costs = ngram::costs(&models, &item.text);
                let detail = if item.detail { detail(&item.text, &costs) } else { Vec::new() };
                Ok(ScoreOutcome { log_likelihood: -costs.iter().sum::<f64>(), tokens: costs.len() as u32, detail })
            })
            .collect()
    }

    fn train(
        &self,
        job: &TrainJob,
        observe: &mut dyn FnMut(TrainEvent),
        cancel: &CancelToken,
    ) -> Result<TrainOutcome, EngineError> {
        let started = Instant::now();
        if job.train.is_empty() || job.held_out.is_empty() {
            return Err(EngineError::invalid("job", "needs texts to learn and texts to judge on"));
        }
        let parent = job.parent.as_ref().map(|parent| Self::adapter_lines(&parent.folder)).transpose()?;
        let parent_model = parent.as_ref().map(|lines| Model::of(lines.lines()));
        let folder = Path::new(&job.folder);
        fs_err::create_dir_all(folder).map_err(|error| EngineError::Internal { reason: error.to_string() })?;
        let total = job.train.len();
        let mut learning = Learning::begin_or_resume(job, parent.as_deref().unwrap_or_default());
        while learning.step(&job.train) {
            learning.save_when_due(folder)?;
            cancel.check()?;
            let step = (total - learning.left()) as u32;
            observe(TrainEvent { step, steps_total: total as u32, loss: 0.0, phase: "train".into() });
        }
        let lines = learning.into_lines();
        replace(&folder.join(ADAPTER_FILE), lines.as_bytes())?;
        training::forget_checkpoint(folder)?;
        let share = f64::from(job.scale).clamp(0.0, 1.0) * GUIDE_SHARE;
        let mix = |model: Model| vec![(model, share), (self.base.clone(), 1.0 - share)];
        let base = vec![(self.base.clone(), 1.0)];
        let adapted = mix(Model::of(lines.lines()));
        let placebo = mix(Model::of(job.placebo.iter().map(|text| text.text.as_str())));
        let losses = |models: &[(Model, f64)], texts: &[crate::types::TrainText]| -> Vec<f32> {
            let loss = |text: &crate::types::TrainText| {
                let (nats, tokens) = ngram::cross_entropy(models, &text.text);
                (nats / f64::from(tokens.max(1))) as f32
            };
            texts.iter().map(loss).collect()
        };
        Ok(TrainOutcome {
            adapter: job.adapter,
            level: job.level,
            base_hash: Self::base_hash(),
            adapter_hash: ContentHash::of(lines.as_bytes()),
            bytes: lines.len() as u64,
            parameters: lines.split_whitespace().count() as u64,
            held_out_base: losses(&base, &job.held_out),
            held_out_adapted: losses(&adapted, &job.held_out),
            held_out_placebo: if job.placebo.is_empty() { Vec::new() } else { losses(&placebo, &job.held_out) },
            held_out_retrieval: Vec::new(),
            held_out_retrieval_adapted: Vec::new(),
            held_out_parent: parent_model.map_or_else(Vec::new, |model| losses(&mix(model), &job.held_out)),
            guard_base: losses(&base, &job.guard),
            guard_adapted: losses(&adapted, &job.guard),
            held_out_tokens: job.held_out.iter().map(|text| words(&text.text).len() as u32).collect(),
            canaries_extracted: 0,
            cpu_seconds: started.elapsed().as_secs_f64(),
        })
    }
}

/// Each word as a token. The mixture is over words that it knows and spelling, so it has no entropy worth telling.
fn detail(text: &str, costs: &[f64]) -> Vec<ScoredToken> {
    let token = |(word, cost): (String, &f64)| {
        let hash = ContentHash::of(word.as_bytes());
        let bytes = hash.as_bytes();
        ScoredToken {
            id: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            bytes: word.len() as u32,
            log_likelihood: -*cost as f32,
            entropy: 0.0,
            agreement: 1.0,
            top: 1.0,
        }
    };
    words(text).into_iter().zip(costs).map(token).collect()
}

fn hole_tokens(segment: &Segment) -> u32 {
    match segment {
        Segment::Hole { tokens_max, .. } => *tokens_max,
        Segment::Text(_) => 0,
    }
}

/// Signed feature hashing of words and their character trigrams.
fn hashed_embedding(text: &str) -> Embedding {
    let mut components = vec![0.0_f32; FAKE_DIMENSIONS];
    let mut add = |feature: &str, weight: f32| {
        let hash = ContentHash::of(feature.as_bytes());
        let bytes = hash.as_bytes();
        let slot = usize::from(bytes[0]) % FAKE_DIMENSIONS;
        components[slot] += if bytes[1] & 1 == 0 { weight } else { -weight };
    };
    // A constant feature gives even an empty text a direction.
    add("\u{0}", 0.1);
    for word in words(&text.to_lowercase()) {
        add(&word, 1.0);
        let padded: Vec<char> = format!("<{word}>").chars().collect();
        for trigram in padded.windows(3) {
            add(&trigram.iter().collect::<String>(), 0.3);
        }
    }
    let fallback = || {
        let mut unit = vec![0.0_f32; FAKE_DIMENSIONS];
        unit[0] = 1.0;
        Embedding::normalized(unit).expect("a unit vector has a direction")
    };
    Embedding::normalized(components).unwrap_or_else(|_| fallback())
}

/// SplitMix64 (Steele et al., 2014): enough for a fake, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next_unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TrainText;

    fn texts(lines: &[&str]) -> Vec<TrainText> {
        lines.iter().map(|line| TrainText { memory: String::new(), text: (*line).to_owned() }).collect()
    }

    #[test]
    fn similar_texts_are_nearer_than_different_ones() {
        let engine = FakeEngine::default();
        let all = ["the cat sat on the mat", "a cat sits on a mat", "quarterly tax returns"].map(String::from);
        let embeddings = engine.embed(&all, EmbedPurpose::Document, &CancelToken::default()).unwrap();
        assert!(embeddings[0].cosine(&embeddings[1]) > embeddings[0].cosine(&embeddings[2]));
    }

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_another() {
        let engine = FakeEngine::default();
        let mut request = GenerateRequest::continuation("the memory of", 12);
        request.temperature = 1.0;
        let run =
            |request: &GenerateRequest| engine.generate(request, &mut |_| {}, &CancelToken::default()).unwrap().text;
        let first = run(&request);
        assert_eq!(first, run(&request));
        request.seed = 1;
        assert_ne!(first, run(&request));
    }

    #[test]
    fn conditions_change_what_is_written() {
        let engine = FakeEngine::default();
        let mut request = GenerateRequest::continuation("the password of the greenhouse is", 2);
        request.conditions = vec![crate::types::Condition {
            text: "the password of the greenhouse is sesame open".into(),
            embedding: None,
        }];
        let text = engine.generate(&request, &mut |_| {}, &CancelToken::default()).unwrap().text;
        assert!(text.ends_with("sesame open"), "{text}");
    }

    #[test]
    fn a_cancelled_generation_stops() {
        let engine = FakeEngine::default();
        let token = CancelToken::default();
        let mut seen = 0;
        let mut observe = |_| {
            seen += 1;
            if seen == 3 {
                token.cancel();
            }
        };
        let result = engine.generate(&GenerateRequest::continuation("a", 100), &mut observe, &token.clone());
        assert_eq!(result, Err(EngineError::Cancelled));
        assert_eq!(seen, 3);
    }

    #[test]
    fn bad_parameters_are_refused_in_words() {
        let engine = FakeEngine::default();
        let mut request = GenerateRequest::continuation("a", 4);
        request.temperature = f32::NAN;
        let error = engine.generate(&request, &mut |_| {}, &CancelToken::default()).unwrap_err();
        assert_eq!(error.to_string(), "temperature is NaN, allowed are 0 to 2");
        request.canvas.clear();
        request.temperature = 0.0;
        let error = engine.generate(&request, &mut |_| {}, &CancelToken::default()).unwrap_err();
        assert_eq!(error.to_string(), "canvas has no hole to fill");
    }

    #[test]
    fn training_on_the_same_author_beats_the_base_and_the_placebo() {
        let folder = tempfile::tempdir().unwrap();
        let engine = FakeEngine::default();
        let job = TrainJob {
            adapter: mneme_base::AdapterId::from_bytes([1; 16]),
            level: AdapterLevel::Lora,
            train: texts(&["up betimes and to the office", "up betimes and by water to the office all the morning"]),
            held_out: texts(&["up betimes and to the office all the morning"]),
            replay: Vec::new(),
            guard: texts(&["memory is what remains"]),
            placebo: texts(&["compile the kernel module with debug symbols", "link the object files"]),
            parent: None,
            steps_max: 10,
            scale: 1.0,
            seed: 0,
            folder: folder.path().join("job").display().to_string(),
        };
        let outcome = engine.train(&job, &mut |_| {}, &CancelToken::default()).unwrap();
        assert!(outcome.held_out_adapted[0] < outcome.held_out_base[0]);
        assert!(outcome.held_out_adapted[0] < outcome.held_out_placebo[0]);
    }
}
