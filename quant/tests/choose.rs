//! Properties of what chooses codes: GPTQ, rotation, calibration and the evolutionary search.

use mneme_quant::calibrate::{ActivationRanges, CalibrateError, Hessian, RATIO_GROUPS_DEFAULT};
use mneme_quant::codec::{CodecError, Quantized, Spec};
use mneme_quant::gemm::ActivationScaling;
use mneme_quant::gptq::{DAMPING, GptqError, gptq};
use mneme_quant::rotate::Rotation;
use mneme_quant::search::{Search, SearchError, SearchSettings};
use proptest::prelude::*;

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

/// Activations whose neighbours are alike, as those of real layers are.
fn correlated(tokens: usize, inputs: usize) -> Vec<f32> {
    let mut values = noise(tokens * inputs, 11);
    for row in values.chunks_exact_mut(inputs) {
        for input in 1..inputs {
            row[input] += 0.9 * row[input - 1];
        }
    }
    values
}

#[test]
fn gptq_lowers_the_layers_output_error_at_every_width() {
    let (outputs, inputs) = (24, 200);
    let weights = noise(outputs * inputs, 3);
    let mut hessian = Hessian::new(inputs).unwrap();
    for part in correlated(600, inputs).chunks(100 * inputs) {
        hessian.add(part, 1.0).unwrap();
    }
    assert_eq!(hessian.tokens(), 600);
    for spec in [Spec::int8(), Spec::int4(32), Spec::int4(128), Spec::int2(64)] {
        let error = |quantized: &Quantized| {
            let back = quantized.dequantize(1);
            let difference: Vec<f32> = weights.iter().zip(&back).map(|(a, b)| a - b).collect();
            hessian.output_error(&difference).unwrap()
        };
        let plain = error(&Quantized::quantize(&weights, outputs, inputs, spec, 1).unwrap());
        let moved = error(&gptq(&weights, outputs, inputs, spec, &hessian, DAMPING).unwrap());
        assert!(moved < 0.8 * plain, "{spec:?}: {moved} is not well below {plain}");
    }
}

#[test]
fn gptq_without_correlations_is_plain_rounding() {
    let (outputs, inputs) = (5, 96);
    let weights = noise(outputs * inputs, 4);
    let mut hessian = Hessian::new(inputs).unwrap();
    let mut identity = vec![0.0; inputs * inputs];
    identity.iter_mut().step_by(inputs + 1).for_each(|value| *value = 1.0);
    hessian.add(&identity, 1.0).unwrap();
    let found = gptq(&weights, outputs, inputs, Spec::int4(32), &hessian, DAMPING).unwrap();
    assert!(found == Quantized::quantize(&weights, outputs, inputs, Spec::int4(32), 1).unwrap());
}

#[test]
fn gptq_takes_inputs_that_were_never_used_and_refuses_what_does_not_fit() {
    let mut hessian = Hessian::new(64).unwrap();
    let weights = noise(3 * 64, 5);
    // Nothing was seen at all.
    gptq(&weights, 3, 64, Spec::int4(32), &hessian, DAMPING).unwrap();
    // One token: rank one.
    hessian.add(&noise(64, 6), 1.0).unwrap();
    gptq(&weights, 3, 64, Spec::int4(32), &hessian, DAMPING).unwrap();
    let other = gptq(&weights, 6, 32, Spec::int4(32), &hessian, DAMPING).unwrap_err();
    assert_eq!(other, GptqError::Inputs { hessian: 64, inputs: 32 });
    let mut bad = weights.clone();
    bad[70] = f32::INFINITY;
    let error = gptq(&bad, 3, 64, Spec::int4(32), &hessian, DAMPING).unwrap_err();
    assert_eq!(error, GptqError::Codec(CodecError::NotFinite { index: 70 }));
}

#[test]
fn a_hessian_is_the_mean_of_twice_the_outer_products() {
    let mut hessian = Hessian::new(2).unwrap();
    hessian.add(&[1.0, 2.0, 3.0, -1.0], 1.0).unwrap();
    assert!((hessian.get(0, 0) - 10.0).abs() < 1e-12);
    assert!((hessian.get(0, 1) + 1.0).abs() < 1e-12 && (hessian.get(1, 0) + 1.0).abs() < 1e-12);
    // Output errors of the difference (1, 0): 1 and 9, mean 5.
    assert!((hessian.output_error(&[1.0, 0.0]).unwrap() - 5.0).abs() < 1e-12);
    assert_eq!(hessian.add(&[1.0], 1.0).unwrap_err(), CalibrateError::Shape { values: 1, inputs: 2 });
    assert_eq!(hessian.add(&[1.0, f32::NAN], 1.0).unwrap_err(), CalibrateError::NotFinite { index: 1 });
    let stored = serde_json::to_string(&hessian).unwrap();
    assert!(serde_json::from_str::<Hessian>(&stored).unwrap() == hessian);
}

#[test]
fn ranges_are_kept_by_mask_ratio_and_fall_back_to_all() {
    let mut ranges = ActivationRanges::new(RATIO_GROUPS_DEFAULT).unwrap();
    assert_eq!(ranges.static_scaling(), ActivationScaling::PerToken);
    ranges.add(0.05, &[1.0, -2.54], 2).unwrap();
    ranges.add(0.95, &[12.7, 0.0], 2).unwrap();
    ranges.add(1.0, &[25.4, 0.0], 1).unwrap();
    let near = |scaling, expected: f32| match scaling {
        ActivationScaling::Static(scale) => assert!((scale - expected).abs() < 1e-6, "{scale} {expected}"),
        other => panic!("{other:?}"),
    };
    near(ranges.grouped_scaling(0.0).unwrap(), 0.02);
    near(ranges.grouped_scaling(0.99).unwrap(), 0.2);
    near(ranges.grouped_scaling(0.5).unwrap(), 0.2);
    near(ranges.static_scaling(), 0.2);
    assert!(matches!(ranges.grouped_scaling(1.1), Err(CalibrateError::Ratio { .. })));
    assert!(matches!(ranges.add(f64::NAN, &[1.0], 1), Err(CalibrateError::Ratio { .. })));
}

proptest! {
    #[test]
    fn a_rotation_is_undone_and_keeps_dot_products(half in 1_usize..100, seed in any::<u64>()) {
        let length = 2 * half;
        let rotation = Rotation::new(length, seed).unwrap();
        prop_assert_eq!(length % rotation.block(), 0);
        let (mut a, mut b) = (noise(length, seed), noise(length, seed ^ 9));
        let (before_a, before): (Vec<f32>, f32) = (a.clone(), a.iter().zip(&b).map(|(a, b)| a * b).sum());
        rotation.apply(&mut a).unwrap();
        rotation.apply(&mut b).unwrap();
        let after: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
        // Rounding of some hundred float additions of values under 2.
        prop_assert!((before - after).abs() < 1e-4 * length as f32);
        rotation.undo(&mut a).unwrap();
        for (a, before) in a.iter().zip(&before_a) {
            prop_assert!((a - before).abs() < 1e-5);
        }
    }

    #[test]
    fn an_interrupted_search_ends_where_an_uninterrupted_one_does(stop in 0_usize..80, seed in any::<u64>()) {
        let settings = SearchSettings { population: 12, kept: 4, crossovers: 6, generations: 6, seed, ..SearchSettings::default() };
        let mut fitness = |genes: &[u32]| Some(genes.iter().enumerate().map(|(i, g)| (f64::from(*g) - 40.0 * i as f64).abs()).sum());
        let mut whole = Search::new(settings.clone(), 7).unwrap();
        let expected = whole.run(&mut fitness, &mut |_| true).unwrap();
        let mut first = Search::new(settings, 7).unwrap();
        let mut count = 0;
        let _ = first.run(&mut fitness, &mut |_| { count += 1; count <= stop });
        let stored = serde_json::to_string(&first).unwrap();
        let mut second: Search = serde_json::from_str(&stored).unwrap();
        let found = second.run(&mut fitness, &mut |_| true).unwrap();
        prop_assert_eq!(found, expected);
        prop_assert_eq!(&second, &whole);
        prop_assert!(second.is_done());
    }
}

#[test]
fn rotation_shrinks_an_outlier_and_576_goes_in_nine_blocks() {
    let rotation = Rotation::new(576, 1).unwrap();
    assert_eq!(rotation.block(), 64);
    let mut row = vec![0.0; 576];
    row[100] = 64.0;
    rotation.apply(&mut row).unwrap();
    assert!(row.iter().all(|value| value.abs() <= 8.0));
    assert!(Rotation::new(577, 1).is_none() && Rotation::new(0, 1).is_none());
    assert!(rotation.apply(&mut [0.0; 5]).is_err());
}

#[test]
fn a_search_beats_the_uniform_start_and_keeps_its_constraint() {
    let target = [32, 256, 32, 256, 128, 64, 32, 256];
    let settings = SearchSettings { generations: 30, ..SearchSettings::default() };
    let mut search = Search::new(settings.clone(), target.len()).unwrap();
    let mut worst_mean = f64::INFINITY;
    let mut fitness = |genes: &[u32]| {
        worst_mean = worst_mean.min(f64::from(genes.iter().sum::<u32>()) / genes.len() as f64);
        Some(genes.iter().zip(&target).map(|(a, b)| f64::from(a.abs_diff(*b))).sum())
    };
    let mut seen = 0;
    let best = search
        .run(&mut fitness, &mut |search| {
            seen = search.progress().evaluations;
            true
        })
        .unwrap();
    let start: f64 = target.iter().map(|t| f64::from(t.abs_diff(64))).sum();
    assert!(best.loss < 0.3 * start, "{} {start}", best.loss);
    assert!(worst_mean >= settings.mean_min);
    assert_eq!(seen, search.progress().evaluations);
}

#[test]
fn a_fitness_without_a_loss_gives_no_result_and_bad_settings_are_named() {
    let mut search = Search::new(SearchSettings::default(), 3).unwrap();
    assert_eq!(search.run(&mut |_| None, &mut |_| true).unwrap_err(), SearchError::NoResult);
    let mut search = Search::new(SearchSettings::default(), 3).unwrap();
    assert_eq!(search.run(&mut |_| Some(f64::NAN), &mut |_| true).unwrap_err(), SearchError::NoResult);
    let named = |settings: SearchSettings| match Search::new(settings, 3).unwrap_err() {
        SearchError::Setting { setting, .. } => setting,
        other => panic!("{other:?}"),
    };
    assert_eq!(named(SearchSettings { start: 7, ..SearchSettings::default() }), "start");
    assert_eq!(named(SearchSettings { choices: vec![], ..SearchSettings::default() }), "choices");
    assert_eq!(named(SearchSettings { mean_min: 65.0, ..SearchSettings::default() }), "mean_min");
    assert_eq!(named(SearchSettings { kept: 0, ..SearchSettings::default() }), "kept");
    assert_eq!(named(SearchSettings { mutation: 2.0, ..SearchSettings::default() }), "mutation");
}
