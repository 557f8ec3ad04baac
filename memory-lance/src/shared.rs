//! What tables of one place share: options, errors, threads, caches, and how long a call may take.

use std::future::Future;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lance::session::Session;
use mneme_base::Timestamp;
use tokio::runtime::Runtime;

use crate::rows::RowError;

/// Threads of Lance's runtime.
const THREADS: usize = 2;
/// A read or write of one batch that takes longer than this has hung: the place may be across a network.
pub(crate) const CALL: Duration = Duration::from_mins(2);
/// A scan of a whole table or a step of upkeep that takes longer than this has hung.
pub(crate) const STEP: Duration = Duration::from_mins(30);

/// How tables are opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LanceOptions {
    /// Lance's index cache (bytes).
    pub index_cache_bytes: usize,
    /// Lance's metadata cache (bytes).
    pub metadata_cache_bytes: usize,
    /// Vectors from which on there is an approximate index; fewer are scanned faster.
    pub vector_index_rows_min: usize,
    /// How long old versions stay readable for `as_of` (seconds).
    pub keep_versions_seconds: u64,
    /// Old versions that stay readable at most: each names every file of its table.
    pub keep_versions_max: usize,
    /// Rows are not added or rewritten while less than this is free on the disk of a local place (bytes). Deletions go on.
    pub disk_watermark_bytes: u64,
}

impl Default for LanceOptions {
    fn default() -> Self {
        Self {
            index_cache_bytes: 64 << 20,
            metadata_cache_bytes: 16 << 20,
            vector_index_rows_min: 200_000,
            keep_versions_seconds: 24 * 3_600,
            keep_versions_max: 500,
            disk_watermark_bytes: 256 << 20,
        }
    }
}

/// Why a table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StorageError {
    /// Lance failed.
    #[error("lance failed while it {doing}")]
    Lance {
        /// What it was doing.
        doing: &'static str,
        /// What it said.
        #[source]
        source: Box<lance::Error>,
    },
    /// Lance did not answer.
    #[error("lance {doing} for longer than {seconds} s")]
    Hung {
        /// What it was doing.
        doing: &'static str,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The disk failed.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was tried.
        doing: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// What was written may not be on the disk, and the system will not say of what: the tables are filled anew.
    #[error("could not sync {}", path.display())]
    NotDurable {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The disk is nearly full.
    #[error(
        "lance tables are read-only: {free_bytes} bytes are free on their disk, the watermark is {watermark_bytes}"
    )]
    DiskLow {
        /// What is free.
        free_bytes: u64,
        /// What must stay free.
        watermark_bytes: u64,
    },
    /// There is no room for a second copy of a table, which its rewriting needs for a while.
    #[error("a lance table cannot be rewritten: {free_bytes} bytes are free on its disk, {needed_bytes} are needed")]
    NoRoom {
        /// What is free.
        free_bytes: u64,
        /// What has to be.
        needed_bytes: u64,
    },
    /// Another process writes there.
    #[error("{place} is in use by another process")]
    InUse {
        /// Where.
        place: String,
    },
    /// The place is of a kind that is not known to keep what is written.
    #[error("{place} is neither a folder nor in s3://, gs:// or az://")]
    Place {
        /// What was asked for.
        place: String,
    },
    /// The dataset was written by a newer build.
    #[error("{uri} has version {found} of its table, this build knows up to {supported}")]
    SchemaTooNew {
        /// Where.
        uri: String,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The dataset is somebody else's: it is left as it is.
    #[error("{uri} is a dataset of another program")]
    NotOurs {
        /// Where.
        uri: String,
    },
    /// Lance panicked.
    #[error("lance panicked; the tables are opened anew")]
    Panicked,
    /// A row is not as it should be.
    #[error("a row of {uri} cannot be read")]
    Row {
        /// Where.
        uri: String,
        /// What is wrong.
        #[source]
        source: RowError,
    },
    /// Columns could not be made.
    #[error("columns could not be made")]
    Arrow(#[from] arrow::error::ArrowError),
}

/// A version of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableVersion {
    /// Its number.
    pub version: u64,
    /// When it was committed.
    pub at: Timestamp,
}

/// What a step of upkeep did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StorageReport {
    /// Fragments, versions or indices that were dealt with.
    pub items: u64,
    /// Bytes given back.
    pub bytes_freed: u64,
    /// Rows that no index covers: they are scanned at each search.
    pub unindexed_rows: u64,
}

/// What tables of one place share: threads and caches.
#[derive(Clone)]
pub struct Shared {
    threads: Arc<Threads>,
    pub(crate) session: Arc<Session>,
    options: LanceOptions,
}

/// Lance's threads. They end by themselves: a runtime that is dropped inside another one would panic.
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Shared {
    /// Starts threads and makes caches.
    pub fn new(options: LanceOptions) -> Result<Self, StorageError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("mneme-lance")
            .enable_all()
            .build()
            .map_err(|source| StorageError::Io { doing: "start threads for", path: "lance".into(), source })?;
        let session = Session::new(options.index_cache_bytes, options.metadata_cache_bytes, Arc::default());
        Ok(Self { threads: Arc::new(Threads(Some(runtime))), session: Arc::new(session), options })
    }

    /// What it was made with.
    pub fn options(&self) -> &LanceOptions {
        &self.options
    }

    /// Waits for work of Lance, but not for ever.
    pub(crate) fn wait<T>(
        &self,
        doing: &'static str,
        limit: Duration,
        work: impl Future<Output = lance::Result<T>>,
    ) -> Result<T, StorageError> {
        let runtime = self.threads.0.as_ref().expect("threads are there until the drop");
        match runtime.block_on(async { tokio::time::timeout(limit, work).await }) {
            Ok(result) => result.map_err(|source| StorageError::Lance { doing, source: Box::new(source) }),
            Err(_) => Err(StorageError::Hung { doing, seconds: limit.as_secs() }),
        }
    }
}

/// Object stores that are written to; the last keeps nothing and is for tests. `file://` is not among them: what Lance makes of the
/// path behind it, such as of `%20`, is not what is synced here.
const SCHEMES: [&str; 4] = ["s3", "gs", "az", "shared-memory"];

/// Refuses a place that is neither a folder nor in one of the object stores.
pub(crate) fn check_place(place: &str) -> Result<(), StorageError> {
    match place.split_once("://") {
        Some((scheme, _)) if !SCHEMES.contains(&scheme) => Err(StorageError::Place { place: place.to_owned() }),
        _ => Ok(()),
    }
}

/// The folder of a place that is one.
pub(crate) fn local_path(uri: &str) -> Option<&Path> {
    (!uri.contains("://")).then_some(Path::new(uri))
}

/// Makes a folder that only its owner can look into, where there is none: the tables hold every text.
pub(crate) fn make_private(folder: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}
