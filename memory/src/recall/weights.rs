//! The weights of the ranking: what each feature counts, learnt from questions about chats.
//!
//! They maximise the likelihood of the turns that answer a question among all candidates (listwise softmax, Cao et al. 2007,
//! with an L2 penalty); `mneme-recall-eval --fit` prints them, and its table says what they give on chats they were not learnt from.

use super::features::FeatureRow;

/// One weight a feature.
pub type Weights = FeatureRow;

/// The weighted sum of a candidate's features.
pub fn score(weights: &Weights, features: &FeatureRow) -> f32 {
    weights.iter().zip(features).map(|(weight, feature)| weight * feature).sum()
}

/// Used when there is an embedding of the question.
pub const WITH_DENSE: Weights = [
    0.686,  // bm25.score
    0.211,  // bm25_window.answer
    -0.461, // bm25_window.after
    -0.153, // bm25_window.before
    -0.196, // bm25_window.far
    2.850,  // dense.cosine
    1.707,  // dense_context.cosine
    0.594,  // dense.answer
    0.211,  // dense.near
    2.124,  // speaker.named
    0.664,  // speaker.text
    1.716,  // speaker.dense
    1.933,  // time.near
    1.736,  // time.text
    -0.628, // shape.asks
    0.013,  // shape.asks_text
    2.116,  // shape.length
    0.176,  // thread.text
    0.601,  // bm25.coverage
    1.694,  // bm25_window.coverage
    -0.071, // bm25.rarest
    0.365,  // shape.time_asked
    2.087,  // shape.time_asked_text
    0.153,  // shape.number_asked
    0.269,  // shape.name_asked
    0.200,  // shape.time
    0.097,  // shape.number
    0.181,  // shape.name
];

/// Used when there is none.
pub const TEXT_ONLY: Weights = [
    1.290,  // bm25.score
    0.687,  // bm25_window.answer
    -0.375, // bm25_window.after
    0.142,  // bm25_window.before
    0.058,  // bm25_window.far
    0.000,  // dense.cosine
    0.000,  // dense_context.cosine
    0.000,  // dense.answer
    0.000,  // dense.near
    2.344,  // speaker.named
    1.078,  // speaker.text
    0.000,  // speaker.dense
    2.042,  // time.near
    1.310,  // time.text
    -0.261, // shape.asks
    0.015,  // shape.asks_text
    1.430,  // shape.length
    0.542,  // thread.text
    1.023,  // bm25.coverage
    2.754,  // bm25_window.coverage
    0.135,  // bm25.rarest
    -0.103, // shape.time_asked
    2.284,  // shape.time_asked_text
    0.209,  // shape.number_asked
    0.373,  // shape.name_asked
    0.352,  // shape.time
    0.048,  // shape.number
    0.238,  // shape.name
];
