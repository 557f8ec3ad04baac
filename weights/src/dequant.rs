//! Decodes stored elements into `f32`. The block layouts follow ggml's published `ggml-common.h`; results equal its
//! scalar reference bit for bit (same operations, same order, no fused multiply-add).

use half::{bf16, f16};

use crate::{DType, TensorError};

/// Decodes `raw` into `out`. Fails unless `raw` is exactly the stored form of `out.len()` elements.
pub fn decode(dtype: DType, raw: &[u8], out: &mut [f32]) -> Result<(), TensorError> {
    if dtype.bytes_for(out.len()) != Some(raw.len()) {
        return Err(TensorError::Length { dtype, bytes: raw.len(), elements: out.len() });
    }
    match dtype {
        DType::F64 => each(raw, out, |bytes| f64::from_le_bytes(bytes) as f32),
        DType::F32 => each(raw, out, f32::from_le_bytes),
        DType::F16 => each(raw, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        DType::BF16 => each(raw, out, |bytes| bf16::from_le_bytes(bytes).to_f32()),
        DType::I64 => each(raw, out, |bytes| i64::from_le_bytes(bytes) as f32),
        DType::U64 => each(raw, out, |bytes| u64::from_le_bytes(bytes) as f32),
        DType::I32 => each(raw, out, |bytes| i32::from_le_bytes(bytes) as f32),
        DType::U32 => each(raw, out, |bytes| u32::from_le_bytes(bytes) as f32),
        DType::I16 => each(raw, out, |bytes| f32::from(i16::from_le_bytes(bytes))),
        DType::U16 => each(raw, out, |bytes| f32::from(u16::from_le_bytes(bytes))),
        DType::I8 => each(raw, out, |bytes| f32::from(i8::from_le_bytes(bytes))),
        DType::U8 => each(raw, out, |[byte]: [u8; 1]| f32::from(byte)),
        DType::Bool => each(raw, out, |[byte]: [u8; 1]| f32::from(u8::from(byte != 0))),
        DType::Q4_0 => blocks::<18, 32>(raw, out, q4_0),
        DType::Q4_1 => blocks::<20, 32>(raw, out, q4_1),
        DType::Q8_0 => blocks::<34, 32>(raw, out, q8_0),
        DType::Q4K => blocks::<144, 256>(raw, out, q4_k),
        DType::Q6K => blocks::<210, 256>(raw, out, q6_k),
        // `bytes_for` above has refused them: they do not decode without their scales.
        DType::Int8 | DType::Int4 | DType::Int2 | DType::Ternary => {}
    }
    Ok(())
}

fn each<const BYTES: usize>(raw: &[u8], out: &mut [f32], convert: impl Fn([u8; BYTES]) -> f32) {
    let (elements, _) = raw.as_chunks::<BYTES>();
    for (value, element) in out.iter_mut().zip(elements) {
        *value = convert(*element);
    }
}

fn blocks<const BYTES: usize, const ELEMENTS: usize>(
    raw: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    let (blocks, _) = raw.as_chunks::<BYTES>();
    let (values, _) = out.as_chunks_mut::<ELEMENTS>();
    for (block, values) in blocks.iter().zip(values) {
        decode(block, values);
    }
}

fn half_at(block: &[u8], offset: usize) -> f32 {
    f16::from_le_bytes([block[offset], block[offset + 1]]).to_f32()
}

/// `x = d (q - 8)`; low nibbles are the first 16 elements, high nibbles the last 16.
fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((&byte, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = (f32::from(byte & 15) - 8.0) * scale;
        *high = (f32::from(byte >> 4) - 8.0) * scale;
    }
}

/// `x = d q + m`; nibbles as in [`q4_0`].
fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let (low, high) = out.split_at_mut(16);
    for ((&byte, low), high) in block[4..].iter().zip(low).zip(high) {
        *low = f32::from(byte & 15) * scale + minimum;
        *high = f32::from(byte >> 4) * scale + minimum;
    }
}

/// `x = d q`.
fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (&byte, value) in block[2..].iter().zip(out) {
        *value = f32::from(byte.cast_signed()) * scale;
    }
}

/// `x = (d s) q - (dmin m)`, with the 6-bit sub-scales `s` and sub-minima `m` of eight groups of 32 packed in 12 bytes.
fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
    let packed = &block[4..16];
    for (pair, codes) in block[16..].chunks_exact(32).enumerate() {
        // 32 bytes of codes hold two groups: the low nibbles are group 2 * pair, the high nibbles the one after it.
        let (scale_low, minimum_low) = sub_scale(packed, 2 * pair);
        let (scale_high, minimum_high) = sub_scale(packed, 2 * pair + 1);
        let (low, high) = out[64 * pair..64 * pair + 64].split_at_mut(32);
        let (d_low, m_low) = (scale * scale_low, minimum * minimum_low);
        let (d_high, m_high) = (scale * scale_high, minimum * minimum_high);
        for ((&byte, low), high) in codes.iter().zip(low).zip(high) {
            *low = d_low * f32::from(byte & 15) - m_low;
            *high = d_high * f32::from(byte >> 4) - m_high;
        }
    }
}

/// Unpacks the 6-bit scale and minimum of one of eight groups: groups 0-3 lie in the low six bits of bytes 0-3 and 4-7;
/// groups 4-7 have their low four bits in bytes 8-11 and their top two bits in the spare bits of bytes 0-7.
fn sub_scale(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        (
            (packed[group + 4] & 15) | ((packed[group - 4] >> 6) << 4),
            (packed[group + 4] >> 4) | ((packed[group] >> 6) << 4),
        )
    };
    (f32::from(scale), f32::from(minimum))
}

/// `x = (d s) (q - 32)`: 4 low bits in `ql`, 2 high bits in `qh`, one signed scale per 16 elements.
fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let scale = half_at(block, 208);
    for half in 0..2 {
        let low = &block[64 * half..64 * half + 64];
        let high = &block[128 + 32 * half..160 + 32 * half];
        let scales = &block[192 + 8 * half..200 + 8 * half];
        let out = &mut out[128 * half..128 * half + 128];
        for quarter in 0..4 {
            for index in 0..32 {
                let byte = low[32 * (quarter % 2) + index];
                let nibble = if quarter < 2 { byte & 15 } else { byte >> 4 };
                let code = nibble | (((high[index] >> (2 * quarter)) & 3) << 4);
                let sub_scale = f32::from(scales[2 * quarter + index / 16].cast_signed());
                out[32 * quarter + index] = scale * sub_scale * (f32::from(code) - 32.0);
            }
        }
    }
}
