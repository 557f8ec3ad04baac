//! Conversion, probe, diff and sidecar on small models.

use mneme_quant::gemm::PackedWeights;
use mneme_quant::{Granularity, Spec};
use mneme_weights::convert::{ConvertOptions, Names, VOCABULARY_ATTACHMENT, convert, gguf_extras};
use mneme_weights::probe::{Depth, Difference, diff, probe, spectrum, statistics};
use mneme_weights::sidecar::{self, Sidecar};
use mneme_weights::{GgufFile, GgufVocabulary, Storage, TensorSource, V2File, gguf};
use proptest::prelude::*;

use crate::files::{GgufWriter, small_gguf};

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 7919 % 1009) as f32 - 504.0) / 500.0).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A llama of one layer with 4 query heads and 2 key heads of 16.
fn llama() -> GgufFile {
    let writer = GgufWriter::default()
        .text("general.architecture", "llama")
        .value("llama.attention.head_count", 4, 4_u32.to_le_bytes())
        .value("llama.attention.head_count_kv", 4, 2_u32.to_le_bytes())
        .tensor("token_embd.weight", &[64, 96], 0, &bytes(&values(96 * 64)))
        .tensor("blk.0.attn_q.weight", &[64, 64], 0, &bytes(&values(64 * 64)))
        .tensor("blk.0.attn_k.weight", &[64, 32], 0, &bytes(&values(32 * 64)))
        .tensor("blk.0.attn_norm.weight", &[64], 0, &bytes(&values(64)))
        .tensor("blk.0.ffn_down.weight", &[160, 64], 0, &bytes(&values(64 * 160)));
    GgufFile::parse(Storage::from(writer.build())).expect("the file is valid")
}

fn converted(file: &GgufFile, options: &ConvertOptions) -> V2File {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("out.parquet");
    let (metadata, attachments) = gguf_extras(file).expect("extras");
    let mut calls = 0;
    let report = convert(file, &path, &metadata, &attachments, options, |done, total| {
        calls += 1;
        assert_eq!((done, total), (calls, file.tensors().len()));
    })
    .expect("converted");
    assert_eq!(report.tensors, file.tensors().len());
    V2File::open(&path).expect("opened")
}

#[test]
fn a_lossless_conversion_keeps_every_tensor_metadata_and_vocabulary() {
    let source = GgufFile::parse(Storage::from(small_gguf().build())).unwrap();
    let file = converted(&source, &ConvertOptions::default());
    assert_eq!(file.tensors(), source.tensors());
    for tensor in source.tensors() {
        assert_eq!(file.raw(&tensor.name).unwrap(), source.raw(&tensor.name).unwrap());
        file.verify(&tensor.name).unwrap();
    }
    assert_eq!(file.metadata()["llama.block_count"], "30");
    let vocabulary: GgufVocabulary = serde_json::from_slice(&file.attachment(VOCABULARY_ATTACHMENT).unwrap()).unwrap();
    assert_eq!(vocabulary, source.vocabulary().unwrap().unwrap());
    assert!(diff(&source, &file, |_, _| ()).unwrap().iter().all(|tensor| tensor.difference == Difference::Equal));
}

#[test]
fn matrices_are_quantised_and_norms_are_not() {
    let source = llama();
    let options = ConvertOptions {
        quantize: Some(Spec::int4(64)),
        quantize_embedding: Some(Spec::int8()),
        names: Names::Keep,
        threads: 2,
    };
    let file = converted(&source, &options);
    let kind = |name: &str| file.find(name).unwrap().dtype.name();
    assert_eq!(kind("token_embd.weight"), "int8");
    assert_eq!(kind("blk.0.attn_q.weight"), "int4");
    assert_eq!(kind("blk.0.attn_norm.weight"), "f32");
    for tensor in diff(&source, &file, |_, _| ()).unwrap() {
        match tensor.difference {
            Difference::Equal => assert_eq!(tensor.name, "blk.0.attn_norm.weight"),
            // Uniform values: a 4-bit step is 2/15 of the amplitude, its uniform error 3.9% of it, against an RMS of 58%.
            Difference::Changed { relative_error, cosine, .. } => {
                assert!(relative_error < 0.08 && cosine > 0.995, "{}: {relative_error}", tensor.name);
            }
            other => panic!("{}: {other:?}", tensor.name),
        }
    }
}

#[test]
fn hugging_face_names_come_with_half_split_rotary_rows() {
    let source = llama();
    for quantize in [None, Some(Spec { granularity: Granularity::OutChannel, ..Spec::int8() })] {
        let options = ConvertOptions { quantize, names: Names::HuggingFace, ..ConvertOptions::default() };
        let file = converted(&source, &options);
        for (name, from, heads) in [("q", "blk.0.attn_q.weight", 4), ("k", "blk.0.attn_k.weight", 2)] {
            let expected = gguf::unpermute_rotary_rows(&source.to_f32(from).unwrap(), heads, 16).unwrap();
            let found = file.to_f32(&format!("model.layers.0.self_attn.{name}_proj.weight")).unwrap();
            let worst = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            // 8 bits: half a step of 1/127.
            assert!(worst <= if quantize.is_some() { 0.0045 } else { 0.0 }, "{worst}");
        }
        assert!(file.find("model.embed_tokens.weight").is_some());
        assert!(file.find("model.layers.0.mlp.down_proj.weight").is_some());
    }
    assert_eq!(gguf::huggingface_name("blk.x.attn_q.weight"), None);
    assert_eq!(gguf::huggingface_name("blk.0.attn_q.scale"), None);
}

#[test]
fn diff_names_what_was_added_removed_and_reshaped() {
    let file = |writer: GgufWriter| GgufFile::parse(Storage::from(writer.build())).unwrap();
    let one = bytes(&[1.0, 0.0]);
    let two = bytes(&[1.0, 1.0]);
    let base = || GgufWriter::default().tensor("changed", &[2], 0, &one).tensor("same", &[2], 0, &one);
    let before = file(base().tensor("gone", &[2], 0, &one).tensor("turned", &[2, 1], 0, &one));
    let after = file(
        GgufWriter::default()
            .tensor("changed", &[2], 0, &two)
            .tensor("same", &[2], 0, &one)
            .tensor("turned", &[1, 2], 0, &one)
            .tensor("new", &[2], 0, &one),
    );
    let differences = diff(&before, &after, |_, _| ()).unwrap();
    let of = |name: &str| differences.iter().find(|tensor| tensor.name == name).unwrap().difference.clone();
    assert_eq!(of("same"), Difference::Equal);
    assert_eq!(of("gone"), Difference::Removed);
    assert_eq!(of("new"), Difference::Added);
    assert!(matches!(of("turned"), Difference::Reshaped { .. }));
    let Difference::Changed { relative_error, cosine, max_change, changed_fraction } = of("changed") else { panic!() };
    assert_eq!((relative_error, max_change, changed_fraction), (1.0, 1.0, 0.5));
    assert!((cosine - 0.5_f64.sqrt()).abs() < 1e-12);
}

#[test]
fn statistics_describe_the_values() {
    let found = statistics(&[0.0, 1.0, -1.0, 2.0, f32::NAN, -2.0, f32::INFINITY, 0.0]);
    assert_eq!(found.not_finite, 2);
    assert_eq!((found.min, found.max, found.mean, found.norm_l1), (-2.0, 2.0, 0.0, 6.0));
    assert!((found.norm_l2 - 10_f64.sqrt()).abs() < 1e-12);
    assert!((found.sparsity - 1.0 / 3.0).abs() < 1e-12);
    assert_eq!(found.histogram.iter().sum::<u64>(), 6);
    let empty = statistics(&[]);
    assert_eq!((empty.min, empty.max, empty.mean, empty.quantiles.len()), (0.0, 0.0, 0.0, 0));
}

#[test]
fn the_spectrum_of_a_known_matrix_is_found() {
    // Two orthogonal directions of lengths 3 and 2 in a 40 x 30 matrix: u1 = e0, v1 = ones / sqrt(30); u2 = e1, v2
    // alternating signs / sqrt(30).
    let mut matrix = vec![0.0_f32; 40 * 30];
    for column in 0..30 {
        matrix[column] = 3.0 / 30_f32.sqrt();
        matrix[30 + column] = if column % 2 == 0 { 2.0 } else { -2.0 } / 30_f32.sqrt();
    }
    let found = spectrum(&matrix, 40, 30, 5).unwrap();
    assert!((found.singular_values[0] - 3.0).abs() < 1e-5 && (found.singular_values[1] - 2.0).abs() < 1e-5);
    assert!(found.singular_values[2..].iter().all(|value| *value < 1e-5));
    assert!((found.stable_rank - 13.0 / 9.0).abs() < 1e-5);
    assert!((found.energy - 1.0).abs() < 1e-6);
    assert!(spectrum(&matrix, 40, 31, 5).is_none());
    assert!(spectrum(&[f32::NAN], 1, 1, 1).is_none());
    assert!(spectrum(&[], 0, 0, 1).is_none());
    let zero = spectrum(&[0.0; 64], 8, 8, 3).unwrap();
    assert_eq!((zero.singular_values, zero.stable_rank), (vec![0.0; 3], 0.0));
}

#[test]
fn a_probe_looks_as_deep_as_it_is_asked_to() {
    let source = llama();
    let tensor = source.find("blk.0.attn_q.weight").unwrap();
    assert!(probe(&source, tensor, Depth::List).unwrap().statistics.is_none());
    assert!(probe(&source, tensor, Depth::Statistics).unwrap().spectrum.is_none());
    let deep = probe(&source, tensor, Depth::Spectrum { rank: 4 }).unwrap();
    let energy: f64 = values(64 * 64).iter().map(|value| f64::from(*value).powi(2)).sum();
    assert!((deep.statistics.unwrap().norm_l2.powi(2) - energy).abs() < 1e-6 * energy);
    assert_eq!(deep.spectrum.unwrap().singular_values.len(), 4);
    let norm = source.find("blk.0.attn_norm.weight").unwrap();
    assert!(probe(&source, norm, Depth::Spectrum { rank: 4 }).unwrap().spectrum.is_none(), "a vector has no spectrum");
}

fn small_sidecar() -> (Vec<u8>, Vec<PackedWeights>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiles.arrow");
    let matrices: Vec<PackedWeights> = [(48, 96, Spec::int4(32)), (17, 64, Spec::int8())]
        .into_iter()
        .map(|(rows, columns, spec)| {
            let quantized = mneme_quant::Quantized::quantize(&values(rows * columns), rows, columns, spec, 1);
            PackedWeights::from_quantized(&quantized.expect("quantised")).expect("packed")
        })
        .collect();
    sidecar::write(&path, ["a", "b"].into_iter().zip(&matrices)).expect("written");
    assert_eq!(fs_err::read_dir(folder.path()).expect("a folder").count(), 1, "no temporary file stays");
    (fs_err::read(&path).expect("read back"), matrices)
}

#[test]
fn sidecar_matrices_alias_the_mapping_at_cache_lines() {
    let (content, matrices) = small_sidecar();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiles.arrow");
    fs_err::write(&path, content).unwrap();
    let storage = Storage::open(&path).unwrap();
    let mapping = storage.bytes().as_ptr_range();
    let opened = Sidecar::parse(&storage).unwrap();
    assert_eq!(opened.names(), ["a", "b"]);
    for (name, expected) in ["a", "b"].into_iter().zip(&matrices) {
        let raw = opened.raw(name).unwrap();
        assert!(mapping.contains(&raw.as_ptr()), "{name} was copied");
        assert_eq!(raw.as_ptr() as usize % sidecar::ALIGNMENT, 0, "{name}");
        assert_eq!(raw.as_ref(), expected.as_bytes());
        assert_eq!(opened.matrix(name).unwrap().unwrap().dequantize().unwrap(), expected.dequantize().unwrap());
    }
    assert!(opened.matrix("c").is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    #[test]
    fn damaged_sidecars_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
        tail in any::<bool>(),
    ) {
        static FILE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| small_sidecar().0);
        let mut content = FILE.clone();
        let first = if tail { content.len() - 700 } else { 0 };
        for (index, value) in flips {
            let index = first + index.index(content.len() - first);
            content[index] = value;
        }
        if let Some(cut) = cut {
            content.truncate(cut.index(content.len()));
        }
        if let Ok(opened) = Sidecar::parse(&Storage::from(content)) {
            for name in opened.names() {
                if let Some(Ok(matrix)) = opened.matrix(name) {
                    let _ = matrix.dequantize();
                }
            }
        }
    }

    #[test]
    fn the_largest_singular_value_bounds_every_product(seed in any::<u64>(), rows in 1_usize..20, columns in 1_usize..20) {
        let matrix: Vec<f32> = (0..rows * columns)
            .map(|index| ((seed.wrapping_mul(index as u64 * 2 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f32) / 8e6 - 1.0)
            .collect();
        let found = spectrum(&matrix, rows, columns, rows.min(columns)).unwrap();
        let energy: f64 = matrix.iter().map(|value| f64::from(*value).powi(2)).sum();
        let sum: f64 = found.singular_values.iter().map(|value| value * value).sum();
        // All singular values together are the Frobenius norm.
        prop_assert!((sum - energy).abs() <= 1e-6 * energy.max(1e-9), "{sum} {energy}");
    }
}
