//! What was said in a session, read from the end of the editor's transcript: one JSON object a line.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use mneme_base::{OpId, Timestamp};
use serde_json::Value;

/// How much of a transcript's end is read after an answer, and at the end of a session (bytes).
const TAIL_BYTES: [u64; 2] = [512 << 10, 4 << 20];
/// Turns that are remembered after an answer, and at the end of a session.
const TURNS_MAX: [usize; 2] = [8, 200];
/// The longest turn that is kept (characters): beyond it stands pasted text, which is no memory.
const CHARACTERS_MAX: usize = 4_000;
/// A turn shorter than this says nothing that would be asked for ("yes", "go on").
const CHARACTERS_MIN: usize = 16;

/// A turn older than this is not sent (milliseconds): the daemon knows a turn's name for `memory.ledger_keep`, an hour at least, and
/// one whose name it no longer knows would come back although it was forgotten.
const AGE_MS_MAX: i64 = 3_600_000;

/// Something that was said.
#[derive(Debug, PartialEq)]
pub(super) struct Turn {
    pub(super) speaker: &'static str,
    pub(super) text: String,
    pub(super) at: Timestamp,
    /// Made from the turn's own name.
    pub(super) op_id: Option<OpId>,
}

/// The last turns, oldest first, as far as they are recent. A transcript that cannot be read has none.
pub(super) fn read(path: &Path, whole_session: bool, now: Timestamp) -> Vec<Turn> {
    let which = usize::from(whole_session);
    let Some(text) = tail(path, TAIL_BYTES[which]) else { return Vec::new() };
    let mut turns: Vec<Turn> = Vec::new();
    for turn in text.lines().filter_map(parse) {
        // An answer comes in pieces, between uses of tools: the last piece before the next question is what was answered.
        if turn.speaker == "assistant" && turns.last().is_some_and(|last| last.speaker == "assistant") {
            turns.pop();
        }
        turns.push(turn);
    }
    turns.retain(|turn| now.as_millis().saturating_sub(turn.at.as_millis()) < AGE_MS_MAX);
    let skip = turns.len().saturating_sub(TURNS_MAX[which]);
    turns.split_off(skip)
}

fn tail(path: &Path, bytes_max: u64) -> Option<String> {
    let mut file = fs_err::File::open(path).ok()?;
    let metadata = file.metadata().ok()?;
    // A pipe would be waited for.
    if !metadata.is_file() {
        return None;
    }
    let start = metadata.len().saturating_sub(bytes_max);
    file.seek(SeekFrom::Start(start)).ok()?;
    let mut bytes = Vec::new();
    file.take(bytes_max).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    // The first line may have been cut.
    Some(if start == 0 { text } else { text.split_once('\n').map(|(_, rest)| rest.to_owned()).unwrap_or_default() })
}

/// A line as a turn; `None` for the use of tools, commands, what the editor itself put in, and what may be of any age.
fn parse(line: &str) -> Option<Turn> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let flag = |name: &str| entry[name].as_bool().unwrap_or(false);
    if flag("isMeta") || flag("isSidechain") || flag("isCompactSummary") || flag("isApiErrorMessage") {
        return None;
    }
    let speaker = match entry["type"].as_str()? {
        "user" => "user",
        "assistant" => "assistant",
        _ => return None,
    };
    let text = match &entry["message"]["content"] {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let said = parts.iter().filter(|part| part["type"] == "text").filter_map(|part| part["text"].as_str());
            said.collect::<Vec<_>>().join("\n")
        }
        _ => return None,
    };
    let text = text.trim();
    let characters = text.chars().count();
    // Markup at the start is the editor's: `<command-name>`, `<local-command-stdout>`, `<system-reminder>`.
    if text.starts_with(['<', '/']) || !(CHARACTERS_MIN..=CHARACTERS_MAX).contains(&characters) {
        return None;
    }
    Some(Turn {
        speaker,
        text: text.to_owned(),
        at: entry["timestamp"].as_str()?.parse().ok()?,
        op_id: entry["uuid"].as_str().and_then(|id| id.parse().ok()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn transcript(lines: &[Value]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("session.jsonl");
        let text = lines.iter().fold(String::new(), |text, line| text + &line.to_string() + "\n");
        fs_err::write(&path, text).unwrap();
        (folder, path)
    }

    fn user(text: &str) -> Value {
        json!({"type": "user", "uuid": "00010203-0405-0607-0809-0a0b0c0d0e0f", "timestamp": "2026-11-24T08:00:00Z",
            "message": {"role": "user", "content": text}})
    }

    fn now() -> Timestamp {
        "2026-11-24T08:30:00Z".parse().unwrap()
    }

    fn assistant(text: &str) -> Value {
        json!({"type": "assistant", "timestamp": "2026-11-24T08:00:05Z", "message": {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]}})
    }

    #[test]
    fn questions_and_last_answers_are_kept_and_the_rest_is_not() {
        let (_folder, path) = transcript(&[
            user("please close the gate at nine"),
            assistant("I will look at the gate first"),
            json!({"type": "user", "message": {"content": [{"type": "tool_result", "content": "a whole file of output"}]}}),
            assistant("The gate is closed at nine from now on"),
            user("<system-reminder>never a memory</system-reminder>"),
            user("/compact everything that was said"),
            user("yes"),
            json!({"type": "user", "isMeta": true, "message": {"content": "the editor put this in by itself"}}),
            json!({"type": "summary", "summary": "the session is about a gate"}),
            user(&"pasted ".repeat(1_000)),
        ]);
        let turns = read(&path, false, now());
        let said: Vec<_> = turns.iter().map(|turn| (turn.speaker, turn.text.as_str())).collect();
        assert_eq!(
            said,
            [("user", "please close the gate at nine"), ("assistant", "The gate is closed at nine from now on")]
        );
        assert!(turns[0].op_id.is_some());
    }

    #[test]
    fn a_turn_that_the_daemon_may_no_longer_know_by_name_is_not_sent_again() {
        let at = |time: &str, text: &str| {
            let mut line = user(text);
            line["timestamp"] = json!(time);
            line
        };
        let mut undated = user("a question that has no time at all");
        undated.as_object_mut().unwrap().remove("timestamp");
        let (_folder, path) = transcript(&[
            at("2026-11-17T08:00:00Z", "a question of a week before"),
            at("2026-11-24T07:30:00Z", "a question of an hour before"),
            undated,
            at("2026-11-24T07:30:01Z", "a question within the last hour"),
        ]);
        for whole_session in [false, true] {
            let said: Vec<_> = read(&path, whole_session, now()).into_iter().map(|turn| turn.text).collect();
            assert_eq!(said, ["a question within the last hour"]);
        }
    }

    #[test]
    fn only_the_last_turns_are_read_and_a_cut_line_is_left_out() {
        let lines: Vec<Value> = (0..30).map(|number| user(&format!("question number {number} of many"))).collect();
        let (_folder, path) = transcript(&lines);
        let turns = read(&path, false, now());
        assert_eq!(turns.len(), TURNS_MAX[0]);
        assert_eq!(turns.last().unwrap().text, "question number 29 of many");
        assert_eq!(read(&path, true, now()).len(), 30);
        let filler: Vec<Value> = (0..200).map(|_| user(&"x".repeat(CHARACTERS_MAX))).collect();
        let (_folder, long) = transcript(&filler);
        assert_eq!(read(&long, false, now()).len(), TURNS_MAX[0]);
    }

    #[test]
    fn what_is_no_transcript_has_no_turns() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(&folder.path().join("none"), true, now()).is_empty());
        assert!(read(folder.path(), true, now()).is_empty());
        let odd = folder.path().join("odd");
        fs_err::write(&odd, b"\xff\xfe not json\n[]\n{\"type\": 3}\n{\"type\":\"user\"}\n").unwrap();
        assert!(read(&odd, true, now()).is_empty());
    }
}
