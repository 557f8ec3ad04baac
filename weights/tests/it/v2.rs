//! Parquet V2 gives back what was written, from the mapping, and refuses what is damaged.

use std::collections::BTreeMap;

use bytes::Bytes;
use mneme_quant::{Fit, Granularity, Quantized, Scheme, Spec, Width};
use mneme_weights::v2::content_hash;
use mneme_weights::{DType, OpenError, Storage, TensorError, TensorSource, V2File, V2Writer, WriteError, open};
use proptest::prelude::*;

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|index| ((index * 37 % 101) as f32 - 50.0) / 25.0).collect()
}

fn f32_bytes(values: &[f32]) -> Bytes {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn specs() -> Vec<Spec> {
    let spec = |width, granularity, scheme| Spec { width, granularity, scheme, fit: Fit::Range };
    vec![
        Spec::int8(),
        Spec::int4(32),
        Spec::int2(64),
        spec(Width::Eight, Granularity::InChannel, Scheme::Symmetric),
        spec(Width::Four, Granularity::Tensor, Scheme::ScaleMin),
        spec(Width::Ternary, Granularity::Group(128), Scheme::Symmetric),
    ]
}

/// A file with a plain tensor, a quantised one of each kind and an attachment.
fn small_file() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("small.parquet");
    let metadata = BTreeMap::from([("architecture".to_owned(), "llama".to_owned())]);
    let mut writer = V2Writer::create(&path, &metadata).expect("created");
    writer.tensor("plain", &[2, 3], DType::F32, f32_bytes(&values(6))).expect("written");
    writer.tensor("scalar", &[], DType::I64, Bytes::from_static(&[7, 0, 0, 0, 0, 0, 0, 0])).expect("written");
    writer.tensor("empty", &[0, 4], DType::F16, Bytes::new()).expect("written");
    for (index, spec) in specs().into_iter().enumerate() {
        let quantized = Quantized::quantize(&values(5 * 72), 5, 72, spec, 1).expect("quantised");
        writer.quantized(&format!("quantized.{index}"), &[5, 72], &quantized).expect("written");
    }
    writer
        .attachment("tokenizer.json", Bytes::from_static(b"{\"some\": \"thing longer than a view\"}"))
        .expect("written");
    writer.finish().expect("finished");
    fs_err::read(&path).expect("read back")
}

#[test]
fn what_is_written_is_read_back_with_its_format() {
    let file = V2File::parse(Storage::from(small_file())).unwrap();
    assert_eq!(file.metadata()["architecture"], "llama");
    assert_eq!(file.attachments().collect::<Vec<_>>(), ["tokenizer.json"]);
    assert_eq!(file.attachment("tokenizer.json").unwrap().as_ref(), b"{\"some\": \"thing longer than a view\"}");
    assert!(file.find("tokenizer.json").is_none(), "an attachment is not a tensor");
    assert_eq!(file.tensors().len(), 3 + specs().len());
    assert_eq!(file.to_f32("plain").unwrap(), values(6));
    assert_eq!(file.find("scalar").unwrap().shape, [0_usize; 0]);
    assert_eq!(file.to_f32("scalar").unwrap(), [7.0]);
    assert_eq!(file.to_f32("empty").unwrap(), [0.0; 0]);
    for (index, spec) in specs().into_iter().enumerate() {
        let name = format!("quantized.{index}");
        let expected = Quantized::quantize(&values(5 * 72), 5, 72, spec, 1).unwrap();
        let parts = file.quantized(&name).unwrap().unwrap();
        assert_eq!(
            (parts.spec.width, parts.spec.granularity, parts.spec.scheme),
            (spec.width, spec.granularity, spec.scheme)
        );
        assert_eq!(parts.codes.as_ref(), expected.codes());
        assert_eq!(file.to_f32(&name).unwrap(), expected.dequantize(1), "{spec:?}");
        file.verify(&name).unwrap();
    }
    assert!(file.quantized("plain").unwrap().is_none());
    file.verify("tokenizer.json").unwrap();
}

#[test]
fn any_range_of_a_quantised_tensor_decodes_alike() {
    let file = V2File::parse(Storage::from(small_file())).unwrap();
    for index in 0..specs().len() {
        let name = format!("quantized.{index}");
        let whole = file.to_f32(&name).unwrap();
        for (start, length) in [(0, 1), (71, 2), (72, 72), (100, 250), (359, 1), (10, 0)] {
            let mut out = vec![f32::NAN; length];
            file.decode_range(&name, start, &mut out).unwrap();
            assert_eq!(out, whole[start..start + length], "{name} {start}+{length}");
        }
        assert!(matches!(file.decode_range(&name, 359, &mut [0.0; 2]), Err(TensorError::Range { .. })));
    }
}

#[test]
fn tensors_alias_the_mapping_and_opening_does_not_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.parquet");
    let mut writer = V2Writer::create(&path, &BTreeMap::new()).unwrap();
    let large = f32_bytes(&values(1 << 18));
    for index in 0..32 {
        writer.tensor(&format!("t{index}"), &[1 << 9, 1 << 9], DType::F32, large.clone()).unwrap();
    }
    let bytes = writer.finish().unwrap();
    assert_eq!(bytes, fs_err::metadata(&path).unwrap().len());

    let before = resident_kib("RssFile");
    let anonymous_before = resident_kib("RssAnon");
    let storage = Storage::open(&path).unwrap();
    let mapping = storage.bytes().as_ptr_range();
    let file = V2File::parse(storage).unwrap();
    for tensor in file.tensors() {
        let raw = file.raw(&tensor.name).unwrap();
        let range = raw.as_ptr_range();
        assert!(mapping.start <= range.start && range.end <= mapping.end, "{} was copied", tensor.name);
    }
    // Other tests run beside this one and grow the process too, hence the slack.
    if let (Some(before), Some(after)) = (anonymous_before, resident_kib("RssAnon")) {
        assert!(after.saturating_sub(before) < 8 << 10, "{before} -> {after} KiB for {} KiB of weights", bytes >> 10);
    }
    if let (Some(before), Some(after)) = (before, resident_kib("RssFile")) {
        assert!(after.saturating_sub(before) < 16 << 10, "{before} -> {after} KiB for {} KiB of weights", bytes >> 10);
    }
    assert_eq!(open(&path).unwrap().to_f32("t3").unwrap(), values(1 << 18));
    file.release("t3");
    file.verify("t3").unwrap();
}

/// A line of `/proc/self/status` in KiB; `None` where there is no such file.
fn resident_kib(field: &str) -> Option<u64> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')?.split_whitespace().next()?.parse().ok())
}

#[test]
fn an_unfinished_or_refused_file_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.parquet");
    let mut writer = V2Writer::create(&path, &BTreeMap::new()).unwrap();
    writer.tensor("t", &[1], DType::F32, f32_bytes(&[1.0])).unwrap();
    assert!(matches!(writer.tensor("t", &[1], DType::F32, f32_bytes(&[1.0])), Err(WriteError::Duplicate(_))));
    assert!(matches!(writer.tensor("u", &[2], DType::F32, f32_bytes(&[1.0])), Err(WriteError::Tensor { .. })));
    assert!(matches!(writer.tensor("", &[1], DType::F32, f32_bytes(&[1.0])), Err(WriteError::Tensor { .. })));
    assert!(matches!(writer.tensor("v", &[1], DType::Int4, Bytes::new()), Err(WriteError::Tensor { .. })));
    drop(writer);
    assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_changed_weight_is_noticed_by_its_hash() {
    let mut bytes = small_file();
    let needle = f32_bytes(&values(6));
    let at = bytes.windows(needle.len()).position(|window| window == needle).unwrap();
    bytes[at + 2] ^= 1;
    let file = V2File::parse(Storage::from(bytes)).unwrap();
    assert!(matches!(file.verify("plain"), Err(TensorError::HashMismatch { .. })));
    file.verify("quantized.0").unwrap();
}

#[test]
fn hashes_depend_on_type_shape_and_content_alone() {
    let hash = |dtype, shape: &[usize], parts: &[&[u8]]| content_hash(dtype, shape, parts);
    let base = hash(DType::F32, &[2], &[&[1; 8]]);
    assert_eq!(base, hash(DType::F32, &[2], &[&[1; 8], &[], &[]]));
    assert_ne!(base, hash(DType::I32, &[2], &[&[1; 8]]));
    assert_ne!(base, hash(DType::F32, &[1, 2], &[&[1; 8]]));
    assert_ne!(base, hash(DType::F32, &[2], &[&[1; 4], &[1; 4]]));
}

#[test]
fn other_parquet_files_are_refused() {
    for bytes in [b"PAR1".to_vec(), b"PAR1PAR1".to_vec(), b"PAR1\xff\xff\xff\x7fPAR1".to_vec(), Vec::new()] {
        assert!(V2File::parse(Storage::from(bytes)).is_err());
    }
    let mut other_version = small_file();
    let at = other_version.windows(21).rposition(|window| window == b"mneme.weights.version").unwrap();
    other_version[at] = b'x';
    assert!(matches!(V2File::parse(Storage::from(other_version)), Err(OpenError::Malformed { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_500))]

    #[test]
    fn damaged_files_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
        footer in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        static FILE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(small_file);
        let mut bytes = FILE.clone();
        let footer_bytes = u32::from_le_bytes(*bytes[..bytes.len() - 4].last_chunk().unwrap()) as usize;
        let first = if footer { bytes.len() - 8 - footer_bytes } else { 0 };
        for (index, value) in flips {
            let index = first + index.index(bytes.len() - first);
            bytes[index] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = V2File::parse(Storage::from(bytes)) {
            for tensor in file.tensors() {
                let _ = file.to_f32(&tensor.name);
                let _ = file.verify(&tensor.name);
            }
        }
    }
}
