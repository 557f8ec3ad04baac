//! Vectors in memory: int8 codes that are scanned, and half-precision copies that the best are ranked again by.
//!
//! One [`VectorView`] holds one kind of vector (of the text alone, or of the text with its context), row by row beside the
//! columns. A search reads the signs of all codes, 48 bytes of a row of 384, and the rest of those rows alone whose signs leave them a
//! chance ([`mneme_quant::scan::scan_split_top_k`]); where rows are few it reads all of each.

use mneme_base::Embedding;
use mneme_quant::scan::{Plan, SplitQuery, SplitRows, dot_i8, quantize_row_i8, scan_split_top_k};

use super::bitmap::Bitmap;
use super::halves::{HalfVectors, Halves};

/// How many more rows than asked for are taken from the int8 scan to be ranked again: its order errs among neighbours only.
const OVERSAMPLE: usize = 32;
/// Rows that are ranked again by exact vectors from elsewhere, at most: each costs some microseconds, and further down nothing is
/// left to the order.
pub const EXACT_MAX: usize = 64;

/// Codes below this are scanned by the calling thread alone (bytes, about 3 ms): on a busy machine waiting for a second thread
/// costs more than it saves.
const ONE_THREAD_BYTES: usize = 16 << 20;

/// A row and its cosine to the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The row.
    pub row: u32,
    /// The cosine.
    pub score: f32,
}

/// Gives the exact scalar product with a query of each row it is asked for; `None` where there is none.
pub type Dots<'a> = dyn Fn(&[u32], &[f32]) -> Vec<Option<f32>> + 'a;

/// A question's vector, ready for one view.
#[derive(Debug, Clone)]
pub struct VectorQuery {
    exact: Embedding,
    codes: SplitQuery,
}

/// One kind of vector for all rows.
#[derive(Debug, Default)]
pub struct VectorView {
    pub(super) codes: SplitRows,
    pub(super) halves: Halves,
    pub(super) kind: HalfVectors,
    pub(super) present: Bitmap,
    pub(super) count: usize,
}

impl VectorView {
    /// An empty view that keeps half-precision copies where it is told.
    pub fn new(kind: HalfVectors) -> Self {
        Self { halves: Halves::new(&kind), kind, ..Self::default() }
    }

    /// Components per vector; 0 before the first.
    pub fn dimensions(&self) -> usize {
        self.codes.dimensions()
    }

    /// How many rows have a vector.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Rows that it has room for.
    pub fn rows(&self) -> usize {
        self.codes.len()
    }

    /// Whether the row has a vector.
    pub fn contains(&self, row: u32) -> bool {
        self.present.contains(row)
    }

    /// Puts the vector of a row. A vector of other dimensions than before starts the view anew.
    pub fn set(&mut self, row: u32, embedding: &Embedding) {
        if self.dimensions() != embedding.dimensions() {
            *self = Self::new(self.kind.clone());
            self.codes =
                SplitRows::new(embedding.dimensions()).expect("an embedding has as many dimensions as rows may");
        }
        if self.codes.len() <= row as usize {
            self.codes.resize(row as usize + 1);
            self.present.grow(row as usize + 1);
        }
        let (codes, scale) = quantize_row_i8(embedding.as_slice()).expect("an embedding is finite");
        self.codes.set(row as usize, &codes, scale).expect("the row is there and has the view's dimensions");
        self.halves.set(row as usize, embedding.as_slice());
        if !self.present.contains(row) {
            self.present.insert(row);
            self.count += 1;
        }
    }

    /// Wipes the vector of a row.
    pub fn remove(&mut self, row: u32) {
        if self.present.contains(row) {
            self.present.remove(row);
            self.count -= 1;
            self.codes.wipe(row as usize);
            self.halves.wipe(row as usize, self.dimensions());
        }
    }

    /// Keeps only these rows, given in ascending order, under new numbers from 0.
    pub fn keep(&mut self, live: &[u32]) {
        let mut present = Bitmap::default();
        let rows = live.iter().take_while(|row| (**row as usize) < self.codes.len()).count();
        for (new, old) in live[..rows].iter().enumerate() {
            if self.present.contains(*old) {
                present.insert(new as u32);
            }
        }
        present.grow(rows);
        self.codes.keep(&live[..rows]);
        self.halves.keep(&live[..rows], self.dimensions());
        self.count = present.count();
        self.present = present;
    }

    /// Makes a query for this view; `None` when the dimensions differ or the view is empty.
    pub fn query(&self, embedding: &Embedding) -> Option<VectorQuery> {
        if embedding.dimensions() != self.dimensions() || self.count == 0 {
            return None;
        }
        let (codes, scale) = quantize_row_i8(embedding.as_slice()).expect("an embedding is finite");
        Some(VectorQuery { exact: embedding.clone(), codes: SplitQuery::new(&codes, scale) })
    }

    /// The `k` allowed rows of largest cosine, best first.
    pub fn top(&self, query: &VectorQuery, k: usize, allowed: &Bitmap, threads: usize) -> Vec<Scored> {
        if !self.halves.is_some() {
            return self.nearest(query, k, allowed, threads);
        }
        let mut best = self.nearest(query, k + OVERSAMPLE, allowed, threads);
        for entry in &mut best {
            entry.score = self.cosine(query, entry.row);
        }
        keep_best(&mut best, k);
        best
    }

    /// As [`Self::top`], ranked again by exact vectors that lie elsewhere: `exact` gives the cosine to the query of each row
    /// it is asked for, `None` where it has none. Only the first [`EXACT_MAX`] are asked for; the others keep the order of the codes.
    pub fn top_by(
        &self,
        query: &VectorQuery,
        k: usize,
        allowed: &Bitmap,
        threads: usize,
        exact: &Dots<'_>,
    ) -> Vec<Scored> {
        let mut best = self.nearest(query, k + OVERSAMPLE, allowed, threads);
        let rows: Vec<u32> = best.iter().take(EXACT_MAX).map(|entry| entry.row).collect();
        for (entry, cosine) in best.iter_mut().zip(exact(&rows, query.exact.as_slice())) {
            entry.score = cosine.unwrap_or(entry.score);
        }
        keep_best(&mut best, k);
        best
    }

    /// The `k` allowed rows of largest cosine by the codes, best first.
    fn nearest(&self, query: &VectorQuery, k: usize, allowed: &Bitmap, threads: usize) -> Vec<Scored> {
        if k == 0 || query.codes.dimensions() != self.dimensions() {
            return Vec::new();
        }
        let mut mask = self.present.clone();
        mask.intersect(allowed);
        let threads = if self.codes.len() * self.dimensions() < ONE_THREAD_BYTES { 1 } else { threads };
        scan_split_top_k(&self.codes, &query.codes, k, Some(mask.words()), threads, Plan::Best)
            .expect("query and mask have the shape of the rows")
            .into_iter()
            .map(|found| Scored { row: found.row, score: found.score })
            .collect()
    }

    /// The cosine of a row's vector to the query, by the most precise copy at hand; 0 for a row without one.
    pub fn cosine(&self, query: &VectorQuery, row: u32) -> f32 {
        if !self.present.contains(row) || query.codes.dimensions() != self.dimensions() {
            return 0.0;
        }
        self.halves.dot(row as usize, query.exact.as_slice()).unwrap_or_else(|| self.near_cosine(query, row))
    }

    /// The cosine of a row's vector to the query by the codes: right to about 0.003; 0 for a row without one.
    pub fn near_cosine(&self, query: &VectorQuery, row: u32) -> f32 {
        if self.present.contains(row) { self.codes.score(row, &query.codes).unwrap_or(0.0) } else { 0.0 }
    }

    /// The cosine of two rows, from their codes; 0 where one has no vector.
    pub fn similarity(&self, a: u32, b: u32) -> f32 {
        if !(self.present.contains(a) && self.present.contains(b)) {
            return 0.0;
        }
        let codes = |row: u32| {
            let mut codes = vec![0; self.dimensions()];
            self.codes.get(row as usize, &mut codes).expect("a row that is present is there");
            codes
        };
        let scales = self.codes.scales();
        dot_i8(&codes(a), &codes(b)).expect("both rows have the dimensions of the view") as f32
            * scales[a as usize]
            * scales[b as usize]
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> u64 {
        self.codes.bytes() + self.halves.bytes() + self.present.bytes()
    }
}

/// Keeps the `k` of largest score, best first; equal scores in row order.
pub fn keep_best(rows: &mut Vec<Scored>, k: usize) {
    let order = |a: &Scored, b: &Scored| b.score.total_cmp(&a.score).then(a.row.cmp(&b.row));
    if rows.len() > k && k > 0 {
        rows.select_nth_unstable_by(k - 1, order);
    }
    rows.truncate(k);
    rows.sort_unstable_by(order);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(count: usize) -> Vec<Embedding> {
        let mut state = 1_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as f32 / (1_u64 << 31) as f32 - 0.5
        };
        (0..count).map(|_| Embedding::normalized((0..48).map(|_| next()).collect()).unwrap()).collect()
    }

    fn view(kind: HalfVectors, vectors: &[Embedding]) -> VectorView {
        let mut view = VectorView::new(kind);
        for (row, vector) in vectors.iter().enumerate() {
            view.set(row as u32, vector);
        }
        view
    }

    fn all(rows: usize) -> Bitmap {
        let mut set = Bitmap::default();
        (0..rows as u32).for_each(|row| set.insert(row));
        set
    }

    #[test]
    fn ranking_again_gives_the_exact_first_ten_from_memory_and_from_file() {
        let (rows, queries) = (vectors(2_000), vectors(2_050).split_off(2_000));
        let folder = tempfile::tempdir().unwrap();
        for kind in [HalfVectors::Memory, HalfVectors::File(folder.path().into())] {
            let view = view(kind, &rows);
            let mut right = 0;
            for query in &queries {
                let mut exact: Vec<Scored> = rows
                    .iter()
                    .enumerate()
                    .map(|(row, vector)| Scored { row: row as u32, score: vector.cosine(query).unwrap() })
                    .collect();
                keep_best(&mut exact, 10);
                let found = view.top(&view.query(query).unwrap(), 10, &all(2_000), 1);
                right += exact.iter().filter(|scored| found.iter().any(|f| f.row == scored.row)).count();
            }
            // Half precision may swap two rows whose cosines differ by less than 0.0005.
            assert!(right >= 497, "{right} of 500");
        }
    }

    #[test]
    fn many_rows_of_which_some_are_filtered_or_removed_lose_none_of_the_first_ten_by_their_signs() {
        let rows = vectors(6_000);
        let mut view = view(HalfVectors::Memory, &rows);
        let mut allowed = all(6_000);
        (0..6_000).filter(|row| row % 7 == 0).for_each(|row| allowed.remove(row));
        (0..6_000).filter(|row| row % 11 == 0).for_each(|row| view.remove(row));
        let (mut right, mut wanted) = (0, 0);
        for query in vectors(6_040).split_off(6_000) {
            let mut exact: Vec<Scored> = (0..6_000)
                .filter(|row| row % 7 != 0 && row % 11 != 0)
                .map(|row| Scored { row, score: rows[row as usize].cosine(&query).unwrap() })
                .collect();
            keep_best(&mut exact, 10);
            let prepared = view.query(&query).unwrap();
            let found = view.top(&prepared, 10, &allowed, 2);
            assert!(found.iter().all(|scored| allowed.contains(scored.row) && scored.row % 11 != 0));
            assert!(found.is_sorted_by(|a, b| a.score >= b.score));
            assert_eq!(found, view.top(&prepared, 10, &allowed, 1));
            right += exact.iter().filter(|scored| found.iter().any(|f| f.row == scored.row)).count();
            wanted += exact.len();
        }
        // Half precision may swap a pair of rows, and the bound by signs is passed by one row in some hundreds.
        assert!(right * 1_000 >= wanted * 990, "{right} of {wanted}");
    }

    #[test]
    fn rows_that_are_not_allowed_or_were_removed_are_never_found() {
        let rows = vectors(200);
        let mut view = view(HalfVectors::Memory, &rows);
        view.remove(3);
        let query = view.query(&rows[3]).unwrap();
        let mut allowed = all(100);
        allowed.remove(4);
        let found = view.top(&query, 200, &allowed, 2);
        assert_eq!(found.len(), 98);
        assert!(found.iter().all(|scored| scored.row < 100 && scored.row != 3 && scored.row != 4));
        assert_eq!(view.cosine(&query, 3).to_bits(), 0.0_f32.to_bits());
    }

    #[test]
    fn vectors_of_other_dimensions_start_the_view_anew() {
        let mut view = view(HalfVectors::Memory, &vectors(5));
        view.set(9, &Embedding::normalized(vec![1.0, 2.0]).unwrap());
        assert_eq!((view.count(), view.dimensions()), (1, 2));
        assert!(view.query(&vectors(1)[0]).is_none());
    }

    #[test]
    fn a_file_keeps_rows_through_compaction() {
        let rows = vectors(60);
        let folder = tempfile::tempdir().unwrap();
        let mut view = view(HalfVectors::File(folder.path().into()), &rows);
        let live: Vec<u32> = (0..60).filter(|row| row % 4 != 0).collect();
        view.keep(&live);
        let query = view.query(&rows[5]).unwrap();
        let found = view.top(&query, 1, &all(60), 1);
        assert_eq!(live[found[0].row as usize], 5);
        assert!(found[0].score > 0.999);
        // The file has no name: nothing of it is left to be found.
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 0);
    }
}
