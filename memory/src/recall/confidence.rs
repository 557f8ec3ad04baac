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
    /// How many words the question has, stop words not counted.
    pub words: usize,
    /// Whether there was an embedding to judge by.
    pub dense: bool,
}

/// A recall below this probability is told to abstain.
pub const ABSTAIN_BELOW: f32 = 0.35;

/// Weights of [`Features::inputs`], then the bias, with vectors; from `mneme-recall-eval --fit`.
const WITH_DENSE: [f32; INPUTS + 1] = [4.792, 0.226, 6.565, -2.937, -3.671];
/// The same without.
const TEXT_ONLY: [f32; INPUTS + 1] = [6.855, 1.001, 0.000, -3.999, -1.243];
/// How many inputs the estimate has.
const INPUTS: usize = 4;

impl Features {
    /// What is weighed: text share, coverage, cosine, and how few the words are (one word is easily found).
    pub fn inputs(&self) -> [f32; INPUTS] {
        [self.text_share, self.coverage, self.cosine, 1.0 / (1.0 + self.words as f32)]
    }
}

/// The probability, 0 to 1.
pub fn confidence(features: &Features) -> f32 {
    let weights = if features.dense { WITH_DENSE } else { TEXT_ONLY };
    let inputs = features.inputs().into_iter().chain([1.0]);
    let sum: f32 = inputs.zip(weights).map(|(input, weight)| input * weight).sum();
    1.0 / (1.0 + (-sum).exp())
}
