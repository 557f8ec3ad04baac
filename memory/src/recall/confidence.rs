//! The estimated probability that a recall found something relevant, and the verdict to abstain.

/// What the estimate is made from; every feature is 0 for an empty recall.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Features {
    /// The best BM25 score over the best that the question's words could reach, 0 to 1.
    pub text_share: f32,
    /// The best cosine to the question, by the memory's own text.
    pub cosine: f32,
    /// The share of the question's rarity (idf) that the top five hits cover together, 0 to 1.
    pub coverage: f32,
    /// Whether there was an embedding to judge by.
    pub dense: bool,
}

/// A recall below this probability is told to abstain.
pub const ABSTAIN_BELOW: f32 = 0.35;

/// Logistic weights: bias, text share, cosine, coverage.
const WITH_DENSE: [f32; 4] = [-4.0, 2.0, 5.0, 3.0];
/// The same without an embedding.
const TEXT_ONLY: [f32; 4] = [-2.5, 3.0, 0.0, 3.0];

/// The probability, 0 to 1.
pub fn confidence(features: &Features) -> f32 {
    let weights = if features.dense { WITH_DENSE } else { TEXT_ONLY };
    let sum =
        weights[0] + weights[1] * features.text_share + weights[2] * features.cosine + weights[3] * features.coverage;
    1.0 / (1.0 + (-sum).exp())
}
