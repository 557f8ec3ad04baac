//! Prints what the maths costs at the size of a real model: 128 open positions, 49,152 tokens.
//!
//! `cargo run --release -p mneme-diffusion --example cost`
#![expect(clippy::print_stdout, reason = "printing is what it is for")]
#![expect(clippy::unwrap_used, reason = "the inputs are made here")]

use std::collections::BTreeSet;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use mneme_diffusion::constraint::{ByteDfa, Limits, Place, TokenAutomaton, Vocabulary, best_path};
use mneme_diffusion::numeric::{entropy, softmax};
use mneme_diffusion::random::{below, normal, seeded};
use mneme_diffusion::sampler::{Canvas, DiscreteSampler, LogitRows, SamplerConfig};

const VOCAB: usize = 49_152;
const POSITIONS: usize = 128;

fn main() {
    let mut rng = seeded(1);
    let logits: Vec<f32> = (0..POSITIONS * VOCAB).map(|_| 3.0 * normal(&mut rng) as f32).collect();
    let positions: Vec<usize> = (0..POSITIONS).collect();
    let rows = LogitRows::new(&positions, VOCAB, &logits).unwrap();

    let step = median(7, || {
        let canvas = Canvas::continuation(&[], POSITIONS, VOCAB as u32 - 1).unwrap();
        let mut sampler = DiscreteSampler::new(canvas, SamplerConfig { steps: 4, ..SamplerConfig::default() }).unwrap();
        black_box(sampler.step(&rows, &mut seeded(1)).unwrap());
    });
    let plain = median(3, || {
        for &position in &positions {
            black_box(entropy(&softmax(rows.row(position).unwrap())));
        }
    });
    println!(
        "sampler step, 128 x 49152:        {step:8.1} ms ({:.2} of a plain softmax and entropy in double precision)",
        step / plain
    );

    let vocabulary = vocabulary();
    let schema = r#"{"type": "object", "properties": {
        "title": {"type": "string", "maxLength": 60}, "kind": {"enum": ["note", "task", "event"]},
        "priority": {"type": "integer", "minimum": 1, "maximum": 5}, "done": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string", "pattern": "^[a-z]{1,12}$"}, "maxItems": 4},
        "due": {"anyOf": [{"type": "string", "pattern": "^\\d{4}-\\d{2}-\\d{2}$"}, {"type": "null"}]},
        "people": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}}
    }, "required": ["title", "kind", "due"]}"#;
    let limits = Limits::default();
    let compile = median(3, || drop(black_box(ByteDfa::json_schema(schema, limits).unwrap())));
    let dfa = ByteDfa::json_schema(schema, limits).unwrap();
    println!("schema to byte automaton:         {compile:8.1} ms, {} states", dfa.states());
    let join = || TokenAutomaton::new(dfa.clone(), Arc::clone(&vocabulary), Some(VOCAB as u32 - 1), limits).unwrap();
    let mask = median(3, || drop(black_box(join().allowed(ByteDfa::START).unwrap())));
    println!("first token mask, lazily:         {mask:8.1} ms");
    let edges = median(1, || {
        black_box(join().tokens_to_accept(ByteDfa::START).unwrap());
    });
    println!("all token edges and distances:    {edges:8.1} ms, once for a schema");
    let automaton = join();
    let places: Vec<Place<'_>> = positions.iter().map(|&position| Place::Open(rows.row(position).unwrap())).collect();
    black_box(best_path(&automaton, &places).unwrap());
    for (name, places) in [("128", &places[..]), (" 32", &places[..32])] {
        let path = median(3, || drop(black_box(best_path(&automaton, places).unwrap())));
        println!("best path through {name} places:     {path:8.1} ms a step");
    }
    let path = best_path(&automaton, &places).unwrap();
    println!("it reads: {}", String::from_utf8_lossy(&automaton.text(&path.tokens)));
}

/// Median wall time (ms).
fn median(repeats: usize, mut work: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..repeats)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[repeats / 2]
}

/// All bytes and invented words with and without a leading space, as many as a real vocabulary has; the last two are special.
fn vocabulary() -> Arc<Vocabulary> {
    let mut rng = seeded(2);
    let syllables = [
        "a", "e", "in", "er", "on", "st", "re", "th", "an", "co", "de", "li", "mo", "ra", "ti", "us", "pro", "ing",
        "ment",
    ];
    let marks =
        ["\"", "\":", "\",", "\", \"", "{\"", "\"}", "[", "]", "},", "0", "12", "202", "\n", "!", "é", "-", ". "];
    let mut words: BTreeSet<Vec<u8>> = marks.iter().map(|mark| mark.as_bytes().to_vec()).collect();
    while words.len() < VOCAB - 258 {
        let mut word = if below(&mut rng, 2) == 0 { " ".to_owned() } else { String::new() };
        for _ in 0..=below(&mut rng, 4) {
            word.push_str(syllables[below(&mut rng, syllables.len())]);
        }
        if below(&mut rng, 12) == 0 {
            word.push_str(marks[below(&mut rng, marks.len())]);
        }
        words.insert(word.into_bytes());
    }
    let bytes = (0..=255_u8).map(|byte| Some(vec![byte]));
    Arc::new(Vocabulary::new(bytes.chain(words.into_iter().map(Some)).chain([None, None])).unwrap())
}
