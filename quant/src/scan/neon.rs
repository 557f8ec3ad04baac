//! Int8 dot products on AArch64 with the dot-product extension.
#![expect(unsafe_code, reason = "vector loads and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::aarch64::*;
use std::arch::asm;

use super::dot::PreparedQuery;
use crate::dispatch::Path;

/// Rows dotted with `sdot`, 16 codes an instruction.
pub(super) fn dots_neon(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(Path::Neon.is_available(), "dispatch chose a path that this processor runs");
    assert!(codes.len() >= dots.len() * query.dimensions && query.padded.len() >= query.dimensions);
    // SAFETY: the features were detected; the slices hold what the asserts say.
    unsafe { neon(codes, query, dots) }
}

/// `sum + a . b` for each group of four bytes. The intrinsic is unstable, the instruction is not.
#[target_feature(enable = "neon,dotprod")]
pub(crate) fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: touches only its operands.
    unsafe {
        asm!("sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b", sum = inout(vreg) sum, a = in(vreg) a, b = in(vreg) b,
             options(pure, nomem, nostack, preserves_flags));
    }
    sum
}

#[target_feature(enable = "neon,dotprod")]
unsafe fn neon(codes: &[i8], query: &PreparedQuery, dots: &mut [i32]) {
    let dimensions = query.dimensions;
    let whole = dimensions / 16;
    for (row, dot) in dots.iter_mut().enumerate() {
        let codes = &codes[row * dimensions..(row + 1) * dimensions];
        let mut sums = [vdupq_n_s32(0); 2];
        for chunk in 0..whole {
            // SAFETY: `whole` vectors of 16 lie in the row and in the query.
            let (a, b) =
                unsafe { (vld1q_s8(codes.as_ptr().add(chunk * 16)), vld1q_s8(query.padded.as_ptr().add(chunk * 16))) };
            sums[chunk % 2] = sdot(sums[chunk % 2], a, b);
        }
        let tail = codes[whole * 16..].iter().zip(&query.padded[whole * 16..]);
        *dot = vaddvq_s32(vaddq_s32(sums[0], sums[1])) + tail.map(|(a, b)| i32::from(*a) * i32::from(*b)).sum::<i32>();
    }
}
