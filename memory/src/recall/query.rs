//! A question taken apart: terms and phrases; bounds are checked here and nowhere else.

use mneme_base::Timestamp;

use crate::domain::{QUERY_BYTES_MAX, RECALL_LIMIT_MAX, RecallQuery};
use crate::index::text::{QueryTerm, TextIndex};
use crate::index::tokens::Tokenizer;
use crate::store::StoreError;

/// A question names at most this many namespaces.
pub const NAMESPACES_MAX: usize = 64;
/// A question is ranked by at most this many of its words: more would only make it slow.
const TERMS_MAX: usize = 256;

/// A checked question.
#[derive(Debug)]
pub struct ParsedQuery {
    /// The words that are looked up.
    pub terms: Vec<QueryTerm>,
    /// Phrases in double quotes, as lower-case words.
    pub phrases: Vec<Vec<String>>,
    /// The moment that relative times are counted from.
    pub reference: Timestamp,
}

impl ParsedQuery {
    /// Checks and parses.
    pub fn new(query: &RecallQuery, now: Timestamp, tokenizer: &Tokenizer) -> Result<Self, StoreError> {
        let invalid = |field, problem: String| Err(StoreError::InvalidQuery { field, problem });
        if query.text.trim().is_empty() {
            return invalid("text", "is empty".into());
        }
        if query.text.len() > QUERY_BYTES_MAX {
            return invalid("text", format!("has {} bytes, at most {QUERY_BYTES_MAX} are allowed", query.text.len()));
        }
        if query.limit == 0 || query.limit > RECALL_LIMIT_MAX {
            return invalid("limit", format!("is {}, allowed are 1 to {RECALL_LIMIT_MAX}", query.limit));
        }
        if query.namespaces.is_empty() || query.namespaces.len() > NAMESPACES_MAX {
            let count = query.namespaces.len();
            return invalid("namespaces", format!("has {count} entries, allowed are 1 to {NAMESPACES_MAX}"));
        }
        if !(0.0..=1.0).contains(&query.diversity) {
            return invalid("diversity", format!("is {}, allowed are 0 to 1", query.diversity));
        }
        let mut terms = TextIndex::query_terms(tokenizer, &query.text);
        terms.truncate(TERMS_MAX);
        Ok(Self {
            terms,
            phrases: phrases(&query.text, tokenizer),
            reference: query.reference_time.or(query.as_of).unwrap_or(now),
        })
    }
}

/// The phrases between double quotes (straight or curly). A quote without its partner is punctuation.
fn phrases(text: &str, tokenizer: &Tokenizer) -> Vec<Vec<String>> {
    let plain = text.replace(['\u{201c}', '\u{201d}'], "\"");
    let pieces: Vec<&str> = plain.split('"').collect();
    let closed = (pieces.len() - 1) / 2;
    (0..closed).map(|at| words(pieces[2 * at + 1], tokenizer)).filter(|phrase| !phrase.is_empty()).collect()
}

/// The words of a text as phrases are compared: lower case, in order, whole code tokens dropped in favour of their parts.
pub fn words(text: &str, tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = tokenizer.tokens(text);
    let follows_part = |at: usize| tokens.get(at + 1).is_some_and(|next| next.part) && !tokens[at].part;
    (0..tokens.len()).filter(|at| !follows_part(*at)).map(|at| tokens[at].word.clone()).collect()
}

/// Whether the words of a phrase stand in a text one after another.
pub fn has_phrase(text: &[String], phrase: &[String]) -> bool {
    text.windows(phrase.len()).any(|window| window == phrase)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phrases_are_what_stands_between_quotes() {
        let tokenizer = Tokenizer::new();
        assert_eq!(
            phrases("who said \"New York\" or \u{201c}main_loop.rs\u{201d}?", &tokenizer),
            [vec!["new".to_owned(), "york".to_owned()], vec!["main".to_owned(), "loop".to_owned(), "rs".to_owned()],]
        );
        assert!(phrases("a 27\" screen", &tokenizer).is_empty());
        assert!(phrases("\"\"", &tokenizer).is_empty());
    }

    #[test]
    fn a_phrase_must_stand_in_one_piece() {
        let tokenizer = Tokenizer::new();
        let text = words("We flew to New York, yesterday", &tokenizer);
        assert!(has_phrase(&text, &words("new york yesterday", &tokenizer)));
        assert!(!has_phrase(&text, &words("york new", &tokenizer)));
    }
}
