//! Cuts documents into pieces of a bounded number of tokens, at the strongest boundary there is: section, paragraph,
//! sentence, word, character.
//!
//! ```
//! use mneme_text::chunk::{ChunkOptions, TextFormat, chunk};
//! let text = "# Travel\n\n## Rome\n\nWe went to Rome in May.\n";
//! let options = ChunkOptions { format: TextFormat::Markdown, ..ChunkOptions::default() };
//! let chunks = chunk(text, &options);
//! assert_eq!(chunks[0].heading, ["Travel", "Rome"]);
//! assert_eq!((chunks[0].line_first, chunks[0].line_last), (1, 5));
//! ```
//!
//! Nothing is lost: every character of the document that is not white space lies in a chunk, chunks are slices of the
//! document in order, and each knows its lines. Time is linear in the document, given a linear counter.

mod atoms;
mod count;

use std::fmt;
use std::ops::Range;

use atoms::{Atom, Boundary};
pub use count::approximate_tokens;

/// How a document is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TextFormat {
    /// Paragraphs separated by blank lines.
    #[default]
    Plain,
    /// Markdown: `#` headings make sections; fenced code is kept whole where it fits.
    Markdown,
    /// Source code: cut between lines, best at blank lines.
    Code,
}

impl TextFormat {
    /// Guesses from a file name's extension, without the dot. Unknown extensions are plain text.
    pub fn from_extension(extension: &str) -> Self {
        match extension.to_ascii_lowercase().as_str() {
            "md" | "markdown" | "mdx" | "qmd" | "rmd" => Self::Markdown,
            "rs" | "py" | "js" | "ts" | "tsx" | "jsx" | "c" | "h" | "cc" | "cpp" | "hpp" | "go" | "java" | "kt"
            | "swift" | "rb" | "php" | "sh" | "bash" | "zsh" | "fish" | "lua" | "sql" | "toml" | "yaml" | "yml"
            | "json" | "jsonl" | "css" | "html" | "xml" | "cs" | "scala" | "hs" | "ml" | "ex" | "exs" | "zig"
            | "nix" | "csv" | "tsv" => Self::Code,
            _ => Self::Plain,
        }
    }
}

/// How tokens are counted.
#[derive(Clone, Copy, Default)]
pub enum TokenCounter<'a> {
    /// By [`approximate_tokens`]: fast, no vocabulary needed, about a tenth off for English.
    #[default]
    Approximate,
    /// By a tokenizer, for example `&|text| tokenizer.encode(text).map_or(usize::MAX, |ids| ids.len())`.
    Exact(&'a (dyn Fn(&str) -> usize + Sync)),
}

impl fmt::Debug for TokenCounter<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Approximate => "Approximate",
            Self::Exact(_) => "Exact",
        })
    }
}

impl TokenCounter<'_> {
    fn count(self, text: &str) -> usize {
        match self {
            Self::Approximate => approximate_tokens(text),
            Self::Exact(count) => count(text),
        }
    }
}

/// How to cut.
#[derive(Debug, Clone, Copy)]
pub struct ChunkOptions<'a> {
    /// No chunk has more tokens than this, except a single character that alone counts more. At least 1.
    pub tokens_max: usize,
    /// A section that ends after at least this many tokens ends its chunk; shorter ones share a chunk with the next.
    pub tokens_min: usize,
    /// A chunk repeats up to this many tokens of the one before it, unless a section begins between them.
    pub overlap_tokens: usize,
    /// How the document is written.
    pub format: TextFormat,
    /// How tokens are counted.
    pub counter: TokenCounter<'a>,
}

impl Default for ChunkOptions<'_> {
    /// 256 tokens suit the default embedder, which was trained on 128 to 256.
    fn default() -> Self {
        Self {
            tokens_max: 256,
            tokens_min: 64,
            overlap_tokens: 32,
            format: TextFormat::Plain,
            counter: TokenCounter::Approximate,
        }
    }
}

/// A piece of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The text, without white space around it.
    pub text: &'a str,
    /// The headings of the section that most of the chunk belongs to, outermost first (Markdown only).
    pub heading: Vec<&'a str>,
    /// First line, counted from 1.
    pub line_first: usize,
    /// Last line, counted from 1.
    pub line_last: usize,
    /// Where the text stands in the document (bytes).
    pub byte_range: Range<usize>,
    /// Sum of the token counts of the chunk's parts; counting the whole text anew may differ by a little.
    pub tokens: usize,
}

impl Chunk<'_> {
    /// The headings as one line: `Travel > Rome`.
    pub fn heading_path(&self) -> String {
        self.heading.join(" > ")
    }
}

/// Cuts a document into chunks. A document of white space has none.
pub fn chunk<'a>(document: &'a str, options: &ChunkOptions<'_>) -> Vec<Chunk<'a>> {
    let tokens_max = options.tokens_max.max(1);
    let outline = atoms::split(document, options.format, tokens_max, options.counter);
    let atoms = &outline.atoms;
    let lines = LineIndex::new(document);
    let mut chunks = Vec::new();
    let (mut start, mut covered) = (0, 0);
    while start < atoms.len() {
        // White space before a chunk belongs to none; skipping it keeps starts strictly ascending.
        if document[atoms[start].range.clone()].trim().is_empty() {
            start += 1;
            continue;
        }
        let end = chunk_end(atoms, start, tokens_max, options.tokens_min);
        let span = &document[atoms[start].range.start..atoms[end - 1].range.end];
        let from = atoms[start].range.start + (span.len() - span.trim_start().len());
        let byte_range = from..from + span.trim().len();
        // Only white space may be new beyond the overlap; that is no chunk.
        if byte_range.end > covered {
            covered = byte_range.end;
            chunks.push(Chunk {
                text: &document[byte_range.clone()],
                heading: outline.heading_path(document, main_section(&atoms[start..end])),
                line_first: lines.line_of(byte_range.start),
                line_last: lines.line_of(byte_range.end - 1),
                tokens: tokens(&atoms[start..end]),
                byte_range,
            });
        }
        if end == atoms.len() {
            break;
        }
        start = overlap_start(atoms, start, end, tokens_max, options.overlap_tokens);
    }
    chunks
}

/// Fills a chunk, then steps back to the strongest boundary in its second half. Returns one past its last atom.
fn chunk_end(atoms: &[Atom], start: usize, tokens_max: usize, tokens_min: usize) -> usize {
    let mut tokens = 0_usize;
    let mut best: Option<(Boundary, usize)> = None;
    for (index, atom) in atoms.iter().enumerate().skip(start) {
        if index > start && tokens.saturating_add(atom.tokens) > tokens_max {
            return best.map_or(index, |(_, end)| end);
        }
        tokens = tokens.saturating_add(atom.tokens);
        if atom.after == Boundary::Section && tokens >= tokens_min {
            return index + 1;
        }
        // Among equal boundaries the latest, so that chunks are as full as they can be.
        if tokens >= tokens_max.div_ceil(2) && best.is_none_or(|(boundary, _)| atom.after >= boundary) {
            best = Some((atom.after, index + 1));
        }
    }
    atoms.len()
}

/// Where the next chunk starts: as far back as the overlap allows without crossing into another section, always after
/// the start of the chunk before it, and with less than half a chunk, so that the next cut lies beyond the overlap.
fn overlap_start(atoms: &[Atom], start: usize, end: usize, tokens_max: usize, overlap_tokens: usize) -> usize {
    let room = overlap_tokens.min(tokens_max.saturating_sub(atoms[end].tokens)).min((tokens_max - 1) / 2);
    let mut tokens = 0_usize;
    let mut next = end;
    while next > start + 1 && atoms[next - 1].after != Boundary::Section {
        tokens = tokens.saturating_add(atoms[next - 1].tokens);
        if tokens > room {
            break;
        }
        next -= 1;
    }
    next
}

fn tokens(atoms: &[Atom]) -> usize {
    atoms.iter().fold(0, |sum, atom| sum.saturating_add(atom.tokens))
}

/// The section with the most tokens among atoms that are not empty; the first of equals.
fn main_section(atoms: &[Atom]) -> usize {
    let runs = atoms.chunk_by(|a, b| a.section == b.section).map(|run| (tokens(run), run[0].section));
    runs.rev().max_by_key(|&(tokens, _)| tokens).map_or(0, |(_, section)| section)
}

/// Finds the line of a byte by binary search.
struct LineIndex(Vec<usize>);

impl LineIndex {
    fn new(document: &str) -> Self {
        Self(document.bytes().enumerate().filter(|&(_, byte)| byte == b'\n').map(|(at, _)| at).collect())
    }

    fn line_of(&self, byte: usize) -> usize {
        self.0.partition_point(|&newline| newline < byte) + 1
    }
}
