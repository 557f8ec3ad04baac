//! Products on AVX2. `vpmaddubsw` multiplies unsigned codes with signed activations and adds pairs in 16 bits: codes of at
//! most 4 bits cannot saturate there, and 8-bit codes go as two halves of 4 bits.
#![expect(unsafe_code, reason = "vector loads, stores and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::x86_64::*;

use super::Job;
use super::activations::read_four;
use super::packed::TILE;
use crate::dispatch::Path;

/// Inputs that one step decodes: four quads.
const STEP: usize = 16;
/// Rows for which codes are decoded once.
const ROWS_MAX: usize = 4;

/// Computes the outputs of tiles `first..end`.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize) {
    assert!(Path::Avx2.is_available(), "dispatch chose a path that this processor runs");
    job.check(end);
    for tile in first..end {
        let mut row = 0;
        while row < job.activations.rows {
            // SAFETY: the features were detected; `Job::check` holds what the kernels index by; the rows exist.
            row += unsafe {
                match (job.layout.bits, job.activations.rows - row) {
                    (8, ROWS_MAX..) => tile_rows::<8, ROWS_MAX>(job, tile, row),
                    (8, _) => tile_rows::<8, 1>(job, tile, row),
                    (4, ROWS_MAX..) => tile_rows::<4, ROWS_MAX>(job, tile, row),
                    (4, _) => tile_rows::<4, 1>(job, tile, row),
                    (_, ROWS_MAX..) => tile_rows::<2, ROWS_MAX>(job, tile, row),
                    _ => tile_rows::<2, 1>(job, tile, row),
                }
            };
        }
    }
}

/// One half of a quad: the codes of eight outputs, four inputs each.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn codes_of<const BITS: usize>(codes: *const u8, quad: usize, half: usize) -> __m256i {
    // SAFETY: the caller gives the 32 * BITS bytes of a step.
    unsafe {
        let per_byte = 8 / BITS;
        let loaded = _mm256_loadu_si256(codes.add(quad / per_byte * 64 + half * 32).cast());
        match (BITS, quad % per_byte) {
            (8, _) => loaded,
            (4, 0) => _mm256_and_si256(loaded, _mm256_set1_epi8(15)),
            (4, _) => _mm256_and_si256(_mm256_srli_epi16::<4>(loaded), _mm256_set1_epi8(15)),
            (_, 0) => _mm256_and_si256(loaded, _mm256_set1_epi8(3)),
            (_, 1) => _mm256_and_si256(_mm256_srli_epi16::<2>(loaded), _mm256_set1_epi8(3)),
            (_, 2) => _mm256_and_si256(_mm256_srli_epi16::<4>(loaded), _mm256_set1_epi8(3)),
            _ => _mm256_and_si256(_mm256_srli_epi16::<6>(loaded), _mm256_set1_epi8(3)),
        }
    }
}

/// Adds the products of four inputs to eight sums.
#[inline]
#[target_feature(enable = "avx2")]
fn multiply<const BITS: usize>(sum: __m256i, codes: __m256i, inputs: __m256i) -> __m256i {
    let ones = _mm256_set1_epi16(1);
    if BITS == 8 {
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_maddubs_epi16(_mm256_and_si256(codes, mask), inputs);
        let high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16::<4>(codes), mask), inputs);
        let sum = _mm256_add_epi32(sum, _mm256_madd_epi16(low, ones));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(high, _mm256_set1_epi16(16)));
    }
    _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(codes, inputs), ones))
}

/// One tile of outputs for `ROWS` rows; gives the number of rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile_rows<const BITS: usize, const ROWS: usize>(job: &Job<'_>, tile: usize, first: usize) -> usize {
    let (layout, activations) = (job.layout, job.activations);
    let groups = layout.groups();
    let mut results = [[_mm256_setzero_ps(); 2]; ROWS];
    // SAFETY: `Job::check` holds the lengths: codes of `tiles` tiles, scales of their groups, padded activations of each row.
    unsafe {
        let codes = job.weights.codes.as_ptr().add(tile * layout.tile_code_bytes());
        let inputs: [*const i8; ROWS] = std::array::from_fn(|row| {
            activations.codes.signed().as_ptr().wrapping_add(activations.row_offset(first + row))
        });
        for group in 0..groups {
            let (start, end) = job.group_bounds(group);
            let mut sums = [[_mm256_setzero_si256(); 2]; ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                let sum = activations.sums.as_ptr().add((first + row) * groups + group).read();
                *sums = [_mm256_set1_epi32(sum.wrapping_mul(-layout.offset)); 2];
            }
            let mut input = start;
            while input < end {
                let step = codes.add(input * 2 * BITS);
                let offset = activations.input_offset(input);
                for quad in 0..4 {
                    for half in 0..2 {
                        let codes = codes_of::<BITS>(step, quad, half);
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let four = read_four(inputs[row].add(offset + quad * 4));
                            let broadcast = _mm256_set1_epi32(four);
                            sums[half] = multiply::<BITS>(sums[half], codes, broadcast);
                        }
                    }
                }
                input += STEP;
            }
            for half in 0..2 {
                let at = tile * layout.tile_scale_bytes() + group * TILE * 2 + half * 16;
                let halves = |bytes: &[u8]| _mm256_cvtph_ps(_mm_loadu_si128(bytes.as_ptr().add(at).cast()));
                let scale = halves(job.weights.scales);
                let minimum = if layout.has_minimums { halves(job.weights.minimums) } else { _mm256_setzero_ps() };
                for row in 0..ROWS {
                    let place = (first + row) * groups + group;
                    let factor = _mm256_set1_ps(activations.scales.as_ptr().add(place).read());
                    let dot = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[row][half]), factor);
                    let mut result = _mm256_fmadd_ps(dot, scale, results[row][half]);
                    if layout.has_minimums {
                        let weighted = _mm256_set1_ps(activations.weighted_sums.as_ptr().add(place).read());
                        result = _mm256_fmadd_ps(weighted, minimum, result);
                    }
                    results[row][half] = result;
                }
            }
        }
    }
    for (row, results) in results.iter().enumerate() {
        let mut values = [0.0_f32; TILE];
        // SAFETY: two times eight floats fill the array.
        unsafe {
            _mm256_storeu_ps(values.as_mut_ptr(), results[0]);
            _mm256_storeu_ps(values.as_mut_ptr().add(8), results[1]);
        }
        job.out.write(first + row, tile, &values);
    }
    ROWS
}
