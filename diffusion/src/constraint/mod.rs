//! Constrained generation: what comes out matches a regular expression or a JSON Schema, always.
//!
//! ```
//! use std::sync::Arc;
//! use mneme_diffusion::constraint::{ByteDfa, Limits, Place, TokenAutomaton, Vocabulary, best_path};
//!
//! let vocabulary = Arc::new(Vocabulary::new(["a", "b", "ab", "</s>"].map(|t| Some(t.as_bytes().to_vec()))).unwrap());
//! let dfa = ByteDfa::regex("(ab)+", Limits::default()).unwrap();
//! // Token 3 ends the text and pads what is left of the hole.
//! let automaton = TokenAutomaton::new(dfa, vocabulary, Some(3), Limits::default()).unwrap();
//! // A hole of two tokens whose network would like "bb".
//! let row = [0.0, 9.0, 1.0, 0.0];
//! let path = best_path(&automaton, &[Place::Open(&row); 2]).unwrap();
//! assert_eq!(path.tokens, [0, 1]); // "a" "b", better than "ab" and an end
//! ```
//!
//! Reading order: [`ByteDfa`] (a language over bytes), `regex` and `schema` (where languages come from), [`Vocabulary`] and
//! [`TokenAutomaton`] (the same language over tokens; masks for autoregressive decoding), [`best_path`] (the best tokens of a canvas that
//! keep the language reachable: DINGO, arXiv 2505.23061), [`propose`] (the same for the holes of a sampler).
//!
//! The languages of schemas are subsets: every text that comes out is valid, but not every valid text can come out (see [`Limits`]).

mod dfa;
mod json;
mod nfa;
mod pattern;
mod schema;
#[cfg(test)]
mod tests;
mod token_automaton;
mod viterbi;
mod vocabulary;

pub use dfa::ByteDfa;
pub use token_automaton::{StateId, TokenAutomaton};
pub use viterbi::{Path, Place, best_path, propose};
pub use vocabulary::{VOCABULARY_TOKENS_MAX, Vocabulary};

/// What a constraint may cost, and how far unbounded parts of a schema are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// States of the byte automaton at most; its tables take about 1 KiB each while they are built.
    pub states: usize,
    /// States of the nondeterministic automaton that a schema is built into at most.
    pub nfa_states: usize,
    /// Memory for cached token lists at most (bytes).
    pub cache_bytes: usize,
    /// Longest regular expression, and longest schema (bytes).
    pub source_bytes: usize,
    /// A `$ref` to a schema inside itself is followed this many times.
    pub recursion: usize,
    /// Depth of values that no schema describes (`{}`, `true`, items without a schema); 0 allows scalars only.
    pub any_depth: usize,
    /// Characters of a string whose `maxLength` is larger, unless `minLength` asks for more.
    pub string_chars: usize,
    /// Items of an array whose `maxItems` is larger, unless `minItems` asks for more.
    pub array_items: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            states: 20_000,
            nfa_states: 200_000,
            cache_bytes: 128 << 20,
            source_bytes: 64 << 10,
            recursion: 3,
            any_depth: 1,
            string_chars: 256,
            array_items: 32,
        }
    }
}

/// Why a constraint could not be built or met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The expression is no regular expression, or uses what no automaton can express.
    #[error("regular expression does not compile: {reason}")]
    Regex {
        /// The compiler's words.
        reason: String,
    },
    /// The schema is not JSON, or a keyword has a value of the wrong kind.
    #[error("schema is malformed at {place}: {reason}")]
    Schema {
        /// JSON pointer into the schema.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A keyword that is not supported here.
    #[error("schema keyword {keyword} at {place} is not supported: {reason}")]
    Unsupported {
        /// JSON pointer into the schema.
        place: String,
        /// The keyword.
        keyword: String,
        /// Why, or what to write in its place.
        reason: String,
    },
    /// Nothing can match.
    #[error("constraint matches no text")]
    Empty,
    /// The constraint needs more than the limits give it.
    #[error("constraint needs more than {limit} {what}; make it simpler")]
    TooLarge {
        /// What ran out.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The vocabulary is empty or too large.
    #[error("vocabulary of {tokens} tokens, 1 to {limit} are accepted")]
    Vocabulary {
        /// Tokens given.
        tokens: usize,
        /// The limit.
        limit: usize,
    },
    /// The places that are decided, or their number, leave no text that matches.
    #[error("no text of {tokens} tokens matches the constraint with what is already decided")]
    Infeasible {
        /// Tokens of the hole.
        tokens: usize,
    },
    /// A row of logits is not as long as the vocabulary.
    #[error("row of logits has {length} values, the vocabulary has {expected} tokens")]
    RowLength {
        /// Its length.
        length: usize,
        /// The vocabulary's.
        expected: usize,
    },
}
