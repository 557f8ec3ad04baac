//! The person's stream: its tenths, the entries that are predicted, and the text that is learned between them.

use std::ops::Range;
use std::path::Path;

use mneme_bench::streams::{Failure, base_texts, streams};
use mneme_evolution::prequential::split;

/// Parts of the stream.
pub(crate) const PARTS: usize = 10;
/// Characters at the start of an entry by which similar entries are recalled for its rest.
const OPENING_CHARS: usize = 100;
/// Guard texts: forgetting is measured on them.
const GUARD_TEXTS: usize = 24;
/// Base texts to replay.
const REPLAY_TEXTS: usize = 200;
/// Bytes of other people's text that are read.
const OTHERS_BYTES: usize = 1 << 20;

/// A person's entries in order of time.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(crate) entries: Vec<String>,
    /// The same, cut to what is predicted.
    pub(crate) cut: Vec<String>,
    /// Entries of each tenth.
    pub(crate) parts: Vec<Range<usize>>,
    /// Entries that are predicted, for each tenth.
    pub(crate) sampled: Vec<Vec<usize>>,
}

impl Stream {
    /// Reads the longest stream of a file and samples `sample` entries of each tenth, evenly.
    pub(crate) fn read(file: &Path, sample: usize, chars: usize) -> Result<Self, Failure> {
        let longest = streams(file)?.into_iter().max_by_key(|entries| entries.iter().map(String::len).sum::<usize>());
        let mut entries = longest.unwrap_or_default();
        entries.retain(|entry| !entry.trim().is_empty());
        let lengths: Vec<u64> = entries.iter().map(|entry| entry.chars().count() as u64).collect();
        let parts = split(&lengths, PARTS);
        if parts.len() < PARTS || parts.iter().any(|part| part.len() < 8) {
            return Err(format!("{} entries are too few for tenths of 8 entries", entries.len()).into());
        }
        let pick = |part: &Range<usize>| {
            let count = sample.min(part.len());
            (0..count).map(|n| part.start + (2 * n + 1) * part.len() / (2 * count)).collect()
        };
        let cut = entries.iter().map(|entry| cut(entry, chars).to_owned()).collect();
        Ok(Self { sampled: parts.iter().map(pick).collect(), entries, cut, parts })
    }

    /// The entry's opening and its rest, which begins with a space, so that both together have the tokens of the whole.
    pub(crate) fn opening(&self, entry: usize) -> (&str, &str) {
        let text = self.cut[entry].as_str();
        text.split_at(cut(text, OPENING_CHARS).len())
    }
}

/// Cuts a text before the last space within its first characters.
fn cut(text: &str, chars: usize) -> &str {
    let Some((end, _)) = text.char_indices().nth(chars) else { return text };
    let start = &text[..end];
    start.rfind(' ').filter(|space| *space > 0).map_or(start, |space| &text[..space])
}

/// Other people's text.
#[derive(Debug)]
pub(crate) struct BaseTexts {
    /// Mixed into training.
    pub(crate) replay: Vec<String>,
    /// Forgetting is measured on it.
    pub(crate) guard: Vec<String>,
    /// Placebo adapters learn it.
    pub(crate) others: Vec<String>,
}

impl BaseTexts {
    /// Reads base text and other people's text; pieces are cut to the length of entries.
    pub(crate) fn read(base: &Path, others: &Path, chars: usize) -> Result<Self, Failure> {
        let base = base_texts(base, None, usize::MAX)?;
        let piece = |text: &String| cut(text, chars).to_owned();
        let guard: Vec<String> = base.iter().step_by((base.len() / GUARD_TEXTS).max(1)).map(piece).collect();
        let spaced = base.iter().enumerate().filter(|(index, _)| index % (base.len() / GUARD_TEXTS).max(1) != 0);
        let replay = spaced.map(|(_, text)| piece(text)).take(REPLAY_TEXTS).collect();
        let others =
            base_texts(others, Some("books"), OTHERS_BYTES)?.iter().flat_map(|text| pieces(text, chars)).collect();
        Ok(Self { replay, guard, others })
    }
}

/// A long text in pieces of a length.
fn pieces(text: &str, chars: usize) -> Vec<String> {
    let mut rest = text.trim();
    let mut all = Vec::new();
    while !rest.is_empty() {
        let piece = cut(rest, chars);
        all.push(piece.to_owned());
        rest = rest[piece.len()..].trim_start();
    }
    all
}
