//! Undecided copies of parts of one text, to be predicted behind the text itself as a causal prefix.
//!
//! Adapter zero leaves what reads left to right alone, so that keys and values of the clean text are those of the base: they are
//! computed once, without gradients, and any number of noisy parts is learnt behind them. A segment is a *carry* (the decided
//! token before it once more, as a row that sees the segment), undecided and decided tokens, and, for an infill, the text after
//! them. By the shift a token is predicted by the row before it, its first one by the carry. Where nothing after the prefix is
//! decided the carry could know no more than the base: the clean row predicts the first token exactly, and it is no target.
//!
//! The bound: a block of `b` tokens has `l` of them masked, `l` uniform in `1..=b`, which of them uniform; the sum of their
//! losses times `b / l` is in expectation the masked-diffusion bound with linear schedule, the integral over `t` done in closed
//! form: `C(b, l) B(l, b - l + 1) = 1 / l` (the likelihood estimate of LLaDA, arXiv 2502.09992, equation 14, for each block).

use mneme_diffusion::random::{below, uniform};
use rand_chacha::ChaCha8Rng;

use crate::nn::visibility::{SegmentKind, SegmentRole};
use crate::train::corpus::weighted;

/// Sizes of blocks that are learnt, with their weights: small ones, where parallel guesses can still be good.
const BLOCKS: [(usize, f64); 6] = [(2, 1.0), (4, 3.0), (8, 2.0), (16, 0.4), (32, 0.08), (64, 0.04)];
/// Tokens of an infill.
const INFILL_TOKENS: std::ops::RangeInclusive<usize> = 2..=32;
/// Tokens after an infill that are shown.
const SUFFIX_TOKENS: std::ops::RangeInclusive<usize> = 4..=32;
/// A few masked tokens of a large block would weigh as much as all of it: their gradient is too noisy to learn from. The bound
/// that is reported has no such limit.
const LEARNT_WEIGHT_MAX: f64 = 4.0;

/// Steps of the golden ratio fill an interval evenly, however many they are.
const GOLDEN: f64 = 0.618_033_988_749_894_8;

/// A token to predict.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Guess {
    /// The window's row that predicts it; `None` for the clean row before it, which is exact.
    pub row: Option<usize>,
    /// Its place in the text.
    pub place: usize,
    /// Its weight.
    pub weight: f64,
    /// Whether nothing after it is decided: then the base, which reads all that is before it, can teach it.
    pub is_last: bool,
}

/// What share of the segments is of which kind. Infills are longer, so that they take a larger share of the rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix {
    /// Blocks with text before them only, partly masked, each together with its complement.
    pub blocks: f64,
    /// Blocks of which nothing is decided, as drafts are.
    pub drafts: f64,
    /// Spans between text before and after them.
    pub infills: f64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { blocks: 0.5, drafts: 0.36, infills: 0.14 }
    }
}

/// A window of segments behind one text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Segments {
    /// Token ids.
    pub tokens: Vec<i64>,
    /// Position of each in the text.
    pub positions: Vec<i64>,
    /// Role of each.
    pub roles: Vec<SegmentRole>,
    /// What they predict.
    pub guesses: Vec<Guess>,
    /// Tokens that the weights stand for.
    pub covered: usize,
    count: u32,
}

impl Segments {
    /// Adds the tokens from `start` on, masked where `masked` says so, with `suffix` tokens after them. `start` is at least 1.
    pub fn push(&mut self, text: &[i64], mask: i64, start: usize, masked: &[bool], suffix: usize, weight: f64) {
        let end = (start + masked.len() + suffix).min(text.len());
        debug_assert!(start >= 1 && start + masked.len() <= text.len());
        let is_open = masked.iter().all(|masked| *masked) && end == start + masked.len();
        let first = self.tokens.len();
        let decided = masked.iter().rposition(|masked| !masked);
        let last_decided = if end > start + masked.len() { Some(end - 1) } else { decided.map(|place| start + place) };
        for (place, token) in text.iter().enumerate().take(end).skip(start - 1) {
            let is_masked = place >= start && masked.get(place - start).copied().unwrap_or(false);
            self.tokens.push(if is_masked { mask } else { *token });
            self.positions.push(place as i64);
            self.roles.push(SegmentRole { segment: self.count, seen: start as u32, kind: SegmentKind::Masked });
            if is_masked {
                let row = if is_open && place == start { None } else { Some(first + place - start) };
                self.guesses.push(Guess { row, place, weight, is_last: last_decided.is_none_or(|last| last < place) });
            }
        }
        self.covered += masked.len();
        self.count += 1;
    }

    /// Cuts a whole text into blocks of `block` tokens, each masked at a level of its own; levels are spread evenly over the
    /// blocks. The weighted sum of the losses is the bound of the text.
    pub fn tiling(text: &[i64], mask: i64, block: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut segments = Self::default();
        let offset = uniform(rng);
        let mut start = 1;
        let mut number = 0.0;
        while start < text.len() {
            let tokens = block.clamp(1, text.len() - start);
            let level = (offset + number * GOLDEN) % 1.0;
            let count = 1 + (level * tokens as f64) as usize;
            let masked = choose(tokens, count.min(tokens), rng);
            segments.push(text, mask, start, &masked, 0, tokens as f64 / count as f64);
            start += tokens;
            number += 1.0;
        }
        segments
    }

    /// One hole of `tokens` tokens, `count` of them masked, with text after it.
    pub fn hole(
        text: &[i64],
        mask: i64,
        start: usize,
        tokens: usize,
        count: usize,
        suffix: usize,
        rng: &mut ChaCha8Rng,
    ) -> Self {
        let mut segments = Self::default();
        let masked = choose(tokens, count, rng);
        segments.push(text, mask, start, &masked, suffix, tokens as f64 / count.max(1) as f64);
        segments
    }

    /// Draws segments to learn until the window has about `rows` rows.
    pub fn draw(text: &[i64], mask: i64, mix: &Mix, rows: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut segments = Self::default();
        // A text of the document token alone has nothing to predict.
        while segments.tokens.len() < rows && text.len() > 1 {
            match weighted(&[mix.blocks, mix.drafts, mix.infills], rng) {
                0 => segments.add_block(text, mask, false, rng),
                1 => segments.add_block(text, mask, true, rng),
                _ => segments.add_infill(text, mask, rng),
            }
        }
        segments
    }

    fn add_block(&mut self, text: &[i64], mask: i64, is_draft: bool, rng: &mut ChaCha8Rng) {
        let sizes = BLOCKS.map(|(size, _)| size);
        let size = sizes[weighted(&BLOCKS.map(|(_, weight)| weight), rng)].min(text.len() - 1);
        let start = 1 + below(rng, text.len() - size);
        let count = if is_draft { size } else { 1 + below(rng, size) };
        let masked = choose(size, count, rng);
        let weight = |count: usize| (size as f64 / count as f64).min(LEARNT_WEIGHT_MAX);
        self.push(text, mask, start, &masked, 0, weight(count));
        if count < size {
            let complement: Vec<bool> = masked.iter().map(|masked| !masked).collect();
            self.push(text, mask, start, &complement, 0, weight(size - count));
        }
    }

    /// Adds decided tokens, the first at `start`, to be read without a word of the `hole` before them.
    fn push_suffix(&mut self, text: &[i64], hole: std::ops::Range<usize>, tokens: usize) {
        for (place, token) in text.iter().enumerate().skip(hole.end).take(tokens) {
            self.tokens.push(*token);
            self.positions.push(place as i64);
            let (segment, seen) = (self.count, hole.start as u32);
            self.roles.push(SegmentRole { segment, seen, kind: SegmentKind::Suffix });
        }
        self.count += 1;
    }

    /// Adds a hole to be written left to right, with rows of the prefix that hold the text after it.
    fn push_middle(&mut self, text: &[i64], hole: std::ops::Range<usize>, suffix: std::ops::Range<usize>) {
        let (from, until) = (suffix.start as u32, suffix.end as u32);
        let role =
            SegmentRole { segment: self.count, seen: hole.start as u32, kind: SegmentKind::Middle { from, until } };
        for place in hole.clone() {
            let row = Some(self.tokens.len());
            self.guesses.push(Guess { row, place, weight: 1.0, is_last: false });
            self.tokens.push(text[place - 1]);
            self.positions.push(place as i64 - 1);
            self.roles.push(role);
        }
        self.covered += hole.len();
        self.count += 1;
    }

    fn add_infill(&mut self, text: &[i64], mask: i64, rng: &mut ChaCha8Rng) {
        let within = |range: std::ops::RangeInclusive<usize>, rng: &mut ChaCha8Rng| {
            range.start() + below(rng, range.end() - range.start() + 1)
        };
        let size = within(INFILL_TOKENS, rng).min(text.len() - 1);
        let start = 1 + below(rng, text.len() - size);
        let suffix = within(SUFFIX_TOKENS, rng);
        // Decoding in few steps starts from everything masked: that level is learnt more often than its share.
        let count = if uniform(rng) < 0.25 { size } else { 1 + below(rng, size) };
        let masked = choose(size, count, rng);
        self.push(text, mask, start, &masked, suffix, (size as f64 / count as f64).min(LEARNT_WEIGHT_MAX));
    }
}

/// Holes of one text that are written left to right, with the text after each in view.
///
/// The texts after the holes are read first, by the base, as a window of their own that is committed behind the text itself; the holes
/// then see their own.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Middles {
    /// Texts after the holes; they predict nothing.
    pub suffixes: Segments,
    /// The holes.
    pub holes: Segments,
}

impl Middles {
    /// Adds a hole of a text with at most `suffix` tokens after it. The hole starts at 1 at least; none is added where no text follows.
    pub fn push(&mut self, text: &[i64], hole: std::ops::Range<usize>, suffix: usize) {
        debug_assert!(hole.start >= 1 && hole.end <= text.len());
        let from = text.len() + self.suffixes.tokens.len();
        self.suffixes.push_suffix(text, hole.clone(), suffix);
        let until = text.len() + self.suffixes.tokens.len();
        self.holes.push_middle(text, hole, from..until);
    }

    /// Draws holes until they have about `rows` rows.
    pub fn draw(text: &[i64], rows: usize, rng: &mut ChaCha8Rng) -> Self {
        let mut middles = Self::default();
        // The shortest text with something before a hole, in it and after it.
        while middles.holes.tokens.len() < rows && text.len() > 2 {
            let size = (INFILL_TOKENS.start() + below(rng, INFILL_TOKENS.end() - INFILL_TOKENS.start() + 1))
                .min(text.len() - 2);
            let start = 1 + below(rng, text.len() - 1 - size);
            let suffix = SUFFIX_TOKENS.start() + below(rng, SUFFIX_TOKENS.end() - SUFFIX_TOKENS.start() + 1);
            middles.push(text, start..start + size, suffix);
        }
        middles
    }
}

/// Marks `count` of `tokens` places, all choices alike (Floyd's sampling is not needed for so few).
fn choose(tokens: usize, count: usize, rng: &mut ChaCha8Rng) -> Vec<bool> {
    let mut masked = vec![false; tokens];
    let mut left = count;
    for (place, masked) in masked.iter_mut().enumerate() {
        if left > 0 && below(rng, tokens - place) < left {
            *masked = true;
            left -= 1;
        }
    }
    masked
}

#[cfg(test)]
mod tests {
    use mneme_diffusion::random::seeded;

    use super::*;
    use crate::nn::visibility::Visibility;

    const MASK: i64 = 9_999;

    #[test]
    fn a_choice_marks_so_many_places_and_every_place_alike() {
        let mut rng = seeded(1);
        let mut counts = [0; 5];
        for _ in 0..2_000 {
            let chosen = choose(5, 2, &mut rng);
            assert_eq!(chosen.iter().filter(|chosen| **chosen).count(), 2);
            counts.iter_mut().zip(chosen).for_each(|(count, chosen)| *count += i32::from(chosen));
        }
        assert!(counts.iter().all(|count| (700..900).contains(count)), "{counts:?}");
    }

    #[test]
    fn no_row_sees_the_token_that_it_predicts() {
        let text: Vec<i64> = (0..80).collect();
        for seed in 0..40 {
            let mut rng = seeded(seed);
            let windows = [
                Segments::draw(&text, MASK, &Mix::default(), 120, &mut rng),
                Segments::tiling(&text, MASK, 1 + seed as usize % 9, &mut rng),
            ];
            for window in windows {
                let mask = Visibility::Segments(&window.roles);
                let mask = mask.mask(text.len() as i64, window.tokens.len() as i64, tch::Device::Cpu).unwrap().unwrap();
                let seen = Vec::<Vec<f32>>::try_from(&mask).unwrap();
                for guess in &window.guesses {
                    let Some(row) = guess.row else { continue };
                    assert_eq!(window.positions[row] + 1, guess.place as i64);
                    let (of_prefix, of_window) = seen[row].split_at(text.len());
                    assert!(of_prefix[guess.place] < 0.0, "seed {seed}: {guess:?}");
                    let shown = |(seen, token): (&f32, &i64)| *seen == 0.0 && *token == text[guess.place];
                    assert!(!of_window.iter().zip(&window.tokens).any(shown), "seed {seed}: {guess:?}");
                }
            }
        }
    }

    #[test]
    fn a_hole_sees_what_is_before_and_after_it_and_the_text_after_it_nothing_of_the_hole() {
        let text: Vec<i64> = (0..60).collect();
        for seed in 0..40 {
            let Middles { suffixes, holes } = Middles::draw(&text, 70, &mut seeded(seed));
            let of_suffixes = Visibility::Segments(&suffixes.roles);
            let mask = of_suffixes.mask(60, suffixes.tokens.len() as i64, tch::Device::Cpu).unwrap().unwrap();
            let seen = Vec::<Vec<f32>>::try_from(&mask).unwrap();
            for (row, role) in suffixes.roles.iter().enumerate() {
                let (of_text, own) = seen[row].split_at(60);
                assert!(of_text.iter().enumerate().all(|(place, seen)| (*seen == 0.0) == (place < role.seen as usize)));
                let is_own = |other: usize| suffixes.roles[other].segment == role.segment && other <= row;
                assert!(own.iter().enumerate().all(|(other, seen)| (*seen == 0.0) == is_own(other)));
            }
            let read: Vec<i64> = text.iter().chain(&suffixes.tokens).copied().collect();
            let of_holes = Visibility::Segments(&holes.roles);
            let rows = holes.tokens.len() as i64;
            let mask = of_holes.mask(read.len() as i64, rows, tch::Device::Cpu).unwrap().unwrap();
            let seen = Vec::<Vec<f32>>::try_from(&mask).unwrap();
            assert_eq!((holes.guesses.len(), holes.covered), (holes.tokens.len(), holes.tokens.len()));
            for guess in &holes.guesses {
                let row = guess.row.unwrap();
                assert_eq!((holes.positions[row] + 1, holes.tokens[row]), (guess.place as i64, text[guess.place - 1]));
                let known = read.iter().chain(&holes.tokens).zip(&seen[row]).filter(|(_, seen)| **seen == 0.0);
                let known: Vec<i64> = known.map(|(token, _)| *token).collect();
                let hole = holes.roles.iter().zip(&holes.guesses).filter(|(role, _)| **role == holes.roles[row]);
                let end = hole.map(|(_, guess)| guess.place).max().unwrap() as i64 + 1;
                // Tokens are their places here.
                assert!((0..guess.place as i64).all(|token| known.contains(&token)), "seed {seed}: {guess:?}");
                assert!((guess.place as i64..end).all(|token| !known.contains(&token)), "seed {seed}: {guess:?}");
                assert!(known.contains(&end), "seed {seed}: {guess:?}");
            }
        }
    }

    #[test]
    fn a_tiling_covers_every_token_and_its_weights_do_too_in_the_mean() {
        let text: Vec<i64> = (0..66).collect();
        for block in [1, 2, 4, 16, 100] {
            let mut weight = 0.0;
            for seed in 0..20 {
                let window = Segments::tiling(&text, MASK, block, &mut seeded(seed));
                assert_eq!(window.covered, 65);
                weight += window.guesses.iter().map(|guess| guess.weight).sum::<f64>() / 20.0;
            }
            assert!((weight - 65.0).abs() < 1e-6, "block {block}: {weight}");
        }
    }

    #[test]
    fn at_block_one_every_token_comes_from_the_exact_row() {
        let text: Vec<i64> = (0..30).collect();
        let window = Segments::tiling(&text, MASK, 1, &mut seeded(2));
        assert!(window.guesses.len() == 29 && window.guesses.iter().all(|guess| guess.row.is_none()));
    }
}
