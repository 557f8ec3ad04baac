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
    1.596, -0.686, 0.681, -0.383, 0.137, 0.057, 2.0, 1.0, 0.000, 0.000, 2.320, 1.135, 0.000, 2.043, 1.322, -0.260,
    0.019, 1.417, 0.543, 1.074, 2.698, 0.430, -0.095, 2.277, 0.217, 0.370, 0.355, 0.043, 0.247,
];

/// Used when there is none.
pub const TEXT_ONLY: Weights = [
    1.596, -0.686, 0.681, -0.383, 0.137, 0.057, 0.0, 0.0, 0.000, 0.000, 2.320, 1.135, 0.000, 2.043, 1.322, -0.260,
    0.019, 1.417, 0.543, 1.074, 2.698, 0.430, -0.095, 2.277, 0.217, 0.370, 0.355, 0.043, 0.247,
];
