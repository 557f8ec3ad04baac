//! Takes quantised matrices over from a GGUF file code by code: nothing is rounded a second time.

use half::f16;
use mneme_quant::{Fit, Granularity, Quantized, Scheme, Spec, Width};
use mneme_weights::DType;

/// Weights of one block of either format.
const BLOCK: usize = 32;

/// 4 bits with scale and minimum for each 32: what `Q4_1` stores.
const Q4_1: Spec = Spec::int4(BLOCK as u32);
/// 8 bits with a scale for each 32: what `Q8_0` stores.
const Q8_0: Spec = Spec {
    width: Width::Eight,
    granularity: Granularity::Group(BLOCK as u32),
    scheme: Scheme::Symmetric,
    fit: Fit::Range,
};

/// Bytes of one block; `None` for a format that has no exact counterpart here.
pub(super) fn block_bytes(dtype: DType) -> Option<usize> {
    match dtype {
        DType::Q4_1 => Some(20),
        DType::Q8_0 => Some(34),
        _ => None,
    }
}

/// The matrix `[rows, columns]` whose blocks these are. `None` when the format has no exact counterpart, lengths do not fit or a
/// scale is no finite number.
pub(super) fn matrix(dtype: DType, blocks: &[u8], rows: usize, columns: usize) -> Option<Quantized> {
    let bytes = block_bytes(dtype)?;
    let count = rows.checked_mul(columns)? / BLOCK;
    if !columns.is_multiple_of(BLOCK) || blocks.len() != count.checked_mul(bytes)? {
        return None;
    }
    let half_at = |block: &[u8], at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    let blocks = blocks.chunks_exact(bytes);
    let (mut scales, mut minimums) = (Vec::with_capacity(count), Vec::new());
    let (spec, codes) = match dtype {
        DType::Q4_1 => {
            let mut codes = Vec::with_capacity(count * BLOCK / 2);
            for block in blocks {
                scales.push(half_at(block, 0));
                minimums.push(half_at(block, 2));
                // Low halves of the bytes are the first sixteen codes, high halves the others; here neighbours share a byte.
                let nibbles = &block[4..];
                codes.extend(nibbles.as_chunks::<2>().0.iter().map(|[a, b]| a & 15 | b << 4));
                codes.extend(nibbles.as_chunks::<2>().0.iter().map(|[a, b]| a >> 4 | b & 0xF0));
            }
            (Q4_1, codes)
        }
        DType::Q8_0 => {
            let mut codes = Vec::with_capacity(count * BLOCK);
            for block in blocks {
                scales.push(half_at(block, 0));
                codes.extend(block[2..].iter().map(|code| code ^ 0x80));
            }
            (Q8_0, codes)
        }
        _ => return None,
    };
    Quantized::from_parts(spec, rows, columns, codes, scales, minimums).ok()
}

#[cfg(test)]
mod tests {
    use mneme_quant::PackedWeights;
    use mneme_weights::dequant::decode;

    use super::*;

    #[test]
    fn codes_that_were_taken_over_decode_to_the_same_bits() {
        for dtype in [DType::Q4_1, DType::Q8_0] {
            let (rows, columns) = (5, 96);
            let bytes = block_bytes(dtype).unwrap();
            let mut blocks: Vec<u8> = (0..rows * columns / BLOCK * bytes).map(|i| (i * 89 % 251) as u8).collect();
            for block in blocks.chunks_mut(bytes) {
                let (scale, minimum) = (f32::from(block[9]) / 700.0, -f32::from(block[11]) / 90.0);
                block[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
                if dtype == DType::Q4_1 {
                    block[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
                }
            }
            let mut right = vec![0.0; rows * columns];
            decode(dtype, &blocks, &mut right).unwrap();
            let taken = matrix(dtype, &blocks, rows, columns).unwrap();
            assert_eq!(taken.dequantize(1), right, "{dtype}");
            assert_eq!(PackedWeights::from_quantized(&taken).unwrap().dequantize().unwrap(), right, "{dtype}");
            assert!(matrix(dtype, &blocks[1..], rows, columns).is_none());
        }
    }
}
