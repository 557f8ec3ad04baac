//! Both readers find what was written, and refuse what is damaged.

use crate::files::{GgufWriter, gguf_strings, small_gguf, small_safetensors};
use mneme_weights::{DType, GgufFile, OpenError, SafetensorsFile, Storage, TensorError, TensorSource, gguf, open};
use proptest::prelude::*;

fn gguf(writer: &GgufWriter) -> Result<GgufFile, OpenError> {
    GgufFile::parse(Storage::from(writer.build()))
}

fn reason(result: Result<impl Sized, OpenError>) -> String {
    result.err().expect("the file must be refused").to_string()
}

#[test]
fn a_gguf_file_gives_back_its_tensors_in_pytorch_order() {
    let file = gguf(&small_gguf()).unwrap();
    let names: Vec<_> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["norm", "weight", "empty"]);
    assert_eq!(file.find("norm").unwrap().shape, [2, 3]);
    assert_eq!(file.to_f32("norm").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(file.find("weight").unwrap().dtype, DType::Q4_1);
    assert_eq!(file.to_f32("weight").unwrap(), [[-1.0; 16], [-0.5; 16]].concat());
    assert_eq!(file.to_f32("empty").unwrap(), [0.0; 0]);
}

#[test]
fn a_gguf_file_gives_back_its_metadata_and_vocabulary() {
    let file = gguf(&small_gguf()).unwrap();
    assert_eq!(file.architecture(), Some("llama"));
    assert_eq!(file.model_value("block_count").unwrap().as_u64(), Some(30));
    assert_eq!(file.model_value("rope.freq_base").unwrap().as_f64(), Some(1e5));
    assert_eq!(file.get("flag").unwrap().as_bool(), Some(true));
    assert!(file.get("absent").is_none());
    let vocabulary = file.vocabulary().unwrap().unwrap();
    assert_eq!(vocabulary.model, "gpt2");
    assert_eq!(vocabulary.pre_tokenizer.as_deref(), Some("smollm"));
    assert_eq!(vocabulary.tokens, ["<|im_end|>", "a", "b", "ab"]);
    assert_eq!(vocabulary.merges, ["a b"]);
    assert_eq!(vocabulary.token_types, [3, 1, 1, 1]);
    assert_eq!(vocabulary.eos_id, Some(0));
    assert_eq!(vocabulary.bos_id, None);
}

#[test]
fn a_safetensors_file_gives_back_its_tensors_and_metadata() {
    let file = SafetensorsFile::parse(Storage::from(small_safetensors())).unwrap();
    assert_eq!(file.find("matrix").unwrap().shape, [2, 3]);
    assert_eq!(file.to_f32("matrix").unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(file.to_f32("vector").unwrap(), [1.0, -2.0]);
    assert_eq!(file.metadata()["format"], "pt");
}

#[test]
fn a_mapped_file_is_read_in_place_and_recognised_by_its_content() {
    let folder = tempfile::tempdir().unwrap();
    for (bytes, name) in [(small_gguf().build(), "norm"), (small_safetensors(), "matrix")] {
        let path = folder.path().join("weights.bin");
        fs_err::write(&path, bytes).unwrap();
        let storage = Storage::open(&path).unwrap();
        let file = open(&path).unwrap();
        assert_eq!(file.to_f32(name).unwrap().len(), 6);
        file.release(name);
        assert_eq!(file.to_f32(name).unwrap()[5], 5.0, "released pages are read again");
        // The same bytes through another map: content equal, address inside one map, nothing copied.
        let map = storage.bytes().as_ptr_range();
        let slice = storage.slice(storage.bytes().len() - 4..storage.bytes().len()).unwrap();
        assert!(map.contains(&slice.as_ptr()));
    }
    let other = folder.path().join("other");
    fs_err::write(&other, b"PK\x03\x04 neither").unwrap();
    assert!(matches!(open(&other), Err(OpenError::UnknownFormat)));
    fs_err::write(&other, b"").unwrap();
    assert!(matches!(open(&other), Err(OpenError::UnknownFormat)));
    assert!(matches!(open(folder.path()), Err(OpenError::NotAFile(_))));
    assert!(matches!(open(&folder.path().join("absent")), Err(OpenError::Io(_))));
}

#[test]
fn raw_bytes_outlive_the_file_value() {
    let file = SafetensorsFile::parse(Storage::from(small_safetensors())).unwrap();
    let raw = file.raw("vector").unwrap();
    drop(file);
    assert_eq!(raw.as_ref(), [0x00, 0x3C, 0x00, 0xC0]);
}

#[test]
fn ranges_decode_what_the_whole_tensor_decodes_and_must_fill_blocks() {
    let file = gguf(&small_gguf()).unwrap();
    let mut part = [0.0; 2];
    file.decode_range("norm", 3, &mut part).unwrap();
    assert_eq!(part, [3.0, 4.0]);
    assert!(matches!(file.decode_range("norm", 5, &mut part), Err(TensorError::Range { .. })));
    assert!(matches!(file.decode_range("norm", usize::MAX, &mut part), Err(TensorError::Range { .. })));
    assert!(matches!(file.decode_range("weight", 2, &mut part), Err(TensorError::Range { .. })));
    assert!(matches!(file.decode_into("norm", &mut part), Err(TensorError::Length { .. })));
    assert!(matches!(file.to_f32("absent"), Err(TensorError::Missing(_))));
    assert!(matches!(file.to_f32_shaped("norm", &[3, 2]), Err(TensorError::Shape { .. })));
    assert_eq!(file.to_f32_shaped("norm", &[2, 3]).unwrap().len(), 6);
}

#[test]
fn rotary_rows_return_to_half_split_order() {
    // One head of four rows and one column: GGUF order is (0, half, 1, half + 1).
    assert_eq!(gguf::unpermute_rotary_rows(&[0.0, 2.0, 1.0, 3.0], 1, 4).unwrap(), [0.0, 1.0, 2.0, 3.0]);
    let two_heads = [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0];
    assert_eq!(gguf::unpermute_rotary_rows(&two_heads, 2, 4).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert!(gguf::unpermute_rotary_rows(&[0.0; 6], 1, 4).is_none());
    assert!(gguf::unpermute_rotary_rows(&[0.0; 6], 0, 4).is_none());
}

#[test]
fn hostile_gguf_headers_are_refused_with_the_reason() {
    let header = |tensors: u64, values: u64| {
        [b"GGUF".as_slice(), &3_u32.to_le_bytes(), &tensors.to_le_bytes(), &values.to_le_bytes()].concat()
    };
    let parse = |bytes: Vec<u8>| reason(GgufFile::parse(Storage::from(bytes)));
    assert!(parse(header(u64::MAX, 0)).contains("the tensor count"));
    assert!(parse(header(0, u64::MAX)).contains("the metadata count"));
    let with = |tag: u32, value: &[u8]| {
        let mut bytes = header(0, 1);
        bytes.extend(crate::files::gguf_string("key"));
        bytes.extend(tag.to_le_bytes());
        bytes.extend(value);
        bytes
    };
    assert!(parse(with(8, &u64::MAX.to_le_bytes())).contains("a metadata string"));
    assert!(parse(with(9, &[4_u32.to_le_bytes().as_slice(), &u64::MAX.to_le_bytes()].concat())).contains("array"));
    assert!(parse(with(9, &[8_u32.to_le_bytes().as_slice(), &(1_u64 << 60).to_le_bytes()].concat())).contains("array"));
    assert!(parse(with(77, &[0; 8])).contains("unknown metadata type 77"));
    assert!(parse(with(7, &[2])).contains("expected 0 or 1"));
    assert!(parse(with(8, &[&2_u64.to_le_bytes()[..], &[0xFF, 0xFE]].concat())).contains("not UTF-8"));
    let deep = [9_u32.to_le_bytes().as_slice(), &1_u64.to_le_bytes()].concat().repeat(100_000);
    assert!(parse(with(9, &deep)).contains("nested deeper"));

    let refused = |writer: GgufWriter| reason(gguf(&writer));
    assert!(refused(GgufWriter { version: 1, ..small_gguf() }).contains("version 1"));
    assert!(refused(GgufWriter { version: 3_u32.swap_bytes(), ..small_gguf() }).contains("little-endian"));
    let tensor = |extents: &[u64], tag| GgufWriter::default().tensor("t", extents, tag, &[0; 64]);
    assert!(refused(tensor(&[1; 5], 0)).contains("5 axes"));
    assert!(refused(tensor(&[u64::MAX, 2], 0)).contains("cannot have the shape"));
    assert!(refused(tensor(&[1 << 40], 0)).contains("leaves the file"));
    assert!(refused(tensor(&[16], 2)).contains("cannot have the shape"));
    assert!(refused(tensor(&[16, 2], 2)).contains("cannot have the shape"), "a block must not span two rows");
    assert!(refused(tensor(&[256], 10)).contains("Q2_K"));
    assert!(refused(tensor(&[4], 0).tensor("t", &[4], 0, &[0; 16])).contains("appears twice"));
    assert!(refused(small_gguf().text("flag", "again")).contains("appears twice"));
    assert!(refused(small_gguf().value("general.alignment", 4, 0_u32.to_le_bytes())).contains("power of two"));
    assert!(refused(small_gguf().value("general.alignment", 4, 48_u32.to_le_bytes())).contains("power of two"));

    let mut overlapping = tensor(&[4], 0).tensor("u", &[4], 0, &[0; 16]).build();
    let position = overlapping.windows(8).rposition(|window| window == 64_u64.to_le_bytes()).unwrap();
    overlapping[position..position + 8].fill(0);
    assert!(parse(overlapping).contains("overlap"));
}

#[test]
fn a_vocabulary_that_contradicts_itself_is_refused() {
    let base = || {
        GgufWriter::default().text("tokenizer.ggml.model", "gpt2").value(
            "tokenizer.ggml.tokens",
            9,
            gguf_strings(&["a", "b"]),
        )
    };
    let vocabulary = |writer: GgufWriter| gguf(&writer).unwrap().vocabulary();
    assert!(vocabulary(base()).is_ok());
    assert_eq!(vocabulary(GgufWriter::default()).unwrap(), None);
    assert!(
        reason(vocabulary(base().value("tokenizer.ggml.eos_token_id", 4, 2_u32.to_le_bytes()))).contains("2 tokens")
    );
    let scores = [&6_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &1_f32.to_le_bytes()].concat();
    assert!(reason(vocabulary(base().value("tokenizer.ggml.scores", 9, scores))).contains("1 entries"));
    assert!(reason(vocabulary(GgufWriter::default().text("tokenizer.ggml.tokens", "a"))).contains("not a list"));
}

#[test]
fn hostile_safetensors_headers_are_refused() {
    let file = |header: &str, data: usize| {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        SafetensorsFile::parse(Storage::from(bytes))
    };
    let tensor =
        |shape: &str, offsets: &str| format!(r#"{{"t":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#);
    assert!(file(&tensor("[1]", "[0,4]"), 4).is_ok());
    assert!(file(&tensor("[1]", "[0,4]"), 3).is_err());
    assert!(file(&tensor("[2]", "[0,4]"), 4).is_err());
    assert!(file(&tensor("[1]", "[4,0]"), 4).is_err());
    assert!(file(&tensor("[18446744073709551615,2]", "[0,4]"), 4).is_err());
    assert!(file(&tensor("[-1]", "[0,4]"), 4).is_err());
    assert!(file(&"[".repeat(100_000), 0).is_err());
    assert!(SafetensorsFile::parse(Storage::from(u64::MAX.to_le_bytes().to_vec())).is_err());
    let odd = r#"{"t":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
    assert!(reason(file(odd, 4)).contains("F8_E4M3"));
}

/// Reads everything that opening let through: what is accepted must also be readable.
fn read_all(source: &dyn TensorSource) {
    for tensor in source.tensors() {
        assert_eq!(source.raw(&tensor.name).expect("listed").len(), tensor.bytes);
        // A product of extents with a zero can pass although others are huge; nothing is allocated for it.
        assert_eq!(source.to_f32(&tensor.name).expect("listed").len(), tensor.elements());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn damaged_files_never_panic(
        cut in 0.0..1.0_f64,
        truncate in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        safetensors in any::<bool>(),
    ) {
        let mut bytes = if safetensors { small_safetensors() } else { small_gguf().build() };
        for (index, value) in flips {
            let index = index.index(bytes.len());
            bytes[index] = value;
        }
        if truncate {
            bytes.truncate((cut * bytes.len() as f64) as usize);
        }
        if safetensors {
            if let Ok(file) = SafetensorsFile::parse(Storage::from(bytes)) {
                read_all(&file);
            }
        } else if let Ok(file) = GgufFile::parse(Storage::from(bytes)) {
            let _ = file.vocabulary();
            read_all(&file);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), magic in any::<bool>()) {
        if magic && bytes.len() > 24 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
            bytes[8..24].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        }
        let _ = SafetensorsFile::parse(Storage::from(bytes.clone()));
        let _ = GgufFile::parse(Storage::from(bytes));
    }
}

#[test]
fn every_truncation_of_a_gguf_file_is_refused() {
    let whole = small_gguf().build();
    for length in 0..whole.len() {
        // The last tensor is empty, so only its padding may be missing.
        let result = GgufFile::parse(Storage::from(whole[..length].to_vec()));
        let data_end = whole.len();
        assert!(result.is_err() || length >= data_end - 12, "{length} of {data_end} bytes were accepted");
    }
}
