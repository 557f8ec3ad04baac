//! Properties of the int8 scan: every path, any size, any alignment, any number of threads gives the scalar answer.

use mneme_quant::Path;
use mneme_quant::scan::{
    DIMENSIONS_MAX, Query, RowsI8, ScanError, ScoredRow, dot_i8_on, quantize_row_i8, scan_batch_top_k, scan_top_k,
    scan_top_k_on,
};
use proptest::prelude::*;

fn naive_dot(a: &[i8], b: &[i8]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(*b)).sum()
}

fn naive_top_k(codes: &[i8], scales: &[f32], query: &[i8], k: usize, allowed: Option<&[u64]>) -> Vec<ScoredRow> {
    let mut scored: Vec<ScoredRow> = codes
        .chunks_exact(query.len())
        .zip(scales)
        .enumerate()
        .filter(|(row, _)| allowed.is_none_or(|bitmap| bitmap[row / 64] >> (row % 64) & 1 == 1))
        .map(|(row, (codes, scale))| ScoredRow { row: row as u32, score: naive_dot(codes, query) as f32 * scale * 0.5 })
        .collect();
    scored.sort_by(|a, b| b.score.partial_cmp(&a.score).expect("scores are numbers").then(a.row.cmp(&b.row)));
    scored.truncate(k);
    scored
}

proptest! {
    #[test]
    fn every_path_gives_the_exact_dot_product_at_any_length_and_alignment(
        a in prop::collection::vec(any::<i8>(), 0..700), skip in 0_usize..64, seed in any::<i8>(),
    ) {
        let a = &a[skip.min(a.len())..];
        let b: Vec<i8> = a.iter().enumerate().map(|(i, x)| x.wrapping_mul(seed).wrapping_add(i as i8)).collect();
        for path in Path::available() {
            prop_assert_eq!(dot_i8_on(*path, a, &b).unwrap(), naive_dot(a, &b), "{:?}", path);
        }
    }

    #[test]
    fn every_path_ranks_rows_as_a_full_sort_does(
        dimensions in 1_usize..150, rows in 0_usize..600, k in 0_usize..40, seed in any::<u64>(), filtered in any::<bool>(),
    ) {
        let mut state = seed | 1;
        let mut next = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
        let codes: Vec<i8> = (0..rows * dimensions).map(|_| (next() % 5) as i8 - 2).collect();
        let scales: Vec<f32> = (0..rows).map(|_| (next() % 3) as f32).collect();
        let query: Vec<i8> = (0..dimensions).map(|_| next() as i8).collect();
        let bitmap: Vec<u64> = (0..rows.div_ceil(64)).map(|_| next() & next()).collect();
        let allowed = filtered.then_some(bitmap.as_slice());
        let view = RowsI8::new(&codes, &scales, dimensions).unwrap();
        let expected = naive_top_k(&codes, &scales, &query, k, allowed);
        for path in Path::available() {
            let found = scan_top_k_on(*path, view, Query::new(&query, 0.5), k, allowed, 2).unwrap();
            prop_assert_eq!(&found, &expected, "{:?}", path);
        }
    }
}

#[test]
fn the_extreme_codes_do_not_saturate_on_any_path() {
    let row = vec![-128_i8; DIMENSIONS_MAX - 1];
    for path in Path::available() {
        assert_eq!(dot_i8_on(*path, &row, &row).unwrap(), (DIMENSIONS_MAX as i32 - 1) * 128 * 128, "{path:?}");
    }
}

#[test]
fn many_threads_find_what_one_finds_and_a_batch_finds_what_its_queries_find() {
    let (rows, dimensions) = (9_001, 384);
    let codes: Vec<i8> = (0..rows * dimensions).map(|i| ((i * 7919) % 251) as i8).collect();
    let scales: Vec<f32> = (0..rows).map(|row| 0.5 + (row % 17) as f32).collect();
    let view = RowsI8::new(&codes, &scales, dimensions).unwrap();
    let queries: Vec<Query<'_>> = (0..3).map(|q| Query::new(&codes[q * dimensions..][..dimensions], 0.1)).collect();
    let batch = scan_batch_top_k(view, &queries, 25, None, 4).unwrap();
    for (query, found) in queries.iter().zip(&batch) {
        assert_eq!(found, &scan_top_k(view, *query, 25, None, 1).unwrap());
        assert_eq!(found.len(), 25);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    assert_eq!(RowsI8::new(&[], &[], 0).unwrap_err(), ScanError::Dimensions { dimensions: 0 });
    assert_eq!(
        RowsI8::new(&[1, 2, 3], &[1.0], 2).unwrap_err(),
        ScanError::CodesLength { codes: 3, rows: 1, dimensions: 2 }
    );
    let view = RowsI8::new(&[1, 2], &[1.0], 2).unwrap();
    assert_eq!(
        scan_top_k(view, Query::new(&[1], 1.0), 1, None, 1).unwrap_err(),
        ScanError::QueryDimensions { query: 1, rows: 2 }
    );
    assert_eq!(
        scan_top_k(view, Query::new(&[1, 1], 1.0), 1, Some(&[]), 1).unwrap_err(),
        ScanError::BitmapLength { words: 0, rows: 1 }
    );
}

#[test]
fn rows_with_a_nan_scale_are_never_found() {
    let view = RowsI8::new(&[1, 1, 2, 2], &[f32::NAN, 1.0], 2).unwrap();
    let found = scan_top_k(view, Query::new(&[1, 1], 1.0), 2, None, 1).unwrap();
    assert_eq!(found, [ScoredRow { row: 1, score: 4.0 }]);
}

#[test]
fn quantised_rows_are_within_half_a_step_and_refuse_what_is_not_finite() {
    let values: Vec<f32> = (0..384).map(|i| (i as f32 * 0.37).sin()).collect();
    let (codes, scale) = quantize_row_i8(&values).unwrap();
    for (value, code) in values.iter().zip(&codes) {
        assert!((value - f32::from(*code) * scale).abs() <= scale * 0.5001);
    }
    assert_eq!(quantize_row_i8(&[0.0; 3]).unwrap(), (vec![0; 3], 0.0));
    assert_eq!(quantize_row_i8(&[1e-45, -1e-45]).unwrap().0, [127, -127]);
    assert_eq!(quantize_row_i8(&[1.0, f32::NAN]).unwrap_err(), ScanError::NotFinite { index: 1 });
    assert_eq!(quantize_row_i8(&[f32::INFINITY]).unwrap_err(), ScanError::NotFinite { index: 0 });
}
