//! The tokenizer inside a GGUF file, as plain values that a tokenizer can be built from.

use super::{GgufFile, MetadataValue};
use crate::OpenError;

/// The vocabulary of a GGUF file (`tokenizer.*` keys).
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "parquet", derive(serde::Serialize, serde::Deserialize))]
pub struct GgufVocabulary {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece), `bert` (WordPiece), `t5` (Unigram).
    pub model: String,
    /// Name of the pre-tokenizer (`smollm`, `qwen2`, `llama-bpe`); `None` in old files.
    pub pre_tokenizer: Option<String>,
    /// The text of each token, by id.
    pub tokens: Vec<String>,
    /// `left right` pairs in order of rank; empty for models without merges.
    pub merges: Vec<String>,
    /// Kind of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte; empty when absent.
    pub token_types: Vec<i32>,
    /// Log-probabilities of SentencePiece and Unigram tokens; empty when absent.
    pub scores: Vec<f32>,
    /// Beginning-of-sequence token.
    pub bos_id: Option<u32>,
    /// End-of-sequence token.
    pub eos_id: Option<u32>,
    /// Token for the unknown.
    pub unknown_id: Option<u32>,
    /// Padding token.
    pub padding_id: Option<u32>,
    /// Whether an encoded text starts with the beginning-of-sequence token.
    pub add_bos: bool,
    /// Whether an encoded text ends with the end-of-sequence token.
    pub add_eos: bool,
    /// Whether a space is put before the text (SentencePiece).
    pub add_space_prefix: bool,
    /// The Jinja chat template.
    pub chat_template: Option<String>,
}

pub(super) fn read(file: &GgufFile) -> Result<Option<GgufVocabulary>, OpenError> {
    let malformed = |reason: String| OpenError::Malformed { format: "GGUF", reason };
    let Some(tokens) = file.get("tokenizer.ggml.tokens") else { return Ok(None) };
    let tokens = tokens.as_strings().ok_or_else(|| malformed("tokenizer.ggml.tokens is not a list of texts".into()))?;
    let list = |key: &str, length: usize| {
        let matches = length == tokens.len();
        if matches { Ok(()) } else { Err(malformed(format!("{key} has {length} entries for {} tokens", tokens.len()))) }
    };

    let token_types = file.get("tokenizer.ggml.token_type").and_then(MetadataValue::as_i32s).unwrap_or_default();
    let scores = file.get("tokenizer.ggml.scores").and_then(MetadataValue::as_f32s).unwrap_or_default();
    if !token_types.is_empty() {
        list("tokenizer.ggml.token_type", token_types.len())?;
    }
    if !scores.is_empty() {
        list("tokenizer.ggml.scores", scores.len())?;
    }
    let id = |key: &str| match file.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(id) if id < tokens.len() as u64 => Ok(u32::try_from(id).ok()),
            // Some converters write -1 or the maximum for "none".
            None => Ok(None),
            Some(id) if id >= u64::from(u32::MAX) => Ok(None),
            Some(id) => Err(malformed(format!("{key} is {id}, the vocabulary has {} tokens", tokens.len()))),
        },
    };
    let text = |key: &str| file.get(key).and_then(MetadataValue::as_str).map(str::to_owned);
    let flag = |key: &str| file.get(key).and_then(MetadataValue::as_bool);
    let merges = file.get("tokenizer.ggml.merges").and_then(MetadataValue::as_strings).unwrap_or_default();
    let model = text("tokenizer.ggml.model").ok_or_else(|| malformed("tokenizer.ggml.model is missing".into()))?;

    Ok(Some(GgufVocabulary {
        // llama.cpp's defaults where the key is absent: SentencePiece models start with BOS and a space.
        add_bos: flag("tokenizer.ggml.add_bos_token").unwrap_or(model == "llama"),
        add_eos: flag("tokenizer.ggml.add_eos_token").unwrap_or(false),
        add_space_prefix: flag("tokenizer.ggml.add_space_prefix").unwrap_or(model == "llama"),
        pre_tokenizer: text("tokenizer.ggml.pre"),
        tokens: tokens.to_vec(),
        merges: merges.to_vec(),
        token_types: token_types.to_vec(),
        scores: scores.to_vec(),
        bos_id: id("tokenizer.ggml.bos_token_id")?,
        eos_id: id("tokenizer.ggml.eos_token_id")?,
        unknown_id: id("tokenizer.ggml.unknown_token_id")?,
        padding_id: id("tokenizer.ggml.padding_token_id")?,
        chat_template: text("tokenizer.chat_template"),
        model,
    }))
}
