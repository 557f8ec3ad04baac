//! Converts weights of any format into Parquet V2, one tensor at a time, so that a model larger than memory converts.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use mneme_quant::{Granularity, Quantized, Spec};
use serde::Serialize;

use crate::v2::V2Writer;
use crate::{GgufFile, MetadataValue, TensorInfo, TensorSource, WriteError, gguf};

/// Name of the attachment that holds the tokenizer of a GGUF file (`GgufVocabulary` as JSON).
pub const VOCABULARY_ATTACHMENT: &str = "gguf.vocabulary.json";
/// Tensors with a smaller side stay as they are: norms, biases and gates cost little and matter much (elements).
const QUANTIZED_SIDE_MIN: usize = 32;
/// How many elements are decoded and quantised at once (elements, 4 bytes each).
const STRIPE_ELEMENTS: usize = 1 << 22;

/// Which names the tensors get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Names {
    /// Those of the source.
    #[default]
    Keep,
    /// Hugging Face's, for llama-type GGUF files; rotary rows return to PyTorch's order.
    HuggingFace,
}

/// How to convert.
#[derive(Debug, Clone, Copy, Default)]
pub struct ConvertOptions {
    /// The format for matrices; `None` keeps every tensor as it is stored.
    pub quantize: Option<Spec>,
    /// The format for the embedding and the output layer, which suffer most; `None` means as the other matrices.
    pub quantize_embedding: Option<Spec>,
    /// Names of the tensors.
    pub names: Names,
    /// Threads for quantising; 0 counts as 1.
    pub threads: usize,
}

/// What a conversion did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConvertReport {
    /// Tensors written.
    pub tensors: usize,
    /// Of those, quantised anew.
    pub quantized: usize,
    /// Elements in all tensors.
    pub elements: u64,
    /// Size of the tensors in the source (bytes).
    pub bytes_before: u64,
    /// Size of the tensors written (bytes).
    pub bytes_after: u64,
    /// Size of the file written (bytes).
    pub file_bytes: u64,
    /// Bits for each element written, scales included.
    pub bits_per_element: f64,
}

/// Writes all tensors of `source` to `path`. `metadata` and `attachments` are stored beside them; `progress` is called
/// after each tensor with the number done and the number in all.
///
/// # Memory
/// A tensor kept as it is: its bytes, twice. A tensor quantised by rows or groups: its codes, twice, and 16 MiB.
pub fn convert(
    source: &dyn TensorSource,
    path: &Path,
    metadata: &BTreeMap<String, String>,
    attachments: &BTreeMap<String, Bytes>,
    options: &ConvertOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<ConvertReport, WriteError> {
    let mut writer = V2Writer::create(path, metadata)?;
    let rotary = Rotary::of(metadata);
    let total = source.tensors().len();
    let mut report = ConvertReport {
        tensors: total,
        quantized: 0,
        elements: 0,
        bytes_before: 0,
        bytes_after: 0,
        file_bytes: 0,
        bits_per_element: 0.0,
    };
    for (done, tensor) in source.tensors().iter().enumerate() {
        report.elements += tensor.elements() as u64;
        report.bytes_before += tensor.bytes as u64;
        let renamed = match options.names {
            Names::Keep => None,
            Names::HuggingFace => gguf::huggingface_name(&tensor.name),
        };
        let heads = renamed.as_ref().and_then(|_| rotary.heads(&tensor.name));
        let name = renamed.as_deref().unwrap_or(&tensor.name);
        if let Some(spec) = format_for(tensor, options) {
            let quantized = quantize(source, tensor, spec, heads, options.threads.max(1))?;
            let halves = quantized.scales().len() + quantized.minimums().len();
            report.quantized += 1;
            report.bytes_after += (quantized.codes().len() + 2 * halves) as u64;
            writer.quantized(name, &tensor.shape, &quantized)?;
        } else {
            let bytes = stored(source, tensor, heads)?;
            report.bytes_after += bytes.len() as u64;
            writer.tensor(name, &tensor.shape, tensor.dtype, bytes)?;
        }
        source.release(&tensor.name);
        progress(done + 1, total);
    }
    for (name, bytes) in attachments {
        writer.attachment(name, bytes.clone())?;
    }
    report.file_bytes = writer.finish()?;
    report.bits_per_element = report.bytes_after as f64 * 8.0 / (report.elements as f64).max(1.0);
    Ok(report)
}

/// What a file holds besides tensors: small facts, and attachments by name.
pub type Extras = (BTreeMap<String, String>, BTreeMap<String, Bytes>);

/// The facts and the tokenizer of a GGUF file, ready for [`convert`]: scalars become metadata under their own keys, the
/// vocabulary becomes an attachment.
pub fn gguf_extras(file: &GgufFile) -> Result<Extras, crate::OpenError> {
    let mut metadata = BTreeMap::new();
    for (key, value) in file.metadata() {
        let text = match value {
            MetadataValue::String(text) if !key.starts_with("tokenizer.") => text.clone(),
            MetadataValue::Bool(flag) => flag.to_string(),
            MetadataValue::String(_) | MetadataValue::Array(_) => continue,
            number => match (number.as_u64(), number.as_f64()) {
                (Some(whole), _) => whole.to_string(),
                (_, Some(float)) => float.to_string(),
                _ => continue,
            },
        };
        metadata.insert(key.clone(), text);
    }
    let mut attachments = BTreeMap::new();
    if let Some(vocabulary) = file.vocabulary()? {
        let json = serde_json::to_vec(&vocabulary).expect("a vocabulary holds only texts and finite numbers");
        attachments.insert(VOCABULARY_ATTACHMENT.to_owned(), json.into());
    }
    Ok((metadata, attachments))
}

/// Heads of a llama-type model, for putting rotary rows back in order.
struct Rotary {
    query_heads: Option<usize>,
    key_heads: Option<usize>,
}

impl Rotary {
    fn of(metadata: &BTreeMap<String, String>) -> Self {
        // Only llama-type converters permute; Qwen2 rows are in PyTorch's order already.
        let architecture = metadata.get("general.architecture").filter(|name| name.as_str() == "llama");
        let heads = |key: &str| metadata.get(&format!("{}.attention.{key}", architecture?))?.parse().ok();
        let query_heads = heads("head_count");
        Self { query_heads, key_heads: heads("head_count_kv").or(query_heads) }
    }

    fn heads(&self, name: &str) -> Option<usize> {
        match name.rsplit_once(".attn_")?.1 {
            "q.weight" => self.query_heads,
            "k.weight" => self.key_heads,
            _ => None,
        }
    }
}

fn format_for(tensor: &TensorInfo, options: &ConvertOptions) -> Option<Spec> {
    let spec = options.quantize?;
    let matrix = tensor.shape.len() >= 2 && tensor.shape.iter().rev().take(2).all(|&side| side >= QUANTIZED_SIDE_MIN);
    let embedding = ["embed", "embd", "wte", "lm_head"].iter().any(|word| tensor.name.contains(word))
        || tensor.name == "output.weight";
    match (matrix, embedding) {
        (false, _) => None,
        (true, true) => Some(options.quantize_embedding.unwrap_or(spec)),
        (true, false) => Some(spec),
    }
}

/// The stored bytes, with whole rows reordered where the model's rotary rows are interleaved.
fn stored(source: &dyn TensorSource, tensor: &TensorInfo, heads: Option<usize>) -> Result<Bytes, WriteError> {
    let bytes = source.raw(&tensor.name).map_err(read(tensor))?;
    match heads {
        None => Ok(bytes),
        Some(heads) => reorder(&bytes, tensor, heads).map(Bytes::from),
    }
}

fn reorder<T: Copy>(elements: &[T], tensor: &TensorInfo, heads: usize) -> Result<Vec<T>, WriteError> {
    let rows = tensor.shape.first().copied().unwrap_or(0);
    let head_dim = rows.checked_div(heads).unwrap_or(0);
    let reordered =
        if head_dim * heads == rows { gguf::unpermute_rotary_rows(elements, heads, head_dim) } else { None };
    reordered.ok_or_else(|| WriteError::Tensor {
        tensor: tensor.name.clone(),
        reason: format!("{rows} rows are not {heads} heads of an even size"),
    })
}

fn quantize(
    source: &dyn TensorSource,
    tensor: &TensorInfo,
    spec: Spec,
    heads: Option<usize>,
    threads: usize,
) -> Result<Quantized, WriteError> {
    let codec = |source| WriteError::Codec { tensor: tensor.name.clone(), source };
    let columns = tensor.shape.last().copied().unwrap_or(1);
    let rows = tensor.elements() / columns.max(1);
    let by_row = matches!(spec.granularity, Granularity::OutChannel | Granularity::Group(_));
    // Reordering needs all rows at once; attention matrices are far smaller than embeddings.
    if heads.is_some() || !by_row {
        let mut values = source.to_f32(&tensor.name).map_err(read(tensor))?;
        if let Some(heads) = heads {
            values = reorder(&values, tensor, heads)?;
        }
        return Quantized::quantize(&values, rows, columns, spec, threads).map_err(codec);
    }
    let stripe_rows = (STRIPE_ELEMENTS / columns).max(1);
    let (mut codes, mut scales, mut minimums) = (Vec::new(), Vec::new(), Vec::new());
    let mut values = Vec::new();
    for first in (0..rows).step_by(stripe_rows) {
        let count = stripe_rows.min(rows - first);
        values.resize(count * columns, 0.0);
        source.decode_range(&tensor.name, first * columns, &mut values).map_err(read(tensor))?;
        let stripe = Quantized::quantize(&values, count, columns, spec, threads).map_err(codec)?;
        codes.extend_from_slice(stripe.codes());
        scales.extend_from_slice(stripe.scales());
        minimums.extend_from_slice(stripe.minimums());
    }
    Quantized::from_parts(spec, rows, columns, codes, scales, minimums).map_err(codec)
}

fn read(tensor: &TensorInfo) -> impl Fn(crate::TensorError) -> WriteError {
    let name = tensor.name.clone();
    move |source| WriteError::Read { tensor: name.clone(), source }
}
