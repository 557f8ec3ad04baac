//! The demonstration: a daemon as a user starts it, a real diary, and the whole loop, told as a readable story with figures.
//!
//! Everything happens in a temporary folder; a daemon of the user's own is not touched.

#![expect(clippy::print_stdout, reason = "the story is told on standard output")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use mneme_base::Namespace;
use mneme_client_sdk::blocking::Client;
use mneme_client_sdk::{CallOptions, ClientError, ClientOptions};
use mneme_ipc::types as wire;
use mneme_ipc::{Method, methods};

/// The whole demonstration gives up after this; a step that hangs is a failure.
const PATIENCE: Duration = Duration::from_mins(15);
/// How long the loop gets to train and decide.
const TRAINING_PATIENCE: Duration = Duration::from_mins(6);
/// Pause between two looks at something that is waited for.
const POLL: Duration = Duration::from_millis(200);
/// Text that is remembered, forgotten, and then looked for in every file.
const CANARY: &str = "The spare key to the cabinet hangs behind the blue curtain.";

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Shows the main job on real input.
#[derive(Debug, Parser)]
struct Arguments {
    /// Use the stand-in engine: quicker, and what it writes is word salad.
    #[arg(long)]
    fake: bool,
    /// Keep the temporary folder and say where it is.
    #[arg(long)]
    keep: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Ends the daemon when the story ends, however it ends.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let started = Instant::now();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the tests lie in no workspace")?.to_path_buf();
    heading("Building the programs (release)");
    let programs = build(&root, arguments.fake)?;
    let folder = tempfile::Builder::new().prefix("mneme-demo-").tempdir()?;
    let home = folder.path().to_path_buf();
    if arguments.keep {
        println!("everything lies in {}", folder.keep().display());
    }
    heading("Starting the daemon");
    let before = Instant::now();
    let daemon = start(&root, &programs, &home, arguments.fake)?;
    let client = connect(&home, &daemon)?;
    let hello = client.hello()?;
    println!("{} answers after {} ms", hello.server, before.elapsed().as_millis());
    let story = Story { client, home, root };
    story.remember()?;
    story.watch()?;
    story.vectors()?;
    story.recall()?;
    let task = story.generate()?;
    story.constrained(arguments.fake)?;
    story.learn(&task)?;
    story.forget()?;
    story.end(daemon, started)
}

fn heading(text: &str) {
    println!("\n== {text}");
}

/// Builds what a user installs and returns the folder of the programs.
fn build(root: &Path, fake: bool) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["build", "--release", "-p", "mneme-daemon", "-p", "mneme-cli"]);
    if !fake {
        command.args(["-p", "mneme-engine"]);
    }
    if !command.status()?.success() {
        return Err("the programs could not be built; the compiler's words are above".into());
    }
    let own = std::env::current_exe()?;
    Ok(own.parent().ok_or("this program lies in no folder")?.to_path_buf())
}

fn start(root: &Path, programs: &Path, home: &Path, fake: bool) -> Result<Running> {
    let log = home.join("mnemed.log");
    let file = fs_err::File::create(&log)?;
    let mut command = Command::new(programs.join("mnemed"));
    command
        .env("HOME", home)
        .env("MNEME_PATHS__STATE_DIR", home.join("state"))
        .env("MNEME_PATHS__RUNTIME_DIR", home.join("run"))
        .env("MNEME_PATHS__ASSETS_DIR", root.join(".assets"))
        // The demonstration itself keeps the machine busy, and wants a decision in minutes.
        .env("MNEME_EVOLUTION__LOAD_MAX", "1")
        .env("MNEME_EVOLUTION__JOB_CPU_MINUTES_MAX", "1")
        .env("MNEME_EVOLUTION__PAUSE_ON_BATTERY", "false")
        .env("MNEME_ENGINE__PROGRAM", if fake { "fake" } else { "auto" })
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::from(file.into_parts().0));
    let child = command.spawn().map_err(|error| format!("mnemed could not be started: {error}"))?;
    Ok(Running { child, log })
}

fn connect(home: &Path, daemon: &Running) -> Result<Client> {
    let options = ClientOptions::new("demo").socket(home.join("run/mneme.sock"));
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        match Client::connect(options.clone()) {
            Ok(client) => return Ok(client),
            Err(ClientError::NotRunning { .. }) if Instant::now() < until => std::thread::sleep(POLL / 10),
            Err(error) => {
                let log = fs_err::read_to_string(&daemon.log).unwrap_or_default();
                return Err(format!("{error}; its log says:\n{log}").into());
            }
        }
    }
}

struct Story {
    client: Client,
    home: PathBuf,
    root: PathBuf,
}

impl Story {
    fn call<M: Method>(&self, params: M::Params) -> Result<M::Result> {
        let options = CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() };
        Ok(self.client.call_with::<M>(params, options)?)
    }

    fn remember(&self) -> Result<()> {
        heading("Remembering eight months of a diary (Samuel Pepys, 1660, CC0)");
        let text = fs_err::read_to_string(self.root.join("tests/data/pepys-1660.jsonl"))?;
        let memories: Vec<wire::RememberParams> =
            text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?;
        let bytes: usize = memories.iter().map(|memory| memory.text.len()).sum();
        let count = memories.len();
        let before = Instant::now();
        let imported = self.call::<methods::Import>(wire::ImportParams { memories })?;
        println!(
            "{} of {count} entries ({} KiB) durable in {} ms",
            imported.imported,
            bytes >> 10,
            before.elapsed().as_millis()
        );
        let secret = wire::RememberParams {
            text: String::from("The cloud key is AKIAIOSFODNN7EXAMPLE, do not lose it."),
            trust: Some(mneme_base::TrustTier::User),
            ..wire::RememberParams::default()
        };
        let receipt = self.call::<methods::Remember>(secret)?;
        println!("a note with a cloud key in it: {} secret taken out before it was written", receipt.redactions);
        Ok(())
    }

    fn watch(&self) -> Result<()> {
        heading("Watching a folder: this project's own documents");
        // A copy of the top documents: the checkout itself holds build output too.
        let notes = self.home.join("notes");
        fs_err::create_dir_all(&notes)?;
        for name in ["README.md", "ARCHITECTURE.md", "PROTOCOL.md"] {
            fs_err::copy(self.root.join(name), notes.join(name))?;
        }
        let folder = notes.display().to_string();
        let namespace: Namespace = "project".parse()?;
        let added = self.call::<methods::WatchAdd>(wire::WatchAddParams { folder, namespace })?;
        println!("{} files are in memory, and followed as they change", added.files);
        Ok(())
    }

    fn vectors(&self) -> Result<()> {
        heading("Giving every memory its place in meaning space");
        let stats = |story: &Self| story.call::<methods::Stats>(wire::StatsParams {});
        let total = stats(self)?.memories;
        let bar = ProgressBar::new(total);
        bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} memories")?);
        let before = Instant::now();
        loop {
            let now = stats(self)?;
            bar.set_position(total.saturating_sub(now.embeddings_pending));
            if now.embeddings_pending == 0 {
                break;
            }
            if before.elapsed() > PATIENCE {
                return Err("vectors were not made in time; 'mneme doctor' checks the engine".into());
            }
            std::thread::sleep(POLL);
        }
        bar.finish_and_clear();
        println!("{total} memories in {:.1} s", before.elapsed().as_secs_f64());
        Ok(())
    }

    fn ask(&self, query: &str, namespace: &str) -> Result<wire::RecallResult> {
        let params = wire::RecallParams {
            query: query.to_owned(),
            namespaces: vec![namespace.parse()?],
            limit: Some(2),
            ..wire::RecallParams::default()
        };
        self.call::<methods::Recall>(params)
    }

    fn recall(&self) -> Result<()> {
        heading("Asking");
        let questions = [
            ("When did the King land at Dover?", "default"),
            ("who burned her hand dressing the turkey", "default"),
            ("his new velvet coat", "default"),
            ("which folder may depend on tch", "project"),
        ];
        for (question, namespace) in questions {
            let result = self.ask(question, namespace)?;
            println!(
                "\n? {question}   [{:.1} ms, {:.0}% confident]",
                result.took_us as f64 / 1e3,
                result.confidence * 100.0
            );
            for hit in &result.hits {
                let origin = match (&hit.memory.origin.path, hit.memory.origin.lines) {
                    (Some(path), Some((first, last))) => {
                        format!("{}:{first}-{last}", path.rsplit('/').next().unwrap_or_default())
                    }
                    _ => format!("diary, {}", hit.memory.valid_from.date()),
                };
                println!("  {}\n    -- {origin}", around(&hit.memory.text, question));
            }
        }
        Ok(())
    }

    fn generate(&self) -> Result<wire::GenerateResult> {
        heading("Writing from memory");
        let params = wire::GenerateParams {
            prompt: Some(String::from("Up betimes, and by water to")),
            tokens_max: Some(40),
            namespace: Some("default".parse()?),
            memories_max: Some(3),
            memory_query: Some(String::from("by water to Whitehall and to my Lord")),
            temperature: 0.7,
            seed: 7,
            ..wire::GenerateParams::default()
        };
        let result = self.call::<methods::Generate>(params)?;
        println!("{}", result.text);
        let unsure = &result.uncertainty;
        println!(
            "  -- {} tokens in {} ms by {}, guided by {} memories",
            result.tokens.len(),
            result.took_ms,
            result.engine,
            result.memories.len()
        );
        println!(
            "  -- confidence {:.2}, ambiguity {:.2} nats a token, surprise ratio {:.2} (1 is calibrated): {}",
            unsure.confidence, unsure.ambiguity, unsure.surprise, unsure.verdict
        );
        let least = result.tokens.iter().min_by(|a, b| a.confidence.total_cmp(&b.confidence));
        if let Some(token) = least {
            println!("  -- least sure of {:?} ({:.2})", token.text, token.confidence);
        }
        Ok(result)
    }

    fn constrained(&self, fake: bool) -> Result<()> {
        heading("Filling a tool call under a JSON Schema");
        if fake {
            println!("left out: the stand-in engine knows no constraints");
            return Ok(());
        }
        let schema = serde_json::json!({
            "type": "object",
            "properties": {
                "tool": {"const": "remind"},
                "who": {"type": "string", "maxLength": 24},
                "hour": {"type": "integer", "minimum": 0, "maximum": 23},
                "urgent": {"type": "boolean"}
            },
            "required": ["tool", "who", "hour", "urgent"],
            "additionalProperties": false
        });
        let params = wire::GenerateParams {
            instruction: Some(String::from(
                "Remind Mr. Creed at 9 in the morning; it is urgent. Answer with the tool call.",
            )),
            tokens_max: Some(64),
            constraint: Some(wire::ConstraintParam::JsonSchema(schema)),
            ..wire::GenerateParams::default()
        };
        let result = self.call::<methods::Generate>(params)?;
        let text = result.fills.first().map(|fill| fill.trim()).unwrap_or_default();
        let parsed: serde_json::Value = serde_json::from_str(text)?;
        println!("{parsed}\n  -- parsed, in {} ms", result.took_ms);
        Ok(())
    }

    fn learn(&self, generation: &wire::GenerateResult) -> Result<()> {
        heading("Learning: the loop trains an adapter and decides whether it is any good");
        let params = wire::FeedbackParams {
            task: generation.task,
            verdict: wire::Verdict::Reject,
            correction: None,
            trust: None,
        };
        self.call::<methods::Feedback>(params)?;
        println!("the user rejected the text above; that is evidence, and training is asked for");
        let status = |story: &Self| story.call::<methods::EvolveStatus>(wire::EvolveStatusParams {});
        let before = Instant::now();
        while status(self)?.texts_waiting < 200 && before.elapsed() < TRAINING_PATIENCE {
            std::thread::sleep(POLL);
        }
        let ordered = self.call::<methods::EvolveRun>(wire::EvolveRunParams {})?;
        println!("{}: {}", ordered.state, ordered.message);
        let bar = ProgressBar::new(100);
        bar.set_style(ProgressStyle::with_template("{bar:40} {msg}")?);
        let decided = loop {
            let now = status(self)?;
            bar.set_position((now.progress.unwrap_or(0.0) * 100.0) as u64);
            bar.set_message(format!("{} {}", now.state, now.paused.as_deref().unwrap_or_default()));
            let log = self.call::<methods::EvolveLog>(wire::EvolveLogParams::default())?;
            let is_final = |row: &&wire::DecisionView| matches!(row.to.as_str(), "shadow" | "commit" | "reject");
            if let Some(row) = log.decisions.iter().find(is_final) {
                break Some(row.clone());
            }
            if before.elapsed() > TRAINING_PATIENCE {
                break None;
            }
            std::thread::sleep(POLL);
        };
        bar.finish_and_clear();
        let Some(row) = decided else {
            let now = status(self)?;
            return Err(format!("the loop did not decide in time: {} {:?}", now.state, now.paused).into());
        };
        println!("decision after {:.0} s: {} -> {}", before.elapsed().as_secs_f64(), row.from, row.to);
        println!("  {}", row.reason);
        for (name, value) in &row.numbers {
            println!("    {name} = {value:.4}");
        }
        println!(
            "an adapter in shadow is compared on the next real texts before it may serve; until then the base writes"
        );
        Ok(())
    }

    fn forget(&self) -> Result<()> {
        heading("Forgetting, and proving it");
        let params = wire::RememberParams {
            text: CANARY.to_owned(),
            trust: Some(mneme_base::TrustTier::User),
            ..wire::RememberParams::default()
        };
        let receipt = self.call::<methods::Remember>(params)?;
        let files = files_with(&self.home.join("state"), CANARY.as_bytes());
        println!("\"{CANARY}\" is remembered, and stands in {} file(s)", files.len());
        let select = wire::Selector::Ids(vec![receipt.id]);
        let before = Instant::now();
        let gone = self.call::<methods::Forget>(wire::ForgetParams { select, purge_now: true })?;
        let still = self.ask("where is the spare key to the cabinet", "default")?;
        let recalled = still.hits.iter().any(|hit| hit.memory.text == CANARY);
        let files = files_with(&self.home.join("state"), CANARY.as_bytes());
        println!(
            "forgotten and purged in {} ms (receipt: change {}); recall finds it: {}; files that hold it: {}",
            before.elapsed().as_millis(),
            gone.lsn,
            if recalled { "YES" } else { "no" },
            files.len()
        );
        if recalled || !files.is_empty() {
            return Err(format!("the promise was broken: recalled {recalled}, {files:?}").into());
        }
        Ok(())
    }

    fn end(&self, mut daemon: Running, started: Instant) -> Result<()> {
        heading("The end");
        let status = self.call::<methods::Status>(wire::StatusParams {})?;
        let stats = self.call::<methods::Stats>(wire::StatsParams {})?;
        println!(
            "{} memories, {} KiB on disk, daemon at {:.1} MiB resident, engine {}",
            stats.memories,
            stats.disk_bytes >> 10,
            status.rss_bytes as f64 / f64::from(1 << 20),
            status.engine
        );
        self.call::<methods::Drain>(wire::DrainParams {})?;
        let until = Instant::now() + Duration::from_secs(20);
        let code = loop {
            if let Some(code) = daemon.child.try_wait()? {
                break code;
            }
            if Instant::now() > until {
                return Err("the daemon did not end".into());
            }
            std::thread::sleep(POLL / 10);
        };
        if !code.success() {
            return Err(format!("the daemon ended with {code}").into());
        }
        println!("the daemon ended well; the story took {:.0} s", started.elapsed().as_secs_f64());
        println!("\nNext: 'mneme service start', then 'mneme remember ...', 'mneme recall ...'; the README says more.");
        Ok(())
    }
}

/// The part of a long entry that shares most words with the question.
fn around(text: &str, question: &str) -> String {
    const WORDS: usize = 36;
    let words: Vec<&str> = text.split_whitespace().collect();
    let normal = |word: &str| word.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase();
    let wanted: Vec<String> = question.split_whitespace().map(normal).filter(|word| word.len() > 3).collect();
    let score = |start: usize| {
        let window = &words[start..words.len().min(start + WORDS)];
        wanted.iter().filter(|word| window.iter().any(|other| normal(other) == **word)).count()
    };
    let last = words.len().saturating_sub(WORDS);
    let best = (0..=last).max_by_key(|start| (score(*start), std::cmp::Reverse(*start))).unwrap_or(0);
    let shown = words[best..words.len().min(best + WORDS)].join(" ");
    let before = if best > 0 { "… " } else { "" };
    let after = if best < last { " …" } else { "" };
    format!("{before}{shown}{after}")
}

/// Files below a folder that hold these bytes.
fn files_with(folder: &Path, needle: &[u8]) -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .filter_map(std::result::Result::ok)
        .flat_map(|entry| {
            let path = entry.path();
            if path.is_dir() {
                return files_with(&path, needle);
            }
            let bytes = fs_err::read(&path).unwrap_or_default();
            if bytes.windows(needle.len()).any(|window| window == needle) { vec![path] } else { Vec::new() }
        })
        .collect()
}
