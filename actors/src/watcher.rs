//! Keeps the text files of watched folders in memory as they change.
//!
//! Called by: daemon. Calls: memory. Owns: the file-system watcher, the list of folders. Capacity: [`CALLS_MAX`] calls and
//! [`REPORTS_MAX`] reports; one folder is looked through at a time, and calls wait for it. A restart loses nothing: folders and what was read are rows in the store, and every
//! folder is compared with them from end to end.

mod listing;
mod rows;
mod scan;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mneme_base::{Clock, Namespace, OpId, Timestamp};
use mneme_memory::{Document, ForgetSelector, Operation, OperationKind};
use notify::{RecursiveMode, Watcher as _};
use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::call::{ActorError, ActorStatus, Request, Slot, deadline_in};
use crate::memory::MemoryHandle;
use crate::tunables::Tuned;

/// Calls at once.
const CALLS_MAX: usize = 32;
/// Folders that can be watched.
const FOLDERS_MAX: usize = 64;
/// The collection of watched folders.
const FOLDERS: &str = "watch_folders";
/// Places that were reported and not yet looked at; with more, everything is looked through.
const REPORTS_MAX: usize = 256;
/// How long a row or a batch of chunks may take to become durable.
const WRITE_TIMEOUT: Duration = Duration::from_mins(1);

/// What is watched for, and how it is cut.
#[derive(Debug, Clone)]
pub struct WatcherOptions {
    /// Folders are looked through this often even when nothing was reported.
    pub poll: Duration,
    /// After a report, wait until this much time has passed without another: editors write in several steps.
    pub settle: Duration,
    /// Size of a chunk (tokens).
    pub chunk_tokens: usize,
    /// Tokens that neighbouring chunks share.
    pub chunk_overlap_tokens: usize,
    /// Endings of files that are read.
    pub extensions: Vec<String>,
    /// Larger files are passed over.
    pub file_bytes_max: u64,
    /// Files in all folders together.
    pub files_max: usize,
}

impl Default for WatcherOptions {
    fn default() -> Self {
        Self {
            poll: Duration::from_secs(30),
            settle: Duration::from_millis(300),
            chunk_tokens: 256,
            chunk_overlap_tokens: 32,
            extensions: ["md", "markdown", "txt", "org", "rst"].map(String::from).to_vec(),
            file_bytes_max: 4 << 20,
            files_max: 50_000,
        }
    }
}

/// A watched folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchFolder {
    /// Its absolute path, without links.
    pub folder: PathBuf,
    /// The drawer.
    pub namespace: Namespace,
    /// Files that are in memory.
    #[serde(default)]
    pub files: u64,
    /// When it was last looked through.
    #[serde(default)]
    pub scanned_at: Option<Timestamp>,
    /// What is wrong with it.
    #[serde(default)]
    pub problem: Option<String>,
    /// Which folder it was when it was last read and not empty: an empty one in its place is a disk that is not mounted.
    #[serde(default)]
    pub root: Option<RootId>,
}

pub use listing::RootId;

/// What was reported since the actor last looked. The system's watcher fills it from a thread of its own; one message tells of many.
#[derive(Debug, Default)]
struct Reports(Mutex<Vec<PathBuf>>);

impl Reports {
    /// Takes reports in; an empty path stands for "anywhere". Says whether these are the first, so that the actor has to be told.
    fn add(&self, paths: Vec<PathBuf>) -> bool {
        let mut reports = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = reports.is_empty();
        for path in paths {
            if reports.len() >= REPORTS_MAX {
                *reports = vec![PathBuf::new()];
            }
            if !reports.contains(&path) {
                reports.push(path);
            }
        }
        is_first && !reports.is_empty()
    }

    fn take(&self) -> Vec<PathBuf> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Where the watcher can be called.
#[derive(Debug, Clone)]
pub struct WatcherHandle {
    pub(crate) slot: Slot<Message>,
}

impl WatcherHandle {
    pub(crate) fn new() -> Self {
        Self { slot: Slot::new("watcher", CALLS_MAX) }
    }

    /// Watches a folder; the answer comes when it was looked through once.
    pub async fn add(
        &self,
        folder: PathBuf,
        namespace: Namespace,
        deadline: Instant,
    ) -> Result<WatchFolder, ActorError> {
        self.slot.call((folder, namespace), deadline, Message::Add).await
    }

    /// Stops watching a folder, and forgets what was read from it when asked to.
    pub async fn remove(
        &self,
        folder: PathBuf,
        forget: bool,
        deadline: Instant,
    ) -> Result<Vec<WatchFolder>, ActorError> {
        self.slot.call((folder, forget), deadline, Message::Remove).await
    }

    /// The watched folders.
    pub async fn list(&self, deadline: Instant) -> Result<Vec<WatchFolder>, ActorError> {
        self.slot.call((), deadline, Message::List).await
    }

    /// How the actor is.
    pub fn status(&self) -> ActorStatus {
        self.slot.status()
    }
}

/// What the watcher is told.
pub(crate) enum Message {
    /// Watch a folder.
    Add(Request<(PathBuf, Namespace), WatchFolder>),
    /// Stop watching it.
    Remove(Request<(PathBuf, bool), Vec<WatchFolder>>),
    /// List the folders.
    List(Request<(), Vec<WatchFolder>>),
    /// Something may have changed: see [`Reports`].
    Reported,
    /// Reports have been quiet: look.
    Settled(u64),
    /// Look through everything. Polls that were set before the last [`Message::Tuned`] are void.
    Poll(u64),
    /// The settings are new: files may be wanted that were passed over.
    Tuned,
}

/// What the watcher starts from.
#[derive(Clone)]
pub(crate) struct Arguments {
    pub(crate) memory: MemoryHandle,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) tuned: Tuned,
}

/// What the watcher owns.
pub(crate) struct State {
    arguments: Arguments,
    folders: Vec<WatchFolder>,
    watcher: Option<notify::RecommendedWatcher>,
    reported: Arc<Reports>,
    /// Counts reports, so that only the last one's settling counts.
    reports: u64,
    dirty: Vec<PathBuf>,
    /// Counts changes of the settings, so that one chain of polls is alive.
    tuning: u64,
}

/// The watcher's actor.
pub(crate) struct WatcherActor;

impl Actor for WatcherActor {
    type Msg = Message;
    type State = State;
    type Arguments = Arguments;

    async fn pre_start(&self, myself: ActorRef<Message>, arguments: Arguments) -> Result<State, ActorProcessingErr> {
        let rows =
            arguments.memory.documents(FOLDERS, String::new(), None, FOLDERS_MAX, deadline_in(WRITE_TIMEOUT)).await?;
        let folders: Vec<WatchFolder> =
            rows.iter().filter_map(|row| serde_json::from_slice(row.value.as_deref()?).ok()).collect();
        let reported = Arc::new(Reports::default());
        let mut state = State {
            watcher: start_watcher(&myself, Arc::clone(&reported)),
            reported,
            folders: Vec::new(),
            reports: 0,
            dirty: Vec::new(),
            tuning: 0,
            arguments,
        };
        for folder in folders {
            state.watch(&folder.folder);
            state.folders.push(folder);
        }
        if state.folders.is_empty() {
            state.poll_later(&myself);
        } else {
            let _ = myself.send_message(Message::Poll(0));
        }
        Ok(state)
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Add(request) => {
                let (folder, namespace) = request.input;
                let result = state.add(folder, namespace).await;
                let _ = request.reply.send(result);
            }
            Message::Remove(request) => {
                let (folder, forget) = request.input;
                let result = state.remove(folder, forget).await;
                let _ = request.reply.send(result);
            }
            Message::List(request) => {
                let _ = request.reply.send(Ok(state.folders.clone()));
            }
            Message::Reported => state.take_reports(&myself),
            Message::Settled(report) if report == state.reports => {
                let dirty = std::mem::take(&mut state.dirty);
                state
                    .look(|folder| dirty.iter().any(|path| path.starts_with(folder) || path.as_os_str().is_empty()))
                    .await;
            }
            Message::Poll(tuning) if tuning == state.tuning => {
                state.look(|_| true).await;
                state.poll_later(&myself);
            }
            // Overtaken by a later report or by new settings.
            Message::Settled(_) | Message::Poll(_) => {}
            Message::Tuned => {
                state.tuning += 1;
                let _ = myself.send_message(Message::Poll(state.tuning));
            }
        }
        Ok(())
    }
}

/// Starts the system's watcher. Without one, polling does its work.
fn start_watcher(myself: &ActorRef<Message>, reports: Arc<Reports>) -> Option<notify::RecommendedWatcher> {
    let actor = myself.clone();
    let report = move |result: notify::Result<notify::Event>| {
        let paths = match result {
            Ok(event) if event.need_rescan() => vec![PathBuf::new()],
            Ok(event) if event.kind.is_access() => return,
            Ok(event) => event.paths,
            Err(error) => {
                tracing::warn!(%error, "file watcher lost reports; everything is looked through");
                vec![PathBuf::new()]
            }
        };
        if reports.add(paths) {
            let _ = actor.send_message(Message::Reported);
        }
    };
    match notify::recommended_watcher(report) {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            tracing::warn!(%error, "no file watcher; folders are polled");
            None
        }
    }
}

impl State {
    fn watch(&mut self, folder: &std::path::Path) {
        if let Some(watcher) = &mut self.watcher
            && let Err(error) = watcher.watch(folder, RecursiveMode::Recursive)
        {
            tracing::warn!(%error, "folder is polled, it cannot be watched");
        }
    }

    fn poll_later(&self, myself: &ActorRef<Message>) {
        let tuning = self.tuning;
        myself.send_after(self.arguments.tuned.get().watcher.poll, move || Message::Poll(tuning));
    }

    fn take_reports(&mut self, myself: &ActorRef<Message>) {
        for path in self.reported.take() {
            // A burst of reports needs no long list: what matters is which folders are touched.
            let folder = self.folders.iter().find(|folder| path.starts_with(&folder.folder));
            let path = folder.map_or(path, |folder| folder.folder.clone());
            if !self.dirty.contains(&path) && self.dirty.len() < FOLDERS_MAX {
                self.dirty.push(path);
            }
        }
        self.reports += 1;
        let report = self.reports;
        myself.send_after(self.arguments.tuned.get().watcher.settle, move || Message::Settled(report));
    }

    async fn add(&mut self, folder: PathBuf, namespace: Namespace) -> Result<WatchFolder, ActorError> {
        let path = tokio::fs::canonicalize(&folder)
            .await
            .map_err(|error| ActorError::invalid("folder", format!("{} cannot be read: {error}", folder.display())))?;
        if !path.is_dir() {
            return Err(ActorError::invalid("folder", format!("{} is not a folder", path.display())));
        }
        let clash = self
            .folders
            .iter()
            .find(|known| known.folder != path && (known.folder.starts_with(&path) || path.starts_with(&known.folder)));
        if let Some(known) = clash {
            let problem = format!("{} overlaps {}, which is watched already", path.display(), known.folder.display());
            return Err(ActorError::invalid("folder", problem));
        }
        if let Some(known) = self.folders.iter().find(|known| known.folder == path && known.namespace != namespace) {
            let problem = format!("{} is watched into namespace {} already", path.display(), known.namespace);
            return Err(ActorError::invalid("namespace", problem));
        }
        if !self.folders.iter().any(|known| known.folder == path) {
            if self.folders.len() >= FOLDERS_MAX {
                return Err(ActorError::invalid(
                    "folder",
                    format!("is one too many, at most {FOLDERS_MAX} are watched"),
                ));
            }
            let folder =
                WatchFolder { folder: path.clone(), namespace, files: 0, scanned_at: None, problem: None, root: None };
            self.save(&folder).await?;
            self.watch(&path);
            self.folders.push(folder);
        }
        self.look(|known| known == path).await;
        let found = self.folders.iter().find(|known| known.folder == path).cloned();
        found.ok_or_else(|| ActorError::NotFound { what: path.display().to_string() })
    }

    async fn remove(&mut self, folder: PathBuf, forget: bool) -> Result<Vec<WatchFolder>, ActorError> {
        // A folder that was deleted must still be removable from the list.
        let path = tokio::fs::canonicalize(&folder).await.unwrap_or(folder);
        let Some(index) = self.folders.iter().position(|known| known.folder == path) else {
            return Err(ActorError::NotFound { what: format!("watched folder {}", path.display()) });
        };
        let removed = self.folders.remove(index);
        if let Some(watcher) = &mut self.watcher {
            let _ = watcher.unwatch(&removed.folder);
        }
        let row = Document { collection: FOLDERS.into(), key: rows::key_of(&removed.folder), value: None };
        self.arguments.memory.put_documents(vec![row], deadline_in(WRITE_TIMEOUT)).await?;
        rows::drop_rows(&self.arguments.memory, &removed).await?;
        if forget {
            let kind = OperationKind::Forget(ForgetSelector::Source(scan::source_of(&removed.folder)));
            let operation = Operation { op_id: OpId::generate(), kind };
            self.arguments.memory.apply(operation, deadline_in(WRITE_TIMEOUT)).await?.result?;
        }
        Ok(self.folders.clone())
    }

    async fn save(&self, folder: &WatchFolder) -> Result<(), ActorError> {
        let value = serde_json::to_vec(folder).expect("a folder is plain data");
        let key = rows::key_of(&folder.folder);
        let row = Document { collection: FOLDERS.into(), key, value: Some(value) };
        self.arguments.memory.put_documents(vec![row], deadline_in(WRITE_TIMEOUT)).await
    }

    /// Looks through the folders that are picked, one after another.
    async fn look(&mut self, pick: impl Fn(&std::path::Path) -> bool) {
        for index in 0..self.folders.len() {
            if !pick(&self.folders[index].folder) {
                continue;
            }
            let before = self.folders[index].clone();
            let elsewhere: u64 = self.folders.iter().map(|folder| folder.files).sum::<u64>() - before.files;
            let room = self.arguments.tuned.get().watcher.files_max.saturating_sub(elsewhere as usize);
            let result = scan::bring_up_to_date(&self.arguments, &before, room).await;
            let folder = &mut self.folders[index];
            match result {
                Ok(looked) => {
                    folder.files = looked.files;
                    folder.problem = looked.problem;
                    if looked.root.is_some() && looked.root != folder.root {
                        folder.root = looked.root;
                        let folder = folder.clone();
                        if let Err(error) = self.save(&folder).await {
                            tracing::warn!(%error, "which folder it is could not be kept");
                        }
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "watched folder could not be looked through");
                    folder.problem = Some(error.to_string());
                }
            }
            self.folders[index].scanned_at = Some(self.arguments.clock.now());
        }
    }
}
