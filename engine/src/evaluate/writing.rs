//! What the engine writes, through the same requests that clients make: holes filled, and how many drafts were kept.

use mneme_diffusion::random::{below, seeded};
use mneme_engine_api::{CancelToken, Engine as _, GenerateRequest, GenerationMode, Segment};

use crate::engine::ArrowEngine;
use crate::error::Result;
use crate::evaluate::interval::{Estimate, ratio};
use crate::evaluate::overlap::{is_exact, rouge_l};

/// Tokens before a hole.
const BEFORE: usize = 96;
/// Tokens after a hole.
const AFTER: usize = 32;
/// Tokens of a text that drafts continue.
const PROMPT: usize = 64;
/// Tokens that are drafted and verified for each text.
const CONTINUED: u32 = 64;

/// A hole in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// Text before it.
    pub before: String,
    /// What stood in it.
    pub wanted: String,
    /// Text after it.
    pub after: String,
    /// Its tokens.
    pub tokens: u32,
}

/// How a way of filling holes fared.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Filled {
    /// The way.
    pub name: String,
    /// Tokens of a hole.
    pub tokens: u32,
    /// Share of holes that were written back.
    pub exact: Estimate,
    /// ROUGE-L F1 against what stood there.
    pub rouge_l: Estimate,
    /// ROUGE-L over that of the first way, paired by hole.
    pub gain: Estimate,
    /// Evaluations of the network for each hole.
    pub evaluations: f64,
    /// What was written, in order.
    #[serde(skip)]
    pub texts: Vec<String>,
}

/// A way of filling holes.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// What the table says.
    pub name: String,
    /// How tokens are decided.
    pub mode: GenerationMode,
    /// Diffusion steps; 0 lets the engine choose.
    pub steps: u32,
    /// Whether the text after the hole is shown.
    pub sees_after: bool,
}

/// Cuts one hole out of each text of tokens, the document token first; texts that are too short have none.
pub fn gaps(engine: &ArrowEngine, texts: &[Vec<i64>], tokens: usize, seed: u64) -> Result<Vec<Gap>> {
    let generator = engine.generator()?;
    let mut gaps = Vec::new();
    for (number, text) in texts.iter().enumerate() {
        let text: Vec<u32> = text.iter().map(|token| *token as u32).collect();
        if text.len() < 2 + BEFORE + tokens + AFTER {
            continue;
        }
        let mut rng = seeded(seed ^ (number as u64) << 16 ^ tokens as u64);
        let start = 1 + BEFORE + below(&mut rng, text.len() - BEFORE - tokens - AFTER);
        let start = start.min(text.len() - tokens - AFTER);
        gaps.push(Gap {
            before: generator.decode(&text[start - BEFORE..start])?,
            wanted: generator.decode(&text[start..start + tokens])?,
            after: generator.decode(&text[start + tokens..start + tokens + AFTER])?,
            tokens: tokens as u32,
        });
    }
    Ok(gaps)
}

/// Fills every hole in every way, greedily.
pub fn fill(engine: &ArrowEngine, gaps: &[Gap], ways: &[Way], seed: u64, cancel: &CancelToken) -> Result<Vec<Filled>> {
    let mut filled: Vec<Filled> = Vec::new();
    let mut first: Vec<f64> = Vec::new();
    for way in ways {
        let (mut exact, mut scores, mut texts, mut evaluations) = (Vec::new(), Vec::new(), Vec::new(), 0.0);
        for gap in gaps {
            let hole = Segment::Hole { tokens_min: gap.tokens, tokens_max: gap.tokens };
            let mut canvas = vec![Segment::Text(gap.before.clone()), hole];
            if way.sees_after {
                canvas.push(Segment::Text(gap.after.clone()));
            }
            let request = GenerateRequest {
                canvas,
                mode: way.mode,
                steps: way.steps,
                temperature: 0.0,
                ..GenerateRequest::continuation("", 1)
            };
            let made = engine.generate(&request, &mut |_| {}, cancel)?;
            let written = made.fills.first().cloned().unwrap_or_default();
            exact.push((f64::from(is_exact(&written, &gap.wanted)), 1.0));
            scores.push(rouge_l(&written, &gap.wanted));
            evaluations += f64::from(made.steps);
            texts.push(written);
        }
        if first.is_empty() {
            first.clone_from(&scores);
        }
        let gains: Vec<(f64, f64)> = scores.iter().zip(&first).map(|(own, first)| (own - first, 1.0)).collect();
        let scores: Vec<(f64, f64)> = scores.into_iter().map(|score| (score, 1.0)).collect();
        filled.push(Filled {
            name: way.name.clone(),
            tokens: gaps.first().map_or(0, |gap| gap.tokens),
            exact: ratio(&exact, seed),
            rouge_l: ratio(&scores, seed),
            gain: ratio(&gains, seed),
            evaluations: evaluations / gaps.len().max(1) as f64,
            texts,
        });
    }
    Ok(filled)
}

/// Share of drafted tokens that were kept, without the exact first one of each draft.
pub fn acceptance(
    engine: &ArrowEngine,
    texts: &[Vec<i64>],
    block: u32,
    temperature: f32,
    seed: u64,
    cancel: &CancelToken,
) -> Result<Estimate> {
    let generator = engine.generator()?;
    let mut kept = Vec::new();
    for text in texts {
        let prompt: Vec<u32> = text.iter().skip(1).take(PROMPT).map(|token| *token as u32).collect();
        let prompt = generator.decode(&prompt)?;
        let hole = Segment::Hole { tokens_min: CONTINUED, tokens_max: CONTINUED };
        let request = GenerateRequest {
            canvas: vec![Segment::Text(prompt), hole],
            mode: GenerationMode::Auto,
            block,
            temperature,
            seed,
            ..GenerateRequest::continuation("", 1)
        };
        let made = engine.generate(&request, &mut |_| {}, cancel)?;
        if let Some(rate) = made.acceptance {
            kept.push((f64::from(rate), 1.0));
        }
    }
    Ok(ratio(&kept, seed))
}
