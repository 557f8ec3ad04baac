//! The arms that train: the loop with its gates and its shadow, training without gates, a placebo, and shuffled time.

use mneme_bench::streams::Failure;
use mneme_engine_api::TrainOutcome;
use mneme_evolution::eprocess::GainTest;
use mneme_evolution::gate::{self, Decision, Past, Verdict};
use mneme_evolution::policy::Policy;
use mneme_evolution::random::Random;
use serde::{Deserialize, Serialize};

use crate::Arguments;
use crate::measure::{Bench, EntryScore, JobTexts, Trained};
use crate::stream::PARTS;

/// Newest entries of a job that are judged on and not learned.
const HELD_OUT: usize = 24;
/// Entries between the two that are neither.
const GAP: usize = 2;
/// Entries that a job learns at most, the newest.
const TRAIN_MAX: usize = 240;

/// What the gates said of a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Judged {
    /// After which tenth.
    pub(crate) after: usize,
    /// The judgement at the last scale.
    pub(crate) verdict: Verdict,
    /// The last scale.
    pub(crate) scale: f32,
    /// CPU seconds of training and judging.
    pub(crate) cpu_seconds: f64,
}

/// What the loop served in a tenth.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Served {
    /// For each sampled entry the adapter that served it.
    pub(crate) adapters: Vec<Option<Trained>>,
    /// The entry at which an adapter was committed, if one was.
    pub(crate) committed_at: Option<usize>,
    /// What happened, in words.
    pub(crate) log: Vec<String>,
}

/// An adapter in the shadow.
struct Trial {
    adapter: Trained,
    gain: GainTest,
    harm: GainTest,
    texts: u32,
}

/// The arms as they stand.
struct Arms {
    active: Option<Trained>,
    serving_harm: GainTest,
    trial: Option<Trial>,
    /// Entries up to here are in the weights of what serves.
    learned: usize,
    pending: usize,
    ungated: Option<Trained>,
    ungated_learned: usize,
    placebo: Option<Trained>,
    shuffled: Option<Trained>,
    jobs: usize,
}

/// Runs all arms over the stream, as far as the budget goes.
pub(crate) fn run(bench: &mut Bench<'_>, arguments: &Arguments) -> Result<(), Failure> {
    let policy = Policy::default();
    let mut arms = Arms {
        active: None,
        serving_harm: GainTest::for_harm(policy.shadow_clip),
        trial: None,
        learned: 0,
        pending: 0,
        ungated: None,
        ungated_learned: 0,
        placebo: None,
        shuffled: None,
        jobs: 0,
    };
    for part in 0..PARTS {
        if part > 0 && arguments.jobs.contains(&part) {
            train(bench, &policy, &mut arms, part)?;
        }
        score(bench, &policy, &mut arms, part)?;
    }
    // Retrieval's prompts cost most: they come last, the two ends of the stream first, so that a small budget shows its shape.
    for part in [9, 1, 5, 3, 7, 0, 2, 4, 6, 8] {
        retrieval(bench, part)?;
    }
    placebo_gates(bench, &policy, arguments)
}

/// The jobs after a tenth.
fn train(bench: &mut Bench<'_>, policy: &Policy, arms: &mut Arms, after: usize) -> Result<(), Failure> {
    arms.jobs += 1;
    let end = bench.stream.parts[after - 1].end;
    let ungated_texts = job_texts(bench, arms.ungated_learned, end, arms.jobs);
    let learned = ungated_texts.train.len();
    if arms.trial.is_none() {
        let texts = job_texts(bench, arms.learned, end, arms.jobs);
        let name = format!("loop-{after}");
        let parent = arms.active.clone();
        let (adapter, verdict) = gated(bench, policy, &name, parent.as_ref(), &texts, after)?;
        if verdict.decision == Decision::Accept {
            arms.pending = end - HELD_OUT - GAP;
            arms.trial = Some(Trial {
                adapter: adapter.clone(),
                gain: GainTest::for_gain(policy.shadow_clip),
                harm: GainTest::for_harm(policy.shadow_clip),
                texts: 0,
            });
        }
        // As long as the gates let everything pass, training with and without them is the same work.
        if parent == arms.ungated && arms.learned == arms.ungated_learned {
            arms.ungated = Some(Trained { scale: 1.0, ..adapter });
            arms.ungated_learned = end - HELD_OUT - GAP;
        }
    }
    if arms.ungated_learned < end - HELD_OUT - GAP {
        let texts = JobTexts { train: ungated_texts.train, ..JobTexts::default() };
        let (adapter, _) = bench.train(&format!("ungated-{after}"), arms.ungated.as_ref(), 1.0, &texts)?;
        arms.ungated = Some(adapter);
        arms.ungated_learned = end - HELD_OUT - GAP;
    }
    let others = take(&bench.texts.others, learned, arms.jobs * 2 + 1);
    let texts = JobTexts { train: others, ..JobTexts::default() };
    arms.placebo = Some(bench.train(&format!("placebo-{after}"), arms.placebo.as_ref(), 1.0, &texts)?.0);
    let texts = JobTexts { train: shuffled(bench, learned, arms.jobs), ..JobTexts::default() };
    arms.shuffled = Some(bench.train(&format!("shuffled-{after}"), arms.shuffled.as_ref(), 1.0, &texts)?.0);
    Ok(())
}

/// Trains and judges one job of the loop, scaled as often as the gate asks for it.
fn gated(
    bench: &mut Bench<'_>,
    policy: &Policy,
    name: &str,
    parent: Option<&Trained>,
    texts: &JobTexts,
    after: usize,
) -> Result<(Trained, Verdict), Failure> {
    let mut past = Past { scale: 1.0, ..Past::default() };
    let mut cpu_seconds = 0.0;
    loop {
        let scale = past.scale as f32;
        let (adapter, outcome) = bench.train(name, parent, scale, texts)?;
        cpu_seconds += outcome.cpu_seconds;
        gate::check(&outcome)?;
        let verdict = gate::judge(&outcome, &past, &policy.gate, after as u64);
        let key = format!("judged/{after}@{scale}");
        let judged = Judged { after, verdict: verdict.clone(), scale, cpu_seconds };
        if bench.results.get::<Judged>(&key).is_none() {
            bench.results.put(&key, &judged, 0.0)?;
            println!("{name} at scale {scale}: {:?} {}", verdict.decision, verdict.reasons.join("; "));
        }
        let Decision::Scale { factor } = verdict.decision else { return Ok((adapter, verdict)) };
        let forgets =
            verdict.forgetting.is_some_and(|e| e.upper / gate::NATS_PER_BIT > policy.gate.forgetting_max_bits);
        if forgets {
            past.scale_high = past.scale;
        } else {
            past.scale_low = past.scale;
        }
        past.scale = factor;
        past.scale_tries += 1;
    }
}

/// What a job learns, is judged on and compared with: all entries from `from` to `end`, the newest held out.
fn job_texts(bench: &Bench<'_>, from: usize, end: usize, job: usize) -> JobTexts {
    let entries = &bench.stream.cut;
    let held_out = end.saturating_sub(HELD_OUT);
    let train_end = held_out.saturating_sub(GAP);
    let train_start = from.max(train_end.saturating_sub(TRAIN_MAX)).min(train_end);
    let train = entries[train_start..train_end].to_vec();
    JobTexts {
        placebo: take(&bench.texts.others, train.len(), job * 2),
        train,
        held_out: entries[held_out..end].to_vec(),
        guard: bench.texts.guard.clone(),
    }
}

/// As many texts from a place that no other number gives, as long as there are enough.
fn take(texts: &[String], count: usize, number: usize) -> Vec<String> {
    texts.iter().cycle().skip(number * TRAIN_MAX % texts.len().max(1)).take(count).cloned().collect()
}

/// Entries of all times in an order drawn once, without those that are predicted.
fn shuffled(bench: &Bench<'_>, count: usize, job: usize) -> Vec<String> {
    let sampled: Vec<usize> = bench.stream.sampled.concat();
    let mut order: Vec<usize> = (0..bench.stream.cut.len()).filter(|entry| !sampled.contains(entry)).collect();
    let mut random = Random::stream(7, 0x5117);
    for place in (1..order.len()).rev() {
        order.swap(place, random.below(place + 1));
    }
    let chosen = order.iter().cycle().skip((job - 1) * TRAIN_MAX).take(count);
    chosen.map(|entry| bench.stream.cut[*entry].clone()).collect()
}

/// Predicts the sampled entries of a tenth under every arm, and runs the shadow on them.
fn score(bench: &mut Bench<'_>, policy: &Policy, arms: &mut Arms, part: usize) -> Result<(), Failure> {
    let sampled = bench.stream.sampled[part].clone();
    let under = |bench: &mut Bench<'_>, adapter: Option<&Trained>| -> Result<Vec<EntryScore>, Failure> {
        let entries: Vec<_> = sampled.iter().map(|entry| (*entry, adapter.cloned())).collect();
        bench.score(&format!("score/{}/{part}", Trained::key(adapter)), &entries)
    };
    let frozen = under(bench, None)?;
    let trial = arms.trial.as_ref().map(|trial| trial.adapter.clone());
    let shadow = trial.map(|adapter| under(bench, Some(&adapter))).transpose()?;
    let active = arms.active.clone().map(|adapter| under(bench, Some(&adapter))).transpose()?;
    for (arm, adapter) in
        [("ungated", arms.ungated.clone()), ("placebo", arms.placebo.clone()), ("shuffled", arms.shuffled.clone())]
    {
        let scores = under(bench, adapter.as_ref())?;
        keep(bench, &format!("arm/{arm}/{part}"), &scores)?;
    }
    keep(bench, &format!("arm/frozen/{part}"), &frozen)?;
    let (served, scores) = shadow_on(policy, arms, &frozen, active.as_deref(), shadow.as_deref());
    keep(bench, &format!("arm/loop/{part}"), &scores)?;
    if bench.results.get::<Served>(&format!("served/{part}")).is_none() {
        served.log.iter().for_each(|line| println!("tenth {}: {line}", part + 1));
        bench.results.put(&format!("served/{part}"), &served, 0.0)?;
    }
    Ok(())
}

/// Predicts the sampled entries of a tenth with recalled ones before them, under the base and under what the loop served.
fn retrieval(bench: &mut Bench<'_>, part: usize) -> Result<(), Failure> {
    let sampled = bench.stream.sampled[part].clone();
    let Some(served) = bench.results.get::<Served>(&format!("served/{part}")) else { return Ok(()) };
    let base: Vec<_> = sampled.iter().map(|entry| (*entry, None)).collect();
    let retrieval = bench.score_with_retrieval(&format!("arm/retrieval/{part}"), &base)?;
    if served.adapters.iter().all(Option::is_none) {
        return keep(bench, &format!("arm/loop+retrieval/{part}"), &retrieval);
    }
    let with: Vec<_> = sampled.iter().copied().zip(served.adapters).collect();
    bench.score_with_retrieval(&format!("arm/loop+retrieval/{part}"), &with)?;
    Ok(())
}

fn keep(bench: &mut Bench<'_>, key: &str, scores: &[EntryScore]) -> Result<(), Failure> {
    if bench.results.get::<Vec<EntryScore>>(key).is_none() {
        bench.results.put(key, &scores, 0.0)?;
    }
    Ok(())
}

/// Goes through a tenth entry by entry: what serves, what the shadow says, when it is committed or rolled back.
fn shadow_on(
    policy: &Policy,
    arms: &mut Arms,
    frozen: &[EntryScore],
    active: Option<&[EntryScore]>,
    shadow: Option<&[EntryScore]>,
) -> (Served, Vec<EntryScore>) {
    let mut served = Served { adapters: Vec::new(), committed_at: None, log: Vec::new() };
    let mut scores = Vec::new();
    let mut active = active;
    for (place, base) in frozen.iter().enumerate() {
        let now = active.and_then(|active| active.get(place)).unwrap_or(base);
        served.adapters.push(arms.active.clone());
        scores.push(now.clone());
        if arms.active.is_some() {
            arms.serving_harm.observe(base.loss() - now.loss());
            if arms.serving_harm.holds_at(policy.rollback_alpha) {
                served.log.push(format!("rolled back at entry {}", base.entry));
                arms.active = None;
                arms.serving_harm = GainTest::for_harm(policy.shadow_clip);
                active = None;
            }
        }
        let Some((trial, score)) = arms.trial.as_mut().zip(shadow.and_then(|shadow| shadow.get(place))) else {
            continue;
        };
        let gain = now.loss() - score.loss();
        trial.gain.observe(gain);
        trial.harm.observe(gain);
        trial.texts += 1;
        let harms = trial.harm.holds_at(policy.rollback_alpha);
        if trial.gain.holds_at(policy.shadow_alpha) && !harms {
            served.log.push(format!("{} committed after {} texts in shadow", trial.adapter.name, trial.texts));
            served.committed_at = Some(place);
            arms.active = Some(trial.adapter.clone());
            arms.learned = arms.pending;
            arms.serving_harm = GainTest::for_harm(policy.shadow_clip);
            arms.trial = None;
            active = shadow;
        } else if harms || trial.texts >= policy.shadow_texts_max {
            served.log.push(format!("{} failed in shadow after {} texts", trial.adapter.name, trial.texts));
            arms.trial = None;
        }
    }
    (served, scores)
}

/// Puts every placebo adapter before the gates, on the held-out texts of every job, with another placebo as its control.
fn placebo_gates(bench: &mut Bench<'_>, policy: &Policy, arguments: &Arguments) -> Result<(), Failure> {
    let mut outcomes = Vec::new();
    for after in &arguments.jobs {
        if let Some(outcome) = bench.results.get::<TrainOutcome>(&format!("job/loop-{after}@1")) {
            outcomes.push((*after, outcome));
        }
    }
    let mut placebos = Vec::new();
    for after in &arguments.jobs {
        let adapters = bench.folder().join("adapters");
        for (name, folder) in [
            (format!("placebo-{after}"), adapters.join(format!("placebo-{after}"))),
            (format!("control-{after}"), adapters.join(format!("loop-{after}")).join("placebo")),
        ] {
            // The control of a later job starts from the adapter that serves, and so knows the person.
            let knows_the_person = name.starts_with("control") && Some(after) != arguments.jobs.first();
            if !knows_the_person && folder.join("adapter.safetensors").is_file() {
                placebos.push(Trained { name, folder, scale: 1.0 });
            }
        }
    }
    for (after, outcome) in &outcomes {
        let end = bench.stream.parts[after - 1].end;
        let held_out = bench.stream.cut[end - HELD_OUT..end].to_vec();
        let guard = bench.texts.guard.clone();
        for (index, placebo) in placebos.iter().enumerate() {
            let control = &placebos[(index + 1) % placebos.len()];
            let under = |bench: &mut Bench<'_>, what: &str, texts: &[String], adapter: &Trained| {
                bench.losses(&format!("losses/{}/{what}", adapter.name), texts, adapter)
            };
            let adapted = under(bench, &format!("held-out-{after}"), &held_out, placebo)?;
            let of_control = under(bench, &format!("held-out-{after}"), &held_out, control)?;
            let candidate = TrainOutcome {
                held_out_adapted: adapted,
                held_out_placebo: of_control,
                // Fewer conditions than a real job has: the share that passes is an upper bound.
                held_out_retrieval: Vec::new(),
                held_out_retrieval_adapted: Vec::new(),
                held_out_parent: Vec::new(),
                guard_adapted: under(bench, "guard", &guard, placebo)?,
                ..outcome.clone()
            };
            let past = Past { scale: 1.0, ..Past::default() };
            let verdict = gate::judge(&candidate, &past, &policy.gate, index as u64);
            let key = format!("placebo-gate/{after}/{}", placebo.name);
            if bench.results.get::<Verdict>(&key).is_none() {
                bench.results.put(&key, &verdict, 0.0)?;
            }
        }
    }
    Ok(())
}
