//! Products on AMX int8 tiles: 16 x 16 sums of 64 products an instruction.
//!
//! The intrinsics are not stable, the instructions are: they are written as assembly. Weights are unpacked to signed bytes in
//! panels of two tiles, whose order (quads of inputs, sixteen outputs) is just that of a tile register; activations are
//! read as they lie. After each group the sums leave the tile registers and are scaled by AVX-512.
#![expect(unsafe_code, reason = "tile instructions, vector loads and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::asm;
use std::arch::x86_64::*;

use super::Job;
use super::avx512::unpack;
use super::packed::TILE;
use crate::dispatch::Path;

/// Rows of activations in one tile register.
const ROWS: usize = 16;

/// Asks the system for the tile registers; whether this process may now use them.
#[cfg(target_os = "linux")]
pub(crate) fn enable() -> bool {
    /// `arch_prctl` code that asks for a state component, and the component of the tile data (Linux, x86/xstate).
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_int = 18;
    let leaf = __cpuid(0);
    if leaf.eax < 7 {
        return false;
    }
    // Bits 24 and 25 of EDX: tiles and int8 products (Intel SDM, CPUID leaf 7).
    let features = __cpuid_count(7, 0);
    if features.edx >> 24 & 3 != 3 {
        return false;
    }
    // SAFETY: asks for a permission; changes no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// Elsewhere than on Linux there is no known way to ask.
#[cfg(not(target_os = "linux"))]
pub(crate) fn enable() -> bool {
    false
}

/// The shapes of the eight tile registers (Intel SDM, LDTILECFG): 0 to 3 sums, 4 and 5 activations, 6 and 7 weights.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    column_bytes: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    fn new(step: usize) -> Self {
        let mut config = Self { palette: 1, start_row: 0, reserved: [0; 14], column_bytes: [0; 16], rows: [0; 16] };
        for register in 0..8 {
            let activations = matches!(register, 4 | 5);
            let weights = register >= 6;
            config.column_bytes[register] = if activations { step as u16 } else { 64 };
            config.rows[register] = if weights { (step / 4) as u8 } else { ROWS as u8 };
        }
        config
    }
}

/// Sums of two by two tile registers, and the scaled results of the same outputs.
#[repr(C, align(64))]
struct Buffers {
    sums: [[[i32; TILE]; ROWS]; 4],
    results: [[[f32; TILE]; ROWS]; 4],
}

/// Computes the outputs of tiles `first..end`.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize) {
    assert!(Path::Amx.is_available(), "dispatch chose a path that this processor runs");
    job.check(end);
    // A group of 32 inputs fills half a tile register.
    let step = if job.layout.group == 32 { 32 } else { 64 };
    let config = TileConfig::new(step);
    // SAFETY: the features were detected and the tile registers granted; `Job::check` holds what the kernel indexes by. The
    // registers are given back on the way out; nothing in between unwinds past that with more than a stale tile state.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &raw const config, options(nostack, preserves_flags));
        panels(job, first, end, step);
        asm!("tilerelease", options(nostack, preserves_flags));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn panels(job: &Job<'_>, first: usize, end: usize, step: usize) {
    let layout = job.layout;
    let tile_bytes = layout.padded_inputs() * TILE;
    // Signed bytes: symmetric codes less their offset, 8-bit codes with minimums less 128, which is added again below.
    let bias = if layout.bits == 8 { 128_u8 as i8 } else { layout.offset as i8 };
    let correction = if layout.bits == 8 { 128 - layout.offset } else { 0 };
    let mut panel = vec![0_u8; 2 * tile_bytes];
    let mut buffers = Buffers { sums: [[[0; TILE]; ROWS]; 4], results: [[[0.0; TILE]; ROWS]; 4] };
    let mut tile = first;
    while tile < end {
        let tiles = (end - tile).min(2);
        for (offset, panel) in panel.chunks_exact_mut(tile_bytes).take(tiles).enumerate() {
            let codes = &job.weights.codes[(tile + offset) * layout.tile_code_bytes()..][..layout.tile_code_bytes()];
            unpack(layout.bits, codes, bias, panel);
        }
        for row in (0..job.activations.rows).step_by(2 * ROWS) {
            let rows = (job.activations.rows - row).min(2 * ROWS);
            // SAFETY: the caller's promises are passed on; the tiles and rows exist; padding makes each sixteen rows whole.
            unsafe {
                match (rows > ROWS, tiles == 2) {
                    (true, true) => block::<2, 2>(job, (tile, row, rows), &panel, &mut buffers, step, correction),
                    (true, false) => block::<2, 1>(job, (tile, row, rows), &panel, &mut buffers, step, correction),
                    (false, true) => block::<1, 2>(job, (tile, row, rows), &panel, &mut buffers, step, correction),
                    (false, false) => block::<1, 1>(job, (tile, row, rows), &panel, &mut buffers, step, correction),
                }
            }
        }
        tile += tiles;
    }
}

/// `HIGH` times sixteen rows by `WIDE` tiles of outputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn block<const HIGH: usize, const WIDE: usize>(
    job: &Job<'_>,
    (tile, first, rows): (usize, usize, usize),
    panel: &[u8],
    buffers: &mut Buffers,
    step: usize,
    correction: i32,
) {
    let (layout, activations) = (job.layout, job.activations);
    let groups = layout.groups();
    let tile_bytes = layout.padded_inputs() * TILE;
    buffers.results = [[[0.0; TILE]; ROWS]; 4];
    for group in 0..groups {
        let (start, end) = job.group_bounds(group);
        // SAFETY: rows are padded to whole tiles of sixteen, inputs to whole steps; the panel holds `WIDE` tiles; a sum
        // register is stored to the sixteen rows of 64 bytes of its buffer.
        unsafe {
            let high = activations.codes.as_ptr().add(first * activations.stride);
            let low = high.wrapping_add(ROWS * activations.stride);
            let left = panel.as_ptr();
            let right = left.wrapping_add(tile_bytes);
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            let mut input = start;
            while input < end {
                load_4(high.add(input), activations.stride);
                load_6(left.add(input * TILE));
                asm!("tdpbssd tmm0, tmm4, tmm6", options(nostack, nomem));
                if WIDE == 2 {
                    load_7(right.add(input * TILE));
                    asm!("tdpbssd tmm1, tmm4, tmm7", options(nostack, nomem));
                }
                if HIGH == 2 {
                    load_5(low.add(input), activations.stride);
                    asm!("tdpbssd tmm2, tmm5, tmm6", options(nostack, nomem));
                    if WIDE == 2 {
                        asm!("tdpbssd tmm3, tmm5, tmm7", options(nostack, nomem));
                    }
                }
                input += step;
            }
            let sums = buffers.sums.as_mut_ptr();
            asm!("tilestored [{0} + {1}], tmm0", in(reg) sums, in(reg) 64_usize, options(nostack));
            if WIDE == 2 {
                asm!("tilestored [{0} + {1}], tmm1", in(reg) sums.add(1), in(reg) 64_usize, options(nostack));
            }
            if HIGH == 2 {
                asm!("tilestored [{0} + {1}], tmm2", in(reg) sums.add(2), in(reg) 64_usize, options(nostack));
                if WIDE == 2 {
                    asm!("tilestored [{0} + {1}], tmm3", in(reg) sums.add(3), in(reg) 64_usize, options(nostack));
                }
            }
            for index in 0..WIDE {
                let at = (tile + index) * layout.tile_scale_bytes() + group * TILE * 2;
                let halves = |bytes: &[u8]| _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().add(at).cast()));
                let scale = halves(job.weights.scales);
                let minimum = if layout.has_minimums { halves(job.weights.minimums) } else { _mm512_setzero_ps() };
                for row in 0..rows.min(HIGH * ROWS) {
                    let register = row / ROWS * 2 + index;
                    let place = (first + row) * groups + group;
                    let mut dot = _mm512_loadu_si512(buffers.sums[register][row % ROWS].as_ptr().cast());
                    if correction != 0 {
                        let sum = activations.sums.as_ptr().add(place).read();
                        dot = _mm512_add_epi32(dot, _mm512_set1_epi32(sum.wrapping_mul(correction)));
                    }
                    let result = buffers.results[register][row % ROWS].as_mut_ptr();
                    let factor = _mm512_set1_ps(activations.scales.as_ptr().add(place).read());
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), factor);
                    let mut value = _mm512_fmadd_ps(dot, scale, _mm512_loadu_ps(result));
                    if layout.has_minimums {
                        let weighted = _mm512_set1_ps(activations.weighted_sums.as_ptr().add(place).read());
                        value = _mm512_fmadd_ps(weighted, minimum, value);
                    }
                    _mm512_storeu_ps(result, value);
                }
            }
        }
    }
    for row in 0..rows.min(HIGH * ROWS) {
        for index in 0..WIDE {
            job.out.write(first + row, tile + index, &buffers.results[row / ROWS * 2 + index][row % ROWS]);
        }
    }
}

macro_rules! tile_load {
    ($name:ident, $register:literal) => {
        /// Loads a tile register; each row is `stride` bytes after the one before.
        #[inline]
        unsafe fn $name(from: *const i8, stride: usize) {
            // SAFETY: the caller's memory holds the rows of the register.
            unsafe {
                asm!(concat!("tileloadd ", $register, ", [{0} + {1}]"), in(reg) from, in(reg) stride,
                     options(nostack, readonly));
            }
        }
    };
}
tile_load!(load_4, "tmm4");
tile_load!(load_5, "tmm5");
tile_load!(load_left, "tmm6");
tile_load!(load_right, "tmm7");

#[inline]
unsafe fn load_6(from: *const u8) {
    // SAFETY: passed on.
    unsafe { load_left(from.cast(), 64) }
}

#[inline]
unsafe fn load_7(from: *const u8) {
    // SAFETY: passed on.
    unsafe { load_right(from.cast(), 64) }
}
