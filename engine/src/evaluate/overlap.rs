//! How much of a text was written back: exact match and ROUGE-L.

/// Words of a text in lower case, without punctuation.
pub fn words(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || c == '\'';
    text.split(|c: char| !is_part(c)).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

/// Whether two texts are the same but for space and case.
pub fn is_exact(written: &str, wanted: &str) -> bool {
    let normal = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
    normal(written) == normal(wanted)
}

/// ROUGE-L (Lin 2004): the harmonic mean of precision and recall of the longest common subsequence of words. Cost: product of the
/// lengths. Two texts without words are equal.
pub fn rouge_l(written: &str, wanted: &str) -> f64 {
    let (written, wanted) = (words(written), words(wanted));
    if written.is_empty() || wanted.is_empty() {
        return f64::from(written.is_empty() && wanted.is_empty());
    }
    let mut row = vec![0_usize; wanted.len() + 1];
    for word in &written {
        let mut diagonal = 0;
        for (i, other) in wanted.iter().enumerate() {
            let above = row[i + 1];
            row[i + 1] = if word == other { diagonal + 1 } else { above.max(row[i]) };
            diagonal = above;
        }
    }
    2.0 * row[wanted.len()] as f64 / (written.len() + wanted.len()) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rouge_counts_the_longest_common_subsequence() {
        let cases = [("the cat sat", "The cat, it sat!", 6.0 / 7.0), ("a b c", "a b c", 1.0), ("a", "b", 0.0)];
        for (written, wanted, score) in cases.into_iter().chain([("", "b", 0.0), ("...", "", 1.0)]) {
            assert!((rouge_l(written, wanted) - score).abs() < 1e-9, "{written:?} {wanted:?}");
        }
    }

    #[test]
    fn space_and_case_do_not_make_a_text_another() {
        assert!(is_exact(" The  cat\n", "the cat"));
        assert!(!is_exact("the cat", "the cats"));
    }
}
