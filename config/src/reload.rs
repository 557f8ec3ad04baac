//! Watches the files of a configuration and hands over a validated new one, or the reason why the old one stays.
//!
//! The parent folders are watched, because a watch on a file dies when an editor replaces it by a rename. What notify
//! misses (an overflow, a network file system, a folder that appears later) the slow poll finds by content.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};

use crate::error::ConfigError;
use crate::load::Sources;
use crate::schema::{Change, Config};

/// How often files are compared by content although nothing was reported.
const POLL: Duration = Duration::from_secs(30);

/// Editors write in several steps; a reload waits until this much time has passed since the last of them.
const SETTLE: Duration = Duration::from_millis(50);

/// Reports that may wait. One is enough to cause a re-read, so that more carry no news.
const SIGNALS_MAX: usize = 1;

/// What a reload came to.
#[derive(Debug)]
pub enum Update {
    /// The files changed and are valid.
    Changed {
        /// The whole new configuration; it already is what [`Reloader::current`] returns.
        config: Arc<Config>,
        /// What differs from the one before; those with `Reload::Restart` wait for a restart.
        changes: Vec<Change>,
        /// Whether this answers a [`Reloader::reload`]: the files were read after it was asked for.
        asked: bool,
    },
    /// The files changed and are not valid: the last good configuration stays in force.
    Refused {
        /// What is wrong.
        error: ConfigError,
        /// As in [`Update::Changed`].
        asked: bool,
    },
}

enum Signal {
    /// Something may have changed.
    Look,
    /// Read now, and report even when nothing changed.
    Now,
    Stop,
}

/// Keeps a configuration current. Dropping it ends its thread.
pub struct Reloader {
    current: Arc<Mutex<Arc<Config>>>,
    signals: SyncSender<Signal>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Reloader {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl Reloader {
    /// Starts to watch. `on_update` runs on the watching thread; it should hand over and return.
    ///
    /// # Errors
    /// When the thread cannot be started. A watch that cannot be set up is logged, and the poll does its work.
    pub fn start(
        sources: Sources,
        initial: Arc<Config>,
        on_update: impl FnMut(Update) + Send + 'static,
    ) -> std::io::Result<Self> {
        Self::start_with_poll(sources, initial, POLL, on_update)
    }

    /// As [`Reloader::start`], with another poll interval.
    ///
    /// # Errors
    /// As [`Reloader::start`].
    pub fn start_with_poll(
        sources: Sources,
        initial: Arc<Config>,
        poll: Duration,
        on_update: impl FnMut(Update) + Send + 'static,
    ) -> std::io::Result<Self> {
        let (signals, inbox) = sync_channel(SIGNALS_MAX);
        let current = Arc::new(Mutex::new(initial));
        let mut worker = Worker {
            seen: None,
            folders: Folders::new(&sources, signals.clone()),
            sources,
            current: Arc::clone(&current),
            on_update,
        };
        let thread =
            std::thread::Builder::new().name("config-reload".to_owned()).spawn(move || worker.run(&inbox, poll))?;
        Ok(Self { current, signals, thread: Some(thread) })
    }

    /// The last good configuration.
    pub fn current(&self) -> Arc<Config> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the files now (SIGHUP); the update arrives even when nothing changed. Returns at once.
    pub fn reload(&self) {
        // The send waits only while another signal is being taken.
        let _ = self.signals.send(Signal::Now);
    }
}

impl Drop for Reloader {
    fn drop(&mut self) {
        let _ = self.signals.send(Signal::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker<F> {
    sources: Sources,
    /// Nothing at first: a change between the first load and the start of the watch is found too.
    seen: Option<u64>,
    folders: Folders,
    current: Arc<Mutex<Arc<Config>>>,
    on_update: F,
}

impl<F: FnMut(Update)> Worker<F> {
    fn run(&mut self, inbox: &Receiver<Signal>, poll: Duration) {
        self.look(false);
        loop {
            let mut forced = false;
            match inbox.recv_timeout(poll) {
                Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Signal::Now) => forced = true,
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Signal::Look) => loop {
                    match inbox.recv_timeout(SETTLE) {
                        Ok(Signal::Look) => {}
                        Ok(Signal::Now) => forced = true,
                        Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                        Err(RecvTimeoutError::Timeout) => break,
                    }
                },
            }
            self.folders.watch();
            self.look(forced);
        }
    }

    fn look(&mut self, forced: bool) {
        let found = Some(fingerprint(&self.sources));
        if found == self.seen && !forced {
            return;
        }
        self.seen = found;
        match Config::load(&self.sources) {
            Ok(newer) => {
                let newer = Arc::new(newer);
                let changes = {
                    let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                    let changes = current.diff(&newer);
                    *current = Arc::clone(&newer);
                    changes
                };
                if forced || !changes.is_empty() {
                    tracing::info!(changes = changes.len(), "configuration reloaded");
                    (self.on_update)(Update::Changed { config: newer, changes, asked: forced });
                }
            }
            Err(error) => {
                tracing::warn!(%error, "configuration refused, the last good one stays");
                (self.on_update)(Update::Refused { error, asked: forced });
            }
        }
    }
}

/// The watched parent folders. Those that do not exist yet are tried again at each poll.
struct Folders {
    watcher: Option<notify::RecommendedWatcher>,
    wanted: BTreeSet<PathBuf>,
    watched: BTreeSet<PathBuf>,
}

impl Folders {
    fn new(sources: &Sources, signals: SyncSender<Signal>) -> Self {
        let report = move |event: notify::Result<notify::Event>| {
            // An error and a rescan flag both mean that reports were lost: look. A full channel has a look under way.
            if event.map_or(true, |event| event.need_rescan() || !event.kind.is_access()) {
                let _ = signals.try_send(Signal::Look);
            }
        };
        let watcher = notify::recommended_watcher(report)
            .inspect_err(|error| tracing::warn!(%error, "no file notifications, configuration is polled"))
            .ok();
        let wanted = sources.files.iter().filter_map(|file| file.path.parent().map(PathBuf::from)).collect();
        let mut folders = Self { watcher, wanted, watched: BTreeSet::new() };
        folders.watch();
        folders
    }

    fn watch(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        // A folder that was removed and made again has a new inode: the old watch is void.
        self.watched.retain(|folder| folder.is_dir());
        for folder in &self.wanted {
            if !self.watched.contains(folder)
                && folder.is_dir()
                && watcher.watch(folder, RecursiveMode::NonRecursive).is_ok()
            {
                self.watched.insert(folder.clone());
            }
        }
    }
}

/// A fingerprint of all files' contents. Collisions would only delay a reload; nothing here is hostile.
fn fingerprint(sources: &Sources) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in &sources.files {
        file.path.hash(&mut hasher);
        crate::load::peek(&file.path).hash(&mut hasher);
    }
    hasher.finish()
}
