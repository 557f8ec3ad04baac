//! The parts of a recall index as sections of a file, and back.
//!
//! Parts are taken one after another while the index goes on changing between them. That is sound because rows only grow, because a
//! frame says which rows count, and because whoever reads the file brings everything up that changed after the frame was taken. A
//! compaction moves rows: a frame from before it is void ([`Frame::epoch`]).
//!
//! Nothing of a row that was dead when the frame was taken is written: no word, no name, no vector.

use std::io::{self, Write};

use mneme_base::{MemoryId, TrustTier};
use mneme_quant::scan::SplitRows;

use super::bitmap::Bitmap;
use super::columns::{Columns, Interner, NEVER, NONE};
use super::duplicates::Duplicates;
use super::sections::{Damage, Plain, SectionReader, SectionWriter, damage, put_all, put_texts};
use super::text::{COUNT_BITS, TextIndex};
use super::vectors::VectorView;
use crate::domain::{MemoryKind, MemoryState};
use crate::gate::kind_number;

/// Rows of a vector section that are taken at once: 3 MB of codes, a millisecond.
const ROWS_AT_ONCE: usize = 8_192;
/// Terms whose postings are taken at once.
const TERMS_AT_ONCE: usize = 8_192;

/// Lends a part of the index for a moment; `None` gives up.
pub(crate) type Look<'a, Part> = dyn Fn(&mut dyn FnMut(&Part)) -> Option<()> + 'a;

/// What of an index is written.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    /// Rows from 0 on, dead ones included.
    pub(crate) rows: usize,
    /// The rows that were not dead.
    pub(crate) live: Bitmap,
    /// Which numbering of rows it belongs to.
    pub(crate) epoch: u64,
    /// Dimensions and rows of the two vector views.
    pub(crate) views: [(usize, usize); 2],
}

impl Frame {
    fn pick<T>(&self, value: impl Fn(usize) -> T, dead: T) -> impl Iterator<Item = T>
    where
        T: Copy,
    {
        (0..self.rows).map(move |at| if self.live.contains(at as u32) { value(at) } else { dead })
    }
}

/// The numbers of the sections. They are on disk: none is given a second meaning.
mod number {
    pub(super) const FRAME: u64 = 1;
    pub(super) const LIVE: u64 = 2;
    pub(super) const IDS: u64 = 3;
    pub(super) const NAMESPACES: u64 = 4;
    pub(super) const KINDS: u64 = 5;
    pub(super) const TRUSTS: u64 = 6;
    pub(super) const STATES: u64 = 7;
    pub(super) const SOURCES: u64 = 8;
    pub(super) const SPEAKERS: u64 = 9;
    pub(super) const THREADS: u64 = 10;
    pub(super) const POSITIONS: u64 = 11;
    pub(super) const VALID_FROM: u64 = 12;
    pub(super) const VALID_TO: u64 = 13;
    pub(super) const RECORDED_AT: u64 = 14;
    pub(super) const SUPERSEDED_AT: u64 = 15;
    pub(super) const CONTENTS: u64 = 16;
    pub(super) const CUES: u64 = 17;
    pub(super) const SIGNATURES: u64 = 18;
    pub(super) const NAMESPACE_NAMES: u64 = 20;
    pub(super) const SOURCE_NAMES: u64 = 21;
    pub(super) const SPEAKER_NAMES: u64 = 22;
    pub(super) const THREAD_NAMES: u64 = 23;
    pub(super) const LENGTHS: u64 = 30;
    pub(super) const POSTINGS: u64 = 31;
    pub(super) const TERMS: u64 = 32;
    pub(super) const FREQUENCIES: u64 = 33;
    /// Codes, scales and present rows of view 0; view 1 has them 10 further on.
    pub(super) const CODES: u64 = 40;
    pub(super) const SCALES: u64 = 41;
    pub(super) const PRESENT: u64 = 42;
    pub(super) const VIEW_STEP: u64 = 10;
}

/// The columns that are written, each taken on its own.
pub(crate) const COLUMN_SECTIONS: std::ops::RangeInclusive<u64> = number::IDS..=number::CUES;

/// Writes the frame itself.
pub(crate) fn write_frame(frame: &Frame, out: &mut SectionWriter<impl Write>) -> io::Result<()> {
    let mut bytes = Vec::new();
    let [(own_size, own_rows), (context_size, context_rows)] = frame.views;
    put_all([frame.rows, own_size, own_rows, context_size, context_rows].map(|n| n as u64), &mut bytes);
    out.begin(number::FRAME);
    out.write(&bytes)?;
    let mut bytes = Vec::new();
    put_all(frame.live.words().iter().copied(), &mut bytes);
    out.begin(number::LIVE);
    out.write(&bytes)
}

/// The bytes of one column; see [`COLUMN_SECTIONS`].
pub(crate) fn column_bytes(columns: &Columns, section: u64, frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(frame.rows * 8);
    let out = &mut bytes;
    match section {
        number::IDS => put_all(frame.pick(|at| u128::from_le_bytes(*columns.ids[at].as_bytes()), 0), out),
        number::NAMESPACES => put_all(frame.pick(|at| columns.namespaces[at], NONE), out),
        number::KINDS => put_all(frame.pick(|at| kind_number(columns.kinds[at]), 0), out),
        number::TRUSTS => put_all(frame.pick(|at| trust_number(columns.trusts[at]), 0), out),
        number::STATES => put_all(frame.pick(|at| state_number(columns.states[at]), 0), out),
        number::SOURCES => put_all(frame.pick(|at| columns.sources[at], NONE), out),
        number::SPEAKERS => put_all(frame.pick(|at| columns.speakers[at], NONE), out),
        number::THREADS => put_all(frame.pick(|at| columns.threads[at], NONE), out),
        number::POSITIONS => put_all(frame.pick(|at| columns.positions[at], 0), out),
        number::VALID_FROM => put_all(frame.pick(|at| columns.valid_from[at], 0), out),
        number::VALID_TO => put_all(frame.pick(|at| columns.valid_to[at], 0), out),
        number::RECORDED_AT => put_all(frame.pick(|at| columns.recorded_at[at], 0), out),
        number::SUPERSEDED_AT => put_all(frame.pick(|at| columns.superseded_at[at], NEVER), out),
        number::CONTENTS => put_all(frame.pick(|at| columns.contents[at], 0), out),
        _ => put_all(frame.pick(|at| columns.cues[at], 0), out),
    }
    bytes
}

/// The names that rows of the frame use, as `(section, bytes)`; others are left empty.
pub(crate) fn name_sections(columns: &Columns, frame: &Frame) -> Vec<(u64, Vec<u8>)> {
    let lists: [(u64, &Interner, &[u32]); 4] = [
        (number::NAMESPACE_NAMES, &columns.namespace_names, &columns.namespaces),
        (number::SOURCE_NAMES, &columns.source_names, &columns.sources),
        (number::SPEAKER_NAMES, &columns.speaker_names, &columns.speakers),
        (number::THREAD_NAMES, &columns.thread_names, &columns.threads),
    ];
    let section = |(number, names, column): (u64, &Interner, &[u32])| {
        let mut used = Bitmap::default();
        frame
            .live
            .rows()
            .map(|row| column[row as usize])
            .filter(|name| *name != NONE)
            .for_each(|name| used.insert(name));
        let mut bytes = Vec::new();
        put_texts(names.iter().map(|(name, text)| if used.contains(name) { text } else { "" }), &mut bytes);
        (number, bytes)
    };
    lists.into_iter().map(section).collect()
}

/// The signatures by which near duplicates are found.
pub(crate) fn signature_bytes(duplicates: &Duplicates, frame: &Frame) -> (u64, Vec<u8>) {
    let mut bytes = Vec::with_capacity(frame.rows * 8);
    put_all(frame.pick(|at| duplicates.signatures[at], 0), &mut bytes);
    (number::SIGNATURES, bytes)
}

/// The lengths of the texts.
pub(crate) fn length_bytes(text: &TextIndex, frame: &Frame) -> (u64, Vec<u8>) {
    let mut bytes = Vec::with_capacity(frame.rows * 2);
    put_all(frame.pick(|at| text.lengths.get(at).copied().unwrap_or(0), 0), &mut bytes);
    (number::LENGTHS, bytes)
}

/// Writes the postings of all terms. `look` lends the text index for a moment; `None` gives up.
pub(crate) fn write_postings(
    frame: &Frame,
    out: &mut SectionWriter<impl Write>,
    look: &Look<'_, TextIndex>,
) -> io::Result<Option<()>> {
    let mut terms: Vec<u64> = Vec::new();
    if look(&mut |text| terms = text.terms.keys().copied().collect()).is_none() {
        return Ok(None);
    }
    let mut frequencies: Vec<u32> = Vec::with_capacity(terms.len());
    out.begin(number::POSTINGS);
    for some in terms.chunks(TERMS_AT_ONCE) {
        let mut bytes = Vec::new();
        let taken = look(&mut |text| {
            for term in some {
                let postings = text.terms.get(term).map_or(&[][..], Vec::as_slice);
                let before = bytes.len();
                put_all(
                    postings.iter().copied().filter(|posting| frame.live.contains(posting >> COUNT_BITS)),
                    &mut bytes,
                );
                frequencies.push(((bytes.len() - before) / 4) as u32);
            }
        });
        if taken.is_none() {
            return Ok(None);
        }
        out.write(&bytes)?;
    }
    let used = || terms.iter().zip(&frequencies).filter(|(_, frequency)| **frequency > 0);
    let mut bytes = Vec::with_capacity(terms.len() * 8);
    put_all(used().map(|(term, _)| *term), &mut bytes);
    out.begin(number::TERMS);
    out.write(&bytes)?;
    bytes.clear();
    put_all(used().map(|(_, frequency)| *frequency), &mut bytes);
    out.begin(number::FREQUENCIES);
    out.write(&bytes)?;
    Ok(Some(()))
}

/// Writes a vector view. `look` lends it for a moment; `None` gives up.
pub(crate) fn write_view(
    view_number: usize,
    frame: &Frame,
    out: &mut SectionWriter<impl Write>,
    look: &Look<'_, VectorView>,
) -> io::Result<Option<()>> {
    let (size, rows) = frame.views[view_number];
    let step = number::VIEW_STEP * view_number as u64;
    let (mut bytes, mut codes) = (Vec::new(), vec![0; size]);
    out.begin(number::CODES + step);
    for start in (0..rows).step_by(ROWS_AT_ONCE) {
        let end = rows.min(start + ROWS_AT_ONCE);
        bytes.clear();
        let mut take = |view: &VectorView| {
            for row in start..end {
                // A row that died between the frame and its removal from the view is not yet zero.
                match frame.live.contains(row as u32).then(|| view.codes.get(row, &mut codes)) {
                    Some(Ok(())) => bytes.extend(codes.iter().map(|code| code.cast_unsigned())),
                    _ => bytes.resize(bytes.len() + size, 0),
                }
            }
        };
        if look(&mut take).is_none() {
            return Ok(None);
        }
        out.write(&bytes)?;
    }
    let (mut scales, mut present) = (Vec::new(), Bitmap::default());
    let taken = look(&mut |view| {
        scales = view.codes.scales()[..rows].to_vec();
        present = view.present.clone();
    });
    if taken.is_none() {
        return Ok(None);
    }
    present.intersect(&frame.live);
    present.cut(rows);
    bytes.clear();
    put_all(scales, &mut bytes);
    out.begin(number::SCALES + step);
    out.write(&bytes)?;
    bytes.clear();
    put_all(present.words().iter().copied(), &mut bytes);
    out.begin(number::PRESENT + step);
    out.write(&bytes)?;
    Ok(Some(()))
}

/// Reads the frame.
pub(crate) fn read_frame(reader: &SectionReader) -> Result<Frame, Damage> {
    let numbers: Vec<u64> = reader.numbers(number::FRAME, 5)?;
    let [rows, own_size, own_rows, context_size, context_rows] = [0, 1, 2, 3, 4].map(|at| numbers[at] as usize);
    if rows > super::text::ROWS_MAX as usize || own_rows > rows || context_rows > rows {
        return damage(format!("says it has {rows} rows, {own_rows} and {context_rows} vectors"));
    }
    let words = reader.bytes(number::LIVE)?;
    let mut live = Bitmap::from_words(words.chunks_exact(8).map(u64::take).collect());
    live.cut(rows);
    Ok(Frame { rows, live, epoch: 0, views: [(own_size, own_rows), (context_size, context_rows)] })
}

/// Reads the columns.
pub(crate) fn read_columns(reader: &SectionReader, frame: &Frame) -> Result<Columns, Damage> {
    let rows = frame.rows;
    let names = |section| reader.texts(section).map(Interner::from_names);
    let checked = |section: u64, names: &Interner, none: bool| -> Result<Vec<u32>, Damage> {
        let column: Vec<u32> = reader.numbers(section, rows)?;
        let count = names.iter().count() as u32;
        let wrong = |at: u32| column[at as usize] >= count && !(none && column[at as usize] == NONE);
        match frame.live.rows().find(|row| wrong(*row)) {
            Some(row) => damage(format!("row {row} names what section {section} does not have")),
            None => Ok(column),
        }
    };
    let (namespace_names, source_names) = (names(number::NAMESPACE_NAMES)?, names(number::SOURCE_NAMES)?);
    let (speaker_names, thread_names) = (names(number::SPEAKER_NAMES)?, names(number::THREAD_NAMES)?);
    let ids: Vec<u128> = reader.numbers(number::IDS, rows)?;
    let of = |section, from: &dyn Fn(u8) -> Option<()>| -> Result<Vec<u8>, Damage> {
        let column: Vec<u8> = reader.numbers(section, rows)?;
        match column.iter().find(|byte| from(**byte).is_none()) {
            Some(byte) => damage(format!("section {section} holds an unknown number {byte}")),
            None => Ok(column),
        }
    };
    let kinds = of(number::KINDS, &|byte| kind_of(byte).map(drop))?;
    let trusts = of(number::TRUSTS, &|byte| trust_of(byte).map(drop))?;
    let states = of(number::STATES, &|byte| state_of(byte).map(drop))?;
    let mut columns = Columns {
        ids: ids.into_iter().map(|id| MemoryId::from_bytes(id.to_le_bytes())).collect(),
        namespaces: checked(number::NAMESPACES, &namespace_names, false)?,
        kinds: kinds.into_iter().filter_map(kind_of).collect(),
        trusts: trusts.into_iter().filter_map(trust_of).collect(),
        states: states.into_iter().filter_map(state_of).collect(),
        sources: checked(number::SOURCES, &source_names, false)?,
        speakers: checked(number::SPEAKERS, &speaker_names, true)?,
        threads: checked(number::THREADS, &thread_names, true)?,
        positions: reader.numbers(number::POSITIONS, rows)?,
        valid_from: reader.numbers(number::VALID_FROM, rows)?,
        valid_to: reader.numbers(number::VALID_TO, rows)?,
        recorded_at: reader.numbers(number::RECORDED_AT, rows)?,
        superseded_at: reader.numbers(number::SUPERSEDED_AT, rows)?,
        contents: reader.numbers(number::CONTENTS, rows)?,
        cues: reader.numbers(number::CUES, rows)?,
        live_count: frame.live.count(),
        live: frame.live.clone(),
        namespace_names,
        source_names,
        speaker_names,
        thread_names,
        ..Columns::default()
    };
    columns.link();
    Ok(columns)
}

/// Reads the text index.
pub(crate) fn read_text(reader: &SectionReader, frame: &Frame) -> Result<TextIndex, Damage> {
    let lengths: Vec<u16> = reader.numbers(number::LENGTHS, frame.rows)?;
    let terms = reader.bytes(number::TERMS)?;
    let count = terms.len() / 8;
    let frequencies: Vec<u32> = reader.numbers(number::FREQUENCIES, count)?;
    let postings = reader.bytes(number::POSTINGS)?;
    let mut text = TextIndex {
        length_sum: lengths.iter().map(|length| u64::from(*length)).sum(),
        live: frame.live.count(),
        lengths,
        ..TextIndex::default()
    };
    text.terms.reserve(count);
    let mut rest = postings.as_slice();
    for (term, frequency) in terms.chunks_exact(8).map(u64::take).zip(frequencies) {
        let Some((of_term, after)) = rest.split_at_checked(frequency as usize * 4) else {
            return damage("has fewer postings than its terms say");
        };
        let list: Vec<u32> = of_term.chunks_exact(4).map(u32::take).collect();
        // Ascending, so that the last is the largest.
        if list.last().is_some_and(|last| (last >> COUNT_BITS) as usize >= frame.rows) || !list.is_sorted() {
            return damage("has postings of rows that it does not have");
        }
        text.terms.insert(term, list);
        rest = after;
    }
    Ok(text)
}

/// Reads a vector view.
pub(crate) fn read_view(view_number: usize, reader: &SectionReader, frame: &Frame) -> Result<VectorView, Damage> {
    let (dimensions, rows) = frame.views[view_number];
    let step = number::VIEW_STEP * view_number as u64;
    let scales: Vec<f32> = reader.numbers(number::SCALES + step, rows)?;
    let codes = read_codes(view_number, reader, dimensions, &scales)?;
    let words = reader.bytes(number::PRESENT + step)?;
    let mut present = Bitmap::from_words(words.chunks_exact(8).map(u64::take).collect());
    present.cut(rows);
    present.grow(rows);
    let count = present.count();
    Ok(VectorView { codes, present, count, ..VectorView::default() })
}

fn read_codes(
    view_number: usize,
    reader: &SectionReader,
    dimensions: usize,
    scales: &[f32],
) -> Result<SplitRows, Damage> {
    let section = number::CODES + number::VIEW_STEP * view_number as u64;
    let (length, rows) = (reader.length(section)?, scales.len());
    if Some(length) != rows.checked_mul(dimensions).map(|length| length as u64) {
        return damage(format!("view {view_number} has {length} codes for {rows} rows of {dimensions}"));
    }
    if rows == 0 {
        return Ok(if dimensions == 0 { SplitRows::default() } else { split_rows(dimensions)? });
    }
    let mut codes = split_rows(dimensions)?;
    codes.reserve_exact(rows);
    codes.resize(rows);
    // Block by block, so that there are never two copies of all codes.
    let (mut at, mut row) = (0, vec![0; dimensions]);
    reader.each_block(section, ROWS_AT_ONCE * dimensions, &mut |block| {
        for bytes in block.chunks_exact(dimensions) {
            row.iter_mut().zip(bytes).for_each(|(code, byte)| *code = byte.cast_signed());
            codes.set(at, &row, scales[at]).expect("there are as many rows as the section's length says");
            at += 1;
        }
    })?;
    Ok(codes)
}

fn split_rows(dimensions: usize) -> Result<SplitRows, Damage> {
    SplitRows::new(dimensions).or_else(|error| damage(error.to_string()))
}

/// Reads the signatures.
pub(crate) fn read_duplicates(reader: &SectionReader, frame: &Frame) -> Result<Duplicates, Damage> {
    let mut duplicates = Duplicates::default();
    for signature in reader.numbers(number::SIGNATURES, frame.rows)? {
        duplicates.push(signature);
    }
    Ok(duplicates)
}

const fn kind_of(number: u8) -> Option<MemoryKind> {
    Some(match number {
        0 => MemoryKind::Note,
        1 => MemoryKind::Message,
        2 => MemoryKind::Fact,
        3 => MemoryKind::Preference,
        4 => MemoryKind::Chunk,
        5 => MemoryKind::Event,
        6 => MemoryKind::Procedure,
        _ => return None,
    })
}

const fn trust_number(trust: TrustTier) -> u8 {
    match trust {
        TrustTier::Reported => 1,
        TrustTier::Observed => 2,
        TrustTier::User => 3,
        _ => 0,
    }
}

const fn trust_of(number: u8) -> Option<TrustTier> {
    Some(match number {
        0 => TrustTier::Untrusted,
        1 => TrustTier::Reported,
        2 => TrustTier::Observed,
        3 => TrustTier::User,
        _ => return None,
    })
}

const fn state_number(state: MemoryState) -> u8 {
    match state {
        MemoryState::Active => 0,
        MemoryState::Quarantined => 1,
        MemoryState::Superseded => 2,
    }
}

const fn state_of(number: u8) -> Option<MemoryState> {
    Some(match number {
        0 => MemoryState::Active,
        1 => MemoryState::Quarantined,
        2 => MemoryState::Superseded,
        _ => return None,
    })
}
