//! Puts one entry into a JSON text and leaves every other byte as it is: people order and indent these files.

use std::ops::Range;

use serde_json::{Map, Value};

/// The text with `{key: {name: entry}}` in it; `None` when it is there already.
///
/// The result is read back and compared with what it should mean, so that a file is never broken by the edit.
pub(super) fn with_entry(former: &str, key: &str, name: &str, entry: &Value) -> Result<Option<String>, String> {
    let written = compact(entry);
    let quoted = |text: &str| Value::from(text).to_string();
    if former.trim().is_empty() {
        return Ok(Some(format!("{{\n  {}: {{\n    {}: {written}\n  }}\n}}\n", quoted(key), quoted(name))));
    }
    let parsed: Value = serde_json::from_str(former).map_err(|error| format!("file is not JSON: {error}"))?;
    let mut wanted = parsed.as_object().ok_or("file is not a JSON object")?.clone();
    let servers = wanted.entry(key).or_insert_with(|| Value::Object(Map::new()));
    let servers = servers.as_object_mut().ok_or_else(|| format!("{key:?} is not an object"))?;
    if servers.insert(name.to_owned(), entry.clone()).as_ref() == Some(entry) {
        return Ok(None);
    }
    let root = former.len() - former.trim_start().len();
    let text = match member(former, root, key) {
        None => {
            let unit = indent(former);
            let value = format!("{{\n{unit}{unit}{}: {written}\n{unit}}}", quoted(name));
            insert(former, root, &unit, &format!("{}: {value}", quoted(key)), "")
        }
        Some(servers) => {
            if let Some(old) = member(former, servers.start, name) {
                format!("{}{written}{}", &former[..old.start], &former[old.end..])
            } else {
                let unit = indent(former);
                insert(former, servers.start, &format!("{unit}{unit}"), &format!("{}: {written}", quoted(name)), &unit)
            }
        }
    };
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(found)) if found == wanted => Ok(Some(text)),
        _ => Err("file cannot be changed safely: a key may stand there twice".into()),
    }
}

/// The text without `{key: {name: ...}}`; `None` when it is not there. Read back like [`with_entry`].
pub(super) fn without_entry(former: &str, key: &str, name: &str) -> Result<Option<String>, String> {
    if former.trim().is_empty() {
        return Ok(None);
    }
    let parsed: Value = serde_json::from_str(former).map_err(|error| format!("file is not JSON: {error}"))?;
    let mut wanted = parsed.as_object().ok_or("file is not a JSON object")?.clone();
    match wanted.get_mut(key) {
        None => return Ok(None),
        Some(Value::Object(servers)) => {
            if servers.remove(name).is_none() {
                return Ok(None);
            }
        }
        Some(_) => return Err(format!("{key:?} is not an object")),
    }
    let root = former.len() - former.trim_start().len();
    let unsafe_edit = || String::from("file cannot be changed safely: a key may stand there twice");
    let servers = member(former, root, key).ok_or_else(unsafe_edit)?;
    let value = member(former, servers.start, name).ok_or_else(unsafe_edit)?;
    let text = cut_member(former, servers.start, &value);
    match serde_json::from_str::<Value>(&text) {
        Ok(Value::Object(found)) if found == wanted => Ok(Some(text)),
        _ => Err(unsafe_edit()),
    }
}

/// Cuts the member whose value stands at `value` out of the object that starts at `at`, with one of its commas.
fn cut_member(text: &str, at: usize, value: &Range<usize>) -> String {
    let bytes = text.as_bytes();
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
        return format!("{}{}", &text[..start], &text[after + 1..]);
    }
    if start == at + 1 {
        // The only one: the object becomes `{}`.
        return format!("{}{}", &text[..start], &text[after..]);
    }
    format!("{}{}", &text[..start], &text[value.end..])
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

/// Puts a member at the front of the object that starts at `at`.
fn insert(text: &str, at: usize, indent: &str, member: &str, closing: &str) -> String {
    let (head, tail) = text.split_at(at + 1);
    if tail.trim_start().starts_with('}') {
        return format!("{head}\n{indent}{member}\n{closing}{}", tail.trim_start());
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
            let with = with_entry(former, "servers", "mneme", &json!({"command": "x"})).unwrap().unwrap();
            let without = without_entry(&with, "servers", "mneme").unwrap().unwrap();
            assert_eq!(without.split_whitespace().collect::<String>(), former.split_whitespace().collect::<String>());
            assert_eq!(without_entry(&without, "servers", "mneme").unwrap(), None, "a second time changes nothing");
            let last = without_entry(former, "servers", "a").unwrap().unwrap();
            assert!(serde_json::from_str::<Value>(&last).is_ok(), "{last}");
        }
    }

    #[test]
    fn the_middle_the_last_and_the_only_member_are_taken_out() {
        let text = r#"{"s": {"a": 1, "mneme": {"q": "\"}"}, "b": [2]}}"#;
        assert_eq!(without_entry(text, "s", "mneme").unwrap().unwrap(), r#"{"s": {"a": 1, "b": [2]}}"#);
        assert_eq!(
            without_entry(r#"{"s": {"a": 1, "mneme": 2}}"#, "s", "mneme").unwrap().unwrap(),
            r#"{"s": {"a": 1}}"#
        );
        assert_eq!(without_entry(r#"{"s": {"mneme": 2 } }"#, "s", "mneme").unwrap().unwrap(), r#"{"s": {} }"#);
        assert_eq!(without_entry("{}", "s", "mneme").unwrap(), None);
        assert!(without_entry("{", "s", "mneme").is_err() && without_entry(r#"{"s": 1}"#, "s", "mneme").is_err());
        let twice = r#"{"s": {"mneme": 1, "mneme": 2}}"#;
        assert!(without_entry(twice, "s", "mneme").is_err(), "what stands there twice is left alone");
    }
}
