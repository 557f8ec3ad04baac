//! How byte-level vocabularies cut text before merging, by the name that a GGUF file gives.
//!
//! The patterns are those that the models' publishers ship in `tokenizer.json`; the names are llama.cpp's.

use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{NormalizerWrapper, SplitDelimiterBehavior, normalizers};

use super::TokenizerError;

/// GPT-4's pattern with digits in groups of up to three (Llama 3).
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// The same with single digits (Qwen 2).
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// A family of names that cut alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// GPT-2's pattern.
    Gpt2,
    /// Every digit alone, then GPT-2's pattern.
    Digits,
    /// [`QWEN2`] on text in normal form C.
    Qwen2,
    /// [`LLAMA3`]; a whole piece that is a token is taken without merging.
    Llama3,
}

const NAMES: [(&str, Cut); 20] = [
    ("gpt-2", Cut::Gpt2),
    ("mpt", Cut::Gpt2),
    ("olmo", Cut::Gpt2),
    ("phi-2", Cut::Gpt2),
    ("jina-es", Cut::Gpt2),
    ("jina-de", Cut::Gpt2),
    ("jina-v2-es", Cut::Gpt2),
    ("jina-v2-de", Cut::Gpt2),
    ("roberta-bpe", Cut::Gpt2),
    ("smollm", Cut::Digits),
    ("starcoder", Cut::Digits),
    ("refact", Cut::Digits),
    ("command-r", Cut::Digits),
    ("codeshell", Cut::Digits),
    ("exaone", Cut::Digits),
    ("qwen2", Cut::Qwen2),
    ("deepseek-r1-qwen", Cut::Qwen2),
    ("stablelm2", Cut::Qwen2),
    ("llama-bpe", Cut::Llama3),
    ("llama3", Cut::Llama3),
];

/// What a named pre-tokenizer means for the tokenizer.
pub(super) struct Plan {
    pub(super) normalizer: Option<NormalizerWrapper>,
    pub(super) pre_tokenizer: PreTokenizerWrapper,
    pub(super) ignore_merges: bool,
}

/// Looks a name up.
pub(super) fn plan(name: &str) -> Result<Plan, TokenizerError> {
    let cut = NAMES.iter().find(|(known, _)| *known == name).map(|&(_, cut)| cut).ok_or_else(|| {
        TokenizerError::UnknownPreTokenizer { name: name.to_owned(), known: NAMES.map(|(known, _)| known).join(", ") }
    })?;
    let byte_level = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, true, use_regex));
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.to_owned()), SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::from)
            .map_err(TokenizerError::library("compiling a pre-tokenizer's pattern"))
    };
    let sequence = |first, second| PreTokenizerWrapper::from(Sequence::new(vec![first, second]));
    Ok(match cut {
        Cut::Gpt2 => Plan { normalizer: None, pre_tokenizer: byte_level(true), ignore_merges: false },
        Cut::Digits => Plan {
            normalizer: None,
            pre_tokenizer: sequence(Digits::new(true).into(), byte_level(true)),
            ignore_merges: false,
        },
        Cut::Qwen2 => Plan {
            normalizer: Some(normalizers::NFC.into()),
            pre_tokenizer: sequence(split(QWEN2)?, byte_level(false)),
            ignore_merges: false,
        },
        Cut::Llama3 => {
            Plan { normalizer: None, pre_tokenizer: sequence(split(LLAMA3)?, byte_level(false)), ignore_merges: true }
        }
    })
}
