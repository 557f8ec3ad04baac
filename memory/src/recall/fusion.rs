//! Reciprocal rank fusion (Cormack, Clarke and Buettcher, SIGIR 2009): rankings are merged by places, not by scores.

/// One ranking that takes part in a fusion.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranking {
    /// Its name in explanations.
    pub name: &'static str,
    /// Rows with its own scores, best first.
    pub rows: Vec<(u32, f32)>,
}

impl Ranking {
    /// Names a ranking.
    pub fn new(name: &'static str, rows: Vec<(u32, f32)>) -> Self {
        Self { name, rows }
    }
}

/// Adds up `1 / (k + place)` over the rankings: rows with fused scores, best first; ties by row.
pub fn fuse<'a>(rankings: impl Iterator<Item = &'a Ranking>, k: f32) -> Vec<(u32, f32)> {
    let mut sums = std::collections::HashMap::new();
    for ranking in rankings {
        for (place, (row, _)) in ranking.rows.iter().enumerate() {
            *sums.entry(*row).or_insert(0.0_f32) += 1.0 / (k + place as f32 + 1.0);
        }
    }
    let mut fused: Vec<(u32, f32)> = sums.into_iter().collect();
    sort_best(&mut fused);
    fused
}

/// Best first; ties by row, so that the order never depends on chance.
pub fn sort_best(rows: &mut [(u32, f32)]) {
    rows.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_two_rankings_like_beats_one_that_leads_one() {
        let ranking = |rows: &[u32]| Ranking::new("test", rows.iter().map(|r| (*r, 0.0)).collect());
        let fused = fuse([ranking(&[1, 2]), ranking(&[3, 2])].iter(), 20.0);
        assert_eq!(fused.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [2, 1, 3]);
    }
}
