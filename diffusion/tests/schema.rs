//! What a schema's automaton lets through is always JSON that the schema accepts; an independent validator is the judge.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail by panicking, as tests do")]

use std::sync::Arc;

use mneme_diffusion::constraint::{ByteDfa, ConstraintError, Limits, Place, TokenAutomaton, Vocabulary, best_path};
use mneme_diffusion::random::{below, seeded, uniform};
use mneme_diffusion::sampler::Draw;
use rand::Rng;
use serde_json::{Value, json};

/// All bytes, what JSON is made of, some words, and an ending token last.
fn vocabulary() -> (Arc<Vocabulary>, u32) {
    let mut tokens: Vec<Option<Vec<u8>>> = (0..=255_u8).map(|byte| Some(vec![byte])).collect();
    for text in [
        "{\"", "\":", "\": \"", "\",", "\", \"", "\"}", "[", "]}", "}, {\"", "true", "false", "null", " the", "ing",
        "12", "2024", "name", "kind", "é", "\\u00", "\\n", ": ", ", ", "00", "-1", ".5", "e+", "value\":", "  ",
    ] {
        tokens.push(Some(text.as_bytes().to_vec()));
    }
    tokens.push(None);
    let end = tokens.len() as u32 - 1;
    (Arc::new(Vocabulary::new(tokens).unwrap()), end)
}

/// A schema of random shape. `names` are definitions that may be referred to.
fn random_schema(rng: &mut dyn Rng, depth: usize) -> Value {
    let leaf = depth == 0;
    match below(rng, if leaf { 9 } else { 13 }) {
        0 => json!({"type": "null"}),
        1 => json!({"type": ["boolean", "null"], "description": "a flag"}),
        2 => json!({"type": "integer"}),
        3 => {
            let low = below(rng, 300) as i64 - 150;
            let high = low + below(rng, 200) as i64;
            match below(rng, 3) {
                0 => json!({"type": "integer", "minimum": low, "maximum": high}),
                1 => json!({"type": "number", "minimum": low, "exclusiveMaximum": high + 2}),
                _ => json!({"type": "integer", "exclusiveMinimum": low}),
            }
        }
        4 => json!({"type": "number"}),
        5 => {
            let min = below(rng, 3);
            json!({"type": "string", "minLength": min, "maxLength": min + below(rng, 5), "format": "date"})
        }
        6 => {
            let patterns = [
                "^[a-z]{2,5}$",
                r"^\d{4}-\d{2}-\d{2}$",
                "x",
                r"^(yes|no)\.$",
                r#"^"quoted\\$"#,
                r"^\S+@\S+$",
                "^é+$",
                r"^[^\W\d]\D\.[^[a]$",
                "^.k[&~]$",
            ];
            match below(rng, 3) {
                0 => json!({"type": "string", "pattern": patterns[below(rng, patterns.len())], "maxLength": 12}),
                _ => json!({"type": "string", "pattern": patterns[below(rng, patterns.len())]}),
            }
        }
        7 => json!({"enum": ["red", "gr\"een", 3, 2.5, null, {"a": [1, "b"]}, true]}),
        8 => {
            let values = json!(["fixed", "π", 1e3, {"k": -7}]);
            json!({"const": values[below(rng, 4)]})
        }
        9 => {
            let mut properties = serde_json::Map::new();
            let mut required = Vec::new();
            for name in ["name", "a", "kind", "x/y~z", "\"odd\"", "b"] {
                if below(rng, 2) == 0 {
                    properties.insert(name.into(), random_schema(rng, depth - 1));
                    if below(rng, 2) == 0 {
                        required.push(name);
                    }
                }
            }
            match below(rng, 3) {
                0 => {
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
                }
                1 => json!({"type": "object", "properties": properties, "required": required}),
                _ => json!({"properties": properties, "required": required}),
            }
        }
        10 => {
            let min = below(rng, 3);
            let items = random_schema(rng, depth - 1);
            match below(rng, 3) {
                0 => json!({"type": "array", "items": items}),
                1 => json!({"type": "array", "items": items, "minItems": min, "maxItems": min + below(rng, 3)}),
                _ => json!({"type": "array", "items": items, "minItems": min}),
            }
        }
        11 => json!({"anyOf": [random_schema(rng, depth - 1), random_schema(rng, depth - 1), {"type": "boolean"}]}),
        _ => json!({"oneOf": [
            {"type": "object", "properties": {"kind": {"const": "p"}, "value": random_schema(rng, depth - 1)}, "required": ["kind"]},
            {"type": "object", "properties": {"kind": {"enum": ["q", "r"]}}, "required": ["kind"]},
            {"type": "string", "maxLength": 3},
        ]}),
    }
}

/// A schema with definitions, one of which contains itself.
fn random_document(rng: &mut dyn Rng) -> Value {
    let mut root = match below(rng, 3) {
        0 => {
            json!({"type": "object", "properties": {"tree": {"$ref": "#/$defs/tree"}, "other": random_schema(rng, 1)}, "required": ["tree"]})
        }
        _ => random_schema(rng, 2),
    };
    root["$defs"] = json!({"tree": {
        "type": "object",
        "properties": {"leaf": random_schema(rng, 0), "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1}},
        "required": ["leaf"],
    }});
    root
}

#[test]
fn five_hundred_random_schemas_always_parse_and_validate() {
    let mut rng = seeded(2_024);
    let (vocabulary, end) = vocabulary();
    let (mut checked, mut texts, mut states) = (0, 0, 0);
    while checked < 500 {
        let schema = random_document(&mut rng);
        let dfa = match ByteDfa::json_schema(&schema.to_string(), Limits::default()) {
            Ok(dfa) => dfa,
            // A random pattern and a random length may exclude each other, and a property may need them.
            Err(ConstraintError::Empty) => continue,
            Err(error) => panic!("{schema}: {error}"),
        };
        let validator = jsonschema::validator_for(&schema).unwrap();
        let automaton = TokenAutomaton::new(dfa, Arc::clone(&vocabulary), Some(end), Limits::default()).unwrap();
        let shortest = automaton.tokens_to_accept(automaton.start()).unwrap().unwrap();
        checked += 1;
        states = states.max(automaton.states());
        let mut judge = |tokens: &[u32]| {
            let text = String::from_utf8(automaton.text(tokens)).unwrap();
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{schema}\n{text}\n{error}"));
            assert!(validator.is_valid(&value), "{schema}\n{text}");
            texts += 1;
        };
        for extra in [0, 1 + below(&mut rng, 30)] {
            // The whole hole at once, from a network of random tastes.
            let rows: Vec<Vec<f32>> = (0..shortest + extra)
                .map(|_| (0..vocabulary.tokens()).map(|_| 4.0 * uniform(&mut rng) as f32).collect())
                .collect();
            let places: Vec<Place<'_>> = rows.iter().map(|row| Place::Open(row)).collect();
            judge(&best_path(&automaton, &places).unwrap().tokens);
            // Token after token with masks.
            let (mut state, mut tokens) = (automaton.start(), Vec::new());
            for (index, row) in rows.iter().enumerate() {
                let mut row = row.clone();
                automaton.mask(state, rows.len() - index, &mut row).unwrap();
                let token = Draw::PLAIN.token(&row, None, &mut rng).unwrap();
                state = automaton.next(state, token).unwrap();
                tokens.push(token);
            }
            assert!(automaton.is_accepting(state));
            judge(&tokens);
        }
    }
    println!("{checked} schemas, {texts} texts, largest automaton {states} states");
}

fn accepts(schema: &Value, text: &str) -> bool {
    ByteDfa::json_schema(&schema.to_string(), Limits::default()).unwrap().accepts(text.as_bytes())
}

#[test]
fn ordinary_instances_can_be_written() {
    // As text, because properties are written in the order in which the schema has them.
    let schema = r#"{
        "type": "object",
        "properties": {
            "title": {"type": "string"},
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "count": {"type": "integer", "minimum": -12, "maximum": 1500},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
            "when": {"anyOf": [{"type": "string", "pattern": "^\\d{4}$"}, {"type": "null"}]},
            "free": {}
        },
        "required": ["title", "when"],
        "additionalProperties": false
    }"#;
    let dfa = ByteDfa::json_schema(schema, Limits::default()).unwrap();
    let validator = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    for text in [
        r#"{"title": "An \"odd\" one\u00e9 é", "when": null}"#,
        r#"{"title":"","score":0.25,"count":-12,"tags":[],"when":"1999","free":{"x": 1.5e3}}"#,
        r#"{"title": "t", "score": 1, "count": 1500, "tags": ["a", "b", "a"], "when": "1999"}"#,
    ] {
        assert!(dfa.accepts(text.as_bytes()), "{text}");
        assert!(validator.is_valid(&serde_json::from_str(text).unwrap()), "{text}");
    }
    for text in [
        "{}",
        r#"{"title": "t"}"#,
        r#"{"title": "t", "score": 1.5, "when": null}"#,
        r#"{"title": "t", "count": -13, "when": null}"#,
        r#"{"title": "t", "count": 1501, "when": null}"#,
        r#"{"title": "t", "count": 007, "when": null}"#,
        r#"{"title": "t", "tags": ["c"], "when": null}"#,
        r#"{"title": "t", "tags": ["a","a","a","a"], "when": null}"#,
        r#"{"title": "t", "when": "99"}"#,
        r#"{"title": "t", "when": null, "more": 1}"#,
        r#"{"title": "t", "when": null} "#,
        "{\"title\": \"line\nbreak\", \"when\": null}",
        r#"{"title": "\ud800", "when": null}"#,
    ] {
        assert!(!dfa.accepts(text.as_bytes()), "{text}");
    }
}

#[test]
fn every_bounded_integer_is_written_and_no_other() {
    for (low, high) in [(0_i64, 0), (-3, 5), (7, 123), (-1_200, -89), (98, 1_002), (-1, 0), (10, 10)] {
        let schema = json!({"type": "integer", "minimum": low, "maximum": high});
        let dfa = ByteDfa::json_schema(&schema.to_string(), Limits::default()).unwrap();
        for x in -1_500..1_500_i64 {
            assert_eq!(dfa.accepts(x.to_string().as_bytes()), (low..=high).contains(&x), "{x} in {low}..={high}");
        }
        assert!(!dfa.accepts(b"-0") && !dfa.accepts(b"00") && !dfa.accepts(b""));
    }
    let fractions = json!({"type": "number", "minimum": -1, "exclusiveMaximum": 2});
    for (text, inside) in
        [("-1", true), ("-0.5", true), ("0.99", true), ("1", true), ("1.5", false), ("2", false), ("-1.5", false)]
    {
        assert_eq!(accepts(&fractions, text), inside, "{text}");
    }
}

#[test]
fn what_cannot_be_kept_to_is_refused_by_name() {
    let refused = |schema: Value, keyword: &str| match ByteDfa::json_schema(&schema.to_string(), Limits::default()) {
        Err(ConstraintError::Unsupported { keyword: found, .. }) => assert_eq!(found, keyword, "{schema}"),
        other => panic!("{schema}: {other:?}"),
    };
    refused(json!({"type": "number", "multipleOf": 3}), "multipleOf");
    refused(json!({"type": "array", "uniqueItems": true}), "uniqueItems");
    refused(json!({"not": {"type": "null"}}), "not");
    refused(json!({"if": {}, "then": {}}), "if");
    refused(json!({"type": "object", "patternProperties": {}}), "patternProperties");
    refused(json!({"type": "strin", "typo": 1, "anyOf": []}), "type");
    refused(json!({"type": "string", "pattern": "(?=x)"}), "pattern");
    refused(json!({"type": "string", "pattern": r"\bword\b"}), "pattern");
    refused(json!({"type": "string", "pattern": r"\Aword\z"}), "pattern");
    refused(json!({"allOf": [{}, {}]}), "allOf");
    refused(json!({"$ref": "https://example.org/schema"}), "$ref");
    refused(json!({"enum": ["a"], "maxLength": 3}), "maxLength");
    refused(json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf");
    refused(json!({"oneOf": [{"type": "object", "properties": {"a": {}}}, {"type": "object"}]}), "oneOf");
    refused(json!({"properties": {"deep": {"items": {"minimun": 3}}}}), "minimun");
    refused(json!({"type": "number", "minimum": 0.2, "maximum": 0.8}), "minimum");
}

#[test]
fn malformed_and_impossible_schemas_are_errors_not_panics() {
    let malformed = [
        "",
        "{",
        "3",
        "[]",
        r#"{"type": 3}"#,
        r#"{"type": "strin"}"#,
        r##"{"$ref": "#/nowhere"}"##,
        r#"{"minLength": -1}"#,
        r#"{"required": "a"}"#,
        r#"{"properties": []}"#,
        r#"{"a": 1, "a": 2}"#,
        r#"{"anyOf": {}}"#,
        r#"{"items": 3}"#,
    ];
    for schema in malformed {
        let result = ByteDfa::json_schema(schema, Limits::default());
        assert!(matches!(result, Err(ConstraintError::Schema { .. })), "{schema}: {result:?}");
    }
    for schema in [
        json!(false),
        json!({"type": "string", "minLength": 3, "maxLength": 2}),
        json!({"type": "string", "pattern": "^abc$", "maxLength": 2}),
        json!({"type": "object", "properties": {"a": false}, "required": ["a"]}),
        json!({"enum": []}),
        json!({"type": "integer", "minimum": 5, "maximum": 4}),
        json!({"$ref": "#"}),
        json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}),
    ] {
        let result = ByteDfa::json_schema(&schema.to_string(), Limits::default());
        assert_eq!(result, Err(ConstraintError::Empty), "{schema}");
    }
    let deep = format!("{}{{}}{}", r#"{"items":"#.repeat(100), "}".repeat(100));
    assert!(ByteDfa::json_schema(&deep, Limits::default()).is_err());
    let wide = json!({"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 30}, "b": {"type": "array",
        "items": {"$ref": "#/$defs/c"}, "minItems": 30}, "c": {"type": "array", "items": {}, "minItems": 300}}, "$ref": "#/$defs/a"});
    assert!(matches!(
        ByteDfa::json_schema(&wide.to_string(), Limits::default()),
        Err(ConstraintError::TooLarge { .. })
    ));
}
