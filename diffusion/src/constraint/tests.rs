//! Constraints against brute force, over small alphabets and vocabularies.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::random::{seeded, uniform};
use crate::sampler::{Blocks, Canvas, CommitRule, DiscreteSampler, LogitRows, Piece, SamplerConfig};

fn limits() -> Limits {
    Limits::default()
}

/// All words over an alphabet up to a length.
fn words(alphabet: &[u8], length: usize) -> Vec<Vec<u8>> {
    let mut all = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..length {
        last = last
            .iter()
            .flat_map(|word| alphabet.iter().map(move |&byte| [word.as_slice(), &[byte]].concat()))
            .collect();
        all.extend(last.clone());
    }
    all
}

#[test]
fn a_regex_automaton_accepts_what_the_regex_matches_as_a_whole() {
    for pattern in ["(ab)*", "a|ab|b+", "a?b{2,3}", "^a.*b$", "", "[^a]b*", r"(?:a|\b)b", "a*?b", "(?i)A+", "é|a"] {
        let dfa = ByteDfa::regex(pattern, limits());
        // The regex crate's own matcher is the judge.
        let judge = regex_automata::meta::Regex::new(&format!(r"\A(?:{pattern})\z")).unwrap();
        let Ok(dfa) = dfa else {
            assert!(pattern.contains(r"\b"), "{pattern}: {dfa:?}");
            continue;
        };
        for word in words(b"ab ", 6).into_iter().chain([b"\xC3\xA9".to_vec(), b"\xC3".to_vec(), b"A".to_vec()]) {
            assert_eq!(dfa.accepts(&word), judge.is_match(&word), "{pattern} on {word:?}");
        }
    }
}

#[test]
fn expressions_that_no_automaton_can_follow_are_refused() {
    for pattern in ["(", "a)(b", r"(a)\1", "(?=a)b", "a{999999}", "((a{100}){100}){100}", "[b-a]"] {
        assert!(ByteDfa::regex(pattern, limits()).is_err(), "{pattern}");
    }
    assert_eq!(ByteDfa::regex("[a&&b]", limits()), Err(ConstraintError::Empty));
    assert!(ByteDfa::regex(&"(".repeat(100_000), limits()).is_err());
    let small = Limits { states: 10, ..limits() };
    assert!(matches!(ByteDfa::regex("a{50}", small), Err(ConstraintError::TooLarge { .. })));
}

fn vocabulary(tokens: &[&str]) -> Arc<Vocabulary> {
    let bytes = tokens.iter().map(|token| (*token != "<end>").then(|| token.as_bytes().to_vec()));
    Arc::new(Vocabulary::new(bytes).unwrap())
}

const TOKENS: [&str; 7] = ["a", "b", "ab", "ba", "abb", "<end>", "b"];
const END: u32 = 5;

fn patterns() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![Just("a".to_owned()), Just("b".to_owned()), Just("[ab]".to_owned()), Just(String::new())];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("{a}{b}")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("(?:{a}|{b})")),
            inner.clone().prop_map(|a| format!("(?:{a})*")),
            inner.prop_map(|a| format!("(?:{a}){{1,2}}")),
        ]
    })
}

/// Every sequence of tokens of a length.
fn sequences(length: usize) -> Vec<Vec<u32>> {
    let mut all = vec![Vec::new()];
    for _ in 0..length {
        all = all
            .iter()
            .flat_map(|sequence: &Vec<u32>| {
                (0..TOKENS.len() as u32).map(move |token| [sequence.as_slice(), &[token]].concat())
            })
            .collect();
    }
    all
}

/// Whether a sequence is a text of the language, padded at its end only.
fn matches(dfa: &ByteDfa, sequence: &[u32], ending: bool) -> bool {
    let end = sequence.iter().position(|&token| token == END).unwrap_or(sequence.len());
    let (text, padding) = sequence.split_at(end);
    let bytes: Vec<u8> = text.iter().flat_map(|&token| TOKENS[token as usize].bytes()).collect();
    padding.iter().all(|&token| token == END) && (ending || padding.is_empty()) && dfa.accepts(&bytes)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_best_path_is_the_best_of_all_sequences(
        pattern in patterns(), ending: bool, places in prop::collection::vec(0_u8..4, 0..5), seed: u64,
    ) {
        let Ok(dfa) = ByteDfa::regex(&pattern, limits()) else { return Ok(()) };
        let automaton =
            TokenAutomaton::new(dfa.clone(), vocabulary(&TOKENS), ending.then_some(END), limits()).unwrap();
        let mut rng = seeded(seed);
        let rows: Vec<Vec<f32>> =
            places.iter().map(|_| TOKENS.iter().map(|_| uniform(&mut rng) as f32).collect()).collect();
        let known: Vec<Place<'_>> = places.iter().zip(&rows).map(|(kind, row)| match kind {
            0 => Place::Unknown,
            1 => Place::Decided((uniform(&mut rng) * 7.0) as u32),
            _ => Place::Open(row),
        }).collect();
        let score = |sequence: &[u32]| sequence.iter().zip(&known).map(|(&token, place)| match place {
            Place::Open(row) => f64::from(row[token as usize]),
            Place::Decided(decided) if *decided != token => f64::NEG_INFINITY,
            _ => 0.0,
        }).sum::<f64>();
        let best = sequences(places.len()).into_iter()
            .filter(|sequence| matches(&dfa, sequence, ending))
            .map(|sequence| score(&sequence))
            .fold(f64::NEG_INFINITY, f64::max);
        match best_path(&automaton, &known) {
            Ok(path) => {
                prop_assert!(matches(&dfa, &path.tokens, ending), "{} {:?}", pattern, path.tokens);
                prop_assert!((path.score - best).abs() < 1e-5 && (score(&path.tokens) - best).abs() < 1e-5);
                prop_assert!(dfa.accepts(&automaton.text(&path.tokens)));
            }
            Err(error) => {
                prop_assert_eq!(error, ConstraintError::Infeasible { tokens: places.len() });
                prop_assert!(best == f64::NEG_INFINITY, "{} has {}", pattern, best);
            }
        }
    }

    #[test]
    fn masks_allow_exactly_the_tokens_that_can_still_be_completed(pattern in patterns(), ending: bool, length in 1_usize..5) {
        let Ok(dfa) = ByteDfa::regex(&pattern, limits()) else { return Ok(()) };
        let automaton =
            TokenAutomaton::new(dfa.clone(), vocabulary(&TOKENS), ending.then_some(END), limits()).unwrap();
        let accepted: Vec<Vec<u32>> =
            sequences(length).into_iter().filter(|sequence| matches(&dfa, sequence, ending)).collect();
        // Every prefix of an accepted sequence goes on with exactly the tokens that accepted sequences have there.
        let mut prefixes: Vec<&[u32]> = accepted.iter().flat_map(|s| (0..length).map(|end| &s[..end])).collect();
        prefixes.push(&[]);
        prefixes.sort();
        prefixes.dedup();
        for prefix in prefixes {
            let state = automaton.run(prefix).unwrap();
            let bits = automaton.allowed_within(state, length - prefix.len()).unwrap();
            for token in 0..TOKENS.len() {
                let expected = accepted.iter().any(|s| s.starts_with(prefix) && s[prefix.len()] == token as u32);
                prop_assert_eq!(bits[0] >> token & 1 == 1, expected, "{} after {:?}: {}", &pattern, prefix, token);
            }
        }
    }

    #[test]
    fn a_sampler_under_a_constraint_always_ends_in_a_match(
        pattern in patterns(), hole in 1_usize..9, block in 1_usize..5, steps in 1_u32..5, hot: bool, seed: u64,
    ) {
        let Ok(dfa) = ByteDfa::regex(&pattern, limits()) else { return Ok(()) };
        let automaton = TokenAutomaton::new(dfa.clone(), vocabulary(&TOKENS), Some(END), limits()).unwrap();
        let canvas = Canvas::new(&[Piece::Text(vec![1]), Piece::Hole(hole), Piece::Text(vec![0])], 6).unwrap();
        let rule = CommitRule::Remasking { eta: 0.3 };
        let config = SamplerConfig { rule, steps, blocks: Blocks::Holes(block), ..SamplerConfig::default() };
        let mut sampler = DiscreteSampler::new(canvas, config).unwrap();
        let (mut rng, mut noise) = (seeded(seed), seeded(seed ^ 7));
        while !sampler.is_done() {
            let positions = sampler.wanted();
            // The network prefers nonsense, and finds some tokens impossible.
            let logits: Vec<f32> = (0..positions.len() * 7).map(|_| {
                let x = uniform(&mut noise) as f32;
                if x < 0.2 { f32::NEG_INFINITY } else { 8.0 * x }
            }).collect();
            let rows = LogitRows::new(&positions, 7, &logits).unwrap();
            let temperature = if hot { 1.0 } else { 0.0 };
            match propose(&automaton, sampler.canvas(), 0, &rows, temperature, &mut rng) {
                Ok(proposals) => {
                    // A row may have nothing but the mask left: the sampler says so, and the canvas stays completable.
                    let _ = sampler.step_proposed(&rows, &proposals, &mut rng);
                }
                Err(error) => {
                    prop_assert_eq!(error, ConstraintError::Infeasible { tokens: hole });
                    prop_assert_eq!(sampler.steps_done(), 0, "feasible at first, infeasible later");
                    let possible = automaton.tokens_to_accept(automaton.start()).unwrap();
                    prop_assert!(possible.is_none_or(|tokens| tokens > hole));
                    return Ok(());
                }
            }
        }
        let text = automaton.text(sampler.canvas().fills()[0]);
        prop_assert!(dfa.accepts(&text), "{}: {:?}", pattern, text);
    }
}

#[test]
fn special_tokens_and_strangers_never_fit() {
    let automaton =
        TokenAutomaton::new(ByteDfa::regex(".*", limits()).unwrap(), vocabulary(&TOKENS), None, limits()).unwrap();
    assert_eq!(automaton.next(automaton.start(), END), None);
    assert_eq!(automaton.next(automaton.start(), 999), None);
    assert_eq!(automaton.next(999, 0), None);
    assert!(
        TokenAutomaton::new(ByteDfa::regex("a", limits()).unwrap(), vocabulary(&TOKENS), Some(99), limits()).is_err()
    );
}

#[test]
fn rows_of_the_wrong_length_are_refused() {
    let automaton =
        TokenAutomaton::new(ByteDfa::regex("a*", limits()).unwrap(), vocabulary(&TOKENS), Some(END), limits()).unwrap();
    let error = ConstraintError::RowLength { length: 3, expected: 7 };
    assert_eq!(best_path(&automaton, &[Place::Open(&[0.0; 3])]), Err(error.clone()));
    assert_eq!(automaton.mask(automaton.start(), 3, &mut [0.0; 3]), Err(error));
    let mut row = [0.0; 7];
    automaton.mask(automaton.start(), 3, &mut row).unwrap();
    assert_eq!(row.map(f32::is_finite), [true, false, false, false, false, true, false]);
    assert!(automaton.mask(automaton.start(), 0, &mut row).is_err());
}

/// Pieces that expressions and schemas are made of, in any order: nearly right more often than random bytes are.
fn scraps() -> impl Strategy<Value = String> {
    let scrap = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        "\"type\":",
        "\"object\"",
        "\"string\"",
        "\"items\":",
        "\"$ref\":\"#\"",
        "\"properties\":{",
        "\"a\":",
        "\"required\":[\"a\"]",
        "\"anyOf\":[",
        "\"enum\":[1,null]",
        "\"pattern\":\"",
        "\"minLength\":3",
        "\"maxItems\":1e99",
        "\"minimum\":-1e308",
        ",",
        ":",
        "\"",
        "true",
        "-0.5",
        "*",
        "+",
        "?",
        "|",
        "\\d",
        "\\",
        "^",
        "$",
        "{2,3}",
        "(?i)",
        "[^",
        "é",
        "a-",
        "\u{0}",
        "&&",
    ]);
    prop::collection::vec(scrap, 0..14).prop_map(|scraps| scraps.concat())
}

proptest! {
    #[test]
    fn no_expression_and_no_schema_panics(scraps in scraps(), inside: bool) {
        let tight = Limits { states: 500, nfa_states: 5_000, ..limits() };
        let _ = ByteDfa::regex(&scraps, tight);
        let schema = if inside { format!("{{{scraps}}}") } else { scraps.clone() };
        let _ = ByteDfa::json_schema(&schema, tight);
        let pattern = serde_json::json!({"type": "string", "pattern": scraps, "maxLength": 3});
        let _ = ByteDfa::json_schema(&pattern.to_string(), tight);
    }
}

#[test]
fn a_search_that_would_not_fit_in_memory_is_refused() {
    let dfa = ByteDfa::regex("[ab]{0,8000}", limits()).unwrap();
    for ending in [Some(END), None] {
        let automaton = TokenAutomaton::new(dfa.clone(), vocabulary(&TOKENS), ending, limits()).unwrap();
        let result = best_path(&automaton, &vec![Place::Unknown; 8_000]);
        let refused = matches!(result, Err(ConstraintError::TooLarge { .. }));
        assert!(refused, "{:?}", result.map(|path| path.tokens.len()));
    }
}

#[test]
fn the_cache_is_bounded() {
    let tight = Limits { cache_bytes: 8, ..limits() };
    let automaton =
        TokenAutomaton::new(ByteDfa::regex("[ab]*", limits()).unwrap(), vocabulary(&TOKENS), Some(END), tight).unwrap();
    assert!(matches!(automaton.allowed(automaton.start()), Err(ConstraintError::TooLarge { .. })));
}
