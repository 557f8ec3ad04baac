//! Reads chats with questions, and makes memories of their turns as a client would.

use std::collections::BTreeMap;
use std::path::Path;

use mneme_base::{ContentHash, Lsn, MemoryId, Namespace, Provenance, Timestamp};
use mneme_memory::{Memory, MemoryKind, MemoryState};
use serde::Deserialize;

/// Why a chat could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChatError {
    /// A file or folder could not be read.
    #[error("reading the chats failed")]
    Io(#[from] std::io::Error),
    /// A file is not of the form that is expected.
    #[error("{path} is not a chat with sessions and questions")]
    Json {
        /// Which file.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The folder has none.
    #[error("{folder} has no files chat_*.json")]
    Empty {
        /// Which folder.
        folder: String,
    },
}

#[derive(Deserialize)]
struct File {
    sessions: Vec<Session>,
    questions: Vec<RawQuestion>,
}

#[derive(Deserialize)]
struct Session {
    session: u32,
    turns: Vec<Turn>,
}

#[derive(Deserialize)]
struct Turn {
    id: String,
    speaker: String,
    time: String,
    text: Option<String>,
    caption: Option<String>,
}

#[derive(Deserialize)]
struct RawQuestion {
    question: String,
    evidence: Vec<String>,
}

/// A question and the turns that answer it.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// What is asked.
    pub text: String,
    /// The turns that answer it, as places in [`Chat::memories`]; never empty.
    pub gold: Vec<usize>,
}

/// One chat: its turns as memories (thread = session, position = turn), and its questions that have evidence.
#[derive(Debug)]
pub(crate) struct Chat {
    /// The turns.
    pub memories: Vec<Memory>,
    /// The session of each turn.
    pub sessions: Vec<u32>,
    /// The questions.
    pub questions: Vec<Question>,
    /// When the chat ended: the questions are asked then.
    pub end: Timestamp,
}

/// Reads all chats of a folder, in order of their names.
pub(crate) fn read_chats(folder: &Path) -> Result<Vec<Chat>, ChatError> {
    let mut paths: Vec<_> = fs_err::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let is_chat = |path: &std::path::PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("chat_") && path.extension().is_some_and(|extension| extension == "json")
    };
    paths.retain(is_chat);
    paths.sort();
    if paths.is_empty() {
        return Err(ChatError::Empty { folder: folder.display().to_string() });
    }
    paths.iter().enumerate().map(|(number, path)| read_chat(path, number)).collect()
}

fn read_chat(path: &Path, number: usize) -> Result<Chat, ChatError> {
    let text = fs_err::read_to_string(path)?;
    let file: File =
        serde_json::from_str(&text).map_err(|source| ChatError::Json { path: path.display().to_string(), source })?;
    let namespace: Namespace = format!("chat/{number}").parse().expect("letters and digits make a namespace");
    let mut chat =
        Chat { memories: Vec::new(), sessions: Vec::new(), questions: Vec::new(), end: Timestamp::from_millis(0) };
    let mut places = BTreeMap::new();
    for session in file.sessions {
        for (position, turn) in session.turns.into_iter().enumerate() {
            places.insert(turn.id.clone(), chat.memories.len());
            chat.sessions.push(session.session);
            let memory = memory(&namespace, session.session, position, turn, chat.memories.len());
            chat.end = chat.end.max(memory.valid_from);
            chat.memories.push(memory);
        }
    }
    for question in file.questions {
        let mut gold: Vec<usize> = question
            .evidence
            .iter()
            .filter_map(|id| places.get(&id.split_whitespace().collect::<String>()).copied())
            .collect();
        gold.sort_unstable();
        gold.dedup();
        if !gold.is_empty() {
            chat.questions.push(Question { text: question.question, gold });
        }
    }
    Ok(chat)
}

fn memory(namespace: &Namespace, session: u32, position: usize, turn: Turn, number: usize) -> Memory {
    let mut text = turn.text.unwrap_or_default();
    if let Some(caption) = turn.caption.filter(|caption| !caption.is_empty()) {
        text.extend([" [image: ", caption.as_str(), "]"]);
    }
    let time = parse_time(&turn.time).unwrap_or_else(|| Timestamp::from_millis(0));
    // Ids only have to differ and to sort by place.
    let mut id = [0_u8; 16];
    id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    Memory {
        id: MemoryId::from_bytes(id),
        namespace: namespace.clone(),
        kind: MemoryKind::Message,
        content_hash: ContentHash::of(text.as_bytes()),
        text,
        speaker: Some(turn.speaker),
        thread: Some(format!("session {session}")),
        position: Some(position as u64),
        metadata: BTreeMap::new(),
        provenance: Provenance::user("evaluation"),
        valid_from: time,
        valid_to: None,
        recorded_at: time,
        supersedes: None,
        superseded_by: None,
        state: MemoryState::Active,
        evidence: 0,
        redactions: 0,
        lsn: Lsn(number as u64 + 1),
    }
}

/// `29.12.2023, 22:42:04`, taken as UTC.
fn parse_time(text: &str) -> Option<Timestamp> {
    let (date, time) = text.split_once(", ")?;
    let [day, month, year] = date.split('.').collect::<Vec<_>>().try_into().ok()?;
    format!("{year}-{month}-{day}T{time}Z").parse().ok()
}
