//! The inverted index: BM25 postings that are appended to and read in place.
//!
//! A posting is four bytes: the row and how often the term is in it (up to 15, past which BM25 hardly rises). Rows only
//! grow, so a new posting is a push. A removed row stays in its lists as a dead row, which the scan skips, until the index
//! is rebuilt.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::bitmap::Bitmap;
use super::tokens::{Field, Tokenizer, is_stop_word, term_hash};

/// How many bits of a posting say how often the term occurs.
pub(super) const COUNT_BITS: u32 = 4;
const COUNT_MAX: u32 = (1 << COUNT_BITS) - 1;
/// Rows past this do not fit into a posting.
pub const ROWS_MAX: u32 = u32::MAX >> COUNT_BITS;

/// Term hashes are mixed already, so the map takes them as they are.
#[derive(Debug, Default, Clone, Copy)]
pub struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// How BM25 weighs (Robertson and Zaragoza, "The Probabilistic Relevance Framework", 2009, eq. 3.15).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bm25 {
    /// How fast repetition of a term saturates.
    pub k1: f32,
    /// How much long texts are held back, 0 to 1.
    pub b: f32,
}

/// One term of a query.
#[derive(Debug, Clone, PartialEq)]
pub struct QueryTerm {
    /// The term as stemmed, for explanations.
    pub term: String,
    /// Its hash.
    pub hash: u64,
    /// How much it counts.
    pub weight: f32,
}

/// What a query found in one row.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Found {
    /// The BM25 score.
    pub score: f32,
    /// Which of the query's terms are in it, the first in the lowest bit; terms past the 32nd share the highest.
    pub terms: u32,
}

/// BM25 scores of the rows that a query touched.
#[derive(Debug, Default)]
pub struct TextScores {
    /// Per row; rows that no term touched are 0.
    pub rows: Vec<Found>,
    /// The rows that a term touched, each once, in no order.
    pub touched: Vec<u32>,
    /// Per term: its weight times its idf.
    pub rarities: Vec<f32>,
    /// Per term: how many rows have it.
    pub frequencies: Vec<u32>,
}

impl TextScores {
    /// The sum of the rarities of a set of terms.
    pub fn rarity(&self, terms: u32) -> f32 {
        let bits = self.rarities.iter().enumerate();
        bits.filter(|(at, _)| terms >> (*at).min(31) & 1 == 1).map(|(_, rarity)| rarity).sum()
    }

    /// The largest rarity of a set of terms.
    pub fn rarest(&self, terms: u32) -> f32 {
        let bits = self.rarities.iter().enumerate();
        bits.filter(|(at, _)| terms >> (*at).min(31) & 1 == 1).map(|(_, rarity)| *rarity).fold(0.0, f32::max)
    }
}

/// The terms of one row, ready for [`TextIndex::push`]: taking a text apart costs more than adding it, and needs no index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowTerms {
    counts: Vec<(u64, u32)>,
    length: u16,
}

impl RowTerms {
    /// Takes a text and its metadata entries apart.
    pub fn new(tokenizer: &Tokenizer, text: &str, metadata: impl Iterator<Item = String>) -> Self {
        let mut hashes = Vec::new();
        let mut length = 0_u32;
        for token in tokenizer.tokens(text) {
            if !is_stop_word(&token.word) {
                hashes.push(term_hash(Field::Text, &token.term));
                length += u32::from(!token.part);
            }
        }
        hashes.sort_unstable();
        let mut counts: Vec<(u64, u32)> =
            hashes.chunk_by(|a, b| a == b).map(|group| (group[0], group.len() as u32)).collect();
        counts.extend(metadata.map(|entry| (term_hash(Field::Metadata, &entry), 1)));
        Self { counts, length: length.min(u32::from(u16::MAX)) as u16 }
    }
}

/// The postings of all terms.
#[derive(Debug, Default)]
pub struct TextIndex {
    pub(super) terms: HashMap<u64, Vec<u32>, BuildHasherDefault<Identity>>,
    pub(super) lengths: Vec<u16>,
    pub(super) length_sum: u64,
    pub(super) live: usize,
}

impl TextIndex {
    /// Adds the terms of a row. Rows are added in ascending order, each once.
    pub fn push(&mut self, row: u32, terms: &RowTerms) {
        for (hash, count) in &terms.counts {
            self.post(*hash, row, *count);
        }
        if self.lengths.len() <= row as usize {
            self.lengths.resize(row as usize + 1, 0);
        }
        self.lengths[row as usize] = terms.length;
        self.length_sum += u64::from(terms.length);
        self.live += 1;
    }

    fn post(&mut self, hash: u64, row: u32, count: u32) {
        self.terms.entry(hash).or_default().push(row << COUNT_BITS | count.min(COUNT_MAX));
    }

    /// Takes a dead row out of the statistics.
    pub fn kill(&mut self, row: u32) {
        if let Some(length) = self.lengths.get(row as usize) {
            self.length_sum -= u64::from(*length);
            self.live -= 1;
        }
    }

    /// Keeps only the live rows, given in ascending order; `places` gives each old row's new number, `u32::MAX` for a dead one.
    pub fn keep(&mut self, live: &[u32], places: &[u32]) {
        for postings in self.terms.values_mut() {
            postings.retain_mut(|posting| {
                let place = places[(*posting >> COUNT_BITS) as usize];
                *posting = place << COUNT_BITS | *posting & COUNT_MAX;
                place != u32::MAX
            });
            postings.shrink_to_fit();
        }
        self.terms.retain(|_, postings| !postings.is_empty());
        self.lengths = live.iter().map(|row| self.lengths[*row as usize]).collect();
    }

    /// The terms of a query's words, stop words dropped, repeated words once.
    pub fn query_terms(tokenizer: &Tokenizer, text: &str) -> Vec<QueryTerm> {
        let mut terms: Vec<QueryTerm> = Vec::new();
        for token in tokenizer.tokens(text) {
            let hash = term_hash(Field::Text, &token.term);
            if !is_stop_word(&token.word) && terms.iter().all(|term| term.hash != hash) {
                terms.push(QueryTerm { term: token.term, hash, weight: 1.0 });
            }
        }
        terms
    }

    /// How rare a term is (eq. 3.3 of the same source, with 1 added so that it is never negative).
    pub fn idf(&self, frequency: usize) -> f32 {
        let (rows, frequency) = (self.live.max(frequency) as f32, frequency as f32);
        (1.0 + (rows - frequency + 0.5) / (frequency + 0.5)).ln()
    }

    /// How many postings a term has, dead rows included.
    pub fn frequency(&self, hash: u64) -> usize {
        self.terms.get(&hash).map_or(0, Vec::len)
    }

    /// Scores every allowed row that has a term of the query. Cost: one step per posting of the query's terms.
    pub fn score(&self, terms: &[QueryTerm], allowed: &Bitmap, bm25: Bm25) -> TextScores {
        let mut found = TextScores { rows: vec![Found::default(); self.lengths.len()], ..TextScores::default() };
        let average = (self.length_sum as f32 / self.live.max(1) as f32).max(1.0);
        for (number, term) in terms.iter().enumerate() {
            let postings = self.terms.get(&term.hash).map_or(&[][..], Vec::as_slice);
            let rarity = term.weight * self.idf(postings.len());
            found.frequencies.push(postings.len() as u32);
            found.rarities.push(rarity);
            let weight = rarity * (bm25.k1 + 1.0);
            let (base, slope) = (bm25.k1 * (1.0 - bm25.b), bm25.k1 * bm25.b / average);
            for posting in postings {
                let row = posting >> COUNT_BITS;
                if !allowed.contains(row) {
                    continue;
                }
                let count = (posting & COUNT_MAX) as f32;
                let slot = &mut found.rows[row as usize];
                if slot.terms == 0 {
                    found.touched.push(row);
                }
                slot.terms |= 1 << number.min(31);
                slot.score += weight * count / (count + base + slope * f32::from(self.lengths[row as usize]));
            }
        }
        found
    }

    /// How many terms the row has, stop words not counted.
    pub fn length(&self, row: u32) -> u16 {
        self.lengths.get(row as usize).copied().unwrap_or(0)
    }

    /// The rows that have a word, or `None` when the word is not indexed because it is a stop word.
    pub fn rows_with_term(&self, hash: u64, word: &str) -> Option<Bitmap> {
        if is_stop_word(word) {
            return None;
        }
        let mut set = Bitmap::default();
        for posting in self.terms.get(&hash).map_or(&[][..], Vec::as_slice) {
            set.insert(posting >> COUNT_BITS);
        }
        Some(set)
    }

    /// The rows with all of these metadata entries.
    pub fn rows_with_metadata(&self, entries: impl Iterator<Item = String>, rows: usize) -> Option<Bitmap> {
        let mut all: Option<Bitmap> = None;
        for entry in entries {
            let mut set = Bitmap::with_rows(rows);
            for posting in self.terms.get(&term_hash(Field::Metadata, &entry)).map_or(&[][..], Vec::as_slice) {
                set.insert(posting >> COUNT_BITS);
            }
            match &mut all {
                None => all = Some(set),
                Some(all) => all.intersect(&set),
            }
        }
        all
    }

    /// Bytes on the heap, nearly.
    pub fn bytes(&self) -> u64 {
        let postings: usize = self.terms.values().map(|list| list.capacity() * 4).sum();
        (postings + self.terms.capacity() * 33 + self.lengths.capacity() * 2) as u64
    }
}

/// A metadata entry as it is indexed.
pub fn metadata_term(key: &str, value: &str) -> String {
    format!("{key}\u{0}{value}")
}
