//! Tokenizers, chunking and secret redaction. Knows nothing of files, models or sockets: text in, numbers or text out.
//!
//! Reading order: [`tokenizer`] (with the feature `tokenizers`).

#[cfg(feature = "tokenizers")]
pub mod tokenizer;

#[cfg(feature = "tokenizers")]
pub use tokenizer::{
    ControlText, ControlTokens, DecodeStream, EncodeOptions, Encoding, FastTokenizer, TokenizerError, Vocabulary,
};
