//! What people and programs see: text on a terminal, JSON with `--json`, colours only where they can be shown.

use std::fmt::Display;
use std::io::Write as _;

use serde::Serialize;

use crate::error::CommandError;

/// Where output goes. Standard output carries results, standard error everything else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const RED: &str = "\x1b[31m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const RESET: &str = "\x1b[0m";

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether programs read the output.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Prints a result: as one line of JSON, or as `human` tells it.
    pub(crate) fn result<T: Serialize>(self, result: &T, human: impl FnOnce(&T)) -> Result<(), CommandError> {
        if !self.json {
            human(result);
            return Ok(());
        }
        let text = serde_json::to_string(result)
            .map_err(|error| CommandError::usage(format!("result cannot be written as JSON: {error}")))?;
        line(&text);
        Ok(())
    }

    /// Prints an error with its chain and hint.
    pub(crate) fn error(self, error: &CommandError) {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            if !text.contains(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            source = inner.source();
        }
        let hint = error.hint();
        if self.json {
            let body = serde_json::json!({"error": {"kind": error.kind(), "message": text, "hint": hint}});
            line(body.to_string());
            return;
        }
        note(&format!("{RED}{BOLD}error:{RESET} {text}"));
        if let Some(hint) = hint {
            note(&format!("{YELLOW}hint:{RESET} {hint}"));
        }
    }

    /// Prints a remark beside the result; programs do not get it.
    pub(crate) fn remark(self, text: impl Display) {
        if !self.json {
            note(&format!("{DIM}{text}{RESET}"));
        }
    }
}

/// Prints a line of the result. A closed pipe ends the program quietly, as `head` expects.
pub(crate) fn line(text: impl Display) {
    if writeln!(anstream::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints a line on standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Bold text.
pub(crate) fn bold(text: impl Display) -> String {
    format!("{BOLD}{text}{RESET}")
}

/// Dimmed text.
pub(crate) fn dim(text: impl Display) -> String {
    format!("{DIM}{text}{RESET}")
}

/// Text that says that all is well.
pub(crate) fn good(text: impl Display) -> String {
    format!("{GREEN}{text}{RESET}")
}

/// Text that asks for attention.
pub(crate) fn warn(text: impl Display) -> String {
    format!("{YELLOW}{text}{RESET}")
}

/// Text that says that something failed.
pub(crate) fn bad(text: impl Display) -> String {
    format!("{RED}{text}{RESET}")
}

/// Makes text from outside safe for a terminal: control characters could move the cursor or hide what stands there.
pub(crate) fn safe(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The first words of a text, on one line.
pub(crate) fn short(text: &str, characters: usize) -> String {
    let flat = safe(text).split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= characters {
        return flat;
    }
    let cut: String = flat.chars().take(characters.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// A count of bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_cannot_reach_the_terminal() {
        assert_eq!(safe("a\x1b[2Jb\nc"), "a\u{fffd}[2Jb\nc");
        assert_eq!(short("one\n two   three", 9), "one two …");
    }

    #[test]
    fn bytes_are_told_in_powers_of_two() {
        assert_eq!([bytes(0), bytes(1023), bytes(1536), bytes(3 << 30)], ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]);
    }
}
