//! Properties of the integer products: every path the scalar bits, the float product within its bound, hostile bytes refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mneme_quant::Path;
use mneme_quant::codec::{Fit, Granularity, Quantized, Scheme, Spec, Width};
use mneme_quant::gemm::{
    ActivationScaling, GemmError, PackedWeights, QuantizedActivations, gemm, gemm_on, gemm_quantized,
};
use proptest::prelude::*;

fn specs() -> Vec<Spec> {
    let mut specs = Vec::new();
    for width in [Width::Ternary, Width::Two, Width::Four, Width::Eight] {
        for granularity in [
            Granularity::Tensor,
            Granularity::OutChannel,
            Granularity::Group(32),
            Granularity::Group(64),
            Granularity::Group(256),
        ] {
            for scheme in [Scheme::Symmetric, Scheme::ScaleMin] {
                let spec = Spec { width, granularity, scheme, fit: Fit::Range };
                if spec.validate().is_ok() {
                    specs.push(spec);
                }
            }
        }
    }
    specs
}

fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    (0..count)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn every_path_and_number_of_threads_gives_the_scalar_bits(
        rows in 1_usize..40, outputs in 1_usize..70, inputs in 1_usize..330, seed in any::<u64>(),
    ) {
        let values = noise(outputs * inputs, seed);
        let activations = noise(rows * inputs, seed ^ 5);
        for spec in specs() {
            let weights = PackedWeights::from_f32(&values, outputs, inputs, spec, 1).unwrap();
            for scaling in [ActivationScaling::PerToken, ActivationScaling::PerTokenGroup, ActivationScaling::Static(0.004)] {
                let mut expected = vec![0.0; rows * outputs];
                gemm_on(Path::Scalar, &weights, &activations, rows, scaling, &mut expected, 1).unwrap();
                for path in Path::available() {
                    let mut found = vec![f32::NAN; rows * outputs];
                    gemm_on(*path, &weights, &activations, rows, scaling, &mut found, 1).unwrap();
                    prop_assert_eq!(&found, &expected, "{:?} {:?} {:?}", path, spec, scaling);
                }
            }
        }
    }

    #[test]
    fn the_product_is_the_float_product_of_what_the_codes_stand_for(
        rows in 1_usize..20, outputs in 1_usize..40, inputs in 1_usize..300, seed in any::<u64>(),
    ) {
        let values = noise(outputs * inputs, seed);
        let activations = noise(rows * inputs, seed ^ 7);
        for spec in specs() {
            let quantized = Quantized::quantize(&values, outputs, inputs, spec, 1).unwrap();
            let weights = PackedWeights::from_quantized(&quantized).unwrap();
            let matrix = quantized.dequantize(1);
            prop_assert_eq!(&weights.dequantize().unwrap(), &matrix);
            let codes =
                QuantizedActivations::quantize(&activations, rows, &weights, ActivationScaling::PerToken, 1).unwrap();
            let mut found = vec![0.0; rows * outputs];
            gemm_quantized(&weights, &codes, &mut found, 1).unwrap();
            let exact = codes.dequantize();
            for row in 0..rows {
                for output in 0..outputs {
                    let pairs = exact[row * inputs..][..inputs].iter().zip(&matrix[output * inputs..][..inputs]);
                    let (mut dot, mut size) = (0.0_f64, 0.0_f64);
                    for (a, b) in pairs {
                        dot += f64::from(*a) * f64::from(*b);
                        size += (f64::from(*a) * f64::from(*b)).abs();
                    }
                    // Rounding of a few dozen float steps, relative to the terms, which minimums may let cancel.
                    let minimum_size = f64::from(quantized.minimums().iter().map(|m| m.to_f32().abs()).fold(0.0, f32::max));
                    let bound = 1e-5 * (size + minimum_size * inputs as f64 + 1e-6);
                    let difference = (f64::from(found[row * outputs + output]) - dot).abs();
                    prop_assert!(difference <= bound, "{:?}: {} > {}", spec, difference, bound);
                }
            }
        }
    }

    #[test]
    fn damaged_bytes_are_refused_or_harmless(seed in any::<u64>(), position in 0_usize..64, byte in any::<u8>(), cut in 0_usize..400) {
        let weights = PackedWeights::from_f32(&noise(20 * 70, seed), 20, 70, Spec::int4(32), 1).unwrap();
        let mut bytes = weights.as_bytes().to_vec();
        prop_assert!(PackedWeights::from_slice(&bytes[..bytes.len() - 1 - cut.min(bytes.len() - 1)]).is_err());
        bytes[position] = byte;
        if let Ok(read) = PackedWeights::from_slice(&bytes) {
            let mut out = vec![0.0; 3 * read.outputs()];
            gemm(&read, &noise(3 * read.inputs(), 1), 3, &mut out, 1).unwrap();
        }
    }
}

#[test]
fn large_products_are_the_same_with_threads() {
    let (rows, outputs, inputs) = (70, 1000, 576);
    let weights = PackedWeights::from_f32(&noise(outputs * inputs, 1), outputs, inputs, Spec::int4(128), 2).unwrap();
    let activations = noise(rows * inputs, 2);
    let mut one = vec![0.0; rows * outputs];
    gemm(&weights, &activations, rows, &mut one, 1).unwrap();
    for path in Path::available().iter().filter(|path| **path != Path::Scalar) {
        let mut many = vec![0.0; rows * outputs];
        gemm_on(*path, &weights, &activations, rows, ActivationScaling::PerToken, &mut many, 2).unwrap();
        assert_eq!(one, many, "{path:?}");
    }
}

#[test]
fn extreme_codes_neither_saturate_nor_overflow() {
    let inputs = mneme_quant::gemm::INPUTS_MAX;
    for spec in [Spec::int8(), Spec { scheme: Scheme::ScaleMin, ..Spec::int8() }] {
        let weights = PackedWeights::from_f32(&vec![1.0; inputs * 17], 17, inputs, spec, 2).unwrap();
        for path in Path::available() {
            for rows in [1, 6] {
                let mut out = vec![0.0; rows * 17];
                let activations = vec![-1.0; rows * inputs];
                gemm_on(*path, &weights, &activations, rows, ActivationScaling::PerToken, &mut out, 2).unwrap();
                for value in &out {
                    assert!((value + inputs as f32).abs() < inputs as f32 * 1e-3, "{path:?} {value}");
                }
            }
        }
    }
}

#[test]
fn packed_bytes_are_aliased_at_any_alignment_and_give_the_same_product() {
    struct Shifted(Vec<u8>, usize);
    impl AsRef<[u8]> for Shifted {
        fn as_ref(&self) -> &[u8] {
            &self.0[self.1..]
        }
    }
    let weights = PackedWeights::from_f32(&noise(33 * 576, 4), 33, 576, Spec::int4(128), 1).unwrap();
    let activations = noise(9 * 576, 5);
    let mut expected = vec![0.0; 9 * 33];
    gemm(&weights, &activations, 9, &mut expected, 1).unwrap();
    for shift in [0, 1, 7, 32] {
        let mut bytes = vec![0; shift];
        bytes.extend_from_slice(weights.as_bytes());
        let aliased = PackedWeights::from_shared(Arc::new(Shifted(bytes, shift))).unwrap();
        let mut found = vec![0.0; 9 * 33];
        gemm(&aliased, &activations, 9, &mut found, 1).unwrap();
        assert_eq!(found, expected);
    }
}

#[test]
fn memory_that_changes_its_length_is_noticed_at_the_product() {
    struct Shrinking(Vec<u8>, AtomicUsize);
    impl AsRef<[u8]> for Shrinking {
        fn as_ref(&self) -> &[u8] {
            let calls = self.1.fetch_add(1, Ordering::Relaxed);
            if calls == 0 { &self.0 } else { &self.0[..64] }
        }
    }
    let weights = PackedWeights::from_f32(&noise(16 * 64, 4), 16, 64, Spec::int8(), 1).unwrap();
    let bytes = Shrinking(weights.as_bytes().to_vec(), AtomicUsize::default());
    let aliased = PackedWeights::from_shared(Arc::new(bytes)).unwrap();
    let error = gemm(&aliased, &[0.0; 64], 1, &mut [0.0; 16], 1).unwrap_err();
    assert!(matches!(error, GemmError::Length { found: 64, .. }));
}

#[test]
fn wrong_shapes_and_values_that_are_not_finite_are_refused() {
    let weights = PackedWeights::from_f32(&noise(16 * 64, 4), 16, 64, Spec::int8(), 1).unwrap();
    let mut out = [0.0; 16];
    assert!(matches!(gemm(&weights, &[0.0; 63], 1, &mut out, 1), Err(GemmError::Activations { .. })));
    assert!(matches!(
        gemm(&weights, &[0.0; 64], 1, &mut out[1..], 1),
        Err(GemmError::Output { found: 15, expected: 16 })
    ));
    let mut activations = [0.0; 128];
    activations[70] = f32::NAN;
    let error = gemm(&weights, &activations, 2, &mut [0.0; 32], 1).unwrap_err();
    assert_eq!(error, GemmError::NotFinite { row: 1, column: 6 });
    let by_input = Spec { granularity: Granularity::InChannel, ..Spec::int8() };
    assert_eq!(PackedWeights::from_f32(&[1.0; 4], 2, 2, by_input, 1).unwrap_err(), GemmError::InputScales);
    let scaling = ActivationScaling::Static(0.0);
    assert!(matches!(
        QuantizedActivations::quantize(&[0.0; 64], 1, &weights, scaling, 1),
        Err(GemmError::StaticScale { .. })
    ));
    let other = PackedWeights::from_f32(&noise(16 * 64, 4), 16, 64, Spec::int4(32), 1).unwrap();
    let codes = QuantizedActivations::quantize(&[0.0; 64], 1, &weights, ActivationScaling::PerToken, 1).unwrap();
    assert!(matches!(gemm_quantized(&other, &codes, &mut out, 1), Err(GemmError::Mismatch { .. })));
}

#[test]
fn empty_products_are_fine() {
    for (rows, outputs, inputs) in [(0, 3, 5), (2, 0, 5), (2, 3, 0), (0, 0, 0)] {
        let weights =
            PackedWeights::from_f32(&vec![1.0; outputs * inputs], outputs, inputs, Spec::int4(32), 1).unwrap();
        let mut out = vec![f32::NAN; rows * outputs];
        gemm(&weights, &vec![1.0; rows * inputs], rows, &mut out, 2).unwrap();
        assert!(out.iter().all(|value| *value == 0.0));
        let again = PackedWeights::from_slice(weights.as_bytes()).unwrap();
        assert_eq!((again.outputs(), again.inputs()), (outputs, inputs));
    }
}
