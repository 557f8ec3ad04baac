//! The portable form of a skill: one line of JSON that names the card and its file, then the file's bytes. What is read here comes
//! from elsewhere: every length has a bound, the line is hashed, and the hash of the file stands in the card.
//!
//! A card that arrives is a claim. Its scores are kept and shown, and nothing is decided by them.

use mneme_base::{AdapterId, ContentHash};
use mneme_engine_api::AdapterLevel;
use serde::{Deserialize, Serialize};

use crate::registry::SkillCard;

/// The first line of a skill is refused when it is longer (bytes): the longest lists fit, and the row that takes it in stays well
/// below what the store takes as one document.
pub const CARD_BYTES_MAX: usize = 2 << 20;
/// A card names at most this many memories that it learned, and as many that it was judged on; a job reads some thousands.
const MEMORIES_MAX: usize = 16_384;
/// A card gives at most this many reasons; one that was accepted has none.
const REASONS_MAX: usize = 32;
/// The longest of them (bytes).
const REASON_BYTES_MAX: usize = 1 << 10;
/// A skill's file is refused when it is larger (bytes): selected layers of a model of a billion parameters fit.
pub const FILE_BYTES_MAX: u64 = 256 << 20;
/// The form of an exported card.
const VERSION: u32 = 1;
/// What the name of every adapter's file starts with.
const FILE_STEM: &str = "adapter.";
/// The longest ending of such a name (bytes).
const FILE_ENDING_MAX: usize = 16;
/// Dimensions farther apart than this have nothing in common (cosine distance).
const RADIUS_MAX: f32 = 1.0;

/// A card that could not be read or taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CardError {
    /// It is too large.
    #[error("card has {bytes} bytes or more, allowed are {CARD_BYTES_MAX}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// It is not JSON of a card.
    #[error("card could not be read")]
    Malformed(#[source] serde_json::Error),
    /// It is of another version.
    #[error("card has version {found}, this build reads {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It was changed after its export.
    #[error("card hashes to {found}, it says {stated}")]
    Hash {
        /// What it hashes to.
        found: ContentHash,
        /// What it says.
        stated: ContentHash,
    },
    /// One of its values is out of bounds.
    #[error("card has {field} {problem}")]
    Value {
        /// Which value.
        field: &'static str,
        /// What it is and what is allowed.
        problem: String,
    },
    /// An adapter of that name is known already.
    #[error("adapter {0} is known already")]
    Known(AdapterId),
    /// It learned a memory that the user has forgotten.
    #[error("adapter {0} learned a forgotten memory")]
    Forgotten(AdapterId),
    /// So many imported ones are kept already.
    #[error("{kept} imported adapters are kept, no more are allowed: retire one with 'mneme evolve retire'")]
    TooMany {
        /// How many.
        kept: usize,
    },
    /// It belongs to another base model.
    #[error("adapter {adapter} is bound to base {theirs}, this one is {ours}")]
    Base {
        /// Which adapter.
        adapter: AdapterId,
        /// What it is bound to.
        theirs: ContentHash,
        /// The base here.
        ours: ContentHash,
    },
    /// The base model here is not known yet, so nothing can be said of the card's.
    #[error("the base model is not known before an engine has started")]
    NoBase,
}

/// The first line. The hash is over the card's JSON text as it stands.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exported {
    version: u32,
    hash: ContentHash,
    file: String,
    card: String,
}

/// Whether an adapter's file may have this name: no path, no hidden file, none of the loop's own.
pub fn is_file_name(name: &str) -> bool {
    name.strip_prefix(FILE_STEM).is_some_and(|ending| {
        (1..=FILE_ENDING_MAX).contains(&ending.len())
            && ending.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

impl SkillCard {
    /// Writes the card and its file's name as one line of JSON, with a hash over the card.
    pub fn export(&self, file: &str) -> String {
        let card = serde_json::to_string(self).expect("a card has string keys only");
        let hash = ContentHash::of(card.as_bytes());
        let exported = Exported { version: VERSION, hash, file: file.to_owned(), card };
        let mut line = serde_json::to_string(&exported).expect("the form has string keys only");
        line.push('\n');
        line
    }

    /// Reads what [`Self::export`] wrote: the card and its file's name. Refuses what was changed since, and what no export
    /// writes.
    pub fn import(line: &[u8]) -> Result<(Self, String), CardError> {
        if line.len() > CARD_BYTES_MAX {
            return Err(CardError::TooLarge { bytes: line.len() });
        }
        let exported: Exported = serde_json::from_slice(line).map_err(CardError::Malformed)?;
        if exported.version != VERSION {
            return Err(CardError::Version { found: exported.version });
        }
        let found = ContentHash::of(exported.card.as_bytes());
        if found != exported.hash {
            return Err(CardError::Hash { found, stated: exported.hash });
        }
        let card: Self = serde_json::from_str(&exported.card).map_err(CardError::Malformed)?;
        card.check()?;
        if !is_file_name(&exported.file) {
            let problem = String::from("that is not 'adapter.' and a short ending of small letters and digits");
            return Err(CardError::Value { field: "a file name", problem });
        }
        Ok((card, exported.file))
    }

    /// Whether every value is one that a card can have.
    fn check(&self) -> Result<(), CardError> {
        let refuse = |field, problem: String| Err(CardError::Value { field, problem });
        if self.level == AdapterLevel::Composition {
            return refuse("a level", String::from("that has no weights of its own"));
        }
        if !(self.radius > 0.0 && self.radius <= RADIUS_MAX) {
            return refuse("a radius", format!("of {}, allowed are 0 to {RADIUS_MAX}", self.radius));
        }
        if !(self.scale > 0.0 && self.scale <= 1.0) {
            return refuse("a scale", format!("of {}, allowed are 0 to 1", self.scale));
        }
        if self.bytes == 0 || self.bytes > FILE_BYTES_MAX {
            return refuse("a file", format!("of {} bytes, allowed are 1 to {FILE_BYTES_MAX}", self.bytes));
        }
        if self.parent == Some(self.adapter) {
            return refuse("a parent", String::from("that is itself"));
        }
        for (field, memories) in [("a lineage", &self.lineage), ("a list of what it was judged on", &self.judged_on)] {
            if memories.len() > MEMORIES_MAX {
                return refuse(field, format!("of {} memories, allowed are {MEMORIES_MAX}", memories.len()));
            }
        }
        let reasons = &self.scores.reasons;
        if reasons.len() > REASONS_MAX || reasons.iter().any(|reason| reason.len() > REASON_BYTES_MAX) {
            let bytes = reasons.iter().map(String::len).max().unwrap_or(0);
            let bounds = format!("allowed are {REASONS_MAX} of {REASON_BYTES_MAX}");
            return refuse("reasons", format!("({} of up to {bytes} bytes), {bounds}", reasons.len()));
        }
        if !self.cpu_seconds.is_finite() || self.cpu_seconds < 0.0 {
            return refuse("CPU seconds", format!("of {}", self.cpu_seconds));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::card;
    use proptest::prelude::*;

    const FILE: &str = "adapter.safetensors";

    /// The line of a card after a change that its hash agrees with.
    fn forged(change: impl FnOnce(&mut SkillCard)) -> String {
        let mut card = card(1, None, &[1]);
        change(&mut card);
        card.export(FILE)
    }

    #[test]
    fn an_exported_card_comes_back_as_it_was() {
        let card = card(1, Some(2), &[1, 2, 3]);
        let line = card.export(FILE);
        assert_eq!(line.find('\n'), Some(line.len() - 1), "it is one line");
        assert_eq!(SkillCard::import(line.as_bytes()).unwrap(), (card, FILE.to_owned()));
    }

    #[test]
    fn a_changed_card_is_refused() {
        let text = card(1, None, &[1]).export(FILE);
        let changed = text.replace("\\\"scale\\\":0.75", "\\\"scale\\\":0.95");
        assert_ne!(text, changed);
        let import = |text: &str| SkillCard::import(text.as_bytes());
        assert!(matches!(import(&changed), Err(CardError::Hash { .. })));
        assert!(matches!(import("{}"), Err(CardError::Malformed(_))));
        assert!(matches!(
            import(&text.replace("\"version\":1", "\"version\":9")),
            Err(CardError::Version { found: 9 })
        ));
        assert!(matches!(import(&" ".repeat(CARD_BYTES_MAX + 1)), Err(CardError::TooLarge { .. })));
        assert!(matches!(
            import(&text.replace("{\"version\"", "{\"more\":1,\"version\"")),
            Err(CardError::Malformed(_))
        ));
    }

    #[test]
    fn values_that_no_card_has_are_refused_although_the_hash_is_right() {
        let refused = |change: fn(&mut SkillCard)| match SkillCard::import(forged(change).as_bytes()) {
            Err(CardError::Value { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(refused(|card| card.radius = 1.5), "a radius");
        assert_eq!(refused(|card| card.radius = 0.0), "a radius");
        assert_eq!(refused(|card| card.scale = 1.01), "a scale");
        assert_eq!(refused(|card| card.scale = -0.5), "a scale");
        assert_eq!(refused(|card| card.bytes = FILE_BYTES_MAX + 1), "a file");
        assert_eq!(refused(|card| card.level = AdapterLevel::Composition), "a level");
        assert_eq!(refused(|card| card.parent = Some(card.adapter)), "a parent");
        assert_eq!(refused(|card| card.cpu_seconds = -1.0), "CPU seconds");
        assert_eq!(refused(|card| card.lineage = vec![card.lineage[0]; MEMORIES_MAX + 1]), "a lineage");
        assert_eq!(
            refused(|card| card.judged_on = vec![card.lineage[0]; MEMORIES_MAX + 1]),
            "a list of what it was judged on"
        );
        assert_eq!(refused(|card| card.scores.reasons = vec!["x".repeat(REASON_BYTES_MAX + 1)]), "reasons");
        assert_eq!(refused(|card| card.scores.reasons = vec![String::new(); REASONS_MAX + 1]), "reasons");
        // What is no number is written as null, which is none either.
        assert!(matches!(
            SkillCard::import(forged(|card| card.scale = f64::NAN).as_bytes()),
            Err(CardError::Malformed(_))
        ));
    }

    #[test]
    fn the_longest_card_makes_a_row_that_the_store_takes() {
        use crate::machine::Change;
        let mut card = card(1, None, &[]);
        card.lineage = (0..MEMORIES_MAX as u64).map(crate::data::tests::memory).collect();
        card.judged_on = card.lineage.clone();
        card.scores.reasons = vec!["\u{1}".repeat(REASON_BYTES_MAX); REASONS_MAX];
        let components = (0..8_192).map(|n| 0.011_048_543 + n as f32 * 1e-8).collect();
        card.centroid = mneme_base::Embedding::normalized(components).unwrap();
        let line = card.export(FILE);
        SkillCard::import(line.as_bytes()).unwrap();
        let foreign = card.lineage.iter().copied().collect();
        let row = serde_json::to_vec(&Change::Imported { card: Box::new(card), foreign }).unwrap();
        assert!(row.len() < crate::machine::IMPORT_BYTES_MAX, "{}", row.len());
    }

    #[test]
    fn a_file_name_leads_nowhere() {
        for name in ["adapter.safetensors", "adapter.txt", "adapter.v2"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in [
            "",
            "adapter.",
            "job.json",
            "outcome.json",
            "../adapter.txt",
            "adapter./x",
            "adapter.../../x",
            "adapter.tx\0t",
            "adapter.TXT",
            "/adapter.txt",
            "adapter.aaaaaaaaaaaaaaaaa",
        ] {
            assert!(!is_file_name(name), "{name}");
            assert!(SkillCard::import(card(1, None, &[1]).export(name).as_bytes()).is_err(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0_usize..4_000, byte: u8) {
            _ = SkillCard::import(&bytes);
            let mut line = card(1, None, &[1]).export(FILE).into_bytes();
            let at = at % line.len();
            let changed = line[at] != byte;
            line[at] = byte;
            // A changed byte is found out, unless it stands in white space or in the file's name, which another hash guards.
            if let (Ok((read, _)), true) = (SkillCard::import(&line), changed) {
                prop_assert_eq!(read, card(1, None, &[1]));
            }
        }
    }
}
