//! Finds memories that say nearly the same, from 64-bit signatures.
//!
//! The signature is a SimHash (Charikar 2002) of the words and word pairs of a text: texts that differ in case, spacing,
//! punctuation or a few words of many have signatures a few bits apart; a short text with one word changed does not, which is
//! meant: "2 cats" and "3 cats" are two facts. Two signatures at most 3 bits apart agree in one of four bands of 16 bits,
//! so a look-up walks four chains.

use mneme_base::{MemoryId, Namespace};

/// Signatures at most this many bits apart are near duplicates; four bands find every pair up to 3.
const BITS_APART_MAX: u32 = 3;
/// A removed row is looked for at most this far in its chains. One that is not found stays, and uses up a step of those that look.
const UNLINK_STEPS_MAX: usize = 4_096;
/// A chain is followed at most this far: a band that thousands share says nothing.
const CHAIN_STEPS_MAX: usize = 256;
const BANDS: usize = 4;
const NONE: u32 = u32::MAX;

/// Signatures of all rows, chained by band.
#[derive(Debug)]
pub struct Duplicates {
    pub(super) signatures: Vec<u64>,
    heads: Vec<u32>,
    nexts: Vec<[u32; BANDS]>,
}

impl Default for Duplicates {
    fn default() -> Self {
        Self { signatures: Vec::new(), heads: vec![NONE; BANDS << 16], nexts: Vec::new() }
    }
}

impl Duplicates {
    /// Adds the next row.
    pub fn push(&mut self, signature: u64) {
        let row = self.signatures.len() as u32;
        self.signatures.push(signature);
        let mut next = [NONE; BANDS];
        for (band, next) in next.iter_mut().enumerate() {
            *next = std::mem::replace(&mut self.heads[slot(signature, band)], row);
        }
        self.nexts.push(next);
    }

    /// Takes a row out of its chains, so that what is removed does not stand before what is not.
    pub fn remove(&mut self, row: u32) {
        let Some(signature) = self.signatures.get(row as usize).copied() else { return };
        for band in 0..BANDS {
            let after = self.nexts[row as usize][band];
            let head = &mut self.heads[slot(signature, band)];
            if *head == row {
                *head = after;
                continue;
            }
            let mut before = *head;
            for _ in 0..UNLINK_STEPS_MAX {
                let Some(nexts) = self.nexts.get_mut(before as usize) else { break };
                if nexts[band] == row {
                    nexts[band] = after;
                    break;
                }
                before = nexts[band];
            }
        }
    }

    /// Keeps only these rows, given in ascending order, under new numbers from 0.
    pub fn keep(&mut self, live: &[u32]) {
        let kept = live.iter().map(|row| self.signatures[*row as usize]).collect::<Vec<u64>>();
        *self = Self::default();
        for signature in kept {
            self.push(signature);
        }
    }

    /// The nearest accepted row with nearly this signature; the newest among equals.
    pub fn find(&self, signature: u64, accept: impl Fn(u32) -> bool) -> Option<u32> {
        let mut best: Option<(u32, u32)> = None;
        for band in 0..BANDS {
            let mut row = self.heads[slot(signature, band)];
            for _ in 0..CHAIN_STEPS_MAX {
                if row == NONE {
                    break;
                }
                let apart = (self.signatures[row as usize] ^ signature).count_ones();
                if apart <= BITS_APART_MAX && best.is_none_or(|(least, _)| apart < least) && accept(row) {
                    best = Some((apart, row));
                }
                row = self.nexts[row as usize][band];
            }
        }
        best.map(|(_, row)| row)
    }

    /// How alike two rows are by their signatures: the cosine that SimHash estimates.
    pub fn similarity(&self, a: u32, b: u32) -> f32 {
        let apart = (self.signatures[a as usize] ^ self.signatures[b as usize]).count_ones();
        (std::f32::consts::PI * apart as f32 / 64.0).cos().max(0.0)
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> u64 {
        (self.signatures.capacity() * 8 + self.heads.capacity() * 4 + self.nexts.capacity() * 16) as u64
    }
}

fn slot(signature: u64, band: usize) -> usize {
    band << 16 | (signature >> (16 * band) & 0xffff) as usize
}

/// Signatures of memories that the index does not have yet: those that a batch has brought so far. A batch has some hundred at most,
/// so that looking at all of them costs nothing.
#[derive(Debug, Default)]
pub(crate) struct Fresh(Vec<(Namespace, u64, MemoryId)>);

impl Fresh {
    /// Adds a memory.
    pub(crate) fn push(&mut self, namespace: &Namespace, signature: u64, id: MemoryId) {
        self.0.push((namespace.clone(), signature, id));
    }

    /// The nearest accepted one with nearly this signature; the newest among equals.
    pub(crate) fn find(
        &self,
        space: &Namespace,
        signature: u64,
        accept: impl Fn(MemoryId) -> bool,
    ) -> Option<MemoryId> {
        let apart = |other: u64| (other ^ signature).count_ones();
        let near = self
            .0
            .iter()
            .rev()
            .filter(|(namespace, other, id)| namespace == space && apart(*other) <= BITS_APART_MAX && accept(*id));
        near.min_by_key(|(_, other, _)| apart(*other)).map(|(.., id)| *id)
    }
}

/// The SimHash of a text's words and word pairs.
pub fn signature(text: &str) -> u64 {
    let mut sums = [0_i32; 64];
    let mut before = 0_u64;
    for word in text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()) {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for letter in word.chars().flat_map(char::to_lowercase) {
            hash = (hash ^ letter as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        for feature in [hash, hash.rotate_left(17) ^ before] {
            let mixed = mix(feature);
            for (bit, sum) in sums.iter_mut().enumerate() {
                *sum += if mixed >> bit & 1 == 1 { 1 } else { -1 };
            }
        }
        before = hash;
    }
    sums.iter().enumerate().fold(0, |signature, (bit, sum)| signature | u64::from(*sum > 0) << bit)
}

/// The finaliser of SplitMix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_and_punctuation_do_not_matter() {
        let mut rows = Duplicates::default();
        rows.push(signature("The daemon restarts after a reboot."));
        rows.push(signature("Anna plays the violin on Tuesdays."));
        assert_eq!(rows.find(signature("the daemon  restarts after a REBOOT!"), |_| true), Some(0));
        assert_eq!(rows.find(signature("the daemon restarts after a reboot"), |row| row != 0), None);
    }

    #[test]
    fn removed_rows_do_not_stand_before_the_ones_that_are_left() {
        let mut rows = Duplicates::default();
        let said = signature("Anna plays the violin on Tuesdays.");
        rows.push(said);
        for row in 1..=2 * CHAIN_STEPS_MAX as u32 {
            rows.push(said);
            rows.remove(row);
        }
        assert_eq!(rows.find(said, |row| row == 0), Some(0));
        rows.remove(0);
        assert_eq!(rows.find(said, |_| true), None);
    }

    #[test]
    fn a_changed_number_in_a_short_text_is_another_fact() {
        let mut rows = Duplicates::default();
        rows.push(signature("Anna has 2 cats"));
        assert_eq!(rows.find(signature("Anna has 3 cats"), |_| true), None);
    }
}
