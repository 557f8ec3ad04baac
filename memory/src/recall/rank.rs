//! The ranking itself: rows that are allowed, the rankings of each view, their fusion, variety, explanation.

use mneme_base::{Embedding, MemoryId};

use super::confidence::{ABSTAIN_BELOW, Features, confidence};
use super::fusion::{Ranking, fuse, sort_best};
use super::query::{ParsedQuery, has_phrase, words};
use super::{RankedHit, RankedRecall, RecallIndex};
use crate::domain::{HitExplanation, Memory, RecallFilter, RecallQuery, Signal};
use crate::index::bitmap::Bitmap;
use crate::index::columns::{Bounds, Columns, Interner, TrustMin};
use crate::index::text::{Bm25, TextScores, metadata_term};
use crate::index::tokens::{Field, Tokenizer, term_hash};

/// How the rankings are weighed. The defaults are what cross-validation over chats chose.
#[derive(Debug, Clone, PartialEq)]
pub struct RankingOptions {
    /// BM25 of a memory's own text.
    pub bm25: Bm25,
    /// Rank constant of the fusion.
    pub rrf_k: f32,
    /// Weight of BM25.
    pub text: f32,
    /// Weight of BM25 smoothed over neighbours.
    pub window: f32,
    /// Weight of the vectors of own texts.
    pub dense: f32,
    /// Weight of the vectors of texts with context.
    pub dense_context: f32,
    /// How much of a neighbour's BM25 score spreads to a memory.
    pub spread: f32,
}

impl Default for RankingOptions {
    fn default() -> Self {
        Self {
            bm25: Bm25 { k1: 1.2, b: 0.75 },
            rrf_k: 20.0,
            text: 1.0,
            window: 1.0,
            dense: 1.0,
            dense_context: 1.0,
            spread: 0.5,
        }
    }
}

/// Each ranking is followed to this depth, or four times the limit.
const DEPTH_MIN: usize = 200;

/// Ranks. See [`RecallIndex::recall`].
pub(super) fn rank(
    index: &RecallIndex,
    query: &RecallQuery,
    parsed: &ParsedQuery,
    embedding: Option<&Embedding>,
    fetch: &dyn Fn(MemoryId) -> Option<Memory>,
) -> RankedRecall {
    let mut answer = RankedRecall::default();
    let vectors = embedding.filter(|e| e.dimensions() == index.own.dimensions() && index.own.count() > 0);
    if vectors.is_none() && !index.is_empty() || embedding.is_none() {
        answer.degraded.push("embedding".into());
    }
    let allowed = allowed(index, query);
    let depth = (query.limit * 4).max(DEPTH_MIN);
    let options = &index.options.ranking;
    let scores = index.text.score(&parsed.terms, &allowed, options.bm25);
    let mut rankings = vec![text_ranking(&scores, depth, options.text)];
    rankings.push(window_ranking(index, &scores, &allowed, depth, options));
    if let Some(embedding) = vectors {
        for (name, view, weight) in
            [("dense", &index.own, options.dense), ("dense_context", &index.context, options.dense_context)]
        {
            let rows = view
                .top(embedding, depth, &allowed, index.options.scan_threads)
                .into_iter()
                .map(|s| (s.row, s.score))
                .collect();
            rankings.push(Ranking { name, weight, rows });
        }
    }
    let mut fused = fuse(&rankings, options.rrf_k);
    if !parsed.phrases.is_empty() {
        keep_phrases(index, parsed, fetch, &allowed, &mut fused);
    }
    diversify(index, &mut fused, query);
    fused.truncate(query.limit);
    answer.confidence =
        if fused.is_empty() { 0.0 } else { confidence(&features(index, parsed, &scores, vectors, &fused)) };
    answer.abstain = answer.confidence < ABSTAIN_BELOW;
    let explain = |row| explanation(index, parsed, &rankings, options.rrf_k, row, fetch);
    answer.hits = fused
        .iter()
        .map(|(row, score)| RankedHit {
            id: index.columns.id(*row),
            score: *score,
            explanation: query.explain.then(|| explain(*row)),
        })
        .collect();
    answer
}

/// The rows that the question's filters let through.
fn allowed(index: &RecallIndex, query: &RecallQuery) -> Bitmap {
    let columns = &index.columns;
    let filter = &query.filter;
    let namespaces: Vec<u32> =
        query.namespaces.iter().filter_map(|name| columns.namespace_names.get(name.as_str())).collect();
    let bounds = Bounds {
        kinds: filter.kinds.clone(),
        sources: numbers(&filter.sources, |source| matching_sources(&columns.source_names, source)),
        speakers: numbers(&filter.speakers, |name| {
            columns.speaker_names.get(&name.to_lowercase()).into_iter().collect()
        }),
        threads: numbers(&filter.threads, |name| thread_numbers(columns, &namespaces, name)),
        trust_min: filter.trust_min.map(TrustMin).unwrap_or_default(),
        valid_after: filter.valid_after.map(mneme_base::Timestamp::as_millis),
        valid_before: filter.valid_before.map(mneme_base::Timestamp::as_millis),
        as_of: query.as_of.map(mneme_base::Timestamp::as_millis),
        quarantined: filter.include_quarantined,
        namespaces,
    };
    let mut allowed = columns.allowed(&bounds);
    if let Some(rows) = metadata_rows(index, filter) {
        allowed.intersect(&rows);
    }
    allowed
}

fn metadata_rows(index: &RecallIndex, filter: &RecallFilter) -> Option<Bitmap> {
    let entries = filter.metadata.iter().map(|(key, value)| metadata_term(key, value));
    index.text.rows_with_metadata(entries, index.columns.len())
}

fn numbers(names: &[String], find: impl Fn(&str) -> Vec<u32>) -> Option<Vec<u32>> {
    (!names.is_empty()).then(|| {
        let mut numbers: Vec<u32> = names.iter().flat_map(|name| find(name)).collect();
        numbers.sort_unstable();
        numbers
    })
}

fn thread_numbers(columns: &Columns, namespaces: &[u32], name: &str) -> Vec<u32> {
    namespaces.iter().filter_map(|namespace| columns.thread_number(*namespace, name)).collect()
}

fn matching_sources(names: &Interner, pattern: &str) -> Vec<u32> {
    match pattern.strip_suffix('*') {
        Some(prefix) => names.iter().filter(|(_, name)| name.starts_with(prefix)).map(|(number, _)| number).collect(),
        None => names.get(pattern).into_iter().collect(),
    }
}

fn text_ranking(scores: &TextScores, depth: usize, weight: f32) -> Ranking {
    let rows = scores.touched.iter().map(|row| (*row, scores.scores[*row as usize])).collect();
    Ranking { name: "bm25", weight, rows: best(rows, depth) }
}

/// BM25 with a share of the neighbours' scores: what a turn is about often stands in the turn before.
fn window_ranking(
    index: &RecallIndex,
    scores: &TextScores,
    allowed: &Bitmap,
    depth: usize,
    options: &RankingOptions,
) -> Ranking {
    let seeds = best(scores.touched.iter().map(|row| (*row, scores.scores[*row as usize])).collect(), 4 * depth);
    let mut sums = std::collections::HashMap::new();
    for (row, score) in seeds {
        *sums.entry(row).or_insert(0.0_f32) += score;
        for (place, near) in index.columns.neighbours(row, super::NEIGHBOUR_REACH).into_iter().enumerate() {
            if allowed.contains(near) {
                *sums.entry(near).or_insert(0.0) += score * options.spread.powi(1 + place as i32 / 2);
            }
        }
    }
    Ranking { name: "bm25_window", weight: options.window, rows: best(sums.into_iter().collect(), depth) }
}

fn best(mut rows: Vec<(u32, f32)>, depth: usize) -> Vec<(u32, f32)> {
    if rows.len() > depth {
        rows.select_nth_unstable_by(depth - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        rows.truncate(depth);
    }
    sort_best(&mut rows);
    rows
}

/// Keeps the rows whose text has every phrase. Rows of the text ranking come first; none is missed, because every row
/// that has the phrase has its words.
fn keep_phrases(
    index: &RecallIndex,
    parsed: &ParsedQuery,
    fetch: &dyn Fn(MemoryId) -> Option<Memory>,
    allowed: &Bitmap,
    fused: &mut Vec<(u32, f32)>,
) {
    let candidates = phrase_candidates(index, parsed, allowed);
    let known: std::collections::HashMap<u32, f32> = fused.iter().copied().collect();
    *fused = candidates
        .into_iter()
        .filter(|row| {
            fetch(index.columns.id(*row)).is_some_and(|memory| {
                let text = words(&memory.text, &index.tokenizer);
                parsed.phrases.iter().all(|phrase| has_phrase(&text, phrase))
            })
        })
        .map(|row| (row, known.get(&row).copied().unwrap_or(0.0)))
        .collect();
    sort_best(fused);
}

/// The allowed rows that have every indexed word of every phrase.
fn phrase_candidates(index: &RecallIndex, parsed: &ParsedQuery, allowed: &Bitmap) -> Vec<u32> {
    let mut rows = allowed.clone();
    for word in parsed.phrases.iter().flatten() {
        let hash = term_hash(Field::Text, &index.tokenizer.stem(word));
        if let Some(with_word) = index.text.rows_with_term(hash, word) {
            rows.intersect(&with_word);
        }
    }
    rows.rows().collect()
}

/// Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998, eq. 1) over the first `4 * limit` rows.
fn diversify(index: &RecallIndex, fused: &mut Vec<(u32, f32)>, query: &RecallQuery) {
    if query.diversity <= 0.0 || fused.len() < 2 {
        return;
    }
    let pool_size = (4 * query.limit).min(fused.len());
    let top = fused[0].1.max(f32::MIN_POSITIVE);
    let mut pool: Vec<(u32, f32, f32)> = fused[..pool_size].iter().map(|(row, score)| (*row, *score, 0.0)).collect();
    let mut chosen = Vec::with_capacity(query.limit);
    while chosen.len() < query.limit && !pool.is_empty() {
        let worth = |entry: &(u32, f32, f32)| (1.0 - query.diversity) * entry.1 / top - query.diversity * entry.2;
        let at = (0..pool.len()).max_by(|a, b| worth(&pool[*a]).total_cmp(&worth(&pool[*b])).then(b.cmp(a)));
        let (row, score, _) = pool.remove(at.expect("the pool is not empty"));
        for entry in &mut pool {
            entry.2 = entry.2.max(similarity(index, entry.0, row));
        }
        chosen.push((row, score));
    }
    *fused = chosen;
}

fn similarity(index: &RecallIndex, a: u32, b: u32) -> f32 {
    if index.own.contains(a) && index.own.contains(b) {
        index.own.similarity(a, b)
    } else {
        index.duplicates.similarity(a, b)
    }
}

fn features(
    index: &RecallIndex,
    parsed: &ParsedQuery,
    scores: &TextScores,
    embedding: Option<&Embedding>,
    fused: &[(u32, f32)],
) -> Features {
    let k1 = index.options.ranking.bm25.k1;
    let reachable: f32 = parsed
        .terms
        .iter()
        .zip(&scores.frequencies)
        .map(|(term, frequency)| term.weight * index.text.idf(*frequency as usize) * (k1 + 1.0))
        .sum();
    let top = fused.iter().map(|(row, _)| scores.scores[*row as usize]).fold(0.0, f32::max);
    let share = if reachable > 0.0 { top / reachable } else { 0.0 };
    let cosine = embedding.map_or(0.0, |e| fused.iter().map(|(row, _)| index.own.cosine(e, *row)).fold(0.0, f32::max));
    let found = scores.frequencies.iter().filter(|frequency| **frequency > 0).count();
    let coverage = if parsed.terms.is_empty() { 0.0 } else { found as f32 / parsed.terms.len() as f32 };
    Features { text_share: share, cosine, coverage, dense: embedding.is_some() }
}

fn explanation(
    index: &RecallIndex,
    parsed: &ParsedQuery,
    rankings: &[Ranking],
    k: f32,
    row: u32,
    fetch: &dyn Fn(MemoryId) -> Option<Memory>,
) -> HitExplanation {
    let signals = rankings
        .iter()
        .filter_map(|ranking| {
            let place = ranking.rows.iter().position(|(other, _)| *other == row)?;
            Some(Signal {
                name: ranking.name.into(),
                rank: place as u32 + 1,
                score: ranking.rows[place].1,
                contribution: ranking.contribution(place, k),
            })
        })
        .collect();
    let matched_terms =
        fetch(index.columns.id(row)).map_or_else(Vec::new, |memory| matched(parsed, &memory, &index.tokenizer));
    HitExplanation { signals, matched_terms }
}

fn matched(parsed: &ParsedQuery, memory: &Memory, tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = tokenizer.tokens(&memory.text);
    parsed
        .terms
        .iter()
        .filter(|term| tokens.iter().any(|t| t.term == term.term))
        .map(|term| term.term.clone())
        .collect()
}
