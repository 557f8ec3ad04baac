//! The generator: SmolLM2 with its tokenizer, as everything that writes or scores text shares it.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use mneme_base::ContentHash;
use mneme_diffusion::constraint::Vocabulary as ByteVocabulary;
use mneme_engine_api::EngineError;
use mneme_text::{ControlText, FastTokenizer, Vocabulary};
use mneme_weights::GgufFile;
use tch::Tensor;

use crate::adapter_file;
use crate::assets::Assets;
use crate::embedder;
use crate::error::{ModelError, Result};
use crate::generate::constrain::byte_vocabulary;
use crate::load::{self, Tiles};
use crate::nn::adapter::Adapter;
use crate::nn::backbone::Backbone;
use crate::nn::conditioner::{self, Conditioner};
use crate::runtime::Runtime;

/// The generator's name in [`mneme_engine_api::EngineInfo`].
pub const MODEL: &str = "SmolLM2-135M-Instruct";

/// Tokens with a meaning of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Separates documents; the start of a text without context.
    pub document: u32,
    /// Opens a turn of a chat.
    pub turn_start: u32,
    /// Closes a turn of a chat.
    pub turn_end: u32,
    /// Stands for "not decided yet": a reserved token that no text contains.
    pub mask: u32,
}

/// Weights and tokenizer.
#[derive(Debug)]
pub struct Generator {
    /// Text to tokens and back.
    pub tokenizer: FastTokenizer,
    /// Tokens with a meaning of their own.
    pub special: SpecialTokens,
    /// What adapters are bound to: the weight file, and adapter zero when it is in use.
    pub base_hash: ContentHash,
    /// Rows of the vocabulary.
    pub vocabulary: usize,
    /// What turned the base into a diffusion model, when it is there.
    pub adapter_zero: Option<Arc<SharedAdapter>>,
    /// What writes holes with the text after them in view, when it is there.
    pub adapter_middle: Option<Arc<SharedAdapter>>,
    /// libtorch's tensors are not `Sync`: whoever evaluates holds the lock for one evaluation.
    backbone: Mutex<Backbone>,
    /// Lets the network attend to memories; only a trained one is loaded.
    conditioner: Option<Mutex<Conditioner>>,
    /// Made when the first constraint is compiled.
    bytes: OnceLock<Arc<ByteVocabulary>>,
}

/// Hashes of what the generator is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hashes {
    /// The weight file, which adapter zero is bound to.
    pub weights: ContentHash,
    /// Weights and adapter zero, which all other adapters are bound to.
    pub base: ContentHash,
}

/// An adapter that several requests use; its tensors are reached while the backbone is locked.
pub type SharedAdapter = Mutex<Adapter>;

impl Generator {
    /// Hashes what adapters are bound to. Costs one read of the weight file.
    pub fn hashes(assets: &Assets) -> Result<Hashes> {
        let file = fs_err::File::open(assets.generator())?;
        let mut hasher = blake3::Hasher::new();
        std::io::copy(&mut std::io::BufReader::with_capacity(1 << 20, file), &mut hasher)?;
        let weights = ContentHash::from_bytes(*hasher.finalize().as_bytes());
        // An adapter trained on top of adapter zero means nothing without it.
        let zero = assets.adapter_zero().map(adapter_file::hash).transpose()?.flatten();
        let base = match zero {
            Some(zero) => ContentHash::of(&[weights.as_bytes().as_slice(), zero.as_bytes()].concat()),
            None => weights,
        };
        Ok(Hashes { weights, base })
    }

    /// Loads the generator and, when its hash matches, adapter zero.
    pub fn load(assets: &Assets, hashes: Hashes, runtime: Runtime) -> Result<Self> {
        let path = assets.generator();
        let file = load::open_gguf(&path)?;
        let tokenizer = tokenizer(&file, &path)?;
        let special = SpecialTokens {
            document: special(&tokenizer, "<|endoftext|>")?,
            turn_start: special(&tokenizer, "<|im_start|>")?,
            turn_end: special(&tokenizer, "<|im_end|>")?,
            mask: special(&tokenizer, "<empty_output>")?,
        };
        let tiles = Tiles::open(&path, hashes.weights, runtime.precision);
        let backbone = load::llama_with_tiles(&file, i64::from(special.mask), true, runtime, tiles.as_ref())?;
        if let Some(tiles) = tiles {
            tiles.keep();
        }
        let zero = assets.adapter_zero();
        let read = |folder| adapter_file::read(folder, &backbone.config, hashes.weights, runtime.device);
        let adapter_zero = zero.map(read).transpose()?.map(|adapter| Arc::new(Mutex::new(adapter)));
        let middle = assets.adapter_middle();
        let adapter_middle = middle.map(read).transpose()?.map(|adapter| Arc::new(Mutex::new(adapter)));
        let vocabulary = backbone.config.vocabulary as usize;
        let folder = assets.conditioner();
        let conditioner = if folder.join(conditioner::NAME).is_file() {
            let dimensions = embedder::DIMENSIONS as i64;
            let read = Conditioner::read(&folder, &backbone.config, dimensions, hashes.base, runtime.device)?;
            Some(Mutex::new(read))
        } else {
            None
        };
        Ok(Self {
            tokenizer,
            special,
            base_hash: hashes.base,
            vocabulary,
            adapter_zero,
            adapter_middle,
            backbone: Mutex::new(backbone),
            conditioner,
            bytes: OnceLock::new(),
        })
    }

    /// The adapters that come with the model, for a stream that serves.
    pub fn shipped(&self) -> Vec<Arc<SharedAdapter>> {
        self.adapter_zero.iter().chain(&self.adapter_middle).cloned().collect()
    }

    /// The network, for one evaluation. Others wait for it: hold it no longer.
    pub fn backbone(&self) -> MutexGuard<'_, Backbone> {
        // A panic inside an evaluation leaves weights as they were: they are never written.
        self.backbone.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The conditioner, when this model has a trained one.
    pub fn conditioner(&self) -> Option<MutexGuard<'_, Conditioner>> {
        Some(self.conditioner.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Encodes text from outside: names of control tokens in it stay text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let tokens = self.tokenizer.encode(text);
        Ok(tokens.map_err(|error| EngineError::invalid("text", format!("cannot be tokenized: {error}")))?)
    }

    /// Decodes tokens, leaving control tokens out.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(tokens, ControlText::Hide);
        Ok(text.map_err(|error| EngineError::Internal { reason: format!("tokens cannot be decoded: {error}") })?)
    }

    /// The bytes of every token, for constraints. Tokens outside the tokenizer and control tokens have none.
    pub fn byte_vocabulary(&self) -> Result<Arc<ByteVocabulary>> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(Arc::clone(bytes));
        }
        let of = |token: u32| {
            let bytes = self.tokenizer.token_bytes(token).filter(|_| !self.tokenizer.is_control(token));
            bytes.map(<[u8]>::to_vec)
        };
        let made = byte_vocabulary(self.vocabulary, of)?;
        Ok(Arc::clone(self.bytes.get_or_init(|| made)))
    }

    /// Whether a token ends a text.
    pub fn is_stop(&self, token: u32) -> bool {
        token == self.special.document || token == self.special.turn_end
    }
}

/// Reads rows of logits out of a tensor.
pub(crate) fn rows_of(logits: &Tensor) -> Result<Vec<f32>> {
    let mut rows = vec![0.0_f32; logits.numel()];
    logits.f_contiguous()?.f_copy_data(&mut rows, logits.numel())?;
    Ok(rows)
}

fn tokenizer(file: &GgufFile, path: &Path) -> Result<FastTokenizer> {
    let what = || format!("tokenizer of {}", path.display());
    let vocabulary = file.vocabulary()?.ok_or_else(|| ModelError::load(what(), "the file has none"))?;
    FastTokenizer::from_vocabulary(&Vocabulary {
        model: &vocabulary.model,
        pre_tokenizer: vocabulary.pre_tokenizer.as_deref(),
        tokens: &vocabulary.tokens,
        merges: &vocabulary.merges,
        token_types: &vocabulary.token_types,
        scores: &vocabulary.scores,
        bos_id: vocabulary.bos_id,
        eos_id: vocabulary.eos_id,
        add_bos: vocabulary.add_bos,
        add_eos: vocabulary.add_eos,
        add_space_prefix: vocabulary.add_space_prefix,
    })
    .map_err(|error| ModelError::load(what(), error.to_string()))
}

fn special(tokenizer: &FastTokenizer, name: &str) -> Result<u32> {
    tokenizer.token_id(name).ok_or_else(|| ModelError::load("tokenizer", format!("it has no token {name}")))
}
