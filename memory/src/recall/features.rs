//! The candidates of a recall and what is known of each: the numbers that the ranking is a weighted sum of.
//!
//! Candidates are the best rows by text, their neighbours in the thread, and the best by each kind of vector. A feature is
//! between 0 and about 1, relative to the best candidate where it is a score, so that one set of weights serves questions of
//! all lengths. Features that need a thread, a speaker or a time are 0 for memories without.

use std::collections::{HashMap, HashSet};

use super::query::ParsedQuery;
use super::{RecallIndex, View, fusion};
use crate::index::bitmap::Bitmap;
use crate::index::columns::NONE;
use crate::index::cues::{ASKS, ENDS_ASKING, NAMES_NAME, NAMES_NUMBER, NAMES_TIME};
use crate::index::text::TextScores;
use crate::index::vectors::VectorQuery;

/// How many features there are.
pub const FEATURES: usize = 28;
/// The features of one candidate, in the order of [`FEATURE_NAMES`].
pub type FeatureRow = [f32; FEATURES];

/// What each feature is; the part before the dot is the signal that explanations show.
#[rustfmt::skip]
pub const FEATURE_NAMES: [&str; FEATURES] = [
    "bm25.score", "bm25_window.answer", "bm25_window.after", "bm25_window.before", "bm25_window.far",
    "dense.cosine", "dense_context.cosine", "dense.answer", "dense.near",
    "speaker.named", "speaker.text", "speaker.dense", "time.near", "time.text",
    "shape.asks", "shape.asks_text", "shape.length", "thread.text",
    "bm25.coverage", "bm25_window.coverage", "bm25.rarest",
    "shape.time_asked", "shape.time_asked_text", "shape.number_asked", "shape.name_asked",
    "shape.time", "shape.number", "shape.name",
];

/// Rows taken from each ranking, at least; four times the limit if that is more.
const DEPTH_MIN: usize = 200;
/// A text of this many terms is half as good as an endless one, by length alone: one-word turns answer little.
const LENGTH_HALF: f32 = 8.0;
/// The best texts of a thread that speak for the thread.
const THREAD_TEXTS: usize = 3;

/// A question's vectors for the two views.
#[derive(Debug)]
pub struct DenseQuery {
    /// For own texts.
    pub own: VectorQuery,
    /// For texts with context; `None` while no memory has one.
    pub context: Option<VectorQuery>,
}

/// The candidates with their features.
#[derive(Debug, Default)]
pub struct Candidates {
    /// Their rows, ascending.
    pub rows: Vec<u32>,
    /// Their features.
    pub features: Vec<FeatureRow>,
    /// The rankings that chose them, for fusion by places and for explanations: `bm25`, `bm25_window`, `dense`, `dense_context`.
    pub rankings: Vec<fusion::Ranking>,
    /// The largest cosine by own texts.
    pub cosine_max: f32,
}

/// Collects candidates and computes their features. Cost: the scans, then about a microsecond a candidate.
pub fn collect(
    index: &RecallIndex,
    parsed: &ParsedQuery,
    scores: &TextScores,
    dense: Option<&DenseQuery>,
    allowed: &Bitmap,
    limit: usize,
) -> Candidates {
    let depth = (4 * limit).max(DEPTH_MIN);
    let text = best(scores.touched.iter().map(|row| (*row, scores.rows[*row as usize].score)).collect(), 2 * depth);
    let window = window_ranking(index, scores, &text, allowed, depth);
    let mut rankings = vec![fusion::Ranking::new("bm25", text), fusion::Ranking::new("bm25_window", window)];
    if let Some(dense) = dense {
        let scored = |found: Vec<crate::index::vectors::Scored>| found.into_iter().map(|s| (s.row, s.score)).collect();
        rankings.push(fusion::Ranking::new("dense", scored(index.top(View::Own, &dense.own, depth, allowed))));
        if let Some(context) = &dense.context {
            let found = scored(index.top(View::Context, context, depth, allowed));
            rankings.push(fusion::Ranking::new("dense_context", found));
        }
    }
    let mut rows: Vec<u32> = rankings.iter().flat_map(|ranking| ranking.rows.iter().map(|(row, _)| *row)).collect();
    rows.sort_unstable();
    rows.dedup();
    let frame = Frame::new(index, parsed, scores, dense, &rankings);
    let features = rows.iter().map(|row| frame.features(*row)).collect();
    Candidates { rows, features, rankings, cosine_max: frame.dense_max }
}

/// The `depth` best, best first.
fn best(mut rows: Vec<(u32, f32)>, depth: usize) -> Vec<(u32, f32)> {
    if rows.len() > depth {
        rows.select_nth_unstable_by(depth - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        rows.truncate(depth);
    }
    fusion::sort_best(&mut rows);
    rows
}

/// Text scores spread to neighbours: half to the next, a quarter to the one after. What a turn is about often stands in the
/// turn before it.
fn window_ranking(
    index: &RecallIndex,
    scores: &TextScores,
    text: &[(u32, f32)],
    allowed: &Bitmap,
    depth: usize,
) -> Vec<(u32, f32)> {
    let mut rows: HashSet<u32> = HashSet::new();
    for (row, _) in text {
        rows.insert(*row);
        rows.extend(index.columns.around(*row).into_iter().flatten().filter(|near| allowed.contains(*near)));
    }
    let score = |row: u32| scores.rows[row as usize].score;
    let spread = |row: u32| {
        let shares = [0.25, 0.5, 0.5, 0.25];
        let around = index.columns.around(row).into_iter().zip(shares);
        score(row) + around.filter_map(|(near, share)| near.map(|near| share * score(near))).sum::<f32>()
    };
    best(rows.into_iter().map(|row| (row, spread(row))).collect(), depth)
}

/// What the features of all candidates of one recall have in common.
struct Frame<'a> {
    index: &'a RecallIndex,
    parsed: &'a ParsedQuery,
    scores: &'a TextScores,
    dense: Option<&'a DenseQuery>,
    text_max: f32,
    dense_max: f32,
    context_max: f32,
    rarity_sum: f32,
    rarity_max: f32,
    thread_text: HashMap<u32, f32>,
}

impl<'a> Frame<'a> {
    fn new(
        index: &'a RecallIndex,
        parsed: &'a ParsedQuery,
        scores: &'a TextScores,
        dense: Option<&'a DenseQuery>,
        rankings: &[fusion::Ranking],
    ) -> Self {
        let top = |name: &str| {
            let ranking = rankings.iter().find(|ranking| ranking.name == name);
            ranking.and_then(|ranking| ranking.rows.first()).map_or(0.0, |(_, score)| *score).max(1e-6)
        };
        let text_max = top("bm25");
        let mut by_thread: HashMap<u32, (usize, f32)> = HashMap::new();
        for (row, score) in rankings.iter().filter(|r| r.name == "bm25").flat_map(|r| &r.rows) {
            // Best first, so the first rows of a thread are its best.
            if index.columns.thread(*row) == NONE {
                continue;
            }
            let (count, sum) = by_thread.entry(index.columns.thread(*row)).or_default();
            if *count < THREAD_TEXTS {
                *count += 1;
                *sum += score / text_max;
            }
        }
        let found = scores.touched.iter().fold(0, |terms, row| terms | scores.rows[*row as usize].terms);
        Self {
            index,
            parsed,
            scores,
            dense,
            text_max,
            dense_max: top("dense"),
            context_max: top("dense_context"),
            rarity_sum: scores.rarities.iter().sum::<f32>().max(1e-6),
            rarity_max: scores.rarest(found).max(1e-6),
            thread_text: by_thread.into_iter().map(|(thread, (_, sum))| (thread, sum)).collect(),
        }
    }

    fn text(&self, row: Option<u32>) -> f32 {
        row.map_or(0.0, |row| self.scores.rows[row as usize].score / self.text_max)
    }

    fn terms(&self, row: Option<u32>) -> u32 {
        row.map_or(0, |row| self.scores.rows[row as usize].terms)
    }

    fn cosine(&self, row: Option<u32>) -> f32 {
        match (self.dense, row) {
            (Some(dense), Some(row)) => self.index.own.near_cosine(&dense.own, row).max(0.0),
            _ => 0.0,
        }
    }

    fn features(&self, row: u32) -> FeatureRow {
        let columns = &self.index.columns;
        let [far_before, before, after, far_after] = columns.around(row);
        let (cues, before_cues) = (columns.cues(row), before.map_or(0, |row| columns.cues(row)));
        let has = |cue: u8| f32::from(u8::from(cues & cue != 0));
        let before_asks = f32::from(u8::from(before_cues & ASKS != 0));
        let (text, text_before) = (self.text(Some(row)), self.text(before));
        let (cosine, cosine_before) = (self.cosine(Some(row)), self.cosine(before));
        let context = self
            .dense
            .and_then(|dense| dense.context.as_ref())
            .map_or(0.0, |query| self.index.context.near_cosine(query, row).max(0.0) / self.context_max);
        let speaker = f32::from(u8::from(self.parsed.speakers.contains(&columns.speaker(row))));
        let moment = columns.valid_from(row);
        let time = self.parsed.times.iter().map(|span| span.nearness(moment)).fold(0.0, f32::max);
        let terms = self.terms(Some(row));
        let around = [far_before, before, after, far_after].into_iter().fold(terms, |all, near| all | self.terms(near));
        let length = f32::from(self.index.text.length(row));
        let asked = |asked: bool, cue: u8| if asked { has(cue) } else { 0.0 };
        let asks = self.parsed.asks_for;
        [
            text,
            text_before * before_asks,
            text_before * (1.0 - before_asks),
            self.text(after),
            self.text(far_before) + self.text(far_after),
            cosine / self.dense_max,
            context,
            cosine_before * before_asks,
            cosine_before + self.cosine(after),
            speaker,
            speaker * text,
            speaker * cosine,
            time,
            time * text,
            has(ENDS_ASKING),
            has(ENDS_ASKING) * text,
            length / (length + LENGTH_HALF),
            self.thread_text.get(&columns.thread(row)).copied().unwrap_or(0.0),
            self.scores.rarity(terms) / self.rarity_sum,
            self.scores.rarity(around) / self.rarity_sum,
            self.scores.rarest(terms) / self.rarity_max,
            asked(asks.time, NAMES_TIME),
            asked(asks.time, NAMES_TIME) * text,
            asked(asks.number, NAMES_NUMBER),
            asked(asks.name, NAMES_NAME),
            has(NAMES_TIME),
            has(NAMES_NUMBER),
            has(NAMES_NAME),
        ]
    }
}
