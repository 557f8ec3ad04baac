//! Products on AArch64 with `sdot`: four outputs of four inputs each an instruction.
#![expect(unsafe_code, reason = "vector loads, stores and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::aarch64::*;

use super::Job;
use super::activations::read_four;
use super::packed::TILE;
use crate::dispatch::Path;
use crate::scan::sdot;

/// Inputs that one step decodes: four quads.
const STEP: usize = 16;
/// Rows for which codes are decoded once.
const ROWS_MAX: usize = 4;

/// Computes the outputs of tiles `first..end`.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize) {
    assert!(Path::Neon.is_available(), "dispatch chose a path that this processor runs");
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

/// A quarter of a quad as signed bytes: four outputs, four inputs each. 8-bit codes are moved down by 128.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn codes_of<const BITS: usize>(codes: *const u8, quad: usize, quarter: usize) -> int8x16_t {
    let per_byte = 8 / BITS;
    // SAFETY: the caller gives the 32 * BITS bytes of a step.
    let loaded = unsafe { vld1q_u8(codes.add(quad / per_byte * 64 + quarter * 16)) };
    let codes = match (BITS, quad % per_byte) {
        (8, _) => veorq_u8(loaded, vdupq_n_u8(128)),
        (4, 0) => vandq_u8(loaded, vdupq_n_u8(15)),
        (4, _) => vshrq_n_u8::<4>(loaded),
        (_, 0) => vandq_u8(loaded, vdupq_n_u8(3)),
        (_, 1) => vandq_u8(vshrq_n_u8::<2>(loaded), vdupq_n_u8(3)),
        (_, 2) => vandq_u8(vshrq_n_u8::<4>(loaded), vdupq_n_u8(3)),
        _ => vshrq_n_u8::<6>(loaded),
    };
    vreinterpretq_s8_u8(codes)
}

/// Four 16-bit floats, widened.
#[inline]
fn load_halves(bytes: &[u8]) -> [f32; 4] {
    std::array::from_fn(|lane| half::f16::from_le_bytes([bytes[lane * 2], bytes[lane * 2 + 1]]).to_f32())
}

/// One tile of outputs for `ROWS` rows; gives the number of rows.
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile_rows<const BITS: usize, const ROWS: usize>(job: &Job<'_>, tile: usize, first: usize) -> usize {
    let (layout, activations) = (job.layout, job.activations);
    let groups = layout.groups();
    // What is left of the offset once 8-bit codes are signed.
    let offset = if BITS == 8 { layout.offset - 128 } else { layout.offset };
    let mut results = [[vdupq_n_f32(0.0); 4]; ROWS];
    let inputs: [*const i8; ROWS] = std::array::from_fn(|row| {
        activations.codes.signed().as_ptr().wrapping_add(activations.row_offset(first + row))
    });
    for group in 0..groups {
        let (start, end) = job.group_bounds(group);
        let mut sums = [[vdupq_n_s32(0); 4]; ROWS];
        for (row, sums) in sums.iter_mut().enumerate() {
            let sum = activations.sums[(first + row) * groups + group];
            *sums = [vdupq_n_s32(sum.wrapping_mul(-offset)); 4];
        }
        let mut input = start;
        while input < end {
            // SAFETY: `Job::check` holds the lengths: codes of `tiles` tiles, padded activations of each row.
            unsafe {
                let step = job.weights.codes.as_ptr().add(tile * layout.tile_code_bytes() + input * 2 * BITS);
                let offset = activations.input_offset(input);
                for quad in 0..4 {
                    for quarter in 0..4 {
                        let codes = codes_of::<BITS>(step, quad, quarter);
                        for (row, sums) in sums.iter_mut().enumerate() {
                            let four = read_four(inputs[row].add(offset + quad * 4));
                            let broadcast = vreinterpretq_s8_s32(vdupq_n_s32(four));
                            sums[quarter] = sdot(sums[quarter], codes, broadcast);
                        }
                    }
                }
            }
            input += STEP;
        }
        for quarter in 0..4 {
            let at = tile * layout.tile_scale_bytes() + group * TILE * 2 + quarter * 8;
            let scale = load_halves(&job.weights.scales[at..at + 8]);
            let minimum = if layout.has_minimums { load_halves(&job.weights.minimums[at..at + 8]) } else { [0.0; 4] };
            // SAFETY: four floats each.
            let (scale, minimum) = unsafe { (vld1q_f32(scale.as_ptr()), vld1q_f32(minimum.as_ptr())) };
            for row in 0..ROWS {
                let place = (first + row) * groups + group;
                let dot = vmulq_n_f32(vcvtq_f32_s32(sums[row][quarter]), activations.scales[place]);
                let mut result = vfmaq_f32(results[row][quarter], dot, scale);
                if layout.has_minimums {
                    result = vfmaq_f32(result, vdupq_n_f32(activations.weighted_sums[place]), minimum);
                }
                results[row][quarter] = result;
            }
        }
    }
    for (row, results) in results.iter().enumerate() {
        let mut values = [0.0_f32; TILE];
        for (quarter, result) in results.iter().enumerate() {
            // SAFETY: four floats from quarter * 4 on lie in the array.
            unsafe { vst1q_f32(values.as_mut_ptr().add(quarter * 4), *result) };
        }
        job.out.write(first + row, tile, &values);
    }
    ROWS
}
