//! Where the log goes: standard error, and a file that is rotated by size.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mneme_config::{Config, LogFormat, LogSettings};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

/// Programs' parts that log whom they serve at a level that is no news here: Lance tells the ids of what it deletes.
const QUIET: [&str; 3] = ["lance", "datafusion", "object_store"];

/// The filter of a level. What a user says of those parts by name goes before what is said of them here.
fn filter(level: &str) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
    let most = level.parse().unwrap_or(LevelFilter::WARN).min(LevelFilter::WARN);
    let quiet = QUIET.map(|part| format!("{part}={most},")).concat();
    EnvFilter::try_new(quiet + level)
}

/// Changes a log that is already running.
#[derive(Debug)]
pub struct LogHandle {
    level: tracing_subscriber::reload::Handle<EnvFilter, tracing_subscriber::Registry>,
    rotation: Arc<Rotation>,
}

/// When a log file makes way for a new one.
#[derive(Debug)]
struct Rotation {
    bytes_max: AtomicU64,
    files_keep: AtomicU32,
}

impl Rotation {
    fn new(settings: &LogSettings) -> Self {
        Self { bytes_max: settings.file_bytes_max.bytes().into(), files_keep: settings.files_keep.into() }
    }
}

/// Starts the log. Fails when the file cannot be opened or a log is running already.
pub fn start(config: &Config) -> Result<LogHandle, Box<dyn std::error::Error + Send + Sync>> {
    let (filter, level) = tracing_subscriber::reload::Layer::new(filter(&config.log.level)?);
    let rotation = Arc::new(Rotation::new(&config.log));
    let file = if config.log.file {
        let folder = config.paths.state_dir.join("log");
        crate::listen::make_private(&folder)?;
        Some(Mutex::new(RotatingFile::open(folder.join("mnemed.log"), Arc::clone(&rotation))?))
    } else {
        None
    };
    let base = tracing_subscriber::registry().with(filter);
    match config.log.format {
        LogFormat::Json => base
            .with(tracing_subscriber::fmt::layer().json().with_writer(std::io::stderr))
            .with(file.map(|file| tracing_subscriber::fmt::layer().json().with_writer(file)))
            .try_init()?,
        LogFormat::Console => base
            .with(tracing_subscriber::fmt::layer().with_ansi(is_terminal()).with_writer(std::io::stderr))
            .with(file.map(|file| tracing_subscriber::fmt::layer().with_ansi(false).with_writer(file)))
            .try_init()?,
    }
    Ok(LogHandle { level, rotation })
}

fn is_terminal() -> bool {
    std::io::IsTerminal::is_terminal(&std::io::stderr())
}

/// A file that makes way for a new one when it is full; a few old ones are kept as `NAME.1` (newest) and so on.
#[derive(Debug)]
struct RotatingFile {
    path: PathBuf,
    file: fs_err::File,
    bytes: u64,
    rotation: Arc<Rotation>,
}

impl RotatingFile {
    fn open(path: PathBuf, rotation: Arc<Rotation>) -> std::io::Result<Self> {
        let file = append_to(&path)?;
        let bytes = file.metadata()?.len();
        Ok(Self { path, file, bytes, rotation })
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        for number in (1..self.rotation.files_keep.load(Ordering::Relaxed)).rev() {
            let from = numbered(&self.path, number);
            if from.exists() {
                fs_err::rename(from, numbered(&self.path, number + 1))?;
            }
        }
        fs_err::rename(&self.path, numbered(&self.path, 1))?;
        self.file = append_to(&self.path)?;
        self.bytes = 0;
        Ok(())
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn append_to(path: &Path) -> std::io::Result<fs_err::File> {
    fs_err::OpenOptions::new().create(true).append(true).open(path)
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > self.rotation.bytes_max.load(Ordering::Relaxed) {
            self.rotate()?;
        }
        let written = self.file.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl LogHandle {
    /// Puts another level and other sizes into force; a level that cannot be read changes nothing.
    pub fn configure(&self, settings: &LogSettings) {
        self.rotation.bytes_max.store(settings.file_bytes_max.bytes(), Ordering::Relaxed);
        self.rotation.files_keep.store(settings.files_keep, Ordering::Relaxed);
        match filter(&settings.level) {
            Ok(filter) => {
                let _ = self.level.reload(filter);
            }
            Err(error) => tracing::warn!(%error, level = settings.level, "log level cannot be read"),
        }
    }
}

/// Keeps the first panic's words in the log: without it they go to standard error only.
pub fn log_panics() {
    static FORMER: Mutex<()> = Mutex::new(());
    let _once = FORMER.lock().unwrap_or_else(PoisonError::into_inner);
    let former = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(place, "panic");
        former(info);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(level: &str) -> String {
        let written = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&written);
        let writer = move || Sink(Arc::clone(&sink));
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).without_time().with_writer(writer);
        let subscriber = tracing_subscriber::registry().with(filter(level).unwrap()).with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "lance::dataset_events", "predicate=id IN ('0198')");
            tracing::warn!(target: "lance_core::cache", "cache is full");
            tracing::info!(target: "mneme_memory_lance::projection", "filled anew");
        });
        String::from_utf8(written.lock().unwrap().clone()).unwrap()
    }

    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_part_says_of_the_forgotten_is_logged_only_where_it_was_asked_for_by_name() {
        let usual = logged("info");
        assert!(!usual.contains("0198") && usual.contains("cache is full") && usual.contains("filled anew"), "{usual}");
        assert!(logged("info,lance=info").contains("0198"));
        assert_eq!(logged("off"), "");
    }

    #[test]
    fn a_full_file_makes_way_and_only_so_many_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file =
            RotatingFile::open(path.clone(), Arc::new(Rotation { bytes_max: 10.into(), files_keep: 2.into() }))
                .unwrap();
        for text in ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd"] {
            file.write_all(text.as_bytes()).unwrap();
        }
        let read = |path: PathBuf| fs_err::read_to_string(path).unwrap();
        assert_eq!(read(path.clone()), "dddddddd");
        assert_eq!(read(numbered(&path, 1)), "cccccccc");
        assert_eq!(read(numbered(&path, 2)), "bbbbbbbb");
        assert!(!numbered(&path, 3).exists());
    }
}
