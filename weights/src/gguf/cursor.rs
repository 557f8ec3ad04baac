//! A bounds-checked cursor over the header of a GGUF file.

use crate::OpenError;

/// Reads little-endian values one after another. No read and no count goes past the end of the bytes.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    fn remaining(&self) -> usize {
        self.bytes.len() - self.offset
    }

    fn truncated(&self, what: &'static str, needed: u64) -> OpenError {
        OpenError::Truncated { what, offset: self.offset, needed, available: self.remaining() }
    }

    pub(super) fn take(&mut self, length: u64, what: &'static str) -> Result<&'a [u8], OpenError> {
        let taken = usize::try_from(length)
            .ok()
            .and_then(|length| self.offset.checked_add(length))
            .and_then(|end| self.bytes.get(self.offset..end))
            .ok_or_else(|| self.truncated(what, length))?;
        self.offset += taken.len();
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], OpenError> {
        let bytes = self.take(N as u64, what)?;
        Ok(*bytes.first_chunk().expect("take returned N bytes"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, OpenError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, OpenError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of items that each take at least `item_bytes_min`: refused when the rest of the file cannot hold them, so
    /// that a count can safely size an allocation.
    pub(super) fn count(&mut self, item_bytes_min: usize, what: &'static str) -> Result<usize, OpenError> {
        let count = self.u64(what)?;
        let needed = count.saturating_mul(item_bytes_min as u64);
        if needed > self.remaining() as u64 {
            return Err(self.truncated(what, needed));
        }
        Ok(usize::try_from(count).expect("the count is at most the length of a slice"))
    }

    pub(super) fn string(&mut self, what: &'static str) -> Result<String, OpenError> {
        let length = self.u64(what)?;
        let offset = self.offset;
        let bytes = self.take(length, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| OpenError::Malformed {
            format: "GGUF",
            reason: format!("{what} at offset {offset} is not UTF-8"),
        })
    }
}
