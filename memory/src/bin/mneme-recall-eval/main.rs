//! Measures recall on chats with questions: one row per stage, cross-validated by chat.
//!
//! `mneme-recall-eval FOLDER [--embeddings FILE] [--write-texts FILE] [--write-candidates FILE] [--rerank-scores FILE] [--fit]`
//!
//! FOLDER holds `chat_*.json`. Stages that learn are trained on all chats but one and measured on that one. `--write-texts`
//! writes the texts to embed (a JSON string a line), `--embeddings` takes their vectors; `--write-candidates` writes the first
//! hits per question for a generator to score, `--rerank-scores` takes its scores. `--fit` prints weights learnt from all chats.

#![expect(clippy::print_stdout, reason = "a report on standard output is what this program is for")]

mod chats;
mod confidence;
mod learn;
mod metrics;
mod rerank;
mod stages;
mod vectors;

use std::path::PathBuf;
use std::process::ExitCode;

/// What the command line asks for.
#[derive(Debug, Default)]
struct Arguments {
    folder: PathBuf,
    embeddings: Option<PathBuf>,
    write_texts: Option<PathBuf>,
    write_candidates: Option<PathBuf>,
    rerank_scores: Option<PathBuf>,
    fit: bool,
}

fn main() -> ExitCode {
    match parse(std::env::args_os().skip(1)).and_then(|arguments| run(&arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = format!("error: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Arguments, Box<dyn std::error::Error>> {
    let mut parsed = Arguments::default();
    let mut rest = arguments;
    while let Some(argument) = rest.next() {
        let mut value = || rest.next().map(PathBuf::from).ok_or("an option lacks its value");
        match argument.to_str() {
            Some("--embeddings") => parsed.embeddings = Some(value()?),
            Some("--write-texts") => parsed.write_texts = Some(value()?),
            Some("--write-candidates") => parsed.write_candidates = Some(value()?),
            Some("--rerank-scores") => parsed.rerank_scores = Some(value()?),
            Some("--fit") => parsed.fit = true,
            Some(option) if option.starts_with("--") => return Err(format!("unknown option {option}").into()),
            _ => parsed.folder = argument.into(),
        }
    }
    if parsed.folder.as_os_str().is_empty() {
        return Err("usage: mneme-recall-eval FOLDER [--embeddings FILE] [--write-texts FILE] \
                    [--write-candidates FILE] [--rerank-scores FILE] [--fit]"
            .into());
    }
    Ok(parsed)
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn std::error::Error>> {
    let chats = chats::read_chats(&arguments.folder)?;
    let mut corpus = stages::Corpus::new(chats);
    if let Some(path) = &arguments.write_texts {
        let lines: Vec<String> = corpus.texts().iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        fs_err::write(path, lines.join("\n") + "\n")?;
        println!("wrote {} texts", lines.len());
        return Ok(());
    }
    if let Some(path) = &arguments.embeddings {
        corpus.set_embeddings(vectors::read_embeddings(path)?)?;
    }
    let passages = stages::report(&corpus, arguments.rerank_scores.as_deref(), arguments.fit)?;
    if let Some(path) = &arguments.write_candidates {
        fs_err::write(path, serde_json::to_vec(&passages)?)?;
    }
    confidence::report(&corpus, arguments.fit);
    Ok(())
}
