//! The networks compute what `transformers` computes with the same weights. See `golden/make_golden.py`.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests may fail loudly and say what they skip"
)]

use std::path::PathBuf;

use mneme_base::Embedding;
use mneme_engine::assets::Assets;
use mneme_engine::embedder::Embedder;
use mneme_engine::load;
use mneme_engine::nn::backbone::{Additions, Window};
use mneme_engine::nn::conditioner::Conditioner;
use mneme_engine::nn::visibility::Visibility;
use mneme_engine::runtime::{Precision, Runtime};
use mneme_engine_api::CancelToken;
use tch::{Device, Kind, Tensor};

/// Vocabulary ids whose logits the golden file holds.
const PROBES: [usize; 8] = [0, 1, 28, 253, 1024, 9906, 30000, 49151];

/// f32 on another order of summation: thirty layers leave errors of this size in logits of up to 30.
const LOGIT_ERROR_MAX: f32 = 2e-3;

fn assets() -> Option<Assets> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.assets");
    let found = root.join("models").is_dir();
    if !found {
        println!("skipped: .assets is missing, run `cargo xtask setup`");
    }
    found.then(|| Assets::at(root))
}

struct Bytes(Vec<u8>, usize);

impl Bytes {
    fn golden(name: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        Self(fs_err::read(path).unwrap(), 0)
    }

    fn take(&mut self, count: usize) -> &[u8] {
        self.1 += count;
        &self.0[self.1 - count..self.1]
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn f32(&mut self) -> f32 {
        f32::from_bits(self.u32())
    }
}

#[test]
fn embeddings_equal_transformers_on_two_hundred_texts() {
    let Some(assets) = assets() else { return };
    let dense = Precision::Dense;
    for (compute, precision, cosine_min) in
        [(Kind::Float, Precision::Int8, 0.999), (Kind::Float, dense, 0.9999), (Kind::BFloat16, dense, 0.999)]
    {
        let runtime = Runtime { device: Device::Cpu, compute, precision, threads: 2 };
        let embedder = Embedder::load(&assets, runtime).unwrap();
        let mut golden = Bytes::golden("embedder.bin");
        let (mut texts, mut expected) = (Vec::new(), Vec::new());
        while golden.1 < golden.0.len() {
            let length = golden.u32() as usize;
            texts.push(String::from_utf8(golden.take(length).to_vec()).unwrap());
            let halves = golden.take(2 * 384).as_chunks::<2>().0;
            expected.push(halves.iter().map(|pair| half::f16::from_le_bytes(*pair).to_f32()).collect::<Vec<f32>>());
        }
        // One by one they take the path of questions, where weights are packed.
        let embed =
            |text: &String| embedder.embed(std::slice::from_ref(text), &CancelToken::default()).unwrap().remove(0);
        let made: Vec<Embedding> = match precision {
            Precision::Dense => embedder.embed(&texts, &CancelToken::default()).unwrap(),
            _ => texts.iter().map(embed).collect(),
        };
        let cosine = |(made, expected): (&Embedding, &Vec<f32>)| {
            let expected = Embedding::normalized(expected.clone()).unwrap();
            f64::from(made.cosine(&expected).unwrap())
        };
        let worst = made.iter().zip(&expected).map(cosine).fold(1.0, f64::min);
        println!("{precision:?} {compute:?}: {} texts, smallest cosine {worst:.6}", texts.len());
        assert!(texts.len() == 200 && worst > cosine_min);
    }
}

#[test]
fn generator_logits_equal_transformers_on_a_thousand_positions() {
    let Some(assets) = assets() else { return };
    let runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 2 };
    let file = load::open_gguf(&assets.generator()).unwrap();
    let backbone = load::llama_from_gguf(&file, 18, true, runtime).unwrap();
    let _guard = tch::no_grad_guard();
    let mut golden = Bytes::golden("generator.bin");
    let (mut positions_seen, mut error_max, mut sum_error_max) = (0, 0.0_f32, 0.0_f32);
    for _ in 0..golden.u32() {
        let length = golden.u32();
        let tokens: Vec<i64> = (0..length).map(|_| i64::from(golden.u32())).collect();
        let positions: Vec<i64> = (0..i64::from(length)).collect();
        let window = Window { tokens: &tokens, positions: &positions, visibility: Visibility::Causal };
        let logits = backbone.logits(&backbone.hidden(&window, None, Additions::default()).unwrap()).unwrap();
        let sums = Vec::<f32>::try_from(&logits.logsumexp(-1, false)).unwrap();
        let best = Vec::<i64>::try_from(&logits.argmax(-1, false)).unwrap();
        let probes = Tensor::from_slice(&PROBES.map(|id| id as i64));
        let probed = Vec::<Vec<f32>>::try_from(&logits.index_select(1, &probes)).unwrap();
        let largest = Vec::<f32>::try_from(&logits.amax([-1], false)).unwrap();
        for position in 0..length as usize {
            assert_eq!(i64::from(golden.u32()), best[position], "argmax of position {position}");
            error_max = error_max.max((golden.f32() - largest[position]).abs());
            sum_error_max = sum_error_max.max((golden.f32() - sums[position]).abs());
            for value in &probed[position] {
                error_max = error_max.max((golden.f32() - value).abs());
            }
            positions_seen += 1;
        }
    }
    println!("{positions_seen} positions: largest logit error {error_max:e}, log-sum-exp error {sum_error_max:e}");
    assert!(positions_seen >= 1_000 && error_max < LOGIT_ERROR_MAX && sum_error_max < LOGIT_ERROR_MAX);
}

#[test]
fn memories_behind_zero_gates_change_no_bit_and_behind_open_gates_do() {
    let Some(assets) = assets() else { return };
    let runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 2 };
    let file = load::open_gguf(&assets.generator()).unwrap();
    let backbone = load::llama_from_gguf(&file, 16, true, runtime).unwrap();
    let _guard = tch::no_grad_guard();
    let mut state = 1_u64;
    let uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let mut conditioner = Conditioner::zeroed(&backbone.config, 384, Device::Cpu, uniform).unwrap();
    let embedding: Vec<f32> = (0..384).map(|i| (i as f32 * 0.7).sin() / 14.0).collect();
    let memories = conditioner.project(&[&embedding, &embedding]).unwrap();
    let (tokens, positions): (Vec<i64>, Vec<i64>) = ((5..25).collect(), (0..20).collect());
    let window = Window { tokens: &tokens, positions: &positions, visibility: Visibility::Causal };
    let bits = |additions: Additions<'_>| -> Vec<u32> {
        let hidden = backbone.hidden(&window, None, additions).unwrap();
        Vec::<f32>::try_from(hidden.reshape([-1])).unwrap().into_iter().map(f32::to_bits).collect()
    };
    let plain = bits(Additions::default());
    assert_eq!(plain, bits(Additions { adapters: &[], memories: Some((&conditioner, &memories)) }));
    conditioner.set_gates(0.5).unwrap();
    // What was written is what is read, and only for its own base.
    let (folder, base) = (tempfile::tempdir().unwrap(), mneme_base::ContentHash::of(b"base"));
    conditioner.write(folder.path(), base).unwrap();
    let read = Conditioner::read(folder.path(), &backbone.config, 384, base, Device::Cpu).unwrap();
    assert_eq!(
        bits(Additions { adapters: &[], memories: Some((&read, &memories)) }),
        bits(Additions { adapters: &[], memories: Some((&conditioner, &memories)) }),
    );
    let other = mneme_base::ContentHash::of(b"other");
    assert!(Conditioner::read(folder.path(), &backbone.config, 384, other, Device::Cpu).is_err());
    assert_ne!(plain, bits(Additions { adapters: &[], memories: Some((&conditioner, &memories)) }));
}

#[test]
fn packed_weights_on_slices_give_the_logits_of_the_dense_network_but_for_rounded_activations() {
    let Some(assets) = assets() else { return };
    let file = load::open_gguf(&assets.generator()).unwrap();
    let runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 2 };
    let dense = load::llama_from_gguf(&file, 16, true, runtime).unwrap();
    let packed = load::llama_from_gguf(&file, 16, true, Runtime { precision: Precision::Int4, ..runtime }).unwrap();
    let _guard = tch::no_grad_guard();
    let mut golden = Bytes::golden("generator.bin");
    let (windows, length) = (golden.u32(), golden.u32());
    assert!(windows > 0);
    let tokens: Vec<i64> = (0..length).map(|_| i64::from(golden.u32())).collect();
    let positions: Vec<i64> = (0..i64::from(length)).collect();
    for visibility in [Visibility::Causal, Visibility::All, Visibility::Draft { decided: 3 }] {
        let window = Window { tokens: &tokens, positions: &positions, visibility };
        let probabilities = |backbone: &mneme_engine::nn::backbone::Backbone| {
            let hidden = backbone.hidden(&window, None, Additions::default()).unwrap();
            Tensor::from_slice(&backbone.logit_rows(&hidden).unwrap())
                .view([i64::from(length), -1])
                .log_softmax(-1, Kind::Float)
        };
        let (right, made) = (probabilities(&dense), probabilities(&packed));
        // Weights are the same numbers; 8-bit activations leave a divergence of some thousandths of a nat.
        let divergence = (right.exp() * (&right - &made)).sum(Kind::Float).double_value(&[]) / f64::from(length);
        println!("{visibility:?}: {divergence:.5} nats a position");
        assert!((0.0..0.03).contains(&divergence), "{visibility:?}: {divergence}");
    }
    // A window behind a committed prefix is the end of the whole.
    let split = 10;
    let whole = Window { tokens: &tokens, positions: &positions, visibility: Visibility::Causal };
    let whole = packed.hidden(&whole, None, Additions::default()).unwrap();
    let mut cache = packed.cache(i64::from(length)).unwrap();
    let part = |from: usize, to: usize| Window {
        tokens: &tokens[from..to],
        positions: &positions[from..to],
        visibility: Visibility::Causal,
    };
    let _ = packed.hidden(&part(0, split), Some(&mut cache), Additions::default()).unwrap();
    cache.commit(split as i64);
    let tail = packed.hidden(&part(split, length as usize), Some(&mut cache), Additions::default()).unwrap();
    let expected = whole.narrow(0, split as i64, i64::from(length) - split as i64);
    // The same operations in the same order: rows do not depend on the window that they are computed in.
    assert_eq!((tail - expected).abs().max().double_value(&[]).to_bits(), 0);
}
