//! Attention over keys and values in the layout that its loops read: keys transposed, so that neighbouring positions are
//! neighbouring numbers.

use super::lanes::{exp, largest};
use super::{on_best_path, part_rows};
use crate::parallel::for_each_item;

/// Positions are worked off in blocks of this many: two vectors of AVX-512.
const BLOCK: usize = 32;
/// Queries that share each load of a key or value.
const UNITS: usize = 4;
/// Numbers of a value that are summed at a time.
const VALUE_BLOCK: usize = 16;

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub struct KeyValues {
    /// `[kv_heads, head, capacity]`.
    keys: Vec<f32>,
    /// `[kv_heads, capacity, padded head]`.
    values: Vec<f32>,
    kv_heads: usize,
    head: usize,
    capacity: usize,
}

impl KeyValues {
    /// Room for `capacity` positions, rounded up to whole blocks.
    pub fn new(kv_heads: usize, head: usize, capacity: usize) -> Self {
        let capacity = capacity.next_multiple_of(BLOCK);
        let keys = vec![0.0; kv_heads * head * capacity];
        let values = vec![0.0; kv_heads * capacity * head.next_multiple_of(VALUE_BLOCK)];
        Self { keys, values, kv_heads, head, capacity }
    }

    /// Makes room for `capacity` positions; what is there stays. Cost: a copy of all of it, when there was less room.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity <= self.capacity {
            return;
        }
        let mut grown = Self::new(self.kv_heads, self.head, capacity);
        let rows = |capacity: usize| capacity * self.head.next_multiple_of(VALUE_BLOCK);
        let keys = grown.keys.chunks_exact_mut(grown.capacity).zip(self.keys.chunks_exact(self.capacity.max(1)));
        keys.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
        let values = grown
            .values
            .chunks_exact_mut(rows(grown.capacity))
            .zip(self.values.chunks_exact(rows(self.capacity).max(1)));
        values.for_each(|(to, from)| to[..from.len()].copy_from_slice(from));
        *self = grown;
    }

    /// Positions that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes keys and values of some positions from `first` on.
    ///
    /// # Shapes
    /// `rows: [positions, stride]`, in each of which the keys of all heads start at `keys_at`, the values at `values_at`.
    pub fn write(&mut self, first: usize, rows: &[f32], stride: usize, keys_at: usize, values_at: usize) {
        let count = rows.len() / stride.max(1);
        let width = self.kv_heads * self.head;
        assert!(first + count <= self.capacity, "positions fit");
        assert!(keys_at + width <= stride && values_at + width <= stride, "rows hold keys and values");
        if count == 0 {
            return;
        }
        let padded = self.head.next_multiple_of(VALUE_BLOCK);
        for (dimension, keys) in self.keys.chunks_exact_mut(self.capacity).enumerate() {
            let source = rows[keys_at + dimension..].iter().step_by(stride);
            keys[first..first + count].iter_mut().zip(source).for_each(|(to, from)| *to = *from);
        }
        for (index, row) in rows.chunks_exact(stride).enumerate() {
            for kv in 0..self.kv_heads {
                let at = (kv * self.capacity + first + index) * padded;
                let from = values_at + kv * self.head;
                self.values[at..at + self.head].copy_from_slice(&row[from..from + self.head]);
            }
        }
    }
}

/// Which positions each query sees.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// For each query: positions from this one on are hidden.
    pub until: Vec<usize>,
    /// `[queries, positions]`: added to the scores; minus infinity hides. `None` where `until` says all.
    pub mask: Option<Vec<f32>>,
    /// Length of a row of the mask.
    pub positions: usize,
}

/// Queries of a window.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[rows, stride]`, each starting with the queries of all heads.
    pub queries: &'a [f32],
    /// Length of a row.
    pub stride: usize,
    /// Query heads; a multiple of the key heads.
    pub heads: usize,
    /// Who sees what.
    pub seen: &'a Seen,
}

impl Attention<'_> {
    /// `softmax(q k / sqrt(head)) v` of all heads.
    ///
    /// # Shapes
    /// `out: [rows, heads * head]`.
    pub fn run(&self, keys: &KeyValues, out: &mut [f32], threads: usize) {
        let width = self.heads * keys.head;
        let rows = self.seen.until.len();
        assert!(keys.kv_heads > 0 && self.heads.is_multiple_of(keys.kv_heads), "heads divide into groups");
        assert!(self.stride >= width && self.queries.len() == rows * self.stride && out.len() == rows * width);
        let until_max = self.seen.until.iter().copied().max().unwrap_or(0);
        assert!(until_max <= keys.capacity, "seen positions exist");
        if let Some(mask) = &self.seen.mask {
            assert!(mask.len() == rows * self.seen.positions && until_max <= self.seen.positions);
        }
        if rows == 0 || width == 0 {
            return;
        }
        // Whole parts for each thread; four for each, because later rows of a causal window see more.
        let part = part_rows(rows, width * until_max.div_ceil(BLOCK).max(1), threads * 4);
        if threads <= 1 || part >= rows {
            attend_rows(self, keys, 0, out);
        } else {
            for_each_item(out.chunks_mut(part * width), threads, |index, out| {
                attend_rows(self, keys, index * part, out);
            });
        }
    }
}

on_best_path! {
    /// Rows from `first` on, as many as `out` holds.
    fn attend_rows(job: &Attention<'_>, store: &KeyValues, first: usize, out: &mut [f32]) {
        let (head, capacity) = (store.head, store.capacity);
        let (width, group) = (job.heads * head, job.heads / store.kv_heads);
        let units = out.len() / width * group;
        let until_max = job.seen.until.iter().copied().max().unwrap_or(0).next_multiple_of(BLOCK);
        let padded = head.next_multiple_of(VALUE_BLOCK);
        let mut scores = vec![0.0_f32; UNITS * until_max];
        let mut queries = vec![[0.0_f32; UNITS]; head];
        let scale = 1.0 / (head as f32).sqrt();
        for kv in 0..store.kv_heads {
            let keys = &store.keys[kv * head * capacity..(kv + 1) * head * capacity];
            let values = &store.values[kv * capacity * padded..(kv + 1) * capacity * padded];
            for start in (0..units).step_by(UNITS) {
                // The last block repeats its last query rather than being narrower.
                let place = |unit: usize| {
                    let unit = (start + unit).min(units - 1);
                    (first + unit / group, kv * group + unit % group)
                };
                let mut end = 0;
                for unit in 0..UNITS {
                    let (row, query_head) = place(unit);
                    let query = &job.queries[row * job.stride + query_head * head..][..head];
                    queries.iter_mut().zip(query).for_each(|(to, from)| to[unit] = from * scale);
                    end = end.max(job.seen.until[row]);
                }
                for block in (0..end).step_by(BLOCK) {
                    let made = score_block(&queries, keys, capacity, block);
                    for (unit, made) in made.iter().enumerate() {
                        scores[unit * until_max + block..][..BLOCK].copy_from_slice(made);
                    }
                }
                let mut factors = [0.0_f32; UNITS];
                for (unit, factor) in factors.iter_mut().enumerate() {
                    let row = place(unit).0;
                    let until = job.seen.until[row];
                    let scores = &mut scores[unit * until_max..][..end];
                    let mask = job.seen.mask.as_ref().map(|mask| &mask[row * job.seen.positions..][..until]);
                    *factor = soften(scores, until, mask);
                }
                for dimension in (0..head).step_by(VALUE_BLOCK) {
                    let mixed = mix_block(&scores, until_max, &values[dimension..], padded, end);
                    for (unit, mixed) in mixed.iter().enumerate().take(units - start) {
                        let (row, query_head) = place(unit);
                        let count = VALUE_BLOCK.min(head - dimension);
                        let at = (row - first) * width + query_head * head + dimension;
                        for (out, mixed) in out[at..at + count].iter_mut().zip(mixed) {
                            *out = mixed * factors[unit];
                        }
                    }
                }
            }
        }
    }
}

/// Scores of four queries and a block of positions.
#[inline(always)]
fn score_block(queries: &[[f32; UNITS]], keys: &[f32], capacity: usize, block: usize) -> [[f32; BLOCK]; UNITS] {
    let mut sums = [[0.0_f32; BLOCK]; UNITS];
    for (dimension, query) in queries.iter().enumerate() {
        let keys: &[f32; BLOCK] = keys[dimension * capacity + block..].first_chunk().expect("capacity is whole blocks");
        for (sums, query) in sums.iter_mut().zip(query) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                *sum = query.mul_add(*key, *sum);
            }
        }
    }
    sums
}

/// Exponentials of scores in place, 0 from `until` on; gives one over their sum (0 where nothing is seen).
#[inline(always)]
fn soften(scores: &mut [f32], until: usize, mask: Option<&[f32]>) -> f32 {
    let (seen, hidden) = scores.split_at_mut(until);
    hidden.fill(0.0);
    if let Some(mask) = mask {
        seen.iter_mut().zip(mask).for_each(|(score, mask)| *score += mask);
    }
    let top = largest(seen);
    if top == f32::NEG_INFINITY {
        seen.fill(0.0);
        return 0.0;
    }
    for score in seen.iter_mut() {
        *score = exp(*score - top);
    }
    1.0 / super::lanes::sum(seen, |value, lane| lane + value)
}

/// Weighted sums of a block of value numbers for four queries.
#[inline(always)]
fn mix_block(weights: &[f32], stride: usize, values: &[f32], padded: usize, end: usize) -> [[f32; VALUE_BLOCK]; UNITS] {
    let mut sums = [[0.0_f32; VALUE_BLOCK]; UNITS];
    let (first, rest) = weights.split_at(stride);
    let (second, rest) = rest.split_at(stride);
    let (third, fourth) = rest.split_at(stride);
    let of_position = first[..end].iter().zip(&second[..end]).zip(&third[..end]).zip(&fourth[..end]);
    for (position, (((a, b), c), d)) in of_position.enumerate() {
        let values: &[f32; VALUE_BLOCK] = values[position * padded..].first_chunk().expect("heads are padded");
        for (sums, weight) in sums.iter_mut().zip([a, b, c, d]) {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum = weight.mul_add(*value, *sum);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0).collect()
    }

    fn check(heads: usize, kv_heads: usize, head: usize, rows: usize, prefix: usize, mask: bool) {
        let stride = (heads + 2 * kv_heads) * head;
        let all = numbers((prefix + rows) * stride, head);
        let mut store = KeyValues::new(kv_heads, head, prefix + rows);
        let (keys_at, values_at) = (heads * head, (heads + kv_heads) * head);
        store.write(0, &all[..prefix * stride], stride, keys_at, values_at);
        store.write(prefix, &all[prefix * stride..], stride, keys_at, values_at);
        let seen = Seen {
            until: (0..rows).map(|row| prefix + row + 1).collect(),
            mask: mask.then(|| {
                let hidden = |i: usize| if i % 3 == 1 { f32::NEG_INFINITY } else { 0.0 };
                (0..rows * (prefix + rows)).map(hidden).collect()
            }),
            positions: prefix + rows,
        };
        let job = Attention { queries: &all[prefix * stride..], stride, heads, seen: &seen };
        let mut made = vec![f32::NAN; rows * heads * head];
        job.run(&store, &mut made, 1);
        let mut threaded = vec![f32::NAN; made.len()];
        job.run(&store, &mut threaded, 2);
        assert_eq!(made, threaded);
        for row in 0..rows {
            for h in 0..heads {
                let kv = h / (heads / kv_heads);
                let number = |row: usize, at: usize, i: usize| f64::from(all[row * stride + at + i]);
                let score = |position: usize| -> f64 {
                    let product: f64 = (0..head)
                        .map(|i| number(prefix + row, h * head, i) * number(position, keys_at + kv * head, i))
                        .sum();
                    let hidden = seen.mask.as_ref().map_or(0.0, |m| f64::from(m[row * (prefix + rows) + position]));
                    product / (head as f64).sqrt() + hidden
                };
                let weights: Vec<f64> = (0..=prefix + row).map(|position| score(position).exp()).collect();
                let total: f64 = weights.iter().sum();
                for i in 0..head {
                    let value = |position: usize| number(position, values_at + kv * head, i);
                    let sum: f64 = weights.iter().enumerate().map(|(p, w)| w * value(p)).sum();
                    let right = if total > 0.0 { sum / total } else { 0.0 };
                    let found = f64::from(made[row * heads * head + h * head + i]);
                    assert!((found - right).abs() < 1e-5, "row {row} head {h} number {i}: {found} {right}");
                }
            }
        }
    }

    #[test]
    fn a_store_that_grows_holds_what_one_of_the_full_size_holds() {
        let (kv_heads, head, stride) = (2, 20, 90);
        let all = numbers(50 * stride, 3);
        let mut whole = KeyValues::new(kv_heads, head, 100);
        whole.write(0, &all, stride, 0, kv_heads * head);
        let mut grown = KeyValues::new(kv_heads, head, 50);
        grown.write(0, &all, stride, 0, kv_heads * head);
        grown.reserve(100);
        assert_eq!((&grown.keys, &grown.values), (&whole.keys, &whole.values));
        grown.reserve(10);
        assert_eq!(grown.capacity(), whole.capacity());
    }

    #[test]
    fn attention_is_its_formula_for_every_shape() {
        check(9, 3, 64, 5, 40, false);
        check(4, 4, 32, 33, 0, false);
        check(6, 2, 20, 7, 3, true);
        check(1, 1, 4, 1, 0, false);
        check(2, 1, 8, 70, 2, true);
    }
}
