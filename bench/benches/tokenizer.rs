//! FastTokenizer against the `tokenizers` crate in one process, and (with `serve`) call by call against peers in Python.
//!
//! `cargo xtask bench tokenizer` runs both on the models that set-up fetched, with the Python of `MNEME_BENCH_PYTHON` (or
//! `~/.cache/mneme/venv-bench`). `... -- CORPUS TOKENIZER...` prints rates and ratios against the crate; `CORPUS` is a text file,
//! `TOKENIZER` a `tokenizer.json` or a GGUF file. `... -- serve` reads `load CORPUS TOKENIZER`, `run batch`, `run one` (whole
//! corpus as one text) and `ids FILE` from standard input, so that `bench/peers/tokenizer.py` alternates calls in one run.

#![expect(clippy::print_stdout, reason = "a bench prints its figures")]

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use mneme_text::{EncodeOptions, FastTokenizer, Vocabulary};
use mneme_weights::GgufFile;

/// Rounds whose minimum, median and maximum are reported.
const ROUNDS: usize = 9;
/// Texts of a batch are cut from the corpus at line breaks, about a paragraph each (bytes).
const TEXT_BYTES: usize = 1_000;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.split_first() {
        Some((mode, _)) if mode == "serve" => serve(),
        Some((corpus, tokenizers)) if !tokenizers.is_empty() => table(corpus, tokenizers),
        _ => peers(),
    }
}

/// Lets `bench/peers/tokenizer.py` make corpus and tokenizers and compare, then compares with the crate on the same.
fn peers() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let python = std::env::var_os("MNEME_BENCH_PYTHON")
        .map_or_else(|| home.join(".cache/mneme/venv-bench/bin/python"), PathBuf::from);
    let models = root.join(".assets/models");
    let found = [models.join("smollm2-135m-instruct/smollm2.gguf"), models.join("all-MiniLM-L6-v2/tokenizer.json")];
    if !python.is_file() || found.iter().any(|file| !file.is_file()) {
        println!(
            "skipped: needs the models ('cargo xtask setup') and a Python with tokenizers, gguf and regex at {}",
            python.display()
        );
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let corpus = folder.path().join("corpus.txt");
    let unigram = folder.path().join("unigram.json");
    let mut command = Command::new(python);
    command
        .arg(root.join("bench/peers/tokenizer.py"))
        .arg(std::env::current_exe()?)
        .arg(&corpus)
        .args(&found)
        .arg(&unigram);
    if !command.status()?.success() {
        bail!("bench/peers/tokenizer.py failed");
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    println!("\nagainst the crate, in one process:");
    table(&text(&corpus), &[text(&found[1]), text(&unigram)])
}

fn load(path: &str) -> anyhow::Result<FastTokenizer> {
    let path = Path::new(path);
    if path.extension().is_some_and(|extension| extension == "json") {
        return Ok(FastTokenizer::from_json(&fs_err::read(path)?)?);
    }
    let file = GgufFile::open(path)?;
    let parts = file.vocabulary()?.context("the file has no vocabulary")?;
    Ok(FastTokenizer::from_vocabulary(&Vocabulary {
        model: &parts.model,
        pre_tokenizer: parts.pre_tokenizer.as_deref(),
        tokens: &parts.tokens,
        merges: &parts.merges,
        token_types: &parts.token_types,
        scores: &parts.scores,
        bos_id: parts.bos_id,
        eos_id: parts.eos_id,
        add_bos: parts.add_bos,
        add_eos: parts.add_eos,
        add_space_prefix: parts.add_space_prefix,
    })?)
}

/// Cuts at the first line break after each [`TEXT_BYTES`].
fn texts(corpus: &str) -> Vec<&str> {
    let mut texts = Vec::new();
    let mut start = 0;
    for (at, _) in corpus.match_indices('\n') {
        if at + 1 - start >= TEXT_BYTES {
            texts.push(&corpus[start..=at]);
            start = at + 1;
        }
    }
    if start < corpus.len() {
        texts.push(&corpus[start..]);
    }
    texts
}

fn seconds<T>(call: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = call();
    (start.elapsed().as_secs_f64(), result)
}

fn table(corpus: &str, paths: &[String]) -> anyhow::Result<()> {
    let corpus = fs_err::read_to_string(corpus)?;
    let texts = texts(&corpus);
    println!("{} bytes in {} texts, {} threads, {ROUNDS} rounds, alternating", corpus.len(), texts.len(), threads());
    for path in paths.iter().filter(|path| Path::new(path).extension().is_some_and(|ending| ending == "json")) {
        let ours = load(path)?;
        let mut raw = tokenizers::Tokenizer::from_bytes(fs_err::read(path)?).map_err(anyhow::Error::from_boxed)?;
        raw.with_padding(None);
        raw.with_truncation(None).map_err(anyhow::Error::from_boxed)?;
        raw.set_encode_special_tokens(true);
        let mut ratios = Vec::new();
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let (raw_seconds, encodings) = seconds(|| raw.encode_batch_fast(texts.clone(), false));
            let encodings = encodings.map_err(anyhow::Error::from_boxed)?;
            let (our_seconds, ids) = seconds(|| ours.encode_batch_ids(&texts, EncodeOptions::default()));
            if !encodings.iter().map(tokenizers::Encoding::get_ids).eq(ids?.iter().map(Vec::as_slice)) {
                bail!("ids differ for {path}");
            }
            ratios.push(raw_seconds / our_seconds);
            rates.push(corpus.len() as f64 / 1e6 / our_seconds);
        }
        println!("{path}\n  batch: {} MB/s, {} times the crate's own rate", spread(rates), spread(ratios));
    }
    Ok(())
}

/// `median (min-max)`.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    format!("{:.2} ({:.2}-{:.2})", values[values.len() / 2], values[0], values[values.len() - 1])
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn serve() -> anyhow::Result<()> {
    let mut loaded: Option<(String, FastTokenizer)> = None;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split('\t').collect();
        let answer = match (words.as_slice(), &loaded) {
            (["load", corpus, tokenizer], _) => {
                let (seconds, tokenizer) = seconds(|| load(tokenizer));
                loaded = Some((fs_err::read_to_string(corpus)?, tokenizer?));
                seconds
            }
            (["run", "batch"], Some((corpus, tokenizer))) => {
                let texts = texts(corpus);
                let (seconds, ids) = seconds(|| tokenizer.encode_batch_ids(&texts, EncodeOptions::default()));
                ids?;
                seconds
            }
            (["run", "one"], Some((corpus, tokenizer))) => {
                let (seconds, ids) = seconds(|| tokenizer.encode(corpus));
                ids?;
                seconds
            }
            (["ids", file], Some((corpus, tokenizer))) => {
                let ids = tokenizer.encode(corpus)?;
                fs_err::write(file, ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>())?;
                ids.len() as f64
            }
            _ => bail!("not a request: {line:?}"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}
