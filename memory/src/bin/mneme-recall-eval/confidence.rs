//! How well the confidence tells questions that the memory can answer from those it cannot.
//!
//! Every question is asked to its own chat (can be answered) and to the next one, with the names of that chat's speakers put in
//! (cannot, but for chance). The estimate is fit on all chats but one and measured on that one.

use mneme_base::{Embedding, Timestamp};

use crate::learn::{dot, logistic, sigmoid};
use crate::stages::Corpus;
use mneme_memory::RecallQuery;

/// The L2 penalty of the fit.
const PENALTY: f64 = 1e-4;

struct Case {
    chat: usize,
    features: Vec<f64>,
    answerable: bool,
    shipped: f64,
}

/// Prints the figures, for answers with and without vectors.
pub(crate) fn report(corpus: &Corpus, fit: bool) {
    println!(
        "\n| confidence | AUC | Brier (base rate .250) | abstains on unanswerable | abstains on answerable | shipped: AUC | Brier |"
    );
    println!("|---|---|---|---|---|---|---|");
    let modes: &[bool] = if corpus.dense { &[true, false] } else { &[false] };
    for dense in modes {
        let cases = cases(corpus, *dense);
        let estimates = cross_validated(&cases);
        let shipped: Vec<f64> = cases.iter().map(|case| case.shipped).collect();
        let rate = |answerable: bool| {
            let of: Vec<bool> = cases
                .iter()
                .zip(&estimates)
                .filter(|(c, _)| c.answerable == answerable)
                .map(|(_, e)| *e < 0.35)
                .collect();
            of.iter().filter(|below| **below).count() as f64 / of.len().max(1) as f64
        };
        println!(
            "| {} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
            if *dense { "with vectors" } else { "text only" },
            auc(&cases, &estimates),
            brier(&cases, &estimates),
            rate(false),
            rate(true),
            auc(&cases, &shipped),
            brier(&cases, &shipped),
        );
        if fit {
            let rows: Vec<(Vec<f64>, bool)> =
                cases.iter().map(|case| (case.features.clone(), case.answerable)).collect();
            println!("weights (features, bias): {:.3?}", logistic(&rows, PENALTY));
        }
    }
}

fn cases(corpus: &Corpus, dense: bool) -> Vec<Case> {
    let count = corpus.chats.len();
    let mut cases = Vec::new();
    for (asked, indexed) in corpus.chats.iter().enumerate() {
        for (number, question) in indexed.chat.questions.iter().enumerate() {
            let embedding = indexed.questions.get(number).map(|pair| &pair.1).filter(|_| dense);
            for (target, answerable) in [(asked, true), ((asked + 1) % count, false)] {
                let text =
                    if answerable { question.text.clone() } else { readdress(corpus, asked, target, &question.text) };
                let (features, shipped) = features(corpus, target, &text, embedding, indexed.chat.end);
                cases.push(Case { chat: asked, features, answerable, shipped });
            }
        }
    }
    cases
}

/// Puts the names of the other chat's speakers in the place of this one's.
fn readdress(corpus: &Corpus, from: usize, to: usize, text: &str) -> String {
    let names = |chat: usize| {
        let mut names: Vec<String> = Vec::new();
        for name in corpus.chats[chat].chat.memories.iter().filter_map(|memory| memory.speaker.clone()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort();
        names
    };
    let mut text = text.to_owned();
    let pairs: Vec<(String, String)> = names(from).into_iter().zip(names(to)).collect();
    // Two passes, so that a name that both chats have is not replaced twice.
    for (at, (old, _)) in pairs.iter().enumerate() {
        let capital = capitalise(old);
        text = text.replace(old, &format!("\u{1}{at}\u{1}")).replace(&capital, &format!("\u{1}{at}\u{1}"));
    }
    for (at, (_, new)) in pairs.iter().enumerate() {
        text = text.replace(&format!("\u{1}{at}\u{1}"), &capitalise(new));
    }
    text
}

fn capitalise(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn features(
    corpus: &Corpus,
    target: usize,
    text: &str,
    embedding: Option<&Embedding>,
    end: Timestamp,
) -> (Vec<f64>, f64) {
    let indexed = &corpus.chats[target];
    let mut query = RecallQuery::new(indexed.chat.memories[0].namespace.clone(), text, 10);
    query.reference_time = Some(end);
    let (features, confidence) =
        indexed.index.confidence(&query, embedding, end).expect("the question is in its bounds");
    (features.inputs().iter().map(|x| f64::from(*x)).collect(), f64::from(confidence))
}

fn cross_validated(cases: &[Case]) -> Vec<f64> {
    let chats = cases.iter().map(|case| case.chat).max().map_or(0, |last| last + 1);
    let weights: Vec<Vec<f64>> = (0..chats)
        .map(|held_out| {
            let rest = cases.iter().filter(|case| case.chat != held_out);
            let rows: Vec<(Vec<f64>, bool)> = rest.map(|case| (case.features.clone(), case.answerable)).collect();
            logistic(&rows, PENALTY)
        })
        .collect();
    let estimate = |case: &Case| {
        let row: Vec<f64> = case.features.iter().copied().chain([1.0]).collect();
        sigmoid(dot(&weights[case.chat], &row))
    };
    cases.iter().map(estimate).collect()
}

/// The probability that an answerable case is estimated above an unanswerable one.
fn auc(cases: &[Case], estimates: &[f64]) -> f64 {
    let of = |answerable: bool| -> Vec<f64> {
        cases.iter().zip(estimates).filter(|(case, _)| case.answerable == answerable).map(|(_, e)| *e).collect()
    };
    let (yes, no) = (of(true), of(false));
    let wins: f64 = yes
        .iter()
        .map(|y| {
            no.iter()
                .map(|n| {
                    if y > n {
                        1.0
                    } else if (y - n).abs() < 1e-12 {
                        0.5
                    } else {
                        0.0
                    }
                })
                .sum::<f64>()
        })
        .sum();
    wins / (yes.len() * no.len()).max(1) as f64
}

/// The mean squared error of the probabilities.
fn brier(cases: &[Case], estimates: &[f64]) -> f64 {
    let errors = cases.iter().zip(estimates).map(|(case, e)| (f64::from(u8::from(case.answerable)) - e).powi(2));
    errors.sum::<f64>() / cases.len().max(1) as f64
}
