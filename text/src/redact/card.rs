//! Payment card numbers: the right length for their prefix, grouped as people write them, and valid by Luhn.

use super::{Finding, SecretKind};

/// Card numbers have 14 to 16 digits (digits).
const DIGITS_MAX: usize = 16;

pub(super) fn find(text: &str, findings: &mut Vec<Finding>) {
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if !bytes[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let (digits, end) = run(bytes, at);
        // Part of a word, a decimal number, a version or a path is not a card number.
        let before = at.checked_sub(1).map(|index| bytes[index]);
        let after = bytes.get(end).copied();
        let inside =
            |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || b"_-./+:=%#".contains(&byte));
        let ends_sentence = after == Some(b'.') && !bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        let stands_alone = !inside(before.filter(|byte| !b":=".contains(byte))) && (!inside(after) || ends_sentence);
        if stands_alone && is_card(&digits) {
            findings.push(Finding { kind: SecretKind::CreditCard, range: at..end });
        }
        at = end;
    }
}

/// Reads digits with single spaces or single dashes between them. Returns the digits (at most one more than a card has)
/// and where the run ends.
fn run(bytes: &[u8], start: usize) -> (Vec<u8>, usize) {
    let mut digits = Vec::with_capacity(DIGITS_MAX + 1);
    let mut end = start;
    let mut separator = None;
    while let Some(&byte) = bytes.get(end) {
        if byte.is_ascii_digit() {
            if digits.len() <= DIGITS_MAX {
                digits.push(byte - b'0');
            }
            end += 1;
            continue;
        }
        let joins = (byte == b' ' || byte == b'-')
            && separator.is_none_or(|used| used == byte)
            && bytes.get(end + 1).is_some_and(u8::is_ascii_digit);
        if !joins || digits.len() >= DIGITS_MAX {
            break;
        }
        separator = Some(byte);
        end += 1;
    }
    (digits, end)
}

fn is_card(digits: &[u8]) -> bool {
    let prefix = |count: usize| digits.iter().take(count).fold(0_u32, |value, &digit| value * 10 + u32::from(digit));
    let length = match (prefix(1), prefix(2), prefix(4)) {
        (_, 34 | 37, _) => 15,
        (_, 36 | 38 | 39, _) | (_, _, 3000..=3059) => 14,
        (4, ..) | (_, 51..=55 | 35 | 62 | 65, _) | (_, _, 2221..=2720 | 6011) => 16,
        _ => return false,
    };
    digits.len() == length && luhn(digits)
}

/// The check digit of ISO/IEC 7812-1, annex B.
fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, &digit)| {
            let value = u32::from(digit) << (index % 2);
            if value > 9 { value - 9 } else { value }
        })
        .sum();
    sum.is_multiple_of(10)
}
