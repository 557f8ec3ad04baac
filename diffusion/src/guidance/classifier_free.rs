//! Classifier-free guidance: the difference that a condition makes, made larger.

use super::GuidanceError;
use crate::numeric::{log_softmax, log_sum_exp};

/// Guided logits `u + (w + 1)(c - u)` in place of the conditional ones (LLaDA, arXiv 2502.09992, eq. 16; `w = 0` leaves `c`, `w = -1`
/// gives `u`). A token that is impossible under the condition stays impossible.
///
/// # Shapes
/// `conditional`, `unconditional`: any equal length, rows one after the other.
pub fn classifier_free(conditional: &mut [f32], unconditional: &[f32], scale: f32) -> Result<(), GuidanceError> {
    check(conditional, unconditional)?;
    if scale != 0.0 {
        for (c, &u) in conditional.iter_mut().zip(unconditional) {
            if c.is_finite() && u.is_finite() {
                *c = u + (scale + 1.0) * (*c - u);
            }
        }
    }
    Ok(())
}

/// Guided log-probabilities `log softmax(gamma log p_c + (1 - gamma) log p_u)` of one row (D-CFG, arXiv 2412.10193, eq. 7). The same
/// distribution as [`classifier_free`] with `scale = gamma - 1`, normalised.
///
/// # Shapes
/// `conditional`, `unconditional`: `[vocab]` logits or log-probabilities.
pub fn classifier_free_normalized(
    conditional: &mut [f32],
    unconditional: &[f32],
    gamma: f32,
) -> Result<(), GuidanceError> {
    check(conditional, unconditional)?;
    let (norm_c, norm_u) = (log_sum_exp(conditional), log_sum_exp(unconditional));
    for (c, &u) in conditional.iter_mut().zip(unconditional) {
        if c.is_finite() && u.is_finite() {
            let (log_c, log_u) = (f64::from(*c) - norm_c, f64::from(u) - norm_u);
            *c = (f64::from(gamma) * log_c + (1.0 - f64::from(gamma)) * log_u) as f32;
        }
    }
    log_softmax(conditional);
    Ok(())
}

fn check(conditional: &[f32], unconditional: &[f32]) -> Result<(), GuidanceError> {
    if conditional.len() == unconditional.len() {
        Ok(())
    } else {
        let (length, expected) = (unconditional.len(), conditional.len());
        Err(GuidanceError::Length { what: "unconditional logits", length, expected })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::numeric::softmax;

    proptest! {
        #[test]
        fn both_forms_are_one_distribution(
            rows in prop::collection::vec((-5.0_f32..5.0, -5.0_f32..5.0), 2..20), scale in 0.0_f32..4.0,
        ) {
            let (mut c, u): (Vec<f32>, Vec<f32>) = rows.into_iter().unzip();
            let mut d = c.clone();
            classifier_free(&mut c, &u, scale).unwrap();
            classifier_free_normalized(&mut d, &u, scale + 1.0).unwrap();
            for (a, b) in softmax(&c).iter().zip(softmax(&d)) {
                prop_assert!((a - b).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn scale_zero_changes_no_bit_and_impossible_stays_impossible() {
        let start = [0.1_f32, -3.0, f32::NEG_INFINITY];
        let mut row = start;
        classifier_free(&mut row, &[1.0, 2.0, 3.0], 0.0).unwrap();
        assert_eq!(row.map(f32::to_bits), start.map(f32::to_bits));
        classifier_free(&mut row, &[1.0, 2.0, 3.0], 2.0).unwrap();
        assert!(row[2] == f32::NEG_INFINITY && (row[0] - (1.0 + 3.0 * (0.1 - 1.0))).abs() < 1e-6);
        assert!(classifier_free(&mut row, &[1.0], 1.0).is_err());
    }
}
