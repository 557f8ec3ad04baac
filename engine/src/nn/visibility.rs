//! Who sees whom in one window.

use mneme_quant::floats::Seen;
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
    /// Undecided copies of parts of the text that the prefix holds: see [`SegmentRole`].
    Segments(&'a [SegmentRole]),
    /// A hole that is written left to right: its tokens see the prefix, which holds the text after the hole too, and the window up
    /// to themselves. They are read as undecided rows are.
    Middle,
}

/// The rows of a window that adapters of a diffusion model act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Open {
    /// The rows.
    pub rows: std::ops::Range<i64>,
    /// Whether they are a hole that is written left to right; otherwise they are being unmasked.
    pub is_middle: bool,
}

impl Open {
    /// Whether masks may stand among the rows.
    pub(crate) fn has_masks(&self) -> bool {
        !self.is_middle && !self.rows.is_empty()
    }
}

/// Rows of segments that attend in one go: each is compared with all others of its chunk and most of that is hidden, while fewer
/// rows make small matrices.
const CHUNK_ROWS: usize = 96;

/// The role of one position in a window of segments: each is a part of the prefix's text once more. Segments do not see each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentRole {
    /// Which segment it belongs to.
    pub segment: u32,
    /// How many tokens of the prefix it sees from the prefix's start.
    pub seen: u32,
    /// How it reads its own segment, and what else.
    pub kind: SegmentKind,
}

/// How a segment is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentKind {
    /// Partly masked, both ways.
    Masked,
    /// Decided text after a hole that it does not see, left to right, as the base reads.
    Suffix,
    /// The tokens of a hole, left to right, with such text in view: these rows of the prefix.
    Middle {
        /// The first.
        from: u32,
        /// Past the last.
        until: u32,
    },
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
    /// The rows of a window of this length that are being unmasked or written: from the first of them on, all that follow, but for
    /// training windows, whose noisy half comes first.
    pub(crate) fn open(&self, window: i64) -> Open {
        let is_middle = match self {
            Self::Middle => true,
            Self::Segments(roles) => roles.iter().any(|role| matches!(role.kind, SegmentKind::Middle { .. })),
            _ => false,
        };
        let rows = match self {
            Self::Causal | Self::CausalTexts(_) => 0..0,
            Self::All | Self::Middle => 0..window,
            Self::Segments(roles) => {
                roles.iter().take_while(|role| role.kind == SegmentKind::Suffix).count() as i64..window
            }
            Self::Draft { decided } => (*decided as i64).min(window)..window,
            Self::Training(roles) => 0..roles.iter().take_while(|role| role.noisy).count() as i64,
        };
        Open { rows, is_middle }
    }

    /// Ranges of segments that can be attended to on their own, of at least [`CHUNK_ROWS`] rows but the last. `None` when the
    /// window is not made of segments.
    pub(crate) fn chunks(&self) -> Option<Vec<std::ops::Range<usize>>> {
        let Self::Segments(roles) = self else { return None };
        let mut chunks = Vec::new();
        let mut start = 0;
        let mut end = 0;
        for segment in roles.chunk_by(|a, b| a.segment == b.segment) {
            end += segment.len();
            if end - start >= CHUNK_ROWS {
                chunks.push(start..end);
                start = end;
            }
        }
        if start < end {
            chunks.push(start..end);
        }
        Some(chunks)
    }

    /// Whether position `i` of the window does not see position `j` of it.
    fn hides(&self, i: usize, j: usize) -> bool {
        match self {
            Self::All => false,
            Self::Causal | Self::Middle => j > i,
            Self::Draft { decided } => i < *decided && j > i,
            Self::CausalTexts(texts) => j > i || texts.get(i) != texts.get(j),
            Self::Training(roles) => match (roles.get(i), roles.get(j)) {
                (Some(of), Some(other)) => !of.sees(other),
                _ => true,
            },
            Self::Segments(roles) => match (roles.get(i), roles.get(j)) {
                (Some(of), Some(other)) => of.segment != other.segment || (of.kind != SegmentKind::Masked && j > i),
                _ => true,
            },
        }
    }

    /// The same for the network on slices: an end for each position, and a mask only where an end does not say it.
    pub(crate) fn seen(&self, prefix: usize, window: usize) -> Seen {
        let positions = prefix + window;
        let until = match self {
            Self::All | Self::Training(_) | Self::Segments(_) => vec![positions; window],
            Self::Causal | Self::CausalTexts(_) | Self::Middle => (0..window).map(|i| prefix + i + 1).collect(),
            Self::Draft { decided } => {
                (0..window).map(|i| if i < *decided { prefix + i + 1 } else { positions }).collect()
            }
        };
        let has_mask = matches!(self, Self::CausalTexts(_) | Self::Training(_) | Self::Segments(_));
        let mask = has_mask.then(|| self.rows(prefix, window));
        Seen { until, mask, positions }
    }

    fn rows(&self, prefix: usize, window: usize) -> Vec<f32> {
        let mut mask = vec![0.0_f32; window * (prefix + window)];
        for (i, row) in mask.chunks_exact_mut(prefix + window).enumerate() {
            let (of_prefix, of_window) = row.split_at_mut(prefix);
            if let Self::Segments(roles) = self {
                let seen = roles.get(i).map_or(0, |role| role.seen as usize);
                let also = match roles.get(i).map(|role| role.kind) {
                    Some(SegmentKind::Middle { from, until }) => from as usize..until as usize,
                    _ => 0..0,
                };
                for (place, value) in of_prefix.iter_mut().enumerate().skip(seen) {
                    if !also.contains(&place) {
                        *value = f32::NEG_INFINITY;
                    }
                }
            }
            for (j, value) in of_window.iter_mut().enumerate() {
                if self.hides(i, j) {
                    *value = f32::NEG_INFINITY;
                }
            }
        }
        mask
    }

    /// The additive mask: 0 where a position is seen, minus infinity elsewhere. `None` when everything is seen.
    ///
    /// # Shapes
    /// `[window, prefix + window] f32`.
    pub(crate) fn mask(&self, prefix: i64, window: i64, device: Device) -> Result<Option<Tensor>> {
        if matches!(self, Self::All) || (matches!(self, Self::Causal) && window == 1) {
            return Ok(None);
        }
        let shape = [window, prefix + window];
        Ok(Some(
            Tensor::f_from_slice(&self.rows(prefix as usize, window as usize))?.f_view(shape)?.f_to_device(device)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_never_cut_a_segment_and_cover_all_rows() {
        let lengths = [90, 5, 7, 200, 3];
        let role = |(segment, length): (usize, &usize)| {
            vec![SegmentRole { segment: segment as u32, seen: 1, kind: SegmentKind::Masked }; *length]
        };
        let roles: Vec<SegmentRole> = lengths.iter().enumerate().flat_map(role).collect();
        assert_eq!(Visibility::Segments(&roles).chunks().unwrap(), [0..102, 102..302, 302..305]);
        assert_eq!(Visibility::All.chunks(), None);
    }

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
