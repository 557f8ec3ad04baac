//! Vectors in memory: int8 codes that are scanned whole, and half-precision copies that the best are ranked again by.
//!
//! One [`VectorView`] holds one kind of vector (of the text alone, or of the text with its context), row by row beside the
//! columns. Exact search costs one pass over the codes: 384 bytes a row.

use half::f16;
use mneme_base::Embedding;
use mneme_quant::scan::{Query, RowsI8, dot_i8, quantize_row_i8, quantize_row_i8_into, scan_top_k};

use super::bitmap::Bitmap;

/// How many more rows than asked for are taken from the int8 scan to be ranked again: its order errs among neighbours only.
const OVERSAMPLE: usize = 32;

/// A row and its cosine to the query.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scored {
    /// The row.
    pub row: u32,
    /// The cosine.
    pub score: f32,
}

/// A question's vector, ready for one view.
#[derive(Debug, Clone)]
pub struct VectorQuery {
    exact: Embedding,
    codes: Vec<i8>,
    scale: f32,
}

/// One kind of vector for all rows.
#[derive(Debug, Default)]
pub struct VectorView {
    dimensions: usize,
    codes: Vec<i8>,
    scales: Vec<f32>,
    halves: Vec<f16>,
    keep_halves: bool,
    present: Bitmap,
    count: usize,
}

impl VectorView {
    /// An empty view; `keep_halves` keeps half-precision copies for ranking again (2 bytes a component).
    pub fn new(keep_halves: bool) -> Self {
        Self { keep_halves, ..Self::default() }
    }

    /// Components per vector; 0 before the first.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// How many rows have a vector.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether the row has a vector.
    pub fn contains(&self, row: u32) -> bool {
        self.present.contains(row)
    }

    /// Puts the vector of a row. A vector of other dimensions than before starts the view anew.
    pub fn set(&mut self, row: u32, embedding: &Embedding) {
        if self.dimensions != embedding.dimensions() {
            *self = Self::new(self.keep_halves);
            self.dimensions = embedding.dimensions();
        }
        let (start, end) = (row as usize * self.dimensions, (row as usize + 1) * self.dimensions);
        if self.codes.len() < end {
            self.codes.resize(end, 0);
            self.scales.resize(row as usize + 1, 0.0);
            self.present.grow(row as usize + 1);
        }
        self.scales[row as usize] = quantize_row_i8_into(embedding.as_slice(), &mut self.codes[start..end])
            .expect("an embedding is finite and has the view's dimensions");
        if self.keep_halves {
            if self.halves.len() < end {
                self.halves.resize(end, f16::ZERO);
            }
            for (half, component) in self.halves[start..end].iter_mut().zip(embedding.as_slice()) {
                *half = f16::from_f32(*component);
            }
        }
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
            let span = row as usize * self.dimensions..(row as usize + 1) * self.dimensions;
            self.codes[span.clone()].fill(0);
            if self.keep_halves {
                self.halves[span].fill(f16::ZERO);
            }
        }
    }

    /// Keeps only these rows, given in ascending order, under new numbers from 0.
    pub fn keep(&mut self, live: &[u32]) {
        let size = self.dimensions;
        let mut present = Bitmap::default();
        let rows = live.iter().take_while(|row| (**row as usize) < self.scales.len()).count();
        for (new, old) in live[..rows].iter().enumerate() {
            let span = *old as usize * size..(*old as usize + 1) * size;
            self.codes.copy_within(span.clone(), new * size);
            self.scales[new] = self.scales[*old as usize];
            if self.keep_halves {
                self.halves.copy_within(span, new * size);
            }
            if self.present.contains(*old) {
                present.insert(new as u32);
            }
        }
        present.grow(rows);
        self.codes.truncate(rows * size);
        self.scales.truncate(rows);
        self.halves.truncate(if self.keep_halves { rows * size } else { 0 });
        self.codes.shrink_to_fit();
        self.halves.shrink_to_fit();
        self.count = present.count();
        self.present = present;
    }

    /// Makes a query for this view; `None` when the dimensions differ or the view is empty.
    pub fn query(&self, embedding: &Embedding) -> Option<VectorQuery> {
        if embedding.dimensions() != self.dimensions || self.count == 0 {
            return None;
        }
        let (codes, scale) = quantize_row_i8(embedding.as_slice()).expect("an embedding is finite");
        Some(VectorQuery { exact: embedding.clone(), codes, scale })
    }

    /// The `k` allowed rows of largest cosine, best first.
    pub fn top(&self, query: &VectorQuery, k: usize, allowed: &Bitmap, threads: usize) -> Vec<Scored> {
        if k == 0 || query.codes.len() != self.dimensions {
            return Vec::new();
        }
        let mut mask = self.present.clone();
        mask.intersect(allowed);
        let rows = RowsI8::new(&self.codes, &self.scales, self.dimensions).expect("codes and scales grow together");
        let wide = if self.keep_halves { k + OVERSAMPLE } else { k };
        let mut best: Vec<Scored> =
            scan_top_k(rows, Query::new(&query.codes, query.scale), wide, Some(mask.words()), threads)
                .expect("query and mask have the shape of the rows")
                .into_iter()
                .map(|found| Scored { row: found.row, score: found.score })
                .collect();
        if self.keep_halves {
            for entry in &mut best {
                entry.score = self.cosine(query, entry.row);
            }
            keep_best(&mut best, k);
        }
        best
    }

    /// The cosine of a row's vector to the query, by the most precise copy at hand; 0 for a row without one.
    pub fn cosine(&self, query: &VectorQuery, row: u32) -> f32 {
        if !self.keep_halves {
            return self.near_cosine(query, row);
        }
        if !self.present.contains(row) || query.codes.len() != self.dimensions {
            return 0.0;
        }
        let span = row as usize * self.dimensions..(row as usize + 1) * self.dimensions;
        self.halves[span].iter().zip(query.exact.as_slice()).map(|(half, x)| half.to_f32() * x).sum()
    }

    /// The cosine of a row's vector to the query by the codes: right to about 0.003; 0 for a row without one.
    pub fn near_cosine(&self, query: &VectorQuery, row: u32) -> f32 {
        if !self.present.contains(row) || query.codes.len() != self.dimensions {
            return 0.0;
        }
        let span = row as usize * self.dimensions..(row as usize + 1) * self.dimensions;
        let dot = dot_i8(&query.codes, &self.codes[span]).expect("the query has the dimensions of the view");
        dot as f32 * query.scale * self.scales[row as usize]
    }

    /// The cosine of two rows, from their codes; 0 where one has no vector.
    pub fn similarity(&self, a: u32, b: u32) -> f32 {
        if !(self.present.contains(a) && self.present.contains(b)) {
            return 0.0;
        }
        let codes = |row: u32| &self.codes[row as usize * self.dimensions..(row as usize + 1) * self.dimensions];
        dot_i8(codes(a), codes(b)).expect("both rows have the dimensions of the view") as f32
            * self.scales[a as usize]
            * self.scales[b as usize]
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> u64 {
        (self.codes.capacity() + self.scales.capacity() * 4 + self.halves.capacity() * 2) as u64 + self.present.bytes()
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
