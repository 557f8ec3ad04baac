//! Splits a document into atoms: the smallest pieces that a chunk is made of, each with its tokens, its section and the
//! strength of the boundary after it.

use std::ops::Range;

use unicode_segmentation::UnicodeSegmentation;

use super::{TextFormat, TokenCounter};

/// How good a place to cut is, from worst to best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Boundary {
    Character,
    Word,
    Line,
    Sentence,
    Paragraph,
    Section,
}

/// A piece that is never cut.
#[derive(Debug, Clone)]
pub(super) struct Atom {
    pub(super) range: Range<usize>,
    pub(super) tokens: usize,
    pub(super) after: Boundary,
    /// Index into the outline's sections.
    pub(super) section: usize,
}

/// A heading and where it belongs.
#[derive(Debug)]
struct Section {
    title: Range<usize>,
    parent: Option<usize>,
    level: usize,
}

/// The atoms of a document; joined, their ranges are the document.
#[derive(Debug)]
pub(super) struct Outline {
    pub(super) atoms: Vec<Atom>,
    sections: Vec<Section>,
}

impl Outline {
    /// The titles above an atom, outermost first.
    pub(super) fn heading_path<'a>(&self, document: &'a str, section: usize) -> Vec<&'a str> {
        let mut path = Vec::new();
        let mut at = Some(section);
        while let Some(section) = at.and_then(|index| self.sections.get(index)) {
            if !section.title.is_empty() {
                path.push(&document[section.title.clone()]);
            }
            at = section.parent;
        }
        path.reverse();
        path
    }
}

/// A run of lines between blank lines, headings or fences.
#[derive(Debug)]
struct Block {
    range: Range<usize>,
    after: Boundary,
    section: usize,
    by_line: bool,
}

pub(super) fn split(document: &str, format: TextFormat, tokens_max: usize, counter: TokenCounter<'_>) -> Outline {
    let (blocks, sections) = blocks(document, format);
    let mut atoms = Vec::new();
    let mut splitter = Splitter { document, tokens_max, counter, atoms: &mut atoms };
    for block in blocks {
        splitter.block(&block);
    }
    Outline { atoms, sections }
}

/// Cuts the document into blocks; joined, they are the document.
fn blocks(document: &str, format: TextFormat) -> (Vec<Block>, Vec<Section>) {
    let mut sections = vec![Section { title: 0..0, parent: None, level: 0 }];
    let mut blocks: Vec<Block> = Vec::new();
    let mut fence: Option<(u8, usize)> = None;
    let mut start = 0;
    let mut at = 0;
    let mut section = 0;
    let mut previous_blank = false;
    let push = |blocks: &mut Vec<Block>, range: Range<usize>, after, section, by_line| {
        if !range.is_empty() {
            blocks.push(Block { range, after, section, by_line });
        }
    };
    for line in document.split_inclusive('\n') {
        let blank = line.trim().is_empty();
        let markdown = format == TextFormat::Markdown;
        let marker = if markdown { fence_marker(line) } else { None };
        if let Some((open, length)) = fence {
            // A fence closes with at least as many of the same mark, and nothing after them.
            let closes = marker.is_some_and(|(mark, count, bare)| mark == open && count >= length && bare);
            if closes {
                push(&mut blocks, start..at + line.len(), Boundary::Paragraph, section, true);
                start = at + line.len();
                fence = None;
            }
        } else if let Some((mark, count, _)) = marker {
            push(&mut blocks, start..at, Boundary::Paragraph, section, false);
            start = at;
            fence = Some((mark, count));
        } else if let Some((level, title)) = heading(line).filter(|_| markdown) {
            push(&mut blocks, start..at, Boundary::Paragraph, section, false);
            if let Some(last) = blocks.last_mut() {
                last.after = Boundary::Section;
            }
            start = at;
            let mut parent = Some(section);
            while parent.is_some_and(|index| sections[index].level >= level) {
                parent = parent.and_then(|index| sections[index].parent);
            }
            sections.push(Section { title: at + title.start..at + title.end, parent, level });
            section = sections.len() - 1;
        } else if previous_blank && !blank {
            push(&mut blocks, start..at, Boundary::Paragraph, section, format == TextFormat::Code);
            start = at;
        }
        previous_blank = blank && fence.is_none();
        at += line.len();
    }
    push(&mut blocks, start..document.len(), Boundary::Section, section, format == TextFormat::Code || fence.is_some());
    (blocks, sections)
}

/// Reads the mark of a code fence: which mark, how many, and whether nothing follows (CommonMark 4.5).
fn fence_marker(line: &str) -> Option<(u8, usize, bool)> {
    let trimmed = line.trim_start_matches(' ');
    if line.len() - trimmed.len() > 3 {
        return None;
    }
    let mark = trimmed.bytes().next().filter(|mark| b"`~".contains(mark))?;
    let count = trimmed.bytes().take_while(|&byte| byte == mark).count();
    let rest = &trimmed[count..];
    // Inline code on a line of its own is not a fence.
    (count >= 3 && !(mark == b'`' && rest.contains('`'))).then(|| (mark, count, rest.trim().is_empty()))
}

/// Reads an ATX heading (CommonMark 4.2): its level and where its title stands in the line.
fn heading(line: &str) -> Option<(usize, Range<usize>)> {
    let trimmed = line.trim_start_matches(' ');
    let indent = line.len() - trimmed.len();
    let level = trimmed.bytes().take_while(|&byte| byte == b'#').count();
    let rest = &trimmed[level..];
    if indent > 3 || !(1..=6).contains(&level) || !(rest.trim().is_empty() || rest.starts_with([' ', '\t'])) {
        return None;
    }
    let without_closing = rest.trim_end().trim_end_matches('#');
    let title =
        if without_closing.is_empty() || without_closing.ends_with([' ', '\t']) { without_closing } else { rest };
    let start = indent + level + (title.len() - title.trim_start().len());
    Some((level, start..start + title.trim().len()))
}

struct Splitter<'a, 'b> {
    document: &'a str,
    tokens_max: usize,
    counter: TokenCounter<'b>,
    atoms: &'a mut Vec<Atom>,
}

impl Splitter<'_, '_> {
    /// Sentences of prose or lines of code, so that chunks and overlaps can be cut between them.
    fn block(&mut self, block: &Block) {
        let text = &self.document[block.range.clone()];
        if block.by_line {
            let lines = text.split_inclusive('\n').map(str::len);
            self.pieces(block, lines.collect(), Boundary::Line);
        } else {
            let sentences = text.split_sentence_bounds().map(str::len);
            self.pieces(block, sentences.collect(), Boundary::Sentence);
        }
    }

    fn pieces(&mut self, block: &Block, lengths: Vec<usize>, between: Boundary) {
        let mut at = block.range.start;
        for length in lengths {
            let range = at..at + length;
            at = range.end;
            let after = if at == block.range.end { block.after } else { between };
            self.piece(range, after, block.section);
        }
    }

    fn piece(&mut self, range: Range<usize>, after: Boundary, section: usize) {
        let tokens = self.counter.count(&self.document[range.clone()]);
        if tokens <= self.tokens_max {
            self.atoms.push(Atom { range, tokens, after, section });
            return;
        }
        // A sentence too long for a chunk is cut between words, a word too long between characters.
        let text = &self.document[range.clone()];
        let words: Vec<usize> = text.split_word_bounds().map(str::len).collect();
        if words.len() > 1 {
            self.grouped(&range, &words, Boundary::Word, after, section);
        } else {
            let characters: Vec<usize> = text.graphemes(true).map(str::len).collect();
            // A single grapheme can hold any number of combining marks; it is cut between code points.
            let characters = if characters.len() > 1 { characters } else { text.chars().map(char::len_utf8).collect() };
            self.grouped(&range, &characters, Boundary::Character, after, section);
        }
    }

    /// Joins small parts again, up to an eighth of a chunk, so that a long sentence does not become a thousand atoms.
    fn grouped(&mut self, range: &Range<usize>, lengths: &[usize], between: Boundary, after: Boundary, section: usize) {
        let group_tokens = (self.tokens_max / 8).max(1);
        let mut start = range.start;
        let mut tokens = 0;
        let mut at = range.start;
        for &length in lengths {
            let part = self.counter.count(&self.document[at..at + length]);
            if at > start && part.saturating_add(tokens) > group_tokens {
                self.atoms.push(Atom { range: start..at, tokens, after: between, section });
                (start, tokens) = (at, 0);
            }
            if part > self.tokens_max && lengths.len() > 1 {
                // A single word that is too long: nothing is pending, because a part this large never joins a group.
                self.piece(at..at + length, between, section);
                start = at + length;
            } else {
                tokens = part.saturating_add(tokens);
            }
            at += length;
        }
        if start < range.end {
            self.atoms.push(Atom { range: start..range.end, tokens, after: between, section });
        }
        if let Some(last) = self.atoms.last_mut() {
            last.after = after;
        }
    }
}
