//! The embedder: all-MiniLM-L6-v2, a BERT of six layers with mean pooling.
//!
//! Reading order: [`bert`] (the network on tensors), `slices` (the same without libtorch), [`cache`] (vectors by content).

pub mod bert;
pub mod cache;
mod slices;

use std::sync::{Mutex, PoisonError};

use mneme_base::{ContentHash, Embedding, EmbeddingGeneration};
use mneme_engine_api::{CancelToken, EngineError};
use mneme_text::{EncodeOptions, FastTokenizer};
use mneme_weights::SafetensorsFile;

use crate::assets::Assets;
use crate::embedder::bert::Bert;
use crate::embedder::cache::EmbeddingCache;
use crate::embedder::slices::SliceBert;
use crate::error::{ModelError, Result};
use crate::runtime::{Precision, Runtime};

/// Names model and recipe; changes when either does, because vectors of different recipes cannot be compared.
pub const GENERATION: &str = "all-MiniLM-L6-v2/1";

/// Dimensions of its vectors.
pub const DIMENSIONS: usize = 384;

/// Tokens of a text that the model was trained to see; the rest is cut.
pub const WINDOW_TOKENS: usize = 256;

/// Tokens of one evaluation, padding included: larger batches gain no speed and cost memory.
const BATCH_TOKENS_MAX: usize = 2_048;

/// Batches of up to this many tokens cost less in packed weights than the overhead of libtorch's operations.
const SLICE_TOKENS_MAX: usize = 192;

/// Lengths are padded to a multiple of this, so that few shapes occur and oneDNN's kernels are reused.
const LENGTH_BUCKET: usize = 8;

/// A text is cut to this many bytes before it is tokenized: 256 tokens rarely span more than 2 KiB, and a tokenizer's cost
/// grows with its input.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// Vectors that are kept, by content (384 f32 each: 6 MiB in all).
const CACHE_ENTRIES: usize = 4_096;

/// The network, in the form that suits what is asked.
#[derive(Debug)]
struct Network {
    tensors: Mutex<Bert>,
    dimensions: usize,
    /// For questions and single notes, on a processor. It waits for no batch of many notes.
    slices: Option<SliceBert>,
}

impl Network {
    fn load(file: &SafetensorsFile, runtime: Runtime) -> Result<Self> {
        let is_plain = runtime.device.is_cuda() || runtime.precision == Precision::Dense;
        let slices = if is_plain { None } else { Some(SliceBert::load(file, runtime.threads)?) };
        // Beside packed weights the compute kind is that of their activations; large batches take the fastest there is.
        let runtime = if is_plain { runtime } else { runtime.trainable() };
        let tensors = Bert::load(file, runtime)?;
        Ok(Self { dimensions: tensors.dimensions(), tensors: Mutex::new(tensors), slices })
    }

    fn embed(&self, texts: &[&[i64]]) -> Result<Vec<Vec<f32>>> {
        match &self.slices {
            Some(slices) if texts.iter().map(|tokens| tokens.len()).sum::<usize>() <= SLICE_TOKENS_MAX => {
                slices.embed(texts)
            }
            _ => self.tensors.lock().unwrap_or_else(PoisonError::into_inner).embed(texts, LENGTH_BUCKET),
        }
    }
}

/// Turns texts into vectors.
#[derive(Debug)]
pub struct Embedder {
    tokenizer: FastTokenizer,
    network: Network,
    cache: Mutex<EmbeddingCache>,
}

impl Embedder {
    /// Loads weights and tokenizer.
    pub fn load(assets: &Assets, runtime: Runtime) -> Result<Self> {
        let file = SafetensorsFile::open(&assets.embedder_weights())?;
        let path = assets.embedder_tokenizer();
        let tokenizer = FastTokenizer::from_json(&fs_err::read(&path)?)
            .map_err(|error| ModelError::load(path.display().to_string(), error.to_string()))?;
        let network = Network::load(&file, runtime)?;
        Ok(Self { tokenizer, network, cache: Mutex::new(EmbeddingCache::new(CACHE_ENTRIES)) })
    }

    /// Dimensions of its vectors.
    pub fn dimensions(&self) -> usize {
        self.network.dimensions
    }

    /// The generation of its vectors.
    pub fn generation() -> EmbeddingGeneration {
        EmbeddingGeneration(GENERATION.into())
    }

    /// Embeds texts in their order. Texts that were embedded before come from the cache.
    pub fn embed(&self, texts: &[String], cancel: &CancelToken) -> Result<Vec<Embedding>> {
        let hashes: Vec<ContentHash> = texts.iter().map(|text| ContentHash::of(text.as_bytes())).collect();
        let mut found: Vec<Option<Embedding>> = {
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            hashes.iter().map(|hash| cache.get(hash)).collect()
        };
        let mut missing: Vec<(usize, Vec<i64>)> = Vec::new();
        for (index, text) in texts.iter().enumerate() {
            if found[index].is_none() {
                missing.push((index, self.tokens(text)?));
            }
        }
        // Neighbours in length share a batch, so that little padding is computed.
        missing.sort_by_key(|(_, tokens)| tokens.len());
        let mut rest = missing.as_slice();
        while !rest.is_empty() {
            cancel.check()?;
            let (batch, later) = rest.split_at(batch_of(rest));
            rest = later;
            let tokens: Vec<&[i64]> = batch.iter().map(|(_, tokens)| tokens.as_slice()).collect();
            let vectors = self.network.embed(&tokens)?;
            let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
            for ((index, _), vector) in batch.iter().zip(vectors) {
                let embedding = Embedding::normalized(vector).map_err(|error| EngineError::Internal {
                    reason: format!("embedder made no direction: {error}"),
                })?;
                cache.put(hashes[*index], embedding.clone());
                found[*index] = Some(embedding);
            }
        }
        Ok(found.into_iter().map(|embedding| embedding.expect("every missing text was in a batch")).collect())
    }

    /// Token ids with the special tokens of BERT, cut to the window; the closing token stays.
    fn tokens(&self, text: &str) -> Result<Vec<i64>> {
        let cut = &text[..text.floor_char_boundary(TEXT_BYTES_MAX)];
        let options = EncodeOptions { template: true, tokens_max: Some(WINDOW_TOKENS), ..EncodeOptions::default() };
        let encoding = self
            .tokenizer
            .encode_with(cut, options)
            .map_err(|error| EngineError::Internal { reason: format!("tokenizer failed: {error}") })?;
        Ok(encoding.ids.into_iter().map(i64::from).collect())
    }
}

/// How many of the shortest remaining texts fit one evaluation.
fn batch_of(rest: &[(usize, Vec<i64>)]) -> usize {
    let fits = |(count, (_, tokens)): &(usize, &(usize, Vec<i64>))| {
        (count + 1) * tokens.len().next_multiple_of(LENGTH_BUCKET) <= BATCH_TOKENS_MAX
    };
    rest.iter().enumerate().take_while(fits).count().max(1)
}
