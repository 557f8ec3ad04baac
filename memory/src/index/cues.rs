//! What can be seen of a text at a glance: whether it asks, names a time, a number or a name. One byte a memory.

/// Ends with a question mark.
pub const ENDS_ASKING: u8 = 1;
/// Has a question mark somewhere.
pub const ASKS: u8 = 1 << 1;
/// Names a day, month, or time of day.
pub const NAMES_TIME: u8 = 1 << 2;
/// Has a number, in digits or as a word.
pub const NAMES_NUMBER: u8 = 1 << 3;
/// Has a capitalised word inside a sentence.
pub const NAMES_NAME: u8 = 1 << 4;

/// The cues of a text. Cost: one pass.
pub fn cues(text: &str) -> u8 {
    let mut cues = 0;
    if text.trim_end().ends_with('?') {
        cues |= ENDS_ASKING;
    }
    if text.contains('?') {
        cues |= ASKS;
    }
    if text.bytes().any(|byte| byte.is_ascii_digit()) {
        cues |= NAMES_NUMBER;
    }
    let mut inside_sentence = false;
    for piece in text.split_whitespace() {
        let word = piece.trim_matches(|c: char| !c.is_alphanumeric());
        let lower = word.to_lowercase();
        if TIME_WORDS.binary_search(&lower.as_str()).is_ok() {
            cues |= NAMES_TIME;
        }
        if NUMBER_WORDS.binary_search(&lower.as_str()).is_ok() {
            cues |= NAMES_NUMBER;
        }
        let mut letters = word.chars();
        let capitalised =
            letters.next().is_some_and(char::is_uppercase) && letters.next().is_some_and(char::is_lowercase);
        if inside_sentence && capitalised {
            cues |= NAMES_NAME;
        }
        inside_sentence = piece.ends_with(|c: char| c.is_lowercase() || c == ',');
    }
    cues
}

/// What a question asks for, from its first words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AsksFor {
    /// A time: "when", "what year", "how long".
    pub time: bool,
    /// A number: "how many", "how much", "how old".
    pub number: bool,
    /// A name: "who", "where", "which".
    pub name: bool,
}

/// Reads what a question asks for.
pub fn asks_for(question: &str) -> AsksFor {
    let lower = question.trim().to_lowercase();
    let has = |phrases: &[&str]| phrases.iter().any(|phrase| lower.contains(phrase));
    let starts = |words: &[&str]| words.iter().any(|word| lower.starts_with(word));
    AsksFor {
        time: starts(&["when"]) || has(&["what year", "what date", "what day", "what time", "how long"]),
        number: has(&["how many", "how much", "how old", "how often"]),
        name: starts(&["where", "who", "which"]),
    }
}

/// Sorted.
#[rustfmt::skip]
const TIME_WORDS: &[&str] = &[
    "afternoon", "ago", "april", "august", "day", "days", "december", "evening", "february", "friday", "january",
    "july", "june", "last", "march", "may", "monday", "month", "months", "morning", "next", "night", "november",
    "october", "saturday", "september", "sunday", "thursday", "today", "tomorrow", "tonight", "tuesday", "wednesday",
    "week", "weekend", "weeks", "year", "years", "yesterday",
];

/// Sorted.
#[rustfmt::skip]
const NUMBER_WORDS: &[&str] = &[
    "couple", "eight", "few", "five", "four", "hundred", "many", "nine", "once", "one", "seven", "several", "six",
    "ten", "thousand", "three", "twice", "two",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_questions_times_numbers_and_names() {
        assert_eq!(cues("How are you?"), ENDS_ASKING | ASKS);
        assert_eq!(cues("Really? Nice to hear."), ASKS);
        assert_eq!(cues("we went to Miami yesterday"), NAMES_NAME | NAMES_TIME);
        assert_eq!(cues("I have two cats"), NAMES_NUMBER);
        assert_eq!(cues("Sounds good. Great!"), 0);
    }

    #[test]
    fn knows_what_is_asked_for() {
        assert!(asks_for("When did it start?").time);
        assert!(asks_for("So how many cats are there?").number);
        assert!(asks_for("Where is Anna?").name);
        assert_eq!(asks_for("What is it?"), AsksFor::default());
    }

    #[test]
    fn lists_are_sorted_for_their_binary_search() {
        assert!(TIME_WORDS.is_sorted() && NUMBER_WORDS.is_sorted());
    }
}
