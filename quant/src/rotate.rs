//! Block-Hadamard rotation: spreads outliers over the inputs of a layer, so that they fit a coarse grid.
//!
//! With an orthogonal `R`, `W x = (W R) (R^T x)`. `R` is block-diagonal with Hadamard blocks of one power of two (64 x 9 for
//! a hidden size of 576) and random signs, so that it is its own kind of transposed: a row is rotated by `D H` and back by
//! `H D`. Costs `log2(block)` additions a value.

use crate::codec::CodecError;

/// A rotation of vectors of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    block: usize,
    signs: Vec<bool>,
}

impl Rotation {
    /// A rotation for vectors of this length, in the largest power of two that divides it; signs are drawn from the seed.
    /// None for an odd or empty length, which has no block to rotate in.
    pub fn new(length: usize, seed: u64) -> Option<Self> {
        let block = if length == 0 { 1 } else { 1 << length.trailing_zeros() };
        if block < 2 {
            return None;
        }
        // SplitMix64 (Steele et al. 2014): the signs must be the same on every machine and in every version.
        let mut state = seed;
        let signs = (0..length)
            .map(|_| {
                state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
                let mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
                let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
                (mixed ^ mixed >> 31) & 1 == 1
            })
            .collect();
        Some(Self { block, signs })
    }

    /// Length of the vectors.
    pub fn length(&self) -> usize {
        self.signs.len()
    }

    /// Size of the Hadamard blocks.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Rotates each row of `[rows, length]`: the weights of a layer once, and its activations at each call.
    pub fn apply(&self, rows: &mut [f32]) -> Result<(), CodecError> {
        self.each(rows, |row| {
            self.flip(row);
            self.hadamard(row);
        })
    }

    /// Undoes [`Self::apply`].
    pub fn undo(&self, rows: &mut [f32]) -> Result<(), CodecError> {
        self.each(rows, |row| {
            self.hadamard(row);
            self.flip(row);
        })
    }

    fn each(&self, rows: &mut [f32], work: impl Fn(&mut [f32])) -> Result<(), CodecError> {
        let length = self.length();
        if !rows.len().is_multiple_of(length) {
            return Err(CodecError::Shape { rows: rows.len() / length, columns: length, values: rows.len() });
        }
        rows.chunks_exact_mut(length).for_each(work);
        Ok(())
    }

    fn flip(&self, row: &mut [f32]) {
        for (value, negative) in row.iter_mut().zip(&self.signs) {
            *value = if *negative { -*value } else { *value };
        }
    }

    /// The fast Walsh-Hadamard transform of each block, scaled to be orthogonal, so its own inverse.
    fn hadamard(&self, row: &mut [f32]) {
        let scale = 1.0 / (self.block as f32).sqrt();
        for block in row.chunks_exact_mut(self.block) {
            let mut half = 1;
            while half < self.block {
                for pair in block.chunks_exact_mut(2 * half) {
                    let (low, high) = pair.split_at_mut(half);
                    for (low, high) in low.iter_mut().zip(high) {
                        (*low, *high) = (*low + *high, *low - *high);
                    }
                }
                half *= 2;
            }
            for value in block {
                *value *= scale;
            }
        }
    }
}
