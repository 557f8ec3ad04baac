//! The bytes of an open file: a memory map or an owned buffer, shared without copying.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::OpenError;
use crate::mapping::Mapping;

/// The bytes of a weight file. Cloning and slicing copy nothing; the map is undone when the last slice is dropped.
#[derive(Debug, Clone)]
pub struct Storage {
    bytes: Bytes,
    mapping: Option<Arc<Mapping>>,
}

/// Lets [`Bytes`] keep the mapping alive.
struct SharedMapping(Arc<Mapping>);

impl AsRef<[u8]> for SharedMapping {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl Storage {
    /// Maps a regular file read-only. The file must not be changed while any slice of it lives.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let mapping = Arc::new(Mapping::open(path)?);
        Ok(Self { bytes: Bytes::from_owner(SharedMapping(Arc::clone(&mapping))), mapping: Some(mapping) })
    }

    /// All bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A slice that shares the storage; `None` when the range leaves the file.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        (range.start <= range.end && range.end <= self.bytes.len()).then(|| self.bytes.slice(range))
    }

    /// Lets the system take back the memory of a range that was read. A hint: bytes stay readable, failure is ignored.
    pub fn release(&self, range: Range<usize>) {
        if let Some(mapping) = &self.mapping {
            // Memory pressure is the only thing at stake, so an error here has no one to go to.
            let _ = mapping.release(range);
        }
    }
}

impl From<Vec<u8>> for Storage {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes: bytes.into(), mapping: None }
    }
}
