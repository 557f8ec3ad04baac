//! Properties of split rows: they keep the codes they were given, and every path and any number of threads finds the same rows by them.

use mneme_quant::Path;
use mneme_quant::scan::{
    Plan, Query, RowsI8, ScanError, ScoredRow, SplitQuery, SplitRows, quantize_row_i8, scan_split_top_k, scan_top_k_on,
};
use proptest::prelude::*;

/// SplitMix64: the same numbers in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    /// Nearly normal.
    fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.unit()).sum::<f32>() - 6.0
    }

    fn vector(&mut self, dimensions: usize) -> Vec<f32> {
        (0..dimensions).map(|_| self.normal()).collect()
    }

    fn near(&mut self, centre: &[f32], noise: f32) -> Vec<f32> {
        centre.iter().map(|x| x + noise * self.normal()).collect()
    }
}

/// Codes of a vector brought to length 1, and their scale.
fn unit_codes(vector: &[f32]) -> (Vec<i8>, f32) {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    quantize_row_i8(&vector.iter().map(|x| x * scale).collect::<Vec<f32>>()).expect("finite")
}

fn split_rows(vectors: &[Vec<f32>]) -> SplitRows {
    let mut rows = SplitRows::new(vectors[0].len()).expect("dimensions in bounds");
    rows.resize(vectors.len());
    for (row, vector) in vectors.iter().enumerate() {
        let (codes, scale) = unit_codes(vector);
        rows.set(row, &codes, scale).expect("the row is there");
    }
    rows
}

fn query(vector: &[f32]) -> SplitQuery {
    let (codes, scale) = unit_codes(vector);
    SplitQuery::new(&codes, scale)
}

fn find(rows: &SplitRows, query: &SplitQuery, k: usize, allowed: Option<&[u64]>, plan: Plan) -> Vec<ScoredRow> {
    let found = scan_split_top_k(rows, query, k, allowed, 1, plan).expect("shapes fit");
    let by_three = scan_split_top_k(rows, query, k, allowed, 3, plan).expect("shapes fit");
    assert_eq!(found, by_three, "three threads find what one finds");
    found
}

proptest! {
    #[test]
    fn every_path_finds_by_split_rows_what_it_finds_by_whole_ones(
        dimensions in 1_usize..200, count in 0_usize..300, k in 0_usize..40, seed in any::<u64>(), filtered in any::<bool>(),
    ) {
        let mut numbers = Numbers(seed);
        let codes: Vec<i8> = (0..count * dimensions).map(|_| numbers.next() as i8).collect();
        let scales: Vec<f32> = (0..count).map(|_| (numbers.next() % 3) as f32).collect();
        let of_query: Vec<i8> = (0..dimensions).map(|_| numbers.next() as i8).collect();
        let bitmap: Vec<u64> = (0..count.div_ceil(64)).map(|_| numbers.next() & numbers.next()).collect();
        let allowed = filtered.then_some(bitmap.as_slice());
        let mut rows = SplitRows::new(dimensions).unwrap();
        rows.resize(count);
        for (row, codes) in codes.chunks_exact(dimensions).enumerate() {
            rows.set(row, codes, scales[row]).unwrap();
        }
        let mut read = vec![0; dimensions];
        for (row, codes) in codes.chunks_exact(dimensions).enumerate() {
            rows.get(row, &mut read).unwrap();
            prop_assert_eq!(&read, codes);
        }
        let whole = RowsI8::new(&codes, &scales, dimensions).unwrap();
        let expected = scan_top_k_on(Path::Scalar, whole, Query::new(&of_query, 0.5), k, allowed, 1).unwrap();
        for path in Path::available() {
            let query = SplitQuery::on(*path, &of_query, 0.5);
            for threads in [1, 2] {
                let found = scan_split_top_k(&rows, &query, k, allowed, threads, Plan::Whole).unwrap();
                prop_assert_eq!(&found, &expected, "{:?}", path);
            }
            // Rows that are not of length 1 are all scored.
            prop_assert_eq!(&find(&rows, &query, k, allowed, Plan::SignsFirst), &expected, "{:?}", path);
        }
    }

    #[test]
    fn rows_go_through_any_changes_as_plain_vectors_do(dimensions in 1_usize..150, seed in any::<u64>()) {
        let mut numbers = Numbers(seed);
        let mut rows = SplitRows::new(dimensions).unwrap();
        let mut model: Vec<(Vec<i8>, f32)> = Vec::new();
        for _ in 0..60 {
            let row = (numbers.next() % 40) as usize;
            match numbers.next() % 6 {
                0 => {
                    rows.resize(row);
                    model.resize(row, (vec![0; dimensions], 0.0));
                }
                1 => {
                    let live: Vec<u32> = (0..50).filter(|_| !numbers.next().is_multiple_of(4)).collect();
                    rows.keep(&live);
                    model = live.iter().filter_map(|row| model.get(*row as usize).cloned()).collect();
                }
                2 => {
                    rows.wipe(row);
                    if let Some(entry) = model.get_mut(row) {
                        *entry = (vec![0; dimensions], 0.0);
                    }
                }
                _ => {
                    let entry: (Vec<i8>, f32) = ((0..dimensions).map(|_| numbers.next() as i8).collect(), numbers.unit());
                    prop_assert_eq!(rows.set(row, &entry.0, entry.1).is_ok(), row < model.len());
                    if let Some(kept) = model.get_mut(row) {
                        *kept = entry;
                    }
                }
            }
            prop_assert_eq!(rows.len(), model.len());
            let mut codes = vec![0; dimensions];
            for (row, (expected, scale)) in model.iter().enumerate() {
                rows.get(row, &mut codes).unwrap();
                prop_assert_eq!(&codes, expected);
                prop_assert_eq!(rows.scales()[row].to_bits(), scale.to_bits());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn among_clusters_the_signs_lose_next_to_none_of_the_nearest_on_any_path(
        seed in any::<u64>(), dimensions in 96_usize..400, clusters in 1_usize..40, noise in 0.2_f32..1.5, filtered in any::<bool>(),
    ) {
        let mut numbers = Numbers(seed);
        let centres: Vec<Vec<f32>> = (0..clusters).map(|_| numbers.vector(dimensions)).collect();
        let vectors: Vec<Vec<f32>> = (0..6_000)
            .map(|_| {
                // Small numbers are more frequent: clusters are of unequal size.
                let cluster = (numbers.unit() * numbers.unit() * clusters as f32) as usize;
                numbers.near(&centres[cluster], noise)
            })
            .collect();
        let rows = split_rows(&vectors);
        let bitmap: Vec<u64> = (0..6_000_usize.div_ceil(64)).map(|_| numbers.next() | numbers.next()).collect();
        let allowed = filtered.then_some(bitmap.as_slice());
        let (mut kept, mut wanted) = (0, 0);
        for turn in 0..20 {
            let asked = numbers.near(&vectors[turn * 293], 0.5);
            let whole = find(&rows, &query(&asked), 42, allowed, Plan::Whole);
            let best = find(&rows, &query(&asked), 42, allowed, Plan::Best);
            let (codes, scale) = unit_codes(&asked);
            for path in Path::available() {
                let query = SplitQuery::on(*path, &codes, scale);
                prop_assert_eq!(&find(&rows, &query, 42, allowed, Plan::Best), &best, "{:?}", path);
            }
            kept += whole[..10].iter().filter(|row| best.contains(row)).count();
            wanted += 10;
        }
        // The bound is passed by one row in some hundreds at most; ten of two hundred would be a fault.
        prop_assert!(kept * 1_000 >= wanted * 995, "{} of {}", kept, wanted);
    }
}

#[test]
fn many_threads_find_what_one_finds() {
    let mut numbers = Numbers(11);
    let centres: Vec<Vec<f32>> = (0..50).map(|_| numbers.vector(96)).collect();
    // In the order of the clusters, so that the threads have unequal work.
    let vectors: Vec<Vec<f32>> = (0..50_000).map(|row| numbers.near(&centres[row / 1_000], 0.6)).collect();
    let rows = split_rows(&vectors);
    let bitmap: Vec<u64> = (0..50_000_usize.div_ceil(64)).map(|_| numbers.next() & numbers.next()).collect();
    for turn in 0..10 {
        let query = query(&numbers.near(&vectors[turn * 4_999], 0.4));
        for plan in [Plan::Best, Plan::Whole] {
            assert_eq!(find(&rows, &query, 42, None, plan).len(), 42);
            assert_eq!(find(&rows, &query, 42, Some(&bitmap), plan).len(), 42);
        }
    }
}

#[test]
fn sets_that_signs_say_nothing_about_give_what_the_whole_scan_gives() {
    let mut numbers = Numbers(3);
    let size = 384;
    let one = numbers.vector(size);
    let alike: Vec<Vec<f32>> = vec![one.clone(); 5_000];
    let zeros: Vec<Vec<f32>> = vec![vec![0.0; size]; 5_000];
    let outlier: Vec<Vec<f32>> = (0..5_000)
        .map(|row| {
            let mut vector = numbers.near(&vec![0.0; size], 0.05);
            vector[row % 2] = 3.0 + numbers.unit();
            vector
        })
        .collect();
    let alone: Vec<Vec<f32>> =
        (0..5_000).map(|row| (0..size).map(|at| if at == row * 7 % size { 1.0 } else { 0.0 }).collect()).collect();
    let few: Vec<Vec<f32>> = (0..30).map(|_| numbers.vector(size)).collect();
    let repeated: Vec<Vec<f32>> = (0..5_000).map(|row| few[row % 30].clone()).collect();
    let positive: Vec<Vec<f32>> = (0..5_000).map(|_| (0..size).map(|_| numbers.unit()).collect()).collect();
    let opposite: Vec<Vec<f32>> = (0..5_000).map(|_| numbers.near(&one, 0.3).iter().map(|x| -x).collect()).collect();
    for (name, vectors) in [
        ("alike", alike),
        ("zeros", zeros),
        ("outlier", outlier),
        ("alone", alone),
        ("repeated", repeated),
        ("positive", positive),
        ("opposite", opposite),
    ] {
        let rows = split_rows(&vectors);
        for asked in [&vectors[17], &one, &vec![0.0; size], &vec![1.0; size]] {
            let whole = find(&rows, &query(asked), 42, None, Plan::Whole);
            assert_eq!(whole.len(), 42);
            assert_eq!(find(&rows, &query(asked), 42, None, Plan::Best), whole, "{name}");
            assert_eq!(find(&rows, &query(asked), 42, None, Plan::SignsFirst), whole, "{name}");
        }
    }
}

#[test]
fn fewer_rows_than_wanted_are_all_found_and_rows_of_no_score_never() {
    let mut numbers = Numbers(5);
    let vectors: Vec<Vec<f32>> = (0..100).map(|_| numbers.vector(70)).collect();
    let mut rows = split_rows(&vectors);
    let (codes, _) = unit_codes(&vectors[3]);
    rows.set(3, &codes, f32::NAN).unwrap();
    for plan in [Plan::Best, Plan::Whole, Plan::SignsFirst] {
        let found = find(&rows, &query(&vectors[3]), 200, None, plan);
        assert_eq!(found.len(), 99, "{plan:?}");
        assert!(found.iter().all(|found| found.row != 3));
        assert_eq!(find(&rows, &query(&vectors[4]), 9, Some(&[1 << 4, 0]), plan).len(), 1);
    }
}

#[test]
fn wrong_shapes_are_refused() {
    assert_eq!(SplitRows::new(0).unwrap_err(), ScanError::Dimensions { dimensions: 0 });
    let mut rows = SplitRows::new(2).unwrap();
    assert_eq!(rows.set(0, &[1, 2], 1.0).unwrap_err(), ScanError::Row { row: 0, rows: 0 });
    rows.resize(1);
    assert_eq!(rows.set(0, &[1], 1.0).unwrap_err(), ScanError::QueryDimensions { query: 1, rows: 2 });
    assert_eq!(rows.get(1, &mut [0, 0]).unwrap_err(), ScanError::Row { row: 1, rows: 1 });
    let query = SplitQuery::new(&[1, 1], 1.0);
    assert_eq!(
        scan_split_top_k(&rows, &query, 1, Some(&[]), 1, Plan::Best).unwrap_err(),
        ScanError::BitmapLength { words: 0, rows: 1 }
    );
    let other = SplitQuery::new(&[1], 1.0);
    assert_eq!(
        scan_split_top_k(&rows, &other, 1, None, 1, Plan::Best).unwrap_err(),
        ScanError::QueryDimensions { query: 1, rows: 2 }
    );
    assert_eq!((rows.dot(0, &other), rows.dot(1, &query), rows.dot(0, &query)), (None, None, Some(0)));
}
