//! Bytes that start at a cache line: a vector or a row of a tile that straddles two lines costs several times as much.
#![expect(unsafe_code, reason = "cache lines seen as bytes")]

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer of whole cache lines.
#[derive(Clone, Default)]
pub(super) struct Lines(Vec<Line>);

impl Lines {
    /// Zeros, rounded up to whole lines.
    pub(super) fn zeroed(bytes: usize) -> Self {
        Self(vec![Line([0; 64]); bytes.div_ceil(64)])
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: a line is exactly 64 initialised bytes without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 64) }
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and every byte pattern is a line.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }

    pub(super) fn signed(&self) -> &[i8] {
        // SAFETY: as above, for signed bytes.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 64) }
    }

    pub(super) fn signed_mut(&mut self) -> &mut [i8] {
        // SAFETY: as above, for signed bytes.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 64) }
    }
}
