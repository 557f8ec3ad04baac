//! The tables: bits a character of every arm in every tenth, paired gains with intervals, decisions of the gates, costs.

use std::collections::BTreeMap;

use mneme_bench::streams::Failure;
use mneme_evolution::gate::{Decision, Verdict};
use mneme_evolution::ppm::Ppm;
use mneme_evolution::prequential::{Pair, Part, measure};

use crate::Arguments;
use crate::cache::{TokenCache, Weights};
use crate::chain::{Judged, Served};
use crate::measure::EntryScore;
use crate::plot;
use crate::results::Results;
use crate::stream::{PARTS, Stream};

/// Order of the character cache.
const CACHE_ORDER: usize = 6;

/// Costs of every entry under an arm, tenth by tenth; a tenth that was not measured is empty.
type Costs = Vec<Vec<(u64, f64)>>;

/// Prints what there is and writes table and plot beside the measurements.
pub(crate) fn print(stream: &Stream, results: &Results, arguments: &Arguments) -> Result<(), Failure> {
    let mut arms: BTreeMap<&str, Costs> = BTreeMap::new();
    let of = |arm: &str| -> Vec<Option<Vec<EntryScore>>> {
        (0..PARTS).map(|part| results.get(&format!("arm/{arm}/{part}"))).collect()
    };
    for arm in ["frozen", "ungated", "loop", "placebo", "shuffled", "retrieval", "loop+retrieval", "knn"] {
        let scores = of(arm);
        arms.insert(arm, scores.iter().map(|part| plain(part.as_deref())).collect());
    }
    arms.insert("frozen+cache", with_cache(stream, &of("frozen")));
    arms.insert("loop+cache", with_cache(stream, &of("loop")));
    arms.insert("loop+retrieval+cache", with_cache(stream, &of("loop+retrieval")));
    arms.insert("retrieval+cache", with_cache(stream, &of("retrieval")));
    let (cache_frozen, cache) = characters(stream);
    arms.insert("cache frozen", cache_frozen);
    arms.insert("cache", cache);
    arms.retain(|_, costs| costs.iter().any(|part| !part.is_empty()));

    println!(
        "\nbits a character, {} sampled entries a tenth, cut to {} characters",
        arguments.entries, arguments.chars
    );
    print!("{:<22}", "arm");
    (1..=PARTS).for_each(|part| print!("{part:>7}"));
    println!("   2..10");
    for (arm, costs) in &arms {
        print!("{arm:<22}");
        for part in costs {
            match per_char(part) {
                Some(bits) => print!("{bits:>7.3}"),
                None => print!("{:>7}", "-"),
            }
        }
        println!("{:>8}", per_char(&costs[1..].concat()).map_or_else(|| "-".into(), |bits| format!("{bits:.3}")));
    }
    for (arm, baseline) in [
        ("loop", "frozen"),
        ("loop", "retrieval"),
        ("loop+retrieval", "retrieval"),
        ("loop+retrieval", "frozen"),
        ("loop", "knn"),
        ("loop", "placebo"),
        ("loop", "shuffled"),
        ("loop", "ungated"),
        ("loop", "cache"),
        ("loop+cache", "cache"),
        ("loop+cache", "frozen+cache"),
        ("loop+cache", "loop"),
        ("cache", "cache frozen"),
        ("frozen+cache", "frozen"),
        ("retrieval", "frozen"),
        ("placebo", "frozen"),
        ("shuffled", "frozen"),
    ] {
        if let (Some(arm_costs), Some(baseline_costs)) = (arms.get(arm), arms.get(baseline)) {
            gains(&format!("{arm} against {baseline}"), arm_costs, baseline_costs, arguments.seed);
        }
    }
    decisions(results);
    efficiency(results, &arms);
    let path = arguments.out.join("evolution.svg");
    fs_err::write(&path, plot::svg(&arms, arguments.seed))?;
    println!("\n{:.1} CPU minutes of the engine; the plot is {}", results.cpu_seconds() / 60.0, path.display());
    Ok(())
}

fn plain(scores: Option<&[EntryScore]>) -> Vec<(u64, f64)> {
    scores.unwrap_or_default().iter().map(|score| (score.chars, score.bits())).collect()
}

fn per_char(costs: &[(u64, f64)]) -> Option<f64> {
    let chars: u64 = costs.iter().map(|(chars, _)| chars).sum();
    (chars > 0).then(|| costs.iter().map(|(_, bits)| bits).sum::<f64>() / chars as f64)
}

/// Pairs of the tenths that both arms have.
pub(crate) fn pairs(arm: &[(u64, f64)], baseline: &[(u64, f64)]) -> Vec<Pair> {
    if arm.len() != baseline.len() {
        return Vec::new();
    }
    let pair = |((chars, arm_bits), (_, baseline_bits)): (&(u64, f64), &(u64, f64))| Pair {
        chars: *chars,
        baseline_bits: *baseline_bits,
        arm_bits: *arm_bits,
    };
    arm.iter().zip(baseline).map(pair).collect()
}

fn gains(title: &str, arm: &Costs, baseline: &Costs, seed: u64) {
    let parts: Vec<Vec<Pair>> = arm.iter().zip(baseline).map(|(arm, baseline)| pairs(arm, baseline)).collect();
    if parts.iter().all(Vec::is_empty) {
        return;
    }
    print!("{title:<32}");
    for part in &parts {
        if part.len() < 2 { print!("      -") } else { print!("{:>+7.1}", measure(part, seed).gain * 100.0) }
    }
    let all = parts[1..].concat();
    if all.len() > 1 {
        let Part { gain, gain_lower, gain_upper, .. } = measure(&all, seed);
        print!("   all {:+.2}% [{:+.2}, {:+.2}]", gain * 100.0, gain_lower * 100.0, gain_upper * 100.0);
    }
    let measured: Vec<&Vec<Pair>> = parts.iter().filter(|part| part.len() > 1).collect();
    if let Some(last) = measured.last() {
        let Part { gain, gain_lower, gain_upper, .. } = measure(last, seed);
        print!("   last {:+.1}% [{:+.1}, {:+.1}]", gain * 100.0, gain_lower * 100.0, gain_upper * 100.0);
    }
    println!();
}

/// A language model mixed with a token cache that learns every entry that was predicted so far.
fn with_cache(stream: &Stream, scores: &[Option<Vec<EntryScore>>]) -> Costs {
    let (mut cache, mut weights) = (TokenCache::default(), Weights::default());
    let mut costs = vec![Vec::new(); PARTS];
    debug_assert_eq!(scores.len(), stream.parts.len());
    for (part, scores) in costs.iter_mut().zip(scores) {
        for score in scores.iter().flatten() {
            part.push((score.chars, cache.cost(&score.tokens, &score.log, &mut weights)));
            cache.learn(&score.tokens);
        }
    }
    costs
}

/// The character cache on the sampled entries: frozen after the first tenth, and learning every entry of the stream.
fn characters(stream: &Stream) -> (Costs, Costs) {
    let mut learning = Ppm::new(CACHE_ORDER);
    let mut frozen: Option<Ppm> = None;
    let (mut before, mut after) = (vec![Vec::new(); PARTS], vec![Vec::new(); PARTS]);
    for (part, range) in stream.parts.iter().enumerate() {
        for entry in range.clone() {
            if stream.sampled[part].contains(&entry) {
                let text = &stream.cut[entry];
                let chars = text.chars().count() as u64;
                let bits = learning.cost("\n", text);
                before[part].push((chars, frozen.as_ref().map_or(bits, |frozen| frozen.cost("\n", text))));
                after[part].push((chars, bits));
            }
            learning.learn(&stream.entries[entry]);
            learning.learn("\n");
        }
        frozen.get_or_insert_with(|| learning.clone());
    }
    (before, after)
}

fn decisions(results: &Results) {
    println!("\ngates (nats a token, one-sided bounds at the gate's level; forgetting in bits)");
    for (_, Judged { after, verdict, scale, cpu_seconds }) in results.all::<Judged>("judged/") {
        let numbers = verdict.numbers();
        let told = |name: &str| {
            let number = |suffix: &str| numbers.get(&format!("{name}{suffix}"));
            match (number(""), number("_lower"), number("_upper")) {
                (Some(mean), Some(lower), Some(upper)) => format!("{mean:+.3} [{lower:+.3}, {upper:+.3}]"),
                _ => "-".to_owned(),
            }
        };
        println!(
            "after tenth {after} at scale {scale}: {:?}; gain {}, over placebo {}, over retrieval {}, over parent {}, forgetting {}, {cpu_seconds:.0} CPU s{}",
            verdict.decision,
            told("gain_nats"),
            told("over_placebo_nats"),
            told("over_retrieval_nats"),
            told("over_parent_nats"),
            told("forgetting_bits"),
            if verdict.reasons.is_empty() { String::new() } else { format!(" ({})", verdict.reasons.join("; ")) }
        );
    }
    for (key, served) in results.all::<Served>("served/") {
        for line in served.log {
            println!("tenth {}: {line}", key.trim_start_matches("served/").parse::<usize>().unwrap_or(0) + 1);
        }
    }
    let placebos = results.all::<Verdict>("placebo-gate/");
    let rejected = placebos.iter().filter(|(_, verdict)| verdict.decision != Decision::Accept).count();
    if !placebos.is_empty() {
        println!(
            "placebo adapters before the gates: {rejected} of {} judgements did not accept ({:.1}%)",
            placebos.len(),
            100.0 * rejected as f64 / placebos.len() as f64
        );
    }
}

/// What the loop's gain cost.
fn efficiency(results: &Results, arms: &BTreeMap<&str, Costs>) {
    let cost: f64 = results.all::<Judged>("judged/").iter().map(|(_, judged)| judged.cpu_seconds).sum();
    let gain =
        |arm: &str| Some(per_char(&arms.get("frozen")?[1..].concat())? - per_char(&arms.get(arm)?[1..].concat())?);
    if let Some(gain) = gain("loop").filter(|gain| *gain > 0.0) {
        println!(
            "training and judging: {cost:.0} CPU s, {:.0} CPU s for 0.01 bits a character over the stream",
            cost / gain * 0.01
        );
    }
}
