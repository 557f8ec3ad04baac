//! Builds a tokenizer from the vocabulary that a GGUF file carries.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, Prepend, Replace, Sequence as NormalizerSequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::processors::template::{Template, TemplateProcessing};
use tokenizers::{AddedToken, Tokenizer, decoders};

use super::TokenizerError;
use super::pre_tokenizers;

/// The kinds of tokens in a GGUF file (`tokenizer.ggml.token_type`).
const TYPE_UNKNOWN: i32 = 2;
const TYPE_CONTROL: i32 = 3;
const TYPE_USER_DEFINED: i32 = 4;
const TYPE_NORMAL: i32 = 1;

/// A vocabulary as plain values; `mneme_weights::GgufVocabulary` has the same fields.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vocabulary<'a> {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece BPE) or `bert` (WordPiece).
    pub model: &'a str,
    /// Name of the pre-tokenizer of a byte-level vocabulary (`smollm`, `qwen2`, `llama-bpe`, `gpt-2`).
    pub pre_tokenizer: Option<&'a str>,
    /// The text of each token, by id.
    pub tokens: &'a [String],
    /// `left right` pairs in order of rank; needed by byte-level vocabularies.
    pub merges: &'a [String],
    /// Kind of each token (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte); empty when unknown.
    pub token_types: &'a [i32],
    /// Score of each token; needed by SentencePiece.
    pub scores: &'a [f32],
    /// Put before an encoded text when the template is asked for.
    pub bos_id: Option<u32>,
    /// Put after an encoded text when the template is asked for.
    pub eos_id: Option<u32>,
    /// Whether the template starts with `bos_id`.
    pub add_bos: bool,
    /// Whether the template ends with `eos_id`.
    pub add_eos: bool,
    /// Whether SentencePiece puts a space before the text.
    pub add_space_prefix: bool,
}

pub(super) fn tokenizer(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    if vocabulary.tokens.is_empty() {
        return Err(malformed("there are no tokens".to_owned()));
    }
    for (name, length) in [("token types", vocabulary.token_types.len()), ("scores", vocabulary.scores.len())] {
        if length != 0 && length != vocabulary.tokens.len() {
            return Err(malformed(format!("{length} {name} for {} tokens", vocabulary.tokens.len())));
        }
    }
    let mut tokenizer = match vocabulary.model {
        "gpt2" => byte_level(vocabulary)?,
        "llama" => sentence_piece(vocabulary)?,
        "bert" => word_piece(vocabulary)?,
        other => return Err(TokenizerError::UnsupportedModel { model: other.to_owned() }),
    };
    let special = |kind: i32| [TYPE_UNKNOWN, TYPE_CONTROL].contains(&kind);
    let added: Vec<AddedToken> = vocabulary
        .tokens
        .iter()
        .zip(vocabulary.token_types)
        .filter(|&(_, &kind)| special(kind) || kind == TYPE_USER_DEFINED)
        .map(|(text, &kind)| AddedToken { special: special(kind), ..AddedToken::from(text.as_str(), true) })
        .collect();
    tokenizer.add_special_tokens(added).map_err(TokenizerError::library("adding control tokens"))?;
    let template = template(vocabulary)?;
    if template.is_some() {
        tokenizer.with_post_processor(template);
    }
    Ok(tokenizer)
}

fn byte_level(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    let plan = pre_tokenizers::plan(vocabulary.pre_tokenizer.unwrap_or_default())?;
    let merges = vocabulary
        .merges
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((left, right)) => Ok((left.to_owned(), right.to_owned())),
            None => Err(malformed(format!("the merge {merge:?} is not a pair"))),
        })
        .collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(ids(vocabulary), merges)
        .ignore_merges(plan.ignore_merges)
        .build()
        .map_err(TokenizerError::library("building a byte-level vocabulary"))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_normalizer(plan.normalizer).map_err(TokenizerError::library("setting the normalizer"))?;
    tokenizer.with_pre_tokenizer(Some(plan.pre_tokenizer));
    tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
    Ok(tokenizer)
}

/// SentencePiece's BPE has scores instead of merges: of all pairs that form a token, the one with the best score merges
/// first. Every way to cut a token into two tokens is therefore a merge, ranked by the token's score.
fn sentence_piece(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    if vocabulary.scores.is_empty() {
        return Err(malformed("a SentencePiece vocabulary needs scores".to_owned()));
    }
    let by_text = ids(vocabulary);
    let kind = |id: u32| vocabulary.token_types.get(id as usize).copied().unwrap_or(TYPE_NORMAL);
    let mut ranked: Vec<(f32, u32, u32, u32)> = Vec::new();
    for (id, (text, &score)) in (0_u32..).zip(vocabulary.tokens.iter().zip(vocabulary.scores)) {
        if kind(id) != TYPE_NORMAL {
            continue;
        }
        for (cut, _) in text.char_indices().skip(1) {
            let (left, right) = text.split_at(cut);
            if let (Some(&left), Some(&right)) = (by_text.get(left), by_text.get(right)) {
                ranked.push((score, id, left, right));
            }
        }
    }
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| (a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    let text = |id: u32| vocabulary.tokens[id as usize].clone();
    let merges = ranked.into_iter().map(|(_, _, left, right)| (text(left), text(right))).collect();
    let unknown = (0_u32..).zip(vocabulary.tokens).find(|&(id, _)| kind(id) == TYPE_UNKNOWN);
    let mut builder = BPE::builder().vocab_and_merges(by_text, merges).byte_fallback(true).fuse_unk(true);
    if let Some((_, unknown)) = unknown {
        builder = builder.unk_token(unknown.clone());
    }
    let model = builder.build().map_err(TokenizerError::library("building a SentencePiece vocabulary"))?;

    let replace = |from: &str, to: &str| {
        Replace::new(from.to_owned(), to).map_err(TokenizerError::library("compiling a replacement"))
    };
    let mut normalizers = vec![replace(" ", "▁")?.into()];
    let mut decoders: Vec<decoders::DecoderWrapper> = vec![
        replace("▁", " ")?.into(),
        decoders::byte_fallback::ByteFallback::new().into(),
        decoders::fuse::Fuse::new().into(),
    ];
    if vocabulary.add_space_prefix {
        normalizers.insert(0, Prepend::new("▁".to_owned()).into());
        decoders.push(decoders::strip::Strip::new(' ', 1, 0).into());
    }
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(NormalizerSequence::new(normalizers)))
        .map_err(TokenizerError::library("setting the normalizer"))?;
    tokenizer.with_decoder(Some(decoders::sequence::Sequence::new(decoders)));
    Ok(tokenizer)
}

/// GGUF stores WordPiece the other way round: words start with `▁`, continuing pieces carry no mark.
fn word_piece(vocabulary: &Vocabulary<'_>) -> Result<Tokenizer, TokenizerError> {
    let mut by_text = Vocab::with_capacity(vocabulary.tokens.len());
    for (id, text) in (0_u32..).zip(vocabulary.tokens) {
        let kind = vocabulary.token_types.get(id as usize).copied().unwrap_or(TYPE_NORMAL);
        let restored = match text.strip_prefix('▁') {
            Some(word) => word.to_owned(),
            None if kind == TYPE_NORMAL && !(text.starts_with('[') && text.ends_with(']')) => format!("##{text}"),
            None => text.clone(),
        };
        by_text.entry(restored).or_insert(id);
    }
    let model = WordPiece::builder()
        .vocab(by_text)
        .unk_token("[UNK]".to_owned())
        .build()
        .map_err(TokenizerError::library("building a WordPiece vocabulary"))?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer
        .with_normalizer(Some(BertNormalizer::new(true, true, Some(true), true)))
        .map_err(TokenizerError::library("setting the normalizer"))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(decoders::wordpiece::WordPiece::default()));
    Ok(tokenizer)
}

/// The tokens around a text.
fn template(vocabulary: &Vocabulary<'_>) -> Result<Option<TemplateProcessing>, TokenizerError> {
    let token = |wanted: bool, id: Option<u32>| match id.filter(|_| wanted) {
        None => Ok(None),
        Some(id) => match vocabulary.tokens.get(id as usize) {
            Some(text) => Ok(Some((text.clone(), id))),
            None => Err(malformed(format!("id {id} of {} tokens in the template", vocabulary.tokens.len()))),
        },
    };
    let before = token(vocabulary.add_bos, vocabulary.bos_id)?;
    let after = token(vocabulary.add_eos, vocabulary.eos_id)?;
    if before.is_none() && after.is_none() {
        return Ok(None);
    }
    let pieces: Vec<String> = [
        before.as_ref().map(|(text, _)| text.clone()),
        Some("$A".to_owned()),
        after.as_ref().map(|(text, _)| text.clone()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let single = Template::try_from(pieces).map_err(malformed)?;
    let tokens: Vec<(String, u32)> = before.into_iter().chain(after).collect();
    TemplateProcessing::builder()
        .single(single)
        .special_tokens(tokens)
        .build()
        .map(Some)
        .map_err(|error| malformed(error.to_string()))
}

/// Ids by text; of two equal texts the first keeps the name.
fn ids(vocabulary: &Vocabulary<'_>) -> Vocab {
    let mut map = Vocab::with_capacity(vocabulary.tokens.len());
    for (id, text) in (0_u32..).zip(vocabulary.tokens) {
        map.entry(text.clone()).or_insert(id);
    }
    map
}

fn malformed(reason: String) -> TokenizerError {
    TokenizerError::Malformed { reason }
}
