//! Turns text into index terms: words (stemmed), numbers, and code tokens both whole and in parts.
//!
//! `getUserName` gives `getusernam`, `get`, `user`, `name`; `src/main_loop.rs` gives the whole path and its parts. Scripts
//! that are written without spaces (Han, kana, Hangul, Thai) give overlapping pairs of letters. Terms are kept as 64-bit
//! hashes: the index holds no words, and 2^64 hashes make a collision among ten million terms a 1 in 400,000 event.

use rust_stemmers::{Algorithm, Stemmer};

/// Terms longer than this are cut before hashing (bytes): long base64 runs are not worth their time.
const TERM_BYTES_MAX: usize = 64;

/// One token of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The term, lower case and stemmed.
    pub term: String,
    /// The word as it stood, lower case.
    pub word: String,
    /// Whether it is a part of a longer token that is a term itself.
    pub part: bool,
}

/// Splits, folds and stems English and code. Building one is cheap; it is not `Sync`-shared state.
pub struct Tokenizer {
    stemmer: Stemmer,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokenizer(english)")
    }
}

impl Default for Tokenizer {
    fn default() -> Self {
        Self::new()
    }
}

impl Tokenizer {
    /// Makes the English tokenizer.
    pub fn new() -> Self {
        Self { stemmer: Stemmer::create(Algorithm::English) }
    }

    /// Reduces a lower-case word to its stem: irregular forms by table, then Snowball English ("Porter2").
    pub fn stem(&self, word: &str) -> String {
        if let Some(base) = irregular(word) {
            return self.stemmer.stem(base).into_owned();
        }
        if word.bytes().any(|b| b.is_ascii_digit()) {
            return word.to_owned();
        }
        self.stemmer.stem(word).into_owned()
    }

    /// Every token of the text, stop words included, in order. Cost: linear in the text.
    pub fn tokens(&self, text: &str) -> Vec<Token> {
        let mut tokens = Vec::with_capacity(text.len() / 5);
        for chunk in text.split(|c: char| !(c.is_alphanumeric() || is_joiner(c) || is_apostrophe(c))) {
            let chunk = chunk.trim_matches(|c: char| !c.is_alphanumeric());
            if !chunk.is_empty() {
                self.chunk(chunk, &mut tokens);
            }
        }
        tokens
    }

    /// Takes one run of letters, digits and joiners apart.
    fn chunk(&self, chunk: &str, tokens: &mut Vec<Token>) {
        let mut parts = Vec::new();
        for piece in chunk.split(is_joiner) {
            let piece = strip_possessive(piece);
            if piece.chars().any(is_unspaced) {
                pairs(piece, tokens);
                continue;
            }
            let word: String = piece.chars().filter(|c| !is_apostrophe(*c)).collect();
            if word.is_empty() {
                continue;
            }
            camel_parts(&word, &mut parts);
        }
        let whole: String = chunk.chars().filter(|c| !is_apostrophe(*c)).flat_map(char::to_lowercase).collect();
        match parts.as_slice() {
            [] => {}
            [word] => self.push(word, false, tokens),
            _ => {
                if chunk.chars().any(|c| is_joiner(c) && c != '-') || !chunk.contains(is_joiner) {
                    tokens.push(Token { term: cut(&whole).to_owned(), word: whole, part: false });
                }
                for word in &parts {
                    self.push(word, true, tokens);
                }
            }
        }
    }

    fn push(&self, word: &str, part: bool, tokens: &mut Vec<Token>) {
        let word: String = word.chars().flat_map(char::to_lowercase).collect();
        let word = cut(&word).to_owned();
        tokens.push(Token { term: self.stem(&word), word, part });
    }
}

/// The 64-bit name of a term in a field (FNV-1a with a final mix).
pub fn term_hash(field: Field, term: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ (field as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for byte in term.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    // The finaliser of MurmurHash3 spreads the weak low bits of FNV.
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// Which part of a memory a term is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The text itself.
    Text = 1,
    /// A metadata entry, as `key=value`; only for filters.
    Metadata = 2,
}

/// Whether a word says nothing about the subject. The list is the closed classes of English, plus chat fillers.
pub fn is_stop_word(word: &str) -> bool {
    STOP_WORDS.binary_search(&word).is_ok()
}

fn is_joiner(c: char) -> bool {
    matches!(c, '_' | '.' | '/' | '-' | ':' | '\\' | '@' | '#')
}

fn is_apostrophe(c: char) -> bool {
    matches!(c, '\'' | '\u{2019}')
}

/// Letters of scripts that put no spaces between words.
fn is_unspaced(c: char) -> bool {
    matches!(c as u32, 0x0e00..=0x0eff | 0x1000..=0x109f | 0x1780..=0x17ff | 0x3040..=0x30ff | 0x3400..=0x4dbf
        | 0x4e00..=0x9fff | 0xac00..=0xd7af | 0xf900..=0xfaff | 0x2_0000..=0x2_ffff)
}

fn strip_possessive(piece: &str) -> &str {
    piece.strip_suffix("'s").or_else(|| piece.strip_suffix("\u{2019}s")).unwrap_or(piece)
}

fn pairs(piece: &str, tokens: &mut Vec<Token>) {
    let letters: Vec<char> = piece.chars().flat_map(char::to_lowercase).collect();
    if let [letter] = letters.as_slice() {
        tokens.push(Token { term: letter.to_string(), word: letter.to_string(), part: false });
    }
    for pair in letters.windows(2) {
        let term: String = pair.iter().collect();
        tokens.push(Token { word: term.clone(), term, part: false });
    }
}

/// Splits at lower-to-upper changes and before the last capital of a run: `parseHTTPBody` is `parse`, `HTTP`, `Body`.
fn camel_parts(word: &str, parts: &mut Vec<String>) {
    let letters: Vec<char> = word.chars().collect();
    let mut start = 0;
    for at in 1..letters.len() {
        let (before, here) = (letters[at - 1], letters[at]);
        let next_lower = letters.get(at + 1).is_some_and(|c| c.is_lowercase());
        let rise = before.is_lowercase() && here.is_uppercase();
        let run_end = before.is_uppercase() && here.is_uppercase() && next_lower;
        // A single letter is not cut off: "iPhone" and "McDonald" stay findable as they are written.
        if (rise || run_end) && at - start >= 2 && letters.len() - at >= 2 {
            parts.push(letters[start..at].iter().collect());
            start = at;
        }
    }
    parts.push(letters[start..].iter().collect());
}

fn cut(term: &str) -> &str {
    if term.len() <= TERM_BYTES_MAX {
        return term;
    }
    let end = (0..=TERM_BYTES_MAX).rev().find(|at| term.is_char_boundary(*at)).unwrap_or(0);
    &term[..end]
}

/// Past tenses and plurals that no suffix rule reaches, to their base form.
fn irregular(word: &str) -> Option<&'static str> {
    IRREGULAR.binary_search_by_key(&word, |(form, _)| form).ok().map(|at| IRREGULAR[at].1)
}

/// Sorted by form.
#[rustfmt::skip]
const IRREGULAR: &[(&str, &str)] = &[
    ("ate", "eat"), ("became", "become"), ("been", "be"), ("began", "begin"), ("begun", "begin"), ("bought", "buy"),
    ("broke", "break"), ("broken", "break"), ("brought", "bring"), ("built", "build"), ("came", "come"),
    ("caught", "catch"), ("children", "child"), ("chose", "choose"), ("chosen", "choose"), ("drank", "drink"),
    ("drawn", "draw"), ("drew", "draw"), ("driven", "drive"), ("drove", "drive"), ("eaten", "eat"), ("fallen", "fall"),
    ("feet", "foot"), ("fell", "fall"), ("felt", "feel"), ("flew", "fly"), ("flown", "fly"), ("forgot", "forget"),
    ("forgotten", "forget"), ("fought", "fight"), ("found", "find"), ("gave", "give"), ("given", "give"),
    ("gone", "go"), ("got", "get"), ("gotten", "get"), ("grew", "grow"), ("grown", "grow"), ("heard", "hear"),
    ("held", "hold"), ("kept", "keep"), ("knew", "know"), ("known", "know"), ("learnt", "learn"), ("led", "lead"),
    ("left", "leave"), ("lost", "lose"), ("made", "make"), ("meant", "mean"), ("men", "man"), ("met", "meet"),
    ("mice", "mouse"), ("paid", "pay"), ("ran", "run"), ("said", "say"), ("sang", "sing"), ("sat", "sit"),
    ("saw", "see"), ("seen", "see"), ("sent", "send"), ("shown", "show"), ("slept", "sleep"), ("sold", "sell"),
    ("spent", "spend"), ("spoke", "speak"), ("spoken", "speak"), ("stood", "stand"), ("sung", "sing"),
    ("swam", "swim"), ("taken", "take"), ("taught", "teach"), ("teeth", "tooth"), ("threw", "throw"), ("told", "tell"),
    ("took", "take"), ("understood", "understand"), ("went", "go"), ("were", "be"), ("wives", "wife"), ("won", "win"),
    ("wore", "wear"), ("worn", "wear"), ("written", "write"), ("wrote", "write"),
];

/// Sorted.
#[rustfmt::skip]
const STOP_WORDS: &[&str] = &[
    "a", "about", "after", "again", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "because", "been",
    "before", "being", "but", "by", "can", "cant", "could", "did", "didnt", "do", "does", "doesnt", "doing", "dont",
    "during", "each", "for", "from", "had", "has", "have", "having", "he", "her", "here", "hers", "herself", "him",
    "himself", "his", "how", "i", "if", "ill", "im", "in", "into", "is", "isnt", "it", "its", "itself", "ive", "just",
    "me", "more", "most", "my", "myself", "no", "nor", "not", "of", "off", "on", "once", "only", "or", "other", "our",
    "ours", "out", "over", "own", "same", "she", "should", "so", "some", "such", "than", "that", "thats", "the",
    "their", "theirs", "them", "themselves", "then", "there", "these", "they", "this", "those", "through", "to", "too",
    "under", "until", "up", "very", "was", "we", "were", "what", "when", "where", "which", "while", "who", "whom",
    "why", "will", "with", "would", "you", "your", "yours", "yourself",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(text: &str) -> Vec<String> {
        Tokenizer::new().tokens(text).into_iter().map(|t| t.term).collect()
    }

    #[test]
    fn folds_case_possessives_and_english_endings() {
        assert_eq!(terms("Kate's cats were RUNNING"), ["kate", "cat", "be", "run"]);
        assert_eq!(terms("Kate\u{2019}s don\u{2019}t"), ["kate", "dont"]);
    }

    #[test]
    fn keeps_code_tokens_whole_and_in_parts() {
        assert_eq!(terms("getUserName"), ["getusername", "get", "user", "name"]);
        assert_eq!(terms("src/main_loop.rs"), ["src/main_loop.rs", "src", "main", "loop", "rs"]);
        assert_eq!(terms("parseHTTPBody()"), ["parsehttpbody", "pars", "http", "bodi"]);
        assert_eq!(terms("well-known"), ["well", "known"].map(|w| Tokenizer::new().stem(w)));
    }

    #[test]
    fn unspaced_scripts_give_pairs() {
        assert_eq!(terms("東京都"), ["東京", "京都"]);
    }

    #[test]
    fn lists_are_sorted_for_their_binary_search() {
        assert!(STOP_WORDS.is_sorted());
        assert!(IRREGULAR.is_sorted_by_key(|(form, _)| *form));
        assert!(is_stop_word("the") && !is_stop_word("cat"));
    }

    #[test]
    fn fields_keep_equal_terms_apart() {
        assert_ne!(term_hash(Field::Text, "cat"), term_hash(Field::Metadata, "cat"));
    }

    #[test]
    fn a_long_run_is_cut_at_a_letter_boundary() {
        let token = terms(&"é".repeat(500));
        assert!(token[0].len() <= TERM_BYTES_MAX);
    }
}
