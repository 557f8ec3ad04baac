//! Tokenizers, chunking and secret redaction.
