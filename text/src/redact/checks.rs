//! Decides whether a candidate looks like a secret or like a word, an identifier, a hash or a placeholder.

/// Whether the text mixes letters and digits, as generated secrets do and words do not.
pub(super) fn letters_and_digits(text: &str) -> bool {
    text.bytes().any(|byte| byte.is_ascii_digit()) && text.bytes().any(|byte| byte.is_ascii_alphabetic())
}

/// A generated string of some length: letters and digits, and not words joined by dashes (`sk-fading-circle-2`).
pub(super) fn generated(text: &str) -> bool {
    let longest = text.split(['-', '_', '.', '/']).filter(|part| letters_and_digits(part)).map(str::len).max();
    longest.is_some_and(|length| length >= 8) && entropy(text) >= 3.0
}

/// For strings that nothing but a word nearby marks as secret: upper case, lower case and digits, high entropy, and
/// neither a hash nor a UUID.
pub(super) fn standing_alone(text: &str) -> bool {
    let has = |test: fn(&u8) -> bool| text.bytes().any(|byte| test(&byte));
    let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    !hex && has(u8::is_ascii_uppercase)
        && has(u8::is_ascii_lowercase)
        && has(u8::is_ascii_digit)
        && generated(text)
        && entropy(text) >= 3.8
}

/// Shannon entropy of the bytes (bits per byte).
fn entropy(text: &str) -> f64 {
    let mut counts = [0_u32; 256];
    for byte in text.bytes() {
        counts[usize::from(byte)] += 1;
    }
    let length = text.len() as f64;
    let share = |count: u32| f64::from(count) / length;
    counts.into_iter().filter(|&count| count > 0).map(|count| -share(count) * share(count).log2()).sum()
}

/// Stands for a secret without being one: `${TOKEN}`, `<password>`, `***`, `your-key-here`, `[redacted:token]`.
pub(super) fn placeholder(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let first = lower.bytes().next();
    first.is_none_or(|byte| b"$<{%[*&@".contains(&byte))
        || lower.contains("redacted")
        || lower.bytes().all(|byte| byte == lower.as_bytes()[0])
        || [
            "your",
            "example",
            "changeme",
            "placeholder",
            "dummy",
            "xxxx",
            "process.env",
            "os.environ",
            "env.",
            "getenv",
        ]
        .iter()
        .any(|word| lower.contains(word))
}

/// The value of an assignment to something called a password.
pub(super) fn password(value: &str) -> bool {
    let symbols = value.bytes().any(|byte| b"!@#$%^&*+~?".contains(&byte));
    let digits = value.bytes().any(|byte| byte.is_ascii_digit());
    value.len() >= 4 && (digits || symbols) && !placeholder(value) && !code(value)
}

/// The value of a quoted assignment with `=` to something called a password: a word will do, a sentence will not.
pub(super) fn quoted_password(value: &str) -> bool {
    let names = ["string", "password", "passwd", "none", "null", "true", "false", "required", "text", "hidden"];
    value.len() >= 4
        && !value.contains(char::is_whitespace)
        && !placeholder(value)
        && !code(value)
        && !names.contains(&value.to_ascii_lowercase().as_str())
}

/// The value of an assignment to something called a key, secret or token.
pub(super) fn token(value: &str) -> bool {
    value.len() >= 8 && generated(value) && !placeholder(value) && !code(value)
}

/// Source code rather than a value: calls, paths, generics, file names.
fn code(value: &str) -> bool {
    ["(", "::", "->", "=>", "[", "{", "://", "<"].iter().any(|mark| value.contains(mark))
        || value.starts_with(['/', '.', '\\', '#'])
        // `self.token2.value`: identifiers joined by dots.
        || (value.contains('.') && value.split('.').all(|part| {
            part.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte == b'_')
                && part.len() <= 24
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        }))
}
