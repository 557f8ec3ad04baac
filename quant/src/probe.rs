//! How fast this machine reads memory: the ceiling that memory-bound kernels are measured against.
#![cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the widest loads there are"))]

use rayon::prelude::*;

use crate::dispatch::Path;

/// Reads every byte once, with the widest loads of this processor, and gives a checksum that keeps the reads alive.
pub fn read_all(bytes: &[u8], threads: usize) -> u64 {
    let part = bytes.len().div_ceil(threads.max(1)).next_multiple_of(4096).max(4096);
    if threads <= 1 {
        return read_part(bytes);
    }
    bytes.par_chunks(part).map(read_part).reduce(|| 0, |left, right| left ^ right)
}

fn read_part(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Path::Avx512.is_available() {
        // SAFETY: the features were detected.
        return unsafe { read_avx512(bytes) };
    }
    let _ = Path::best();
    read_plain(bytes)
}

fn read_plain(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; 8];
    let lines = bytes.chunks_exact(64);
    let rest = lines.remainder().iter().fold(0, |sum, byte| sum ^ u64::from(*byte));
    for line in lines {
        for (lane, word) in lanes.iter_mut().zip(line.chunks_exact(8)) {
            *lane ^= u64::from_le_bytes(word.try_into().expect("eight bytes"));
        }
    }
    lanes.iter().fold(rest, |sum, lane| sum ^ lane)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn read_avx512(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        _MM_HINT_T0, _mm_prefetch, _mm512_loadu_si512, _mm512_reduce_add_epi64, _mm512_setzero_si512, _mm512_xor_si512,
    };
    /// Lines read in one step, and how far ahead they are asked for (bytes).
    const LINES: usize = 8;
    const AHEAD: usize = 4096;
    let mut sums = [_mm512_setzero_si512(); LINES];
    let steps = bytes.len() / (64 * LINES);
    for step in 0..steps {
        for (line, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the line lies in the slice; any address may be prefetched.
            unsafe {
                let address = bytes.as_ptr().add((step * LINES + line) * 64);
                _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(AHEAD).cast());
                *sum = _mm512_xor_si512(*sum, _mm512_loadu_si512(address.cast()));
            }
        }
    }
    let sum = sums.into_iter().fold(_mm512_setzero_si512(), |left, right| _mm512_xor_si512(left, right));
    read_plain(&bytes[steps * 64 * LINES..]) ^ _mm512_reduce_add_epi64(sum) as u64
}
