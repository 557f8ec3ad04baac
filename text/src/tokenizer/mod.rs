//! FastTokenizer: BPE, WordPiece and Unigram tokenizers over the `tokenizers` crate, made safe for text from outside.
//!
//! What it adds to the crate: text cannot smuggle in control tokens (`<|im_start|>` typed by a person stays text), input
//! length is bounded, the exact bytes of every token are known, decoding streams, vocabularies inside GGUF files are
//! understood, and padding or truncation baked into a `tokenizer.json` is ignored.
//!
//! ```
//! use mneme_text::{ControlText, EncodeOptions, FastTokenizer, Vocabulary};
//! let tokens = ["<|im_end|>", "a", "b", "Ġ", "ab"].map(String::from);
//! let tokenizer = FastTokenizer::from_vocabulary(&Vocabulary {
//!     model: "gpt2",
//!     pre_tokenizer: Some("smollm"),
//!     tokens: &tokens,
//!     merges: &["a b".to_owned()],
//!     token_types: &[3, 1, 1, 1, 1],
//!     ..Vocabulary::default()
//! }).unwrap();
//! assert_eq!(tokenizer.encode("ab a").unwrap(), [4, 3, 1]);
//! assert_eq!(tokenizer.decode(&[4, 3, 1], ControlText::Show).unwrap(), "ab a");
//! assert_eq!(tokenizer.token_bytes(3), Some(b" ".as_slice()));
//! ```
//!
//! Batches run on rayon's global pool; the environment variable `TOKENIZERS_PARALLELISM=false` turns that off.

mod build;
mod error;
mod pieces;
mod pre_tokenizers;
mod stream;

use std::collections::HashSet;
use std::fmt;
use std::sync::OnceLock;

use tokenizers::utils::parallelism::MaybeParallelIterator;
use tokenizers::utils::truncation::TruncationDirection;
use tokenizers::{AddedToken, Model, PostProcessor, Tokenizer};

pub use build::Vocabulary;
pub use error::TokenizerError;
use pieces::{Family, Pieces};
pub use stream::DecodeStream;

/// Longer texts are refused by default: a prompt or memory is far shorter, and encoding takes about 100 bytes of working
/// memory per byte of text (bytes).
pub const INPUT_BYTES_MAX_DEFAULT: usize = 4 << 20;

/// What happens when a text spells a control token such as `<|im_start|>` or `[SEP]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlTokens {
    /// It stays text, cut into ordinary tokens: the only safe choice for text from outside.
    #[default]
    AsText,
    /// It becomes the control token: for templates that this program wrote.
    Recognize,
}

/// Whether decoding spells out control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ControlText {
    /// Control tokens leave no trace in the text.
    #[default]
    Hide,
    /// Control tokens appear by their names.
    Show,
}

/// How to encode; the default takes text from outside as it is, whole, without the model's template.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EncodeOptions {
    /// What control tokens in the text become.
    pub control: ControlTokens,
    /// Whether the model's template is put around the text (`[CLS]`...`[SEP]`, beginning of sequence).
    pub template: bool,
    /// Cuts the end of the text so that all tokens, template included, number at most this.
    pub tokens_max: Option<usize>,
}

/// An encoded text.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// For each token the bytes of the text that it covers (start, end); (0, 0) for tokens of the template. Tokens
    /// that share a character both name the whole character.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer that is cheap to share between threads (put it in an `Arc`) and safe on text from outside.
pub struct FastTokenizer {
    /// Does not recognise control tokens in text.
    literal: Tokenizer,
    /// A copy that does; made when first asked for.
    recognizing: OnceLock<Tokenizer>,
    family: Family,
    pieces: Pieces,
    control: HashSet<u32>,
    /// What control tokens are replaced with when the model itself produced one from plain text.
    unknown: Option<u32>,
    input_bytes_max: usize,
}

impl FastTokenizer {
    /// Reads a `tokenizer.json`. Padding and truncation set in the file are dropped: callers say what they want.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        Self::new(contain("reading tokenizer.json", || Tokenizer::from_bytes(json))?)
    }

    /// Builds a tokenizer from the vocabulary of a GGUF file.
    pub fn from_vocabulary(vocabulary: &Vocabulary<'_>) -> Result<Self, TokenizerError> {
        Self::new(build::tokenizer(vocabulary)?)
    }

    fn new(mut literal: Tokenizer) -> Result<Self, TokenizerError> {
        literal.with_padding(None);
        literal.with_truncation(None).map_err(TokenizerError::library("dropping the truncation"))?;
        let family = Family::of(literal.get_decoder());
        let added = literal.get_added_tokens_decoder();
        // Some vocabularies forget to mark tokens such as `<tool_call>` as special; by their look they are control all the same.
        let looks_like_control = |text: &str| {
            (text.starts_with('<') && text.ends_with('>')) || (text.starts_with('[') && text.ends_with(']'))
        };
        let unmarked: Vec<AddedToken> = added
            .values()
            .filter(|token| !token.special && looks_like_control(&token.content))
            .map(|token| AddedToken { special: true, ..token.clone() })
            .collect();
        let control = added
            .iter()
            .filter(|(_, token)| token.special || looks_like_control(&token.content))
            .map(|(&id, _)| id)
            .collect();
        literal.add_special_tokens(unmarked).map_err(TokenizerError::library("marking control tokens"))?;
        literal.set_encode_special_tokens(true);

        let size =
            literal.get_vocab(true).into_values().chain(added.keys().copied()).max().map_or(0, |id| id as usize + 1);
        // Ids may have holes, but not so many that a hostile file makes a large table from a small vocabulary.
        if size > 2 * literal.get_vocab_size(true) + 1_000_000 {
            return Err(TokenizerError::Malformed { reason: format!("the largest token id is {}", size - 1) });
        }
        let pieces = Pieces::new(&family, size, |id| match added.get(&id) {
            Some(token) => Some((token.content.clone(), true)),
            None => literal.get_model().id_to_token(id).map(|text| (text, false)),
        });
        let unknown = ["<unk>", "[UNK]"].iter().find_map(|name| literal.token_to_id(name));
        Ok(Self {
            literal,
            recognizing: OnceLock::new(),
            family,
            pieces,
            control,
            unknown,
            input_bytes_max: INPUT_BYTES_MAX_DEFAULT,
        })
    }

    /// Sets the length of the longest text accepted (bytes).
    #[must_use]
    pub fn with_input_bytes_max(mut self, bytes_max: usize) -> Self {
        self.input_bytes_max = bytes_max;
        self
    }

    /// Encodes text from outside: control tokens stay text, no template.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.encode_inner(text, EncodeOptions::default(), false)?.ids)
    }

    /// Encodes with options. Cost: about a microsecond per ten bytes.
    pub fn encode_with(&self, text: &str, options: EncodeOptions) -> Result<Encoding, TokenizerError> {
        self.encode_inner(text, options, true)
    }

    /// Encodes many texts in parallel; one refused text refuses the batch.
    pub fn encode_batch<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        options: EncodeOptions,
    ) -> Result<Vec<Encoding>, TokenizerError> {
        (0..texts.len())
            .into_maybe_par_iter()
            .map(|index| self.encode_inner(texts[index].as_ref(), options, true))
            .collect()
    }

    /// Encodes many texts in parallel into ids only, which is faster than [`encode_batch`](Self::encode_batch).
    pub fn encode_batch_ids<T: AsRef<str> + Sync>(
        &self,
        texts: &[T],
        options: EncodeOptions,
    ) -> Result<Vec<Vec<u32>>, TokenizerError> {
        (0..texts.len())
            .into_maybe_par_iter()
            .map(|index| Ok(self.encode_inner(texts[index].as_ref(), options, false)?.ids))
            .collect()
    }

    fn encode_inner(&self, text: &str, options: EncodeOptions, offsets: bool) -> Result<Encoding, TokenizerError> {
        if text.len() > self.input_bytes_max {
            return Err(TokenizerError::TooLong { bytes: text.len(), bytes_max: self.input_bytes_max });
        }
        let tokenizer = match options.control {
            ControlTokens::AsText => &self.literal,
            ControlTokens::Recognize => self.recognizing.get_or_init(|| {
                let mut tokenizer = self.literal.clone();
                tokenizer.set_encode_special_tokens(false);
                tokenizer
            }),
        };
        let mut encoded = contain("encoding a text", || {
            if offsets { tokenizer.encode(text, false) } else { tokenizer.encode_fast(text, false) }
        })?;
        if let Some(tokens_max) = options.tokens_max {
            let around = tokenizer.get_post_processor().map_or(0, |processor| processor.added_tokens(false));
            let around = if options.template { around } else { 0 };
            encoded.truncate(tokens_max.saturating_sub(around), 0, TruncationDirection::Right);
        }
        // Checked before the template adds its own control tokens.
        let smuggled = options.control == ControlTokens::AsText
            && encoded.get_ids().iter().any(|id| self.control.contains(id) && Some(*id) != self.unknown);
        if options.template {
            encoded = contain("adding the template", || tokenizer.post_process(encoded, None, true))?;
        }
        let mut encoding = Encoding {
            ids: encoded.get_ids().to_vec(),
            offsets: if offsets { encoded.get_offsets().to_vec() } else { Vec::new() },
        };
        if smuggled {
            self.spell_out(&mut encoding, encoded.get_special_tokens_mask());
        }
        Ok(encoding)
    }

    /// Replaces control tokens that the model found in plain text (Unigram models list `</s>` as an ordinary piece) with
    /// their spelling, one character at a time. `template` marks the tokens that the template added.
    fn spell_out(&self, encoding: &mut Encoding, template: &[u32]) {
        let old = std::mem::take(encoding);
        for (index, id) in old.ids.into_iter().enumerate() {
            let mut push = |id| {
                encoding.ids.push(id);
                encoding.offsets.extend(old.offsets.get(index));
            };
            if template.get(index) == Some(&1) || !self.control.contains(&id) || Some(id) == self.unknown {
                push(id);
                continue;
            }
            self.spelling(self.token_bytes(id).unwrap_or_default()).into_iter().for_each(push);
        }
    }

    /// The tokens of single characters, or of single bytes where a character has none, that spell `bytes`.
    fn spelling(&self, bytes: &[u8]) -> Vec<u32> {
        let model = self.literal.get_model();
        let find = |text: &str| model.token_to_id(text).filter(|id| !self.control.contains(id));
        let byte = |byte: &u8| {
            let level = self.family == Family::ByteLevel;
            let text = if level { pieces::char_of_byte(*byte).to_string() } else { format!("<0x{byte:02X}>") };
            find(&text).or(self.unknown)
        };
        if self.family == Family::ByteLevel {
            return bytes.iter().filter_map(byte).collect();
        }
        let text = String::from_utf8_lossy(bytes);
        let mut ids = Vec::new();
        for character in text.chars() {
            let mut buffer = [0; 4];
            let encoded = if character == ' ' { "▁" } else { character.encode_utf8(&mut buffer) };
            match find(encoded) {
                Some(id) => ids.push(id),
                None => ids.extend(encoded.as_bytes().iter().filter_map(byte)),
            }
        }
        ids
    }

    /// Decodes ids to text. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], control: ControlText) -> Result<String, TokenizerError> {
        let mut stream = self.decode_stream(control);
        let mut text = String::new();
        for &id in ids {
            stream.push_into(id, &mut text)?;
        }
        text.push_str(&stream.finish());
        Ok(text)
    }

    /// Starts decoding token by token.
    pub fn decode_stream(&self, control: ControlText) -> DecodeStream<'_> {
        DecodeStream::new(self, control)
    }

    /// The exact bytes that a token adds to a text; often not UTF-8 on their own. `None` when the id is unused.
    ///
    /// For WordPiece the bytes start with the space that separates words. At the start of a text, WordPiece and most
    /// SentencePiece models drop that first space.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// Finds a token by its text in the vocabulary (`<|im_end|>`, `Ġthe`).
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.literal.token_to_id(text)
    }

    /// The text of a token in the vocabulary's own alphabet.
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.literal.id_to_token(id)
    }

    /// One more than the largest id.
    pub fn vocabulary_size(&self) -> usize {
        self.pieces.len()
    }

    /// Whether a token is a control token, which plain text can never produce.
    pub fn is_control(&self, id: u32) -> bool {
        self.control.contains(&id)
    }

    /// All control tokens, in ascending order.
    pub fn control_ids(&self) -> Vec<u32> {
        let mut ids: Vec<u32> = self.control.iter().copied().collect();
        ids.sort_unstable();
        ids
    }

    fn family(&self) -> &Family {
        &self.family
    }
}

/// Runs a call into the library, which answers some malformed files with a panic; that must not end the process.
fn contain<T>(attempt: &'static str, call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, TokenizerError> {
    // Nothing half-changed is seen again: a tokenizer under construction is dropped, and encoding changes only caches.
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(TokenizerError::library(attempt)),
        Err(_) => Err(TokenizerError::library(attempt)("the library panicked".into())),
    }
}

impl fmt::Debug for FastTokenizer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FastTokenizer")
            .field("family", &self.family)
            .field("vocabulary_size", &self.pieces.len())
            .field("control", &self.control.len())
            .finish_non_exhaustive()
    }
}
