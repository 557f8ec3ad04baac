//! Logits as a network hands them over: one row for each position that was asked for.

use super::SamplerError;

/// Rows of logits for some positions of a canvas.
///
/// # Shapes
/// `data: [positions, vocab] f32`, row after row. Row `r` belongs to canvas position `positions[r]`; a network with shifted
/// outputs (the logits of position i come from row i - 1) has undone the shift before.
#[derive(Debug, Clone, Copy)]
pub struct LogitRows<'a> {
    positions: &'a [usize],
    vocab: usize,
    data: &'a [f32],
}

impl<'a> LogitRows<'a> {
    /// Checks the shape: positions rising, `data.len() == positions.len() * vocab`, `vocab > 0`.
    pub fn new(positions: &'a [usize], vocab: usize, data: &'a [f32]) -> Result<Self, SamplerError> {
        let shape = || SamplerError::Shape { rows: positions.len(), vocab, values: data.len() };
        if vocab == 0 || positions.len().checked_mul(vocab) != Some(data.len()) {
            return Err(shape());
        }
        if positions.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(SamplerError::PositionsUnordered);
        }
        Ok(Self { positions, vocab, data })
    }

    /// Length of each row.
    pub fn vocab(&self) -> usize {
        self.vocab
    }

    /// Positions that have a row, rising.
    pub fn positions(&self) -> &'a [usize] {
        self.positions
    }

    /// The row of a canvas position, when there is one. Logarithmic in the number of rows.
    pub fn row(&self, position: usize) -> Option<&'a [f32]> {
        let row = self.positions.binary_search(&position).ok()?;
        self.data.get(row * self.vocab..(row + 1) * self.vocab)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_by_canvas_position() {
        let rows = LogitRows::new(&[2, 5], 2, &[0.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!(rows.row(5), Some(&[2.0, 3.0][..]));
        assert_eq!(rows.row(3), None);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        assert!(LogitRows::new(&[0, 1], 2, &[0.0; 3]).is_err());
        assert!(LogitRows::new(&[0], 0, &[]).is_err());
        assert!(LogitRows::new(&[1, 1], 1, &[0.0; 2]).is_err());
        assert!(LogitRows::new(&[0, 1], usize::MAX, &[0.0; 3]).is_err());
    }
}
