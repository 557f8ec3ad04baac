//! Selects what is trained on and what is judged on: the user's own or accepted text, split by time with a gap, without
//! near-duplicates across the split.

use std::collections::{BTreeMap, BTreeSet};

use mneme_base::{MemoryId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::context::ContextId;
use crate::random::mix;

/// Hashes in a signature: the estimate of a similarity of 0.5 has a standard error of 0.125.
const LANES: usize = 16;
/// Characters in a shingle: long enough that two texts of one author do not look alike by style alone.
const SHINGLE_CHARS: usize = 12;

/// Whose text it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authorship {
    /// The user wrote it.
    Authored,
    /// A model wrote it and the user accepted or corrected it.
    Accepted,
    /// A model wrote it: never trained on.
    Model,
    /// Somebody else wrote it: never trained on.
    Other,
}

impl Authorship {
    /// Whether such text may be learned.
    pub const fn may_train(self) -> bool {
        matches!(self, Self::Authored | Self::Accepted)
    }
}

/// A sketch of a text by which near-duplicates are found without the text (bottom hash per lane: Broder, "On the
/// resemblance and containment of documents", 1997). It reveals no characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signature([u32; LANES]);

impl Signature {
    /// Sketches a text: letters and digits only, lower case. Costs [`LANES`] mixes a character. Texts shorter than a
    /// shingle are one shingle.
    pub fn of(text: &str) -> Self {
        let letters: Vec<char> = text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect();
        let mut lanes = [u32::MAX; LANES];
        let windows = letters.windows(SHINGLE_CHARS.min(letters.len().max(1)));
        for window in windows {
            let hash = window.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, c| mix(hash ^ u64::from(u32::from(*c))));
            for (lane, smallest) in (1_u64..).zip(lanes.iter_mut()) {
                *smallest = (*smallest).min((mix(hash ^ lane.wrapping_mul(0x9E37_79B9_7F4A_7C15)) >> 32) as u32);
            }
        }
        Self(lanes)
    }

    /// An estimate of the shared part of both texts' shingles (Jaccard), 0 to 1; 0 when either text is empty.
    pub fn similarity(&self, other: &Self) -> f64 {
        let same = self.0.iter().zip(&other.0).filter(|(a, b)| a == b && **a != u32::MAX).count();
        same as f64 / LANES as f64
    }
}

/// A text of the user, as far as policy knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TextRecord {
    /// The memory that holds it.
    pub memory: MemoryId,
    /// When it was written.
    pub time: Timestamp,
    /// Its length (tokens, or an estimate).
    pub tokens: u32,
    /// Its sketch.
    pub signature: Signature,
    /// The context it belongs to.
    pub context: ContextId,
}

/// The user's texts, oldest first; at most [`TEXTS_MAX`] of the newest.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Texts(Vec<TextRecord>);

/// Texts that are kept in view (records of about 300 bytes): older ones have had their turn.
pub const TEXTS_MAX: usize = 4_096;

impl Texts {
    /// Takes a text in, in order of time; the same memory again replaces its record.
    pub fn insert(&mut self, record: TextRecord) {
        self.0.retain(|known| known.memory != record.memory);
        let place = self.0.partition_point(|known| (known.time, known.memory) <= (record.time, record.memory));
        self.0.insert(place, record);
        if self.0.len() > TEXTS_MAX {
            self.0.remove(0);
        }
    }

    /// Drops the texts of forgotten memories. Says whether there were any.
    pub fn forget(&mut self, memories: &BTreeSet<MemoryId>) -> bool {
        let before = self.0.len();
        self.0.retain(|known| !memories.contains(&known.memory));
        self.0.len() < before
    }

    /// Drops the texts of a context that no longer exists.
    pub fn drop_context(&mut self, context: ContextId) {
        self.0.retain(|known| known.context != context);
    }

    /// All texts, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &TextRecord> {
        self.0.iter()
    }

    /// Tokens of a context's texts.
    pub fn tokens(&self, context: ContextId) -> u64 {
        self.0.iter().filter(|text| text.context == context).map(|text| u64::from(text.tokens)).sum()
    }
}

/// How texts are selected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataPolicy {
    /// Tokens to train on, at least.
    pub train_tokens_min: u64,
    /// Tokens to train on, at most; the newest are taken.
    pub train_tokens_max: u64,
    /// The share of a context's tokens that is judged on, newest first, 0 to 1.
    pub held_out_share: f64,
    /// Texts to judge on, at least.
    pub held_out_min: usize,
    /// Texts to judge on, at most.
    pub held_out_max: usize,
    /// Texts written less than this before the first held-out text are left out (milliseconds).
    pub gap_ms: i64,
    /// Texts at least this similar to a held-out text are not trained on, 0 to 1.
    pub duplicate_similarity: f64,
    /// The share of base text in training, 0.2 to 0.5.
    pub replay_fraction: f64,
}

impl Default for DataPolicy {
    fn default() -> Self {
        Self {
            train_tokens_min: 2_000,
            train_tokens_max: 40_000,
            held_out_share: 0.25,
            held_out_min: 8,
            held_out_max: 64,
            gap_ms: 60_000,
            duplicate_similarity: 0.5,
            replay_fraction: 0.3,
        }
    }
}

/// What one job learns and is judged on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Learned, oldest first.
    pub train: Vec<MemoryId>,
    /// Judged on, oldest first; all later than everything in `train`.
    pub held_out: Vec<MemoryId>,
    /// Tokens in `train`.
    pub train_tokens: u64,
    /// Texts left out because they nearly repeat a held-out one.
    pub duplicates: usize,
    /// Texts left out because they lie in the gap.
    pub in_gap: usize,
}

/// Why nothing was selected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SelectionError {
    /// There are too few texts to judge on.
    #[error("{found} texts to judge on, at least {needed} are needed")]
    HeldOut {
        /// How many there are.
        found: usize,
        /// How many are needed.
        needed: usize,
    },
    /// There is too little text to learn.
    #[error("{found} tokens to learn, at least {needed} are needed")]
    Train {
        /// How many there are.
        found: u64,
        /// How many are needed.
        needed: u64,
    },
}

/// Splits a context's texts by time. `uses` counts how often a text was judged on: among texts of the newest part all are
/// taken, so fresh text comes first by itself. Costs train x held-out signature comparisons.
pub fn select(texts: &Texts, context: ContextId, policy: &DataPolicy) -> Result<Selection, SelectionError> {
    let all: Vec<&TextRecord> = texts.iter().filter(|text| text.context == context && text.tokens > 0).collect();
    let total: u64 = all.iter().map(|text| u64::from(text.tokens)).sum();
    let wanted = (total as f64 * policy.held_out_share) as u64;
    let mut held_out: Vec<&TextRecord> = Vec::new();
    let mut tokens = 0_u64;
    let mut oldest_held_out = all.len();
    for (index, text) in all.iter().enumerate().rev() {
        let enough = tokens >= wanted && held_out.len() >= policy.held_out_min;
        if enough || held_out.len() >= policy.held_out_max {
            break;
        }
        oldest_held_out = index;
        // A repeated text would count twice in the judgement.
        if held_out.iter().all(|h| h.signature.similarity(&text.signature) < policy.duplicate_similarity) {
            held_out.push(text);
            tokens += u64::from(text.tokens);
        }
    }
    let Some(boundary) = held_out.last().map(|text| text.time).filter(|_| held_out.len() >= policy.held_out_min) else {
        return Err(SelectionError::HeldOut { found: held_out.len(), needed: policy.held_out_min });
    };
    let mut selection = Selection {
        train: Vec::new(),
        held_out: held_out.iter().rev().map(|text| text.memory).collect(),
        train_tokens: 0,
        duplicates: 0,
        in_gap: 0,
    };
    for text in all[..oldest_held_out].iter().rev() {
        let room = policy.train_tokens_max.saturating_sub(selection.train_tokens);
        if boundary.millis_since(text.time) <= policy.gap_ms.max(0) {
            selection.in_gap += 1;
        } else if held_out.iter().any(|h| h.signature.similarity(&text.signature) >= policy.duplicate_similarity) {
            selection.duplicates += 1;
        } else if u64::from(text.tokens) <= room {
            selection.train_tokens += u64::from(text.tokens);
            selection.train.push(text.memory);
        } else {
            break;
        }
    }
    selection.train.reverse();
    if selection.train_tokens < policy.train_tokens_min || selection.train.is_empty() {
        return Err(SelectionError::Train { found: selection.train_tokens, needed: policy.train_tokens_min });
    }
    Ok(selection)
}

/// The largest number of uses among texts.
pub fn uses_of(uses: &BTreeMap<MemoryId, u32>, held_out: &[MemoryId]) -> u32 {
    held_out.iter().filter_map(|memory| uses.get(memory)).copied().max().unwrap_or(0)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn memory(number: u64) -> MemoryId {
        let mut bytes = [0; 16];
        bytes[8..].copy_from_slice(&number.to_be_bytes());
        MemoryId::from_bytes(bytes)
    }

    fn record(number: u64, minute: i64, text: &str) -> TextRecord {
        TextRecord {
            memory: memory(number),
            time: Timestamp::from_millis(minute * 60_000),
            tokens: 100,
            signature: Signature::of(text),
            context: ContextId(1),
        }
    }

    fn texts(n: u64) -> Texts {
        let mut texts = Texts::default();
        (0..n).for_each(|k| {
            let words = format!("entry {} about {} and {}", k * k * 7_919, k * 104_729, mix(k));
            texts.insert(record(k, k as i64 * 10, &words));
        });
        texts
    }

    #[test]
    fn what_is_judged_on_is_later_than_what_is_learned_with_a_gap() {
        let policy = DataPolicy { gap_ms: 25 * 60_000, ..DataPolicy::default() };
        let selection = select(&texts(60), ContextId(1), &policy).unwrap();
        assert_eq!(selection.held_out.len(), 15);
        assert_eq!(selection.in_gap, 2);
        assert_eq!(*selection.train.last().unwrap(), memory(42));
        assert_eq!(selection.held_out[0], memory(45));
    }

    #[test]
    fn near_duplicates_of_judged_text_are_not_learned() {
        let mut texts = texts(60);
        let sentence = "Up betimes and by water to White Hall, where I met with Mr. Coventry about the ships.";
        texts.insert(record(900, 15, sentence));
        texts.insert(record(901, 10_000, &sentence.replace("Mr. Coventry", "Sir W. Coventry")));
        let selection = select(&texts, ContextId(1), &DataPolicy::default()).unwrap();
        assert_eq!(selection.duplicates, 1);
        assert!(selection.held_out.contains(&memory(901)) && !selection.train.contains(&memory(900)));
    }

    #[test]
    fn a_text_repeated_at_the_end_is_judged_on_once() {
        let mut texts = texts(60);
        (0..5)
            .for_each(|k| texts.insert(record(900 + k, 10_000 + k as i64, "the very same words, over and over again")));
        let selection = select(&texts, ContextId(1), &DataPolicy::default()).unwrap();
        assert_eq!(selection.held_out.iter().filter(|m| **m >= memory(900)).count(), 1);
    }

    #[test]
    fn too_little_text_says_what_is_missing() {
        let error = select(&texts(5), ContextId(1), &DataPolicy::default()).unwrap_err();
        assert_eq!(error.to_string(), "5 texts to judge on, at least 8 are needed");
        let error = select(&texts(20), ContextId(1), &DataPolicy::default()).unwrap_err();
        assert!(matches!(error, SelectionError::Train { needed: 2_000, .. }));
    }

    #[test]
    fn forgotten_and_foreign_texts_are_not_selected() {
        let mut texts = texts(60);
        texts.insert(TextRecord { context: ContextId(2), ..record(999, 5, "elsewhere") });
        texts.forget(&BTreeSet::from([memory(3), memory(50)]));
        let selection = select(&texts, ContextId(1), &DataPolicy::default()).unwrap();
        let all: Vec<_> = selection.train.iter().chain(&selection.held_out).collect();
        assert!(!all.contains(&&memory(3)) && !all.contains(&&memory(50)) && !all.contains(&&memory(999)));
    }

    #[test]
    fn only_the_users_own_or_accepted_text_may_be_learned() {
        assert!(Authorship::Authored.may_train() && Authorship::Accepted.may_train());
        assert!(!Authorship::Model.may_train() && !Authorship::Other.may_train());
    }

    #[test]
    fn the_number_of_texts_is_bounded_and_the_newest_stay() {
        let mut texts = Texts::default();
        (0..TEXTS_MAX as u64 + 10).for_each(|k| texts.insert(record(k, k as i64, "")));
        assert_eq!(texts.iter().count(), TEXTS_MAX);
        assert_eq!(texts.iter().next().unwrap().memory, memory(10));
    }

    #[test]
    fn different_texts_look_different_and_equal_ones_equal() {
        let a = Signature::of("To the office, where we sat all the morning, and then home to dinner.");
        let b = Signature::of("TO THE OFFICE where we sat all the morning -- and then home to dinner");
        let c = Signature::of("This day my wife made it appear to me that she had reason to be jealous.");
        assert!((a.similarity(&b) - 1.0).abs() < 1e-9);
        assert!(a.similarity(&c) < 0.2);
        assert!(Signature::of("").similarity(&Signature::of("")) == 0.0);
    }

    proptest! {
        #[test]
        fn the_split_is_always_clean(
            stream in prop::collection::vec((0_i64..5_000, 1_u32..400, 0_u64..40), 0..120),
            gap in 0_i64..100, share in 0.05_f64..0.6,
        ) {
            let mut texts = Texts::default();
            for (index, (minute, tokens, words)) in stream.into_iter().enumerate() {
                let text = format!("{} {} {}", mix(words), mix(words + 1), mix(words + 2));
                texts.insert(TextRecord { tokens, ..record(index as u64, minute, &text) });
            }
            let policy =
                DataPolicy { gap_ms: gap * 60_000, held_out_share: share, train_tokens_min: 1, ..DataPolicy::default() };
            if let Ok(selection) = select(&texts, ContextId(1), &policy) {
                let find = |id: &MemoryId| texts.iter().find(|text| text.memory == *id).unwrap();
                prop_assert!(selection.held_out.len() >= policy.held_out_min);
                for train in selection.train.iter().map(find) {
                    for held_out in selection.held_out.iter().map(find) {
                        prop_assert!(held_out.time.millis_since(train.time) > policy.gap_ms);
                        prop_assert!(held_out.signature.similarity(&train.signature) < policy.duplicate_similarity);
                    }
                }
            }
        }
    }
}
