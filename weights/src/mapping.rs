//! The read-only memory map of a weight file: the only `unsafe` of this crate.

#![expect(unsafe_code, reason = "a memory map is a borrow of a file, which the compiler cannot check")]

use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;

use crate::OpenError;

/// A regular file mapped read-only. The mapping lives as long as this value.
#[derive(Debug)]
pub(crate) struct Mapping(Mmap);

impl Mapping {
    /// Maps a regular file; reads nothing yet.
    ///
    /// The file must not be changed while it is mapped: bytes that change underneath give wrong numbers, and a file cut
    /// short makes later reads fault (SIGBUS). Writers in this crate therefore write a new file and rename it into place.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        // Asked before opening, because opening a pipe without a writer blocks.
        if !fs_err::metadata(path)?.is_file() {
            return Err(OpenError::NotAFile(path.display().to_string()));
        }
        let file = fs_err::File::open(path)?;
        // SAFETY: the map is private to this value, read-only and only ever seen as `&[u8]`, for which every bit pattern is
        // valid. What stays with the operator is that no other process changes the file, as with any mapped library.
        let map = unsafe { Mmap::map(file.file()) }?;
        Ok(Self(map))
    }

    /// Tells the system that the pages wholly inside `range` are not needed soon; they are read again when touched.
    pub(crate) fn release(&self, range: Range<usize>) -> io::Result<()> {
        const PAGE_BYTES: usize = 4096;
        let start = range.start.next_multiple_of(PAGE_BYTES);
        let end = range.end.min(self.0.len()) / PAGE_BYTES * PAGE_BYTES;
        if start >= end {
            return Ok(());
        }
        #[cfg(unix)]
        {
            // SAFETY: dropping clean pages of a read-only file mapping loses nothing; the next access reads the same
            // bytes from the file again. No `&mut` to the mapping exists.
            unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) }
        }
        #[cfg(not(unix))]
        Ok(())
    }
}

impl AsRef<[u8]> for Mapping {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
