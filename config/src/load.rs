//! Gathers the layers into one raw configuration that remembers where each value stands, and resolves paths.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::error::{ConfigError, Fault, Origin};
use crate::schema::{KeyInfo, settings};
use crate::sections::PathSettings;
use crate::value::{Bound, Setting, TextForm};

/// `sun_path` has 108 bytes on Linux, one of them for the final zero (104 on macOS, where the longest is checked by bind).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// A configuration file larger than this is a mistake (bytes); it is refused before it is read.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// How much of a faulty value an error shows (characters).
const FOUND_CHARS_MAX: usize = 80;

/// The system's file, read first.
const SYSTEM_FILE: &str = "/etc/mneme/config.toml";

/// Where the layers come from. A snapshot, so that a reload reads files anew but keeps environment and flags.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// Files in the order in which they are read; one that does not exist is passed over, unless `required`.
    pub files: Vec<SourceFile>,
    /// The environment. Only `MNEME_SECTION__KEY`, `HOME` and the XDG base directories are looked at.
    pub environment: BTreeMap<String, String>,
    /// `section.key=value`, in order.
    pub flags: Vec<String>,
}

/// One file of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Where.
    pub path: PathBuf,
    /// Whether its absence is an error: true for a file that the person named.
    pub required: bool,
}

impl Sources {
    /// The layers of this process: `/etc/mneme/config.toml`, the user's file, the environment, then `flags`. A `file` that
    /// the person named (or `MNEME_CONFIG`) replaces the user's file and has to exist.
    pub fn from_process(file: Option<PathBuf>, flags: Vec<String>) -> Self {
        // Variables that are not UTF-8 cannot be settings of ours.
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("MNEME_") || name.starts_with("XDG_") || name == "HOME")
            .collect();
        Self::from_environment(file, environment, flags)
    }

    /// As [`Sources::from_process`], with the environment given.
    pub fn from_environment(file: Option<PathBuf>, environment: BTreeMap<String, String>, flags: Vec<String>) -> Self {
        let mut sources = Self { files: Vec::new(), environment, flags };
        sources.files.push(SourceFile { path: SYSTEM_FILE.into(), required: false });
        let named = file.or_else(|| sources.environment.get("MNEME_CONFIG").map(PathBuf::from));
        if let Some(path) = named {
            sources.files.push(SourceFile { path, required: true });
        } else if let Some(base) = sources.base("XDG_CONFIG_HOME", ".config") {
            sources.files.push(SourceFile { path: base.join("mneme/config.toml"), required: false });
        }
        sources
    }

    /// Defaults only, with this home folder: for tests and examples.
    pub fn bare(home: impl Into<String>) -> Self {
        Self { environment: BTreeMap::from([("HOME".to_owned(), home.into())]), ..Self::default() }
    }

    /// Adds a `section.key=value` flag.
    #[must_use]
    pub fn flag(mut self, text: impl Into<String>) -> Self {
        self.flags.push(text.into());
        self
    }

    /// Adds a file that has to exist.
    #[must_use]
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.files.push(SourceFile { path: path.into(), required: true });
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.environment.insert(name.into(), value.into());
        self
    }

    /// An XDG base directory: the variable when it holds an absolute path (the specification ignores others), else below home.
    fn base(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let absolute = |path: &&String| Path::new(path.as_str()).is_absolute();
        match self.environment.get(variable).filter(absolute) {
            Some(path) => Some(PathBuf::from(path)),
            None => self.home().map(|home| home.join(below_home)),
        }
    }

    fn home(&self) -> Option<PathBuf> {
        self.environment.get("HOME").map(PathBuf::from).filter(|home| home.is_absolute())
    }
}

/// A value as written, with its place.
#[derive(Debug, Clone, PartialEq)]
struct RawEntry {
    value: toml::Value,
    origin: Origin,
}

/// All layers merged, each value with its place. Holds known keys only: an unknown key is a fault, not a guess.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawConfig {
    entries: BTreeMap<&'static str, RawEntry>,
}

impl RawConfig {
    /// Reads every layer; fails with all unknown keys and syntax errors at once.
    pub(crate) fn gather(sources: &Sources) -> Result<Self, ConfigError> {
        let keys = settings();
        let mut raw = Self::default();
        let mut faults = Vec::new();
        for file in &sources.files {
            if let Some(text) = read_file(file)? {
                raw.add_file(&file.path, &text, &keys, &mut faults);
            }
        }
        for (name, text) in &sources.environment {
            let Some(setting) = name.strip_prefix("MNEME_").filter(|rest| rest.contains("__")) else { continue };
            let key = setting.to_ascii_lowercase().replacen("__", ".", 1);
            raw.add_text(&key, text, Origin::Environment(name.clone()), &keys, &mut faults);
        }
        for flag in &sources.flags {
            let origin = Origin::Flag(shorten(flag));
            match flag.split_once('=') {
                Some((key, text)) => raw.add_text(key.trim(), text, origin, &keys, &mut faults),
                None => faults.push(Fault {
                    origin,
                    key: String::new(),
                    found: String::new(),
                    problem: "expected section.key=value".to_owned(),
                }),
            }
        }
        if faults.is_empty() { Ok(raw) } else { Err(ConfigError::Faults(faults)) }
    }

    fn add_file(&mut self, path: &Path, text: &str, keys: &[KeyInfo], faults: &mut Vec<Fault>) {
        let line = |at: usize| 1 + text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count();
        let origin = |at: usize| Origin::File { path: path.to_owned(), line: line(at) };
        let document = match DeTable::parse(text) {
            Ok(document) => document,
            Err(error) => {
                return faults.push(Fault {
                    origin: origin(error.span().map_or(0, |span| span.start)),
                    key: String::new(),
                    found: String::new(),
                    problem: format!("not valid TOML: {}", error.message().trim().replace('\n', ", ")),
                });
            }
        };
        for (section, table) in document.get_ref() {
            let name = section.get_ref().as_ref();
            let DeValue::Table(table) = table.get_ref() else {
                faults.push(unknown(name, origin(section.span().start), keys));
                continue;
            };
            if !keys.iter().any(|info| info.key.split('.').next() == Some(name)) {
                faults.push(unknown(name, origin(section.span().start), keys));
                continue;
            }
            for (key, value) in table {
                let origin = origin(key.span().start);
                let full = format!("{name}.{}", key.get_ref());
                match keys.iter().find(|info| info.key == full) {
                    Some(info) => {
                        let value = owned(value.get_ref());
                        self.entries.insert(info.key, RawEntry { value, origin });
                    }
                    None => faults.push(unknown(&full, origin, keys)),
                }
            }
        }
    }

    fn add_text(&mut self, key: &str, text: &str, origin: Origin, keys: &[KeyInfo], faults: &mut Vec<Fault>) {
        let Some(info) = keys.iter().find(|info| info.key == key) else {
            return faults.push(unknown(key, origin, keys));
        };
        let value = match info.text {
            TextForm::Verbatim => toml::Value::String(text.to_owned()),
            TextForm::Literal => literal(text),
            TextForm::List if text.trim_start().starts_with('[') => literal(text),
            TextForm::List => toml::Value::Array(
                text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(literal).collect(),
            ),
        };
        self.entries.insert(info.key, RawEntry { value, origin });
    }

    /// Where the winning value of a key stands.
    pub(crate) fn origin(&self, key: &str) -> Origin {
        self.entries.get(key).map_or(Origin::Default, |entry| entry.origin.clone())
    }

    /// The typed and bounded value of a key. On a fault the default stands in, so that the other settings are checked too.
    pub(crate) fn take<T: Setting + 'static>(
        &self,
        key: &'static str,
        default: T,
        bound: &Bound<T>,
        faults: &mut Vec<Fault>,
    ) -> T {
        let Some(entry) = self.entries.get(key) else { return default };
        let problem = match T::read(entry.value.clone()) {
            Ok(value) if bound.holds(&value) => return value,
            Ok(_) => format!("allowed: {}", bound.words),
            Err(problem) if problem.starts_with("allowed:") => problem,
            Err(problem) => format!("{problem}; allowed: {}", bound.words),
        };
        faults.push(Fault {
            origin: entry.origin.clone(),
            key: key.to_owned(),
            found: shorten(&entry.value.to_string()),
            problem,
        });
        default
    }
}

impl PathSettings {
    /// The daemon's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.runtime_dir.join("mneme.sock")
    }

    /// Fills in the paths that were left empty and refuses those that cannot work.
    pub(crate) fn resolve(&mut self, sources: &Sources, raw: &RawConfig, faults: &mut Vec<Fault>) {
        let home = sources.home();
        let mut place = |key: &str, path: &mut PathBuf, default: Option<PathBuf>| {
            let resolved = if path.as_os_str().is_empty() {
                default
            } else if let Ok(rest) = path.strip_prefix("~") {
                home.as_ref().map(|home| home.join(rest))
            } else {
                Some(path.clone())
            };
            match resolved {
                Some(resolved) => *path = resolved,
                None => faults.push(Fault {
                    origin: raw.origin(key),
                    key: key.to_owned(),
                    found: path.print(),
                    problem: "the environment names no home folder: set HOME or give an absolute path".to_owned(),
                }),
            }
        };
        let below =
            |variable: &str, folder: &str, rest: &str| sources.base(variable, folder).map(|base| base.join(rest));
        place("paths.state_dir", &mut self.state_dir, below("XDG_STATE_HOME", ".local/state", "mneme"));
        let runtime = sources
            .environment
            .get("XDG_RUNTIME_DIR")
            .filter(|path| Path::new(path.as_str()).is_absolute())
            .map(|path| Path::new(path).join("mneme"));
        let below_state = (!self.state_dir.as_os_str().is_empty()).then(|| self.state_dir.join("run"));
        place("paths.runtime_dir", &mut self.runtime_dir, runtime.or(below_state));
        place("paths.assets_dir", &mut self.assets_dir, below("XDG_CACHE_HOME", ".cache", "mneme/assets"));

        let socket = self.socket();
        let bytes = socket.as_os_str().len();
        if bytes > SOCKET_PATH_BYTES_MAX {
            faults.push(Fault {
                origin: raw.origin("paths.runtime_dir"),
                key: "paths.runtime_dir".to_owned(),
                found: self.runtime_dir.print(),
                problem: format!(
                    "the path of the socket would have {bytes} bytes, allowed: at most {SOCKET_PATH_BYTES_MAX}"
                ),
            });
        }
    }
}

fn read_file(file: &SourceFile) -> Result<Option<String>, ConfigError> {
    let fail = |source| ConfigError::Read { path: file.path.clone(), source };
    let opened = match fs_err::File::open(&file.path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound && !file.required => return Ok(None),
        // A path like /etc/mneme whose parent is a plain file is as good as absent.
        Err(error) if error.kind() == ErrorKind::NotADirectory && !file.required => return Ok(None),
        Err(error) => return Err(fail(error)),
    };
    let bytes = opened.metadata().map_err(fail)?.len();
    if bytes > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: file.path.clone(), bytes, bytes_max: FILE_BYTES_MAX });
    }
    // The file may grow or be a device: the reader is bounded too.
    let mut text = String::new();
    opened.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge {
            path: file.path.clone(),
            bytes: text.len() as u64,
            bytes_max: FILE_BYTES_MAX,
        });
    }
    Ok(Some(text))
}

/// Text as a TOML value where it is one, else as a string, which then fails with the right words.
fn literal(text: &str) -> toml::Value {
    let text = text.trim();
    DeValue::parse(text).map_or_else(|_| toml::Value::String(text.to_owned()), |value| owned(value.get_ref()))
}

fn owned(value: &DeValue<'_>) -> toml::Value {
    match value {
        DeValue::String(text) => toml::Value::String(text.to_string()),
        DeValue::Integer(integer) => {
            // Out of range stays text, and then fails with the right words.
            i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| toml::Value::String(integer.as_str().to_owned()), toml::Value::Integer)
        }
        DeValue::Float(float) => {
            float.as_str().parse().map_or_else(|_| toml::Value::String(float.as_str().to_owned()), toml::Value::Float)
        }
        DeValue::Boolean(flag) => toml::Value::Boolean(*flag),
        DeValue::Datetime(time) => toml::Value::Datetime(*time),
        DeValue::Array(items) => toml::Value::Array(items.iter().map(|item| owned(item.get_ref())).collect()),
        DeValue::Table(table) => toml::Value::Table(
            table.iter().map(|(key, value)| (key.get_ref().to_string(), owned(value.get_ref()))).collect(),
        ),
    }
}

fn unknown(key: &str, origin: Origin, keys: &[KeyInfo]) -> Fault {
    let section = !key.contains('.');
    let nearest = keys
        .iter()
        .map(|info| if section { info.key.split('.').next().unwrap_or(info.key) } else { info.key })
        .map(|known| (distance(key, known), known))
        .min();
    let problem = match nearest {
        Some((edits, known)) if edits <= 1 + key.len() / 4 => format!("is not a setting; did you mean {known}?"),
        _ => "is not a setting; default.toml lists them all".to_owned(),
    };
    Fault { origin, key: shorten(key), found: String::new(), problem }
}

/// Levenshtein distance of two short texts, for suggestions.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.chars().take(FOUND_CHARS_MAX).collect();
    let mut row: Vec<usize> = (0..=left.len()).collect();
    for (above, letter) in right.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (index, other) in left.iter().enumerate() {
            let substituted = diagonal + usize::from(*other != letter);
            diagonal = row[index + 1];
            row[index + 1] = substituted.min(diagonal + 1).min(row[index] + 1);
        }
    }
    row[left.len()]
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= FOUND_CHARS_MAX {
        return text.to_owned();
    }
    text.chars().take(FOUND_CHARS_MAX).chain(['…']).collect()
}

/// The bounded content of a file, for comparing; nothing when it cannot be read.
pub(crate) fn peek(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    fs_err::File::open(path).ok()?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}
