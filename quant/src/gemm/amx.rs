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
use super::avx512::{sweeps, unpack_pair};
use super::lines::Lines;
use super::packed::TILE;
use crate::dispatch::Path;

/// Rows of activations in one tile register.
const ROWS: usize = 16;
/// Inputs that are worked off for all rows before the next: their weights (20 KiB) stay in the first-level cache.
const CHUNK: usize = 640;

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

/// Sums of two tile registers of two neighbouring groups: one is scaled while the other is computed.
#[repr(C, align(64))]
struct Sums([[[[i32; TILE]; ROWS]; 2]; 2]);

/// The results of one row and two tiles.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Results([[f32; TILE]; 2]);

/// Computes the outputs of tiles `first..end`.
pub(super) fn run(job: &Job<'_>, first: usize, end: usize) {
    assert!(Path::Amx.is_available(), "dispatch chose a path that this processor runs");
    job.check(end);
    assert_eq!(job.activations.tile_rows, ROWS, "activations of many rows lie in tiles of sixteen");
    // A group of 32 inputs fills half a tile register.
    let step = if job.layout.group == 32 { 32 } else { 64 };
    let config = TileConfig::new(step);
    // SAFETY: the features were detected and the tile registers granted; `Job::check` holds what the kernel indexes by. The
    // registers are given back on the way out; a panic in between would leave nothing worse than stale tiles.
    unsafe {
        asm!("ldtilecfg [{0}]", in(reg) &raw const config, options(nostack, preserves_flags));
        panels(job, first, end, step);
        asm!("tilerelease", options(nostack, preserves_flags));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn panels(job: &Job<'_>, first: usize, end: usize, step: usize) {
    let layout = job.layout;
    // Signed bytes: symmetric codes less their offset, 8-bit codes with minimums less 128, which is added again below.
    let bias = if layout.bits == 8 { 128_u8 as i8 } else { layout.offset as i8 };
    let correction = if layout.bits == 8 { 128 - layout.offset } else { 0 };
    let chunk = (CHUNK / layout.group).max(1);
    let mut panel = Lines::zeroed(2 * layout.padded_inputs() * TILE);
    let mut sums = Sums([[[[0; TILE]; ROWS]; 2]; 2]);
    for (row_first, row_end) in sweeps(job) {
        let mut results = vec![Results([[0.0; TILE]; 2]); row_end - row_first];
        let mut tile = first;
        while tile < end {
            let tiles = unpack_pair(job, tile, end, bias, panel.bytes_mut());
            results.fill(Results([[0.0; TILE]; 2]));
            // The codes of the next two tiles are asked for while these are multiplied, a part at each block.
            let blocks = layout.groups().div_ceil(chunk) * results.len().div_ceil(ROWS);
            let next = job.weights.codes.as_ptr().wrapping_add((tile + tiles) * layout.tile_code_bytes());
            let part = (2 * layout.tile_code_bytes() / 64).div_ceil(blocks);
            let mut asked = 0;
            for group in (0..layout.groups()).step_by(chunk) {
                let groups = (group, (group + chunk).min(layout.groups()));
                for (index, results) in results.chunks_mut(ROWS).enumerate() {
                    for line in asked..asked + part {
                        _mm_prefetch::<_MM_HINT_T1>(next.wrapping_add(line * 64).cast());
                    }
                    asked += part;
                    let block = Block { tile, row: row_first + index * ROWS, groups, step, correction };
                    // SAFETY: the caller's promises are passed on; the tiles, groups and rows exist.
                    unsafe {
                        match (tiles == 2, correction != 0) {
                            (true, false) => block.run::<2, false>(job, panel.bytes(), &mut sums, results),
                            (false, false) => block.run::<1, false>(job, panel.bytes(), &mut sums, results),
                            (true, true) => block.run::<2, true>(job, panel.bytes(), &mut sums, results),
                            (false, true) => block.run::<1, true>(job, panel.bytes(), &mut sums, results),
                        }
                    }
                }
            }
            for (row, results) in results.iter().enumerate() {
                for (index, result) in results.0.iter().take(tiles).enumerate() {
                    job.out.write(row_first + row, tile + index, result);
                }
            }
            tile += tiles;
        }
    }
}

/// Sixteen rows, one or two tiles of outputs, some groups.
struct Block {
    tile: usize,
    row: usize,
    groups: (usize, usize),
    /// Inputs in a tile register.
    step: usize,
    /// What was taken off the codes too much.
    correction: i32,
}

impl Block {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn run<const WIDE: usize, const CORRECT: bool>(
        &self,
        job: &Job<'_>,
        panel: &[u8],
        sums: &mut Sums,
        results: &mut [Results],
    ) {
        // The products of a group are started before the one before is scaled, so that the two overlap.
        // SAFETY: the caller's promises are passed on.
        unsafe {
            for group in self.groups.0..self.groups.1 {
                if group % 2 == 0 {
                    self.multiply_even::<WIDE>(job, panel, group, &mut sums.0[0]);
                } else {
                    self.multiply_odd::<WIDE>(job, panel, group, &mut sums.0[1]);
                }
                if group > self.groups.0 {
                    self.scale::<WIDE, CORRECT>(job, group - 1, &sums.0[(group - 1) % 2], results);
                }
            }
            let last = self.groups.1 - 1;
            self.scale::<WIDE, CORRECT>(job, last, &sums.0[last % 2], results);
        }
    }

    /// Adds a group's scaled sums to the results.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn scale<const WIDE: usize, const CORRECT: bool>(
        &self,
        job: &Job<'_>,
        group: usize,
        sums: &[[[i32; TILE]; ROWS]; 2],
        results: &mut [Results],
    ) {
        let (layout, activations) = (job.layout, job.activations);
        let groups = layout.groups();
        // SAFETY: `Job::check` holds the lengths of scales and activations; arrays hold sixteen lanes.
        unsafe {
            let halves = |bytes: &[u8], index: usize| {
                let at = (self.tile + index) * layout.tile_scale_bytes() + group * TILE * 2;
                _mm512_cvtph_ps(_mm256_loadu_si256(bytes.as_ptr().add(at).cast()))
            };
            let mut scales = [_mm512_setzero_ps(); WIDE];
            let mut minimums = [_mm512_setzero_ps(); WIDE];
            for index in 0..WIDE {
                scales[index] = halves(job.weights.scales, index);
                if layout.has_minimums {
                    minimums[index] = halves(job.weights.minimums, index);
                }
            }
            for (row, results) in results.iter_mut().enumerate() {
                let place = (self.row + row) * groups + group;
                let factor = _mm512_set1_ps(activations.scales.as_ptr().add(place).read());
                for index in 0..WIDE {
                    let mut dot = _mm512_loadu_si512(sums[index][row].as_ptr().cast());
                    if CORRECT {
                        let sum = activations.sums.as_ptr().add(place).read();
                        dot = _mm512_add_epi32(dot, _mm512_set1_epi32(sum.wrapping_mul(self.correction)));
                    }
                    let result = results.0[index].as_mut_ptr();
                    let dot = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), factor);
                    let mut value = _mm512_fmadd_ps(dot, scales[index], _mm512_loadu_ps(result));
                    if layout.has_minimums {
                        let weighted = _mm512_set1_ps(activations.weighted_sums.as_ptr().add(place).read());
                        value = _mm512_fmadd_ps(weighted, minimums[index], value);
                    }
                    _mm512_storeu_ps(result, value);
                }
            }
        }
    }
}

macro_rules! multiply {
    ($name:ident, $left:literal, $right:literal) => {
        impl Block {
            /// The sums of one group, through tile registers of its own.
            #[inline]
            unsafe fn $name<const WIDE: usize>(
                &self,
                job: &Job<'_>,
                panel: &[u8],
                group: usize,
                sums: &mut [[[i32; TILE]; ROWS]; 2],
            ) {
                let (start, end) = job.group_bounds(group);
                let activations = job.activations;
                // SAFETY: rows are padded to whole tiles of sixteen, inputs to whole steps; the panel holds `WIDE` tiles; a
                // register of sums is stored to the sixteen rows of 64 bytes of its buffer.
                unsafe {
                    let inputs = activations.codes.signed().as_ptr().add(activations.row_offset(self.row));
                    let left = panel.as_ptr();
                    let right = left.wrapping_add(activations.padded_inputs * TILE);
                    asm!(concat!("tilezero ", $left), options(nostack, nomem));
                    if WIDE == 2 {
                        asm!(concat!("tilezero ", $right), options(nostack, nomem));
                    }
                    let mut input = start;
                    while input < end {
                        asm!("tileloadd tmm4, [{inputs} + {stride}]", "tileloadd tmm6, [{codes} + {stride}]",
                             concat!("tdpbssd ", $left, ", tmm4, tmm6"),
                             inputs = in(reg) inputs.add(activations.input_offset(input)),
                             codes = in(reg) left.add(input * TILE), stride = in(reg) 64_usize,
                             options(nostack, readonly));
                        if WIDE == 2 {
                            asm!("tileloadd tmm7, [{codes} + {stride}]", concat!("tdpbssd ", $right, ", tmm4, tmm7"),
                                 codes = in(reg) right.add(input * TILE), stride = in(reg) 64_usize,
                                 options(nostack, readonly));
                        }
                        input += self.step;
                    }
                    asm!(concat!("tilestored [{0} + {1}], ", $left), in(reg) &raw mut sums[0], in(reg) 64_usize,
                         options(nostack));
                    if WIDE == 2 {
                        asm!(concat!("tilestored [{0} + {1}], ", $right), in(reg) &raw mut sums[1], in(reg) 64_usize,
                             options(nostack));
                    }
                }
            }
        }
    };
}
multiply!(multiply_even, "tmm0", "tmm1");
multiply!(multiply_odd, "tmm2", "tmm3");
