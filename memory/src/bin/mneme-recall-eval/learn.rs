//! Learns weights: listwise softmax for the ranking, logistic regression for the confidence. Both are convex; both are solved by
//! Newton's method, so that the same data give the same weights.

/// The candidates of one question: features, and which of them answer it.
#[derive(Debug, Clone)]
pub(crate) struct List {
    /// One row of features a candidate.
    pub features: Vec<Vec<f64>>,
    /// The candidates that answer, none if the candidates missed them.
    pub gold: Vec<usize>,
}

/// Newton steps at most; a dozen are usual.
const STEPS_MAX: usize = 40;

/// Weights `w` that minimise `mean over lists of -mean over gold of log softmax(w x) + penalty |w|^2`. Features that `used` leaves
/// out get weight 0.
pub(crate) fn listwise(lists: &[&List], used: &[bool], penalty: f64) -> Vec<f64> {
    let places: Vec<usize> = (0..used.len()).filter(|at| used[*at]).collect();
    let lists: Vec<List> = lists
        .iter()
        .filter(|list| !list.gold.is_empty())
        .map(|list| List {
            features: list.features.iter().map(|row| places.iter().map(|at| row[*at]).collect()).collect(),
            gold: list.gold.clone(),
        })
        .collect();
    let found = newton(places.len(), |weights, curvature| listwise_loss(&lists, weights, penalty, curvature));
    let mut weights = vec![0.0; used.len()];
    for (at, weight) in places.into_iter().zip(found) {
        weights[at] = weight;
    }
    weights
}

fn listwise_loss(lists: &[List], weights: &[f64], penalty: f64, curvature: Option<&mut Curvature>) -> f64 {
    let size = weights.len();
    let mut loss = 0.0;
    let mut sums = Curvature::new(size);
    let share = 1.0 / lists.len().max(1) as f64;
    for list in lists {
        let scores: Vec<f64> = list.features.iter().map(|row| dot(weights, row)).collect();
        let max = scores.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
        let gold_share = share / list.gold.len() as f64;
        for gold in &list.gold {
            loss += gold_share * (max + total.ln() - scores[*gold]);
        }
        if curvature.is_none() {
            continue;
        }
        let mut mean = vec![0.0; size];
        for (row, score) in list.features.iter().zip(&scores) {
            let probability = (score - max).exp() / total;
            for (sum, x) in mean.iter_mut().zip(row) {
                *sum += probability * x;
            }
            sums.add_square(row, share * probability);
        }
        sums.add_square(&mean, -share);
        for gold in &list.gold {
            for (at, gradient) in sums.gradient.iter_mut().enumerate() {
                *gradient += gold_share * (mean[at] - list.features[*gold][at]);
            }
        }
    }
    finish(loss, weights, penalty, sums, curvature)
}

/// Weights, the last one the bias, that minimise the mean log loss of `sigmoid(w x + bias)` plus `penalty |w|^2`.
pub(crate) fn logistic(rows: &[(Vec<f64>, bool)], penalty: f64) -> Vec<f64> {
    let size = rows.first().map_or(0, |(row, _)| row.len()) + 1;
    let rows: Vec<(Vec<f64>, f64)> = rows
        .iter()
        .map(|(row, answer)| (row.iter().copied().chain([1.0]).collect(), f64::from(u8::from(*answer))))
        .collect();
    newton(size, |weights, curvature| {
        let mut sums = Curvature::new(size);
        let share = 1.0 / rows.len().max(1) as f64;
        let mut loss = 0.0;
        for (row, answer) in &rows {
            let probability = sigmoid(dot(weights, row));
            let right = if *answer > 0.5 { probability } else { 1.0 - probability };
            loss -= share * right.max(1e-12).ln();
            sums.add_square(row, share * probability * (1.0 - probability));
            for (gradient, x) in sums.gradient.iter_mut().zip(row) {
                *gradient += share * (probability - answer) * x;
            }
        }
        finish(loss, weights, penalty, sums, curvature)
    })
}

/// The logistic function.
pub(crate) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// Gradient and Hessian of a loss.
struct Curvature {
    gradient: Vec<f64>,
    hessian: Vec<Vec<f64>>,
}

impl Curvature {
    fn new(size: usize) -> Self {
        Self { gradient: vec![0.0; size], hessian: vec![vec![0.0; size]; size] }
    }

    fn add_square(&mut self, row: &[f64], weight: f64) {
        for (at, x) in row.iter().enumerate().filter(|(_, x)| **x != 0.0) {
            for (sum, y) in self.hessian[at].iter_mut().zip(row) {
                *sum += weight * x * y;
            }
        }
    }
}

fn finish(loss: f64, weights: &[f64], penalty: f64, mut sums: Curvature, curvature: Option<&mut Curvature>) -> f64 {
    if let Some(curvature) = curvature {
        for (at, weight) in weights.iter().enumerate() {
            sums.gradient[at] += 2.0 * penalty * weight;
            sums.hessian[at][at] += 2.0 * penalty;
        }
        *curvature = sums;
    }
    loss + penalty * dot(weights, weights)
}

/// Newton's method with step halving.
fn newton(size: usize, loss: impl Fn(&[f64], Option<&mut Curvature>) -> f64) -> Vec<f64> {
    let mut weights = vec![0.0; size];
    for _ in 0..STEPS_MAX {
        let mut curvature = Curvature::new(size);
        let before = loss(&weights, Some(&mut curvature));
        let step = solve(curvature.hessian, &curvature.gradient);
        let mut scale = 1.0;
        let better = loop {
            let next: Vec<f64> = weights.iter().zip(&step).map(|(weight, step)| weight - scale * step).collect();
            if loss(&next, None) < before - 1e-12 {
                break Some(next);
            }
            scale /= 2.0;
            if scale < 1e-6 {
                break None;
            }
        };
        match better {
            Some(next) => weights = next,
            None => break,
        }
    }
    weights
}

/// Solves `a x = b` by elimination with pivoting; a singular row gives 0.
fn solve(mut a: Vec<Vec<f64>>, b: &[f64]) -> Vec<f64> {
    let size = b.len();
    let mut x = b.to_vec();
    for column in 0..size {
        let pivot = (column..size).max_by(|p, q| a[*p][column].abs().total_cmp(&a[*q][column].abs())).unwrap_or(column);
        a.swap(column, pivot);
        x.swap(column, pivot);
        if a[column][column].abs() < 1e-14 {
            continue;
        }
        let (pivot_row, pivot_value) = (a[column].clone(), x[column]);
        for (row, value) in a.iter_mut().zip(&mut x).enumerate().filter(|(at, _)| *at != column).map(|(_, pair)| pair) {
            let factor = row[column] / pivot_row[column];
            for (target, source) in row.iter_mut().zip(&pivot_row) {
                *target -= factor * source;
            }
            *value -= factor * pivot_value;
        }
    }
    (0..size).map(|at| if a[at][at].abs() < 1e-14 { 0.0 } else { x[at] / a[at][at] }).collect()
}

/// The scalar product.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listwise_finds_the_feature_that_marks_the_answers() {
        let list = List { features: vec![vec![1.0, 0.3], vec![0.0, 0.7], vec![0.2, 0.1]], gold: vec![0] };
        let weights = listwise(&[&list, &list], &[true, true], 0.01);
        assert!(weights[0] > 1.0 && weights[0] > weights[1]);
        assert_eq!(listwise(&[&list], &[false, true], 0.01)[0].to_bits(), 0.0_f64.to_bits());
    }

    #[test]
    fn logistic_separates_and_calibrates() {
        let rows: Vec<(Vec<f64>, bool)> = (0..100).map(|at| (vec![f64::from(at) / 100.0], at >= 50)).collect();
        let weights = logistic(&rows, 1e-4);
        assert!(sigmoid(dot(&weights, &[0.9, 1.0])) > 0.9);
        assert!((sigmoid(dot(&weights, &[0.495, 1.0])) - 0.5).abs() < 0.05);
    }
}
