//! Scores texts by the log-likelihood of the causal mode. Texts of one context share its keys and values and one window.

use std::sync::{Arc, Mutex};

use mneme_engine_api::{AdapterUse, CancelToken, EngineError, ScoreItem, ScoreOutcome, ScoredToken};

use crate::error::Result;
use crate::generate::stream::{Judged, Stream};
use crate::generator::{Generator, SharedAdapter};
use crate::nn::adapter::Adapter;

/// A context is cut to its last tokens: what is near counts most.
const CONTEXT_TOKENS_MAX: usize = 1_024;
/// A text is cut to its first tokens; the outcome says how many were scored.
const TEXT_TOKENS_MAX: usize = 1_024;
/// Tokens of one window: attention among the texts of a window is computed and hidden, so that larger is not faster.
const WINDOW_TOKENS: usize = 512;

/// Scores every item, in its order.
///
/// `read` loads the adapter of an item.
pub fn score(
    generator: &Generator,
    items: &[ScoreItem],
    read: &dyn Fn(&AdapterUse) -> Result<Adapter>,
    cancel: &CancelToken,
) -> Result<Vec<ScoreOutcome>> {
    let mut outcomes = vec![ScoreOutcome::default(); items.len()];
    let mut order: Vec<usize> = (0..items.len()).collect();
    let key = |index: &usize| {
        let adapter = items[*index].adapter.as_ref().map(|adapter| (&adapter.folder, adapter.scale.to_bits()));
        (adapter, &items[*index].context, items[*index].detail)
    };
    order.sort_by(|a, b| key(a).cmp(&key(b)).then(a.cmp(b)));
    for group in order.chunk_by(|a, b| key(a) == key(b)) {
        let mut context = generator.encode(&items[group[0]].context)?;
        context.drain(..context.len().saturating_sub(CONTEXT_TOKENS_MAX));
        context.insert(0, generator.special.document);
        let mut texts = Vec::with_capacity(group.len());
        for index in group {
            let mut text = generator.encode(&items[*index].text)?;
            text.truncate(TEXT_TOKENS_MAX);
            texts.push(text);
        }
        let mut adapters: Vec<Arc<SharedAdapter>> = generator.adapter_zero.iter().cloned().collect();
        if let Some(adapter) = &items[group[0]].adapter {
            adapters.push(Arc::new(Mutex::new(read(adapter)?)));
        }
        let capacity = context.len() + WINDOW_TOKENS.max(TEXT_TOKENS_MAX);
        let mut stream = Stream::new(generator, adapters, capacity)?;
        stream.feed(&context, &mut || Ok(cancel.check()?))?;
        let mut rest = texts.as_slice();
        let mut next = group.iter();
        while !rest.is_empty() {
            cancel.check()?;
            let (window, later) = rest.split_at(fitting(rest));
            rest = later;
            let window: Vec<&[u32]> = window.iter().map(Vec::as_slice).collect();
            let (likelihoods, mut details) = if items[group[0]].detail {
                let judged = stream.judged(&window)?;
                let likelihoods = judged.iter().map(|one| one.iter().map(|token| token.likelihood).collect()).collect();
                let detail = |(tokens, judged): (&&[u32], &Vec<Judged>)| detail(generator, tokens, judged);
                (likelihoods, window.iter().zip(&judged).map(detail).collect::<Result<Vec<_>>>()?)
            } else {
                (stream.likelihoods(&window)?, vec![Vec::new(); window.len()])
            };
            for (likelihoods, detail) in likelihoods.iter().zip(details.drain(..)) {
                let sum: f64 = likelihoods.iter().map(|l| f64::from(*l)).sum();
                if !sum.is_finite() {
                    return Err(EngineError::Internal { reason: "network gave no likelihood".into() }.into());
                }
                let index = next.next().expect("the stream returns one result for each text");
                let tokens = likelihoods.len() as u32;
                outcomes[*index] = ScoreOutcome { log_likelihood: sum.min(0.0), tokens, detail };
            }
        }
    }
    Ok(outcomes)
}

/// Every token of a text with its length in it.
fn detail(generator: &Generator, tokens: &[u32], judged: &[Judged]) -> Result<Vec<ScoredToken>> {
    let one = |(id, judged): (&u32, &Judged)| -> Result<ScoredToken> {
        let bytes = generator.tokenizer.token_bytes(*id).map_or(0, <[u8]>::len) as u32;
        let Judged { likelihood: log_likelihood, entropy, agreement, top } = *judged;
        Ok(ScoredToken { id: *id, bytes, log_likelihood, entropy, agreement, top })
    };
    tokens.iter().zip(judged).map(one).collect()
}

/// How many of the next texts fit one window.
fn fitting(texts: &[Vec<u32>]) -> usize {
    let mut sum = 0;
    let fits = |text: &&Vec<u32>| {
        sum += text.len();
        sum <= WINDOW_TOKENS
    };
    texts.iter().take_while(fits).count().max(1)
}
