//! Properties of the codecs: every path the same bits, errors within their bounds, bad input refused.

use half::f16;
use mneme_quant::Path;
use mneme_quant::codec::{CodecError, Fit, Granularity, Quantized, Scheme, Spec, Width};
use proptest::prelude::*;

fn specs() -> Vec<Spec> {
    let mut specs = Vec::new();
    for width in [Width::Ternary, Width::Two, Width::Four, Width::Eight] {
        for granularity in [
            Granularity::Tensor,
            Granularity::OutChannel,
            Granularity::InChannel,
            Granularity::Group(32),
            Granularity::Group(64),
            Granularity::Group(128),
            Granularity::Group(256),
        ] {
            for scheme in [Scheme::Symmetric, Scheme::ScaleMin] {
                for fit in [Fit::Range, Fit::LeastSquares, Fit::Hqq { iterations: 10 }] {
                    let spec = Spec { width, granularity, scheme, fit };
                    if spec.validate().is_ok() {
                        specs.push(spec);
                    }
                }
            }
        }
    }
    specs
}

fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769).wrapping_add(1) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    // Twelve uniforms less six: near enough to a Gaussian.
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn relative_rms(values: &[f32], back: &[f32]) -> f64 {
    let error: f64 = values.iter().zip(back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (error / values.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>()).sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn every_path_and_number_of_threads_gives_the_same_codes_and_the_same_weights(
        rows in 0_usize..9, columns in 0_usize..600, seed in any::<u64>(),
    ) {
        let values = noise(rows * columns, seed);
        for spec in specs() {
            let reference = Quantized::quantize_on(Path::Scalar, &values, rows, columns, spec, 1).unwrap();
            let mut expected = vec![0.0; values.len()];
            reference.dequantize_into_on(Path::Scalar, &mut expected, 1).unwrap();
            for path in Path::available() {
                for threads in [1, 3] {
                    let found = Quantized::quantize_on(*path, &values, rows, columns, spec, threads).unwrap();
                    prop_assert_eq!(found.codes(), reference.codes(), "{:?} {:?}", path, spec);
                    prop_assert_eq!(found.scales(), reference.scales(), "{:?} {:?}", path, spec);
                    prop_assert_eq!(found.minimums(), reference.minimums(), "{:?} {:?}", path, spec);
                    let mut back = vec![0.0; values.len()];
                    found.dequantize_into_on(*path, &mut back, threads).unwrap();
                    prop_assert_eq!(&back, &expected, "{:?} {:?}", path, spec);
                }
            }
            let parts = Quantized::from_parts(spec, rows, columns, reference.codes().to_vec(),
                reference.scales().to_vec(), reference.minimums().to_vec()).unwrap();
            prop_assert!(parts == reference);
        }
    }

    #[test]
    fn a_range_fit_keeps_every_weight_within_half_a_step(columns in 1_usize..300, seed in any::<u64>()) {
        let values = noise(3 * columns, seed);
        for spec in specs().into_iter().filter(|spec| spec.fit == Fit::Range && spec.width != Width::Ternary) {
            let back = Quantized::quantize(&values, 3, columns, spec, 1).unwrap();
            // The scale is rounded to 11 bits, so the last level misses the largest value by up to 255/2048 of a step
            // more; so does a rounded minimum.
            let step = back.scales().iter().map(|scale| scale.to_f32()).fold(0.0, f32::max);
            let slack = step * 0.625 + back.minimums().iter().map(|m| m.to_f32().abs()).fold(0.0, f32::max) / 1024.0;
            for (value, back) in values.iter().zip(back.dequantize(1)) {
                prop_assert!((value - back).abs() <= slack, "{:?}: {} {}", spec, value, back);
            }
        }
    }
}

#[test]
fn large_outputs_that_are_streamed_equal_the_tiles() {
    let (rows, columns) = (601, 2_100);
    let values = noise(rows * columns, 3);
    let spec = Spec { fit: Fit::Range, ..Spec::int4(64) };
    let quantized = Quantized::quantize(&values, rows, columns, spec, 2).unwrap();
    let whole = quantized.dequantize(2);
    // One more element at the front moves the output off its alignment.
    let mut moved = vec![0.0; rows * columns + 1];
    quantized.dequantize_into(&mut moved[1..], 2).unwrap();
    assert_eq!(&moved[1..], whole);
    let mut tile = vec![0.0; 3 * columns];
    quantized.dequantize_rows(7, 10, &mut tile).unwrap();
    assert_eq!(tile, whole[7 * columns..10 * columns]);
}

#[test]
fn errors_on_gaussian_weights_are_at_the_known_floors() {
    // Relative RMS errors; the floors are those of scalar quantisers with these side bits on Gaussian weights.
    let values = noise(256 * 1024, 9);
    let error = |spec| relative_rms(&values, &Quantized::quantize(&values, 256, 1024, spec, 2).unwrap().dequantize(2));
    let range = |spec: Spec| Spec { fit: Fit::Range, ..spec };
    assert!(error(Spec::int8()) < 0.011);
    assert!(error(Spec::int4(32)) < 0.076);
    assert!(error(Spec::int4(128)) < 0.098);
    assert!(error(Spec::int2(64)) < 0.335);
    for spec in [Spec::int4(32), Spec::int4(128), Spec::int2(32), Spec::int2(64)] {
        assert!(error(spec) < error(range(spec)), "{spec:?}");
        let symmetric = Spec { scheme: Scheme::Symmetric, ..spec };
        assert!(error(symmetric) < error(range(symmetric)), "{spec:?}");
        assert!(error(Spec { fit: Fit::Hqq { iterations: 20 }, ..spec }) < error(range(spec)), "{spec:?}");
    }
    let ternary = Spec { width: Width::Ternary, scheme: Scheme::Symmetric, ..Spec::int2(64) };
    assert!(error(ternary) < 0.45);
}

#[test]
fn bits_per_weight_counts_every_stored_byte() {
    for spec in specs() {
        for (rows, columns) in [(3, 576), (7, 33), (1, 1)] {
            let quantized = Quantized::quantize(&vec![1.0; rows * columns], rows, columns, spec, 1).unwrap();
            let bytes = quantized.codes().len() + 2 * (quantized.scales().len() + quantized.minimums().len());
            let expected = bytes as f64 * 8.0 / (rows * columns) as f64;
            assert!((quantized.bits_per_weight() - expected).abs() < 1e-12, "{spec:?}");
        }
    }
    assert!((Spec::int4(128).bits_per_weight(576, 576) - (4.0 + 5.0 * 32.0 / 576.0)).abs() < 1e-12);
    assert!(Spec::int8().bits_per_weight(0, 7).abs() < 1e-12);
}

#[test]
fn what_cannot_be_quantised_is_refused_with_its_place() {
    for spec in specs() {
        for path in Path::available() {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![0.5; 3 * 70];
                values[133] = bad;
                let error = Quantized::quantize_on(*path, &values, 3, 70, spec, 2).unwrap_err();
                assert_eq!(error, CodecError::NotFinite { index: 133 }, "{spec:?}");
            }
            let error = Quantized::quantize_on(*path, &[f32::MAX, f32::MIN], 1, 2, spec, 1).unwrap_err();
            assert_eq!(error, CodecError::ScaleRange { index: 0 }, "{spec:?} {path:?}");
        }
    }
    let shape = Quantized::quantize(&[1.0], 2, 2, Spec::int8(), 1).unwrap_err();
    assert_eq!(shape, CodecError::Shape { rows: 2, columns: 2, values: 1 });
    assert_eq!(Spec::int4(48).validate().unwrap_err(), CodecError::GroupSize { size: 48 });
}

#[test]
fn hostile_parts_are_refused() {
    let spec = Spec::int8();
    let part = |codes, scales: Vec<f16>| Quantized::from_parts(spec, 2, 3, codes, scales, vec![]).unwrap_err();
    let one = f16::from_f32(1.0);
    assert!(matches!(part(vec![0; 5], vec![one; 2]), CodecError::PartLength { part: "codes", .. }));
    assert!(matches!(part(vec![0; 6], vec![one; 1]), CodecError::PartLength { part: "scales", .. }));
    assert!(matches!(part(vec![0; 6], vec![one, f16::NAN]), CodecError::ScaleRange { index: 1 }));
    let huge = Quantized::from_parts(spec, usize::MAX, usize::MAX, vec![], vec![], vec![]).unwrap_err();
    assert!(matches!(huge, CodecError::Shape { .. }));
}

#[test]
fn a_constant_group_and_zeros_come_back_exactly() {
    for spec in specs() {
        let zeros = Quantized::quantize(&[0.0; 64], 2, 32, spec, 1).unwrap();
        assert_eq!(zeros.dequantize(1), [0.0; 64], "{spec:?}");
    }
    let constant = Quantized::quantize(&[0.75; 64], 2, 32, Spec::int4(32), 1).unwrap();
    assert_eq!(constant.dequantize(1), [0.75; 64]);
}
