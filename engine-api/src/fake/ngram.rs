//! Interpolated word trigrams with a byte model underneath, so that every word has some probability.

use std::collections::HashMap;

/// Interpolation weights of trigram, bigram, unigram and byte model; sum 1 (Jelinek-Mercer smoothing).
const LAMBDA: [f64; 4] = [0.55, 0.25, 0.15, 0.05];
/// Probability of a byte under the byte model, with the end of the word as one more symbol.
const BYTE_PROBABILITY: f64 = 1.0 / 257.0;

/// Counts of words in their contexts.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    unigrams: HashMap<String, f64>,
    total: f64,
    bigrams: HashMap<String, HashMap<String, f64>>,
    trigrams: HashMap<(String, String), HashMap<String, f64>>,
}

/// Splits text into words; punctuation stays with its word.
pub(super) fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

impl Model {
    pub(super) fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut model = Self::default();
        for text in texts {
            let words = words(text);
            for (index, word) in words.iter().enumerate() {
                *model.unigrams.entry(word.clone()).or_default() += 1.0;
                model.total += 1.0;
                if index >= 1 {
                    *model.bigrams.entry(words[index - 1].clone()).or_default().entry(word.clone()).or_default() += 1.0;
                }
                if index >= 2 {
                    let context = (words[index - 2].clone(), words[index - 1].clone());
                    *model.trigrams.entry(context).or_default().entry(word.clone()).or_default() += 1.0;
                }
            }
        }
        model
    }

    fn probability(&self, context: &[String], word: &str) -> f64 {
        let share = |counts: Option<&HashMap<String, f64>>| {
            counts.map_or(0.0, |counts| counts.get(word).copied().unwrap_or(0.0) / counts.values().sum::<f64>())
        };
        let last = context.last();
        let trigram = match context {
            [.., a, b] => share(self.trigrams.get(&(a.clone(), b.clone()))),
            _ => 0.0,
        };
        let bigram = share(last.and_then(|last| self.bigrams.get(last)));
        let unigram = if self.total > 0.0 { self.unigrams.get(word).copied().unwrap_or(0.0) / self.total } else { 0.0 };
        let bytes = BYTE_PROBABILITY.powi(word.len() as i32 + 1);
        LAMBDA[0] * trigram + LAMBDA[1] * bigram + LAMBDA[2] * unigram + LAMBDA[3] * bytes
    }
}

/// A word that was chosen, and how sure the mixture was.
pub(super) struct Choice {
    pub(super) word: String,
    pub(super) probability: f64,
    pub(super) entropy: f64,
    pub(super) surprise: f64,
}

/// Draws the next word from the mixture's known words; the likeliest at temperature 0, ties by spelling.
pub(super) fn next_word(
    models: &[(Model, f64)],
    context: &[String],
    temperature: f32,
    mut random: impl FnMut() -> f64,
) -> Choice {
    let mut candidates: Vec<(&str, f64)> = Vec::new();
    for (model, share) in models {
        if *share > 0.0 {
            candidates.extend(model.unigrams.keys().map(|word| (word.as_str(), 0.0)));
        }
    }
    candidates.sort_unstable_by(|a, b| a.0.cmp(b.0));
    candidates.dedup_by(|a, b| a.0 == b.0);
    for (word, probability) in &mut candidates {
        *probability = models.iter().map(|(model, share)| share * model.probability(context, word)).sum();
    }
    let total: f64 = candidates.iter().map(|(_, p)| p).sum();
    for (_, probability) in &mut candidates {
        *probability /= total;
    }
    let entropy: f64 = candidates.iter().map(|(_, p)| if *p > 0.0 { -p * p.ln() } else { 0.0 }).sum();
    let expected_residual = 1.0 - candidates.iter().map(|(_, p)| p * p).sum::<f64>();
    let chosen = if temperature == 0.0 {
        candidates.iter().fold(("", -1.0), |best, next| if next.1 > best.1 { *next } else { best })
    } else {
        let power = 1.0 / f64::from(temperature);
        let scale: f64 = candidates.iter().map(|(_, p)| p.powf(power)).sum();
        let mut left = random() * scale;
        let mut drawn = candidates.last().copied().unwrap_or(("", 0.0));
        for candidate in &candidates {
            left -= candidate.1.powf(power);
            if left <= 0.0 {
                drawn = *candidate;
                break;
            }
        }
        drawn
    };
    let residual = 1.0 - chosen.1;
    Choice {
        word: chosen.0.to_owned(),
        probability: chosen.1,
        entropy,
        surprise: if expected_residual > 1e-9 { residual / expected_residual } else { 1.0 },
    }
}

/// Nats that the mixture needs for each word of a text.
pub(super) fn costs(models: &[(Model, f64)], text: &str) -> Vec<f64> {
    let words = words(text);
    let cost = |index: usize| {
        let context = &words[index.saturating_sub(2)..index];
        let probability: f64 =
            models.iter().map(|(model, share)| share * model.probability(context, &words[index])).sum();
        -probability.max(f64::MIN_POSITIVE).ln()
    };
    (0..words.len()).map(cost).collect()
}

/// Nats that the mixture needs for a text, and its number of words.
pub(super) fn cross_entropy(models: &[(Model, f64)], text: &str) -> (f64, u32) {
    let costs = costs(models, text);
    (costs.iter().sum(), costs.len() as u32)
}
