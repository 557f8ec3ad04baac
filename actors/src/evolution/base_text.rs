//! Text of nobody in particular: replayed in training, guarded against forgetting, and learned by the placebo.
//!
//! The three parts do not overlap. All of it is the project's own prose.

use mneme_engine_api::TrainText;

const TEXT: &str = include_str!("../../data/base_text.txt");

fn part(which: usize) -> impl Iterator<Item = TrainText> + Clone {
    let paragraphs = TEXT.split("\n\n").map(str::trim).filter(|paragraph| !paragraph.is_empty());
    paragraphs
        .enumerate()
        .filter(move |(index, _)| index % 3 == which)
        .map(|(index, text)| TrainText { memory: format!("base:{index}"), text: text.replace('\n', " ") })
}

/// All of it.
pub(super) fn all() -> impl Iterator<Item = TrainText> {
    (0..3).flat_map(part)
}

fn take_bytes(texts: impl Iterator<Item = TrainText> + Clone, bytes: usize) -> Vec<TrainText> {
    let mut taken = Vec::new();
    let mut left = bytes;
    for text in texts.cycle() {
        if left == 0 {
            break;
        }
        left = left.saturating_sub(text.text.len());
        taken.push(text);
    }
    taken
}

/// Text to replay beside the user's, about so many bytes.
pub(super) fn replay(bytes: usize) -> Vec<TrainText> {
    take_bytes(part(0), bytes)
}

/// Text that must not be forgotten.
pub(super) fn guard() -> Vec<TrainText> {
    part(1).collect()
}

/// Somebody else's text, about so many bytes.
pub(super) fn placebo(bytes: usize) -> Vec<TrainText> {
    take_bytes(part(2), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_do_not_overlap_and_have_text() {
        let ids = |texts: Vec<TrainText>| texts.into_iter().map(|text| text.memory).collect::<Vec<_>>();
        let (replay, guard, placebo) = (ids(replay(1_000)), ids(guard()), ids(placebo(1_000)));
        assert!(guard.len() >= 5);
        assert!(replay.iter().all(|id| !guard.contains(id) && !placebo.contains(id)));
        assert!(placebo.iter().all(|id| !guard.contains(id)));
    }

    #[test]
    fn as_many_bytes_come_as_are_asked_for() {
        let bytes: usize = placebo(20_000).iter().map(|text| text.text.len()).sum();
        assert!((20_000..24_000).contains(&bytes), "{bytes}");
        assert!(replay(0).is_empty());
    }
}
