//! A file of checked sections: what the recall index is written down as.
//!
//! ```text
//! "MNEMEIX1"                         8 bytes
//! section bytes, one after another
//! table: per section number, offset, length (u64 each), BLAKE3 (32 bytes)
//! sections (u64), BLAKE3 of table and count (32 bytes), "MNEMEIX1"
//! ```
//! All numbers are little-endian. A reader trusts nothing: lengths are compared with the file before anything is allocated, and
//! each section is hashed while it is read. Whatever does not fit is a [`Damage`], after which the index is built anew.

use std::fs::File;
use std::io::{self, Write};

use super::halves::read_at;

const MAGIC: &[u8; 8] = b"MNEMEIX1";
/// Bytes of a row of the table.
const ROW_BYTES: usize = 3 * 8 + 32;
/// Bytes after the table.
const END_BYTES: usize = 8 + 32 + 8;
/// More sections than this no writer of ours makes.
const SECTIONS_MAX: u64 = 256;
/// What is read and hashed at once (bytes): fits a core's cache.
const BLOCK_BYTES: usize = 1 << 20;

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Damage {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not as it was written, or not of this format.
    #[error("{0}")]
    Content(String),
}

/// A file whose content makes no sense.
pub(crate) fn damage<T>(problem: impl Into<String>) -> Result<T, Damage> {
    Err(Damage::Content(problem.into()))
}

/// A number with a fixed width on disk.
pub(crate) trait Plain: Copy {
    /// Its width (bytes).
    const BYTES: usize;
    /// Appends it.
    fn put(self, bytes: &mut Vec<u8>);
    /// Reads it from exactly [`Self::BYTES`] bytes.
    fn take(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($kind:ty),*) => {$(
        impl Plain for $kind {
            const BYTES: usize = size_of::<$kind>();
            fn put(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&self.to_le_bytes());
            }
            fn take(bytes: &[u8]) -> Self {
                <$kind>::from_le_bytes(bytes.try_into().expect("the caller cuts pieces of this width"))
            }
        }
    )*};
}
plain!(u8, u16, u32, u64, i64, f32, u128);

/// Appends a column's numbers.
pub(crate) fn put_all<T: Plain>(values: impl IntoIterator<Item = T>, bytes: &mut Vec<u8>) {
    values.into_iter().for_each(|value| value.put(bytes));
}

struct Row {
    number: u64,
    offset: u64,
    length: u64,
    hash: [u8; 32],
}

/// Writes sections one after another.
pub(crate) struct SectionWriter<W: Write> {
    out: W,
    offset: u64,
    table: Vec<Row>,
    open: Option<(u64, u64, blake3::Hasher)>,
}

impl<W: Write> SectionWriter<W> {
    pub(crate) fn new(mut out: W) -> io::Result<Self> {
        out.write_all(MAGIC)?;
        Ok(Self { out, offset: MAGIC.len() as u64, table: Vec::new(), open: None })
    }

    /// Ends the section before and begins the next.
    pub(crate) fn begin(&mut self, number: u64) {
        self.end();
        self.open = Some((number, self.offset, blake3::Hasher::new()));
    }

    /// Adds to the section that was begun.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if let Some((_, _, hasher)) = &mut self.open {
            hasher.update(bytes);
        }
        self.out.write_all(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }

    fn end(&mut self) {
        if let Some((number, offset, hasher)) = self.open.take() {
            let length = self.offset - offset;
            self.table.push(Row { number, offset, length, hash: *hasher.finalize().as_bytes() });
        }
    }

    /// Writes the table and gives the output back, with the bytes written.
    pub(crate) fn finish(mut self) -> io::Result<(W, u64)> {
        self.end();
        let mut tail = Vec::new();
        for row in &self.table {
            put_all([row.number, row.offset, row.length], &mut tail);
            tail.extend_from_slice(&row.hash);
        }
        (self.table.len() as u64).put(&mut tail);
        let hash = blake3::hash(&tail);
        tail.extend_from_slice(hash.as_bytes());
        tail.extend_from_slice(MAGIC);
        self.out.write_all(&tail)?;
        Ok((self.out, self.offset + tail.len() as u64))
    }
}

/// Reads sections; several threads may read at once.
pub(crate) struct SectionReader {
    file: File,
    table: Vec<Row>,
}

impl SectionReader {
    /// Reads the table of a file.
    pub(crate) fn open(file: File) -> Result<Self, Damage> {
        let length = file.metadata()?.len();
        let smallest = (MAGIC.len() + END_BYTES) as u64;
        if length < smallest {
            return damage(format!("has {length} bytes, at least {smallest} are expected"));
        }
        let mut end = [0; END_BYTES];
        read_at(&file, &mut end, length - END_BYTES as u64)?;
        let count = u64::take(&end[..8]);
        if &end[40..] != MAGIC || count > SECTIONS_MAX {
            return damage("does not end as it should");
        }
        let table_bytes = count as usize * ROW_BYTES;
        let Some(table_at) = (length - smallest).checked_sub(table_bytes as u64).map(|at| at + MAGIC.len() as u64)
        else {
            return damage("is shorter than its table");
        };
        let mut tail = vec![0; table_bytes + 8];
        read_at(&file, &mut tail, table_at)?;
        if blake3::hash(&tail).as_bytes() != &end[8..40] {
            return damage("has a damaged table");
        }
        let mut table = Vec::with_capacity(count as usize);
        for row in tail[..table_bytes].chunks_exact(ROW_BYTES) {
            let [number, offset, length] = [0, 8, 16].map(|at| u64::take(&row[at..at + 8]));
            if offset.checked_add(length).is_none_or(|end| end > table_at) {
                return damage(format!("section {number} lies outside of it"));
            }
            let mut hash = [0; 32];
            hash.copy_from_slice(&row[24..]);
            table.push(Row { number, offset, length, hash });
        }
        Ok(Self { file, table })
    }

    fn row(&self, number: u64) -> Result<&Row, Damage> {
        match self.table.iter().find(|row| row.number == number) {
            Some(row) => Ok(row),
            None => damage(format!("has no section {number}")),
        }
    }

    /// Bytes of a section; no more than the file has.
    pub(crate) fn length(&self, number: u64) -> Result<u64, Damage> {
        Ok(self.row(number)?.length)
    }

    /// Reads a section whole and checks it.
    pub(crate) fn bytes(&self, number: u64) -> Result<Vec<u8>, Damage> {
        let mut bytes = Vec::with_capacity(self.length(number)? as usize);
        self.each_block(number, BLOCK_BYTES, &mut |block| bytes.extend_from_slice(block))?;
        Ok(bytes)
    }

    /// Reads a section in blocks of `block_bytes`, the last one shorter. What they held counts only when this returns without damage.
    pub(crate) fn each_block(
        &self,
        number: u64,
        block_bytes: usize,
        visit: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Damage> {
        let row = self.row(number)?;
        let mut block = vec![0; block_bytes.min(row.length as usize)];
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        while at < row.length {
            let size = (row.length - at).min(block_bytes as u64) as usize;
            read_at(&self.file, &mut block[..size], row.offset + at)?;
            hasher.update(&block[..size]);
            visit(&block[..size]);
            at += size as u64;
        }
        if hasher.finalize().as_bytes() != &row.hash {
            return damage(format!("section {number} is not as it was written"));
        }
        Ok(())
    }

    /// Reads a section of `count` numbers.
    pub(crate) fn numbers<T: Plain>(&self, number: u64, count: usize) -> Result<Vec<T>, Damage> {
        let bytes = self.bytes(number)?;
        if bytes.len() != count * T::BYTES {
            return damage(format!("section {number} has {} bytes, {count} numbers are expected", bytes.len()));
        }
        Ok(bytes.chunks_exact(T::BYTES).map(T::take).collect())
    }

    /// Reads a section of texts, as [`put_texts`] wrote them.
    pub(crate) fn texts(&self, number: u64) -> Result<Vec<Box<str>>, Damage> {
        let bytes = self.bytes(number)?;
        let mut texts = Vec::new();
        let mut rest = bytes.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<4>() {
            let Some((text, after)) = after.split_at_checked(u32::from_le_bytes(*length) as usize) else {
                return damage(format!("section {number} ends within a text"));
            };
            match std::str::from_utf8(text) {
                Ok(text) => texts.push(text.into()),
                Err(_) => return damage(format!("section {number} holds no text")),
            }
            rest = after;
        }
        Ok(texts)
    }
}

/// Appends texts, each with its length before it.
pub(crate) fn put_texts<'a>(texts: impl IntoIterator<Item = &'a str>, bytes: &mut Vec<u8>) {
    for text in texts {
        (text.len() as u32).put(bytes);
        bytes.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> Vec<u8> {
        let mut writer = SectionWriter::new(Vec::new()).unwrap();
        writer.begin(7);
        let mut bytes = Vec::new();
        put_all([1_u32, 2, 3], &mut bytes);
        writer.write(&bytes).unwrap();
        writer.begin(9);
        let mut bytes = Vec::new();
        put_texts(["", "Ärger", "b"], &mut bytes);
        writer.write(&bytes).unwrap();
        writer.finish().unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<(Vec<u32>, Vec<Box<str>>), Damage> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let reader = SectionReader::open(file)?;
        Ok((reader.numbers(7, 3)?, reader.texts(9)?))
    }

    #[test]
    fn sections_come_back_as_they_were_written() {
        let (numbers, texts) = read(&written()).unwrap();
        assert_eq!(numbers, [1, 2, 3]);
        assert_eq!(texts.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["", "Ärger", "b"]);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let whole = written();
        for at in 0..whole.len() {
            let mut flipped = whole.clone();
            flipped[at] ^= 1 << (at % 8);
            // The first magic is not read: the last one stands for it.
            assert!(at < 8 || read(&flipped).is_err(), "bit of byte {at}");
            assert!(read(&whole[..at]).is_err(), "cut at {at}");
        }
    }
}
