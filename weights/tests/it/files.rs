//! Small valid files, written byte by byte from the format specifications, for the tests to read and to damage.

/// Builds a GGUF file.
#[derive(Debug, Clone)]
pub(crate) struct GgufWriter {
    pub(crate) version: u32,
    pub(crate) metadata: Vec<(String, u32, Vec<u8>)>,
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
    pub(crate) alignment: usize,
}

impl Default for GgufWriter {
    fn default() -> Self {
        Self { version: 3, metadata: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }
}

pub(crate) fn gguf_string(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

pub(crate) fn gguf_strings(texts: &[&str]) -> Vec<u8> {
    let mut bytes = 8_u32.to_le_bytes().to_vec();
    bytes.extend((texts.len() as u64).to_le_bytes());
    for text in texts {
        bytes.extend(gguf_string(text));
    }
    bytes
}

impl GgufWriter {
    pub(crate) fn value(mut self, key: &str, tag: u32, bytes: impl AsRef<[u8]>) -> Self {
        self.metadata.push((key.to_owned(), tag, bytes.as_ref().to_vec()));
        self
    }

    pub(crate) fn text(self, key: &str, value: &str) -> Self {
        self.value(key, 8, gguf_string(value))
    }

    /// Extents innermost first, as the format stores them.
    pub(crate) fn tensor(mut self, name: &str, extents: &[u64], tag: u32, data: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), extents.to_vec(), tag, data.to_vec()));
        self
    }

    pub(crate) fn build(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, tag, bytes) in &self.metadata {
            out.extend(gguf_string(key));
            out.extend(tag.to_le_bytes());
            out.extend(bytes);
        }
        let mut data: Vec<u8> = Vec::new();
        for (name, extents, tag, bytes) in &self.tensors {
            data.resize(data.len().next_multiple_of(self.alignment), 0);
            out.extend(gguf_string(name));
            out.extend((extents.len() as u32).to_le_bytes());
            for extent in extents {
                out.extend(extent.to_le_bytes());
            }
            out.extend(tag.to_le_bytes());
            out.extend((data.len() as u64).to_le_bytes());
            data.extend(bytes);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out.extend(data);
        out
    }
}

/// A GGUF file with every metadata kind that matters and three tensors.
pub(crate) fn small_gguf() -> GgufWriter {
    let floats: Vec<u8> = (0..6_u8).flat_map(|value| f32::from(value).to_le_bytes()).collect();
    let mut q4_1 = vec![0x00, 0x38, 0x00, 0xBC];
    q4_1.extend([0x10; 16]);
    GgufWriter::default()
        .text("general.architecture", "llama")
        .value("llama.block_count", 4, 30_u32.to_le_bytes())
        .value("llama.rope.freq_base", 6, 1e5_f32.to_le_bytes())
        .value("flag", 7, [1])
        .value("nested", 9, [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes(), &gguf_strings(&["x"])].concat())
        .text("tokenizer.ggml.model", "gpt2")
        .text("tokenizer.ggml.pre", "smollm")
        .value("tokenizer.ggml.tokens", 9, gguf_strings(&["<|im_end|>", "a", "b", "ab"]))
        .value("tokenizer.ggml.merges", 9, gguf_strings(&["a b"]))
        .value(
            "tokenizer.ggml.token_type",
            9,
            [&5_u32.to_le_bytes()[..], &4_u64.to_le_bytes(), &[3_i32, 1, 1, 1].map(i32::to_le_bytes).concat()].concat(),
        )
        .value("tokenizer.ggml.eos_token_id", 4, 0_u32.to_le_bytes())
        .tensor("norm", &[3, 2], 0, &floats)
        .tensor("weight", &[32, 1], 3, &q4_1)
        .tensor("empty", &[0, 5], 0, &[])
}

/// A safetensors file with a matrix, a half vector and metadata.
pub(crate) fn small_safetensors() -> Vec<u8> {
    let header = serde_json::json!({
        "__metadata__": {"format": "pt"},
        "matrix": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "vector": {"dtype": "F16", "shape": [2], "data_offsets": [24, 28]},
    })
    .to_string();
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    for value in 0..6_u8 {
        out.extend(f32::from(value).to_le_bytes());
    }
    out.extend([0x00, 0x3C, 0x00, 0xC0]);
    out
}
