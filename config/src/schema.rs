//! The machinery that turns one declaration per setting into fields, defaults, bounds, documentation and differences.

use std::fmt::Write as _;

use crate::error::{ConfigError, Fault};
use crate::load::{RawConfig, Sources};
pub use crate::sections::{
    EngineProgram, EngineSettings, EvolutionSettings, GenerationSettings, HousekeepingSettings, Level, LogFormat,
    LogSettings, MemorySettings, MetricsSettings, PathSettings, ServerSettings, StateEngine, WatchSettings,
};
use crate::value::TextForm;

/// Whether a running daemon takes a new value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// Takes effect for the next request, connection or round.
    Live,
    /// Takes effect at the next start; until then the old value stays in force.
    Restart,
}

/// One setting, as documentation tools need it.
#[derive(Debug, Clone)]
pub struct KeyInfo {
    /// `section.name`.
    pub key: &'static str,
    /// What it does, in full sentences.
    pub doc: String,
    /// The default as TOML.
    pub default: String,
    /// What is allowed, in words.
    pub bound: String,
    /// Whether a running daemon takes a new value.
    pub reload: Reload,
    pub(crate) text: TextForm,
}

/// One setting that differs between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// `section.name`.
    pub key: &'static str,
    /// The old value as TOML.
    pub from: String,
    /// The new value as TOML.
    pub to: String,
    /// Whether a running daemon takes it.
    pub reload: Reload,
}

/// Declares a section: each setting once, with its documentation, type, default, bound and reload behaviour.
macro_rules! section {
    ($(#[doc = $section_doc:literal])* $name:ident = $section:literal {
        $($(#[doc = $doc:literal])* $field:ident: $kind:ty = $default:expr, $bound:expr, $reload:ident;)+
    }) => {
        $(#[doc = $section_doc])*
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub struct $name { $($(#[doc = $doc])* pub $field: $kind,)+ }

        impl $name {
            /// Heads the section in `default.toml`.
            pub(crate) const DOC: &[&str] = &[$($section_doc),*];
            /// The table's name.
            pub(crate) const SECTION: &str = $section;

            /// Reads every setting; a fault leaves the default in its place, so that all faults are found in one go.
            pub(crate) fn read(raw: &$crate::load::RawConfig, faults: &mut Vec<$crate::error::Fault>) -> Self {
                Self { $($field: raw.take(concat!($section, ".", stringify!($field)), $default, &$bound, faults),)+ }
            }

            /// Describes every setting, in the order of declaration.
            pub(crate) fn keys() -> Vec<$crate::schema::KeyInfo> {
                vec![$({
                    let default: $kind = $default;
                    let bound: $crate::value::Bound<$kind> = $bound;
                    $crate::schema::KeyInfo {
                        key: concat!($section, ".", stringify!($field)),
                        doc: [$($doc),*].map(str::trim).join(" "),
                        default: $crate::value::Setting::print(&default),
                        bound: bound.words,
                        reload: $crate::schema::Reload::$reload,
                        text: <$kind as $crate::value::Setting>::TEXT,
                    }
                },)+]
            }

            /// Adds a change for every setting that differs.
            pub(crate) fn diff(&self, newer: &Self, changes: &mut Vec<$crate::schema::Change>) {
                $(if !PartialEq::eq(&self.$field, &newer.$field) {
                    changes.push($crate::schema::Change {
                        key: concat!($section, ".", stringify!($field)),
                        from: $crate::value::Setting::print(&self.$field),
                        to: $crate::value::Setting::print(&newer.$field),
                        reload: $crate::schema::Reload::$reload,
                    });
                })+
            }

            /// Takes over what a running daemon may take over.
            pub(crate) fn apply_live(&mut self, newer: &Self) {
                $(if $crate::schema::Reload::$reload == $crate::schema::Reload::Live {
                    self.$field.clone_from(&newer.$field);
                })+
            }

            /// Prints every setting with its value.
            pub(crate) fn print(&self, out: &mut Vec<(&'static str, String)>) {
                $(out.push((concat!($section, ".", stringify!($field)), $crate::value::Setting::print(&self.$field)));)+
            }
        }
    };
}
pub(crate) use section;

macro_rules! config {
    ($($field:ident: $kind:ident,)+) => {
        /// Every setting, validated. Cheap enough to clone; shared as `Arc<Config>`.
        #[derive(Debug, Clone, PartialEq)]
        #[non_exhaustive]
        pub struct Config {
            $(#[doc = concat!("The `[", stringify!($field), "]` section.")] pub $field: $kind,)+
        }

        impl Config {
            fn read(raw: &RawConfig, faults: &mut Vec<Fault>) -> Self {
                Self { $($field: $kind::read(raw, faults),)+ }
            }

            /// Lists what differs in `newer`, and which of it needs a restart.
            pub fn diff(&self, newer: &Self) -> Vec<Change> {
                let mut changes = Vec::new();
                $(self.$field.diff(&newer.$field, &mut changes);)+
                changes
            }

            /// This configuration with the live settings of `newer`: what is in force after a reload.
            #[must_use]
            pub fn with_live(&self, newer: &Self) -> Self {
                let mut result = self.clone();
                $(result.$field.apply_live(&newer.$field);)+
                result
            }

            /// Every setting as `(section.key, TOML value)`, in the order of `default.toml`.
            pub fn print(&self) -> Vec<(&'static str, String)> {
                let mut out = Vec::new();
                $(self.$field.print(&mut out);)+
                out
            }
        }

        /// Describes every setting, in the order of `default.toml`.
        pub fn settings() -> Vec<KeyInfo> {
            let mut keys = Vec::new();
            $(keys.extend($kind::keys());)+
            keys
        }

        fn section_docs() -> Vec<(&'static str, &'static [&'static str])> {
            vec![$(($kind::SECTION, $kind::DOC),)+]
        }
    };
}

config! {
    paths: PathSettings,
    server: ServerSettings,
    memory: MemorySettings,
    engine: EngineSettings,
    generation: GenerationSettings,
    evolution: EvolutionSettings,
    watch: WatchSettings,
    housekeeping: HousekeepingSettings,
    log: LogSettings,
    metrics: MetricsSettings,
}

impl Config {
    /// Reads all layers of `sources`, resolves paths and validates. Blocks on a few small file reads.
    ///
    /// # Errors
    /// A file that exists but cannot be read, or every faulty setting with its place, value and bound.
    pub fn load(sources: &Sources) -> Result<Self, ConfigError> {
        let raw = RawConfig::gather(sources)?;
        let mut faults = Vec::new();
        let mut config = Self::read(&raw, &mut faults);
        if faults.is_empty() {
            config.paths.resolve(sources, &raw, &mut faults);
            config.cross_check(&raw, &mut faults);
        }
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
    }

    /// Refuses combinations whose parts are each within their bounds.
    fn cross_check(&self, raw: &RawConfig, faults: &mut Vec<Fault>) {
        let mut refuse = |holds: bool, key: &str, found: String, problem: String| {
            if !holds {
                faults.push(Fault { origin: raw.origin(key), key: key.to_owned(), found, problem });
            }
        };
        refuse(
            self.engine.backoff_min <= self.engine.backoff_max,
            "engine.backoff_min",
            crate::value::print_duration(self.engine.backoff_min),
            format!("allowed: at most engine.backoff_max ({})", crate::value::print_duration(self.engine.backoff_max)),
        );
        refuse(
            self.watch.chunk_overlap_tokens < self.watch.chunk_tokens,
            "watch.chunk_overlap_tokens",
            self.watch.chunk_overlap_tokens.to_string(),
            format!("allowed: less than watch.chunk_tokens ({})", self.watch.chunk_tokens),
        );
        refuse(
            self.generation.block_tokens <= self.generation.tokens_max,
            "generation.block_tokens",
            self.generation.block_tokens.to_string(),
            format!("allowed: at most generation.tokens_max ({})", self.generation.tokens_max),
        );
        refuse(
            self.memory.pending_bytes_max >= self.server.frame_bytes_max,
            "memory.pending_bytes_max",
            self.memory.pending_bytes_max.to_string(),
            format!("allowed: at least server.frame_bytes_max ({})", self.server.frame_bytes_max),
        );
    }
}

/// Renders `default.toml`: every setting with what it does, its bound and its default.
pub fn reference() -> String {
    let mut out = String::from(
        "# Every setting of Mneme with its default. This file is generated from the settings' types; a test keeps it equal.\n\
         # Put what you change into ~/.config/mneme/config.toml (all keys are optional), or set MNEME_SECTION__KEY in the\n\
         # environment, or pass --set section.key=value to mnemed. Later ones win. `mneme config check` explains what is wrong.\n\
         # Durations are written \"250ms\", \"30s\", \"5m\", \"12h\", \"7d\"; sizes \"64KiB\", \"4MiB\", \"2GiB\".\n",
    );
    let keys = settings();
    for (section, doc) in section_docs() {
        out.push('\n');
        wrap(&mut out, &doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "));
        let _ = writeln!(out, "[{section}]");
        for info in &keys {
            let Some(name) = info.key.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) else { continue };
            let when = match info.reload {
                Reload::Live => "takes effect at once",
                Reload::Restart => "needs a restart",
            };
            out.push('\n');
            wrap(&mut out, &info.doc);
            wrap(&mut out, &format!("Allowed: {}; {when}.", info.bound));
            let _ = writeln!(out, "{name} = {}", info.default);
        }
    }
    out
}

/// Width of the comments of `default.toml` (characters), as the rest of the repository.
const COMMENT_WIDTH: usize = 118;

fn wrap(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split_whitespace() {
        if width == 0 || width + 1 + word.chars().count() > COMMENT_WIDTH {
            out.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        out.push(' ');
        out.push_str(word);
        width += 1 + word.chars().count();
    }
    out.push('\n');
}
