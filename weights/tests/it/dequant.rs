//! Decoding equals values that other programs computed from the same bytes.

use mneme_weights::{DType, TensorError, dequant};

/// Three blocks of each type with random bytes, decoded by the Python package `gguf` 0.19.0 (numpy).
const GOLDEN: &str = include_str!("../data/dequant_golden.json");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|index| u8::from_str_radix(&hex[2 * index..2 * index + 2], 16).expect("hex")).collect()
}

#[test]
fn block_types_decode_to_the_bits_that_the_gguf_package_computes() {
    let golden: serde_json::Value = serde_json::from_str(GOLDEN).unwrap();
    for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_blocked()) {
        let stored = bytes(golden[dtype.name()]["stored"].as_str().unwrap());
        let expected = bytes(golden[dtype.name()]["values"].as_str().unwrap());
        let mut out = vec![f32::NAN; expected.len() / 4];
        dequant::decode(dtype, &stored, &mut out).unwrap();
        let expected: Vec<u32> = expected.as_chunks().0.iter().map(|value| u32::from_le_bytes(*value)).collect();
        let found: Vec<u32> = out.iter().map(|value| value.to_bits()).collect();
        assert_eq!(found, expected, "{dtype}");
    }
}

#[test]
fn a_q4_1_block_written_by_hand_decodes_to_scale_times_code_plus_minimum() {
    // d = 0.5 (0x3800), m = -1.0 (0xBC00), low nibbles 0..15, high nibbles 15..0.
    let mut block = vec![0x00, 0x38, 0x00, 0xBC];
    block.extend((0..16_u8).map(|index| index | ((15 - index) << 4)));
    let mut out = [0.0; 32];
    dequant::decode(DType::Q4_1, &block, &mut out).unwrap();
    for index in 0..16_u8 {
        assert_eq!(out[usize::from(index)], 0.5 * f32::from(index) - 1.0);
        assert_eq!(out[16 + usize::from(index)], 0.5 * f32::from(15 - index) - 1.0);
    }
}

#[test]
fn plain_types_decode_to_the_values_that_were_written() {
    fn check(dtype: DType, stored: Vec<u8>, expected: &[f32]) {
        let mut out = vec![f32::NAN; expected.len()];
        dequant::decode(dtype, &stored, &mut out).unwrap();
        assert_eq!(out, expected, "{dtype}");
    }
    check(DType::F64, [1.5_f64, -0.1].iter().flat_map(|value| value.to_le_bytes()).collect(), &[1.5, -0.1]);
    check(DType::F32, [1.5_f32, -0.1].iter().flat_map(|value| value.to_le_bytes()).collect(), &[1.5, -0.1]);
    // 1.0, -2.0, the smallest subnormal 2^-24, infinity.
    check(
        DType::F16,
        vec![0x00, 0x3C, 0x00, 0xC0, 0x01, 0x00, 0x00, 0x7C],
        &[1.0, -2.0, 2_f32.powi(-24), f32::INFINITY],
    );
    check(DType::BF16, vec![0x80, 0x3F, 0x00, 0xC0], &[1.0, -2.0]);
    check(DType::I64, (-3_i64).to_le_bytes().to_vec(), &[-3.0]);
    check(DType::U64, 7_u64.to_le_bytes().to_vec(), &[7.0]);
    check(DType::I32, (-3_i32).to_le_bytes().to_vec(), &[-3.0]);
    check(DType::U32, 9_u32.to_le_bytes().to_vec(), &[9.0]);
    check(DType::I16, (-300_i16).to_le_bytes().to_vec(), &[-300.0]);
    check(DType::U16, 60_000_u16.to_le_bytes().to_vec(), &[60_000.0]);
    check(DType::I8, vec![0x80, 0x7F], &[-128.0, 127.0]);
    check(DType::U8, vec![0, 255], &[0.0, 255.0]);
    check(DType::Bool, vec![0, 1, 2], &[0.0, 1.0, 1.0]);
}

#[test]
fn refuses_bytes_that_are_not_the_stored_form_of_the_output() {
    for dtype in DType::ALL.into_iter().filter(|dtype| !dtype.is_quantized()) {
        let mut out = vec![0.0; dtype.block_elements()];
        let short = vec![0; dtype.block_bytes() - 1];
        assert!(matches!(dequant::decode(dtype, &short, &mut out), Err(TensorError::Length { .. })), "{dtype}");
        let long = vec![0; dtype.block_bytes() + 1];
        assert!(matches!(dequant::decode(dtype, &long, &mut out), Err(TensorError::Length { .. })), "{dtype}");
        assert!(dequant::decode(dtype, &[], &mut []).is_ok(), "{dtype}");
    }
    let mut out = vec![0.0; 31];
    assert!(matches!(dequant::decode(DType::Q4_0, &[0; 18], &mut out), Err(TensorError::Length { .. })));
}

#[test]
fn every_type_is_found_by_its_own_name() {
    for dtype in DType::ALL {
        assert_eq!(DType::from_name(dtype.name()), Some(dtype));
    }
    assert_eq!(DType::from_name("q9_9"), None);
}
