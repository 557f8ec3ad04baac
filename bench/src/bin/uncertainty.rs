//! Which of the model's signals follows what people are unsure about: cloze answers of up to 40 people for each next word
//! (Provo corpus) against the model's distributions of the same next word.
//!
//! `cargo xtask bench uncertainty [--engine PROGRAM] [FILE]`
//!
//! People's uncertainty is the entropy of their answers. For each signal: Pearson and Spearman with 95% intervals of a
//! bootstrap over passages (words of one passage are not independent), and the area under the ROC curve for the words on
//! which fewer than half of the people agree. The last row is a ridge regression on all signals, fitted on the other passages.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use mneme_bench::streams::{Failure, shared};
use mneme_engine_api::{CancelToken, Engine as _, EngineProcess, ProcessOptions, ScoreItem, ScoredToken};
use mneme_evolution::random::Random;

/// Resamples of passages.
const RESAMPLES: usize = 2_000;
/// Items of one call of the engine.
const CALL_ITEMS: usize = 64;
/// Words of the shortened contexts.
const SHORT_WORDS: [usize; 3] = [3, 8, 20];
/// What is put before the passage to see whether the answer depends on it.
const FRAMES: [&str; 3] = [
    "From a magazine article:\n\n",
    "Reading comprehension. Passage:\n\n",
    "Complete the sentence with the word that comes to mind first.\n\n",
];
/// Weight of the penalty, for standardised signals.
const RIDGE: f64 = 30.0;
/// A larger file is no cloze corpus (bytes).
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Reading it all takes seconds.
const TIMEOUT: Duration = Duration::from_mins(10);

/// Compares the model's uncertainty with people's.
#[derive(Debug, Parser)]
#[command(name = "uncertainty")]
struct Arguments {
    /// Lines of `{"passage", "context", "next_word", "human": [[word, count], ...]}`.
    file: Option<PathBuf>,
    /// The engine's program; beside this one when it is not given.
    #[arg(long)]
    engine: Option<PathBuf>,
    /// Threads of the engine.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Seed of the bootstrap.
    #[arg(long, default_value_t = 1)]
    seed: u64,
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

/// One next word.
#[derive(Debug, serde::Deserialize)]
struct Word {
    passage: u32,
    context: String,
    #[serde(rename = "next_word")]
    next: String,
    human: Vec<(Option<String>, f64)>,
}

impl Word {
    /// Entropy of people's answers (nats).
    fn entropy(&self) -> f64 {
        let total: f64 = self.human.iter().map(|(_, count)| count).sum();
        -self.human.iter().map(|(_, count)| count / total).filter(|p| *p > 0.0).map(|p| p * p.ln()).sum::<f64>()
    }

    /// Whether fewer than half of the people give the commonest answer.
    fn divides(&self) -> bool {
        let total: f64 = self.human.iter().map(|(_, count)| count).sum();
        self.human.iter().map(|(_, count)| *count).fold(0.0, f64::max) < 0.5 * total
    }
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = arguments.file.clone().unwrap_or_else(|| shared("eval/provo/cloze_dev.jsonl"));
    let words = read(&file)?;
    let own = std::env::current_exe()?;
    let beside = own.parent().ok_or("this program lies in no folder")?.join("mneme-engine");
    let program = arguments.engine.clone().unwrap_or(beside);
    let threads = vec!["--threads".into(), arguments.threads.to_string().into()];
    let options = ProcessOptions {
        arguments: threads,
        call_timeout: TIMEOUT,
        start_timeout: TIMEOUT,
        ..ProcessOptions::new(program)
    };
    let engine = EngineProcess::new(options);
    let signals = signals(&engine, &words)?;
    let human: Vec<f64> = words.iter().map(Word::entropy).collect();
    let divides: Vec<bool> = words.iter().map(Word::divides).collect();
    let passages = groups(&words);
    println!(
        "{} words of {} passages; people disagree on {}",
        words.len(),
        passages.len(),
        divides.iter().filter(|d| **d).count()
    );
    println!("\n| signal | Pearson | Spearman | AUROC |\n|---|---|---|---|");
    for (name, values) in &signals {
        row(name, values, &human, &divides, &passages, arguments.seed);
    }
    let columns: Vec<&Vec<f64>> = signals.values().collect();
    row(
        "combination, cross-validated by passage",
        &crossed(&columns, &human, &passages),
        &human,
        &divides,
        &passages,
        arguments.seed,
    );
    Ok(())
}

fn read(path: &Path) -> Result<Vec<Word>, Failure> {
    if fs_err::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(format!("{} has more than {FILE_BYTES_MAX} bytes", path.display()).into());
    }
    // The corpus writes an answer that is missing as a number that is none, which JSON does not have.
    let text = fs_err::read_to_string(path)?.replace("[NaN,", "[null,");
    let words: Vec<Word> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let usable = |word: &Word| word.human.iter().map(|(_, count)| *count).sum::<f64>() >= 2.0 && !word.next.is_empty();
    let words: Vec<Word> = words.into_iter().filter(usable).collect();
    if groups(&words).len() < 3 {
        return Err(format!("{} has fewer than 3 passages", path.display()).into());
    }
    Ok(words)
}

/// Which words belong to each passage.
fn groups(words: &[Word]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, word) in words.iter().enumerate() {
        groups.entry(word.passage).or_default().push(index);
    }
    groups.into_values().collect()
}

/// Scores the next word after a context; what counts is the distribution that its first token was drawn from.
fn scored(engine: &EngineProcess, items: Vec<(String, String)>) -> Result<Vec<Vec<ScoredToken>>, Failure> {
    let mut all = Vec::with_capacity(items.len());
    for group in items.chunks(CALL_ITEMS) {
        let items: Vec<ScoreItem> =
            group.iter().map(|(context, text)| ScoreItem { detail: true, ..ScoreItem::new(context, text) }).collect();
        let outcomes = engine.score(&items, &CancelToken::with_deadline(TIMEOUT))?;
        all.extend(outcomes.into_iter().map(|outcome| outcome.detail));
    }
    if all.iter().any(Vec::is_empty) {
        return Err("the engine gave a word no token".into());
    }
    Ok(all)
}

fn signals(engine: &EngineProcess, words: &[Word]) -> Result<BTreeMap<&'static str, Vec<f64>>, Failure> {
    let after = |context: &dyn Fn(&Word) -> String| -> Result<Vec<Vec<ScoredToken>>, Failure> {
        scored(engine, words.iter().map(|word| (context(word), format!(" {}", word.next))).collect())
    };
    let full = after(&|word| word.context.clone())?;
    let first = |all: &[Vec<ScoredToken>], of: &dyn Fn(&ScoredToken) -> f64| -> Vec<f64> {
        all.iter().map(|tokens| tokens.first().map_or(0.0, of)).collect()
    };
    let entropy = |token: &ScoredToken| f64::from(token.entropy);
    let residual = |token: &ScoredToken| 1.0 - f64::from(token.log_likelihood).exp();
    let mut signals = BTreeMap::from([
        ("ambiguity: entropy", first(&full, &entropy)),
        ("ambiguity: Gini index", first(&full, &|token| 1.0 - f64::from(token.agreement))),
        ("ambiguity: -ln of the likeliest", first(&full, &|token| -f64::from(token.top.max(1e-9)).ln())),
        ("ambiguity: collision entropy", first(&full, &|token| -f64::from(token.agreement.max(1e-9)).ln())),
        ("surprise: residual", first(&full, &residual)),
        (
            "surprise: -ln of the word",
            full.iter().map(|tokens| -tokens.iter().map(|t| f64::from(t.log_likelihood)).sum::<f64>()).collect(),
        ),
        (
            "surprise ratio: residual over expected",
            first(&full, &|token| residual(token) / f64::from(1.0 - token.agreement).max(1e-3)),
        ),
    ]);
    let mut views = vec![first(&full, &entropy)];
    for frame in FRAMES {
        views.push(first(&after(&|word| format!("{frame}{}", word.context))?, &entropy));
    }
    let (mean, spread) = moments(&views);
    signals.insert("ambiguity: entropy, mean over framings", mean);
    signals.insert("disagreement of framings", spread);
    let names = ["ambiguity: after 3 words", "ambiguity: after 8 words", "ambiguity: after 20 words"];
    for (name, count) in names.into_iter().zip(SHORT_WORDS) {
        let short = |word: &Word| {
            let words: Vec<&str> = word.context.split(' ').collect();
            words[words.len().saturating_sub(count)..].join(" ")
        };
        signals.insert(name, first(&after(&short)?, &entropy));
    }
    let gained = signals["ambiguity: after 3 words"]
        .iter()
        .zip(&signals["ambiguity: entropy"])
        .map(|(short, full)| short - full);
    signals.insert("what the context tells", gained.collect());
    signals.insert(
        "place in the passage",
        words.iter().map(|word| (word.context.split(' ').count() as f64).ln()).collect(),
    );
    let ends = |word: &Word| f64::from(u8::from(word.context.ends_with(['.', ',', ';', ':', '?', '!', '"'])));
    signals.insert("after a stop", words.iter().map(ends).collect());
    let letters = |word: &Word| word.context.rsplit(' ').next().map_or(0, |last| last.chars().count()) as f64;
    signals.insert("length of the word before", words.iter().map(letters).collect());
    // A word is as hard as the words around it were, when the passage is about something that the model knows little of.
    let surprise = &signals["surprise: -ln of the word"];
    let before = (0..words.len()).map(|index| match index.checked_sub(1) {
        Some(last) if words[last].passage == words[index].passage => surprise[last],
        _ => 0.0,
    });
    let before: Vec<f64> = before.collect();
    signals.insert("surprise at the word before", before);
    Ok(signals)
}

fn moments(views: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
    let n = views.len() as f64;
    let words = views.first().map_or(0, Vec::len);
    let mean: Vec<f64> = (0..words).map(|word| views.iter().map(|view| view[word]).sum::<f64>() / n).collect();
    let deviation = |word: usize| (views.iter().map(|view| (view[word] - mean[word]).powi(2)).sum::<f64>() / n).sqrt();
    let spread = (0..words).map(deviation).collect();
    (mean, spread)
}

/// Predictions of a ridge regression, each passage by a fit on the others.
fn crossed(columns: &[&Vec<f64>], target: &[f64], passages: &[Vec<usize>]) -> Vec<f64> {
    let mut predicted = vec![0.0; target.len()];
    for held_out in passages {
        let rows: Vec<usize> = (0..target.len()).filter(|row| !held_out.contains(row)).collect();
        let fit = Ridge::fit(columns, target, &rows);
        for row in held_out {
            predicted[*row] = fit.predict(columns, *row);
        }
    }
    predicted
}

/// A linear fit with a penalty on the size of its coefficients, on standardised columns and their squares.
struct Ridge {
    means: Vec<f64>,
    deviations: Vec<f64>,
    coefficients: Vec<f64>,
    offset: f64,
}

impl Ridge {
    fn fit(columns: &[&Vec<f64>], target: &[f64], rows: &[usize]) -> Self {
        let n = rows.len() as f64;
        let mean = |column: &[f64]| rows.iter().map(|row| column[*row]).sum::<f64>() / n;
        let means: Vec<f64> = columns.iter().map(|column| mean(column)).collect();
        let deviation = |(column, mean): (&&Vec<f64>, &f64)| {
            (rows.iter().map(|row| (column[*row] - mean).powi(2)).sum::<f64>() / n).sqrt().max(1e-9)
        };
        let deviations: Vec<f64> = columns.iter().zip(&means).map(deviation).collect();
        let offset = mean(target);
        let mut fit = Self { means, deviations, coefficients: Vec::new(), offset };
        let features: Vec<Vec<f64>> = rows.iter().map(|row| fit.features(columns, *row)).collect();
        let width = features.first().map_or(0, Vec::len);
        let mut normal = vec![vec![0.0; width + 1]; width];
        for (features, row) in features.iter().zip(rows) {
            for a in 0..width {
                for b in 0..width {
                    normal[a][b] += features[a] * features[b];
                }
                normal[a][width] += features[a] * (target[*row] - offset);
            }
        }
        (0..width).for_each(|place| normal[place][place] += RIDGE);
        fit.coefficients = solve(normal);
        fit
    }

    fn features(&self, columns: &[&Vec<f64>], row: usize) -> Vec<f64> {
        let scaled = columns.iter().zip(&self.means).zip(&self.deviations);
        let scaled: Vec<f64> = scaled.map(|((column, mean), deviation)| (column[row] - mean) / deviation).collect();
        let squares: Vec<f64> = scaled.iter().map(|value| (value * value - 1.0).clamp(-1.0, 4.0)).collect();
        [scaled, squares].concat()
    }

    fn predict(&self, columns: &[&Vec<f64>], row: usize) -> f64 {
        self.offset + self.features(columns, row).iter().zip(&self.coefficients).map(|(f, c)| f * c).sum::<f64>()
    }
}

/// Solves a positive definite system, given with its right side as the last column, by elimination.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let width = rows.len();
    for pivot in 0..width {
        for other in pivot + 1..width {
            let factor = rows[other][pivot] / rows[pivot][pivot];
            let upper = rows[pivot].clone();
            rows[other].iter_mut().zip(&upper).skip(pivot).for_each(|(value, above)| *value -= factor * above);
        }
    }
    let mut solution = vec![0.0; width];
    for place in (0..width).rev() {
        let known: f64 = (place + 1..width).map(|later| rows[place][later] * solution[later]).sum();
        solution[place] = (rows[place][width] - known) / rows[place][place];
    }
    solution
}

fn row(name: &str, signal: &[f64], human: &[f64], divides: &[bool], passages: &[Vec<usize>], seed: u64) {
    let of = |measure: &dyn Fn(&[usize]) -> f64| {
        let all: Vec<usize> = passages.concat();
        let mut random = Random::new(seed);
        let mut draws: Vec<f64> = (0..RESAMPLES)
            .map(|_| {
                let drawn: Vec<usize> =
                    (0..passages.len()).flat_map(|_| passages[random.below(passages.len())].iter().copied()).collect();
                measure(&drawn)
            })
            .collect();
        draws.sort_by(f64::total_cmp);
        let tail = RESAMPLES / 40;
        format!("{:.3} [{:.3}, {:.3}]", measure(&all), draws[tail], draws[RESAMPLES - 1 - tail])
    };
    let pick = |values: &[f64], rows: &[usize]| -> Vec<f64> { rows.iter().map(|row| values[*row]).collect() };
    let pearson_of = |rows: &[usize]| pearson(&pick(signal, rows), &pick(human, rows));
    let spearman_of = |rows: &[usize]| pearson(&ranks(&pick(signal, rows)), &ranks(&pick(human, rows)));
    let auroc_of = |rows: &[usize]| {
        let labels: Vec<bool> = rows.iter().map(|row| divides[*row]).collect();
        auroc(&pick(signal, rows), &labels)
    };
    println!("| {name} | {} | {} | {} |", of(&pearson_of), of(&spearman_of), of(&auroc_of));
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().max(1) as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut both, mut own_a, mut own_b) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        both += (a - mean_a) * (b - mean_b);
        own_a += (a - mean_a).powi(2);
        own_b += (b - mean_b).powi(2);
    }
    if own_a * own_b > 0.0 { both / (own_a * own_b).sqrt() } else { 0.0 }
}

/// Ranks from 1; equal values share the mean of theirs.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let first = values[order[start]];
        let same = order[start..].iter().take_while(|row| values[**row].total_cmp(&first).is_eq()).count();
        for row in &order[start..start + same] {
            ranks[*row] = start as f64 + f64::midpoint(same as f64, 1.0);
        }
        start += same;
    }
    ranks
}

/// The probability that a divided word has the larger signal than an undivided one (Mann and Whitney).
fn auroc(values: &[f64], labels: &[bool]) -> f64 {
    let positives = labels.iter().filter(|label| **label).count() as f64;
    let negatives = labels.len() as f64 - positives;
    if positives * negatives == 0.0 {
        return 0.5;
    }
    let sum: f64 = ranks(values).iter().zip(labels).filter(|(_, label)| **label).map(|(rank, _)| rank).sum();
    (sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correlation_ranks_and_area_are_those_of_small_examples() {
        assert!((pearson(&[1.0, 2.0, 3.0], &[2.0, 4.0, 6.0]) - 1.0).abs() < 1e-12);
        assert_eq!(ranks(&[3.0, 1.0, 3.0, 0.0]), [3.5, 2.0, 3.5, 1.0]);
        assert!((auroc(&[0.9, 0.8, 0.1, 0.2], &[true, true, false, false]) - 1.0).abs() < 1e-12);
        assert!((auroc(&[1.0, 1.0], &[true, false]) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn the_fit_finds_a_linear_law_and_does_not_see_the_passage_that_it_predicts() {
        let mut random = Random::new(3);
        let column: Vec<f64> = (0..400).map(|_| random.normal()).collect();
        let noise: Vec<f64> = (0..400).map(|_| random.normal()).collect();
        let target: Vec<f64> = column.iter().map(|x| 2.0 * x + 1.0).collect();
        let passages: Vec<Vec<usize>> = (0..4).map(|passage| (passage * 100..(passage + 1) * 100).collect()).collect();
        assert!(pearson(&crossed(&[&column, &noise], &target, &passages), &target) > 0.99);
        assert!(pearson(&crossed(&[&noise], &target, &passages), &target).abs() < 0.2);
    }
}
