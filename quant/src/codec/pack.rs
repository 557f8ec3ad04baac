//! Codes in bytes: 2, 4 or 8 bits each, lowest first; and the dense form of ternary codes.

/// Packs codes of 2, 4 or 8 bits, lowest bits first; the last byte is filled with zeros.
///
/// `out` is `ceil(codes * bits / 8)` long; a shorter one takes what fits.
#[inline]
pub fn pack(codes: &[u8], bits: usize, out: &mut [u8]) {
    match bits {
        8 => out.iter_mut().zip(codes).for_each(|(out, code)| *out = *code),
        4 => {
            for (out, pair) in out.iter_mut().zip(codes.chunks(2)) {
                *out = pair[0] | pair.get(1).copied().unwrap_or(0) << 4;
            }
        }
        _ => {
            for (out, four) in out.iter_mut().zip(codes.chunks(4)) {
                *out = four.iter().enumerate().fold(0, |byte, (index, code)| byte | code << (2 * index));
            }
        }
    }
}

/// Undoes [`pack`] for as many codes as `out` takes.
#[inline]
pub fn unpack(bytes: &[u8], bits: usize, out: &mut [u8]) {
    match bits {
        8 => out.iter_mut().zip(bytes).for_each(|(out, byte)| *out = *byte),
        4 => {
            for (pair, byte) in out.chunks_mut(2).zip(bytes) {
                pair[0] = byte & 15;
                if let Some(high) = pair.get_mut(1) {
                    *high = byte >> 4;
                }
            }
        }
        _ => {
            for (four, byte) in out.chunks_mut(4).zip(bytes) {
                for (index, code) in four.iter_mut().enumerate() {
                    *code = byte >> (2 * index) & 3;
                }
            }
        }
    }
}

/// Ternary codes in a byte of the dense form: 3^5 = 243 fits, 1.6 bits each.
const TRITS_PER_BYTE: usize = 5;

/// Packs ternary codes (0, 1, 2) five to a byte, the first the lowest digit. For storage; kernels use 2 bits. A larger
/// code is taken as 2.
pub fn pack_trits(codes: &[u8]) -> Vec<u8> {
    codes.chunks(TRITS_PER_BYTE).map(|five| five.iter().rev().fold(0, |byte, code| byte * 3 + (*code).min(2))).collect()
}

/// Undoes [`pack_trits`] for as many codes as were packed. None when the bytes are too few or one is over 242.
pub fn unpack_trits(bytes: &[u8], codes: usize) -> Option<Vec<u8>> {
    if bytes.len() != codes.div_ceil(TRITS_PER_BYTE) || bytes.iter().any(|byte| *byte > 242) {
        return None;
    }
    let mut out = Vec::with_capacity(codes);
    for byte in bytes {
        let mut rest = *byte;
        for _ in 0..TRITS_PER_BYTE.min(codes - out.len()) {
            out.push(rest % 3);
            rest /= 3;
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn packing_is_undone_at_any_length(codes in prop::collection::vec(any::<u8>(), 0..100)) {
            for bits in [2_usize, 4, 8] {
                let codes: Vec<u8> = codes.iter().map(|code| code & ((1_u16 << bits) - 1) as u8).collect();
                let mut bytes = vec![0; (codes.len() * bits).div_ceil(8)];
                pack(&codes, bits, &mut bytes);
                let mut back = vec![0xAA; codes.len()];
                unpack(&bytes, bits, &mut back);
                prop_assert_eq!(&back, &codes);
            }
            let trits: Vec<u8> = codes.iter().map(|code| code % 3).collect();
            prop_assert_eq!(unpack_trits(&pack_trits(&trits), trits.len()).unwrap(), trits);
        }
    }

    #[test]
    fn dense_ternary_bytes_that_no_packing_gives_are_refused() {
        assert_eq!(unpack_trits(&[243], 5), None);
        assert_eq!(unpack_trits(&[0, 0], 5), None);
    }
}
