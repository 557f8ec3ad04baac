//! What is done to each row by itself: norms, gates, rotation.

use super::lanes::{exp, sum};
use super::{on_best_path, part_rows};
use crate::parallel::for_each_item;

/// Runs `work` on parts of `input` and `out`, whole rows each.
fn by_rows(
    input: &[f32],
    input_width: usize,
    out: &mut [f32],
    out_width: usize,
    threads: usize,
    work: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    if input_width == 0 || out_width == 0 {
        return;
    }
    let rows = out.len() / out_width;
    assert_eq!(input.len(), rows * input_width, "input and output have the same rows");
    let part = part_rows(rows, input_width.max(out_width), threads);
    if part >= rows {
        work(input, out);
    } else {
        let parts = input.chunks(part * input_width).zip(out.chunks_mut(part * out_width));
        for_each_item(parts, threads, |_, (input, out)| work(input, out));
    }
}

/// RMSNorm of each row of `weight.len()` numbers: `x / sqrt(mean(x^2) + epsilon) * weight`.
pub fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32], threads: usize) {
    by_rows(x, weight.len(), out, weight.len(), threads, |x, out| rms_rows(x, weight, epsilon, out));
}

on_best_path! {
    fn rms_rows(x: &[f32], weight: &[f32], epsilon: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            let mean = sum(x, |value, lane| value.mul_add(value, lane)) / weight.len() as f32;
            let factor = 1.0 / (mean + epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = x * factor * weight;
            }
        }
    }
}

/// LayerNorm of each row of `weight.len()` numbers; `bias` may be empty.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32], threads: usize) {
    assert!(bias.is_empty() || bias.len() == weight.len(), "a bias is as wide as its weight");
    by_rows(x, weight.len(), out, weight.len(), threads, |x, out| layer_rows(x, weight, bias, epsilon, out));
}

on_best_path! {
    fn layer_rows(x: &[f32], weight: &[f32], bias: &[f32], epsilon: f32, out: &mut [f32]) {
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            let mean = sum(x, |value, lane| lane + value) / weight.len() as f32;
            let variance = sum(x, |value, lane| (value - mean).mul_add(value - mean, lane)) / weight.len() as f32;
            let factor = 1.0 / (variance + epsilon).sqrt();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
                *out = (x - mean) * factor * weight;
            }
            for (out, bias) in out.iter_mut().zip(bias) {
                *out += bias;
            }
        }
    }
}

/// SwiGLU: rows of `[gate, up]`, each `width` wide, become `silu(gate) * up`.
pub fn swiglu(wide: &[f32], width: usize, out: &mut [f32], threads: usize) {
    by_rows(wide, 2 * width, out, width, threads, |wide, out| swiglu_rows(wide, width, out));
}

on_best_path! {
    fn swiglu_rows(wide: &[f32], width: usize, out: &mut [f32]) {
        for (wide, out) in wide.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = wide.split_at(width);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + exp(-gate)) * up;
            }
        }
    }
}

/// GELU by the error function, `x (1 + erf(x / sqrt 2)) / 2`, in place; the error function to 1.5e-7 (Abramowitz and Stegun 7.1.26).
pub fn gelu_erf(x: &mut [f32], threads: usize) {
    let part = part_rows(x.len(), 1, threads);
    for_each_item(x.chunks_mut(part), threads, |_, x| gelu_erf_part(x));
}

on_best_path! {
    fn gelu_erf_part(x: &mut [f32]) {
        for value in x {
            let scaled = *value * std::f32::consts::FRAC_1_SQRT_2;
            let t = 1.0 / 0.327_591_1_f32.mul_add(scaled.abs(), 1.0);
            let mut series = 1.061_405_4_f32;
            for coefficient in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
                series = series.mul_add(t, coefficient);
            }
            let rest = series * t * exp(-scaled * scaled);
            let erf = (1.0 - rest).copysign(scaled);
            *value = 0.5 * *value * (1.0 + erf);
        }
    }
}

/// GELU by the hyperbolic tangent, in place.
pub fn gelu_tanh(x: &mut [f32], threads: usize) {
    let part = part_rows(x.len(), 1, threads);
    for_each_item(x.chunks_mut(part), threads, |_, x| gelu_tanh_part(x));
}

on_best_path! {
    fn gelu_tanh_part(x: &mut [f32]) {
        for value in x {
            // sqrt(2 / pi) (x + 0.044715 x^3), twice: tanh(y) = 1 - 2 / (e^(2 y) + 1).
            let twice = 1.595_769 * *value * (0.044_715 * *value).mul_add(*value, 1.0);
            *value *= 1.0 - 1.0 / (exp(twice) + 1.0);
        }
    }
}

/// `x += y`.
pub fn add(x: &mut [f32], y: &[f32], threads: usize) {
    assert_eq!(x.len(), y.len(), "both have the same length");
    let part = part_rows(x.len(), 1, threads);
    if part >= x.len() {
        add_part(x, y);
    } else {
        for_each_item(x.chunks_mut(part).zip(y.chunks(part)), threads, |_, (x, y)| add_part(x, y));
    }
}

on_best_path! {
    fn add_part(x: &mut [f32], y: &[f32]) {
        for (x, y) in x.iter_mut().zip(y) {
            *x += y;
        }
    }
}

/// Cosines and sines of rotary positions, in the half-split layout.
#[derive(Debug, Clone, Default)]
pub struct Rotary {
    /// `[positions, head / 2]` each.
    cosine: Vec<f32>,
    sine: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// Tabulates positions. Angles are computed in f64: f32 loses digits at large positions.
    pub fn new(positions: usize, head: usize, theta: f64) -> Self {
        let half = head / 2;
        let mut table = Self { cosine: Vec::new(), sine: Vec::new(), half };
        let rates: Vec<f64> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / head as f64)).collect();
        for position in 0..positions {
            table.cosine.extend(rates.iter().map(|rate| (position as f64 * rate).cos() as f32));
            table.sine.extend(rates.iter().map(|rate| (position as f64 * rate).sin() as f32));
        }
        table
    }

    /// Rotates the first `heads` heads of each row in place. `positions`: one for each row, within the table.
    ///
    /// # Shapes
    /// `x: [rows, stride]`, of which `heads * head` are rotated.
    pub fn apply(&self, x: &mut [f32], stride: usize, heads: usize, positions: &[usize], threads: usize) {
        assert!(stride >= heads * self.half * 2 && x.len() == stride * positions.len(), "rows hold their heads");
        assert!(
            positions.iter().all(|position| (position + 1) * self.half <= self.cosine.len()),
            "positions are tabulated"
        );
        if stride == 0 {
            return;
        }
        let part = part_rows(positions.len(), stride, threads);
        let work = |(x, positions): (&mut [f32], &[usize])| {
            for (row, position) in x.chunks_exact_mut(stride).zip(positions) {
                let at = position * self.half;
                rotate(row, heads, &self.cosine[at..at + self.half], &self.sine[at..at + self.half]);
            }
        };
        if part >= positions.len() {
            work((x, positions));
        } else {
            let parts = x.chunks_mut(part * stride).zip(positions.chunks(part));
            for_each_item(parts, threads, |_, part| work(part));
        }
    }
}

on_best_path! {
    fn rotate(row: &mut [f32], heads: usize, cosine: &[f32], sine: &[f32]) {
        let half = cosine.len();
        for head in row.chunks_exact_mut(2 * half).take(heads) {
            let (first, second) = head.split_at_mut(half);
            for (((first, second), cosine), sine) in first.iter_mut().zip(second).zip(cosine).zip(sine) {
                let (a, b) = (*first, *second);
                *first = a.mul_add(*cosine, -(b * sine));
                *second = b.mul_add(*cosine, a * sine);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 17.0).collect()
    }

    fn close(made: &[f32], right: &[f64]) {
        for (made, right) in made.iter().zip(right) {
            assert!((f64::from(*made) - right).abs() < 3e-6 * right.abs().max(1.0), "{made} {right}");
        }
    }

    #[test]
    fn norms_are_their_formulas_for_any_width_and_any_number_of_threads() {
        for width in [1, 5, 16, 33, 576] {
            let (x, weight, bias) = (numbers(width * 40), numbers(width), numbers(2 * width)[width..].to_vec());
            let (mut rms, mut layer) = (Vec::new(), Vec::new());
            for row in x.chunks(width) {
                let row: Vec<f64> = row.iter().map(|v| f64::from(*v)).collect();
                let square = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
                let mean = row.iter().sum::<f64>() / width as f64;
                let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
                for ((v, w), b) in row.iter().zip(&weight).zip(&bias) {
                    rms.push(v / (square + 1e-5).sqrt() * f64::from(*w));
                    layer.push((v - mean) / (variance + 1e-5).sqrt() * f64::from(*w) + f64::from(*b));
                }
            }
            let mut made = [vec![0.0; x.len()], vec![0.0; x.len()]];
            rms_norm(&x, &weight, 1e-5, &mut made[0], 1);
            rms_norm(&x, &weight, 1e-5, &mut made[1], 3);
            close(&made[0], &rms);
            assert_eq!(made[0], made[1]);
            layer_norm(&x, &weight, &bias, 1e-5, &mut made[0], 1);
            close(&made[0], &layer);
        }
    }

    #[test]
    fn gates_are_their_formulas() {
        let x = numbers(2 * 24 * 9);
        let mut made = vec![0.0; 24 * 9];
        swiglu(&x, 24, &mut made, 2);
        let right = x.chunks(48).flat_map(|row| {
            (0..24).map(|i| f64::from(row[i]) / (1.0 + (-f64::from(row[i])).exp()) * f64::from(row[24 + i]))
        });
        close(&made, &right.collect::<Vec<_>>());
        let mut tanh = x.clone();
        gelu_tanh(&mut tanh, 1);
        let right = x
            .iter()
            .map(|v| f64::from(*v))
            .map(|v| 0.5 * v * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v.powi(3))).tanh()));
        close(&tanh, &right.collect::<Vec<_>>());
        let mut erf = x.clone();
        gelu_erf(&mut erf, 1);
        // The error function by its series, which converges for these arguments.
        let right = x.iter().map(|v| f64::from(*v)).map(|v| {
            let z = v / std::f64::consts::SQRT_2;
            let (mut term, mut series) = (z, z);
            for n in 1..60 {
                term *= -z * z / n as f64;
                series += term / (2 * n + 1) as f64;
            }
            0.5 * v * (1.0 + series * 2.0 / std::f64::consts::PI.sqrt())
        });
        close(&erf, &right.collect::<Vec<_>>());
    }

    #[test]
    fn rotation_turns_pairs_by_their_angle_and_leaves_other_numbers() {
        let (head, heads, stride) = (8, 3, 30);
        let table = Rotary::new(50, head, 1e4);
        let x = numbers(2 * stride);
        let mut made = x.clone();
        table.apply(&mut made, stride, heads, &[7, 49], 1);
        for (row, position) in [(0, 7.0_f64), (1, 49.0)] {
            for h in 0..heads {
                for i in 0..head / 2 {
                    let at = row * stride + h * head + i;
                    let angle = position * 1e4_f64.powf(-2.0 * i as f64 / head as f64);
                    let (a, b) = (f64::from(x[at]), f64::from(x[at + head / 2]));
                    close(&[made[at]], &[a * angle.cos() - b * angle.sin()]);
                    close(&[made[at + head / 2]], &[b * angle.cos() + a * angle.sin()]);
                }
            }
            assert_eq!(
                made[row * stride + heads * head..(row + 1) * stride],
                x[row * stride + heads * head..(row + 1) * stride]
            );
        }
    }
}
