//! Rows of int8 codes whose signs lie apart from the rest, so that a scan can read one bit of each code first.
//!
//! A row of `n` codes is `ceil(n / 64)` words of signs and `ceil(n / 8)` groups of eight codes in seven bytes: together the eight bits a
//! code that it had. Signs are kept for eight rows at a time, word by word (`[block of 8 rows, word, row]`), the order in which
//! the scan reads them.

use super::ScanError;
use super::dot::PreparedQuery;
use crate::dispatch::Path;

/// Rows whose signs lie together.
pub(super) const GROUP: usize = 8;
/// Bytes after the last row that a kernel may read: the widest load of any path.
const SLACK: usize = 64;

/// What rounding to codes may do to a row of length 1: a few thousandths where one component is far larger than the others.
const LENGTH_TOLERANCE: f32 = 0.02;

/// Rows of int8 codes with their scales, owned; see the module.
#[derive(Debug, Clone, Default)]
pub struct SplitRows {
    dimensions: usize,
    rows: usize,
    signs: Vec<u64>,
    rest: Vec<u8>,
    scales: Vec<f32>,
    /// How evenly each row's length is spread over its codes; see [`shape`].
    shapes: Vec<u8>,
}

/// Rows as kernels see them.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) dimensions: usize,
    /// Words of signs a row.
    pub(super) words: usize,
    /// Bytes of the rest a row.
    pub(super) bytes: usize,
    pub(super) rows: usize,
    pub(super) signs: &'a [u64],
    pub(super) rest: &'a [u8],
    pub(super) scales: &'a [f32],
    pub(super) shapes: &'a [u8],
}

impl SplitRows {
    /// No rows of this many dimensions yet.
    pub fn new(dimensions: usize) -> Result<Self, ScanError> {
        if dimensions == 0 || dimensions > super::DIMENSIONS_MAX {
            return Err(ScanError::Dimensions { dimensions });
        }
        Ok(Self { dimensions, ..Self::default() })
    }

    /// How many rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Codes in each row; 0 for rows that [`Self::new`] did not make.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// Adds rows of zeros, or drops rows at the end, until there are `rows`.
    pub fn resize(&mut self, rows: usize) {
        let (words, bytes) = (self.words(), self.row_bytes());
        self.signs.resize(rows.div_ceil(GROUP) * GROUP * words, 0);
        self.rest.truncate(rows * bytes);
        self.rest.resize(rows * bytes + SLACK, 0);
        // The last block keeps no signs of a dropped row: it may be filled anew.
        for row in rows..(rows.div_ceil(GROUP) * GROUP).min(self.rows) {
            (0..words).for_each(|word| self.signs[place(row, word, words)] = 0);
        }
        self.scales.resize(rows, 0.0);
        self.shapes.resize(rows, 0);
        self.rows = rows;
    }

    /// Makes room for `rows` rows in all, no more.
    pub fn reserve_exact(&mut self, rows: usize) {
        let signs = rows.div_ceil(GROUP) * GROUP * self.words();
        let rest = rows * self.row_bytes() + SLACK;
        self.signs.reserve_exact(signs.saturating_sub(self.signs.len()));
        self.rest.reserve_exact(rest.saturating_sub(self.rest.len()));
        self.scales.reserve_exact(rows.saturating_sub(self.rows));
        self.shapes.reserve_exact(rows.saturating_sub(self.rows));
    }

    /// Overwrites a row that there is.
    pub fn set(&mut self, row: usize, codes: &[i8], scale: f32) -> Result<(), ScanError> {
        if codes.len() != self.dimensions {
            return Err(ScanError::QueryDimensions { query: codes.len(), rows: self.dimensions });
        }
        if row >= self.rows {
            return Err(ScanError::Row { row, rows: self.rows });
        }
        let (words, bytes) = (self.words(), self.row_bytes());
        let rest = &mut self.rest[row * bytes..(row + 1) * bytes];
        for (word, (codes, rest)) in codes.chunks(64).zip(rest.chunks_mut(56)).enumerate() {
            let (eights, last) = codes.as_chunks::<8>();
            let (sevens, last_seven) = rest.as_chunks_mut::<7>();
            let mut signs = 0;
            let mut put = |group: usize, eight: [i8; 8]| {
                let (sign, seven) = split(u64::from_le_bytes(eight.map(i8::cast_unsigned)));
                signs |= u64::from(sign) << (8 * group);
                sevens[group].copy_from_slice(&seven.to_le_bytes()[..7]);
            };
            for (group, eight) in eights.iter().enumerate() {
                put(group, *eight);
            }
            if !last.is_empty() {
                let mut eight = [0; 8];
                eight[..last.len()].copy_from_slice(last);
                put(eights.len(), eight);
            }
            debug_assert!(last_seven.is_empty(), "a row's bytes are whole groups");
            self.signs[place(row, word, words)] = signs;
        }
        self.scales[row] = scale;
        self.shapes[row] = shape(codes, scale);
        Ok(())
    }

    /// Overwrites a row with zeros, if there is such a row.
    pub fn wipe(&mut self, row: usize) {
        if row < self.rows {
            let (words, bytes) = (self.words(), self.row_bytes());
            (0..words).for_each(|word| self.signs[place(row, word, words)] = 0);
            self.rest[row * bytes..(row + 1) * bytes].fill(0);
            self.scales[row] = 0.0;
            self.shapes[row] = 0;
        }
    }

    /// Reads a row that there is into `codes`.
    pub fn get(&self, row: usize, codes: &mut [i8]) -> Result<(), ScanError> {
        if codes.len() != self.dimensions {
            return Err(ScanError::QueryDimensions { query: codes.len(), rows: self.dimensions });
        }
        if row >= self.rows {
            return Err(ScanError::Row { row, rows: self.rows });
        }
        let view = self.view();
        for (group, codes) in codes.chunks_mut(8).enumerate() {
            for (code, byte) in codes.iter_mut().zip(view.eight(row, group).to_le_bytes()) {
                *code = byte.cast_signed();
            }
        }
        Ok(())
    }

    /// Keeps only these rows, given in ascending order, under new numbers from 0; rows past the end are left out.
    pub fn keep(&mut self, live: &[u32]) {
        let (words, bytes) = (self.words(), self.row_bytes());
        let kept = live.iter().take_while(|row| (**row as usize) < self.rows).count();
        for (new, old) in live[..kept].iter().map(|row| *row as usize).enumerate() {
            for word in 0..words {
                self.signs[place(new, word, words)] = self.signs[place(old, word, words)];
            }
            self.rest.copy_within(old * bytes..(old + 1) * bytes, new * bytes);
            self.scales[new] = self.scales[old];
            self.shapes[new] = self.shapes[old];
        }
        self.resize(kept);
        self.signs.shrink_to_fit();
        self.rest.shrink_to_fit();
        self.scales.shrink_to_fit();
        self.shapes.shrink_to_fit();
    }

    /// The exact dot product of a row's codes and a query's; `None` when there is no such row or the query has other dimensions.
    pub fn dot(&self, row: u32, query: &SplitQuery) -> Option<i32> {
        if row as usize >= self.rows || query.prepared.dimensions != self.dimensions {
            return None;
        }
        let mut dot = [0];
        dots_of_rows(query.path, self.view(), &[row], &query.prepared, &mut dot);
        Some(dot[0])
    }

    /// A row's score with a query: the dot product times both scales; `None` as for [`Self::dot`].
    pub fn score(&self, row: u32, query: &SplitQuery) -> Option<f32> {
        self.dot(row, query).map(|dot| dot as f32 * self.scales[row as usize] * query.scale)
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> u64 {
        (self.signs.capacity() * 8 + self.rest.capacity() + self.scales.capacity() * 4 + self.shapes.capacity()) as u64
    }

    /// The rows' scales.
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    fn words(&self) -> usize {
        self.dimensions.div_ceil(64)
    }

    fn row_bytes(&self) -> usize {
        7 * self.dimensions.div_ceil(8)
    }

    pub(super) fn view(&self) -> View<'_> {
        View {
            dimensions: self.dimensions,
            words: self.words(),
            bytes: self.row_bytes(),
            rows: self.rows,
            signs: &self.signs,
            rest: &self.rest,
            scales: &self.scales,
            shapes: &self.shapes,
        }
    }
}

impl View<'_> {
    /// Eight codes as bytes; those past the last are 0.
    fn eight(&self, row: usize, group: usize) -> u64 {
        let at = row * self.bytes + 7 * group;
        let mut seven = [0; 8];
        seven[..7].copy_from_slice(&self.rest[at..at + 7]);
        let signs = self.signs[place(row, group / 8, self.words)] >> (8 * (group % 8));
        join(signs as u8, u64::from_le_bytes(seven))
    }

    /// A row's word of signs, a set bit for a code below 0.
    #[inline]
    pub(super) fn sign_word(&self, row: usize, word: usize) -> u64 {
        self.signs[place(row, word, self.words)]
    }
}

/// A query ready for [`SplitRows`].
#[derive(Debug, Clone)]
pub struct SplitQuery {
    pub(super) path: Path,
    pub(super) prepared: PreparedQuery,
    pub(super) scale: f32,
}

impl SplitQuery {
    /// A query of these codes and this scale, which multiplies every score.
    pub fn new(codes: &[i8], scale: f32) -> Self {
        Self::on(Path::best(), codes, scale)
    }

    /// As [`Self::new`], on a given path (the best one if this processor does not run it).
    pub fn on(path: Path, codes: &[i8], scale: f32) -> Self {
        let path = super::sketch::split_path(path.or_best());
        Self { path, prepared: PreparedQuery::new(path, codes), scale }
    }

    /// Codes without padding.
    pub fn dimensions(&self) -> usize {
        self.prepared.dimensions
    }

    /// Multiplies every score.
    pub fn scale(&self) -> f32 {
        self.scale
    }
}

/// How evenly a row is spread: its sum of magnitudes in 255ths of the largest sum that a row of its length can have, which all codes of
/// one magnitude have. 0 for a row whose length is not 1, of which its signs say nothing that could be relied on.
fn shape(codes: &[i8], scale: f32) -> u8 {
    let (sum, squares) = codes.iter().fold((0_u32, 0_u32), |(sum, squares), code| {
        let magnitude = u32::from(code.unsigned_abs());
        (sum + magnitude, squares + magnitude * magnitude)
    });
    let length = (squares as f32).sqrt();
    let has_length_1 = (length * scale - 1.0).abs() <= LENGTH_TOLERANCE;
    if has_length_1 { (sum as f32 / (length * (codes.len() as f32).sqrt()) * 255.0).round() as u8 } else { 0 }
}

/// Where a word of a row's signs lies.
#[inline]
pub(super) fn place(row: usize, word: usize, words: usize) -> usize {
    (row / GROUP * words + word) * GROUP + row % GROUP
}

/// The signs of eight codes, the first in the lowest bit, and their seven other bits in 56.
fn split(eight: u64) -> (u8, u64) {
    // The product gathers the topmost bits of the bytes in its topmost byte.
    let signs = ((eight >> 7 & 0x0101_0101_0101_0101).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    let x = eight & 0x7f7f_7f7f_7f7f_7f7f;
    let x = (x & 0x007f_007f_007f_007f) | (x & 0x7f00_7f00_7f00_7f00) >> 1;
    let x = (x & 0x0000_3fff_0000_3fff) | (x & 0x3fff_0000_3fff_0000) >> 2;
    (signs, (x & 0x0fff_ffff) | (x & 0x0fff_ffff_0000_0000) >> 4)
}

/// Undoes [`split`].
fn join(signs: u8, seven: u64) -> u64 {
    let x = (seven & 0x0fff_ffff) | (seven & 0x00ff_ffff_f000_0000) << 4;
    let x = (x & 0x0000_3fff_0000_3fff) | (x & 0x0fff_c000_0fff_c000) << 2;
    let x = (x & 0x007f_007f_007f_007f) | (x & 0x3f80_3f80_3f80_3f80) << 1;
    // Bit i of the signs to the topmost bit of byte i: each byte of the product has all of them, the mask leaves its own.
    let own = u64::from(signs).wrapping_mul(0x0101_0101_0101_0101) & 0x8040_2010_0804_0201;
    // A byte that is not 0 gets its topmost bit by the addition; none overflows into the next.
    x | (((own & 0x7f7f_7f7f_7f7f_7f7f) + 0x7f7f_7f7f_7f7f_7f7f) | own) & 0x8080_8080_8080_8080
}

/// Dot products of rows with a query, in the order of `rows`; `path` is one of [`super::sketch::split_path`].
pub(super) fn dots_of_rows(path: Path, view: View<'_>, rows: &[u32], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(rows.len() == dots.len() && view.dimensions == query.dimensions, "one product a row, of one length");
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => super::split_x86::dots_avx512(view, rows, query, dots),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => super::split_x86::dots_avx2(view, rows, query, dots),
        #[cfg(target_arch = "aarch64")]
        Path::Neon => super::split_neon::dots_neon(view, rows, query, dots),
        _ => dots_scalar(view, rows, query, dots),
    }
}

fn dots_scalar(view: View<'_>, rows: &[u32], query: &PreparedQuery, dots: &mut [i32]) {
    for (row, dot) in rows.iter().zip(dots) {
        let eight_of = |(group, eight): (usize, &[i8])| -> i32 {
            let codes = view.eight(*row as usize, group).to_le_bytes();
            codes.iter().zip(eight).map(|(code, q)| i32::from(code.cast_signed()) * i32::from(*q)).sum()
        };
        *dot = query.padded[..view.dimensions].chunks(8).enumerate().map(eight_of).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitting_eight_codes_and_joining_them_gives_them_back() {
        let mut state = 1_u64;
        for _ in 0..10_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (signs, seven) = split(state);
            for (at, byte) in state.to_le_bytes().into_iter().enumerate() {
                assert_eq!(signs >> at & 1, byte >> 7, "{state:x}");
                assert_eq!((seven >> (7 * at) & 127) as u8, byte & 127, "{state:x}");
            }
            assert_eq!(join(signs, seven), state);
        }
    }
}
