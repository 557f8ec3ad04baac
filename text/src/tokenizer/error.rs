//! What can go wrong while building or using a tokenizer.

use std::error::Error;

/// Why a tokenizer cannot be built or a text cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// The text is longer than the tokenizer accepts; nothing was allocated for it.
    #[error("the text has {bytes} bytes, the tokenizer accepts {bytes_max}")]
    TooLong {
        /// Length of the text (bytes).
        bytes: usize,
        /// The limit (bytes).
        bytes_max: usize,
    },
    /// The id is not in the vocabulary.
    #[error("token id {id} is not in the vocabulary of {size} tokens")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Size of the vocabulary (tokens).
        size: usize,
    },
    /// The vocabulary is of a kind that cannot be built from its parts.
    #[error("a vocabulary of the kind {model:?} is not supported, only gpt2, llama and bert are")]
    UnsupportedModel {
        /// The kind.
        model: String,
    },
    /// A byte-level vocabulary names no pre-tokenizer or one that is not known; guessing would give wrong ids silently.
    #[error("the pre-tokenizer {name:?} is not known; known are {known}")]
    UnknownPreTokenizer {
        /// The name, empty when there is none.
        name: String,
        /// The names that are known.
        known: String,
    },
    /// The parts of the vocabulary contradict each other.
    #[error("malformed vocabulary: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// The tokenizer library refused.
    #[error("the tokenizer library refused while {attempt}")]
    Library {
        /// What was attempted.
        attempt: &'static str,
        /// The library's reason.
        #[source]
        source: Box<dyn Error + Send + Sync>,
    },
}

impl TokenizerError {
    pub(super) fn library(attempt: &'static str) -> impl Fn(Box<dyn Error + Send + Sync>) -> Self {
        move |source| Self::Library { attempt, source }
    }
}
