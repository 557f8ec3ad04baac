//! A set of rows as one bit each: filters are applied inside the scans through it.

/// A growable set of row numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    words: Vec<u64>,
}

impl Bitmap {
    /// An empty set with room for `rows` rows.
    pub fn with_rows(rows: usize) -> Self {
        Self { words: vec![0; rows.div_ceil(64)] }
    }

    /// A set of these words, row 0 in the lowest bit of the first.
    pub fn from_words(words: Vec<u64>) -> Self {
        Self { words }
    }

    /// Takes every row from `rows` on out.
    pub fn cut(&mut self, rows: usize) {
        self.words.truncate(rows.div_ceil(64));
        if let Some(last) = self.words.get_mut(rows / 64) {
            *last &= (1 << (rows % 64)) - 1;
        }
    }

    /// The words, row 0 in the lowest bit of the first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words, to be written.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Whether the row is in the set. Rows past the end are not.
    pub fn contains(&self, row: u32) -> bool {
        self.words.get(row as usize / 64).is_some_and(|word| word >> (row % 64) & 1 == 1)
    }

    /// Adds a row, growing as needed.
    pub fn insert(&mut self, row: u32) {
        let at = row as usize / 64;
        if at >= self.words.len() {
            self.words.resize(at + 1, 0);
        }
        self.words[at] |= 1 << (row % 64);
    }

    /// Makes room for `rows` rows.
    pub fn grow(&mut self, rows: usize) {
        self.words.resize(self.words.len().max(rows.div_ceil(64)), 0);
    }

    /// Takes a row out.
    pub fn remove(&mut self, row: u32) {
        if let Some(word) = self.words.get_mut(row as usize / 64) {
            *word &= !(1 << (row % 64));
        }
    }

    /// How many rows are in the set.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Keeps only the rows that the other set has too.
    pub fn intersect(&mut self, other: &Self) {
        for (at, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(at).copied().unwrap_or(0);
        }
    }

    /// The rows, ascending.
    pub fn rows(&self) -> impl Iterator<Item = u32> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            let mut rest = *word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros();
                    rest &= rest - 1;
                    at as u32 * 64 + bit
                })
            })
        })
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> u64 {
        self.words.capacity() as u64 * 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_put_in_and_not_taken_out() {
        let mut set = Bitmap::default();
        for row in [0, 63, 64, 1_000] {
            set.insert(row);
        }
        set.remove(64);
        assert_eq!(set.rows().collect::<Vec<_>>(), [0, 63, 1_000]);
        assert_eq!(set.count(), 3);
        assert!(!set.contains(5_000));
    }

    #[test]
    fn an_intersection_with_a_shorter_set_drops_the_tail() {
        let mut long = Bitmap::default();
        long.insert(3);
        long.insert(900);
        let mut short = Bitmap::with_rows(64);
        short.insert(3);
        long.intersect(&short);
        assert_eq!(long.rows().collect::<Vec<_>>(), [3]);
    }
}
