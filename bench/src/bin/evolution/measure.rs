//! The engine at work: scores of entries and training jobs, each measured once and kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mneme_base::{AdapterId, ContentHash, Embedding};
use mneme_bench::streams::Failure;
use mneme_engine_api::{
    AdapterLevel, AdapterUse, CancelToken, EmbedPurpose, Engine as _, EngineProcess, ProcessOptions, ScoreItem,
    TrainJob, TrainOutcome, TrainText,
};
use serde::{Deserialize, Serialize};

use crate::Arguments;
use crate::results::Results;
use crate::stream::{BaseTexts, Stream};

/// Entries of one call of the engine: what a kill costs.
const CALL_ENTRIES: usize = 4;
/// Entries of one embedding call.
const EMBED_ENTRIES: usize = 64;
/// Earlier entries that the retrieval arm puts before an entry, as the gate does.
const RETRIEVED: usize = 3;
/// Characters of one of them.
const RETRIEVED_CHARS: usize = 500;
/// A call of the engine on a busy machine.
const CALL_TIMEOUT: Duration = Duration::from_hours(1);
/// Linux counts processor time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// The budget is spent; what was measured stays.
#[derive(Debug, thiserror::Error)]
#[error("the budget of {0} CPU minutes is spent")]
pub(crate) struct BudgetSpent(f64);

/// An entry as an arm saw it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct EntryScore {
    /// Its place in the stream.
    pub(crate) entry: usize,
    /// Its length (characters).
    pub(crate) chars: u64,
    /// Its tokens.
    pub(crate) tokens: Vec<u32>,
    /// The log-probability of each (nats).
    pub(crate) log: Vec<f32>,
}

impl EntryScore {
    /// Its cost (bits).
    pub(crate) fn bits(&self) -> f64 {
        -self.log.iter().map(|log| f64::from(*log)).sum::<f64>() / std::f64::consts::LN_2
    }

    /// Its mean loss (nats a token).
    pub(crate) fn loss(&self) -> f64 {
        -self.log.iter().map(|log| f64::from(*log)).sum::<f64>() / self.log.len().max(1) as f64
    }
}

/// A trained adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Trained {
    /// Its job's name.
    pub(crate) name: String,
    /// Where it lies, below the job's folder.
    pub(crate) folder: PathBuf,
    /// The factor of its update.
    pub(crate) scale: f32,
}

impl Trained {
    /// As the engine takes it.
    pub(crate) fn in_use(&self) -> AdapterUse {
        AdapterUse { id: id_of(&self.name), folder: self.folder.display().to_string(), weight: 1.0, scale: self.scale }
    }

    /// Its name in the results.
    pub(crate) fn key(adapter: Option<&Self>) -> String {
        adapter.map_or_else(|| "base".to_owned(), |adapter| format!("{}@{}", adapter.name, adapter.scale))
    }
}

/// What a job learns and is judged on.
#[derive(Debug, Default)]
pub(crate) struct JobTexts {
    pub(crate) train: Vec<String>,
    pub(crate) held_out: Vec<String>,
    pub(crate) guard: Vec<String>,
    pub(crate) placebo: Vec<String>,
}

fn id_of(name: &str) -> AdapterId {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&ContentHash::of(name.as_bytes()).as_bytes()[..16]);
    AdapterId::from_bytes(bytes)
}

/// The engine, the stream and what was measured.
pub(crate) struct Bench<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) texts: &'a BaseTexts,
    pub(crate) results: &'a mut Results,
    engine: EngineProcess,
    folder: PathBuf,
    minutes: f64,
    seed: u64,
    steps: u32,
    vectors: Vec<Embedding>,
    /// Processor time of the engine that is accounted for.
    counted: f64,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(
        arguments: &Arguments,
        stream: &'a Stream,
        texts: &'a BaseTexts,
        results: &'a mut Results,
    ) -> Result<Self, Failure> {
        let own = std::env::current_exe()?;
        let beside = own.parent().ok_or("this program lies in no folder")?.join("mneme-engine");
        let program = arguments.engine.clone().unwrap_or(beside);
        if !program.is_file() {
            return Err(format!(
                "there is no engine at {}\nhint: cargo build --release -p mneme-engine, or --engine PROGRAM",
                program.display()
            )
            .into());
        }
        let options = ProcessOptions {
            arguments: vec!["--threads".into(), arguments.threads.to_string().into()],
            start_timeout: Duration::from_mins(5),
            call_timeout: CALL_TIMEOUT,
            ..ProcessOptions::new(program)
        };
        Ok(Self {
            stream,
            texts,
            results,
            engine: EngineProcess::new(options),
            folder: fs_err::canonicalize(&arguments.out)?,
            minutes: arguments.minutes,
            seed: arguments.seed,
            steps: arguments.steps,
            vectors: Vec::new(),
            counted: 0.0,
        })
    }

    fn check_budget(&self) -> Result<(), Failure> {
        if self.results.cpu_seconds() >= self.minutes * 60.0 {
            return Err(BudgetSpent(self.minutes).into());
        }
        Ok(())
    }

    /// Processor time of the serving engine since the last call of this.
    fn spent(&mut self) -> f64 {
        let stat = self.engine.pid().and_then(|pid| fs_err::read_to_string(format!("/proc/{pid}/stat")).ok());
        let ticks = stat.and_then(|stat| {
            let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
            Some(fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?)
        });
        let now = ticks.unwrap_or(0.0) / TICKS_PER_SECOND;
        let spent = (now - self.counted).max(0.0);
        self.counted = now;
        spent
    }

    /// Scores entries, each under its adapter, with nothing before them.
    pub(crate) fn score(
        &mut self,
        key: &str,
        entries: &[(usize, Option<Trained>)],
    ) -> Result<Vec<EntryScore>, Failure> {
        let item = |bench: &mut Self, entry: usize, adapter: Option<AdapterUse>| {
            let text = bench.stream.cut[entry].clone();
            Ok(vec![ScoreItem { adapter, detail: true, ..ScoreItem::new("", text) }])
        };
        self.score_items(key, entries, item)
    }

    /// Scores entries with similar earlier ones before them: the opening after what is like the entry before it, the rest
    /// after what is like the opening. Nothing is recalled by what is to be predicted.
    pub(crate) fn score_with_retrieval(
        &mut self,
        key: &str,
        entries: &[(usize, Option<Trained>)],
    ) -> Result<Vec<EntryScore>, Failure> {
        let item = |bench: &mut Self, entry: usize, adapter: Option<AdapterUse>| {
            let (opening, rest) = bench.stream.opening(entry);
            let before = bench.vector(entry.saturating_sub(1))?;
            let context = bench.recalled(entry, &before)?;
            let first = ScoreItem { adapter: adapter.clone(), detail: true, ..ScoreItem::new(context, opening) };
            if rest.is_empty() {
                return Ok(vec![first]);
            }
            let asked = bench.embed(&[opening.to_owned()])?.remove(0);
            let context = bench.recalled(entry, &asked)? + opening;
            Ok(vec![first, ScoreItem { adapter, detail: true, ..ScoreItem::new(context, rest) }])
        };
        self.score_items(key, entries, item)
    }

    fn score_items(
        &mut self,
        key: &str,
        entries: &[(usize, Option<Trained>)],
        mut items_of: impl FnMut(&mut Self, usize, Option<AdapterUse>) -> Result<Vec<ScoreItem>, Failure>,
    ) -> Result<Vec<EntryScore>, Failure> {
        if let Some(known) = self.results.get(key) {
            return Ok(known);
        }
        self.check_budget()?;
        let mut scores = Vec::new();
        for group in entries.chunks(CALL_ENTRIES) {
            let (mut items, mut of) = (Vec::new(), Vec::new());
            for (entry, adapter) in group {
                let own = items_of(self, *entry, adapter.as_ref().map(Trained::in_use))?;
                of.extend(vec![*entry; own.len()]);
                items.extend(own);
            }
            let outcomes = self.engine.score(&items, &CancelToken::with_deadline(CALL_TIMEOUT))?;
            for (entry, _) in group {
                let chars = self.stream.cut[*entry].chars().count() as u64;
                let mut score = EntryScore { entry: *entry, chars, tokens: Vec::new(), log: Vec::new() };
                for (_, outcome) in of.iter().zip(&outcomes).filter(|(of, _)| *of == entry) {
                    score.tokens.extend(outcome.detail.iter().map(|token| token.id));
                    score.log.extend(outcome.detail.iter().map(|token| token.log_likelihood));
                }
                scores.push(score);
            }
        }
        let spent = self.spent();
        self.results.put(key, &scores, spent)?;
        println!(
            "{key}: {} entries, {spent:.0} CPU s, {:.1} min in all",
            scores.len(),
            self.results.cpu_seconds() / 60.0
        );
        Ok(scores)
    }

    /// The vector of an entry; all entries are embedded at the first call.
    fn vector(&mut self, entry: usize) -> Result<Embedding, Failure> {
        if self.vectors.is_empty() {
            let path = self.folder.join("vectors.json");
            let known =
                fs_err::read(&path).ok().and_then(|bytes| serde_json::from_slice::<Vec<Embedding>>(&bytes).ok());
            self.vectors = if let Some(known) = known.filter(|known| known.len() == self.stream.cut.len()) {
                known
            } else {
                let all = self.embed(&self.stream.cut)?;
                fs_err::write(&path, serde_json::to_vec(&all)?)?;
                all
            };
        }
        self.vectors.get(entry).cloned().ok_or_else(|| format!("there is no entry {entry}").into())
    }

    fn embed(&self, texts: &[String]) -> Result<Vec<Embedding>, Failure> {
        let mut all = Vec::with_capacity(texts.len());
        for group in texts.chunks(EMBED_ENTRIES) {
            all.extend(self.engine.embed(group, EmbedPurpose::Document, &CancelToken::with_deadline(CALL_TIMEOUT))?);
        }
        Ok(all)
    }

    /// The earlier entries that are most like a vector, the most similar last.
    fn recalled(&mut self, before: usize, asked: &Embedding) -> Result<String, Failure> {
        self.vector(0)?;
        let earlier = self.vectors.iter().take(before).enumerate();
        let mut order: Vec<(usize, f32)> =
            earlier.map(|(index, vector)| (index, vector.cosine(asked).unwrap_or(0.0))).collect();
        order.sort_by(|a, b| b.1.total_cmp(&a.1).then(b.0.cmp(&a.0)));
        let texts = order.iter().take(RETRIEVED).rev().map(|(index, _)| {
            let text: String = self.stream.cut[*index].chars().take(RETRIEVED_CHARS).collect();
            format!("{text}\n\n")
        });
        Ok(texts.collect())
    }

    /// Runs a job, or takes what it gave before. Another scale judges the same adapter anew.
    pub(crate) fn train(
        &mut self,
        name: &str,
        parent: Option<&Trained>,
        scale: f32,
        texts: &JobTexts,
    ) -> Result<(Trained, TrainOutcome), Failure> {
        let folder = self.folder.join("adapters").join(name);
        let trained = Trained { name: name.to_owned(), folder: folder.clone(), scale };
        let key = format!("job/{name}@{scale}");
        if let Some(outcome) = self.results.get(&key) {
            return Ok((trained, outcome));
        }
        self.check_budget()?;
        let job = TrainJob {
            adapter: id_of(name),
            level: AdapterLevel::Lora,
            train: named("train", &texts.train),
            held_out: named("held-out", &texts.held_out),
            replay: named("replay", &self.texts.replay),
            guard: named("guard", &texts.guard),
            placebo: named("placebo", &texts.placebo),
            parent: parent.map(Trained::in_use),
            steps_max: self.steps,
            scale,
            seed: self.seed,
            folder: folder.display().to_string(),
        };
        let mut last = String::new();
        let mut observe = |event: mneme_engine_api::TrainEvent| {
            let line = format!("{name}: {} step {} of {}", event.phase, event.step, event.steps_total);
            if event.step.is_multiple_of(20) && line != last {
                println!("{line}, loss {:.3}", event.loss);
                last = line;
            }
        };
        let outcome = self.engine.train(&job, &mut observe, &CancelToken::with_deadline(CALL_TIMEOUT))?;
        self.results.put(&key, &outcome, outcome.cpu_seconds)?;
        println!("{key}: {:.0} CPU s, {:.1} min in all", outcome.cpu_seconds, self.results.cpu_seconds() / 60.0);
        Ok((trained, outcome))
    }

    /// Mean losses (nats a token) of texts under an adapter alone.
    pub(crate) fn losses(&mut self, key: &str, texts: &[String], adapter: &Trained) -> Result<Vec<f32>, Failure> {
        if let Some(known) = self.results.get(key) {
            return Ok(known);
        }
        self.check_budget()?;
        let mut losses = Vec::new();
        for group in texts.chunks(8) {
            let items: Vec<ScoreItem> = group
                .iter()
                .map(|text| ScoreItem { adapter: Some(adapter.in_use()), ..ScoreItem::new("", text.clone()) })
                .collect();
            let outcomes = self.engine.score(&items, &CancelToken::with_deadline(CALL_TIMEOUT))?;
            losses.extend(outcomes.iter().map(|o| (-o.log_likelihood / f64::from(o.tokens.max(1))) as f32));
        }
        let spent = self.spent();
        self.results.put(key, &losses, spent)?;
        Ok(losses)
    }

    /// The program and the folder, for arms that the engine's protocol has no call for.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

fn named(what: &str, texts: &[String]) -> Vec<TrainText> {
    let name = |(index, text): (usize, &String)| TrainText { memory: format!("{what}:{index}"), text: text.clone() };
    texts.iter().enumerate().map(name).collect()
}
