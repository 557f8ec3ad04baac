//! Adapting the base model: what must not change does not, training and serving compute the same, a stopped run goes on exactly.
#![expect(
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests may fail loudly and say what they skip"
)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use mneme_base::ContentHash;
use mneme_diffusion::random::{seeded, uniform};
use mneme_engine::adapter_file::{self, Stored};
use mneme_engine::assets::Assets;
use mneme_engine::generate::stream::Stream;
use mneme_engine::generator::Generator;
use mneme_engine::nn::adapter::Adapter;
use mneme_engine::nn::backbone::{Additions, Window};
use mneme_engine::nn::visibility::Visibility;
use mneme_engine::runtime::{Precision, Runtime};
use mneme_engine::train::base::{self, Course, Plan, Task};
use mneme_engine::train::corpus::Corpus;
use mneme_engine::train::objective::{Clean, Teaching, graph, losses};
use mneme_engine::train::segments::{Middles, Mix, Segments};
use mneme_engine_api::CancelToken;
use tch::{Device, Kind, Tensor};

const RUNTIME: Runtime = Runtime { device: Device::Cpu, compute: Kind::Float, precision: Precision::Dense, threads: 1 };
const TEXT: &str = "The keeper of the lighthouse wrote to his sister every week. He told her of the weather, of the ships \
                    that passed, and of the birds that lived with him on the rock through the long winter.";

fn assets() -> Option<Assets> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.assets");
    let found = root.join("models").is_dir();
    if !found {
        println!("skipped: .assets is missing, run `cargo xtask setup`");
    }
    found.then(|| Assets::at(root).unadapted())
}

fn generator() -> Option<&'static Generator> {
    static GENERATOR: OnceLock<Option<Generator>> = OnceLock::new();
    tch::set_num_threads(1);
    let load = || {
        let assets = assets()?;
        Some(Generator::load(&assets, Generator::hashes(&assets).unwrap(), RUNTIME).unwrap())
    };
    GENERATOR.get_or_init(load).as_ref()
}

fn tokens(generator: &Generator) -> Vec<i64> {
    let text = generator.encode(TEXT).unwrap();
    std::iter::once(generator.special.document).chain(text).map(i64::from).collect()
}

/// An adapter that changes a lot: its second factors and its mask are drawn too.
fn drawn(generator: &Generator) -> Adapter {
    let mut rng = seeded(3);
    let config = generator.backbone().config.clone();
    let adapter = Adapter::for_diffusion(&config, 2, Device::Cpu, || uniform(&mut rng)).unwrap();
    fill_with_noise(&adapter);
    adapter
}

fn fill_with_noise(adapter: &Adapter) {
    let mut rng = seeded(4);
    let _guard = tch::no_grad_guard();
    for (_, tensor) in adapter.named() {
        let count = tensor.numel();
        let values: Vec<f32> = (0..count).map(|_| (uniform(&mut rng) as f32 - 0.5) * 0.05).collect();
        tensor.shallow_clone().copy_(&Tensor::from_slice(&values).view_as(tensor));
    }
}

fn rows(tensor: &Tensor) -> Vec<f32> {
    Vec::<f32>::try_from(&tensor.to_kind(Kind::Float).reshape([-1])).unwrap()
}

#[test]
fn what_reads_left_to_right_is_the_base_bit_for_bit_whatever_adapter_zero_holds() {
    let Some(generator) = generator() else { return };
    let (text, adapter) = (tokens(generator), drawn(generator));
    let positions: Vec<i64> = (0..text.len() as i64).collect();
    let _guard = tch::no_grad_guard();
    let hidden = |visibility, adapters: &[&Adapter]| {
        let window = Window { tokens: &text, positions: &positions, visibility };
        rows(&generator.backbone().hidden(&window, None, Additions::adapters(adapters)).unwrap())
    };
    assert_eq!(hidden(Visibility::Causal, &[]), hidden(Visibility::Causal, &[&adapter]));
    assert_ne!(hidden(Visibility::All, &[]), hidden(Visibility::All, &[&adapter]));
    // The decided rows of a draft are the base's too.
    let draft = Visibility::Draft { decided: 10 };
    let (base, adapted) = (hidden(draft, &[]), hidden(draft, &[&adapter]));
    let decided = 10 * generator.backbone().config.hidden as usize;
    assert_eq!(base[..decided], adapted[..decided]);
    assert_ne!(base[decided..], adapted[decided..]);
}

#[test]
fn many_segments_in_one_window_are_each_what_they_are_alone() {
    let Some(generator) = generator() else { return };
    let (text, adapter) = (tokens(generator), drawn(generator));
    let backbone = generator.backbone();
    let mask = backbone.config.mask_token;
    let adapters = [&adapter];
    let mut clean = Clean::read(&backbone, Additions::adapters(&adapters), &text).unwrap();
    let mut of =
        |segments: &Segments| losses(&backbone, Additions::adapters(&adapters), &mut clean, segments, &text).unwrap();
    let parts: [(usize, &[bool], usize); 4] =
        [(1, &[true; 4], 0), (5, &[true, false, true], 0), (12, &[true; 8], 12), (20, &[false, true], 5)];
    let (mut together, mut apart) = (Segments::default(), Vec::new());
    for (start, masked, suffix) in parts {
        let mut own = Segments::default();
        own.push(&text, mask, start, masked, suffix, 1.0);
        apart.extend(of(&own));
        together.push(&text, mask, start, masked, suffix, 1.0);
    }
    let together = of(&together);
    assert_eq!(together.len(), apart.len());
    assert!(together.iter().zip(&apart).all(|(a, b)| (a - b).abs() < 1e-3), "{together:?} {apart:?}");
}

#[test]
fn a_hole_is_served_by_the_rows_that_it_was_trained_with() {
    let Some(assets) = assets() else { return };
    let folder = tempfile::tempdir().unwrap();
    let base = generator().unwrap();
    adapter_file::write(folder.path(), &drawn(base), base.base_hash, ContentHash::of(b"test"), Stored::F32).unwrap();
    let assets = assets.with_adapter_zero(folder.path());
    let generator = Generator::load(&assets, Generator::hashes(&assets).unwrap(), RUNTIME).unwrap();
    let text = tokens(&generator);
    let (start, hole, suffix) = (20, 4, 8);
    let mut segments = Segments::default();
    segments.push(&text, i64::from(generator.special.mask), start, &vec![true; hole], suffix, 1.0);
    let trained = {
        let backbone = generator.backbone();
        let zero = generator.adapter_zero.as_ref().unwrap().lock().unwrap();
        let adapters = [&*zero];
        let mut clean = Clean::read(&backbone, Additions::adapters(&adapters), &text).unwrap();
        losses(&backbone, Additions::adapters(&adapters), &mut clean, &segments, &text).unwrap()
    };
    let words: Vec<u32> = text.iter().map(|token| *token as u32).collect();
    let zero: Vec<Arc<Mutex<Adapter>>> = generator.adapter_zero.iter().cloned().collect();
    let mut stream = Stream::new(&generator, zero, 128).unwrap();
    stream.feed(&words[..start], &mut || Ok(())).unwrap();
    let mut window = vec![generator.special.mask; hole];
    window.extend(&words[start + hole..start + hole + suffix]);
    let (hidden, has_carry) = stream.peek_undecided(&[], &window).unwrap();
    assert!(has_carry);
    let logits = stream.logits(&hidden.narrow(0, 0, hole as i64)).unwrap();
    for (place, trained) in trained.iter().enumerate() {
        let row = logits.get(place as i64);
        let loss = row.logsumexp([-1], false) - row.get(text[start + place]);
        assert!((f64::try_from(&loss).unwrap() - f64::from(*trained)).abs() < 1e-3, "place {place}");
    }
}

#[test]
fn a_hole_written_left_to_right_is_served_by_the_rows_that_it_was_trained_with() {
    let Some(assets) = assets() else { return };
    let (folder, base) = (tempfile::tempdir().unwrap(), generator().unwrap());
    let middle = Adapter::for_middles(&base.backbone().config, 4, Device::Cpu, || 0.5).unwrap();
    fill_with_noise(&middle);
    adapter_file::write(folder.path(), &middle, base.base_hash, ContentHash::of(b"test"), Stored::F32).unwrap();
    let assets = assets.with_adapter_middle(folder.path());
    let hashes = Generator::hashes(&assets).unwrap();
    assert_eq!(hashes.base, base.base_hash, "adapters of users stay bound to the base");
    let generator = Generator::load(&assets, hashes, RUNTIME).unwrap();
    let text = tokens(&generator);
    let (hole, suffix) = (20..25, 8);
    let mut middles = Middles::default();
    // One in front of it: holes do not see each other.
    middles.push(&text, 6..9, 5);
    middles.push(&text, hole.clone(), suffix);
    let trained = {
        let backbone = generator.backbone();
        let adapter = generator.adapter_middle.as_ref().unwrap().lock().unwrap();
        let adapters = [&*adapter];
        let mut clean = Clean::read(&backbone, Additions::default(), &text).unwrap();
        clean.read_suffixes(&backbone, Additions::adapters(&adapters), &middles.suffixes).unwrap();
        losses(&backbone, Additions::adapters(&adapters), &mut clean, &middles.holes, &text).unwrap().split_off(3)
    };
    let words: Vec<u32> = text.iter().map(|token| *token as u32).collect();
    let mut stream = Stream::new(&generator, generator.shipped(), 128).unwrap();
    stream.feed(&words[..hole.start], &mut || Ok(())).unwrap();
    let before = stream.mark().unwrap();
    let tail = rows(stream.tail().unwrap());
    stream.look_ahead(&words[hole.end..hole.end + suffix], hole.len()).unwrap();
    for (place, trained) in trained.iter().enumerate() {
        let hidden = stream.write_middle(&words[hole.start..hole.start + place]).unwrap();
        let row = stream.logits(&hidden).unwrap().get(0);
        let loss = row.logsumexp([-1], false) - row.get(text[hole.start + place]);
        assert!((f64::try_from(&loss).unwrap() - f64::from(*trained)).abs() < 1e-3, "place {place}");
    }
    // Nothing of it stays.
    stream.rewind(&before);
    assert_eq!((stream.len(), rows(stream.tail().unwrap())), (hole.start, tail));
}

#[test]
fn the_gradient_made_by_hand_is_the_one_of_the_graph() {
    let Some(generator) = generator() else { return };
    let (text, adapter) = (tokens(generator), drawn(generator));
    let backbone = generator.backbone();
    let mut segments = Segments::default();
    segments.push(&text, backbone.config.mask_token, 8, &[true, false, true, true], 4, 2.0);
    let (_, factor) = adapter.named().remove(0);
    let factor = factor.set_requires_grad(true);
    let adapters = [&adapter];
    let mut clean = Clean::read(&backbone, Additions::default(), &text).unwrap();
    let made = graph(&backbone, &adapters, &mut clean, &segments, &text, Teaching::Base(0.0), 3.0).unwrap().unwrap();
    let by_hand = Tensor::run_backward(&[made.surrogate], &[&factor], false, false).remove(0);
    // The loss itself, a little to either side along the gradient.
    let mut loss_at = |step: f64| {
        let _guard = tch::no_grad_guard();
        factor.shallow_clone().copy_(&(&factor + &by_hand * step));
        let losses = losses(&backbone, Additions::adapters(&adapters), &mut clean, &segments, &text).unwrap();
        factor.shallow_clone().copy_(&(&factor - &by_hand * step));
        losses.iter().map(|loss| f64::from(*loss) * 2.0 / 3.0).sum::<f64>()
    };
    let length = by_hand.norm().double_value(&[]);
    let step = 1e-2 / length;
    let slope = (loss_at(step) - loss_at(-step)) / (2.0 * step);
    assert!((slope / (length * length) - 1.0).abs() < 0.02, "slope {slope}, squared length {}", length * length);
    assert!((made.loss - loss_at(0.0)).abs() < 1e-4);
}

fn corpus(folder: &Path) -> Corpus {
    let path = folder.join("corpus.jsonl");
    let lines: Vec<String> =
        (0..4).map(|i| serde_json::json!({"source": "own", "text": format!("{i}. {TEXT}")}).to_string()).collect();
    fs_err::write(&path, lines.join("\n")).unwrap();
    Corpus::open(&path, &[]).unwrap()
}

fn plan(seed: u64) -> Plan {
    Plan {
        rank: 2,
        texts: 1,
        text_tokens: 40,
        rows: 30,
        task: Task::Unmasking(Mix::default()),
        teaching: 0.5,
        seed,
        teacher: None,
    }
}

fn course(folder: &Path, steps: u32) -> Course {
    Course {
        rate: 1e-3,
        warm_up: 2,
        folder: folder.to_path_buf(),
        steps,
        cool_down: 0,
        checkpoint_every: 10,
        look_every: 100,
        look_windows: 0,
    }
}

#[test]
fn a_run_that_is_stopped_goes_on_exactly_and_refuses_another_plan() {
    let Some(generator) = generator() else { return };
    let folder = tempfile::tempdir().unwrap();
    let corpus = corpus(folder.path());
    let adapter = |name: &str| fs_err::read(folder.path().join(name).join(adapter_file::NAME)).unwrap();
    let run = |name: &str, seed, steps| {
        let course = course(&folder.path().join(name), steps);
        base::run(generator, &corpus, &corpus, &plan(seed), None, &course, &CancelToken::default())
    };
    let whole = run("whole", 1, 4).unwrap();
    assert!(whole.step == 4 && whole.guesses > 0 && whole.rows > whole.guesses);
    run("parts", 1, 2).unwrap();
    assert!(base::has_checkpoint(&folder.path().join("parts")));
    run("parts", 1, 4).unwrap();
    assert_eq!(adapter("whole"), adapter("parts"));
    assert!(run("parts", 2, 4).is_err());
    // The same for holes that are written left to right.
    let middle = |name: &str, steps| {
        let course = Course { look_every: 2, look_windows: 1, ..course(&folder.path().join(name), steps) };
        let plan = Plan { task: Task::Middles, ..plan(1) };
        base::run(generator, &corpus, &corpus, &plan, None, &course, &CancelToken::default())
    };
    middle("middle", 4).unwrap();
    middle("middle parts", 2).unwrap();
    middle("middle parts", 4).unwrap();
    assert_eq!(adapter("middle"), adapter("middle parts"));
    let curve = fs_err::read_to_string(folder.path().join("middle").join(base::CURVE)).unwrap();
    assert!(curve.lines().count() == 3 && curve.contains("middle_16_unseen"), "{curve}");
    // A student starts as its teacher and learns two of its steps at once.
    let config = generator.backbone().config.clone();
    let teacher = adapter_file::read(&folder.path().join("whole"), &config, generator.base_hash, Device::Cpu).unwrap();
    let hash = adapter_file::hash(&folder.path().join("whole")).unwrap();
    let mix = Mix { blocks: 0.0, drafts: 0.0, infills: 1.0 };
    let course = course(&folder.path().join("student"), 2);
    let student = Plan { task: Task::Unmasking(mix), teacher: hash, ..plan(1) };
    base::run(generator, &corpus, &corpus, &student, Some(teacher), &course, &CancelToken::default()).unwrap();
    assert_ne!(adapter("student"), adapter("whole"));
    // What it leaves is what is shipped.
    let read = |hash| adapter_file::read(&folder.path().join("whole"), &config, hash, Device::Cpu);
    assert!(read(generator.base_hash).unwrap().mask.is_some());
    let error = read(ContentHash::of(b"another base")).unwrap_err().to_string();
    assert!(error.contains("belongs to base"), "{error}");
}
