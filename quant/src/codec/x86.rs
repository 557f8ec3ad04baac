//! Encoding and decoding on AVX-512: sixteen values an instruction, the same bits as the scalar definitions.
#![expect(unsafe_code, reason = "vector loads, stores and target features")]
#![cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics name where they come from"))]

use std::arch::x86_64::*;

use half::f16;

use super::decode::decode_scalar;
use super::encode::{RowError, encode_scalar};
use super::{Grid, Params, Scheme, Spec, Width};
use crate::dispatch::Path;

/// Values that an encoding step takes.
const STEP: usize = 32;

fn assert_available() {
    assert!(Path::Avx512.is_available(), "dispatch chose a path that this processor runs");
}

/// Fits by range and encodes one row in groups. `codes`, `scales` and `minimums` are the row's own.
pub(super) fn quantize_row(
    values: &[f32],
    group: usize,
    spec: Spec,
    codes: &mut [u8],
    scales: &mut [f16],
    minimums: &mut [f16],
) -> Result<(), RowError> {
    assert_available();
    // SAFETY: the features were detected; the slices are indexed with checks at group level.
    unsafe { quantize_row_avx512(values, group, spec, codes, scales, minimums) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,f16c")]
unsafe fn quantize_row_avx512(
    values: &[f32],
    group: usize,
    spec: Spec,
    codes: &mut [u8],
    scales: &mut [f16],
    minimums: &mut [f16],
) -> Result<(), RowError> {
    let grid = spec.grid();
    let group_bytes = group * spec.width.bits() / 8;
    for (index, values) in values.chunks(group).enumerate() {
        let Some((low, high)) = range(values) else {
            let column = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
            return Err(RowError::NotFinite(index * group + column));
        };
        let (scale, minimum) = match spec.scheme {
            Scheme::Symmetric => (high.max(-low) / grid.high, 0.0),
            Scheme::ScaleMin => ((high * 0.5 - low * 0.5) / grid.high * 2.0, low),
        };
        // Both at once; rounding to nearest even, as `half` does.
        let bits = _mm_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm_set_ps(0.0, 0.0, minimum, scale));
        let both = _mm_cvtsi128_si32(bits) as u32;
        let (scale, minimum) = (f16::from_bits(both as u16), f16::from_bits((both >> 16) as u16));
        if !scale.is_finite() || !minimum.is_finite() {
            return Err(RowError::ScaleRange(index));
        }
        scales[index] = scale;
        if spec.scheme == Scheme::ScaleMin {
            minimums[index] = minimum;
        }
        let back = _mm_cvtph_ps(bits);
        let params = Params { scale: _mm_cvtss_f32(back), minimum: _mm_cvtss_f32(_mm_shuffle_ps::<1>(back, back)) };
        // SAFETY: the features are enabled here.
        unsafe { encode_avx512(values, params, grid, spec.width, &mut codes[index * group_bytes..]) };
    }
    Ok(())
}

#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn range(values: &[f32]) -> Option<(f32, f32)> {
    let mut low = _mm512_set1_ps(f32::INFINITY);
    let mut high = _mm512_set1_ps(f32::NEG_INFINITY);
    // x - x is 0 when finite and NaN otherwise; the sum keeps the NaN.
    let mut strange = _mm512_setzero_ps();
    let chunks = values.chunks_exact(16);
    let rest = chunks.remainder();
    for chunk in chunks {
        // SAFETY: the chunk holds sixteen floats.
        let x = unsafe { _mm512_loadu_ps(chunk.as_ptr()) };
        low = _mm512_min_ps(low, x);
        high = _mm512_max_ps(high, x);
        strange = _mm512_add_ps(strange, _mm512_sub_ps(x, x));
    }
    if !rest.is_empty() {
        let mask = (1_u16 << rest.len()) - 1;
        // SAFETY: only the lanes of `rest` are read.
        let x = unsafe { _mm512_maskz_loadu_ps(mask, rest.as_ptr()) };
        low = _mm512_mask_min_ps(low, mask, low, x);
        high = _mm512_mask_max_ps(high, mask, high, x);
        strange = _mm512_add_ps(strange, _mm512_sub_ps(x, x));
    }
    if _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(strange, strange) != 0 {
        return None;
    }
    Some((_mm512_reduce_min_ps(low), _mm512_reduce_max_ps(high)))
}

/// Encodes values that share their parameters.
pub(super) fn encode_run(values: &[f32], params: Params, grid: Grid, width: Width, codes: &mut [u8]) {
    assert_available();
    // SAFETY: the features were detected.
    unsafe { encode_avx512(values, params, grid, width, codes) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn encode_avx512(values: &[f32], params: Params, grid: Grid, width: Width, codes: &mut [u8]) {
    let step_bytes = STEP * width.bits() / 8;
    let whole = values.len() / STEP;
    assert!(codes.len() >= whole * step_bytes, "codes have room for the values");
    let minimum = _mm512_set1_ps(params.minimum);
    let inverse = _mm512_set1_ps(params.inverse());
    let (low, high) = (_mm512_set1_ps(grid.low), _mm512_set1_ps(grid.high));
    let offset = _mm512_set1_epi32(i32::from(grid.offset));
    for step in 0..whole {
        // SAFETY: 32 values are read at step * 32 < values.len(), and step_bytes written within `codes` by the assert.
        unsafe {
            let address = values.as_ptr().add(step * STEP);
            let bytes = codes.as_mut_ptr().add(step * step_bytes);
            let mut halves = [_mm_setzero_si128(); 2];
            for (half, out) in halves.iter_mut().enumerate() {
                let x = _mm512_loadu_ps(address.add(half * 16));
                let level = _mm512_mul_ps(_mm512_sub_ps(x, minimum), inverse);
                let level = _mm512_min_ps(_mm512_max_ps(level, low), high);
                // The conversion rounds to nearest even, as the scalar form does.
                *out = _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_cvtps_epi32(level), offset));
            }
            let both = _mm256_set_m128i(halves[1], halves[0]);
            match width {
                Width::Eight => _mm256_storeu_si256(bytes.cast(), both),
                Width::Four => {
                    let pairs = _mm256_maddubs_epi16(both, _mm256_set1_epi16(0x1001));
                    _mm_storeu_si128(bytes.cast(), _mm256_cvtepi16_epi8(pairs));
                }
                Width::Two | Width::Ternary => {
                    let pairs = _mm256_maddubs_epi16(both, _mm256_set1_epi16(0x0401));
                    let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi32(0x0010_0001));
                    _mm_storel_epi64(bytes.cast(), _mm256_cvtepi32_epi8(fours));
                }
            }
        }
    }
    if whole * STEP < values.len() {
        encode_scalar(&values[whole * STEP..], params, grid, width, &mut codes[whole * step_bytes..]);
    }
}

/// Decodes groups one after the other; `scales` and `minimums` start at the first group's.
pub(super) fn decode_groups(codes: &[u8], group: usize, spec: Spec, scales: &[f16], minimums: &[f16], out: &mut [f32]) {
    assert_available();
    // SAFETY: the features were detected.
    unsafe { decode_avx512(codes, group, spec, scales, minimums, out) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
unsafe fn decode_avx512(codes: &[u8], group: usize, spec: Spec, scales: &[f16], minimums: &[f16], out: &mut [f32]) {
    let bits = spec.width.bits();
    // The values of all codes, sixteen entries: for 2 bits four copies, so that the bits above a code need no mask.
    let ramp = _mm512_set_ps(15.0, 14.0, 13.0, 12.0, 11.0, 10.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0);
    let ramp_two = _mm512_set_ps(3.0, 2.0, 1.0, 0.0, 3.0, 2.0, 1.0, 0.0, 3.0, 2.0, 1.0, 0.0, 3.0, 2.0, 1.0, 0.0);
    let offset = if spec.scheme == Scheme::Symmetric { f32::from(spec.width.offset()) } else { 0.0 };
    let levels = _mm512_sub_ps(if bits == 2 { ramp_two } else { ramp }, _mm512_set1_ps(offset));
    let shifts_two = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
    let shifts_four = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    let spread = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
    for (index, out) in out.chunks_mut(group).enumerate() {
        let codes = &codes[index * group * bits / 8..];
        let bits_of = |floats: &[f16]| floats.get(index).map_or(0, |value| i32::from(value.to_bits()));
        let scale = _mm512_cvtph_ps(_mm256_set1_epi16(bits_of(scales) as i16));
        let minimum = _mm512_cvtph_ps(_mm256_set1_epi16(bits_of(minimums) as i16));
        let whole = out.len() / 16;
        assert!(codes.len() >= whole * 2 * bits, "codes cover the output");
        let value_of = |level: __m512| {
            let scaled = _mm512_mul_ps(level, scale);
            if spec.scheme == Scheme::Symmetric { scaled } else { _mm512_add_ps(scaled, minimum) }
        };
        let table = value_of(levels);
        for step in 0..whole {
            // SAFETY: step * 16 + 16 <= out.len(), and 2 * bits bytes of codes are read for each step, by the assert.
            unsafe {
                let bytes = codes.as_ptr().add(step * 2 * bits);
                let values = match bits {
                    2 => {
                        let word = _mm512_set1_epi32(bytes.cast::<i32>().read_unaligned());
                        _mm512_permutexvar_ps(_mm512_srlv_epi32(word, shifts_two), table)
                    }
                    4 => {
                        let words = _mm512_castsi128_si512(_mm_loadl_epi64(bytes.cast()));
                        let words = _mm512_permutexvar_epi32(spread, words);
                        _mm512_permutexvar_ps(_mm512_srlv_epi32(words, shifts_four), table)
                    }
                    _ => {
                        let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.cast()));
                        value_of(_mm512_sub_ps(_mm512_cvtepi32_ps(codes), _mm512_set1_ps(offset)))
                    }
                };
                _mm512_storeu_ps(out.as_mut_ptr().add(step * 16), values);
            }
        }
        let rest = &mut out[whole * 16..];
        if !rest.is_empty() {
            let params = Params { scale: _mm512_cvtss_f32(scale), minimum: _mm512_cvtss_f32(minimum) };
            decode_scalar(&codes[whole * 2 * bits..], params, spec, rest);
        }
    }
}

/// Copies past the caches; aligned vectors in the middle, plain stores at both ends.
pub(super) fn stream_out(tile: &[f32], out: &mut [f32]) {
    assert_available();
    assert_eq!(tile.len(), out.len());
    // SAFETY: the features were detected, the lengths are equal.
    unsafe { stream_avx512(tile, out) }
}

#[target_feature(enable = "avx512f")]
unsafe fn stream_avx512(tile: &[f32], out: &mut [f32]) {
    let head = out.as_ptr().align_offset(64).min(out.len());
    out[..head].copy_from_slice(&tile[..head]);
    let whole = (out.len() - head) / 16;
    for step in 0..whole {
        // SAFETY: within both slices; the destination is aligned to 64 bytes by `head`.
        unsafe {
            let values = _mm512_loadu_ps(tile.as_ptr().add(head + step * 16));
            _mm512_stream_ps(out.as_mut_ptr().add(head + step * 16), values);
        }
    }
    let done = head + whole * 16;
    out[done..].copy_from_slice(&tile[done..]);
}

/// Makes streamed stores visible before another thread is told of them.
pub(super) fn fence() {
    // SAFETY: SSE is part of x86-64.
    unsafe { _mm_sfence() }
}
