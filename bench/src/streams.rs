//! Streams of text that benchmarks read: a diary, the speakers of a chat, lines of base text.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Bytes of a line or a chat at most: a longer one is no entry.
const ENTRY_BYTES_MAX: usize = 16 << 20;

/// Why a stream could not be read.
pub type Failure = Box<dyn std::error::Error>;

/// A file of the evaluation data beside the workspace, or below `MNEME_SHARED`.
pub fn shared(path: &str) -> PathBuf {
    let shared = std::env::var_os("MNEME_SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared"), PathBuf::from);
    shared.join(path)
}

/// The diary that is read when no file is named.
pub fn default_file() -> PathBuf {
    shared("eval/pepys/diary_1660_1665.jsonl.gz")
}

/// The streams of a file: one of a diary, one per speaker of a chat.
pub fn streams(path: &Path) -> Result<Vec<Vec<String>>, Failure> {
    let file = fs_err::File::open(path)?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return chat(file);
    }
    Ok(vec![lines(BufReader::new(flate2::read::GzDecoder::new(file)), None, usize::MAX)?])
}

/// Texts of a `.jsonl.zst` of other people's text, until this many bytes were read; of one source only when it is named.
pub fn base_texts(path: &Path, source: Option<&str>, bytes_max: usize) -> Result<Vec<String>, Failure> {
    lines(BufReader::new(zstd::Decoder::new(fs_err::File::open(path)?)?), source, bytes_max)
}

/// The texts of JSON lines, until this many bytes of text were read.
fn lines(reader: impl BufRead, source: Option<&str>, limit: usize) -> Result<Vec<String>, Failure> {
    let (mut texts, mut read) = (Vec::new(), 0_usize);
    for line in reader.split(b'\n') {
        let line = line?;
        if line.len() > ENTRY_BYTES_MAX {
            return Err(format!(
                "line {} has {} bytes, read are at most {ENTRY_BYTES_MAX}",
                texts.len() + 1,
                line.len()
            )
            .into());
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let value: serde_json::Value = serde_json::from_slice(&line)?;
        if source.is_some_and(|source| value.get("source").and_then(serde_json::Value::as_str) != Some(source)) {
            continue;
        }
        let text = value.get("text").and_then(serde_json::Value::as_str);
        let text = text.ok_or_else(|| format!("line {} has no text", texts.len() + 1))?;
        read = read.saturating_add(text.len());
        texts.push(text.to_owned());
        if read >= limit {
            break;
        }
    }
    Ok(texts)
}

/// What each speaker of a chat said, in order.
fn chat(file: fs_err::File) -> Result<Vec<Vec<String>>, Failure> {
    let mut bytes = Vec::new();
    file.take(ENTRY_BYTES_MAX as u64).read_to_end(&mut bytes)?;
    let value: serde_json::Value = serde_json::from_slice(&bytes)?;
    let list = |value: &serde_json::Value, key: &str| value.get(key).and_then(|v| v.as_array()).cloned();
    let mut speakers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for session in list(&value, "sessions").ok_or("chat has no sessions")? {
        for turn in list(&session, "turns").unwrap_or_default() {
            let field = |key: &str| turn.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
            if let (Some(speaker), Some(text)) = (field("speaker"), field("text")) {
                speakers.entry(speaker).or_default().push(text);
            }
        }
    }
    Ok(speakers.into_values().collect())
}
