//! The best `k` of a stream of scored rows, in a heap whose root is the worst that was kept.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use super::ScoredRow;

/// Keeps the best `k` rows offered so far.
#[derive(Debug)]
pub(super) struct TopK {
    k: usize,
    heap: BinaryHeap<Worst>,
    /// Scores below this are not among the best; -inf until the heap is full.
    bar: f32,
}

/// Orders rows so that the worst is the greatest: a lower score, then a higher row.
#[derive(Debug, PartialEq)]
struct Worst(ScoredRow);

impl Eq for Worst {}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        // Adding zero makes -0.0 into +0.0: the two are a tie.
        (other.0.score + 0.0).total_cmp(&(self.0.score + 0.0)).then(self.0.row.cmp(&other.0.row))
    }
}

impl TopK {
    pub(super) fn new(k: usize) -> Self {
        // The capacity grows with what is found; `k` may be as large as all rows.
        Self { k, heap: BinaryHeap::new(), bar: f32::NEG_INFINITY }
    }

    /// Takes a row if it is among the best so far; NaN never is.
    #[inline]
    pub(super) fn offer(&mut self, scored: ScoredRow) {
        // One compare turns most rows away. An equal score may still win by its lower row.
        if scored.score >= self.bar {
            self.insert(scored);
        }
    }

    fn insert(&mut self, scored: ScoredRow) {
        if self.heap.len() < self.k {
            self.heap.push(Worst(scored));
        } else if let Some(mut worst) = self.heap.peek_mut()
            && Worst(scored) < *worst
        {
            *worst = Worst(scored);
        }
        if self.heap.len() == self.k {
            self.bar = self.heap.peek().map_or(f32::NEG_INFINITY, |worst| worst.0.score);
        }
    }

    /// A score that all of the best reach; -inf while there are fewer than `k`.
    pub(super) fn bar(&self) -> f32 {
        self.bar
    }

    /// Adds what another part of the rows found.
    pub(super) fn merge(&mut self, other: Self) {
        for scored in other.heap {
            self.offer(scored.0);
        }
    }

    /// What was kept, best first, ties by the lower row.
    pub(super) fn into_sorted(self) -> Vec<ScoredRow> {
        self.heap.into_sorted_vec().into_iter().map(|worst| worst.0).collect()
    }
}
