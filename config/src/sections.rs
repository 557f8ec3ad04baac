//! Every setting: what it does, its type, its default, its bound, and whether a running daemon takes a new value.

use std::path::PathBuf;
use std::time::Duration;

use crate::schema::section;
use crate::value::{Bound, ByteSize, Setting, TextForm, choice};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

choice! {
    /// Which library keeps the journal, queue and ledgers.
    StateEngine {
        /// redb: lost nothing and never hung in the power-cut suite.
        Redb = "redb",
        /// sled 1.0 alpha.
        Sled = "sled",
        /// Nothing survives the process; for trying out and for tests.
        Memory = "memory",
    }
}

choice! {
    /// The highest level of change that the evolution loop may propose.
    Level {
        /// Mix stored adapters; nothing is trained.
        L0 = "L0",
        /// Control branches.
        L1 = "L1",
        /// Low-rank adapters.
        L2 = "L2",
        /// Selected layers.
        L3 = "L3",
    }
}

choice! {
    /// How log lines are written.
    LogFormat {
        /// For people.
        Console = "console",
        /// One JSON object a line, for collectors.
        Json = "json",
    }
}

/// Which engine the daemon starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineProgram {
    /// `mneme-engine` beside the daemon's executable or on the path, with the models of `paths.assets_dir`; without
    /// them the daemon runs degraded and says so.
    Auto,
    /// The built-in deterministic stand-in: no model, for tests and demonstrations.
    Fake,
    /// No engine: recall by text only, no generation.
    None,
    /// This executable.
    Path(PathBuf),
}

impl Setting for EngineProgram {
    const TEXT: TextForm = TextForm::Verbatim;
    fn read(value: toml::Value) -> Result<Self, String> {
        match value.as_str() {
            Some("auto") => Ok(Self::Auto),
            Some("fake") => Ok(Self::Fake),
            Some("none") => Ok(Self::None),
            Some(path) if path.starts_with('/') => Ok(Self::Path(path.into())),
            _ => Err(format!("allowed: {ENGINE_PROGRAM_WORDS}")),
        }
    }
    fn print(&self) -> String {
        match self {
            Self::Auto => "\"auto\"".to_owned(),
            Self::Fake => "\"fake\"".to_owned(),
            Self::None => "\"none\"".to_owned(),
            Self::Path(path) => path.print(),
        }
    }
}

const ENGINE_PROGRAM_WORDS: &str = "\"auto\", \"fake\", \"none\" or an absolute path";

fn any_path() -> Bound<PathBuf> {
    Bound::rule("empty, an absolute path, or one that starts with ~/", |path: &PathBuf| {
        path.as_os_str().is_empty() || path.is_absolute() || path.starts_with("~")
    })
}

fn any_bool() -> Bound<bool> {
    Bound::rule("true, false", |_| true)
}

fn number(min: u32, max: u32) -> Bound<u32> {
    Bound::range(min, max)
}

/// A probability or a rate between two bounds; NaN is outside every range.
fn real(min: f64, max: f64) -> Bound<f64> {
    Bound::range(min, max)
}

fn time(min: Duration, max: Duration) -> Bound<Duration> {
    Bound::range(min, max)
}

fn size(min: ByteSize, max: ByteSize) -> Bound<ByteSize> {
    Bound::range(min, max)
}

section! {
    /// Where things live. An empty path means the place that the XDG base directories give.
    PathSettings = "paths" {
        /// Journal, store, adapters, logs. Empty: $XDG_STATE_HOME/mneme, else ~/.local/state/mneme.
        state_dir: PathBuf = PathBuf::new(), any_path(), Restart;
        /// Socket and lock. Empty: $XDG_RUNTIME_DIR/mneme, else the folder "run" in the state folder. The socket in it is
        /// called mneme.sock; its whole path may have 107 bytes, which is the limit of the operating system.
        runtime_dir: PathBuf = PathBuf::new(), any_path(), Restart;
        /// Models. Empty: $XDG_CACHE_HOME/mneme/assets, else ~/.cache/mneme/assets.
        assets_dir: PathBuf = PathBuf::new(), any_path(), Restart;
    }
}

section! {
    /// The socket and what each client may ask of it.
    ServerSettings = "server" {
        /// Connections open at the same time; one more is answered busy and closed.
        connections_max: u32 = 1_100, number(1, 65_536), Live;
        /// Frames larger than this are refused before memory is allocated for them.
        frame_bytes_max: ByteSize = ByteSize::mib(4), size(ByteSize::kib(4), ByteSize::mib(64)), Live;
        /// Deadline of a request that names none.
        request_timeout: Duration = 30 * SECOND, time(Duration::from_millis(100), 10 * MINUTE), Live;
        /// A connection without a request for this long is closed.
        idle_timeout: Duration = 15 * MINUTE, time(SECOND, 7 * DAY), Live;
        /// A frame, once begun, has to arrive within this time; it ends clients that trickle bytes.
        slow_frame_timeout: Duration = 10 * SECOND, time(Duration::from_millis(50), 5 * MINUTE), Live;
        /// Requests of one client that are worked on at the same time; one more is answered busy.
        requests_in_flight_max: u32 = 64, number(1, 4_096), Live;
        /// Replies and notifications that wait for a client that does not read. When they are full, notifications are left out and
        /// replies wait; a client that takes nothing for 30 s is cut off.
        outbound_frames_max: u32 = 256, number(8, 65_536), Live;
        /// User ids that may connect beside the daemon's own. The socket's folder stays closed to others: such a user comes through
        /// a socket that the service manager hands over with another mode, or is the administrator.
        allowed_uids: Vec<u32> = Vec::new(), Bound::rule("up to 64 user ids", |uids: &Vec<u32>| uids.len() <= 64), Live;
        /// At shutdown, requests in flight get this long to finish. Keep it below the service manager's stop timeout.
        drain_timeout: Duration = 8 * SECOND, time(Duration::ZERO, 5 * MINUTE), Live;
    }
}

section! {
    /// The memory store and its journal.
    MemorySettings = "memory" {
        /// Which library keeps the journal: redb and sled are compared in the documentation; memory keeps nothing.
        engine: StateEngine = StateEngine::Redb, Bound::<StateEngine>::choice(), Restart;
        /// How long a sync waits for further writes once two have come together. Zero never waits.
        group_commit_wait: Duration = Duration::from_millis(2), time(Duration::ZERO, SECOND), Live;
        /// Writes that share one sync at most.
        group_commit_operations_max: u32 = 256, number(1, 65_536), Live;
        /// Writes that wait for the journal; one more is answered busy.
        pending_operations_max: u32 = 4_096, number(1, 1_048_576), Restart;
        /// Bytes of text that wait for the journal; more is answered busy.
        pending_bytes_max: ByteSize = ByteSize::mib(64), size(ByteSize::mib(1), ByteSize::gib(16)), Restart;
        /// With less free disk than this new memories are refused until space is free again; forgetting goes on, and so do the rows
        /// of the daemon's own log down to a quarter of it.
        disk_watermark: ByteSize = ByteSize::mib(256), size(ByteSize::new(0), ByteSize::gib(1_024)), Live;
        /// Memory that the journal's library may use as cache.
        journal_cache: ByteSize = ByteSize::mib(16), size(ByteSize::mib(1), ByteSize::gib(64)), Restart;
        /// Threads that search the index; 0 uses half of the processors.
        index_threads: u32 = 0, number(0, 256), Restart;
        /// Memories that one source may write in an hour; 0 sets no quota.
        source_quota_per_hour: u32 = 20_000, number(0, 100_000_000), Live;
        /// How long the result of an operation is kept, so that a repeated operation id gets the stored answer.
        ledger_keep: Duration = 7 * DAY, time(HOUR, 365 * DAY), Live;
        /// Where a copy of the memories is kept as Lance tables, for other programs to read: "" keeps none, "auto" is the folder
        /// lance beside the store, else a folder or an object store. Needs a daemon that was built with the feature lance.
        lance: String = String::new(), Bound::rule("\"\", \"auto\", an absolute folder, s3://, gs:// or az://", |place: &String| {
            let stores = ["s3://", "gs://", "az://"];
            place.is_empty() || place == "auto" || place.starts_with('/') || stores.iter().any(|scheme| place.starts_with(scheme))
        }), Restart;
    }
}

section! {
    /// The engine: a child process that holds the models.
    EngineSettings = "engine" {
        /// Which engine to start: "auto" looks for mneme-engine and its models, "fake" is the built-in stand-in without a
        /// model, "none" starts nothing, an absolute path names a program.
        program: EngineProgram = EngineProgram::Auto, Bound::rule(ENGINE_PROGRAM_WORDS, |_| true), Restart;
        /// From the start of the child to its first answer.
        start_timeout: Duration = 60 * SECOND, time(SECOND, 30 * MINUTE), Live;
        /// One batch of embeddings.
        embed_timeout: Duration = 30 * SECOND, time(Duration::from_millis(100), 10 * MINUTE), Live;
        /// One generation.
        generate_timeout: Duration = 5 * MINUTE, time(SECOND, HOUR), Live;
        /// Starts within restart_window after the first; one more and the engine stays down until the window has passed.
        restarts_max: u32 = 5, number(0, 1_000), Live;
        /// The window that restarts_max counts in.
        restart_window: Duration = 10 * MINUTE, time(SECOND, DAY), Live;
        /// Pause before the first restart; it doubles with each further one.
        backoff_min: Duration = Duration::from_millis(500), time(Duration::from_millis(10), HOUR), Live;
        /// The longest pause before a restart.
        backoff_max: Duration = 30 * SECOND, time(Duration::from_millis(10), HOUR), Live;
        /// Threads of the engine; 0 uses every physical core.
        threads: u32 = 0, number(0, 512), Restart;
        /// A child whose resident memory grows beyond this is replaced between requests; 0 sets no limit.
        rss_max: ByteSize = ByteSize::gib(4), size(ByteSize::new(0), ByteSize::gib(1_024)), Live;
        /// An engine without a request for this long is stopped and its memory given back; "0s" keeps it.
        idle_stop: Duration = 30 * MINUTE, time(Duration::ZERO, 7 * DAY), Live;
        /// Texts embedded in one batch at most.
        embed_batch_max: u32 = 32, number(1, 1_024), Live;
    }
}

section! {
    /// What a generation uses when the request does not say.
    GenerationSettings = "generation" {
        /// Denoising steps per canvas.
        steps: u32 = 16, number(1, 512), Live;
        /// Tokens that are denoised together.
        block_tokens: u32 = 4, number(1, 256), Live;
        /// The longest text that a request may ask for.
        tokens_max: u32 = 512, number(1, 1_024), Live;
    }
}

section! {
    /// The loop that adapts the generator to its user.
    EvolutionSettings = "evolution" {
        /// Off: nothing is measured for training and nothing is trained; stored adapters are not used.
        enabled: bool = true, any_bool(), Restart;
        /// The highest level of change that may be proposed: L0 mixes stored adapters, L1 control branches, L2 low-rank
        /// adapters, L3 selected layers.
        level_max: Level = Level::L2, Bound::<Level>::choice(), Live;
        /// Processor minutes a day that training and validation may take; 0 trains nothing by itself. A job that the user asks for
        /// (`mneme evolve run`) is not held up by it.
        cpu_minutes_per_day: u32 = 60, number(0, 1_440), Live;
        /// Chance of ever raising a false alarm per context, by Ville's inequality.
        alpha: f64 = 0.05, real(0.000_001, 0.5), Live;
        /// The gain on held-out text that an adapter has to prove (bits per token).
        epsilon_bits: f64 = 0.005, real(0.0, 1.0), Live;
        /// What base text may lose at most (bits per token).
        forgetting_bits_max: f64 = 0.08, real(0.0, 1.0), Live;
        /// Share of base text that is replayed in training.
        replay_share: f64 = 0.3, real(0.2, 0.5), Live;
        /// Processor minutes that one training job may take, its placebo and its judging included; longer learns more.
        job_cpu_minutes_max: u32 = 10, number(1, 240), Live;
        /// Nothing is trained while processors are busier than this (pressure stall information, 0 to 1; 1 trains always).
        load_max: f64 = 0.5, real(0.0, 1.0), Live;
        /// Nothing is trained while the machine runs on battery.
        pause_on_battery: bool = true, any_bool(), Live;
    }
}

section! {
    /// Watched folders.
    WatchSettings = "watch" {
        /// Watched folders are also compared by content this often, for file systems that report nothing.
        poll: Duration = 30 * SECOND, time(SECOND, DAY), Live;
        /// A file is read once it has been quiet for this long.
        settle: Duration = Duration::from_millis(300), time(Duration::from_millis(10), MINUTE), Live;
        /// Tokens per chunk; each chunk becomes one memory.
        chunk_tokens: u32 = 256, number(32, 512), Live;
        /// Tokens that neighbouring chunks share.
        chunk_overlap_tokens: u32 = 32, number(0, 256), Live;
        /// Files with other endings are passed over.
        extensions: Vec<String> = ["md", "markdown", "txt", "org", "rst"].map(str::to_owned).to_vec(),
            Bound::rule("1 to 64 endings of letters, digits, - and _, without the dot", |endings: &Vec<String>| {
                (1..=64).contains(&endings.len()) && endings.iter().all(|ending| {
                    (1..=16).contains(&ending.len())
                        && ending.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
                })
            }), Live;
        /// Larger files are passed over, with a warning.
        file_bytes_max: ByteSize = ByteSize::mib(4), size(ByteSize::kib(1), ByteSize::gib(1)), Live;
        /// Files watched in all folders together; those that are in memory already come first.
        files_max: u32 = 50_000, number(1, 10_000_000), Live;
    }
}

section! {
    /// Work that is done now and then.
    HousekeepingSettings = "housekeeping" {
        /// Index and store are compacted.
        compact_interval: Duration = 10 * MINUTE, time(10 * SECOND, 7 * DAY), Live;
        /// What was forgotten is removed from every file.
        purge_interval: Duration = HOUR, time(10 * SECOND, DAY), Live;
    }
}

section! {
    /// What the daemon writes about itself. Never the content of memories or prompts.
    LogSettings = "log" {
        /// A level, or directives such as "info,mneme_actors=debug".
        level: String = "info".to_owned(), Bound::rule(
            "error, warn, info, debug, trace, or directives module=level with commas", |level: &String| is_filter(level),
        ), Live;
        /// "console" for people, "json" for collectors.
        format: LogFormat = LogFormat::Console, Bound::<LogFormat>::choice(), Restart;
        /// Write a file in the state folder's "log" as well as standard error.
        file: bool = false, any_bool(), Restart;
        /// The log file is rotated at this size.
        file_bytes_max: ByteSize = ByteSize::mib(16), size(ByteSize::kib(64), ByteSize::gib(1)), Live;
        /// Rotated files kept.
        files_keep: u32 = 5, number(1, 100), Live;
    }
}

section! {
    /// Counters and histograms, readable through admin.metrics ('mneme metrics').
    MetricsSettings = "metrics" {
        /// Also answer GET /metrics on this port of 127.0.0.1, for a Prometheus on this machine; 0 is off. Every user of this
        /// machine can read it: counts and sizes, never the content of a memory.
        port: u32 = 0, number(0, 65_535), Restart;
        /// Also sent to an OpenTelemetry collector: the address of its OTLP receiver for HTTP, without encryption, or "auto" for
        /// http://127.0.0.1:4318/v1/metrics; "" is off. Needs a daemon that was built with the feature otel.
        otlp_endpoint: String = String::new(), Bound::rule("\"\", \"auto\" or http://HOST[:PORT]/PATH", |endpoint: &String| {
            endpoint.is_empty() || endpoint == "auto" || is_http(endpoint)
        }), Restart;
        /// How often they are sent; each time all of them, so that one that did not arrive is made up for by the next.
        otlp_interval: Duration = MINUTE, time(SECOND, HOUR), Restart;
        /// A request that takes longer is logged with its parts.
        slow_request: Duration = 2 * SECOND, time(Duration::from_millis(1), 10 * MINUTE), Live;
    }
}

/// Checks the form of an address without encryption, user or blanks: `http://HOST[:PORT][/PATH]`.
fn is_http(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("http://") else { return false };
    let place = rest.split('/').next().unwrap_or_default();
    let (host, port) = place.rsplit_once(':').unwrap_or((place, "80"));
    text.len() <= 1_024
        && !host.is_empty()
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        && port.parse::<u16>().is_ok_and(|port| port > 0)
        && rest.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Checks the form that tracing's filters have, without knowing tracing.
fn is_filter(text: &str) -> bool {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    text.len() <= 1_024
        && text.split(',').all(|directive| {
            let (module, level) = directive.trim().split_once('=').unwrap_or(("", directive.trim()));
            LEVELS.contains(&level)
                && module
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b':' || byte == b'-')
        })
}
