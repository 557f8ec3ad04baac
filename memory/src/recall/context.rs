//! The two texts of a memory that are embedded: itself, and itself with what stands around it.

use crate::domain::{Memory, Metadata};

/// Neighbours are cut to this length in the context text (bytes): the memory itself has to stay the subject.
const NEIGHBOUR_BYTES_MAX: usize = 300;

/// The texts to embed, in the order of the views: `[own, with context]`.
///
/// Own: `speaker: text`. With context: the date, the neighbours before, the memory, the neighbours after, each with its
/// speaker. `neighbours` may come in any order; those of other threads are ignored.
pub fn context_texts(memory: &Memory, neighbours: &[Memory]) -> Vec<String> {
    let own = with_speaker(memory, &memory.text);
    let mut around: Vec<&Memory> = neighbours
        .iter()
        .filter(|other| other.thread == memory.thread && other.namespace == memory.namespace && other.id != memory.id)
        .collect();
    around.sort_by_key(|other| (other.position, other.id));
    let mut context = format!("{}\n", memory.valid_from.date());
    let (before, after): (Vec<&Memory>, Vec<&Memory>) =
        around.into_iter().partition(|other| (other.position, other.id) < (memory.position, memory.id));
    for other in before {
        context.push_str(&with_speaker(other, cut(&other.text)));
        context.push('\n');
    }
    context.push_str(&own);
    for other in after {
        context.push('\n');
        context.push_str(&with_speaker(other, cut(&other.text)));
    }
    vec![own, context]
}

/// Whether metadata names a title that belongs to the text.
pub fn title(metadata: &Metadata) -> Option<&str> {
    metadata.get("title").map(String::as_str)
}

fn with_speaker(memory: &Memory, text: &str) -> String {
    match (&memory.speaker, title(&memory.metadata)) {
        (Some(speaker), _) => format!("{speaker}: {text}"),
        (None, Some(title)) => format!("{title}: {text}"),
        (None, None) => text.to_owned(),
    }
}

fn cut(text: &str) -> &str {
    if text.len() <= NEIGHBOUR_BYTES_MAX {
        return text;
    }
    let end = (0..=NEIGHBOUR_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    &text[..end]
}
