//! A character model that learns as it reads: the cache that an adapter has to beat.
//!
//! Prediction by partial matching over bytes, order 6, escape method D, with exclusion and update exclusion (Cleary and
//! Witten 1984; Howard, "The design and analysis of efficient lossless data compression systems", 1993). Bytes make it
//! exact for every text; costs are reported per character.

use std::collections::HashMap;

/// The longest context (bytes): it must fit into a key beside its length.
pub const ORDER_MAX: usize = 6;
/// Contexts kept at most, about 100 bytes each: a longer text is still predicted, by what is known.
const CONTEXTS_MAX: usize = 4_000_000;

/// Counts of what followed a context; few follow most contexts, so a list beats a table.
#[derive(Debug, Clone, Default)]
struct Followers {
    counts: Vec<(u8, u32)>,
}

/// Which bytes are excluded because a longer context would have predicted them.
#[derive(Debug, Clone, Copy, Default)]
struct Excluded([u64; 4]);

impl Excluded {
    fn has(self, byte: u8) -> bool {
        self.0[usize::from(byte >> 6)] >> (byte & 63) & 1 == 1
    }

    fn add(&mut self, byte: u8) {
        self.0[usize::from(byte >> 6)] |= 1 << (byte & 63);
    }

    fn count(self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// The model and the last bytes that it read.
#[derive(Debug, Clone)]
pub struct Ppm {
    order: usize,
    contexts: HashMap<u64, Followers>,
    history: Vec<u8>,
}

impl Ppm {
    /// Starts without knowledge. `order` is the longest context, at most [`ORDER_MAX`]; 0 is a unigram model.
    pub fn new(order: usize) -> Self {
        Self { order: order.min(ORDER_MAX), contexts: HashMap::new(), history: Vec::new() }
    }

    /// Reads a text, learns it byte by byte, and returns what it cost before it was learned (bits). Costs at most seven
    /// look-ups a byte.
    pub fn learn(&mut self, text: &str) -> f64 {
        let mut history = std::mem::take(&mut self.history);
        let mut bits = 0.0;
        for byte in text.bytes() {
            let (probability, found) = self.predict(&history, byte);
            bits -= probability.log2();
            self.update(&history, byte, found);
            history.push(byte);
            if history.len() > ORDER_MAX {
                history.remove(0);
            }
        }
        self.history = history;
        bits
    }

    /// The cost of a text (bits) after a context, learning nothing.
    pub fn cost(&self, context: &str, text: &str) -> f64 {
        let mut history: Vec<u8> = context.bytes().rev().take(ORDER_MAX).collect();
        history.reverse();
        let mut bits = 0.0;
        for byte in text.bytes() {
            bits -= self.predict(&history, byte).0.log2();
            history.push(byte);
        }
        bits
    }

    /// The probability of a byte after a history, and the order that knew it.
    fn predict(&self, history: &[u8], byte: u8) -> (f64, Option<usize>) {
        let mut excluded = Excluded::default();
        let mut reached = 1.0;
        for order in (0..=self.order.min(history.len())).rev() {
            let Some(followers) = self.contexts.get(&key(history, order)) else { continue };
            let open = || followers.counts.iter().filter(|(follower, _)| !excluded.has(*follower));
            let (total, distinct) = open().fold((0_u64, 0_u64), |(n, d), (_, count)| (n + u64::from(*count), d + 1));
            if total == 0 {
                continue;
            }
            // Method D: a follower seen c times of n has (2c - 1) / 2n; d distinct ones leave d / 2n for the escape.
            let whole = 2.0 * total as f64;
            if let Some((_, count)) = open().find(|(follower, _)| *follower == byte) {
                return (reached * (2.0 * f64::from(*count) - 1.0) / whole, Some(order));
            }
            reached *= distinct as f64 / whole;
            for (follower, _) in &followers.counts {
                excluded.add(*follower);
            }
        }
        // The byte is not excluded, or a longer context would have known it: at least one is left.
        (reached / f64::from(256 - excluded.count()), None)
    }

    /// Counts a byte in the contexts down to the one that knew it.
    fn update(&mut self, history: &[u8], byte: u8, found: Option<usize>) {
        for order in (found.unwrap_or(0)..=self.order.min(history.len())).rev() {
            let key = key(history, order);
            if self.contexts.len() >= CONTEXTS_MAX && !self.contexts.contains_key(&key) {
                continue;
            }
            let followers = &mut self.contexts.entry(key).or_default().counts;
            match followers.iter_mut().find(|(follower, _)| *follower == byte) {
                Some((_, count)) => *count = count.saturating_add(1),
                None => followers.push((byte, 1)),
            }
        }
    }
}

/// The last `order` bytes and their number as one word.
fn key(history: &[u8], order: usize) -> u64 {
    let start = history.len().saturating_sub(order);
    history[start..].iter().fold(order as u64, |key, byte| key << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_was_read_before_costs_less_the_second_time() {
        let text = "To the office, where we sat all the morning. Home to dinner, and then to the office again.";
        let mut model = Ppm::new(6);
        let first = model.learn(text);
        let second = model.learn(text);
        assert!(second < 0.5 * first, "{second} against {first}");
        assert!((Ppm::new(6).learn("a") - 8.0).abs() < 1e-9, "the first byte is one of 256");
    }

    #[test]
    fn method_d_gives_the_numbers_of_the_paper() {
        // After "abracadabra" the order-0 counts are a5 b2 r2 c1 d1 of 11 (no update exclusion at order 0).
        let mut model = Ppm::new(0);
        model.learn("abracadabra");
        assert!((model.cost("", "a") - -(9.0_f64 / 22.0).log2()).abs() < 1e-9);
        assert!((model.cost("", "c") - -(1.0_f64 / 22.0).log2()).abs() < 1e-9);
        assert!((model.cost("", "z") - -(5.0_f64 / 22.0 / 251.0).log2()).abs() < 1e-9);
    }

    #[test]
    fn a_longer_context_predicts_better_than_letters_alone() {
        let text = "and so to bed. ".repeat(40);
        let (mut six, mut zero) = (Ppm::new(6), Ppm::new(0));
        assert!(six.learn(&text) < 0.4 * zero.learn(&text));
    }

    #[test]
    fn scoring_learns_nothing_and_agrees_with_learning() {
        let mut model = Ppm::new(6);
        model.learn("up betimes and by water to Westminster");
        let before = model.cost("by ", "water");
        assert!((before - model.cost("by ", "water")).abs() < 1e-12);
        let mut learner = model.clone();
        learner.history = b"by ".to_vec();
        assert!((learner.learn("w") - model.cost("by ", "w")).abs() < 1e-9);
    }

    proptest! {
        #[test]
        fn the_probabilities_of_all_bytes_sum_to_one(text in "[a-d ]{0,80}", context in "[a-d ]{0,8}") {
            let mut model = Ppm::new(4);
            model.learn(&text);
            let history: Vec<u8> = context.into_bytes();
            let total: f64 = (0..=255_u8).map(|byte| model.predict(&history, byte).0).sum();
            prop_assert!((total - 1.0).abs() < 1e-9, "{}", total);
        }

        #[test]
        fn every_text_has_a_finite_cost(text in any::<String>()) {
            let bits = Ppm::new(6).learn(&text);
            prop_assert!(bits.is_finite() && bits >= 0.0);
        }
    }
}
