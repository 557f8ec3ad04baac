//! Export and import of memories as JSON lines: one header, then one memory a line. Streaming in both directions.
//!
//! Lossless: ids, times, provenance, chains, evidence and state come back as they were. Three things are the store's own and
//! are made anew: the LSN, vectors (imported memories wait for theirs), and operation ids. Everything passes the write gate
//! again, so that a file from elsewhere brings no secrets and nothing out of bounds.

use std::io::{BufRead, Read, Write};

use mneme_base::{Lsn, MemoryId, Namespace};
use serde::{Deserialize, Serialize};

use crate::domain::Memory;
use crate::store::{MemoryStore, Refusal, Scan, StoreError};

/// The format of the file that this build writes.
pub const EXPORT_FORMAT: u32 = 1;
/// A line longer than this is refused before it is read into memory (bytes): the largest memory, every byte escaped.
const LINE_BYTES_MAX: u64 = 2 << 20;
/// Memories of one page of an export.
const EXPORT_PAGE: usize = 1_000;
/// Memories of one transaction of an import: one fsync for all of them.
const IMPORT_BATCH: usize = 5_000;
/// An import reports at most this many refusals one by one.
const REFUSALS_MAX: usize = 100;

/// The first line of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    mneme_export: u32,
    lsn: Lsn,
}

/// Why an export or import stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The file could not be read or written.
    #[error("could not {doing} the file")]
    Io {
        /// Which of the two.
        doing: &'static str,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A line is not what it should be. Everything before it has been imported.
    #[error("line {line} {problem}")]
    Malformed {
        /// Which line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// The file was written by a newer version.
    #[error("export has format {found}, this build reads up to {EXPORT_FORMAT}")]
    FormatTooNew {
        /// Its format.
        found: u32,
    },
    /// The store failed.
    #[error("store failed during the transfer")]
    Store(#[from] StoreError),
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ImportReport {
    /// Memories taken in.
    pub imported: u64,
    /// Memories that were there already, by id or by content.
    pub known: u64,
    /// Memories that the gate refused.
    pub refused: u64,
    /// The first of them, with the reason.
    pub refusals: Vec<(MemoryId, Refusal)>,
}

impl ImportReport {
    /// Adds another report.
    pub fn add(&mut self, other: Self) {
        self.imported += other.imported;
        self.known += other.known;
        self.refused += other.refused;
        self.refusals.extend(other.refusals);
        self.refusals.truncate(REFUSALS_MAX);
    }
}

/// Writes every memory, or those of a namespace, in id order. Returns how many. Memories that are remembered meanwhile may or
/// may not be in it; none is in it twice.
pub fn export(
    store: &dyn MemoryStore,
    namespace: Option<&Namespace>,
    out: &mut dyn Write,
) -> Result<u64, TransferError> {
    write_line(out, &Header { mneme_export: EXPORT_FORMAT, lsn: store.stats().lsn })?;
    let mut scan = Scan { namespace: namespace.cloned(), after: None, limit: EXPORT_PAGE };
    let mut count = 0;
    loop {
        let page = store.scan(&scan)?;
        let Some(last) = page.last() else { break };
        scan.after = Some(last.id);
        for memory in &page {
            write_line(out, memory)?;
        }
        count += page.len() as u64;
    }
    out.flush().map_err(|source| TransferError::Io { doing: "write", source })?;
    Ok(count)
}

/// Reads an export into a store. Memories that are there already are left as they are, so that an import can be repeated.
pub fn import(store: &dyn MemoryStore, input: &mut dyn BufRead) -> Result<ImportReport, TransferError> {
    let mut lines = Lines { input, number: 0 };
    let malformed = |line, error: serde_json::Error| TransferError::Malformed { line, problem: error.to_string() };
    let Some(first) = lines.next_line()? else {
        return Err(TransferError::Malformed { line: 1, problem: "is missing, the header is expected".into() });
    };
    let header: Header = serde_json::from_slice(&first).map_err(|error| malformed(1, error))?;
    if header.mneme_export > EXPORT_FORMAT {
        return Err(TransferError::FormatTooNew { found: header.mneme_export });
    }
    let mut report = ImportReport::default();
    let mut batch: Vec<Memory> = Vec::new();
    while let Some(line) = lines.next_line()? {
        match serde_json::from_slice(&line) {
            Ok(memory) => batch.push(memory),
            Err(error) => {
                report.add(store.import(std::mem::take(&mut batch))?);
                return Err(malformed(lines.number, error));
            }
        }
        if batch.len() >= IMPORT_BATCH {
            report.add(store.import(std::mem::take(&mut batch))?);
        }
    }
    report.add(store.import(batch)?);
    Ok(report)
}

struct Lines<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
}

impl Lines<'_> {
    /// The next line that is not empty, without its end.
    fn next_line(&mut self) -> Result<Option<Vec<u8>>, TransferError> {
        loop {
            self.number += 1;
            let mut line = Vec::new();
            let mut limited = Read::take(&mut *self.input, LINE_BYTES_MAX + 1);
            let read =
                limited.read_until(b'\n', &mut line).map_err(|source| TransferError::Io { doing: "read", source })?;
            if read == 0 {
                return Ok(None);
            }
            if line.len() as u64 > LINE_BYTES_MAX {
                let problem = format!("is longer than {LINE_BYTES_MAX} bytes");
                return Err(TransferError::Malformed { line: self.number, problem });
            }
            while line.last().is_some_and(u8::is_ascii_whitespace) {
                line.pop();
            }
            if !line.is_empty() {
                return Ok(Some(line));
            }
        }
    }
}

fn write_line(out: &mut dyn Write, value: &impl Serialize) -> Result<(), TransferError> {
    let mut bytes = serde_json::to_vec(value).expect("plain data with string keys always serialises");
    bytes.push(b'\n');
    out.write_all(&bytes).map_err(|source| TransferError::Io { doing: "write", source })
}
