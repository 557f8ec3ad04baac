//! Products on AVX-512 VNNI, and the quantisation of activations.
//!
//! `vpdpbusd` multiplies the unsigned codes of sixteen outputs, four inputs each, with four signed activations that are
//! broadcast to all lanes. Few rows decode the packed codes in registers and run at the speed of memory; many rows unpack a
//! panel of 32 outputs to bytes once, and then hold 8 x 32 sums in registers.
#![expect(unsafe_code, reason = "vector loads, stores and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::x86_64::*;

use super::activations::read_four;
use super::lines::Lines;
use super::packed::TILE;
use super::{Job, PANEL_ROWS_MIN};
use crate::dispatch::Path;

/// Rows whose sums the panel kernel holds in registers; divides the sixteen rows of a tile of activations.
const PANEL_ROWS: usize = 8;
/// How far ahead of the codes being read the next ones are asked for (bytes): past the page, where hardware stops.
const PREFETCH_BYTES: usize = 4096;
/// Activations that are swept again and again while weights pass: half of a second-level cache (bytes).
const SWEEP_BYTES: usize = 1 << 20;
/// Rows of a sweep, whose results for two tiles (32 KiB) are read and written with every chunk of inputs.
const SWEEP_ROWS_MAX: usize = 256;
/// Inputs that one step decodes: four quads.
const STEP: usize = 16;

fn assert_available() {
    assert!(Path::Avx512.is_available(), "dispatch chose a path that this processor runs");
}

/// Computes the outputs of tiles `first..end`.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize) {
    assert_available();
    job.check(end);
    // SAFETY: the features were detected; `Job::check` holds what the kernels index by.
    unsafe {
        if job.activations.rows >= PANEL_ROWS_MIN {
            panels(job, first, end);
        } else {
            tiles(job, first, end);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tiles(job: &Job<'_>, first: usize, end: usize) {
    for tile in first..end {
        // SAFETY: the caller's promises are passed on.
        unsafe {
            match (job.layout.bits, job.activations.rows) {
                (8, 1) => tile_rows::<8, 1>(job, tile),
                (8, 2) => tile_rows::<8, 2>(job, tile),
                (8, 3) => tile_rows::<8, 3>(job, tile),
                (8, _) => tile_rows::<8, 4>(job, tile),
                (4, 1) => tile_rows::<4, 1>(job, tile),
                (4, 2) => tile_rows::<4, 2>(job, tile),
                (4, 3) => tile_rows::<4, 3>(job, tile),
                (4, _) => tile_rows::<4, 4>(job, tile),
                (_, 1) => tile_rows::<2, 1>(job, tile),
                (_, 2) => tile_rows::<2, 2>(job, tile),
                (_, 3) => tile_rows::<2, 3>(job, tile),
                (_, _) => tile_rows::<2, 4>(job, tile),
            }
        }
    }
}

/// Four quads of codes, one byte each, from packed codes; the second value is how many bytes they took.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn decode<const BITS: usize>(codes: *const u8) -> [__m512i; 4] {
    // SAFETY: the caller gives 16 * 16 codes, which are 32 * BITS bytes.
    unsafe {
        let load = |vector: usize| _mm512_loadu_si512(codes.add(vector * 64).cast());
        if BITS == 8 {
            [load(0), load(1), load(2), load(3)]
        } else if BITS == 4 {
            let mask = _mm512_set1_epi8(15);
            let halves = |v| [_mm512_and_si512(v, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask)];
            let [[a, b], [c, d]] = [halves(load(0)), halves(load(1))];
            [a, b, c, d]
        } else {
            let mask = _mm512_set1_epi8(3);
            let v = load(0);
            [
                _mm512_and_si512(v, mask),
                _mm512_and_si512(_mm512_srli_epi16::<2>(v), mask),
                _mm512_and_si512(_mm512_srli_epi16::<4>(v), mask),
                _mm512_and_si512(_mm512_srli_epi16::<6>(v), mask),
            ]
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_halves(floats: *const u8) -> __m512 {
    // SAFETY: the caller gives 32 bytes.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(floats.cast())) }
}

/// One tile of outputs for rows `0..ROWS`, all rows that there are, decoded in registers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile_rows<const BITS: usize, const ROWS: usize>(job: &Job<'_>, tile: usize) {
    let (layout, activations) = (job.layout, job.activations);
    let groups = layout.groups();
    let mut results = [_mm512_setzero_ps(); ROWS];
    // SAFETY: `Job::check` holds the lengths: codes of `tiles` tiles, scales of their groups, padded activations of each row.
    unsafe {
        let codes = job.weights.codes.as_ptr().add(tile * layout.tile_code_bytes());
        let scales = job.weights.scales.as_ptr().add(tile * layout.tile_scale_bytes());
        let minimums = job.weights.minimums.as_ptr().wrapping_add(tile * layout.tile_scale_bytes());
        let inputs = activations.codes.signed().as_ptr();
        for group in 0..groups {
            let (start, end) = job.group_bounds(group);
            let mut sums = [[_mm512_setzero_si512(); 4]; ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                let sum = activations.sums.as_ptr().add(row * groups + group).read();
                sums[0] = _mm512_set1_epi32(sum.wrapping_mul(-layout.offset));
            }
            let mut input = start;
            while input < end {
                let step = codes.add(input * 2 * BITS);
                for line in 0..BITS.div_ceil(2) {
                    _mm_prefetch::<_MM_HINT_T0>(step.wrapping_add(PREFETCH_BYTES + line * 64).cast());
                }
                let quads = decode::<BITS>(step);
                let offset = activations.input_offset(input);
                for (row, sums) in sums.iter_mut().enumerate() {
                    let four = inputs.add(activations.row_offset(row) + offset);
                    for (quad, sum) in sums.iter_mut().enumerate() {
                        let broadcast = _mm512_set1_epi32(read_four(four.add(quad * 4)));
                        *sum = _mm512_dpbusd_epi32(*sum, quads[quad], broadcast);
                    }
                }
                input += STEP;
            }
            let scale = load_halves(scales.add(group * TILE * 2));
            for (row, (result, sums)) in results.iter_mut().zip(&sums).enumerate() {
                let dot = _mm512_add_epi32(_mm512_add_epi32(sums[0], sums[1]), _mm512_add_epi32(sums[2], sums[3]));
                let at = row * groups + group;
                let factor = _mm512_set1_ps(activations.scales.as_ptr().add(at).read());
                *result = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(dot), factor), scale, *result);
                if layout.has_minimums {
                    let minimum = load_halves(minimums.add(group * TILE * 2));
                    let weighted = _mm512_set1_ps(activations.weighted_sums.as_ptr().add(at).read());
                    *result = _mm512_fmadd_ps(weighted, minimum, *result);
                }
            }
        }
    }
    for (row, result) in results.iter().enumerate() {
        job.out.write(row, tile, &to_array(*result));
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn to_array(values: __m512) -> [f32; TILE] {
    let mut array = [0.0; TILE];
    // SAFETY: the array holds sixteen floats.
    unsafe { _mm512_storeu_ps(array.as_mut_ptr(), values) };
    array
}

/// Unpacks the codes of one tile to bytes in the order of quads, less `bias`.
#[target_feature(enable = "avx512f,avx512bw")]
fn unpack(bits: usize, codes: &[u8], bias: i8, out: &mut [u8]) {
    assert!(out.len().is_multiple_of(256) && codes.len() * 8 == out.len() * bits);
    let bias = _mm512_set1_epi8(bias);
    for step in 0..out.len() / 256 {
        // SAFETY: a step takes 32 * bits bytes of codes and gives 256, both within the slices by the assert.
        unsafe {
            let from = codes.as_ptr().add(step * 32 * bits);
            let quads = match bits {
                8 => decode::<8>(from),
                4 => decode::<4>(from),
                _ => decode::<2>(from),
            };
            for (quad, codes) in quads.iter().enumerate() {
                let to = out.as_mut_ptr().add(step * 256 + quad * 64);
                _mm512_storeu_si512(to.cast(), _mm512_sub_epi8(*codes, bias));
            }
        }
    }
}

/// Blocks of rows, whole tiles of sixteen, whose activations stay in the second-level cache.
pub(super) fn sweeps(job: &Job<'_>) -> impl Iterator<Item = (usize, usize)> + use<> {
    let rows = job.activations.rows;
    let most = (SWEEP_BYTES / job.layout.padded_inputs()).clamp(16, SWEEP_ROWS_MAX);
    let block = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(16);
    (0..rows).step_by(block).map(move |row| (row, (row + block).min(rows)))
}

/// Unpacks the one or two tiles from `tile` on, and gives how many.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn unpack_pair(job: &Job<'_>, tile: usize, end: usize, bias: i8, panel: &mut [u8]) -> usize {
    let layout = job.layout;
    let (tile_bytes, code_bytes) = (layout.padded_inputs() * TILE, layout.tile_code_bytes());
    let tiles = (end - tile).min(2);
    for (offset, panel) in panel.chunks_exact_mut(tile_bytes).take(tiles).enumerate() {
        unpack(layout.bits, &job.weights.codes[(tile + offset) * code_bytes..][..code_bytes], bias, panel);
    }
    tiles
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn panels(job: &Job<'_>, first: usize, end: usize) {
    let mut panel = Lines::zeroed(2 * job.layout.padded_inputs() * TILE);
    for (row_first, row_end) in sweeps(job) {
        let mut tile = first;
        while tile < end {
            let tiles = unpack_pair(job, tile, end, 0, panel.bytes_mut());
            let mut row = row_first;
            while row < row_end {
                // SAFETY: the caller's promises are passed on; the rows exist and lie in one tile of rows; the panel holds
                // the tiles.
                row += unsafe {
                    match (row_end - row, tiles) {
                        (PANEL_ROWS.., 2) => panel_rows::<PANEL_ROWS, 2>(job, tile, row, panel.bytes()),
                        (4.., 2) => panel_rows::<4, 2>(job, tile, row, panel.bytes()),
                        (_, 2) => panel_rows::<1, 2>(job, tile, row, panel.bytes()),
                        (PANEL_ROWS.., _) => panel_rows::<PANEL_ROWS, 1>(job, tile, row, panel.bytes()),
                        (4.., _) => panel_rows::<4, 1>(job, tile, row, panel.bytes()),
                        _ => panel_rows::<1, 1>(job, tile, row, panel.bytes()),
                    }
                };
            }
            tile += tiles;
        }
    }
}

/// `ROWS` rows and one or two tiles from an unpacked panel; gives the number of rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn panel_rows<const ROWS: usize, const TILES: usize>(
    job: &Job<'_>,
    tile: usize,
    first: usize,
    panel: &[u8],
) -> usize {
    let (layout, activations) = (job.layout, job.activations);
    let groups = layout.groups();
    let tile_bytes = layout.padded_inputs() * TILE;
    let mut results = [[_mm512_setzero_ps(); TILES]; ROWS];
    // SAFETY: as in `tile_rows`; the panel holds `TILES` unpacked tiles, and rows first..first+ROWS exist.
    unsafe {
        let inputs = activations.codes.signed().as_ptr().add(activations.row_offset(first));
        for group in 0..groups {
            let (start, end) = job.group_bounds(group);
            let mut sums = [[_mm512_setzero_si512(); TILES]; ROWS];
            for (row, sums) in sums.iter_mut().enumerate() {
                let sum = activations.sums.as_ptr().add((first + row) * groups + group).read();
                *sums = [_mm512_set1_epi32(sum.wrapping_mul(-layout.offset)); TILES];
            }
            let mut input = start;
            while input < end {
                let mut codes = [_mm512_setzero_si512(); TILES];
                for (index, codes) in codes.iter_mut().enumerate() {
                    *codes = _mm512_loadu_si512(panel.as_ptr().add(index * tile_bytes + input * TILE).cast());
                }
                let offset = activations.input_offset(input);
                for (row, sums) in sums.iter_mut().enumerate() {
                    // The rows lie in one tile of rows, a line apart.
                    let broadcast = _mm512_set1_epi32(read_four(inputs.add(row * 64 + offset)));
                    for (sum, codes) in sums.iter_mut().zip(&codes) {
                        *sum = _mm512_dpbusd_epi32(*sum, *codes, broadcast);
                    }
                }
                input += 4;
            }
            for index in 0..TILES {
                let at = (tile + index) * layout.tile_scale_bytes() + group * TILE * 2;
                let scale = load_halves(job.weights.scales.as_ptr().add(at));
                let minimum = if layout.has_minimums {
                    load_halves(job.weights.minimums.as_ptr().add(at))
                } else {
                    _mm512_setzero_ps()
                };
                for row in 0..ROWS {
                    let at = (first + row) * groups + group;
                    let factor = _mm512_set1_ps(activations.scales.as_ptr().add(at).read());
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][index]), factor);
                    let mut result = _mm512_fmadd_ps(dot, scale, results[row][index]);
                    if layout.has_minimums {
                        let weighted = _mm512_set1_ps(activations.weighted_sums.as_ptr().add(at).read());
                        result = _mm512_fmadd_ps(weighted, minimum, result);
                    }
                    results[row][index] = result;
                }
            }
        }
    }
    for (row, results) in results.iter().enumerate() {
        for (index, result) in results.iter().enumerate() {
            job.out.write(first + row, tile + index, &to_array(*result));
        }
    }
    ROWS
}

/// The largest magnitude; None when a value is not finite.
pub(super) fn largest_magnitude(values: &[f32]) -> Option<f32> {
    assert_available();
    // SAFETY: the features were detected.
    unsafe { largest_avx512(values) }
}

#[target_feature(enable = "avx512f,avx512dq")]
unsafe fn largest_avx512(values: &[f32]) -> Option<f32> {
    let mut largest = _mm512_setzero_ps();
    // x - x is 0 when finite and NaN otherwise; the sum keeps the NaN.
    let mut strange = _mm512_setzero_ps();
    for chunk in values.chunks(16) {
        let mask = ((1_u32 << chunk.len()) - 1) as u16;
        // SAFETY: only the lanes of the chunk are read.
        let x = unsafe { _mm512_maskz_loadu_ps(mask, chunk.as_ptr()) };
        largest = _mm512_max_ps(largest, _mm512_abs_ps(x));
        strange = _mm512_add_ps(strange, _mm512_sub_ps(x, x));
    }
    (_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(strange, strange) == 0).then(|| _mm512_reduce_max_ps(largest))
}

/// Rounds activations to codes and gives the sum of the codes.
pub(super) fn encode_activations(values: &[f32], inverse: f32, codes: &mut [i8]) -> i32 {
    assert_available();
    assert!(codes.len() >= values.len());
    // SAFETY: the features were detected; the codes have room.
    unsafe { encode_avx512(values, inverse, codes) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn encode_avx512(values: &[f32], inverse: f32, codes: &mut [i8]) -> i32 {
    let inverse = _mm512_set1_ps(inverse);
    let (low, high) = (_mm512_set1_ps(-127.0), _mm512_set1_ps(127.0));
    let mut sum = _mm512_setzero_si512();
    for (chunk, codes) in values.chunks(16).zip(codes.chunks_mut(16)) {
        let mask = ((1_u32 << chunk.len()) - 1) as u16;
        // SAFETY: only the lanes of the chunk are read, and as many codes written, of which there are as many.
        unsafe {
            let scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, chunk.as_ptr()), inverse);
            let rounded = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(scaled, low), high));
            sum = _mm512_add_epi32(sum, rounded);
            _mm_mask_storeu_epi8(codes.as_mut_ptr(), mask, _mm512_cvtepi32_epi8(rounded));
        }
    }
    _mm512_reduce_add_epi32(sum)
}
