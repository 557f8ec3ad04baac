//! Kernels of split rows on AArch64.
#![expect(unsafe_code, reason = "vector loads and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::aarch64::*;

use super::dot::PreparedQuery;
use super::neon::sdot;
use super::sketch::{PLANES, Planes};
use super::split::{GROUP, View, place};
use crate::dispatch::Path;

/// Rows dotted with `sdot`: fields shifted out of pairs of bytes, 16 codes an instruction.
pub(super) fn dots_neon(view: View<'_>, rows: &[u32], query: &PreparedQuery, dots: &mut [i32]) {
    assert!(Path::Neon.is_available(), "dispatch chose a path that this processor runs");
    for (row, dot) in rows.iter().zip(dots) {
        // SAFETY: the features were detected.
        *dot = unsafe { dot_of_row(view, *row as usize, query) };
    }
}

/// The pairs of bytes that the fields of 16 codes lie in, and how far each field is shifted (negative: to the right).
const PAIRS: [[u8; 16]; 2] =
    [[0, 1, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7], [7, 8, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14]];
const SHIFTS: [i16; 8] = [0, -7, -6, -5, -4, -3, -2, -1];
const OWN: [u8; 16] = [1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128];

#[target_feature(enable = "neon,dotprod")]
unsafe fn dot_of_row(view: View<'_>, row: usize, query: &PreparedQuery) -> i32 {
    let rest = &view.rest[row * view.bytes..];
    let chunks = view.dimensions.div_ceil(16);
    assert!(rest.len() >= 14 * (chunks - 1) + 16 && query.padded.len() >= 16 * chunks);
    // SAFETY: the constants are as long as the vectors.
    let (pairs, shifts, own) = unsafe {
        ([vld1q_u8(PAIRS[0].as_ptr()), vld1q_u8(PAIRS[1].as_ptr())], vld1q_s16(SHIFTS.as_ptr()), vld1q_u8(OWN.as_ptr()))
    };
    let mut sums = [vdupq_n_s32(0); 2];
    for chunk in 0..chunks {
        // SAFETY: inside, as was checked above.
        let (packed, of_query) =
            unsafe { (vld1q_u8(rest.as_ptr().add(14 * chunk)), vld1q_s8(query.padded.as_ptr().add(16 * chunk))) };
        let eight = |pairs| vmovn_u16(vshlq_u16(vreinterpretq_u16_u8(vqtbl1q_u8(packed, pairs)), shifts));
        let seven = vandq_u8(vcombine_u8(eight(pairs[0]), eight(pairs[1])), vdupq_n_u8(0x7f));
        let signs = (view.sign_word(row, chunk / 4) >> (16 * (chunk % 4))) as u16;
        let signs = vcombine_u8(vdup_n_u8(signs as u8), vdup_n_u8((signs >> 8) as u8));
        let codes = vorrq_u8(seven, vandq_u8(vtstq_u8(signs, own), vdupq_n_u8(0x80)));
        sums[chunk % 2] = sdot(sums[chunk % 2], vreinterpretq_s8_u8(codes), of_query);
    }
    vaddvq_s32(vaddq_s32(sums[0], sums[1]))
}

/// Sums of query parts where rows have a sign: two rows a vector.
pub(super) fn sums_neon(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    assert!(Path::Neon.is_available(), "dispatch chose a path that this processor runs");
    // SAFETY: the features were detected.
    unsafe { sums_of(view, first, planes, sums) }
}

#[target_feature(enable = "neon")]
unsafe fn sums_of(view: View<'_>, first: usize, planes: &Planes, sums: &mut [i32]) {
    let signs = &view.signs[place(first, 0, view.words)..];
    for (block, out) in signs.chunks_exact(view.words * GROUP).zip(sums.chunks_exact_mut(GROUP)) {
        for (pair, out) in out.chunks_exact_mut(2).enumerate() {
            let mut counts = [vdupq_n_u64(0); PLANES];
            for (words, parts) in block.chunks_exact(GROUP).zip(&planes.words) {
                let words = &words[2 * pair..2 * pair + 2];
                // SAFETY: the part is two words.
                let words = unsafe { vld1q_u64(words.as_ptr()) };
                for (count, part) in counts.iter_mut().zip(parts) {
                    let common = vreinterpretq_u8_u64(vandq_u64(words, vdupq_n_u64(*part)));
                    *count = vpadalq_u32(*count, vpaddlq_u16(vpaddlq_u8(vcntq_u8(common))));
                }
            }
            let lane = |lane: usize| {
                let of = |count: uint64x2_t| if lane == 0 { vgetq_lane_u64::<0>(count) } else { vgetq_lane_u64::<1>(count) } as i32;
                let [one, two, four, minus_eight] = counts.map(of);
                one + 2 * two + 4 * four - 8 * minus_eight
            };
            out.copy_from_slice(&[lane(0), lane(1)]);
        }
    }
}
