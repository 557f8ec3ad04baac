//! Retrieval quality with our own engine: embeds, scores the first hits by query likelihood, and prints the table of
//! `docs/benchmarks/retrieval.md` with the rerank's rows.
//!
//! `cargo xtask bench retrieval [--work FOLDER] [CHATS]`
//!
//! The ranking itself is measured by `mneme-recall-eval`, which lies beside this program (`cargo build --release -p mneme-memory
//! -p mneme-engine`). What the engine has made is kept in the work folder, vectors at once and likelihoods question by question, so
//! that a run that was ended goes on where it was, and one of more hits scores only those. At the end: how long the reranking of 30 and
//! of 50 hits took.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use mneme_base::ContentHash;
use mneme_bench::streams::{Failure, shared};
use mneme_engine_api::types::EMBED_TEXTS_MAX;
use mneme_engine_api::{CancelToken, EmbedPurpose, Engine as _, EngineProcess, ProcessOptions, ScoreItem};
use serde::{Deserialize, Serialize};

/// Hits that the daemon has judged (`rerank` of a recall); the others of a question are scored by a call of their own.
const SHIPPED_HITS: usize = 30;
/// Contexts that the daemon has judged of each hit: the first of them.
const SHIPPED_CONTEXTS: usize = 2;
/// Reading a question's hits takes seconds, loading models on a busy machine too.
const TIMEOUT: Duration = Duration::from_mins(10);
/// Questions between two lines of progress.
const PROGRESS: usize = 10;

/// Measures recall with the engine's vectors and its rerank.
#[derive(Debug, Parser)]
#[command(name = "retrieval")]
struct Arguments {
    /// The folder with `chat_*.json`.
    chats: Option<PathBuf>,
    /// Where vectors and likelihoods are kept.
    #[arg(long, default_value = "target/retrieval")]
    work: PathBuf,
    /// The engine's program; beside this one when it is not given.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// The engine's folder with models, when it does not find them itself.
    #[arg(long)]
    assets: Option<PathBuf>,
    /// Threads of the engine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Score only about this many questions, evenly spread; the others keep their order.
    #[arg(long)]
    questions: Option<usize>,
    /// Hits of a question that are scored, of 50.
    #[arg(long, default_value_t = 50)]
    hits: usize,
    /// Score contexts with the previous memory too, which the daemon does not.
    #[arg(long)]
    previous: bool,
}

/// A question and, for each of its first hits, what is read before it; written by `mneme-recall-eval`.
#[derive(Debug, Deserialize)]
struct Passages {
    /// By what its scores are found.
    key: String,
    question: String,
    contexts: Vec<Vec<String>>,
}

/// What the engine said of one question.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Scored {
    /// Of the passages.
    key: String,
    /// Log-likelihood per token of the question, for each hit after each of its contexts.
    scores: Vec<Vec<f32>>,
    /// How long the daemon's rerank of the first 30 took, and how long that of the hits behind them (milliseconds).
    took_ms: [f64; 2],
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let chats = arguments.chats.clone().unwrap_or_else(|| shared("eval/realtalk"));
    fs_err::create_dir_all(&arguments.work)?;
    let work = |name: &str| arguments.work.join(name);
    let engine = engine(arguments)?;
    evaluate(&chats, &[("--write-texts", &work("texts.jsonl"))], false)?;
    embed(&engine, &work("texts.jsonl"), &work("embeddings.bin"))?;
    let embeddings = work("embeddings.bin");
    evaluate(&chats, &[("--embeddings", &embeddings), ("--write-candidates", &work("candidates.json"))], false)?;
    let scored = score(arguments, &engine, &work("candidates.json"), &work("scores.jsonl"))?;
    evaluate(&chats, &[("--embeddings", &embeddings), ("--rerank-scores", &work("scores.jsonl"))], true)?;
    println!("\n| hits | questions | median ms | 95% ms |\n|---|---|---|---|");
    for (at, hits) in ["30", "50"].into_iter().enumerate() {
        let complete = scored.iter().filter(|scored| scored.took_ms[at] > 0.0);
        let mut took: Vec<f64> = complete.map(|scored| scored.took_ms[..=at].iter().sum()).collect();
        took.sort_by(f64::total_cmp);
        let quantile = |share: f64| took.get(((took.len() as f64 - 1.0) * share).round() as usize).copied();
        let [median, late] = [0.5, 0.95].map(|share| quantile(share).unwrap_or_default());
        println!("| {hits} | {} | {median:.0} | {late:.0} |", took.len());
    }
    Ok(())
}

/// A program beside this one.
fn beside(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let program = own.parent().ok_or("this program lies in no folder")?.join(name);
    if program.exists() { Ok(program) } else { Err(format!("{} does not exist", program.display()).into()) }
}

fn engine(arguments: &Arguments) -> Result<EngineProcess, Failure> {
    let program = arguments.engine.clone().map_or_else(|| beside("mneme-engine"), Ok)?;
    let mut options = ProcessOptions { call_timeout: TIMEOUT, start_timeout: TIMEOUT, ..ProcessOptions::new(program) };
    options.arguments.extend(["--threads".into(), arguments.threads.to_string().into()]);
    if let Some(assets) = &arguments.assets {
        options.arguments.extend(["--assets".into(), assets.into()]);
    }
    Ok(EngineProcess::new(options))
}

/// Runs `mneme-recall-eval` on the chats; what it prints is shown when it is wanted or when it failed.
fn evaluate(chats: &Path, options: &[(&str, &PathBuf)], shown: bool) -> Result<(), Failure> {
    let mut command = Command::new(beside("mneme-recall-eval")?);
    command.arg(chats);
    for (name, value) in options {
        command.arg(name).arg(value);
    }
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    if shown || !output.status.success() {
        println!("{}", said.trim_end());
    }
    if output.status.success() { Ok(()) } else { Err(format!("mneme-recall-eval ended with {}", output.status).into()) }
}

/// Embeds every line of `texts`, unless `out` is already of these texts and this engine.
fn embed(engine: &EngineProcess, texts: &Path, out: &Path) -> Result<(), Failure> {
    let bytes = fs_err::read(texts)?;
    let generation = engine.ensure_started()?.embedding_generation;
    let mark = format!("{generation} {}", ContentHash::of(&bytes));
    let marked = out.with_extension("of");
    if fs_err::read_to_string(&marked).is_ok_and(|found| found == mark) && out.exists() {
        return Ok(());
    }
    let texts: Vec<String> =
        String::from_utf8(bytes)?.lines().map(serde_json::from_str).collect::<Result<_, serde_json::Error>>()?;
    // Texts of one length go together, so that little is padded.
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|at| texts[*at].len());
    let mut vectors = vec![Vec::new(); texts.len()];
    for (done, group) in order.chunks(EMBED_TEXTS_MAX).enumerate() {
        let some: Vec<String> = group.iter().map(|at| texts[*at].clone()).collect();
        let made = engine.embed(&some, EmbedPurpose::Document, &CancelToken::with_deadline(TIMEOUT))?;
        for (at, vector) in group.iter().zip(made) {
            vectors[*at] = vector.as_slice().to_vec();
        }
        eprint!("\rembedded {} of {} texts", (done * EMBED_TEXTS_MAX + group.len()), texts.len());
    }
    eprintln!();
    let dimensions = vectors.first().map_or(0, Vec::len);
    let mut file = std::io::BufWriter::new(fs_err::File::create(out)?);
    writeln!(file, "{}", serde_json::json!({"dimensions": dimensions, "rows": vectors.len()}))?;
    for value in vectors.iter().flatten() {
        file.write_all(&value.to_le_bytes())?;
    }
    file.flush()?;
    fs_err::write(marked, mark)?;
    Ok(())
}

/// Scores what `out` has not yet of every question; gives what there is of those that are wanted.
fn score(arguments: &Arguments, engine: &EngineProcess, candidates: &Path, out: &Path) -> Result<Vec<Scored>, Failure> {
    let all: Vec<Passages> = serde_json::from_slice(&fs_err::read(candidates)?)?;
    let step = arguments.questions.map_or(1, |wanted| (all.len() / wanted.max(1)).max(1));
    let mut known = read_scored(out)?;
    let mut file = fs_err::OpenOptions::new().create(true).append(true).open(out)?;
    // In an order that has nothing to do with the chats: what there is of a run that was ended is of all of them.
    let mut wanted: Vec<&Passages> = all.iter().step_by(step).collect();
    wanted.sort_by(|a, b| a.key.cmp(&b.key));
    let (began, mut fresh) = (Instant::now(), 0_usize);
    for (done, passages) in wanted.iter().enumerate() {
        let scored = known
            .entry(passages.key.clone())
            .or_insert_with(|| Scored { key: passages.key.clone(), ..Scored::default() });
        if !complete(arguments, engine, passages, scored)? {
            continue;
        }
        writeln!(file, "{}", serde_json::to_string(&scored)?)?;
        fresh += 1;
        if fresh.is_multiple_of(PROGRESS) {
            let each = began.elapsed().as_secs_f64() / fresh as f64;
            let left = each * (wanted.len() - done - 1) as f64 / 60.0;
            eprintln!("scored {} of {} questions, {each:.1} s each, {left:.0} min left", done + 1, wanted.len());
        }
    }
    Ok(wanted.iter().filter_map(|passages| known.remove(&passages.key)).collect())
}

/// What is in the file, the last line of each question; a line that a kill cut short is dropped.
fn read_scored(path: &Path) -> Result<HashMap<String, Scored>, Failure> {
    if !path.exists() {
        return Ok(HashMap::new());
    }
    let mut text = fs_err::read_to_string(path)?;
    if !text.ends_with('\n') {
        text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        fs_err::write(path, &text)?;
    }
    let line = |line| serde_json::from_str(line).map(|scored: Scored| (scored.key.clone(), scored));
    Ok(text.lines().map(line).collect::<Result<_, _>>()?)
}

/// Scores what a question lacks. Says whether that was anything.
fn complete(
    arguments: &Arguments,
    engine: &EngineProcess,
    passages: &Passages,
    scored: &mut Scored,
) -> Result<bool, Failure> {
    let likelihoods = |contexts: &[&String]| -> Result<Vec<f32>, Failure> {
        let items: Vec<ScoreItem> =
            contexts.iter().map(|context| ScoreItem::new(*context, passages.question.clone())).collect();
        let outcomes = engine.score(&items, &CancelToken::with_deadline(TIMEOUT))?;
        Ok(outcomes.iter().map(|one| (one.log_likelihood / f64::from(one.tokens.max(1))) as f32).collect())
    };
    let hits = &passages.contexts[..passages.contexts.len().min(arguments.hits)];
    let before = scored.scores.iter().map(Vec::len).sum::<usize>();
    for (part, end) in [SHIPPED_HITS.min(hits.len()), hits.len()].into_iter().enumerate() {
        let contexts: Vec<&String> =
            hits[..end].iter().skip(scored.scores.len()).flat_map(|hit| &hit[..SHIPPED_CONTEXTS]).collect();
        if !contexts.is_empty() {
            let began = Instant::now();
            let found = likelihoods(&contexts)?;
            scored.scores.extend(found.chunks(SHIPPED_CONTEXTS).map(<[f32]>::to_vec));
            scored.took_ms[part] = began.elapsed().as_secs_f64() * 1e3;
        }
    }
    if arguments.previous {
        let lacking: Vec<usize> = (0..hits.len()).filter(|hit| scored.scores[*hit].len() == SHIPPED_CONTEXTS).collect();
        let contexts: Vec<&String> = lacking.iter().filter_map(|hit| hits[*hit].get(SHIPPED_CONTEXTS)).collect();
        if !contexts.is_empty() {
            for (hit, found) in lacking.into_iter().zip(likelihoods(&contexts)?) {
                scored.scores[hit].push(found);
            }
        }
    }
    Ok(scored.scores.iter().map(Vec::len).sum::<usize>() > before)
}
