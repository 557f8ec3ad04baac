//! The command line's grammar; its help is the documentation of the commands.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use mneme_base::{AdapterId, MemoryId, Namespace, OpId, TaskId, Timestamp, TrustTier};

/// Memory that lasts for a person's agents, and a generator that writes from it.
#[derive(Debug, Parser)]
#[command(name = "mneme", version, propagate_version = true, max_term_width = 110)]
pub(crate) struct Arguments {
    /// Print one line of JSON instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// The daemon's socket [default: where this user's daemon listens].
    #[arg(long, global = true, env = "MNEME_SOCKET", value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Give up after this many seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 300)]
    pub(crate) timeout: u64,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show how the daemon, the memory and the engine are.
    Status,
    /// Remember a text; from standard input when none is given.
    Remember(RememberArgs),
    /// Ask the memory.
    Recall(RecallArgs),
    /// Show one memory whole.
    Get {
        /// The memory.
        id: MemoryId,
    },
    /// Forget memories, a source or a namespace; prints a receipt.
    Forget(ForgetArgs),
    /// Write from memory.
    Generate(GenerateArgs),
    /// Say what you think of a generation.
    Feedback(FeedbackArgs),
    /// Submit, watch and cancel long-running tasks.
    #[command(subcommand)]
    Task(TaskCommand),
    /// Keep folders of text and Markdown files in memory.
    #[command(subcommand)]
    Watch(WatchCommand),
    /// See and steer how the generator adapts to you.
    #[command(subcommand)]
    Evolve(EvolveCommand),
    /// Write memories as JSON lines to a file or standard output.
    Export(ExportArgs),
    /// Read memories from JSON lines; lines that cannot be taken in are named, and the exit status is then 65.
    Import(ImportArgs),
    /// Write a verified copy of the store into an empty folder, while it is in use.
    Backup {
        /// The folder.
        folder: PathBuf,
    },
    /// Check a backup and put it in the place of the store, while the daemon is stopped. What was there is kept beside it.
    Restore {
        /// The backup's folder.
        folder: PathBuf,
    },
    /// Purge forgotten bytes and compact the store now.
    Compact,
    /// Print counters in Prometheus' text form.
    Metrics,
    /// Check the whole set-up and explain what is wrong.
    Doctor,
    /// Install, start, stop and remove the service of this user.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Check and show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Serve programs that speak the Model Context Protocol, over standard input and output.
    Mcp,
    /// Add Mneme to the configuration of a program that speaks MCP.
    Install(InstallArgs),
    /// Take Mneme out of the configuration of a program that speaks MCP, hooks included. Memories stay.
    Uninstall(UninstallArgs),
    /// Answer a session hook of an editor: reads its event from standard input, never blocks it, never fails.
    Hook {
        /// The event.
        #[arg(value_enum)]
        event: HookEvent,
    },
    /// Show memory, map, canvas and evolution in the browser, on this machine only.
    Ui(UiArgs),
    /// Show traffic, memories, uncertainty, training and adapters in the terminal.
    Top(TopArgs),
    /// Look into model weights, convert and compare them ('mneme weights help' says how).
    #[command(disable_help_flag = true)]
    Weights {
        /// Handed to mneme-weights: inspect, convert, diff, load and what they take.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page.
    Man,
}

/// A program that speaks MCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum McpClient {
    /// Claude Code, for this user.
    ClaudeCode,
    /// Claude Desktop.
    ClaudeDesktop,
    /// Cursor.
    Cursor,
    /// Visual Studio Code.
    Vscode,
    /// Codex.
    Codex,
}

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub(crate) struct InstallArgs {
    /// The program.
    #[arg(value_enum)]
    pub(crate) client: McpClient,
    /// Only print what belongs into its configuration.
    #[arg(long)]
    pub(crate) print: bool,
    /// Write the configuration of the project in this folder instead of the user's.
    #[arg(long)]
    pub(crate) project: bool,
    /// Also install session hooks: recall at the start and at each question, remember after each answer (claude-code).
    #[arg(long)]
    pub(crate) hooks: bool,
    /// Do not ask before the file is written.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct UninstallArgs {
    /// The program.
    #[arg(value_enum)]
    pub(crate) client: McpClient,
    /// Change the configuration of the project in this folder instead of the user's.
    #[arg(long)]
    pub(crate) project: bool,
    /// Do not ask before a file is written.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// A session hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum HookEvent {
    /// A session starts: recall how the user wants things to be, and the project.
    SessionStart,
    /// A question is put: recall what belongs to it.
    Prompt,
    /// An answer ended: remember question and answer.
    Stop,
    /// A session ends: remember what is not remembered yet.
    SessionEnd,
}

#[derive(Debug, Args)]
pub(crate) struct UiArgs {
    /// The port on 127.0.0.1; a free one when it is 0.
    #[arg(long, default_value_t = 0)]
    pub(crate) port: u16,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Ask the daemon this often (seconds, 0.1 to 60).
    #[arg(short, long, default_value_t = 1.0)]
    pub(crate) every: f64,
    /// Draw once, print it as text and end.
    #[arg(long)]
    pub(crate) once: bool,
}

/// How far a memory is trusted.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Trust {
    /// From outside: goes into quarantine.
    Untrusted,
    /// Told by an agent.
    Reported,
    /// Read by Mneme itself.
    Observed,
    /// Written or confirmed by the user.
    User,
}

impl From<Trust> for TrustTier {
    fn from(trust: Trust) -> Self {
        match trust {
            Trust::Untrusted => Self::Untrusted,
            Trust::Reported => Self::Reported,
            Trust::Observed => Self::Observed,
            Trust::User => Self::User,
        }
    }
}

/// What sort of thing a memory is.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// A note or observation.
    Note,
    /// One turn of a conversation.
    Message,
    /// A statement held to be true for a while.
    Fact,
    /// How the user wants things to be.
    Preference,
    /// A piece of a document.
    Chunk,
    /// An event with a time.
    Event,
    /// How to do something.
    Procedure,
}

#[derive(Debug, Args)]
pub(crate) struct RememberArgs {
    /// The text.
    pub(crate) text: Option<String>,
    /// The drawer.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: Namespace,
    /// What sort of thing it is.
    #[arg(short, long, value_enum, default_value = "note")]
    pub(crate) kind: Kind,
    /// Who says it.
    #[arg(long)]
    pub(crate) speaker: Option<String>,
    /// The conversation or document it is part of.
    #[arg(long)]
    pub(crate) thread: Option<String>,
    /// When it happened or starts to be true (RFC 3339 or a date).
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<Timestamp>,
    /// The source that can be revoked as a whole.
    #[arg(long)]
    pub(crate) source: Option<String>,
    /// How far it is trusted.
    #[arg(long, value_enum, default_value = "user")]
    pub(crate) trust: Trust,
    /// A note on it; may be repeated.
    #[arg(long = "meta", value_name = "KEY=VALUE")]
    pub(crate) metadata: Vec<String>,
    /// Replace this memory, which stays readable for --as-of.
    #[arg(long, value_name = "ID")]
    pub(crate) supersedes: Option<MemoryId>,
    /// Names the change: sent again, it is made once.
    #[arg(long, value_name = "ID")]
    pub(crate) op_id: Option<OpId>,
}

#[derive(Debug, Args)]
pub(crate) struct RecallArgs {
    /// The question; "phrases" in double quotes must occur as they stand.
    pub(crate) query: String,
    /// Drawers to look in; may be repeated.
    #[arg(short, long)]
    pub(crate) namespace: Vec<Namespace>,
    /// How many hits at most.
    #[arg(short, long, default_value_t = 5)]
    pub(crate) limit: u32,
    /// Only from this source; a trailing * matches any ending. May be repeated.
    #[arg(long)]
    pub(crate) source: Vec<String>,
    /// Only by this speaker; may be repeated.
    #[arg(long)]
    pub(crate) speaker: Vec<String>,
    /// Only at least this trusted.
    #[arg(long, value_enum)]
    pub(crate) trust_min: Option<Trust>,
    /// Only valid at or after this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) after: Option<Timestamp>,
    /// Only valid before this time.
    #[arg(long, value_name = "TIME")]
    pub(crate) before: Option<Timestamp>,
    /// Answer as the memory stood then.
    #[arg(long, value_name = "TIME")]
    pub(crate) as_of: Option<Timestamp>,
    /// Also memories in quarantine.
    #[arg(long)]
    pub(crate) quarantined: bool,
    /// 0 is pure relevance, 1 pure variety.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) diversity: f32,
    /// Let the generator judge the best candidates too.
    #[arg(long)]
    pub(crate) rerank: bool,
    /// Say for each hit how it came to its place.
    #[arg(short, long)]
    pub(crate) explain: bool,
}

#[derive(Debug, Args)]
#[group(required = true)]
pub(crate) struct ForgetArgs {
    /// The memories.
    pub(crate) ids: Vec<MemoryId>,
    /// Everything from this source.
    #[arg(long, conflicts_with_all = ["ids", "whole_namespace"])]
    pub(crate) source: Option<String>,
    /// A whole namespace.
    #[arg(long, value_name = "NAMESPACE", conflicts_with = "ids")]
    pub(crate) whole_namespace: Option<Namespace>,
    /// Wait until the bytes are gone from every file.
    #[arg(long)]
    pub(crate) purge: bool,
    /// Do not ask before forgetting a source or a namespace.
    #[arg(short, long)]
    pub(crate) yes: bool,
}

/// How tokens are decided.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Mode {
    /// Left to right.
    Ar,
    /// By iterative unmasking.
    Diffusion,
    /// Diffusion drafts, the causal mode verifies.
    Auto,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// What to continue; {{hole:N}} marks a hole of at most N tokens. From standard input when missing.
    pub(crate) prompt: Option<String>,
    /// An instruction in the model's chat form.
    #[arg(short, long)]
    pub(crate) instruction: Option<String>,
    /// Guide the text by memories of this namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<Namespace>,
    /// How many memories at most.
    #[arg(long, default_value_t = 5)]
    pub(crate) memories: u32,
    /// What to look for in the memory, instead of the prompt.
    #[arg(long)]
    pub(crate) memory_query: Option<String>,
    /// Tokens to add at most.
    #[arg(short, long, default_value_t = 64)]
    pub(crate) tokens: u32,
    /// The holes match this regular expression.
    #[arg(long, conflicts_with = "json_schema")]
    pub(crate) regex: Option<String>,
    /// The holes are JSON that this schema file accepts.
    #[arg(long, value_name = "FILE")]
    pub(crate) json_schema: Option<PathBuf>,
    /// How tokens are decided.
    #[arg(short, long, value_enum, default_value = "auto")]
    pub(crate) mode: Mode,
    /// Diffusion steps a block.
    #[arg(long)]
    pub(crate) steps: Option<u32>,
    /// Tokens a block.
    #[arg(long)]
    pub(crate) block: Option<u32>,
    /// Sampling temperature, 0 to 2; 0 is greedy.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Seed of all draws.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The base model alone, without adapters.
    #[arg(long)]
    pub(crate) base_only: bool,
    /// Submit it as a task and return at once.
    #[arg(long)]
    pub(crate) background: bool,
}

/// What you think of a generation.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Opinion {
    /// Good as it is: may be learned from.
    Accept,
    /// Not good.
    Reject,
    /// It should have been the correction.
    Correct,
}

#[derive(Debug, Args)]
pub(crate) struct FeedbackArgs {
    /// The opinion.
    #[arg(value_enum)]
    pub(crate) verdict: Opinion,
    /// The generation, as `mneme generate` names it.
    pub(crate) task: TaskId,
    /// What it should have been.
    pub(crate) correction: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskCommand {
    /// List recent tasks, or show one.
    Status {
        /// Which.
        task: Option<TaskId>,
    },
    /// Follow a task to its end.
    Follow {
        /// Which.
        task: TaskId,
    },
    /// Stop a task at its next step.
    Cancel {
        /// Which.
        task: TaskId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum WatchCommand {
    /// Watch a folder.
    Add {
        /// The folder.
        folder: PathBuf,
        /// The drawer.
        #[arg(short, long, default_value = "default")]
        namespace: Namespace,
    },
    /// List watched folders.
    List,
    /// Stop watching a folder.
    Remove {
        /// The folder.
        folder: PathBuf,
        /// Forget what was read from it.
        #[arg(long)]
        forget: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvolveCommand {
    /// What the loop is doing, and the adapters.
    Status,
    /// What it decided and why, newest first.
    Log {
        /// How many decisions at most.
        #[arg(short, long, default_value_t = 20)]
        limit: u32,
    },
    /// One adapter with its lineage and decisions.
    Show {
        /// Which.
        adapter: AdapterId,
    },
    /// Compare two adapters, or one with the base.
    Diff {
        /// The first.
        a: AdapterId,
        /// The second.
        b: Option<AdapterId>,
    },
    /// Take an adapter out of use.
    Rollback {
        /// Which.
        adapter: AdapterId,
    },
    /// Take an adapter out of use for good and remove its file; its card stays as a record.
    Retire {
        /// Which.
        adapter: AdapterId,
    },
    /// Keep an adapter from being replaced or rolled back by itself.
    Pin {
        /// Which.
        adapter: AdapterId,
        /// Let it go again.
        #[arg(long)]
        off: bool,
    },
    /// Train nothing until resumed.
    Pause,
    /// Go on.
    Resume,
    /// Propose a training job now; its gates stay the same.
    Run,
    /// Write an adapter with its card to a file, for another machine with the same base model. It was trained on your text: give it
    /// to nobody whom you would not give the text.
    Export {
        /// Which.
        adapter: AdapterId,
        /// The file.
        file: PathBuf,
    },
    /// Read an adapter from a file. It serves nothing before it has passed a shadow here.
    Import {
        /// The file.
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The file; standard output when missing.
    pub(crate) file: Option<PathBuf>,
    /// Only this namespace.
    #[arg(short, long)]
    pub(crate) namespace: Option<Namespace>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A file of JSON lines, each an export's line or an object with at least "text"; standard input when missing.
    pub(crate) file: Option<PathBuf>,
    /// The drawer of lines that name none.
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: Namespace,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Write the service files of this user (systemd or launchd) and say what to do next.
    Install {
        /// Print the files instead of writing them.
        #[arg(long)]
        print: bool,
        /// Enable and start it right away.
        #[arg(long)]
        now: bool,
    },
    /// Stop the service and remove its files. Memories stay.
    Uninstall,
    /// Show what the service manager says.
    Status,
    /// Start the service; without one, start the daemon in the background.
    Start,
    /// Stop the daemon in order.
    Stop,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check the configuration; every fault is told with file, line, key and bound.
    Check {
        /// A file instead of the user's.
        file: Option<PathBuf>,
    },
    /// Have the running daemon read its configuration again, and tell what is in force and what waits for a restart.
    Reload,
    /// Show every key with its value in force.
    Show,
    /// Print the documented defaults.
    Defaults,
}
