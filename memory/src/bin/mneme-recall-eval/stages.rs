//! The stages of the ranking, each as a row of figures.

use std::path::Path;

use mneme_base::{Embedding, MemoryId};
use mneme_memory::recall::features::{FEATURE_NAMES, FEATURES};
use mneme_memory::recall::{Method, RankingOptions, RerankFusion};
use mneme_memory::{IndexOptions, RecallIndex, RecallQuery, context_texts};

use crate::chats::{Chat, Question};
use crate::learn::{List, dot, listwise};
use crate::metrics::{Outcome, interval, mean};
use crate::rerank::{self, Judged, Passages, fused};

/// The L2 penalty of the ranking's weights, the same for every fold.
pub(crate) const PENALTY: f64 = 2e-3;
/// A ranking is followed to here.
const DEPTH: usize = 100;

/// Turns with their scores, best first.
pub(crate) type Ranking = Vec<(usize, f64)>;

/// A chat with its index and the vectors of its questions.
#[derive(Debug)]
pub(crate) struct Indexed {
    /// The chat.
    pub chat: Chat,
    /// Its turns, indexed.
    pub index: RecallIndex,
    /// Per question: the vector of the question as asked, and with its speakers addressed.
    pub questions: Vec<(Embedding, Embedding)>,
}

impl Indexed {
    fn query(&self, question: &Question, limit: usize) -> RecallQuery {
        let namespace = self.chat.memories[0].namespace.clone();
        let mut query = RecallQuery::new(namespace, &question.text, limit);
        query.reference_time = Some(self.chat.end);
        query
    }

    /// Turn numbers, best first.
    fn rank(&self, number: usize, embedding: Option<&Embedding>, limit: usize) -> Vec<usize> {
        let query = self.query(&self.chat.questions[number], limit);
        let found =
            self.index.recall(&query, embedding, self.chat.end, &|_| None).expect("the question is in its bounds");
        found.hits.iter().map(|hit| place(hit.id)).collect()
    }
}

/// The turn number that an id was made from.
pub(crate) fn place(id: MemoryId) -> usize {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&id.as_bytes()[8..]);
    u64::from_be_bytes(bytes) as usize
}

/// All chats.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// The chats.
    pub chats: Vec<Indexed>,
    /// Whether there are vectors.
    pub dense: bool,
}

impl Corpus {
    /// Indexes the chats, each in an index of its own.
    pub(crate) fn new(chats: Vec<Chat>) -> Self {
        let index = |chat: Chat| {
            let mut index = RecallIndex::new(IndexOptions::default());
            chat.memories.iter().for_each(|memory| index.upsert(memory));
            Indexed { chat, index, questions: Vec::new() }
        };
        Self { chats: chats.into_iter().map(index).collect(), dense: false }
    }

    /// Every text to embed: per chat the two texts of each turn, then the two texts of each question.
    pub(crate) fn texts(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for indexed in &self.chats {
            for memory in &indexed.chat.memories {
                let near: Vec<_> = indexed.index.neighbours(memory.id).into_iter().map(place).collect();
                let near: Vec<_> = near.into_iter().map(|at| indexed.chat.memories[at].clone()).collect();
                texts.extend(context_texts(memory, &near));
            }
            for question in &indexed.chat.questions {
                texts.push(question.text.clone());
                texts.push(indexed.index.embedding_text(&indexed.query(question, 10)));
            }
        }
        texts
    }

    /// Takes the vectors of [`Self::texts`].
    pub(crate) fn set_embeddings(&mut self, embeddings: Vec<Embedding>) -> Result<(), String> {
        let expected: usize = self.chats.iter().map(|c| 2 * (c.chat.memories.len() + c.chat.questions.len())).sum();
        if embeddings.len() != expected {
            return Err(format!("embeddings file has {} rows, the chats have {expected} texts", embeddings.len()));
        }
        let mut rows = embeddings.into_iter();
        let mut pair = || Some([rows.next()?, rows.next()?]);
        for indexed in &mut self.chats {
            for memory in &indexed.chat.memories {
                indexed.index.set_embeddings(memory.id, &pair().expect("the rows were counted"));
            }
            for _ in 0..indexed.chat.questions.len() {
                let [asked, addressed] = pair().expect("the rows were counted");
                indexed.questions.push((asked, addressed));
            }
        }
        self.dense = true;
        Ok(())
    }

    /// Ranks every question of every chat.
    fn rank_all(&self, rank: impl Fn(&Indexed, usize) -> Vec<usize>) -> Vec<Vec<usize>> {
        let questions =
            |indexed: &Indexed| (0..indexed.chat.questions.len()).map(|n| rank(indexed, n)).collect::<Vec<_>>();
        self.chats.iter().flat_map(questions).collect()
    }

    fn outcomes(&self, ranked: &[Vec<usize>]) -> Vec<Outcome> {
        let questions = self.chats.iter().flat_map(|c| c.chat.questions.iter().map(move |q| (q, &c.chat.sessions)));
        questions
            .zip(ranked)
            .map(|((question, sessions), ranking)| Outcome::of(ranking, &question.gold, sessions))
            .collect()
    }
}

/// A row of the table: a name and the ranking of every question.
struct Stage {
    name: String,
    outcomes: Vec<Outcome>,
    /// What its gain is told against, when that is not the row before.
    against: Option<Vec<Outcome>>,
}

/// Prints the table, with the rerank's rows where there are scores; gives what a generator reads of the last stage before them.
pub(crate) fn report(
    corpus: &Corpus,
    scores: Option<&Path>,
    fit: bool,
) -> Result<Vec<Passages>, Box<dyn std::error::Error>> {
    let mut stages = Vec::new();
    let mut add = |name: &str, ranked: &[Vec<usize>]| {
        stages.push(Stage { name: name.into(), outcomes: corpus.outcomes(ranked), against: None });
    };
    let plain = |rankings: &[&'static str], pick: fn(&(Embedding, Embedding)) -> &Embedding| {
        let options = IndexOptions {
            ranking: RankingOptions {
                method: Method::Reciprocal { rankings: rankings.to_vec(), k: 20.0 },
                ..RankingOptions::default()
            },
            ..IndexOptions::default()
        };
        corpus.rank_all(|indexed, number| {
            let embedding = indexed.questions.get(number).map(pick);
            let query = indexed.query(&indexed.chat.questions[number], DEPTH);
            let found = indexed.index.recall_with(&options.ranking, &query, embedding, indexed.chat.end, &|_| None);
            found.expect("the question is in its bounds").hits.iter().map(|hit| place(hit.id)).collect()
        })
    };
    add("BM25", &plain(&["bm25"], |pair| &pair.0));
    if corpus.dense {
        add("dense, question as asked", &plain(&["dense"], |pair| &pair.0));
        add("dense, speakers addressed", &plain(&["dense"], |pair| &pair.1));
        add("RRF(BM25, dense as asked)", &plain(&["bm25", "dense"], |pair| &pair.0));
        add("RRF(BM25, dense addressed)", &plain(&["bm25", "dense"], |pair| &pair.1));
        add("RRF + context views", &plain(&["bm25", "bm25_window", "dense", "dense_context"], |pair| &pair.1));
    }
    let lists = lists(corpus, corpus.dense);
    let steps: [(&str, &[&str]); 5] = [
        ("learned: BM25 + vectors", &["bm25.", "dense.cosine", "dense_context.", "shape.length"]),
        ("  + neighbours", &["bm25_window.", "dense.answer", "dense.near"]),
        ("  + time and speaker", &["time.", "speaker."]),
        ("  + two-stage (thread)", &["thread."]),
        ("  + what is asked for", &["shape."]),
    ];
    let mut prefixes: Vec<&str> = Vec::new();
    let mut ranked: Vec<Ranking> = Vec::new();
    for (name, more) in steps {
        prefixes.extend(more);
        let used = FEATURE_NAMES.map(|name| prefixes.iter().any(|prefix| name.starts_with(prefix)));
        ranked = cross_validated(&lists, &used);
        add(name, &turns(&ranked));
    }
    if corpus.dense {
        let text_lists = self::lists(corpus, false);
        let used = text_features();
        add("text only (engine away)", &turns(&cross_validated(&text_lists, &used)));
    }
    let shipped = corpus.rank_all(|c, n| c.rank(n, c.questions.get(n).map(|pair| &pair.1), DEPTH));
    add("shipped weights (fit on these chats)", &shipped);
    let passages = rerank::passages(corpus, &ranked);
    if let Some(path) = scores {
        let scores = rerank::read_scores(path, &passages)?;
        stages.extend(rerank_stages(corpus, &ranked, &scores));
    }
    print(&stages, corpus);
    if fit {
        let all: Vec<&List> = lists.iter().map(|l| &l.list).collect();
        print_weights("WITH_DENSE", &listwise(&all, &[true; FEATURES], PENALTY));
        let text = self::lists(corpus, false);
        let all: Vec<&List> = text.iter().map(|l| &l.list).collect();
        print_weights("TEXT_ONLY", &listwise(&all, &text_features(), PENALTY));
    }
    Ok(passages)
}

/// The rerank's rows, against the ranking that they put into another order.
fn rerank_stages(corpus: &Corpus, ranked: &[Ranking], scores: &[Vec<Vec<f32>>]) -> Vec<Stage> {
    let before = corpus.outcomes(&turns(ranked));
    let scored = scores.iter().filter(|scores| !scores.is_empty()).count();
    println!("likelihoods of {scored} questions' hits\n");
    let stage = |name: String, orders: &[Vec<usize>]| {
        let outcomes = corpus.outcomes(orders);
        let pairs = outcomes.iter().zip(&before);
        let gains: Vec<f64> = pairs.map(|(now, then)| now.reciprocal - then.reciprocal).collect();
        let (low, high) = interval(&gains);
        println!("{name}: gain in MRR {:+.3} [{low:+.3}, {high:+.3}]", mean(&gains));
        Stage { name, outcomes, against: Some(before.clone()) }
    };
    let fixed = |name: &str, fusion: RerankFusion| {
        let order = |(ranking, scores): (&Ranking, &Vec<Vec<f32>>)| fused(ranking, scores, rerank::SHIPPED, fusion);
        stage(name.into(), &ranked.iter().zip(scores).map(order).collect::<Vec<_>>())
    };
    let mut rows = vec![
        fixed("+ rerank of 30 (k 10, weight .5)", RerankFusion { k: 10.0, weight: 0.5 }),
        fixed("+ rerank of 30, shipped", RerankFusion::default()),
    ];
    let questions: Vec<(usize, &Question, &[u32])> = (0..)
        .zip(&corpus.chats)
        .flat_map(|(number, c)| c.chat.questions.iter().map(move |q| (number, q, c.chat.sessions.as_slice())))
        .collect();
    let chats: Vec<usize> = questions.iter().map(|(chat, ..)| *chat).collect();
    let judge = |number: usize, order: &[usize]| {
        let outcome = Outcome::of(order, &questions[number].1.gold, questions[number].2);
        outcome.recall + outcome.reciprocal
    };
    let judged = [
        ("+ rerank of 30, own text alone", Judged { contexts: [0, 0], ..rerank::SHIPPED }),
        ("+ rerank of 30", rerank::SHIPPED),
        ("+ rerank of 30, with the turn before", Judged { contexts: [0, 2], ..rerank::SHIPPED }),
        ("+ rerank of 50", Judged { hits: 50, ..rerank::SHIPPED }),
    ];
    for (name, judged) in judged {
        let has = |scores: &[Vec<f32>]| {
            scores.len() > rerank::SHIPPED_HITS.min(judged.hits - 1)
                && scores.iter().take(judged.hits).all(|hit| judged.contexts.iter().all(|at| *at < hit.len()))
        };
        // Without the scores that it is about, a row would only repeat another.
        if scored > 0 && scores.iter().filter(|scores| !scores.is_empty()).all(|scores| has(scores)) {
            let (orders, fusions) = rerank::cross_fused(ranked, scores, &chats, judged, judge);
            let chosen: Vec<String> = fusions.iter().map(|one| format!("{}/{}", one.k, one.weight)).collect();
            rows.push(stage(format!("{name}, cross-validated"), &orders));
            println!("  k/weight by chat {}", chosen.join(" "));
        }
    }
    println!();
    rows
}

fn turns(ranked: &[Ranking]) -> Vec<Vec<usize>> {
    ranked.iter().map(|ranking| ranking.iter().map(|(turn, _)| *turn).collect()).collect()
}

fn text_features() -> [bool; FEATURES] {
    FEATURE_NAMES.map(|name| !name.starts_with("dense") && name != "speaker.dense")
}

/// One question's candidates for learning.
struct Candidates {
    chat: usize,
    places: Vec<usize>,
    list: List,
}

fn lists(corpus: &Corpus, dense: bool) -> Vec<Candidates> {
    let mut lists = Vec::new();
    for (chat, indexed) in corpus.chats.iter().enumerate() {
        for (number, question) in indexed.chat.questions.iter().enumerate() {
            let embedding = indexed.questions.get(number).map(|pair| &pair.1).filter(|_| dense);
            let query = indexed.query(question, 10);
            let found =
                indexed.index.candidates(&query, embedding, indexed.chat.end).expect("the question is in its bounds");
            let places: Vec<usize> = found.rows.iter().map(|row| place(indexed.index.id_of_row(*row))).collect();
            let gold = (0..places.len()).filter(|at| question.gold.contains(&places[*at])).collect();
            let features = found.features.iter().map(|row| row.iter().map(|x| f64::from(*x)).collect()).collect();
            lists.push(Candidates { chat, places, list: List { features, gold } });
        }
    }
    lists
}

/// Ranks each chat by weights learnt from the others.
fn cross_validated(lists: &[Candidates], used: &[bool; FEATURES]) -> Vec<Ranking> {
    let chats = lists.iter().map(|list| list.chat).max().map_or(0, |last| last + 1);
    let weights: Vec<Vec<f64>> = (0..chats)
        .map(|held_out| {
            let rest: Vec<&List> = lists.iter().filter(|list| list.chat != held_out).map(|list| &list.list).collect();
            listwise(&rest, used, PENALTY)
        })
        .collect();
    lists
        .iter()
        .map(|candidates| {
            let mut scored: Vec<(f64, usize)> = candidates
                .list
                .features
                .iter()
                .zip(&candidates.places)
                .map(|(row, place)| (dot(&weights[candidates.chat], row), *place))
                .collect();
            scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            scored.into_iter().take(DEPTH).map(|(score, place)| (place, score)).collect()
        })
        .collect()
}

fn print(stages: &[Stage], corpus: &Corpus) {
    let questions: usize = corpus.chats.iter().map(|c| c.chat.questions.len()).sum();
    let turns: usize = corpus.chats.iter().map(|c| c.chat.memories.len()).sum();
    println!(
        "{} chats, {turns} turns, {questions} questions with evidence; 95% bootstrap intervals",
        corpus.chats.len()
    );
    println!(
        "\n| stage | turn recall@10 | gain over the row before | all@10 | MRR | session recall@10 | all@10 | MRR |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut before: Option<&Stage> = None;
    for stage in stages {
        let sample = |pick: fn(&Outcome) -> f64| stage.outcomes.iter().map(pick).collect::<Vec<f64>>();
        let recall = sample(|o| o.recall);
        let (low, high) = interval(&recall);
        let before_it = stage.against.as_ref().or(before.map(|before| &before.outcomes));
        let gain = before_it.map_or(String::new(), |before| {
            let paired: Vec<f64> = recall.iter().zip(before).map(|(now, then)| now - then.recall).collect();
            let (low, high) = interval(&paired);
            format!("{:+.3} [{low:+.3}, {high:+.3}]", mean(&paired))
        });
        println!(
            "| {} | {:.3} [{low:.3}, {high:.3}] | {gain} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} |",
            stage.name,
            mean(&recall),
            mean(&sample(|o| o.all)),
            mean(&sample(|o| o.reciprocal)),
            mean(&sample(|o| o.session_recall)),
            mean(&sample(|o| o.session_all)),
            mean(&sample(|o| o.session_reciprocal)),
        );
        before = Some(stage);
    }
}

fn print_weights(name: &str, weights: &[f64]) {
    println!("\npub const {name}: Weights = [");
    for (weight, feature) in weights.iter().zip(FEATURE_NAMES) {
        println!("    {weight:.3}, // {feature}");
    }
    println!("];");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chats::read_chats;

    /// The chats of the evaluation, or `None` (said so) where they are not at hand.
    fn corpus() -> Option<Corpus> {
        let shared =
            std::env::var("MNEME_SHARED").unwrap_or_else(|_| format!("{}/../../shared", env!("CARGO_MANIFEST_DIR")));
        match read_chats(&std::path::Path::new(&shared).join("eval/realtalk")) {
            Ok(chats) => Some(Corpus::new(chats)),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    #[test]
    fn recall_from_text_alone_keeps_its_level_on_chats_it_was_not_fit_on() {
        let Some(corpus) = corpus() else { return };
        let ranked = cross_validated(&lists(&corpus, false), &text_features());
        let recall = mean(&corpus.outcomes(&turns(&ranked)).iter().map(|outcome| outcome.recall).collect::<Vec<f64>>());
        // Measured .644; plain BM25 gives .538. The margin allows for changes of the tokenizer.
        assert!(recall > 0.62, "recall@10 {recall}");
    }

    #[test]
    fn the_shipped_weights_serve_a_recall_as_well_as_those_fit_here() {
        let Some(corpus) = corpus() else { return };
        let ranked = corpus.rank_all(|indexed, number| indexed.rank(number, None, DEPTH));
        let recall = mean(&corpus.outcomes(&ranked).iter().map(|outcome| outcome.recall).collect::<Vec<f64>>());
        assert!(recall > 0.62, "recall@10 {recall}");
    }
}
