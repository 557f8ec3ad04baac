//! Models in the published forms of LLaDA, Dream and MDLM compute what independent code computes from the same random weights.
//! See `golden/make_published.py`.
#![expect(clippy::unwrap_used, reason = "helpers of tests may fail loudly")]

use std::path::PathBuf;

use mneme_engine::load::published;
use mneme_engine::nn::backbone::{Additions, Backbone, Window};
use mneme_engine::nn::visibility::Visibility;
use mneme_engine::runtime::{Precision, Runtime};
use tch::{Device, Kind};

const EXACT: Runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 1 };

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/published").join(name)
}

/// Token ids and the logits that the reference gives for them.
fn expected(name: &str) -> (Vec<i64>, Vec<f32>) {
    let bytes = fs_err::read(folder(name).join("expected.bin")).unwrap();
    let words: Vec<[u8; 4]> = bytes.as_chunks::<4>().0.to_vec();
    let length = u32::from_le_bytes(words[0]) as usize;
    let tokens = words[1..=length].iter().map(|word| i64::from(u32::from_le_bytes(*word))).collect();
    (tokens, words[1 + length..].iter().map(|word| f32::from_le_bytes(*word)).collect())
}

fn logits(backbone: &Backbone, tokens: &[i64], visibility: Visibility<'_>) -> Vec<f32> {
    let _guard = tch::no_grad_guard();
    let positions: Vec<i64> = (0..tokens.len() as i64).collect();
    let window = Window { tokens, positions: &positions, visibility };
    backbone.logit_rows(&backbone.hidden(&window, None, Additions::default()).unwrap()).unwrap()
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_published_form_gives_the_logits_of_its_reference() {
    for (name, visibility, mask, shift) in [
        ("llama", Visibility::Causal, Some(7), true),
        ("llada", Visibility::All, None, false),
        ("dream", Visibility::All, None, true),
        ("mdlm", Visibility::All, None, false),
    ] {
        let backbone = published::open(&folder(name), mask, EXACT).unwrap();
        assert_eq!(backbone.config.shift, shift, "{name}");
        let (tokens, right) = expected(name);
        let made = logits(&backbone, &tokens, visibility);
        let error = largest_difference(&made, &right);
        println!("{name}: largest error {error:e}");
        // f32 sums in another order through two layers; logits are of size 1 to 10.
        assert!(error < 2e-5, "{name}: {error}");
        // The mask matters: with the other one the logits are others.
        let other = if visibility == Visibility::All { Visibility::Causal } else { Visibility::All };
        assert!(largest_difference(&logits(&backbone, &tokens, other), &right) > 1e-2, "{name}");
    }
}

#[test]
fn packed_forms_follow_the_dense_ones() {
    for name in ["llada", "dream", "mdlm"] {
        let packed = published::open(&folder(name), None, Runtime { precision: Precision::Int8, ..EXACT }).unwrap();
        let (tokens, right) = expected(name);
        let error = largest_difference(&logits(&packed, &tokens, Visibility::All), &right);
        println!("{name}: largest error in 8 bits {error:e}");
        let size = right.iter().fold(0.0_f32, |size, logit| size.max(logit.abs()));
        // Weights and activations are rounded to 1/127 of their largest; logits keep some per cent of theirs.
        assert!(error < 0.08 * size, "{name}: {error} of {size}");
    }
}

#[test]
fn a_model_folder_that_is_not_one_is_refused_with_the_reason() {
    let good = fs_err::read_to_string(folder("dream").join("config.json")).unwrap();
    let weights = fs_err::read(folder("dream").join("model.safetensors")).unwrap();
    let cases = [
        (good.replace("\"Dream\"", "\"gpt9\""), "gpt9"),
        (good.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 5"), "does not divide"),
        (good.replace("\"num_attention_heads\": 4", "\"num_attention_heads\": 0"), "num_attention_heads"),
        (good.replace("\"mask_token_id\": 37", "\"mask_token_id\": 40"), "mask token"),
        (good.replace("\"intermediate_size\": 48", "\"intermediate_size\": 999999999999"), "intermediate_size"),
        ("{".into(), "config.json"),
    ];
    for (config, reason) in cases {
        assert_ne!(config, good);
        let folder = tempfile::tempdir().unwrap();
        fs_err::write(folder.path().join("config.json"), config).unwrap();
        fs_err::write(folder.path().join("model.safetensors"), &weights).unwrap();
        let refused = published::open(folder.path(), None, EXACT).unwrap_err().to_string();
        assert!(refused.contains(reason), "{refused}");
    }
    // More layers than the file has: a missing tensor, not a smaller network.
    let folder = tempfile::tempdir().unwrap();
    let deeper = good.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    fs_err::write(folder.path().join("config.json"), deeper).unwrap();
    fs_err::write(folder.path().join("model.safetensors"), &weights).unwrap();
    assert!(published::open(folder.path(), None, EXACT).is_err());
}
