//! `mneme-engine bench --serve`: one call for each line of standard input, timed, so that a script can measure peers in turn.
//!
//! ```text
//! {"embed": ["text", "another"]}      -> {"ms": 1.2, "first": [0.1, ...]}
//! {"prefill": 128}                    -> reads so many tokens left to right, and the logits of the next one
//! {"decode": 64}                      -> after 16 tokens, writes so many one by one
//! {"step": 128}                       -> one diffusion step: a window that sees all of itself, logits of all its rows
//! ```

use std::io::{BufRead as _, Write as _};
use std::time::Instant;

use mneme_engine::ArrowEngine;
use mneme_engine::generate::stream::Stream;
use mneme_engine::generator::Generator;
use mneme_engine::nn::visibility::Visibility;
use mneme_engine_api::{CancelToken, EmbedPurpose, Engine as _};
use serde::Deserialize;
use serde_json::json;

use super::Failure;

/// Tokens that one call may ask for.
const TOKENS_MAX: usize = 2_048;
/// Tokens before the first that is written.
const DECODE_PREFIX: usize = 16;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Call {
    Embed(Vec<String>),
    Prefill(usize),
    Decode(usize),
    Step(usize),
}

pub(super) fn serve(engine: &ArrowEngine) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let call: Call = serde_json::from_str(&line?)?;
        let answer = match call {
            Call::Embed(texts) => {
                let started = Instant::now();
                let made = engine.embed(&texts, EmbedPurpose::Document, &CancelToken::default())?;
                json!({"ms": milliseconds(started), "first": made.first().map(mneme_base::Embedding::as_slice)})
            }
            Call::Prefill(tokens) => json!({"ms": prefill(engine.generator()?.as_ref(), bounded(tokens)?)?}),
            Call::Decode(tokens) => json!({"ms": decode(engine.generator()?.as_ref(), bounded(tokens)?)?}),
            Call::Step(tokens) => json!({"ms": step(engine.generator()?.as_ref(), bounded(tokens)?)?}),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn bounded(tokens: usize) -> Result<usize, Failure> {
    if (1..=TOKENS_MAX).contains(&tokens) {
        Ok(tokens)
    } else {
        Err(format!("{tokens} is not in 1..={TOKENS_MAX}").into())
    }
}

fn milliseconds(started: Instant) -> f64 {
    started.elapsed().as_secs_f64() * 1e3
}

fn window(tokens: usize) -> Vec<u32> {
    (0..tokens as u32).map(|i| 100 + i * 7).collect()
}

fn prefill(generator: &Generator, tokens: usize) -> Result<f64, Failure> {
    let mut stream = Stream::new(generator, Vec::new(), tokens)?;
    let window = window(tokens);
    let started = Instant::now();
    stream.feed(&window, &mut || Ok(()))?;
    std::hint::black_box(stream.logit_rows(stream.tail()?)?);
    Ok(milliseconds(started))
}

fn decode(generator: &Generator, tokens: usize) -> Result<f64, Failure> {
    let mut stream = Stream::new(generator, Vec::new(), DECODE_PREFIX + tokens)?;
    stream.feed(&window(DECODE_PREFIX), &mut || Ok(()))?;
    let started = Instant::now();
    for token in window(tokens) {
        let row = stream.logit_rows(stream.tail()?)?;
        std::hint::black_box(row.iter().copied().fold(f32::MIN, f32::max));
        stream.feed(&[token], &mut || Ok(()))?;
    }
    Ok(milliseconds(started))
}

fn step(generator: &Generator, tokens: usize) -> Result<f64, Failure> {
    let mut stream = Stream::new(generator, Vec::new(), tokens)?;
    let window = window(tokens);
    let started = Instant::now();
    let hidden = stream.peek(&window, Visibility::All)?;
    std::hint::black_box(stream.logit_rows(&hidden)?);
    Ok(milliseconds(started))
}
