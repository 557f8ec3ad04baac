//! Skills that leave and arrive: a card and its adapter's file as one stream of bytes, moved in parts.
//!
//! What arrives comes from elsewhere and is taken step by step: bounded, hashed, its card checked, its file read by the engine
//! and judged for what it forgets. Then it is a stored adapter like any other, which serves nothing before it has passed a
//! shadow here. No step lets a sender choose a path: the staged file is called by its hash, the adapter's folder by its id.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mneme_base::{AdapterId, ContentHash, MemoryId};
use mneme_engine_api::{AdapterUse, CancelToken, Engine, EngineError, ScoreItem, TrainText};
use mneme_evolution::machine::{Command, Event, Notice, Stage};
use mneme_evolution::portable::{CARD_BYTES_MAX, CardError, FILE_BYTES_MAX, is_file_name};
use mneme_evolution::registry::{CardState, SkillCard};
use mneme_memory::StoreHealth;
use ractor::ActorRef;
use tokio::time::Instant;

use super::journal::missing;
use super::{EvolutionHandle, Message, State, adapter_folder, base_text, remove_folder};
use crate::call::{ActorError, Slot};

/// A skill longer than this is refused before a byte of it is kept (bytes).
const SKILL_BYTES_MAX: u64 = FILE_BYTES_MAX + CARD_BYTES_MAX as u64;
/// Uploads that are kept beside the one under way; the oldest goes first.
const UPLOADS_KEPT: usize = 1;
/// How long the engine may read with an adapter that arrived.
const READ_TIMEOUT: Duration = Duration::from_mins(2);
/// Where uploads lie, in the adapters' folder: no adapter is called so.
const ARRIVING: &str = "arriving";

/// A part of an exported skill.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkillPart {
    /// The bytes from the offset that was asked for.
    pub data: Vec<u8>,
    /// The skill's whole length (bytes).
    pub total: u64,
}

/// A part of a skill that arrives.
#[derive(Debug, Clone)]
pub struct SkillUpload {
    /// Hash of the whole skill: names the upload.
    pub hash: ContentHash,
    /// Its whole length (bytes).
    pub total: u64,
    /// Where this part starts.
    pub offset: u64,
    /// The part.
    pub data: Vec<u8>,
}

/// What became of a part.
#[derive(Debug, Clone)]
pub struct SkillReceipt {
    /// How much of the skill is here (bytes).
    pub received: u64,
    /// With the last part: the adapter, the loop's station and what happened, in words.
    pub taken: Option<(AdapterId, Stage, String)>,
}

/// The last skill that was taken in, with what was answered.
#[derive(Debug)]
pub(super) struct Taken {
    hash: ContentHash,
    answer: (AdapterId, Stage, String),
}

/// What becomes of a card that may be taken in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Admission {
    /// It is new.
    New,
    /// It is here already, word by word; the loop's station.
    Known(Stage),
}

/// An adapter to be taken in.
#[derive(Debug)]
pub(crate) struct Adoption {
    card: Box<SkillCard>,
    /// The memories it learned that were not here when it arrived.
    foreign: BTreeSet<MemoryId>,
    /// Loss on guard texts of the base and of the adapter (nats a token), paired.
    guard: Vec<(f32, f32)>,
    /// Where its file lies.
    file: PathBuf,
}

/// A skill that arrived whole.
struct Arrived {
    card: SkillCard,
    file: String,
    /// Length of the first line (bytes).
    line: u64,
}

impl EvolutionHandle {
    /// A part of an adapter as a skill: at most `bytes_max` bytes from `offset` on. Empty at the end.
    pub async fn export_skill(
        &self,
        adapter: AdapterId,
        offset: u64,
        bytes_max: usize,
        deadline: Instant,
    ) -> Result<SkillPart, ActorError> {
        let missing = || ActorError::NotFound { what: format!("adapter {adapter}") };
        let report = self.report(deadline).await?;
        let entry = report.adapters.into_iter().find(|entry| entry.card.adapter == adapter).ok_or_else(missing)?;
        if entry.state == CardState::Retired {
            return Err(ActorError::invalid("adapter", format!("{adapter} is retired, its file is gone")));
        }
        let folder = adapter_folder(&self.folder, adapter);
        blocking(move || read_part(&folder, &entry.card, offset, bytes_max)).await
    }

    /// Takes a part of a skill; with the last one the skill is checked, tried and taken in. Parts come in order; one that comes
    /// again is taken again. One upload is dealt with at a time, to its end: whoever leaves meanwhile finds it when they come again.
    pub async fn import_skill(&self, upload: SkillUpload, deadline: Instant) -> Result<SkillReceipt, ActorError> {
        let end = upload.offset.saturating_add(upload.data.len() as u64);
        if upload.total > SKILL_BYTES_MAX {
            return Err(ActorError::invalid(
                "total",
                format!("is {}, allowed are {SKILL_BYTES_MAX} bytes", upload.total),
            ));
        }
        if upload.data.is_empty() || end > upload.total {
            let problem = format!("has {} bytes at {} of {}", upload.data.len(), upload.offset, upload.total);
            return Err(ActorError::invalid("data", problem));
        }
        let this = self.clone();
        let work = async move { this.arrive(upload, end, deadline).await };
        tokio::spawn(work).await.map_err(|_| ActorError::Stopped { actor: "evolution" })?
    }

    async fn arrive(&self, upload: SkillUpload, end: u64, deadline: Instant) -> Result<SkillReceipt, ActorError> {
        let mut arriving = self.arriving.lock().await;
        let (folder, total, hash, offset) = (self.folder.join(ARRIVING), upload.total, upload.hash, upload.offset);
        if offset == 0 {
            self.slot.call(None, deadline, Message::Admits).await?;
        } else if let Some(taken) = arriving.as_ref().filter(|taken| taken.hash == hash && end == total) {
            // The answer to the last part was lost.
            return Ok(SkillReceipt { received: end, taken: Some(taken.answer.clone()) });
        }
        *arriving = None;
        let staged = folder.join(hash.to_string());
        let memory = self.memory.clone();
        blocking(move || {
            if let StoreHealth::ReadOnly { reason } = memory.stats().health {
                return Err(failed(std::io::Error::other(reason)));
            }
            stage(&folder, &upload)
        })
        .await?;
        if end < total {
            return Ok(SkillReceipt { received: end, taken: None });
        }
        let whole = staged.clone();
        let arrived = blocking(move || open(&whole, hash)).await;
        let taken = match arrived {
            Ok(arrived) => self.take(arrived, &staged, deadline).await,
            Err(error) => Err(error),
        };
        // Whatever became of it: what is to be tried again is sent again.
        remove_file(&staged);
        let answer = taken?;
        *arriving = Some(Taken { hash, answer: answer.clone() });
        Ok(SkillReceipt { received: end, taken: Some(answer) })
    }

    async fn take(
        &self,
        arrived: Arrived,
        staged: &Path,
        deadline: Instant,
    ) -> Result<(AdapterId, Stage, String), ActorError> {
        let Arrived { card, file, line } = arrived;
        let adapter = card.adapter;
        let folder = adapter_folder(&self.folder, adapter);
        let (staged, into) = (staged.to_path_buf(), folder.join(&file));
        let admission = self.slot.call(Some(Box::new(card.clone())), deadline, Message::Admits).await?;
        // What nobody has taken when this ends goes, however it ends.
        let _placed = Placed { slot: &self.slot, adapter };
        if let Admission::Known(stage) = admission {
            let words = blocking(move || supply(&staged, line, &into, &card)).await?;
            return Ok((adapter, stage, String::from(words)));
        }
        let foreign = self.foreign(&card, deadline).await?;
        blocking(move || place(&staged, line, &into)).await?;
        let (engine, used) = (
            Arc::clone(&self.engine),
            AdapterUse { id: adapter, folder: folder.display().to_string(), weight: 1.0, scale: card.scale as f32 },
        );
        let dimensions = card.centroid.dimensions();
        let guard = blocking(move || read_with(&*engine, &used, dimensions)).await?;
        let adoption = Adoption { card: Box::new(card), foreign, guard, file: folder.join(file) };
        let (stage, words) = self.slot.call(adoption, deadline, Message::Adopt).await?;
        Ok((adapter, stage, words))
    }

    /// Memories that a card learned and that are not in the store here.
    async fn foreign(&self, card: &SkillCard, deadline: Instant) -> Result<BTreeSet<MemoryId>, ActorError> {
        let here = self.memory.get_all(card.lineage.clone(), deadline).await?;
        let here: BTreeSet<MemoryId> = here.into_iter().map(|memory| memory.id).collect();
        Ok(card.lineage.iter().copied().filter(|memory| !here.contains(memory)).collect())
    }
}

/// Tells the actor at its end that nobody works on an adapter's folder any more.
struct Placed<'a> {
    slot: &'a Slot<Message>,
    adapter: AdapterId,
}

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        self.slot.cast(Message::Placed(self.adapter));
    }
}

impl State {
    /// Whether a card may be taken in, or is known already with all that it says.
    pub(super) async fn admit(
        &mut self,
        myself: &ActorRef<Message>,
        card: Option<&SkillCard>,
    ) -> Result<Admission, ActorError> {
        if !self.arguments.enabled {
            return Err(ActorError::invalid(
                "evolution",
                "is switched off by evolution.enabled, so no skill is taken in",
            ));
        }
        let Some(card) = card else { return Ok(Admission::New) };
        let known = self.evolution.state().registry.get(card.adapter);
        if known.is_some_and(|entry| entry.state != CardState::Retired && entry.card == *card) {
            // It may wait to be written: then it is not here yet.
            self.catch_up(myself).await?;
            return Ok(Admission::Known(self.evolution.state().stage()));
        }
        match self.evolution.admits(card) {
            Ok(()) | Err(CardError::NoBase) => Ok(Admission::New),
            Err(error) => Err(ActorError::invalid("skill", format!("is refused: {error}"))),
        }
    }

    /// Takes an adapter in. With `Ok` its row is durable.
    pub(super) async fn adopt(
        &mut self,
        myself: &ActorRef<Message>,
        adoption: Adoption,
    ) -> Result<(Stage, String), ActorError> {
        let Adoption { card, foreign, guard, file } = adoption;
        // A restart of this actor sweeps what nobody keeps yet.
        if !file.is_file() {
            return Err(ActorError::Stopped { actor: "evolution" });
        }
        // What was here when it arrived may have been forgotten while it was read. What is forgotten from here on finds its card.
        let here: BTreeSet<MemoryId> =
            card.lineage.iter().copied().filter(|memory| !foreign.contains(memory)).collect();
        let here: Vec<MemoryId> = here.into_iter().collect();
        if !missing(&self.arguments.memory, &here).await?.is_empty() {
            let error = CardError::Forgotten(card.adapter);
            return Err(ActorError::invalid("skill", format!("is refused: {error}")));
        }
        let notices = self.happened(myself, Event::Command(Command::Import { card, foreign, guard })).await?;
        for notice in notices {
            if let Notice::Refused { reason } = notice {
                return Err(ActorError::invalid("skill", format!("is refused: {reason}")));
            }
        }
        self.catch_up(myself).await?;
        let words = String::from("taken in; it serves nothing before it has passed a shadow here");
        Ok((self.evolution.state().stage(), words))
    }
}

/// Removes uploads that a run before left.
pub(super) fn forget_uploads(adapters: &Path) {
    remove_folder(&adapters.join(ARRIVING));
}

/// Runs work on files or the engine on a thread that may wait.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ActorError> + Send + 'static,
) -> Result<T, ActorError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ActorError::Stopped { actor: "evolution" })?
}

fn failed(error: std::io::Error) -> ActorError {
    ActorError::Engine(EngineError::Unavailable { reason: error.to_string() })
}

fn remove_file(path: &Path) {
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => tracing::warn!(%error, "an upload stays on disk"),
        _ => {}
    }
}

/// The adapter's file in its folder: the one that the card describes.
fn file_of(folder: &Path, card: &SkillCard) -> Result<(PathBuf, String), ActorError> {
    let gone = || ActorError::NotFound { what: format!("the file of adapter {}", card.adapter) };
    for entry in fs_err::read_dir(folder).map_err(|_| gone())?.filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let fits = entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() == card.bytes);
        if fits && is_file_name(&name) {
            return Ok((entry.path(), name));
        }
    }
    Err(gone())
}

fn read_part(folder: &Path, card: &SkillCard, offset: u64, bytes_max: usize) -> Result<SkillPart, ActorError> {
    let (path, name) = file_of(folder, card)?;
    let mut file = fs_err::File::open(&path).map_err(failed)?;
    // Once for all parts: a damaged file is not given away.
    if offset == 0 && ContentHash::of_reader(&mut file).map_err(failed)? != card.file_hash {
        return Err(ActorError::invalid("adapter", format!("{} has a file that was changed on disk", card.adapter)));
    }
    let line = card.export(&name).into_bytes();
    let total = line.len() as u64 + card.bytes;
    if offset > total {
        return Err(ActorError::invalid("offset", format!("is {offset}, the skill has {total} bytes")));
    }
    let mut data: Vec<u8> = line.iter().copied().skip(offset as usize).take(bytes_max).collect();
    let left = bytes_max - data.len();
    file.seek(SeekFrom::Start(offset.saturating_sub(line.len() as u64))).map_err(failed)?;
    file.take(left as u64).read_to_end(&mut data).map_err(failed)?;
    Ok(SkillPart { data, total })
}

/// Writes a part where it belongs; what lies behind it is of an earlier try.
fn stage(folder: &Path, upload: &SkillUpload) -> Result<(), ActorError> {
    let path = folder.join(upload.hash.to_string());
    fs_err::create_dir_all(folder).map_err(failed)?;
    if upload.offset == 0 {
        drop_old(folder, &path);
    }
    let mut file = fs_err::OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let here = file.metadata().map_err(failed)?.len();
    if upload.offset > here {
        return Err(ActorError::invalid(
            "offset",
            format!("is {}, of this upload {here} bytes are here", upload.offset),
        ));
    }
    file.set_len(upload.offset).map_err(failed)?;
    file.seek(SeekFrom::End(0)).map_err(failed)?;
    file.write_all(&upload.data).map_err(failed)
}

/// Keeps few uploads beside this one.
fn drop_old(folder: &Path, keep: &Path) {
    let entries = fs_err::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut others: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter(|entry| entry.path() != keep)
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    others.sort();
    let spare = others.len().saturating_sub(UPLOADS_KEPT);
    others.into_iter().take(spare).for_each(|(_, path)| remove_file(&path));
}

/// Checks a skill that arrived whole: its hash, its card, its file's length and hash.
fn open(path: &Path, hash: ContentHash) -> Result<Arrived, ActorError> {
    let refuse = |problem: String| Err(ActorError::invalid("skill", problem));
    let mut file = BufReader::new(fs_err::File::open(path).map_err(failed)?);
    let total = file.get_ref().metadata().map_err(failed)?.len();
    let found = ContentHash::of_reader(&mut file).map_err(failed)?;
    if found != hash {
        return refuse(format!("hashes to {found}, it was announced as {hash}"));
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut line = Vec::new();
    (&mut file).take(CARD_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).map_err(failed)?;
    let (card, name) = SkillCard::import(&line).map_err(|error| ActorError::invalid("skill", chain(&error)))?;
    let bytes = total - line.len() as u64;
    if bytes != card.bytes {
        return refuse(format!("has a file of {bytes} bytes, its card says {}", card.bytes));
    }
    let found = ContentHash::of_reader(&mut file).map_err(failed)?;
    if found != card.file_hash {
        return refuse(format!("has a file that hashes to {found}, its card says {}", card.file_hash));
    }
    Ok(Arrived { card, file: name, line: line.len() as u64 })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Puts the file of a known adapter back when it is missing or damaged: a backup holds the cards and no files.
fn supply(staged: &Path, line: u64, into: &Path, card: &SkillCard) -> Result<&'static str, ActorError> {
    let is_whole = |(path, _): (PathBuf, String)| {
        let hash = fs_err::File::open(path).and_then(|mut file| ContentHash::of_reader(&mut file));
        hash.is_ok_and(|hash| hash == card.file_hash)
    };
    if file_of(into.parent().unwrap_or(into), card).is_ok_and(is_whole) {
        return Ok("it is here already");
    }
    place(staged, line, into)?;
    Ok("its card was here already, its file is here again")
}

/// Puts the adapter's file into its folder, durable before anything refers to it.
fn place(staged: &Path, line: u64, into: &Path) -> Result<(), ActorError> {
    let folder = into.parent().unwrap_or(into);
    remove_folder(folder);
    let write = || -> std::io::Result<()> {
        fs_err::create_dir_all(folder)?;
        let mut from = fs_err::File::open(staged)?;
        from.seek(SeekFrom::Start(line))?;
        let mut to = fs_err::File::create(into)?;
        std::io::copy(&mut from, &mut to)?;
        to.sync_all()?;
        fs_err::File::open(folder)?.sync_all()?;
        // The folder is new itself.
        folder.parent().map_or(Ok(()), |parent| fs_err::File::open(parent)?.sync_all())
    };
    write().map_err(|error| {
        remove_folder(folder);
        failed(error)
    })
}

/// Reads guard texts with and without the adapter: whether it can be used at all, and what it forgets (nats a token, paired). Text
/// by text, so that questions find room between them.
fn read_with(engine: &dyn Engine, adapter: &AdapterUse, dimensions: usize) -> Result<Vec<(f32, f32)>, ActorError> {
    let cancel = CancelToken::with_deadline(READ_TIMEOUT);
    let loss = |text: &str, adapter: Option<&AdapterUse>| -> Result<f32, EngineError> {
        let item = ScoreItem { adapter: adapter.cloned(), ..ScoreItem::new("", text) };
        let scored = engine.score(&[item], &cancel)?;
        let missing = || EngineError::Internal { reason: String::from("a text has no score") };
        let score = scored.first().ok_or_else(missing)?;
        Ok((-score.log_likelihood / f64::from(score.tokens.max(1))) as f32)
    };
    let mut losses = Vec::new();
    for TrainText { text, .. } in base_text::guard() {
        let base = loss(&text, None)?;
        let expected = engine.info().embedding_dimensions as usize;
        if dimensions != expected {
            let problem = format!("has a centre of {dimensions} dimensions, embeddings here have {expected}");
            return Err(ActorError::invalid("skill", problem));
        }
        let adapted = loss(&text, Some(adapter)).map_err(|error| match error {
            EngineError::Load { .. } | EngineError::Invalid { .. } => {
                ActorError::invalid("skill", format!("cannot be used by the engine: {error}"))
            }
            other => ActorError::Engine(other),
        })?;
        losses.push((base, adapted));
    }
    Ok(losses)
}
