//! Tokenizers, chunking and secret redaction. Knows nothing of files, models or sockets: text in, numbers or text out.
//!
//! Reading order: [`redact`], [`chunk`], [`tokenizer`] (with the feature `tokenizers`).

pub mod chunk;
pub mod redact;
#[cfg(feature = "tokenizers")]
pub mod tokenizer;

pub use chunk::{Chunk, ChunkOptions, TextFormat, TokenCounter, chunk};
pub use redact::{Finding, Redacted, SecretKind, redact};
#[cfg(feature = "tokenizers")]
pub use tokenizer::{
    ControlText, ControlTokens, DecodeStream, EncodeOptions, Encoding, FastTokenizer, TokenizerError, Vocabulary,
};
