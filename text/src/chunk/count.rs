//! Counts tokens without a vocabulary.

/// Estimates how many tokens a subword tokenizer makes of `text`, rather too many than too few.
///
/// Words of ASCII letters count one token for each started six letters, digits one for each started two, every other
/// visible character one (two when it is outside the Basic Multilingual Plane); spaces belong to the word after them,
/// line breaks and runs of further spaces count one.
pub fn approximate_tokens(text: &str) -> usize {
    /// An English word of up to six letters is nearly always one token in vocabularies of 30,000 and more (letters).
    const LETTERS_PER_TOKEN: usize = 6;
    /// Vocabularies of this size hold most pairs of digits (digits).
    const DIGITS_PER_TOKEN: usize = 2;
    let mut tokens = 0;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let mut run = |test: fn(&char) -> bool| {
            let mut length = 1_usize;
            while characters.next_if(test).is_some() {
                length += 1;
            }
            length
        };
        tokens += match character {
            'a'..='z' | 'A'..='Z' => run(char::is_ascii_alphabetic).div_ceil(LETTERS_PER_TOKEN),
            '0'..='9' => run(char::is_ascii_digit).div_ceil(DIGITS_PER_TOKEN),
            ' ' => usize::from(run(|next| *next == ' ') > 1),
            '\n' | '\r' | '\t' => {
                run(|next| matches!(next, '\n' | '\r' | '\t'));
                1
            }
            '\u{10000}'.. => 2,
            _ => 1,
        };
    }
    tokens
}
