//! Kernels of split rows on AVX2 and on AVX-512 with VBMI and VPOPCNTDQ.
#![expect(unsafe_code, reason = "vector loads and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::dot::PreparedQuery;
use super::sketch::{PLANES, Planes};
use super::split::{GROUP, View, place};
use crate::dispatch::Path;

/// How far ahead of the signs being read the next ones are asked for (bytes); see the int8 kernels.
const PREFETCH_BYTES: usize = 4096;

/// Whether the AVX-512 forms run here: they need more than [`Path::Avx512`] does.
pub(super) fn has_avx512() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        Path::Avx512.is_available()
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx512vpopcntdq")
    })
}

/// Asks for all of a row, which will be read soon: its signs lie a line a word, with those of its neighbours.
pub(super) fn prefetch(view: View<'_>, row: usize) {
    let rest = view.rest.as_ptr().wrapping_add(row * view.bytes);
    let signs = view.signs.as_ptr().wrapping_add(place(row, 0, view.words));
    // SAFETY: any address may be prefetched; SSE is part of x86-64.
    unsafe {
        for line in (0..view.bytes).step_by(64) {
            _mm_prefetch::<_MM_HINT_T0>(rest.wrapping_add(line).cast());
        }
        for word in 0..view.words {
            _mm_prefetch::<_MM_HINT_T0>(signs.wrapping_add(word * GROUP).cast());
        }
    }
}

/// Rows dotted with AVX-512 VNNI: seven-bit fields spread by VBMI, then as the kernel of whole codes does, offset by 128.
pub(super) fn dots_avx512(view: View<'_>, rows: &[u32], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(has_avx512(), "dispatch chose a path that this processor runs");
    // SAFETY: the features were detected.
    unsafe { dots_512(view, rows, query, dots) }
}

/// Which byte of 56 each byte of 64 starts in, and at which bit of its eight its field starts.
const SPREAD: ([u8; 64], [u8; 64]) = {
    let (mut bytes, mut bits) = ([0; 64], [0; 64]);
    let mut at = 0;
    while at < 64 {
        bytes[at] = (at / 8 * 7 + at % 8) as u8;
        bits[at] = (at % 8 * 7) as u8;
        at += 1;
    }
    (bytes, bits)
};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx512vbmi")]
unsafe fn dots_512(view: View<'_>, rows: &[u32], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(query.padded.len() >= 64 * view.words);
    // SAFETY: the constants are 64 bytes.
    let (spread, fields) =
        unsafe { (_mm512_loadu_si512(SPREAD.0.as_ptr().cast()), _mm512_loadu_si512(SPREAD.1.as_ptr().cast())) };
    let (low, offset) = (_mm512_set1_epi8(0x7f), _mm512_set1_epi8(-128));
    let correction = query.sum.wrapping_mul(128);
    for (row, dot) in rows.iter().zip(dots) {
        // The loads below take 64 bytes from each word's fields.
        let rest = &view.rest[*row as usize * view.bytes..];
        assert!(rest.len() >= 56 * (view.words - 1) + 64);
        let mut sums = [_mm512_setzero_si512(); 2];
        for word in 0..view.words {
            // SAFETY: inside the row and what follows it, and inside the query, as was checked above.
            let (packed, of_query) = unsafe {
                (
                    _mm512_loadu_si512(rest.as_ptr().add(56 * word).cast()),
                    _mm512_loadu_si512(query.padded.as_ptr().add(64 * word).cast()),
                )
            };
            let packed = _mm512_permutexvar_epi8(spread, packed);
            let seven = _mm512_and_si512(_mm512_multishift_epi64_epi8(fields, packed), low);
            let codes = _mm512_mask_add_epi8(seven, !view.sign_word(*row as usize, word), seven, offset);
            sums[word % 2] = _mm512_dpbusd_epi32(sums[word % 2], codes, of_query);
        }
        *dot = _mm512_reduce_add_epi32(_mm512_add_epi32(sums[0], sums[1])).wrapping_sub(correction);
    }
}

/// Rows dotted with AVX2: fields shifted into 16 bits by a multiplication, then multiplied as the kernel of whole codes does.
pub(super) fn dots_avx2(view: View<'_>, rows: &[u32], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(Path::Avx2.is_available(), "dispatch chose a path that this processor runs");
    for (row, dot) in rows.iter().zip(dots) {
        // SAFETY: the features were detected.
        *dot = unsafe { dot_256(view, *row as usize, query) };
    }
}

#[target_feature(enable = "avx2")]
unsafe fn dot_256(view: View<'_>, row: usize, query: &PreparedQuery) -> i32 {
    let rest = &view.rest[row * view.bytes..];
    let chunks = view.dimensions.div_ceil(16);
    assert!(rest.len() >= 14 * (chunks - 1) + 16 && query.wide.len() >= 16 * chunks);
    // Field i of eight starts at bit 7 i: in byte 7 i / 8, and ends in the one after it at most.
    let pairs = _mm256_setr_epi8(
        0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14,
    );
    // Moves a field that starts at bit s of its pair up to the topmost seven bits: 2^(9 - s).
    let lift = _mm256_setr_epi16(512, 4, 8, 16, 32, 64, 128, 256, 512, 4, 8, 16, 32, 64, 128, 256);
    let own = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, i16::MIN);
    let (weight, mut sum) = (_mm256_set1_epi16(128), _mm256_setzero_si256());
    for chunk in 0..chunks {
        // SAFETY: inside, as was checked above.
        let (packed, of_query) = unsafe {
            (
                _mm_loadu_si128(rest.as_ptr().add(14 * chunk).cast()),
                _mm256_loadu_si256(query.wide.as_ptr().add(16 * chunk).cast()),
            )
        };
        let pair = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(packed), pairs);
        let seven = _mm256_srli_epi16::<9>(_mm256_mullo_epi16(pair, lift));
        let signs = (view.sign_word(row, chunk / 4) >> (16 * (chunk % 4))) as u16;
        let signs = _mm256_and_si256(_mm256_set1_epi16(signs.cast_signed()), own);
        let negative = _mm256_and_si256(_mm256_cmpeq_epi16(signs, own), weight);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_sub_epi16(seven, negative), of_query));
    }
    let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
    let half = _mm_hadd_epi32(half, half);
    _mm_cvtsi128_si32(_mm_hadd_epi32(half, half))
}

/// Sums of the query's parts where rows have a sign, with AVX-512: eight rows a vector.
pub(super) fn sums_avx512(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    assert!(has_avx512(), "dispatch chose a path that this processor runs");
    // SAFETY: the features were detected.
    unsafe { sums_512(view, first, planes, sums) }
}

#[target_feature(enable = "avx512f,avx512vpopcntdq")]
unsafe fn sums_512(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    let signs = &view.signs[place(first, 0, view.words)..];
    for (block, out) in signs.chunks_exact(view.words * GROUP).zip(sums.chunks_exact_mut(GROUP)) {
        let mut counts = [_mm512_setzero_si512(); PLANES];
        for (words, parts) in block.chunks_exact(GROUP).zip(&planes.words) {
            // SAFETY: the chunk is eight words; any address may be prefetched.
            let words = unsafe {
                _mm_prefetch::<_MM_HINT_T0>(words.as_ptr().cast::<i8>().wrapping_add(PREFETCH_BYTES));
                _mm512_loadu_si512(words.as_ptr().cast())
            };
            for (count, part) in counts.iter_mut().zip(parts) {
                let common = _mm512_and_si512(words, _mm512_set1_epi64(part.cast_signed()));
                *count = _mm512_add_epi64(*count, _mm512_popcnt_epi64(common));
            }
        }
        let [one, two, four, minus_eight] = counts;
        let low = _mm512_add_epi64(one, _mm512_slli_epi64::<1>(two));
        let high = _mm512_sub_epi64(four, _mm512_slli_epi64::<1>(minus_eight));
        let sum = _mm512_cvtepi64_epi32(_mm512_add_epi64(low, _mm512_slli_epi64::<2>(high)));
        // SAFETY: the chunk is eight sums.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), sum) };
    }
}

/// As [`sums_avx512`] with AVX2: bits counted by a table of nibbles, four rows a vector.
pub(super) fn sums_avx2(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    assert!(Path::Avx2.is_available(), "dispatch chose a path that this processor runs");
    // SAFETY: the features were detected.
    unsafe { sums_256(view, first, planes, sums) }
}

#[target_feature(enable = "avx2")]
unsafe fn sums_256(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    let table = _mm256_setr_epi8(
        0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
    );
    let (nibble, zero) = (_mm256_set1_epi8(15), _mm256_setzero_si256());
    let signs = &view.signs[place(first, 0, view.words)..];
    for (block, out) in signs.chunks_exact(view.words * GROUP).zip(sums.chunks_exact_mut(GROUP)) {
        for (half, out) in out.chunks_exact_mut(GROUP / 2).enumerate() {
            let mut counts = [zero; PLANES];
            for (words, parts) in block.chunks_exact(GROUP).zip(&planes.words) {
                let words = &words[half * GROUP / 2..][..GROUP / 2];
                // SAFETY: the part is four words; any address may be prefetched.
                let words = unsafe {
                    _mm_prefetch::<_MM_HINT_T0>(words.as_ptr().cast::<i8>().wrapping_add(PREFETCH_BYTES));
                    _mm256_loadu_si256(words.as_ptr().cast())
                };
                for (count, part) in counts.iter_mut().zip(parts) {
                    let common = _mm256_and_si256(words, _mm256_set1_epi64x(part.cast_signed()));
                    let low = _mm256_shuffle_epi8(table, _mm256_and_si256(common, nibble));
                    let high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16::<4>(common), nibble));
                    *count = _mm256_add_epi64(*count, _mm256_sad_epu8(_mm256_add_epi8(low, high), zero));
                }
            }
            let [one, two, four, minus_eight] = counts;
            let low = _mm256_add_epi64(one, _mm256_slli_epi64::<1>(two));
            let high = _mm256_sub_epi64(four, _mm256_slli_epi64::<1>(minus_eight));
            let sum = _mm256_add_epi64(low, _mm256_slli_epi64::<2>(high));
            // The low half of each number: a sum fits 32 bits.
            let sum = _mm256_permutevar8x32_epi32(sum, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
            // SAFETY: the part is four sums.
            unsafe { _mm_storeu_si128(out.as_mut_ptr().cast(), _mm256_castsi256_si128(sum)) };
        }
    }
}
