//! Finds the nearest of [`SplitRows`] by their signs first: one bit of each code is read of every row, all of it only where the signs
//! leave a row a chance.
//!
//! For a row `x` of length 1 with signs `s`, `<s, q> / <s, x>` estimates `<x, q>` without bias where the row is spread as if it were
//! turned at random, with a deviation of `|q| sqrt((1 - r^2) / r^2 / n)`, `r = <s, x> / sqrt(n)` (Gao and Long 2024, RaBitQ, theorem 3.2). The query is
//! rounded to four bits for it, so that `<s, q>` is a count of common bits. An estimate and [`DEVIATIONS`] of it make a row's upper
//! bound. The rows of the highest bounds are scored exactly; the worst of the `k` best of them is a score that every row of the
//! result reaches, so all rows whose bound reaches it are scored exactly too, and no other.
//!
//! Bounds come from integers and single operations on floats, and what is scored does not depend on the order of work: every path
//! and every number of threads gives the same rows. A query that the signs tell nothing about scores all rows.

use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

use super::split::{GROUP, SplitQuery, SplitRows, View, dots_of_rows};
use super::top::TopK;
use super::{ScanError, ScoredRow};
use crate::dispatch::Path;

/// Bits of a part of the query; see [`Planes`].
pub(super) const PLANES: usize = 4;
/// Deviations of the estimate that a row's bound lies above it: one row in some thousands is underestimated by more.
const DEVIATIONS: f32 = 3.0;
/// With fewer allowed rows than this, or fewer than this many for each row wanted, all are scored: there is little to leave out.
const SIGNS_ROWS_MIN: usize = 4_096;
const SIGNS_ROWS_PER_WANTED: usize = 32;
/// Rows whose signs are read for each allowed one, at most: a row's signs are an eighth of it, and rows are scored beside.
const SIGNS_ROWS_PER_ALLOWED: usize = 4;
/// Rows scored first, for each one wanted and at least, to know what the others have to reach.
const FIRST_PER_WANTED: usize = 4;
const FIRST_MIN: usize = 256;
/// Rows whose bitmap is one word.
const WORD_ROWS: usize = 64;
/// Rows scored at once: so many lines of memory are under way as the processor can wait for.
const BATCH_ROWS: usize = 32;
/// Rows that a thread takes at once.
const CHUNK_ROWS: usize = 4_096;
/// A thread gets at least this many rows, or starting it costs more than it saves.
const THREAD_ROWS_MIN: usize = 16_384;
/// The highest level of a bound, that of 1.
const LEVEL_MAX: f32 = 255.0;

/// What of the rows is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plan {
    /// The signs first where rows are many for those wanted and lie close together, all of every row otherwise.
    Best,
    /// All of every allowed row.
    Whole,
    /// The signs of all, then the rest of some, however few they are.
    SignsFirst,
}

/// A query's codes rounded to four bits of two's complement, each bit a plane: for a word of signs, words of the bits worth 1, 2, 4
/// and -8.
#[derive(Debug)]
pub(super) struct Planes {
    pub(super) words: Vec<[u64; PLANES]>,
    /// Sum of the rounded codes.
    total: i32,
    /// Codes to a step of the rounded ones.
    step: f32,
    /// Length of the codes as a vector.
    length: f32,
}

impl Planes {
    pub(super) fn new(codes: &[i8]) -> Self {
        let largest = codes.iter().map(|code| i32::from(code.unsigned_abs())).max().unwrap_or(0).max(1);
        let mut words = vec![[0; PLANES]; codes.len().div_ceil(64)];
        let mut total = 0;
        for (at, code) in codes.iter().enumerate() {
            // To the nearest of -7 to 7, halves away from zero.
            let magnitude = (14 * i32::from(code.unsigned_abs()) + largest) / (2 * largest);
            let rounded = if *code < 0 { -magnitude } else { magnitude };
            total += rounded;
            for (plane, word) in words[at / 64].iter_mut().enumerate() {
                *word |= u64::from(rounded.cast_unsigned() >> plane & 1) << (at % 64);
            }
        }
        Self { words, total, step: largest as f32 / 7.0, length: length(codes) }
    }
}

/// The form of the kernels of split rows that stands for a path.
pub(super) fn split_path(path: Path) -> Path {
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 | Path::Amx => {
            if super::split_x86::has_avx512() {
                Path::Avx512
            } else {
                Path::Avx2
            }
        }
        Path::NeonI8mm => Path::Neon,
        other => other,
    }
}

/// The `k` best of the allowed rows, best first, ties by the lower row: of all rows by [`Plan::Whole`], and by the other plans but for
/// rows whose signs mislead by more than the bound allows for.
///
/// `allowed` is a bitmap, row `r` is bit `r % 64` of word `r / 64`; no bitmap allows every row. Rows whose score is NaN are left out.
/// Reads a bit of each code of the allowed rows and their neighbours among eight, and all of some; takes a byte a row beside.
pub fn scan_split_top_k(
    rows: &SplitRows,
    query: &SplitQuery,
    k: usize,
    allowed: Option<&[u64]>,
    threads: usize,
    plan: Plan,
) -> Result<Vec<ScoredRow>, ScanError> {
    if query.dimensions() != rows.dimensions() {
        return Err(ScanError::QueryDimensions { query: query.dimensions(), rows: rows.dimensions() });
    }
    if let Some(bitmap) = allowed
        && bitmap.len() < rows.len().div_ceil(WORD_ROWS)
    {
        return Err(ScanError::BitmapLength { words: bitmap.len(), rows: rows.len() });
    }
    let k = k.min(rows.len());
    if k == 0 {
        return Ok(Vec::new());
    }
    let scan = Scan { view: rows.view(), query, k, allowed, threads };
    let signs_first = match plan {
        Plan::Whole => false,
        Plan::SignsFirst => true,
        Plan::Best => scan.repays_signs(),
    };
    let best = match if signs_first { scan.bounds() } else { None } {
        Some(bounds) => {
            let reached = scan.reached(&bounds);
            scan.scored(Some((&bounds.levels, reached)))
        }
        None => scan.scored(None),
    };
    Ok(best.into_sorted())
}

struct Scan<'a> {
    view: View<'a>,
    query: &'a SplitQuery,
    k: usize,
    allowed: Option<&'a [u64]>,
    threads: usize,
}

/// Upper bounds of the scores in steps of a 255th of the query's length, and how many allowed rows have each.
struct Bounds {
    levels: Vec<u8>,
    counts: [u32; 256],
}

/// What a bound is made of.
struct LevelTable {
    /// The sum of the rounded query.
    total: i32,
    /// For each shape of a row, what the sum of signs is multiplied by.
    factors: [f32; 256],
    /// For each shape of a row, what is added to that.
    margins: [f32; 256],
}

impl LevelTable {
    /// The levels of rows: from the sums of the query where their signs are, and from their shapes.
    fn put(&self, sums: &[i32], shapes: &[u8], levels: &mut [u8]) {
        for ((level, sum), shape) in levels.iter_mut().zip(sums).zip(shapes) {
            let (factor, margin) = (self.factors[usize::from(*shape)], self.margins[usize::from(*shape)]);
            // A conversion from float saturates, and rounds down: a bound that reaches a score has at least its level.
            *level = ((self.total - 2 * sum) as f32 * factor + margin) as u8;
        }
    }
}

/// How many rows have each level, counted in turn: a count is slow where the one before has just changed it.
type Counts = [[u32; 256]; 4];

impl Scan<'_> {
    /// Whether the signs are worth reading: rows are many for those wanted, and lie close enough, for signs are read a word of rows at a time.
    fn repays_signs(&self) -> bool {
        let (mut rows, mut read) = (0, 0);
        for word in (0..self.view.rows.div_ceil(WORD_ROWS)).map(|word| self.word(word)).filter(|word| *word != 0) {
            rows += word.count_ones() as usize;
            read += WORD_ROWS;
        }
        rows >= SIGNS_ROWS_MIN.max(SIGNS_ROWS_PER_WANTED * self.k) && rows * SIGNS_ROWS_PER_ALLOWED >= read
    }

    /// A word of the bitmap, without rows past the end.
    fn word(&self, word: usize) -> u64 {
        let rest = self.view.rows - word * WORD_ROWS;
        let end = if rest < WORD_ROWS { (1 << rest) - 1 } else { u64::MAX };
        self.allowed.map_or(u64::MAX, |bitmap| bitmap[word]) & end
    }

    fn parts(&self) -> usize {
        self.threads.clamp(1, (self.view.rows / THREAD_ROWS_MIN).max(1))
    }

    /// The bounds of all allowed rows; none for a query without a direction.
    fn bounds(&self) -> Option<Bounds> {
        let planes = Planes::new(&self.query.prepared.padded[..self.view.dimensions]);
        if planes.length == 0.0 {
            return None;
        }
        let table = self.level_table(&planes);
        let mut levels = vec![0; self.view.rows];
        let part_rows = self.view.rows.div_ceil(self.parts()).next_multiple_of(WORD_ROWS);
        let part = |(part, levels): (usize, &mut [u8])| self.part_levels(part * part_rows, levels, &planes, &table);
        let add = |mut left: [u32; 256], right: [u32; 256]| {
            left.iter_mut().zip(right).for_each(|(left, right)| *left += right);
            left
        };
        let counts = if self.parts() == 1 {
            part((0, &mut levels))
        } else {
            levels.par_chunks_mut(part_rows).enumerate().map(part).reduce(|| [0; 256], add)
        };
        Some(Bounds { levels, counts })
    }

    fn level_table(&self, planes: &Planes) -> LevelTable {
        let size = self.view.dimensions as f32;
        let mut table = LevelTable { total: planes.total, factors: [0.0; 256], margins: [f32::INFINITY; 256] };
        for shape in 1..256 {
            let spread = shape as f32 / 255.0;
            let of_signs = (1.0 - spread * spread).max(0.0) / size;
            // Rounding to steps errs by a twelfth of their square a component.
            let of_query = planes.step * planes.step / (12.0 * planes.length * planes.length);
            let deviation = (of_signs + of_query).sqrt() / spread;
            table.factors[shape] = LEVEL_MAX * planes.step / (planes.length * spread * size.sqrt());
            table.margins[shape] = LEVEL_MAX * DEVIATIONS * deviation;
        }
        table
    }

    /// The levels of the rows from `first` on, a multiple of [`WORD_ROWS`], and how many allowed ones have each.
    fn part_levels(&self, first: usize, levels: &mut [u8], planes: &Planes, table: &LevelTable) -> [u32; 256] {
        let mut counts: Counts = [[0; 256]; 4];
        let mut sums = [0; WORD_ROWS];
        for (word, levels) in levels.chunks_mut(WORD_ROWS).enumerate() {
            let start = first + word * WORD_ROWS;
            let allowed = self.word(start / WORD_ROWS);
            if allowed == 0 {
                continue;
            }
            let sums = &mut sums[..levels.len().next_multiple_of(GROUP)];
            sums_of_rows(self.query.path, self.view, start, planes, sums);
            table.put(sums, &self.view.shapes[start..start + levels.len()], levels);
            for (at, level) in levels.iter().enumerate() {
                counts[at % 4][usize::from(*level)] += (allowed >> at & 1) as u32;
            }
        }
        let mut sum = [0; 256];
        for counts in counts {
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        sum
    }

    /// The lowest level that a row of the result can have.
    fn reached(&self, bounds: &Bounds) -> u8 {
        let wanted = (FIRST_PER_WANTED * self.k).max(FIRST_MIN);
        let mut sum = 0;
        let lowest = bounds.counts.iter().enumerate().rposition(|(_, count)| {
            sum += *count as usize;
            sum >= wanted
        });
        let lowest = lowest.unwrap_or(0) as u8;
        // Of a level that very many share, the first will do.
        let mut first = Vec::with_capacity(2 * wanted);
        'rows: for (word, levels) in bounds.levels.chunks(WORD_ROWS).enumerate() {
            let mut rest = hits(levels, lowest) & self.word(word);
            while rest != 0 {
                first.push((word * WORD_ROWS) as u32 + rest.trailing_zeros());
                rest &= rest - 1;
                if first.len() == 2 * wanted {
                    break 'rows;
                }
            }
        }
        let mut best = TopK::new(self.k);
        first.chunks(BATCH_ROWS).for_each(|rows| self.score(rows, &mut best));
        (best.bar() / (self.query.scale * length(&self.query.prepared.padded)) * LEVEL_MAX) as u8
    }

    /// The best of the allowed rows; of those alone whose level is at least the given one, if one is.
    fn scored(&self, least: Option<(&[u8], u8)>) -> TopK {
        let next = AtomicUsize::new(0);
        let part = || {
            let mut best = TopK::new(self.k);
            loop {
                let start = next.fetch_add(CHUNK_ROWS, Ordering::Relaxed);
                if start >= self.view.rows {
                    return best;
                }
                self.scored_chunk(start, (start + CHUNK_ROWS).min(self.view.rows), least, &mut best);
            }
        };
        if self.parts() == 1 {
            return part();
        }
        let merge = |mut left: TopK, right| {
            left.merge(right);
            left
        };
        (0..self.parts()).into_par_iter().map(|_| part()).reduce_with(merge).expect("there is at least one part")
    }

    fn scored_chunk(&self, start: usize, end: usize, least: Option<(&[u8], u8)>, best: &mut TopK) {
        // Some rows are scored while as many of the next are on their way from memory, which takes longer than scoring a row.
        let (mut arrived, mut coming) = (Vec::with_capacity(BATCH_ROWS), Vec::with_capacity(BATCH_ROWS));
        for word in start / WORD_ROWS..end.div_ceil(WORD_ROWS) {
            let first = word * WORD_ROWS;
            let mut rest = self.word(word);
            if let Some((levels, level)) = least
                && rest != 0
            {
                rest &= hits(&levels[first..end.min(first + WORD_ROWS)], level);
            }
            while rest != 0 {
                let row = first + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                prefetch(self.view, row);
                coming.push(row as u32);
                if coming.len() == BATCH_ROWS {
                    self.score(&arrived, best);
                    std::mem::swap(&mut arrived, &mut coming);
                    coming.clear();
                }
            }
        }
        self.score(&arrived, best);
        self.score(&coming, best);
    }

    fn score(&self, rows: &[u32], best: &mut TopK) {
        let mut dots = [0; BATCH_ROWS];
        let dots = &mut dots[..rows.len()];
        dots_of_rows(self.query.path, self.view, rows, &self.query.prepared, dots);
        for (row, dot) in rows.iter().zip(dots) {
            let score = *dot as f32 * self.view.scales[*row as usize] * self.query.scale;
            best.offer(ScoredRow { row: *row, score });
        }
    }
}

/// The length of codes as a vector.
fn length(codes: &[i8]) -> f32 {
    let squares: i32 = codes.iter().map(|code| i32::from(*code) * i32::from(*code)).sum();
    (squares as f32).sqrt()
}

/// Which of up to 64 levels are at least this one, the first in the lowest bit.
fn hits(levels: &[u8], least: u8) -> u64 {
    let mut hits = 0;
    for (at, eight) in levels.chunks(8).enumerate() {
        // Most eights have none: a look at the largest is cheaper than eight bits.
        if eight.iter().fold(0, |largest, level| largest.max(*level)) >= least {
            hits |= eight.iter().enumerate().fold(0, |bits, (bit, level)| bits | u64::from(*level >= least) << bit)
                << (8 * at);
        }
    }
    hits
}

fn prefetch(view: View<'_>, row: usize) {
    #[cfg(target_arch = "x86_64")]
    super::split_x86::prefetch(view, row);
    // Elsewhere the processor is left to find out by itself.
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (view, row);
}

/// For each row from `first` on, a multiple of [`GROUP`], the sum of the query's rounded codes where the row's are below 0. `sums` is a multiple
/// of [`GROUP`] long; those past the last row mean nothing. `path` is one of [`split_path`].
pub(super) fn sums_of_rows(path: Path, view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    assert!(first.is_multiple_of(GROUP) && sums.len().is_multiple_of(GROUP) && planes.words.len() == view.words);
    assert!(first + sums.len() <= view.rows.next_multiple_of(GROUP), "the rows are there");
    match path {
        #[cfg(target_arch = "x86_64")]
        Path::Avx512 => super::split_x86::sums_avx512(view, first, planes, sums),
        #[cfg(target_arch = "x86_64")]
        Path::Avx2 => super::split_x86::sums_avx2(view, first, planes, sums),
        #[cfg(target_arch = "aarch64")]
        Path::Neon => super::split_neon::sums_neon(view, first, planes, sums),
        _ => sums_scalar(view, first, planes, sums),
    }
}

fn sums_scalar(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    for (row, sum) in (first..).zip(sums) {
        *sum = (0..view.words)
            .map(|word| {
                let signs = view.sign_word(row, word);
                let count = |plane: usize| (signs & planes.words[word][plane]).count_ones().cast_signed();
                count(0) + 2 * count(1) + 4 * count(2) - 8 * count(3)
            })
            .sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_counts_common_bits_as_the_scalar_form_does() {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        };
        for dimensions in [1, 2, 7, 8, 9, 63, 64, 65, 100, 384, 1_000] {
            let mut rows = SplitRows::new(dimensions).unwrap();
            rows.resize(83);
            for row in 0..83 {
                let codes: Vec<i8> = (0..dimensions).map(|_| next().cast_signed()).collect();
                rows.set(row, &codes, 1.0).unwrap();
            }
            let query: Vec<i8> = (0..dimensions).map(|_| next().cast_signed()).collect();
            let planes = Planes::new(&query);
            for (first, count) in [(0, 88), (8, 80), (80, 8), (16, 16)] {
                let sums = |path| {
                    let mut sums = vec![0; count];
                    sums_of_rows(split_path(path), rows.view(), first, &planes, &mut sums);
                    sums.truncate(83 - first);
                    sums
                };
                for path in Path::available() {
                    assert_eq!(sums(*path), sums(Path::Scalar), "{path:?}, {dimensions} dimensions from {first}");
                }
            }
        }
    }

    #[test]
    fn the_extreme_query_is_rounded_to_seven_steps() {
        let planes = Planes::new(&[-128, 128_u8.wrapping_sub(1).cast_signed(), 0, 9, 10, -64]);
        let value = |at: usize| {
            let bit = |plane: usize| (planes.words[0][plane] >> at & 1) as i32;
            bit(0) + 2 * bit(1) + 4 * bit(2) - 8 * bit(3)
        };
        assert_eq!([0, 1, 2, 3, 4, 5].map(value), [-7, 7, 0, 0, 1, -4]);
        assert_eq!(planes.total, -3);
    }

    #[test]
    fn levels_that_reach_the_least_are_found_at_any_count() {
        let levels: Vec<u8> = (0..64).map(|at| (at * 37 % 64) as u8).collect();
        for count in [0, 1, 7, 8, 9, 63, 64] {
            for least in [0, 1, 31, 63, 64] {
                let expected = (0..count).fold(0, |bits, at| bits | u64::from(levels[at] >= least) << at);
                assert_eq!(hits(&levels[..count], least), expected, "{count} from {least}");
            }
        }
    }
}
