//! Int8 dot products on AVX2 and AVX-512 VNNI.
#![expect(unsafe_code, reason = "vector loads and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::x86_64::*;

use super::dot::PreparedQuery;
use crate::dispatch::Path;

/// How far ahead of the row being read the next ones are asked for (bytes). The hardware's prefetcher stops at each
/// 4 KiB page; this reaches into the next.
const PREFETCH_BYTES: usize = 4096;

/// Rows dotted with AVX-512 VNNI. `vpdpbusd` multiplies unsigned by signed bytes, so a row's codes are offset by 128 (an
/// exclusive or), and `128 * sum(query)` is taken off again; both steps are exact modulo 2^32.
pub(super) fn dots_avx512(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(Path::Avx512.is_available(), "dispatch chose a path that this processor runs");
    assert!(codes.len() >= dots.len() * query.dimensions);
    assert!(query.padded.len() >= query.dimensions && query.padded.len().is_multiple_of(64));
    // SAFETY: the features were detected; the slices hold what the asserts say.
    unsafe { avx512(codes, query, dots) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn avx512(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    let dimensions = query.dimensions;
    let whole = dimensions / 64;
    let tail: __mmask64 = (1_u64 << (dimensions % 64)) - 1;
    let offset = _mm512_set1_epi8(-128);
    let correction = query.sum.wrapping_mul(128);
    let q = query.padded.as_ptr();
    let mut row = 0;
    // Four rows at once share each load of the query and hide the latency of the accumulation.
    while row + 4 <= dots.len() {
        // SAFETY: rows row..row+4 lie in `codes`; whole vectors end within a row, the masked one reads only its tail; the
        // padded query has a whole vector for each. Prefetching any address is allowed.
        unsafe {
            let base = codes.as_ptr().add(row * dimensions);
            let mut sums = [_mm512_setzero_si512(); 4];
            for chunk in 0..whole {
                let query_codes = _mm512_loadu_si512(q.add(chunk * 64).cast());
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let address = base.add(lane * dimensions + chunk * 64);
                    _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(PREFETCH_BYTES));
                    let row_codes = _mm512_xor_si512(_mm512_loadu_si512(address.cast()), offset);
                    *sum = _mm512_dpbusd_epi32(*sum, row_codes, query_codes);
                }
            }
            if tail != 0 {
                let query_codes = _mm512_loadu_si512(q.add(whole * 64).cast());
                for (lane, sum) in sums.iter_mut().enumerate() {
                    let loaded = _mm512_maskz_loadu_epi8(tail, base.add(lane * dimensions + whole * 64));
                    *sum = _mm512_dpbusd_epi32(*sum, _mm512_xor_si512(loaded, offset), query_codes);
                }
            }
            for (lane, sum) in sums.iter().enumerate() {
                dots[row + lane] = _mm512_reduce_add_epi32(*sum).wrapping_sub(correction);
            }
        }
        row += 4;
    }
    while row < dots.len() {
        // SAFETY: as above, for one row.
        unsafe {
            let base = codes.as_ptr().add(row * dimensions);
            let mut sum = _mm512_setzero_si512();
            for chunk in 0..whole {
                let row_codes = _mm512_xor_si512(_mm512_loadu_si512(base.add(chunk * 64).cast()), offset);
                sum = _mm512_dpbusd_epi32(sum, row_codes, _mm512_loadu_si512(q.add(chunk * 64).cast()));
            }
            if tail != 0 {
                let loaded = _mm512_maskz_loadu_epi8(tail, base.add(whole * 64));
                let query_codes = _mm512_loadu_si512(q.add(whole * 64).cast());
                sum = _mm512_dpbusd_epi32(sum, _mm512_xor_si512(loaded, offset), query_codes);
            }
            dots[row] = _mm512_reduce_add_epi32(sum).wrapping_sub(correction);
        }
        row += 1;
    }
}

/// Rows dotted with AVX2: bytes widened to 16 bits, then `vpmaddwd`, which is exact (`maddubs` would saturate).
pub(super) fn dots_avx2(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(Path::Avx2.is_available(), "dispatch chose a path that this processor runs");
    assert!(codes.len() >= dots.len() * query.dimensions && query.wide.len() >= query.dimensions);
    // SAFETY: the features were detected; the slices hold what the asserts say.
    unsafe { avx2(codes, query, dots) }
}

#[target_feature(enable = "avx2")]
unsafe fn avx2(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    let dimensions = query.dimensions;
    let whole = dimensions / 16;
    let q = query.wide.as_ptr();
    for (row, dot) in dots.iter_mut().enumerate() {
        let codes = &codes[row * dimensions..(row + 1) * dimensions];
        // SAFETY: `whole` vectors of 16 lie in the row and in the query.
        let sum = unsafe {
            let mut sums = [_mm256_setzero_si256(); 2];
            for chunk in 0..whole {
                let address = codes.as_ptr().add(chunk * 16);
                if chunk % 4 == 0 {
                    _mm_prefetch::<_MM_HINT_T0>(address.wrapping_add(PREFETCH_BYTES));
                }
                let wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(address.cast()));
                let product = _mm256_madd_epi16(wide, _mm256_loadu_si256(q.add(chunk * 16).cast()));
                sums[chunk % 2] = _mm256_add_epi32(sums[chunk % 2], product);
            }
            let sum = _mm256_add_epi32(sums[0], sums[1]);
            let half = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256::<1>(sum));
            let half = _mm_hadd_epi32(half, half);
            _mm_cvtsi128_si32(_mm_hadd_epi32(half, half))
        };
        let tail = codes[whole * 16..].iter().zip(&query.padded[whole * 16..]);
        *dot = sum.wrapping_add(tail.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>());
    }
}
