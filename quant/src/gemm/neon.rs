//! Products on AArch64: with `sdot` four outputs of four inputs an instruction, with `smmla` (where the processor has it, for two rows
//! and more) two rows by two outputs of eight inputs.
#![expect(unsafe_code, reason = "vector loads, stores and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::aarch64::*;
use std::arch::asm;

use super::Job;
use super::activations::read_four;
use super::packed::TILE;
use crate::dispatch::Path;
use crate::scan::sdot;

/// Inputs that one step decodes: four quads.
const STEP: usize = 16;
/// Rows for which codes are decoded once.
const ROWS_MAX: usize = 4;

/// Computes the outputs of tiles `first..end`; `pairs` says whether rows are multiplied two by two.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize, pairs: bool) {
    assert!(Path::Neon.is_available(), "dispatch chose a path that this processor runs");
    assert!(!pairs || Path::NeonI8mm.is_available(), "dispatch chose a path that this processor runs");
    job.check(end);
    for tile in first..end {
        let mut row = 0;
        while row < job.activations.rows {
            // SAFETY: the features were detected; `Job::check` holds what the kernels index by; the rows exist.
            row += unsafe {
                match (job.layout.bits, job.activations.rows - row) {
                    (8, 4..) if pairs => tile_pairs::<8, 2>(job, tile, row),
                    (8, 2..) if pairs => tile_pairs::<8, 1>(job, tile, row),
                    (4, 4..) if pairs => tile_pairs::<4, 2>(job, tile, row),
                    (4, 2..) if pairs => tile_pairs::<4, 1>(job, tile, row),
                    (_, 4..) if pairs => tile_pairs::<2, 2>(job, tile, row),
                    (_, 2..) if pairs => tile_pairs::<2, 1>(job, tile, row),
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
            let scales = Scales::of(job, tile, group, quarter);
            for row in 0..ROWS {
                let place = (first + row) * groups + group;
                results[row][quarter] = scales.add(job, place, sums[row][quarter], results[row][quarter]);
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

/// Scales and minimums of four outputs in one group.
struct Scales {
    scale: float32x4_t,
    minimum: float32x4_t,
}

impl Scales {
    #[inline]
    #[target_feature(enable = "neon")]
    fn of(job: &Job<'_>, tile: usize, group: usize, quarter: usize) -> Self {
        let layout = job.layout;
        let at = tile * layout.tile_scale_bytes() + group * TILE * 2 + quarter * 8;
        let scale = load_halves(&job.weights.scales[at..at + 8]);
        let minimum = if layout.has_minimums { load_halves(&job.weights.minimums[at..at + 8]) } else { [0.0; 4] };
        // SAFETY: four floats each.
        unsafe { Self { scale: vld1q_f32(scale.as_ptr()), minimum: vld1q_f32(minimum.as_ptr()) } }
    }

    /// Adds a group's dot products to the results, as the definition in the module above says. `place` is the row's in the group.
    #[inline]
    #[target_feature(enable = "neon")]
    fn add(&self, job: &Job<'_>, place: usize, sums: int32x4_t, result: float32x4_t) -> float32x4_t {
        let dot = vmulq_n_f32(vcvtq_f32_s32(sums), job.activations.scales[place]);
        let result = vfmaq_f32(result, dot, self.scale);
        if job.layout.has_minimums {
            vfmaq_f32(result, vdupq_n_f32(job.activations.weighted_sums[place]), self.minimum)
        } else {
            result
        }
    }
}

/// `sum + a . b^T` for two rows of eight bytes each in `a` and in `b`. The intrinsic is unstable, the instruction is not.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: touches only its operands.
    unsafe {
        asm!("smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

/// One tile of outputs for `PAIRS` pairs of rows; gives the number of rows.
#[target_feature(enable = "neon,dotprod,i8mm")]
unsafe fn tile_pairs<const BITS: usize, const PAIRS: usize>(job: &Job<'_>, tile: usize, first: usize) -> usize {
    let (layout, activations) = (job.layout, job.activations);
    let groups = layout.groups();
    let offset = if BITS == 8 { layout.offset - 128 } else { layout.offset };
    let mut results = [[[vdupq_n_f32(0.0); 4]; 2]; PAIRS];
    let input_of = |row: usize| activations.codes.signed().as_ptr().wrapping_add(activations.row_offset(first + row));
    let inputs: [[*const i8; 2]; PAIRS] = std::array::from_fn(|pair| [input_of(2 * pair), input_of(2 * pair + 1)]);
    for group in 0..groups {
        let (start, end) = job.group_bounds(group);
        // For each quarter its first two and its last two outputs; in a vector the first row's two sums, then the second's.
        let mut sums = [[[vdupq_n_s32(0); 2]; 4]; PAIRS];
        for (pair, sums) in sums.iter_mut().enumerate() {
            let start_of = |row: usize| {
                vdup_n_s32(activations.sums[(first + 2 * pair + row) * groups + group].wrapping_mul(-offset))
            };
            *sums = [[vcombine_s32(start_of(0), start_of(1)); 2]; 4];
        }
        let mut input = start;
        while input < end {
            // SAFETY: `Job::check` holds the lengths: codes of `tiles` tiles, padded activations of each row; a step's sixteen inputs
            // lie side by side in one cache line.
            unsafe {
                let step = job.weights.codes.as_ptr().add(tile * layout.tile_code_bytes() + input * 2 * BITS);
                let offset = activations.input_offset(input);
                for half in 0..2 {
                    let rows: [int8x16_t; PAIRS] = std::array::from_fn(|pair| {
                        let load = |row: usize| vld1_s8(inputs[pair][row].add(offset + half * 8));
                        vcombine_s8(load(0), load(1))
                    });
                    for quarter in 0..4 {
                        // Two quads of an output side by side are its eight inputs.
                        let left = vreinterpretq_s32_s8(codes_of::<BITS>(step, 2 * half, quarter));
                        let right = vreinterpretq_s32_s8(codes_of::<BITS>(step, 2 * half + 1, quarter));
                        let low = vreinterpretq_s8_s32(vzip1q_s32(left, right));
                        let high = vreinterpretq_s8_s32(vzip2q_s32(left, right));
                        for (sums, rows) in sums.iter_mut().zip(rows) {
                            sums[quarter][0] = smmla(sums[quarter][0], rows, low);
                            sums[quarter][1] = smmla(sums[quarter][1], rows, high);
                        }
                    }
                }
            }
            input += STEP;
        }
        for quarter in 0..4 {
            let scales = Scales::of(job, tile, group, quarter);
            for pair in 0..PAIRS {
                let [low, high] = sums[pair][quarter];
                let dots = [
                    vcombine_s32(vget_low_s32(low), vget_low_s32(high)),
                    vcombine_s32(vget_high_s32(low), vget_high_s32(high)),
                ];
                for (row, dots) in dots.into_iter().enumerate() {
                    let place = (first + 2 * pair + row) * groups + group;
                    results[pair][row][quarter] = scales.add(job, place, dots, results[pair][row][quarter]);
                }
            }
        }
    }
    for (row, results) in results.iter().flatten().enumerate() {
        let mut values = [0.0_f32; TILE];
        for (quarter, result) in results.iter().enumerate() {
            // SAFETY: four floats from quarter * 4 on lie in the array.
            unsafe { vst1q_f32(values.as_mut_ptr().add(quarter * 4), *result) };
        }
        job.out.write(first + row, tile, &values);
    }
    2 * PAIRS
}
