//! The canvas: a sequence of tokens in which some places are given, some are open, and some have been decided.

use std::ops::Range;

use super::SamplerError;

/// A canvas has at most this many tokens; it bounds what one request may allocate.
pub const CANVAS_TOKENS_MAX: usize = 1 << 16;

/// What a position of a canvas is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Given from outside: never changed.
    Fixed,
    /// In a hole and not decided.
    Masked,
    /// In a hole and decided.
    Decided,
}

/// A piece of a canvas, in order of position.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Tokens that stay.
    Text(Vec<u32>),
    /// A hole of this many tokens.
    Hole(usize),
}

/// Tokens with holes. Fixed tokens keep their value and place for ever; masked positions hold the mask token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    tokens: Vec<u32>,
    slots: Vec<Slot>,
    holes: Vec<Range<usize>>,
    mask_id: u32,
}

impl Canvas {
    /// Lays out pieces one after the other. Neighbouring holes stay separate holes; empty pieces vanish.
    pub fn new(pieces: &[Piece], mask_id: u32) -> Result<Self, SamplerError> {
        let length = pieces.iter().fold(0_usize, |sum, piece| {
            sum.saturating_add(match piece {
                Piece::Text(tokens) => tokens.len(),
                Piece::Hole(length) => *length,
            })
        });
        if length > CANVAS_TOKENS_MAX {
            return Err(SamplerError::CanvasTooLong { length, limit: CANVAS_TOKENS_MAX });
        }
        let mut canvas = Self { tokens: Vec::new(), slots: Vec::new(), holes: Vec::new(), mask_id };
        for piece in pieces {
            match piece {
                Piece::Text(tokens) => {
                    canvas.tokens.extend_from_slice(tokens);
                    canvas.slots.resize(canvas.tokens.len(), Slot::Fixed);
                }
                Piece::Hole(0) => {}
                Piece::Hole(length) => {
                    let start = canvas.tokens.len();
                    canvas.holes.push(start..start + length);
                    canvas.tokens.resize(start + length, mask_id);
                    canvas.slots.resize(start + length, Slot::Masked);
                }
            }
        }
        Ok(canvas)
    }

    /// A hole after a prompt.
    pub fn continuation(prompt: &[u32], length: usize, mask_id: u32) -> Result<Self, SamplerError> {
        Self::new(&[Piece::Text(prompt.to_vec()), Piece::Hole(length)], mask_id)
    }

    /// The tokens as a network sees them: masked positions hold the mask token.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What each position is.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The holes in order of position, decided or not.
    pub fn holes(&self) -> &[Range<usize>] {
        &self.holes
    }

    /// The mask token.
    pub fn mask_id(&self) -> u32 {
        self.mask_id
    }

    /// Positions that are not decided, rising.
    pub fn masked(&self) -> impl Iterator<Item = usize> {
        self.slots.iter().enumerate().filter(|(_, slot)| **slot == Slot::Masked).map(|(position, _)| position)
    }

    /// Number of positions in holes.
    pub fn hole_tokens(&self) -> usize {
        self.holes.iter().map(Range::len).sum()
    }

    /// Tokens of each hole, in order; the mask token where undecided.
    pub fn fills(&self) -> Vec<&[u32]> {
        self.holes.iter().map(|hole| &self.tokens[hole.clone()]).collect()
    }

    /// Decides a masked position. Any other position is left as it is.
    pub(super) fn decide(&mut self, position: usize, token: u32) {
        if self.slots.get(position) == Some(&Slot::Masked) {
            self.tokens[position] = token;
            self.slots[position] = Slot::Decided;
        }
    }

    /// Opens a decided position again. Any other position is left as it is.
    pub(super) fn reopen(&mut self, position: usize) {
        if self.slots.get(position) == Some(&Slot::Decided) {
            self.tokens[position] = self.mask_id;
            self.slots[position] = Slot::Masked;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_laid_out_in_order() {
        let canvas = Canvas::new(&[Piece::Text(vec![1, 2]), Piece::Hole(2), Piece::Text(vec![3]), Piece::Hole(1)], 9);
        let canvas = canvas.unwrap();
        assert_eq!(canvas.tokens(), [1, 2, 9, 9, 3, 9]);
        assert_eq!(canvas.holes(), [2..4, 5..6]);
        assert_eq!(canvas.masked().collect::<Vec<_>>(), [2, 3, 5]);
    }

    #[test]
    fn fixed_positions_cannot_be_decided_or_reopened() {
        let mut canvas = Canvas::continuation(&[1], 1, 9).unwrap();
        canvas.decide(0, 5);
        canvas.reopen(0);
        canvas.decide(7, 5);
        canvas.decide(1, 5);
        canvas.decide(1, 6);
        assert_eq!(canvas.tokens(), [1, 5]);
    }

    #[test]
    fn a_canvas_beyond_the_limit_is_refused_before_it_is_allocated() {
        let huge = Canvas::new(&[Piece::Hole(usize::MAX), Piece::Hole(usize::MAX)], 0);
        assert!(matches!(huge, Err(SamplerError::CanvasTooLong { .. })));
    }
}
