//! Puts one entry into a JSON text and leaves every other byte as it is: people order, indent and comment these files.
//!
//! Where comments are allowed, a copy is read in which they are spaces: every byte keeps its place, so that what is found in the
//! copy is changed in the text.

use std::ops::Range;

use serde_json::{Map, Value};

/// What a program's reader takes beside JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Nothing.
    Strict,
    /// Comments, a comma after the last member or element, and a byte order mark.
    Comments,
}

impl Dialect {
    /// The text with spaces in the place of everything that is not JSON, and where the comments are.
    fn plain(self, text: &str) -> (String, Vec<Range<usize>>) {
        if self == Self::Strict {
            return (text.to_owned(), Vec::new());
        }
        let mut bytes = text.as_bytes().to_vec();
        let mut comments = Vec::new();
        if text.starts_with('\u{feff}') {
            bytes[..'\u{feff}'.len_utf8()].fill(b' ');
        }
        let (mut place, mut last) = (0, Last::Opening);
        while place < bytes.len() {
            let end = match (bytes[place], bytes.get(place + 1)) {
                (b'"', _) => value_end(&bytes, place),
                (b'/', Some(b'/')) => place + text[place..].find('\n').unwrap_or(text.len() - place),
                // One that is never closed is no comment.
                (b'/', Some(b'*')) => text[place + 2..].find("*/").map_or(place + 1, |length| place + 2 + length + 2),
                _ => place + 1,
            };
            match bytes[place] {
                b'/' if end > place + 1 => {
                    bytes[place..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
                    comments.push(place..end);
                }
                byte if byte.is_ascii_whitespace() => {}
                byte => {
                    if let (b'}' | b']', Last::Comma(comma)) = (byte, last) {
                        bytes[comma] = b' ';
                    }
                    last = match (byte, last) {
                        (b',', Last::Value) => Last::Comma(place),
                        (b'{' | b'[' | b':' | b',', _) => Last::Opening,
                        _ => Last::Value,
                    };
                }
            }
            place = end;
        }
        // Whole characters were replaced: comments begin and end with ASCII.
        (String::from_utf8(bytes).unwrap_or_else(|_| text.to_owned()), comments)
    }

    fn parse(self, text: &str) -> Result<Map<String, Value>, String> {
        let parsed = serde_json::from_str(&self.plain(text).0).map_err(|error| format!("file is not JSON: {error}"))?;
        let Value::Object(members) = parsed else { return Err("file is not a JSON object".into()) };
        Ok(members)
    }
}

/// What stood last before a place in a text.
#[derive(Debug, Clone, Copy)]
enum Last {
    /// Something that a value must follow.
    Opening,
    /// The end or a part of a value.
    Value,
    /// A comma behind a value, here: it goes when the object or list ends next.
    Comma(usize),
}

/// The text with `{key: {name: entry}}` in it; `None` when it is there already.
///
/// The result is read back and compared with what it should mean, so that a file is never broken by the edit.
pub(super) fn with_entry(
    former: &str,
    key: &str,
    name: &str,
    entry: &Value,
    dialect: Dialect,
) -> Result<Option<String>, String> {
    let written = compact(entry);
    let quoted = |text: &str| Value::from(text).to_string();
    let (plain, _) = dialect.plain(former);
    if plain.trim().is_empty() {
        let kept = if former.trim().is_empty() { String::new() } else { format!("{}\n", former.trim_end()) };
        return Ok(Some(format!("{kept}{{\n  {}: {{\n    {}: {written}\n  }}\n}}\n", quoted(key), quoted(name))));
    }
    let mut wanted = dialect.parse(former)?;
    let servers = wanted.entry(key).or_insert_with(|| Value::Object(Map::new()));
    let servers = servers.as_object_mut().ok_or_else(|| format!("{key:?} is not an object"))?;
    if servers.insert(name.to_owned(), entry.clone()).as_ref() == Some(entry) {
        return Ok(None);
    }
    let root = plain.len() - plain.trim_start().len();
    let text = match member(&plain, root, key) {
        None => {
            let unit = indent(former);
            let value = format!("{{\n{unit}{unit}{}: {written}\n{unit}}}", quoted(name));
            insert((former, &plain), root, &unit, &format!("{}: {value}", quoted(key)), "")
        }
        Some(servers) => {
            if let Some(old) = member(&plain, servers.start, name) {
                format!("{}{written}{}", &former[..old.start], &former[old.end..])
            } else {
                let unit = indent(former);
                let entry = format!("{}: {written}", quoted(name));
                insert((former, &plain), servers.start, &format!("{unit}{unit}"), &entry, &unit)
            }
        }
    };
    checked(text, &wanted, dialect)
}

/// The changed text, if it means what it should.
fn checked(text: String, wanted: &Map<String, Value>, dialect: Dialect) -> Result<Option<String>, String> {
    match dialect.parse(&text) {
        Ok(found) if found == *wanted => Ok(Some(text)),
        _ => Err("file cannot be changed safely: a key may stand there twice".into()),
    }
}

/// The text without `{key: {name: ...}}`; `None` when it is not there. Read back like [`with_entry`].
pub(super) fn without_entry(former: &str, key: &str, name: &str, dialect: Dialect) -> Result<Option<String>, String> {
    let (plain, comments) = dialect.plain(former);
    if plain.trim().is_empty() {
        return Ok(None);
    }
    let mut wanted = dialect.parse(former)?;
    match wanted.get_mut(key) {
        None => return Ok(None),
        Some(Value::Object(servers)) => {
            if servers.remove(name).is_none() {
                return Ok(None);
            }
        }
        Some(_) => return Err(format!("{key:?} is not an object")),
    }
    let root = plain.len() - plain.trim_start().len();
    let unsafe_edit = || String::from("file cannot be changed safely: a key may stand there twice");
    let servers = member(&plain, root, key).ok_or_else(unsafe_edit)?;
    let value = member(&plain, servers.start, name).ok_or_else(unsafe_edit)?;
    let cut = member_with_comma(plain.as_bytes(), servers.start, &value);
    let mut text = former[..cut.start].to_owned();
    let mut rest = &former[cut.end..];
    // Comments beside the entry may be about something else; those within it go with it.
    let mut beside =
        comments.iter().filter(|comment| cut.contains(&comment.start) && !value.contains(&comment.start)).peekable();
    if let (Some(_), Some(behind)) = (beside.peek(), rest.strip_prefix(',')) {
        text.push(',');
        rest = behind;
    }
    for comment in beside {
        let comment = &former[comment.clone()];
        let end = if comment.starts_with("//") { "\n" } else { "" };
        text.push(' ');
        text.push_str(comment.trim_end());
        text.push_str(end);
    }
    // The comment that came last has brought the end of its line.
    text.push_str(if text.ends_with('\n') { rest.strip_prefix('\n').unwrap_or(rest) } else { rest });
    checked(text, &wanted, dialect)
}

/// The member whose value stands at `value` in the object that starts at `at`, with one of its commas.
fn member_with_comma(bytes: &[u8], at: usize, value: &Range<usize>) -> Range<usize> {
    // The member before it ends where the last comma or the brace before its name stands.
    let (mut place, mut start) = (at + 1, at + 1);
    loop {
        let name = space(bytes, place);
        let colon = space(bytes, value_end(bytes, name));
        let first = space(bytes, colon + 1);
        if first == value.start || name >= value.start {
            break;
        }
        let comma = space(bytes, value_end(bytes, first));
        (place, start) = (comma + 1, comma);
    }
    let after = space(bytes, value.end);
    if bytes.get(after) == Some(&b',') && start == at + 1 {
        // The first of several: its comma goes with it, and what stands before the next name takes its place.
        return start..after + 1;
    }
    if start == at + 1 {
        // The only one: the object becomes `{}`.
        return start..after;
    }
    start..value.end
}

/// An entry on one line, `{"a": 1, "b": [2]}`, with its members in the order `type`, `command`, `args`.
fn compact(entry: &Value) -> String {
    let Some(members) = entry.as_object() else { return entry.to_string() };
    let order = |name: &str| ["type", "command", "args"].iter().position(|known| *known == name).unwrap_or(usize::MAX);
    let mut names: Vec<&String> = members.keys().collect();
    names.sort_by_key(|name| order(name));
    let spaced = |value: &Value| match value {
        Value::Array(items) => format!("[{}]", items.iter().map(Value::to_string).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    };
    let written =
        names.iter().map(|name| format!("{}: {}", Value::from(name.as_str()), spaced(&members[name.as_str()])));
    format!("{{{}}}", written.collect::<Vec<_>>().join(", "))
}

/// Puts a member at the front of the object that starts at `at`, in a text with its plain copy.
fn insert((text, plain): (&str, &str), at: usize, indent: &str, member: &str, closing: &str) -> String {
    let (head, tail) = text.split_at(at + 1);
    if tail.trim_start().starts_with('}') {
        return format!("{head}\n{indent}{member}\n{closing}{}", tail.trim_start());
    }
    if plain[at + 1..].trim_start().starts_with('}') {
        // Nothing but comments in it: they stay behind the member.
        return format!("{head}\n{indent}{member}{tail}");
    }
    // On one line it stays on one line.
    let gap = if tail.starts_with(['\n', '\r']) { format!("\n{indent}") } else { String::new() };
    let after = if gap.is_empty() { ", " } else { "," };
    format!("{head}{gap}{member}{after}{}", if gap.is_empty() { tail.trim_start() } else { tail })
}

/// What one step of indentation is in this text.
fn indent(text: &str) -> String {
    let first = text.lines().skip(1).find(|line| !line.trim().is_empty());
    let found: String =
        first.map(|line| line.chars().take_while(|c| matches!(c, ' ' | '\t')).collect()).unwrap_or_default();
    if found.is_empty() { String::from("  ") } else { found }
}

/// Where the value of a member stands, in the object that starts at `at`. The text is known to be JSON.
fn member(text: &str, at: usize, key: &str) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let mut place = space(bytes, at + 1);
    while bytes.get(place) == Some(&b'"') {
        let name_end = value_end(bytes, place);
        let colon = space(bytes, name_end);
        let start = space(bytes, colon + 1);
        let end = value_end(bytes, start);
        if serde_json::from_str::<String>(text.get(place..name_end)?).is_ok_and(|name| name == key) {
            return Some(start..end);
        }
        place = space(bytes, end);
        if bytes.get(place) == Some(&b',') {
            place = space(bytes, place + 1);
        }
    }
    None
}

fn space(bytes: &[u8], mut place: usize) -> usize {
    while bytes.get(place).is_some_and(u8::is_ascii_whitespace) {
        place += 1;
    }
    place
}

/// Where the value that starts at `start` ends.
fn value_end(bytes: &[u8], start: usize) -> usize {
    let (mut depth, mut place) = (0_usize, start);
    while let Some(&byte) = bytes.get(place) {
        match byte {
            b'"' => {
                place += 1;
                while let Some(&inner) = bytes.get(place) {
                    match inner {
                        b'\\' => place += 1,
                        b'"' => break,
                        _ => {}
                    }
                    place += 1;
                }
                if depth == 0 {
                    return place + 1;
                }
            }
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth <= 1 => return if depth == 0 { place } else { place + 1 },
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => return place,
            _ if depth == 0 && byte.is_ascii_whitespace() => return place,
            _ => {}
        }
        place += 1;
    }
    place
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_put_in_is_taken_out_and_the_rest_stays_byte_for_byte() {
        for former in [
            "{\n  \"servers\": {\n    \"a\": {\"x\": [1,  2]},\n    \"b\": \"}\\\"\"\n  },\n  \"z\": null\n}\n",
            "{\"servers\": {\"a\": 1}, \"z\": 2}",
            "{\n\t\"z\": 1,\n\t\"servers\": {\"a\": 1}\n}",
        ] {
            let with =
                with_entry(former, "servers", "mneme", &json!({"command": "x"}), Dialect::Strict).unwrap().unwrap();
            let without = without_entry(&with, "servers", "mneme", Dialect::Strict).unwrap().unwrap();
            assert_eq!(without.split_whitespace().collect::<String>(), former.split_whitespace().collect::<String>());
            assert_eq!(
                without_entry(&without, "servers", "mneme", Dialect::Strict).unwrap(),
                None,
                "a second time changes nothing"
            );
            let last = without_entry(former, "servers", "a", Dialect::Strict).unwrap().unwrap();
            assert!(serde_json::from_str::<Value>(&last).is_ok(), "{last}");
        }
    }

    #[test]
    fn the_middle_the_last_and_the_only_member_are_taken_out() {
        let text = r#"{"s": {"a": 1, "mneme": {"q": "\"}"}, "b": [2]}}"#;
        assert_eq!(
            without_entry(text, "s", "mneme", Dialect::Strict).unwrap().unwrap(),
            r#"{"s": {"a": 1, "b": [2]}}"#
        );
        assert_eq!(
            without_entry(r#"{"s": {"a": 1, "mneme": 2}}"#, "s", "mneme", Dialect::Strict).unwrap().unwrap(),
            r#"{"s": {"a": 1}}"#
        );
        assert_eq!(
            without_entry(r#"{"s": {"mneme": 2 } }"#, "s", "mneme", Dialect::Strict).unwrap().unwrap(),
            r#"{"s": {} }"#
        );
        assert_eq!(without_entry("{}", "s", "mneme", Dialect::Strict).unwrap(), None);
        assert!(
            without_entry("{", "s", "mneme", Dialect::Strict).is_err()
                && without_entry(r#"{"s": 1}"#, "s", "mneme", Dialect::Strict).is_err()
        );
        let twice = r#"{"s": {"mneme": 1, "mneme": 2}}"#;
        assert!(without_entry(twice, "s", "mneme", Dialect::Strict).is_err(), "what stands there twice is left alone");
    }

    /// The text with the entry, then without it again.
    fn there_and_back(former: &str) -> (String, String) {
        let with =
            with_entry(former, "servers", "mneme", &json!({"command": "x"}), Dialect::Comments).unwrap().unwrap();
        let again = with_entry(&with, "servers", "mneme", &json!({"command": "x"}), Dialect::Comments);
        assert_eq!(again.unwrap(), None, "a second time changes nothing");
        let without = without_entry(&with, "servers", "mneme", Dialect::Comments).unwrap().unwrap();
        (with, without)
    }

    #[test]
    fn comments_trailing_commas_and_a_mark_are_read_and_kept() {
        let former = "\u{feff}// mine, \"servers\": {\n{\n  /* {é */ \"z\": \"// no comment\", // after\n  \"servers\": {\n    // of a\n    \"a\": [1, 2,], // beside a\n  },\n}\n";
        let (with, without) = there_and_back(former);
        let comments = ["// mine, \"servers\": {", "/* {é */", "\"// no comment\", // after", "// of a", "// beside a"];
        for text in [&with, &without] {
            assert!(text.starts_with('\u{feff}'));
            assert!(comments.iter().all(|comment| text.contains(comment)), "{text}");
        }
        assert_eq!(without.split_whitespace().collect::<String>(), former.split_whitespace().collect::<String>());
        assert!(with_entry(former, "servers", "mneme", &json!(1), Dialect::Strict).is_err());
    }

    #[test]
    fn an_entry_is_taken_from_among_comments_and_they_stay() {
        let text = "{\"servers\": {\n  \"a\": 1, // of a\n  // of ours\n  \"mneme\": {/* within */},\n  /* of b */ \"b\": 2\n}}";
        let without = without_entry(text, "servers", "mneme", Dialect::Comments).unwrap().unwrap();
        assert!(["// of a\n", "// of ours\n", "/* of b */"].iter().all(|kept| without.contains(kept)), "{without}");
        assert!(!without.contains("within"), "{without}");
        for former in
            ["{/* nothing yet */}", "// nothing yet\n", "{\n  // nothing yet\n}", "{\"servers\": {/* none */}}"]
        {
            let (with, without) = there_and_back(former);
            let comment = former.find('/').map(|place| former[place..].trim_end_matches('}').trim_end());
            assert!(with.contains(comment.unwrap()) && without.contains(comment.unwrap()), "{with} {without}");
        }
    }

    #[test]
    fn what_is_neither_json_nor_json_with_comments_is_refused() {
        for former in
            ["{,}", "{\"a\": 1,,}", "{\"a\":,}", "{} /* open", "{} / x", "[,]", "{\"a\": [,]}", "{\"a\": 1 // b"]
        {
            assert!(with_entry(former, "servers", "mneme", &json!(1), Dialect::Comments).is_err(), "{former}");
        }
    }
}
