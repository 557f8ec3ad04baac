//! Sums in sixteen lanes and an exponential that vectorises.

/// Lanes of a sum: a vector of AVX-512.
pub(super) const LANES: usize = 16;

/// Below this the exponential is 0: the smallest normal number is near.
const EXPONENT_MIN: f32 = -87.0;
const EXPONENT_MAX: f32 = 88.0;
/// `1.5 * 2^23`: adding it leaves the nearest integer in the low bits.
const MAGIC: f32 = 12_582_912.0;
/// The natural logarithm of 2 in two parts; the first has few digits, so that its multiples are exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// `e^x` to about one unit in the last place; 0 for minus infinity and all that is below the normal numbers. Coefficients of
/// Cephes' `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let bounded = x.clamp(EXPONENT_MIN, EXPONENT_MAX);
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let power = shifted - MAGIC;
    let rest = power.mul_add(-LN_2_LOW, power.mul_add(-LN_2_HIGH, bounded));
    let mut series = 1.987_569_1e-4_f32;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        series = series.mul_add(rest, coefficient);
    }
    let fraction = (series * rest).mul_add(rest, rest) + 1.0;
    let value = f32::from_bits(fraction.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < EXPONENT_MIN { 0.0 } else { value }
}

/// The sum of what a function makes of each number.
#[inline(always)]
pub(super) fn sum(values: &[f32], of: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0.0_f32; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = of(*value, *lane);
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = of(*value, *lane);
    }
    fold(lanes, |a, b| a + b)
}

/// The largest number; minus infinity for none.
#[inline(always)]
pub(super) fn largest(values: &[f32]) -> f32 {
    let (chunks, rest) = values.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *lane = if *value > *lane { *value } else { *lane };
    }
    fold(lanes, f32::max)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], join: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = join(lanes[lane], lanes[lane + half]);
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_a_few_units_in_the_last_place() {
        for step in -86_000..88_000 {
            let x = step as f32 / 1_000.0;
            let (made, right) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((made / right - 1.0).abs() < 3e-7, "{x}: {made} {right}");
        }
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(0.0).to_bits(), 1.0_f32.to_bits());
    }

    #[test]
    fn sums_and_maxima_take_every_number() {
        for length in 1..70 {
            let values: Vec<f32> = (0..length).map(|i| (i * 7 % 31) as f32).collect();
            assert_eq!(sum(&values, |value, lane| lane + value).to_bits(), values.iter().sum::<f32>().to_bits());
            let right = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(largest(&values).to_bits(), right.to_bits());
        }
    }
}
