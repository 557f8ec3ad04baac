//! The session hooks of Claude Code in its settings: recall at the start and at each question, remember after each answer.
//!
//! Entries of other programs stay; ours are known by their command.

use serde_json::{Value, json};

use super::{Change, json as text};
use crate::error::CommandError;

/// The editor's events and our hook for each.
const EVENTS: [(&str, &str); 4] = [
    ("SessionStart", "session-start"),
    ("UserPromptSubmit", "prompt"),
    ("Stop", "stop"),
    ("SessionEnd", "session-end"),
];
/// The editor gives a hook up after this (seconds): ours gives itself up sooner.
const TIMEOUT_S: u64 = 10;

/// The settings with our hooks in them, or without them when `command` is `None`.
pub(super) fn changed(former: &str, command: Option<&str>) -> Result<Change, CommandError> {
    let refuse = |problem: String| CommandError::Usage {
        problem,
        hint: Some("mend the file, or add by hand what 'mneme install claude-code --hooks --print' shows".into()),
    };
    let mut edited = former.to_owned();
    for (event, hook) in EVENTS {
        let parsed: Value = if edited.trim().is_empty() {
            json!({})
        } else {
            serde_json::from_str(&edited).map_err(|error| refuse(format!("file is not JSON: {error}")))?
        };
        let entries = match &parsed["hooks"][event] {
            Value::Null => Vec::new(),
            Value::Array(entries) => entries.clone(),
            _ => return Err(refuse(format!("hooks.{event} is not a list"))),
        };
        let mut wanted: Vec<Value> = entries.iter().filter(|entry| !is_ours(entry)).cloned().collect();
        if let Some(command) = command {
            wanted.push(json!({"hooks": [{"type": "command", "command": format!("{command} hook {hook}"), "timeout": TIMEOUT_S}]}));
        }
        if wanted == entries {
            continue;
        }
        let next = if wanted.is_empty() {
            text::without_entry(&edited, "hooks", event, text::Dialect::Strict)
        } else {
            text::with_entry(&edited, "hooks", event, &Value::Array(wanted), text::Dialect::Strict)
        };
        if let Some(next) = next.map_err(refuse)? {
            edited = next;
        }
    }
    Ok(if edited == former { Change::None } else { Change::Write(edited) })
}

/// Whether an entry starts one of our hooks, and nothing else.
fn is_ours(entry: &Value) -> bool {
    let Some(hooks) = entry["hooks"].as_array() else { return false };
    !hooks.is_empty()
        && hooks.iter().all(|hook| {
            let command = hook["command"].as_str().unwrap_or_default();
            let program = EVENTS.iter().find_map(|(_, name)| command.strip_suffix(&format!(" hook {name}")));
            let program = program.and_then(|program| program.split(" --socket ").next());
            program.is_some_and(|program| program.trim_end_matches(['"', '\'']).ends_with("mneme"))
        })
}

/// A program's path as a shell reads it.
pub(super) fn quoted(path: &str) -> String {
    let plain = path.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '+'));
    if plain { path.to_owned() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(former: &str, command: Option<&str>) -> String {
        match changed(former, command).unwrap() {
            Change::Write(text) => text,
            Change::None => former.to_owned(),
        }
    }

    #[test]
    fn hooks_are_added_once_and_taken_away_without_a_trace() {
        for former in [
            "{}",
            "{\n  \"model\": \"x\"\n}\n",
            r#"{"hooks": {"Stop": [{"hooks": [{"type": "command", "command": "beep"}]}]}, "z": [1,2 , 3]}"#,
        ] {
            let with = written(former, Some("/usr/bin/mneme"));
            let parsed: Value = serde_json::from_str(&with).unwrap();
            for (event, hook) in EVENTS {
                let entries = parsed["hooks"][event].as_array().unwrap();
                let last = entries.last().unwrap();
                assert_eq!(last["hooks"][0]["command"], format!("/usr/bin/mneme hook {hook}"));
            }
            assert_eq!(changed(&with, Some("/usr/bin/mneme")).unwrap(), Change::None, "a second time changes nothing");
            let moved = written(&with, Some("/opt/mneme"));
            assert!(!moved.contains("/usr/bin/mneme"), "an older program is replaced: {moved}");
            let without: Value = serde_json::from_str(&written(&with, None)).unwrap();
            let mut expected: Value = serde_json::from_str(former).unwrap();
            if expected.get("hooks").is_none() {
                expected["hooks"] = json!({});
            }
            assert_eq!(without, expected);
        }
    }

    #[test]
    fn hooks_of_others_are_not_ours() {
        let entry = |command: &str| json!({"hooks": [{"type": "command", "command": command}]});
        assert!(is_ours(&entry("/usr/bin/mneme hook stop")) && is_ours(&entry("'/a b/mneme' hook prompt")));
        assert!(is_ours(&entry("/usr/bin/mneme --socket /run/x hook prompt")));
        for other in ["beep", "/usr/bin/other hook stop", "mneme recall x", "mneme hook stop; rm -r x", ""] {
            assert!(!is_ours(&entry(other)), "{other}");
        }
        assert!(!is_ours(&json!({"hooks": []})) && !is_ours(&json!(3)));
    }

    #[test]
    fn settings_that_cannot_be_read_are_left_alone() {
        for former in ["{", "[]", r#"{"hooks": 1}"#, r#"{"hooks": {"Stop": {}}}"#] {
            assert!(changed(former, Some("mneme")).is_err(), "{former}");
        }
    }

    #[test]
    fn a_path_is_one_word_for_a_shell() {
        assert_eq!(quoted("/usr/bin/mneme"), "/usr/bin/mneme");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }
}
