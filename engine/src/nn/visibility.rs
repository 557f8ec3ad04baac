//! Who sees whom in one window.

use tch::{Device, Tensor};

use crate::error::Result;

/// Which positions of the prefix and of the window each position of the window attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visibility<'a> {
    /// The prefix, and the window up to itself: left to right.
    Causal,
    /// The prefix and the whole window: a block that is being unmasked, or an infill that sees both sides.
    All,
    /// A draft: the first tokens of the window are decided and see left to right, the rest is a block that sees everything.
    Draft {
        /// Decided tokens at the start of the window.
        decided: usize,
    },
    /// Several texts in one window after a shared prefix: the number is the text of each position; every text sees the
    /// prefix and itself, left to right.
    CausalTexts(&'a [u32]),
    /// Training on masked diffusion: see [`TrainRole`].
    Training(&'a [TrainRole]),
}

/// The role of one position in a training window, which packs texts as `[noisy; clean]` (Arriola et al. 2025).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrainRole {
    /// Which text it belongs to; texts do not see each other.
    pub text: u32,
    /// The block it lies in, counted from the start of its text.
    pub block: u32,
    /// Its place in the text.
    pub place: u32,
    /// Whether it is of the noisy copy.
    pub noisy: bool,
}

impl TrainRole {
    /// A noisy position sees its own noisy block and the clean blocks before it; a clean one sees clean ones up to itself.
    pub fn sees(&self, other: &Self) -> bool {
        self.text == other.text
            && match (self.noisy, other.noisy) {
                (true, true) => self.block == other.block,
                (true, false) => other.block < self.block,
                (false, false) => other.place <= self.place,
                (false, true) => false,
            }
    }
}

impl Visibility<'_> {
    /// The additive mask: 0 where a position is seen, minus infinity elsewhere. `None` when everything is seen.
    ///
    /// # Shapes
    /// `[window, prefix + window] f32`.
    pub(crate) fn mask(&self, prefix: i64, window: i64, device: Device) -> Result<Option<Tensor>> {
        let hidden = |i: usize, j: usize| match self {
            Self::All => false,
            Self::Causal => j > i,
            Self::Draft { decided } => i < *decided && j > i,
            Self::CausalTexts(texts) => j > i || texts.get(i) != texts.get(j),
            Self::Training(roles) => match (roles.get(i), roles.get(j)) {
                (Some(of), Some(other)) => !of.sees(other),
                _ => true,
            },
        };
        if matches!(self, Self::All) || (matches!(self, Self::Causal) && window == 1) {
            return Ok(None);
        }
        let (prefix, window) = (prefix as usize, window as usize);
        let mut mask = vec![0.0_f32; window * (prefix + window)];
        for (i, row) in mask.chunks_exact_mut(prefix + window).enumerate() {
            for (j, value) in row[prefix..].iter_mut().enumerate() {
                if hidden(i, j) {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
        let shape = [window as i64, (prefix + window) as i64];
        Ok(Some(Tensor::f_from_slice(&mask)?.f_view(shape)?.f_to_device(device)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(block: u32, place: u32, noisy: bool) -> TrainRole {
        TrainRole { text: 0, block, place, noisy }
    }

    #[test]
    fn a_noisy_position_sees_its_block_and_the_clean_past_and_nothing_else() {
        // Exhaustive for a text of 6 tokens in blocks of 2: the definition written out place by place.
        for i in 0..6 {
            for j in 0..6 {
                let (bi, bj) = (i / 2, j / 2);
                assert_eq!(role(bi, i, true).sees(&role(bj, j, true)), bi == bj);
                assert_eq!(role(bi, i, true).sees(&role(bj, j, false)), bj < bi);
                assert_eq!(role(bi, i, false).sees(&role(bj, j, false)), j <= i);
                assert!(!role(bi, i, false).sees(&role(bj, j, true)));
            }
        }
    }

    #[test]
    fn texts_in_one_window_do_not_see_each_other() {
        let other = TrainRole { text: 1, ..role(0, 0, false) };
        assert!(!role(0, 5, false).sees(&other));
        let mask = Visibility::CausalTexts(&[0, 0, 1]).mask(1, 3, Device::Cpu).unwrap().unwrap();
        let rows = Vec::<Vec<f32>>::try_from(&mask).unwrap();
        let seen: Vec<Vec<bool>> = rows.iter().map(|row| row.iter().map(|x| *x == 0.0).collect()).collect();
        assert_eq!(seen, [[true, true, false, false], [true, true, true, false], [true, false, false, true]]);
    }
}
