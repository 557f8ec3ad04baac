//! The ranking itself: rows that are allowed, candidates, their weighted sum, phrases, variety, explanation.

use std::collections::BTreeMap;

use mneme_base::{Embedding, MemoryId};

use super::confidence::{ABSTAIN_BELOW, Features, confidence};
use super::features::{Candidates, DenseQuery, FEATURE_NAMES, FeatureRow, collect};
use super::fusion::{fuse, sort_best};
use super::query::{ParsedQuery, has_phrase, words};
use super::weights::{TEXT_ONLY, WITH_DENSE, Weights, score};
use super::{RankedHit, RankedRecall, RecallIndex};
use crate::domain::{HitExplanation, Memory, RecallFilter, RecallQuery, Signal};
use crate::index::bitmap::Bitmap;
use crate::index::columns::{Bounds, Columns, Interner, TrustMin};
use crate::index::text::{Bm25, TextScores, metadata_term};
use crate::index::tokens::{Field, Tokenizer, term_hash};

/// Texts that are looked at for the phrases of one question. Stop words are not indexed, so that a phrase of nothing else could be in
/// any memory; this many texts take some tens of milliseconds.
pub const PHRASE_ROWS_MAX: usize = 2_000;

/// The memories whose texts have to be looked at for the phrases of a question, and the phrases.
#[derive(Debug)]
pub struct PhraseCandidates {
    ids: Vec<MemoryId>,
    phrases: Vec<Vec<String>>,
    cut: bool,
}

/// The memories whose texts have the phrases of a question.
#[derive(Debug)]
pub struct WithPhrases {
    ids: Vec<MemoryId>,
    /// There were more candidates than are looked at.
    cut: bool,
}

/// How candidates are put into order.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// The weighted sum of the features.
    Learned {
        /// Weights where there is an embedding.
        with_dense: Box<Weights>,
        /// Weights where there is none.
        text_only: Box<Weights>,
    },
    /// Reciprocal rank fusion of these rankings: the plain baseline.
    Reciprocal {
        /// Names of rankings, see [`Candidates::rankings`].
        rankings: Vec<&'static str>,
        /// The rank constant.
        k: f32,
    },
}

/// How a recall ranks.
#[derive(Debug, Clone, PartialEq)]
pub struct RankingOptions {
    /// BM25 of a memory's own text. The defaults are Anserini's, made for short passages.
    pub bm25: Bm25,
    /// How candidates are put into order.
    pub method: Method,
}

impl Default for RankingOptions {
    fn default() -> Self {
        Self {
            bm25: Bm25 { k1: 0.9, b: 0.4 },
            method: Method::Learned { with_dense: Box::new(WITH_DENSE), text_only: Box::new(TEXT_ONLY) },
        }
    }
}

/// The candidates of a question, the text scores behind them, and the allowed rows.
pub(super) fn candidates(
    index: &RecallIndex,
    query: &RecallQuery,
    parsed: &ParsedQuery,
    embedding: Option<&Embedding>,
) -> (Candidates, TextScores, Bitmap) {
    let allowed = allowed(index, query, parsed);
    let scores = index.text.score(&parsed.terms, &allowed, index.options.ranking.bm25);
    let dense = embedding.and_then(|embedding| {
        Some(DenseQuery { own: index.own.query(embedding)?, context: index.context.query(embedding) })
    });
    (collect(index, parsed, &scores, dense.as_ref(), &allowed, query.limit), scores, allowed)
}

/// Ranks. See [`RecallIndex::recall`].
pub(super) fn rank(
    index: &RecallIndex,
    ranking: &RankingOptions,
    query: &RecallQuery,
    parsed: &ParsedQuery,
    embedding: Option<&Embedding>,
    phrases: Option<&WithPhrases>,
) -> RankedRecall {
    let mut answer = RankedRecall::default();
    let embedding = embedding.filter(|e| e.dimensions() == index.own.dimensions() || index.is_empty());
    if embedding.is_none() {
        answer.degraded.push("embedding".into());
    }
    let (candidates, scores, allowed) = candidates(index, query, parsed, embedding);
    let mut ranked = order(ranking, &candidates, embedding.is_some());
    if let Some(phrases) = phrases {
        keep_phrases(index, phrases, &allowed, &mut ranked);
        if phrases.cut {
            answer.degraded.push("phrase".into());
        }
    }
    if !ranked.is_empty() {
        let features = features(index, parsed, &scores, &candidates, &ranked, embedding.is_some());
        answer.confidence = confidence(&features);
    }
    answer.abstain = answer.confidence < ABSTAIN_BELOW;
    diversify(index, &mut ranked, query);
    ranked.truncate(query.limit);
    answer.hits = ranked
        .iter()
        .map(|(row, score)| RankedHit {
            id: index.columns.id(*row),
            score: *score,
            explanation: query.explain.then(|| explanation(ranking, &candidates, *row, embedding.is_some())),
        })
        .collect();
    if query.explain {
        answer.terms = parsed.terms.iter().map(|term| term.term.clone()).collect();
    }
    answer
}

/// The confidence of a recall with what it is made from.
pub(super) fn confidence_of(
    index: &RecallIndex,
    query: &RecallQuery,
    parsed: &ParsedQuery,
    embedding: Option<&Embedding>,
) -> (Features, f32) {
    let (candidates, scores, _) = candidates(index, query, parsed, embedding);
    let dense = embedding.is_some();
    let ranked = order(&index.options.ranking, &candidates, dense);
    let features = features(index, parsed, &scores, &candidates, &ranked, dense);
    (features, if ranked.is_empty() { 0.0 } else { confidence(&features) })
}

fn weights(options: &RankingOptions, dense: bool) -> Option<&Weights> {
    match &options.method {
        Method::Learned { with_dense, text_only } => Some(if dense { with_dense } else { text_only }),
        Method::Reciprocal { .. } => None,
    }
}

/// The candidates with their scores, best first.
fn order(options: &RankingOptions, candidates: &Candidates, dense: bool) -> Vec<(u32, f32)> {
    if let Method::Reciprocal { rankings, k } = &options.method {
        return fuse(candidates.rankings.iter().filter(|ranking| rankings.contains(&ranking.name)), *k);
    }
    let weights = weights(options, dense).expect("the method is learned");
    let rows = candidates.rows.iter().zip(&candidates.features);
    let mut ranked: Vec<(u32, f32)> = rows.map(|(row, features)| (*row, score(weights, features))).collect();
    sort_best(&mut ranked);
    ranked
}

/// The rows that the question's filters let through.
fn allowed(index: &RecallIndex, query: &RecallQuery, parsed: &ParsedQuery) -> Bitmap {
    let columns = &index.columns;
    let filter = &query.filter;
    let namespaces = parsed.namespaces.clone();
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

/// Keeps the rows whose text has every phrase. Those that no ranking saw come last.
fn keep_phrases(index: &RecallIndex, phrases: &WithPhrases, allowed: &Bitmap, fused: &mut Vec<(u32, f32)>) {
    let known: std::collections::HashMap<u32, f32> = fused.iter().copied().collect();
    *fused = phrases
        .ids
        .iter()
        .filter_map(|id| index.columns.row(*id))
        .filter(|row| allowed.contains(*row))
        .map(|row| (row, known.get(&row).copied().unwrap_or(0.0)))
        .collect();
    sort_best(fused);
}

/// The memories that may have the phrases of a question: those that have every indexed word of them. None is missed but where there
/// are too many; then the best by text, and of equals the latest, are taken.
pub(super) fn phrase_candidates(index: &RecallIndex, query: &RecallQuery, parsed: ParsedQuery) -> PhraseCandidates {
    let allowed = allowed(index, query, &parsed);
    let mut with_words = allowed.clone();
    for word in parsed.phrases.iter().flatten() {
        let hash = term_hash(Field::Text, &index.tokenizer.stem(word));
        if let Some(with_word) = index.text.rows_with_term(hash, word) {
            with_words.intersect(&with_word);
        }
    }
    let mut rows: Vec<u32> = with_words.rows().collect();
    let cut = rows.len() > PHRASE_ROWS_MAX;
    if cut {
        let scores = index.text.score(&parsed.terms, &allowed, index.options.ranking.bm25);
        let score = |row: u32| scores.rows[row as usize].score;
        rows.sort_unstable_by(|a, b| score(*b).total_cmp(&score(*a)).then(b.cmp(a)));
        rows.truncate(PHRASE_ROWS_MAX);
    }
    let ids = rows.into_iter().map(|row| index.columns.id(row)).collect();
    PhraseCandidates { ids, phrases: parsed.phrases, cut }
}

impl PhraseCandidates {
    /// Looks at the texts: which of them have every phrase.
    pub fn check(self, fetch: &dyn Fn(MemoryId) -> Option<Memory>) -> WithPhrases {
        let tokenizer = Tokenizer::new();
        let has_all = |memory: &Memory| {
            let text = words(&memory.text, &tokenizer);
            self.phrases.iter().all(|phrase| has_phrase(&text, phrase))
        };
        let ids = self.ids.iter().copied().filter(|id| fetch(*id).is_some_and(|memory| has_all(&memory))).collect();
        WithPhrases { ids, cut: self.cut }
    }
}

/// Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998, eq. 1) over the first `4 * limit` rows.
fn diversify(index: &RecallIndex, ranked: &mut Vec<(u32, f32)>, query: &RecallQuery) {
    if query.diversity <= 0.0 || ranked.len() < 2 {
        return;
    }
    ranked.truncate(4 * query.limit);
    let (top, bottom) = (ranked[0].1, ranked[ranked.len() - 1].1);
    let relevance = |score: f32| (score - bottom) / (top - bottom).max(f32::MIN_POSITIVE);
    let mut pool: Vec<(u32, f32, f32)> = ranked.iter().map(|(row, score)| (*row, *score, 0.0)).collect();
    let mut chosen = Vec::with_capacity(query.limit);
    while chosen.len() < query.limit && !pool.is_empty() {
        let worth = |entry: &(u32, f32, f32)| (1.0 - query.diversity) * relevance(entry.1) - query.diversity * entry.2;
        let at = (0..pool.len()).max_by(|a, b| worth(&pool[*a]).total_cmp(&worth(&pool[*b])).then(b.cmp(a)));
        let (row, score, _) = pool.remove(at.expect("the pool is not empty"));
        for entry in &mut pool {
            entry.2 = entry.2.max(similarity(index, entry.0, row));
        }
        chosen.push((row, score));
    }
    *ranked = chosen;
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
    candidates: &Candidates,
    ranked: &[(u32, f32)],
    dense: bool,
) -> Features {
    let reachable = scores.rarities.iter().sum::<f32>() * (index.options.ranking.bm25.k1 + 1.0);
    let first = ranked.iter().take(5).map(|(row, _)| scores.rows[*row as usize]);
    let text = first.clone().map(|found| found.score).fold(0.0, f32::max);
    let terms = first.fold(0, |terms, found| terms | found.terms);
    let share = |part: f32, whole: f32| if whole > 0.0 { (part / whole).min(1.0) } else { 0.0 };
    Features {
        text_share: share(text, reachable),
        coverage: share(scores.rarity(terms), scores.rarities.iter().sum()),
        cosine: if dense { candidates.cosine_max } else { 0.0 },
        words: parsed.terms.len(),
        dense,
    }
}

/// Which signals brought a row to its place: the features of each signal summed, with the row's place in its ranking.
fn explanation(options: &RankingOptions, candidates: &Candidates, row: u32, dense: bool) -> HitExplanation {
    let place = |name: &str| {
        let ranking = candidates.rankings.iter().find(|ranking| ranking.name == name)?;
        let at = ranking.rows.iter().position(|(other, _)| *other == row)?;
        Some((at as u32 + 1, ranking.rows[at].1))
    };
    let features = candidates.rows.binary_search(&row).ok().map(|at| candidates.features[at]);
    let mut signals: Vec<Signal> = match (&options.method, weights(options, dense), features) {
        (_, Some(weights), Some(features)) => contributions(weights, &features)
            .into_iter()
            .map(|(name, (value, contribution))| {
                let (rank, score) = place(name).unwrap_or((0, value));
                Signal { name: name.into(), rank, score, contribution }
            })
            .collect(),
        (Method::Reciprocal { rankings, k }, ..) => rankings
            .iter()
            .filter_map(|name| Some((name, place(name)?)))
            .map(|(name, (rank, score))| Signal {
                name: (*name).into(),
                rank,
                score,
                contribution: 1.0 / (k + rank as f32),
            })
            .collect(),
        _ => Vec::new(),
    };
    signals.sort_by(|a, b| b.contribution.total_cmp(&a.contribution));
    HitExplanation { signals, matched_terms: Vec::new() }
}

/// Per signal: its first feature, and what all of its features add to the score. Signals that add nothing are left out.
fn contributions(weights: &Weights, features: &FeatureRow) -> BTreeMap<&'static str, (f32, f32)> {
    let mut signals = BTreeMap::new();
    for (at, name) in FEATURE_NAMES.iter().enumerate() {
        let signal = name.split('.').next().unwrap_or(name);
        let entry = signals.entry(signal).or_insert((features[at], 0.0));
        entry.1 += weights[at] * features[at];
    }
    signals.retain(|_, (_, added)| *added != 0.0);
    signals
}

/// The terms that a memory's text has.
pub(crate) fn matched(terms: &[String], memory: &Memory, tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = tokenizer.tokens(&memory.text);
    terms.iter().filter(|term| tokens.iter().any(|token| token.term == **term)).cloned().collect()
}
