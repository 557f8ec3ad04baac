//! The types that settings have, how each is written in TOML, and the bounds that each is held to.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A type that a setting may have: it reads from a TOML value through serde and prints as TOML.
pub(crate) trait Setting: Sized + Clone + PartialEq {
    /// How the text of an environment variable or a flag becomes a TOML value.
    const TEXT: TextForm;
    /// Reads the value; the error says what was expected.
    fn read(value: toml::Value) -> Result<Self, String>;
    /// Prints the value as it stands in `default.toml`.
    fn print(&self) -> String;
}

/// How the text of an environment variable or a flag is understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TextForm {
    /// The text itself is the value: `MNEME_LOG__LEVEL=debug`.
    Verbatim,
    /// The text is a TOML literal: `MNEME_SERVER__CONNECTIONS_MAX=64`.
    Literal,
    /// The text is a TOML array or a list with commas: `MNEME_WATCH__EXTENSIONS=md,txt`.
    List,
}

/// What a value must fulfil beyond its type, with the words that an error and `default.toml` say it in.
pub(crate) struct Bound<T> {
    /// Completes the sentence "allowed: ...".
    pub(crate) words: String,
    holds: Box<dyn Fn(&T) -> bool>,
}

impl<T: Setting + PartialOrd + 'static> Bound<T> {
    /// Both ends belong to it.
    pub(crate) fn range(min: T, max: T) -> Self {
        let words = format!("{} to {}", min.print(), max.print());
        Self { words, holds: Box::new(move |value| *value >= min && *value <= max) }
    }
}

impl<T: 'static> Bound<T> {
    /// A bound that only code can express.
    pub(crate) fn rule(words: &str, holds: impl Fn(&T) -> bool + 'static) -> Self {
        Self { words: words.to_owned(), holds: Box::new(holds) }
    }

    pub(crate) fn holds(&self, value: &T) -> bool {
        (self.holds)(value)
    }
}

/// A number of bytes. Written `"64MiB"` (B, KiB, MiB, GiB, TiB) or as a plain count.
///
/// ```
/// let size: mneme_config::ByteSize = "64MiB".parse().unwrap();
/// assert_eq!(size.bytes(), 64 << 20);
/// assert_eq!(size.to_string(), "64MiB");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Largest first, so that printing finds the largest unit that divides the value.
const BYTE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

/// Largest first; milliseconds are the resolution of every timeout that we have.
const DURATION_UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

impl ByteSize {
    /// A size from a count of bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// A size in units of 1,024 bytes.
    pub const fn kib(count: u64) -> Self {
        Self(count << 10)
    }

    /// A size in units of 1,048,576 bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// A size in units of 1,073,741,824 bytes.
    pub const fn gib(count: u64) -> Self {
        Self(count << 30)
    }

    /// The count of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The count of bytes as an index type; saturates where pointers are narrower than 64 bits.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&print_units(self.0, &BYTE_UNITS, "B"))
    }
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_units(text, &BYTE_UNITS).map(Self)
    }
}

/// Why a text with a unit is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a whole number and one of the units {units}, as in {example:?}, found {found:?}")]
pub struct UnitError {
    found: String,
    units: String,
    example: &'static str,
}

/// Parses a duration such as `"250ms"`, `"30s"`, `"5m"`, `"12h"`, `"7d"`.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    parse_units(text, &DURATION_UNITS).map(Duration::from_millis)
}

/// Prints a duration in the largest unit that divides it; what is below a millisecond is dropped.
pub fn print_duration(duration: Duration) -> String {
    print_units(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX), &DURATION_UNITS, "s")
}

fn parse_units(text: &str, units: &[(&str, u64)]) -> Result<u64, UnitError> {
    let refuse = || UnitError {
        found: text.chars().take(40).collect(),
        units: units.iter().rev().map(|(name, _)| *name).collect::<Vec<_>>().join(", "),
        example: if units[0].0 == "d" { "30s" } else { "64MiB" },
    };
    let text = text.trim();
    let split = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(refuse)?;
    let (number, unit) = text.split_at(split);
    let factor = units.iter().find(|(name, _)| *name == unit.trim_start()).ok_or_else(refuse)?.1;
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(refuse)
}

fn print_units(value: u64, units: &[(&str, u64)], zero_unit: &str) -> String {
    if value == 0 {
        return format!("0{zero_unit}");
    }
    let (name, factor) = units.iter().find(|(_, factor)| value.is_multiple_of(*factor)).expect("the last factor is 1");
    format!("{}{name}", value / factor)
}

/// Deserializes without the position that `toml` would add: the loader knows the line better.
fn read_serde<T: for<'de> Deserialize<'de>>(value: toml::Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| error.message().trim().to_owned())
}

fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

impl Setting for u32 {
    const TEXT: TextForm = TextForm::Literal;
    fn read(value: toml::Value) -> Result<Self, String> {
        read_serde(value)
    }
    fn print(&self) -> String {
        self.to_string()
    }
}

impl Setting for bool {
    const TEXT: TextForm = TextForm::Literal;
    fn read(value: toml::Value) -> Result<Self, String> {
        read_serde(value)
    }
    fn print(&self) -> String {
        self.to_string()
    }
}

impl Setting for f64 {
    const TEXT: TextForm = TextForm::Literal;
    fn read(value: toml::Value) -> Result<Self, String> {
        match value {
            toml::Value::Float(number) => Ok(number),
            // Counts are exact in f64 up to 2^53, far above every bound of ours.
            toml::Value::Integer(number) => Ok(number as f64),
            other => Err(format!("invalid type: {}, expected a number", other.type_str())),
        }
    }
    fn print(&self) -> String {
        format!("{self:?}")
    }
}

impl Setting for String {
    const TEXT: TextForm = TextForm::Verbatim;
    fn read(value: toml::Value) -> Result<Self, String> {
        read_serde(value)
    }
    fn print(&self) -> String {
        quote(self)
    }
}

impl Setting for PathBuf {
    const TEXT: TextForm = TextForm::Verbatim;
    fn read(value: toml::Value) -> Result<Self, String> {
        read_serde(value)
    }
    fn print(&self) -> String {
        quote(&self.to_string_lossy())
    }
}

impl Setting for Duration {
    const TEXT: TextForm = TextForm::Verbatim;
    fn read(value: toml::Value) -> Result<Self, String> {
        let text: String = read_serde(value)?;
        parse_duration(&text).map_err(|error| error.to_string())
    }
    fn print(&self) -> String {
        quote(&print_duration(*self))
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(source: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a size such as \"64MiB\" or a count of bytes")]
        enum Form {
            Count(u64),
            Text(String),
        }
        match Form::deserialize(source)? {
            Form::Count(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl Setting for ByteSize {
    const TEXT: TextForm = TextForm::Verbatim;
    fn read(value: toml::Value) -> Result<Self, String> {
        // A count in the environment arrives as text.
        if let Some(bytes) = value.as_str().and_then(|text| text.trim().parse().ok()) {
            return Ok(Self(bytes));
        }
        read_serde(value)
    }
    fn print(&self) -> String {
        quote(&self.to_string())
    }
}

impl Setting for Vec<String> {
    const TEXT: TextForm = TextForm::List;
    fn read(value: toml::Value) -> Result<Self, String> {
        read_serde(value)
    }
    fn print(&self) -> String {
        format!("[{}]", self.iter().map(|item| quote(item)).collect::<Vec<_>>().join(", "))
    }
}

impl Setting for Vec<u32> {
    const TEXT: TextForm = TextForm::List;
    fn read(value: toml::Value) -> Result<Self, String> {
        read_serde(value)
    }
    fn print(&self) -> String {
        format!("[{}]", self.iter().map(u32::to_string).collect::<Vec<_>>().join(", "))
    }
}

/// Declares an enum whose variants are words in the configuration.
macro_rules! choice {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $variant_doc:literal])* $variant:ident = $word:literal,)+ }) => {
        $(#[doc = $doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize)]
        pub enum $name { $($(#[doc = $variant_doc])* #[serde(rename = $word)] $variant,)+ }

        impl $name {
            /// The word that stands for it in the configuration.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str(self.as_str())
            }
        }

        impl $crate::value::Setting for $name {
            const TEXT: $crate::value::TextForm = $crate::value::TextForm::Verbatim;
            fn read(value: toml::Value) -> Result<Self, String> {
                match value.as_str() {
                    $(Some($word) => Ok(Self::$variant),)+
                    _ => Err(format!("allowed: {}", [$(concat!("\"", $word, "\"")),+].join(", "))),
                }
            }
            fn print(&self) -> String {
                format!("\"{}\"", self.as_str())
            }
        }

        impl $crate::value::Bound<$name> {
            /// The type is the bound; this only words it.
            pub(crate) fn choice() -> Self {
                Self::rule(&[$(concat!("\"", $word, "\"")),+].join(", "), |_| true)
            }
        }
    };
}
pub(crate) use choice;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_and_durations_without_a_known_unit_are_refused() {
        for text in ["", "12", "MiB", "1.5GiB", "-1KiB", "1 parsec", "99999999999TiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for text in ["", "12", "s", "1.5h", "-1s", "1w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_size_may_be_a_plain_count_in_a_file_and_in_the_environment() {
        assert_eq!(ByteSize::read(toml::Value::Integer(4096)), Ok(ByteSize::kib(4)));
        assert_eq!(ByteSize::read(toml::Value::String("4096".into())), Ok(ByteSize::kib(4)));
        assert!(ByteSize::read(toml::Value::Integer(-1)).is_err());
    }

    proptest! {
        #[test]
        fn printed_sizes_and_durations_read_back(value in 0..u64::MAX) {
            let size = ByteSize::new(value);
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
            let duration = Duration::from_millis(value);
            prop_assert_eq!(parse_duration(&print_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_unit_parser_panic(text in ".{0,24}") {
            let _ = text.parse::<ByteSize>();
            let _ = parse_duration(&text);
        }
    }
}
