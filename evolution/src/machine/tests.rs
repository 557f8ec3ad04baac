//! The machine is played through by a small world that carries out its actions and can be killed between any two rows.

use super::*;
use crate::data::tests::memory;
use crate::data::{Authorship, DataPolicy, Signature};
use crate::gate::tests::{Arms, GOOD, outcome};
use crate::portable::CardError;
use crate::random::{Random, mix};
use crate::trigger::Feedback;
use mneme_engine_api::TrainOutcome;
use proptest::prelude::*;

fn situation(which: usize) -> Embedding {
    let mut components = vec![0.0; 4];
    components[which % 4] = 1.0;
    Embedding::normalized(components).unwrap()
}

fn base() -> ContentHash {
    ContentHash::of(b"base")
}

/// Plays the daemon, the store and the trainer.
#[derive(Debug, Clone)]
struct World {
    evolution: Evolution,
    now: Timestamp,
    rows: Vec<LogRow>,
    /// State after each row.
    checkpoint: Option<Checkpoint>,
    actions: Vec<Action>,
    /// Adapters whose trainer runs.
    training: BTreeSet<AdapterId>,
    served: BTreeMap<ContextId, AdapterId>,
    arms: Arms,
    random: Random,
    next_memory: u64,
    notices: Vec<Notice>,
}

fn policy() -> Policy {
    Policy {
        context_radius: 0.4,
        checkpoint_every: 8,
        data: DataPolicy { train_tokens_min: 500, gap_ms: 1_000, ..DataPolicy::default() },
        fresh_tokens_min: 500,
        ..Policy::default()
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            evolution: Evolution::new(Policy { seed, ..policy() }),
            now: Timestamp::from_millis(1_700_000_000_000),
            rows: Vec::new(),
            checkpoint: None,
            actions: Vec::new(),
            training: BTreeSet::new(),
            served: BTreeMap::new(),
            arms: GOOD,
            random: Random::new(seed),
            next_memory: 0,
            notices: Vec::new(),
        };
        world.engine();
        world
    }

    fn engine(&mut self) {
        let trains = vec![AdapterLevel::Lora, AdapterLevel::Layers];
        self.send(Event::Engine { base_hash: base(), trains });
    }

    fn send(&mut self, event: Event) {
        self.now = self.now.plus_millis(5_000);
        let actions = self.evolution.handle(event, self.now);
        self.carry_out(actions);
        assert_eq!(self.evolution.state().problems(), Vec::<String>::new());
    }

    fn carry_out(&mut self, actions: Vec<Action>) {
        for action in &actions {
            match action {
                Action::Journal(row) => {
                    assert_eq!(row.id, self.rows.len() as u64 + 1);
                    let text = serde_json::to_string(row).unwrap();
                    self.rows.push(serde_json::from_str(&text).unwrap());
                }
                Action::Checkpoint(checkpoint) => {
                    let text = serde_json::to_string(checkpoint).unwrap();
                    self.checkpoint = Some(serde_json::from_str(&text).unwrap());
                }
                Action::StartTraining(JobSpec { adapter, .. }) | Action::ScaleAdapter { adapter, .. } => {
                    self.training.insert(*adapter);
                    assert_eq!(self.training.len(), 1, "at most one job");
                }
                Action::StopTraining { adapter } | Action::RetireAdapter { adapter } => {
                    self.training.remove(adapter);
                    assert!(!self.served.values().any(|served| served == adapter), "retired while served");
                }
                Action::ActivateAdapter { adapter, context } => {
                    let before = self.served.insert(*context, *adapter);
                    assert!(before.is_none_or(|before| before == *adapter), "two adapters in one context");
                }
                Action::DeactivateAdapter { adapter, context } => {
                    assert_eq!(self.served.remove(context), Some(*adapter));
                }
                Action::Notify(notice) => self.notices.push(notice.clone()),
                Action::ShadowAdapter { .. } => {}
            }
        }
        self.actions.extend(actions);
    }

    /// Kills everything after this many rows and starts again.
    fn restart(&mut self, rows: usize) {
        self.rows.truncate(rows);
        let policy = self.evolution.policy().clone();
        self.evolution = Evolution::restore(policy, self.rows.clone(), self.checkpoint.clone()).unwrap();
        assert_eq!(self.evolution.state().problems(), Vec::<String>::new());
        self.training.clear();
        self.served.clear();
        let actions = self.evolution.reconcile();
        self.carry_out(actions);
        self.engine();
    }

    fn tick(&mut self) {
        self.send(Event::Tick { load: 0.1, on_battery: false });
    }

    fn write(&mut self, which: usize, texts: usize) {
        for _ in 0..texts {
            self.next_memory += 1;
            let number = self.next_memory;
            let text = format!("{} {} {}", mix(number), mix(number + 1_000), mix(number + 2_000));
            self.send(Event::UserText {
                memory: memory(number),
                time: self.now,
                tokens: 60,
                situation: situation(which),
                signature: Signature::of(&text),
                authorship: Authorship::Authored,
            });
        }
    }

    fn generate(&mut self, which: usize, surprise: f64) {
        let surprise = (surprise * (0.2 * self.random.normal()).exp()) as f32;
        self.send(Event::Generated { situation: situation(which), ambiguity: 1.0, surprise, structural: false });
    }

    /// Lets the trainer finish, when one runs.
    fn finish(&mut self) {
        if let Some(adapter) = self.training.pop_first() {
            let level = self.evolution.state().job.as_ref().map_or(AdapterLevel::Lora, |job| job.spec.level);
            let seed = self.rows.len() as u64;
            self.send(Event::Trained(Box::new(TrainOutcome { adapter, level, ..outcome(self.arms, seed) })));
        }
    }

    /// A real text of the context is scored: the adapters gain this much over the base (nats a token).
    fn score(&mut self, which: usize, gain: f64) {
        if let Some((context, adapters)) = self.evolution.watched(&situation(which)) {
            let noise = 0.05 * self.random.normal();
            let adapted = adapters.into_iter().map(|adapter| (adapter, (3.0 - gain + noise) as f32)).collect();
            self.send(Event::Scored { context, tokens: 80, base_loss: 3.0, adapted });
        }
    }

    /// Imports a card whose adapter forgets nothing.
    fn import(&mut self, card: &SkillCard, foreign: &[MemoryId]) {
        let (card, foreign) = (Box::new(card.clone()), foreign.iter().copied().collect());
        self.send(Event::Command(Command::Import { card, foreign, guard: vec![(3.0, 3.0); 8] }));
    }

    /// Text, an order to train, a good outcome, a good shadow: the adapter serves.
    fn commit(&mut self, which: usize) -> AdapterId {
        self.write(which, 60);
        self.tick();
        self.send(Event::Command(Command::RunNow { situation: Some(situation(which)) }));
        self.finish();
        (0..120).for_each(|_| {
            if self.evolution.state().trials.iter().any(|trial| Some(trial.context) == self.context(which)) {
                self.score(which, 0.1);
            }
        });
        self.evolution.route(&situation(which)).expect("an adapter serves").adapter
    }

    fn context(&self, which: usize) -> Option<ContextId> {
        self.evolution.soft.trigger.contexts().find(&situation(which))
    }

    fn stages(&self) -> Vec<Stage> {
        self.rows.iter().map(|row| row.to).collect()
    }

    fn refused(&self) -> bool {
        matches!(self.notices.last(), Some(Notice::Refused { .. }))
    }
}

#[test]
fn a_surprising_context_is_trained_for_proved_and_served() {
    let mut world = World::new(1);
    world.write(0, 60);
    world.tick();
    for _ in 0..60 {
        (1..4).for_each(|which| world.generate(which, 1.0));
    }
    for _ in 0..60 {
        world.generate(0, 2.0);
        world.generate(1, 1.0);
    }
    assert!(world.evolution.route(&situation(0)).is_none(), "nothing is served before it is proved");
    world.finish();
    (0..60).for_each(|_| world.score(0, 0.1));
    let stages = world.stages();
    let wanted = [Stage::Suspect, Stage::Propose, Stage::Train, Stage::Validate, Stage::Shadow, Stage::Commit];
    assert_eq!(stages.iter().filter(|stage| wanted.contains(stage)).copied().collect::<Vec<_>>(), wanted);
    let served = world.evolution.route(&situation(0)).unwrap();
    assert!(served.weight > 0.5);
    assert!(world.evolution.route(&situation(1)).is_none());
    let row = world.rows.iter().find(|row| row.to == Stage::Suspect).unwrap();
    assert!(row.reason.contains("p-values") && row.numbers["wealth"] >= row.numbers["threshold"]);
}

#[test]
fn weak_adapters_are_rejected_with_reasons_and_not_proposed_again_without_fresh_text() {
    let mut world = World::new(2);
    world.arms = Arms { gain: 0.0, ..GOOD };
    world.write(0, 60);
    world.tick();
    world.send(Event::Command(Command::RunNow { situation: None }));
    world.finish();
    let row = world.rows.last().unwrap();
    assert_eq!(row.to, Stage::Reject);
    assert!(row.reason.contains("held-out") && row.numbers.contains_key("gain_nats_lower"));
    let context = world.context(0).unwrap();
    let centroid = situation(0);
    let change = Change::Suspected { cause: Cause::Alarm, centroid, structural: false, rounds: 1 };
    let draft = Draft::new(Stage::Serve, Stage::Suspect, "again", change).about(None, context);
    let mut out = Vec::new();
    world.evolution.record(draft, world.now, &mut out);
    world.carry_out(out);
    world.tick();
    assert!(world.evolution.status(world.now).waiting.unwrap().contains("fresh tokens"));
    world.write(0, 20);
    assert_eq!(world.stages().last(), Some(&Stage::Train));
}

#[test]
fn forgetful_adapters_are_scaled_until_they_keep() {
    let mut world = World::new(3);
    world.arms = Arms { forgetting: 0.3, ..GOOD };
    world.write(0, 60);
    world.tick();
    world.send(Event::Command(Command::RunNow { situation: None }));
    world.finish();
    assert_eq!(world.stages()[world.rows.len() - 2..], [Stage::Scale, Stage::Scale]);
    let factor = world.actions.iter().find_map(|action| match action {
        Action::ScaleAdapter { factor, .. } => Some(*factor),
        _ => None,
    });
    assert_eq!(factor, Some(0.5));
    world.arms = GOOD;
    world.finish();
    assert_eq!(world.stages().last(), Some(&Stage::Shadow));
    let row = world.rows.last().unwrap();
    assert!((row.numbers["uses"] - 1.0).abs() < 1e-9 && row.numbers["alpha"] < 0.01, "the texts were used before");
    let entry = world.evolution.state().registry.iter().next().unwrap();
    assert!((entry.card.scale - 0.5).abs() < 1e-9);
}

#[test]
fn an_adapter_that_does_harm_later_is_rolled_back_to_the_one_before() {
    let mut world = World::new(4);
    let first = world.commit(0);
    // The second must clear the Ladder.
    world.arms = Arms { gain: 0.16, ..GOOD };
    world.write(0, 30);
    world.send(Event::Command(Command::RunNow { situation: Some(situation(0)) }));
    world.finish();
    // On trial it is compared with what serves; both are scored alike but for its advantage.
    while !world.evolution.state().trials.is_empty() {
        let (context, adapters) = world.evolution.watched(&situation(0)).unwrap();
        let adapted = adapters.iter().map(|a| (*a, if *a == first { 2.9 } else { 2.8 })).collect();
        world.send(Event::Scored { context, tokens: 50, base_loss: 3.0, adapted });
    }
    let second = world.evolution.route(&situation(0)).unwrap().adapter;
    assert_ne!(first, second);
    // The one before stays in the mixture, and comes to more weight when it fits better again.
    let share = |world: &World, adapter| {
        let mixture = world.evolution.mixture(&situation(0));
        mixture.iter().find(|served| served.adapter == adapter).map_or(0.0, |served| served.weight)
    };
    assert!(share(&world, second) > 0.8 && share(&world, first) + share(&world, second) <= 1.0);
    let mut back = world.evolution.clone();
    for _ in 0..3 {
        let (context, _) = back.watched(&situation(0)).unwrap();
        let adapted = vec![(first, 2.7), (second, 2.9)];
        back.handle(Event::Scored { context, tokens: 50, base_loss: 3.0, adapted }, world.now);
    }
    assert_eq!(back.route(&situation(0)).unwrap().adapter, first);
    assert_eq!(back.mixture(&situation(0)).iter().filter(|served| served.weight > 0.5).count(), 1);
    assert_eq!(world.evolution.state().registry.get(first).unwrap().state, CardState::Superseded);
    (0..80).for_each(|_| {
        if world.stages().last() != Some(&Stage::Rollback) {
            world.score(0, -0.1);
        }
    });
    assert_eq!(world.stages().last(), Some(&Stage::Rollback));
    assert_eq!(world.evolution.state().registry.get(second).unwrap().state, CardState::RolledBack);
    assert_eq!(world.served.values().copied().collect::<Vec<_>>(), [first]);
}

#[test]
fn a_pinned_adapter_stays_whatever_the_evidence_until_the_user_takes_it_back() {
    let mut world = World::new(5);
    let adapter = world.commit(0);
    world.send(Event::Command(Command::Pin { adapter, pinned: true }));
    (0..100).for_each(|_| world.score(0, -0.1));
    assert_eq!(world.served.values().copied().collect::<Vec<_>>(), [adapter]);
    world.send(Event::Command(Command::Rollback { adapter }));
    assert!(world.served.is_empty() && world.evolution.route(&situation(0)).is_none());
    world.send(Event::Command(Command::Rollback { adapter }));
    assert!(world.refused());
}

#[test]
fn forgetting_a_learned_memory_retires_the_adapter_and_stops_the_job_that_uses_it() {
    let mut world = World::new(6);
    let adapter = world.commit(0);
    let learned = world.evolution.state().registry.get(adapter).unwrap().card.lineage[0];
    // A pin does not stand against a promise to forget.
    world.send(Event::Command(Command::Pin { adapter, pinned: true }));
    assert!(world.evolution.keeps(adapter));
    world.send(Event::Forgotten(vec![learned]));
    assert_eq!(world.evolution.state().registry.get(adapter).unwrap().state, CardState::Retired);
    assert!(world.served.is_empty() && world.evolution.route(&situation(0)).is_none());
    assert!(world.actions.contains(&Action::RetireAdapter { adapter }));
    assert!(!world.evolution.keeps(adapter));

    world.write(0, 30);
    world.send(Event::Command(Command::RunNow { situation: Some(situation(0)) }));
    let job = world.evolution.state().job.clone().unwrap().spec;
    world.send(Event::Forgotten(vec![job.held_out[0]]));
    assert!(world.actions.contains(&Action::StopTraining { adapter: job.adapter }));
    // It is planned again without that memory, under another name.
    let again = world.evolution.state().job.clone().unwrap().spec;
    assert_ne!(again.adapter, job.adapter);
    assert!(!again.train.contains(&job.held_out[0]) && !again.held_out.contains(&job.held_out[0]));
    // The stopped trainer's late result is of no use.
    world.send(Event::Trained(Box::new(TrainOutcome { adapter: job.adapter, ..outcome(GOOD, 1) })));
    assert!(matches!(world.notices.last(), Some(Notice::Ignored { .. })));
}

#[test]
fn forgetting_what_was_never_used_leaves_no_trace() {
    let mut world = World::new(3);
    world.write(0, 60);
    let rows = world.rows.len();
    for number in 10_000..10_500 {
        world.send(Event::Forgotten(vec![memory(number)]));
    }
    // What is in view and nothing was made of leaves no more than that.
    for number in 1..=20 {
        world.send(Event::Forgotten(vec![memory(number)]));
    }
    assert_eq!(world.rows.len(), rows);
    assert!(world.evolution.state().registry.forgotten().is_empty());
    assert_eq!(world.evolution.memories_in_use().len(), 40);
    world.send(Event::Command(Command::RunNow { situation: None }));
    world.tick();
    let learned = world.evolution.state().job.as_ref().unwrap().spec.train[0];
    world.send(Event::Forgotten(vec![learned, memory(10_000)]));
    let told = world.rows.iter().filter(|row| matches!(row.change, Change::Forgotten { .. })).count();
    assert_eq!((told, world.evolution.state().registry.forgotten().len()), (1, 1));
}

#[test]
fn a_state_that_was_written_down_replaces_the_rows_before_it() {
    let mut world = World::new(4);
    world.write(0, 40);
    world.send(Event::Command(Command::RunNow { situation: None }));
    world.tick();
    let text = serde_json::to_string(world.evolution.state()).unwrap();
    let mut state: State = serde_json::from_str(&text).unwrap();
    assert_eq!(&state, world.evolution.state());
    let before = world.rows.len();
    assert!(before > 2, "there is something to replace");
    world.send(Event::Command(Command::Pause));
    for row in &world.rows[before - 2..] {
        state.follow(row).unwrap();
    }
    assert_eq!(&state, world.evolution.state(), "what it had followed changes nothing, what is new does");
    let mut late = world.rows.last().unwrap().clone();
    late.id += 2;
    assert!(matches!(state.follow(&late), Err(RestoreError::Gap { .. })));
}

#[test]
fn another_bound_on_false_alarms_holds_at_once_and_after_a_restart() {
    let mut world = World::new(5);
    let strict = Policy { trigger_alpha: 0.000_01, ..policy() };
    let threshold = |world: &World| world.evolution.should_evolve(&situation(0)).unwrap().1.threshold;
    world.send(Event::Generated { situation: situation(0), ambiguity: 0.1, surprise: 1.0, structural: false });
    let before = threshold(&world);
    world.evolution.set_policy(strict);
    assert!(threshold(&world) > 100.0 * before);
    world.checkpoint = Some(Checkpoint::clone(&world.evolution.checkpoint()));
    world.evolution.set_policy(policy());
    let rows = world.rows.len();
    world.restart(rows);
    assert!((threshold(&world) - before).abs() < 1e-9, "the setting decides and not the checkpoint");
}

#[test]
fn a_forgotten_memory_that_returns_with_an_old_checkpoint_is_found_at_the_start() {
    let mut world = World::new(7);
    world.write(0, 60);
    let old = world.evolution.checkpoint();
    world.send(Event::Forgotten(vec![memory(30)]));
    world.checkpoint = Some(old);
    world.restart(world.rows.len());
    // It is among those that a start asks the store for, which does not have it.
    assert!(world.evolution.memories_in_use().contains(&memory(30)));
    world.send(Event::Forgotten(vec![memory(30)]));
    assert!(world.evolution.soft.texts.iter().all(|text| text.memory != memory(30)));
}

#[test]
fn load_battery_and_the_user_hold_training_up_and_it_goes_on_after() {
    let mut world = World::new(8);
    world.write(0, 60);
    world.send(Event::Command(Command::RunNow { situation: None }));
    assert!(world.evolution.status(world.now).waiting.unwrap().contains("load of the machine is not known"));
    world.tick();
    let running = |world: &World| world.training.len() == 1;
    assert!(running(&world));
    world.send(Event::Tick { load: 0.9, on_battery: false });
    assert!(!running(&world));
    world.send(Event::Tick { load: 0.4, on_battery: false });
    assert!(!running(&world), "between the two limits it keeps waiting");
    world.tick();
    assert!(running(&world));
    world.send(Event::Tick { load: 0.0, on_battery: true });
    assert!(!running(&world));
    world.tick();
    world.send(Event::Command(Command::Pause));
    world.tick();
    assert!(!running(&world));
    world.send(Event::Command(Command::Resume));
    assert!(running(&world));
    let adapter = world.training.pop_first().unwrap();
    world.send(Event::Preempted { adapter });
    assert!(!running(&world));
    world.tick();
    assert!(running(&world));
    let starts = world.actions.iter().filter_map(|action| match action {
        Action::StartTraining(spec) => Some(spec.clone()),
        _ => None,
    });
    let specs: Vec<JobSpec> = starts.collect();
    assert!(specs.len() >= 5 && specs.windows(2).all(|pair| pair[0] == pair[1]), "the same job each time");
}

#[test]
fn the_daily_budget_holds_alarms_up_until_the_next_day() {
    let mut world = World::new(9);
    world.evolution.set_policy(Policy { cpu_seconds_a_day: 120.0, ..world.evolution.policy().clone() });
    world.commit(0);
    world.write(1, 60);
    let context = world.context(1).unwrap();
    let change = Change::Suspected { cause: Cause::Alarm, centroid: situation(1), structural: false, rounds: 1 };
    let mut out = Vec::new();
    let draft = Draft::new(Stage::Serve, Stage::Suspect, "alarm", change).about(None, context);
    world.evolution.record(draft, world.now, &mut out);
    world.carry_out(out);
    world.evolution.set_policy(Policy { cpu_seconds_a_day: 101.0, ..world.evolution.policy().clone() });
    world.tick();
    assert!(world.evolution.status(world.now).waiting.unwrap().contains("budget"));
    world.now = world.now.plus_millis(24 * 3_600_000);
    world.tick();
    assert!(world.evolution.state().job.is_some());
}

#[test]
fn a_job_that_fails_again_and_again_is_given_up() {
    let mut world = World::new(10);
    world.write(0, 60);
    world.tick();
    world.send(Event::Command(Command::RunNow { situation: None }));
    for _ in 0..3 {
        let adapter = world.training.pop_first().unwrap();
        world.send(Event::TrainingFailed { adapter, reason: "out of memory".to_owned(), cpu_seconds: 5.0 });
    }
    assert!(world.evolution.state().job.is_none() && world.training.is_empty());
    assert!(world.rows.last().unwrap().reason.contains("out of memory"));
    assert!((world.evolution.status(world.now).cpu_seconds.0 - 15.0).abs() < 1e-9);
}

#[test]
fn an_outcome_with_odd_numbers_or_of_another_base_is_a_failure() {
    let mut world = World::new(11);
    world.write(0, 60);
    world.tick();
    world.send(Event::Command(Command::RunNow { situation: None }));
    let adapter = world.training.pop_first().unwrap();
    let mut odd = TrainOutcome { adapter, ..outcome(GOOD, 1) };
    odd.held_out_adapted[0] = f32::NAN;
    world.send(Event::Trained(Box::new(odd)));
    assert_eq!(world.evolution.state().job.as_ref().unwrap().failures, 1);
    world.training.clear();
    world.send(Event::Trained(Box::new(TrainOutcome {
        adapter,
        base_hash: ContentHash::of(b"other"),
        ..outcome(GOOD, 1)
    })));
    assert_eq!(world.evolution.state().job.as_ref().unwrap().failures, 2);
}

#[test]
fn adapters_of_another_base_are_never_served() {
    let mut world = World::new(12);
    let adapter = world.commit(0);
    let trains = vec![AdapterLevel::Lora];
    world.send(Event::Engine { base_hash: ContentHash::of(b"another base"), trains });
    assert!(world.evolution.route(&situation(0)).is_none());
    assert!(world.evolution.watched(&situation(0)).is_none());
    world.engine();
    assert_eq!(world.evolution.route(&situation(0)).unwrap().adapter, adapter);
}

#[test]
fn a_stored_adapter_is_tried_before_anything_is_trained() {
    let mut world = World::new(13);
    world.commit(0);
    // A context between the first and the second direction: near the adapter, yet outside its context.
    let between = Embedding::normalized(vec![0.58, 0.81, 0.0, 0.0]).unwrap();
    let mut card = world.evolution.state().registry.iter().next().unwrap().card.clone();
    card.adapter = AdapterId::from_bytes([7; 16]);
    card.centroid = between.clone();
    world.import(&card, &[]);
    world.import(&card, &[]);
    assert!(world.refused());
    world.send(Event::Generated { situation: between.clone(), ambiguity: 1.0, surprise: 1.0, structural: false });
    world.send(Event::Command(Command::RunNow { situation: Some(between.clone()) }));
    assert_eq!(world.stages().last(), Some(&Stage::Retrieve));
    let (context, watched) = world.evolution.watched(&between).unwrap();
    assert_eq!(watched, [card.adapter]);
    for _ in 0..40 {
        if world.evolution.route(&between).is_none() {
            world.send(Event::Scored { context, tokens: 50, base_loss: 3.0, adapted: vec![(card.adapter, 2.8)] });
        }
    }
    assert_eq!(world.evolution.route(&between).unwrap().adapter, card.adapter);
    assert!(world.evolution.state().queue.is_empty(), "nothing is trained for it any more");
}

#[test]
fn an_imported_adapter_serves_nothing_and_sets_no_bar_before_it_has_proved_itself_here() {
    let mut world = World::new(21);
    let own = world.commit(0);
    let mut card = world.evolution.state().registry.get(own).unwrap().card.clone();
    card.adapter = AdapterId::from_bytes([7; 16]);
    card.scores.gain.as_mut().unwrap().mean = 99.0;
    world.import(&card, &[]);
    assert!(!world.refused());
    assert_eq!(world.evolution.route(&situation(0)).unwrap().adapter, own);
    assert_eq!(world.evolution.state().registry.get(card.adapter).unwrap().state, CardState::Superseded);
    // It is tried, proves itself and serves; what it claimed to gain elsewhere is still no measure.
    world.send(Event::Command(Command::RunNow { situation: Some(situation(0)) }));
    let context = world.context(0).unwrap();
    for _ in 0..60 {
        let adapted = vec![(own, 2.9), (card.adapter, 2.6)];
        world.send(Event::Scored { context, tokens: 50, base_loss: 3.0, adapted });
    }
    assert_eq!(world.evolution.route(&situation(0)).unwrap().adapter, card.adapter);
    assert!(world.evolution.state().best_gain(context) < 1.0);
    assert!(world.evolution.state().problems().is_empty());
}

/// A context of its own between the first direction, where an adapter serves, and the second; and a card for it.
fn stored(world: &mut World, number: u8) -> (Embedding, SkillCard) {
    let between = Embedding::normalized(vec![0.58, 0.81, 0.0, 0.0]).unwrap();
    let mut card = world.evolution.state().registry.iter().next().unwrap().card.clone();
    card.adapter = AdapterId::from_bytes([number; 16]);
    card.centroid = between.clone();
    world.import(&card, &[]);
    world.send(Event::Generated { situation: between.clone(), ambiguity: 1.0, surprise: 1.0, structural: false });
    (between, card)
}

#[test]
fn an_adapter_that_cannot_be_read_blocks_no_context_and_serves_none() {
    let mut world = World::new(26);
    let serving = world.commit(0);
    let (between, card) = stored(&mut world, 7);
    world.send(Event::Command(Command::RunNow { situation: Some(between.clone()) }));
    assert_eq!(world.evolution.state().trials.len(), 1);
    let unusable = |adapter| Event::Unusable { adapter, reason: "no such file".into() };
    world.send(unusable(card.adapter));
    assert!(world.evolution.state().trials.is_empty(), "its trial is over");
    assert_eq!(world.evolution.state().registry.get(card.adapter).unwrap().state, CardState::Superseded);
    assert!(world.evolution.watched(&between).is_none());
    world.send(unusable(serving));
    assert!(world.evolution.route(&situation(0)).is_none() && world.served.is_empty());
    assert_eq!(world.evolution.state().registry.get(serving).unwrap().state, CardState::RolledBack);
    let rows = world.rows.len();
    world.send(unusable(AdapterId::from_bytes([9; 16])));
    assert_eq!(world.rows.len(), rows, "what is not known is not used");
}

#[test]
fn stored_adapters_are_not_tried_once_more_when_a_job_goes_back_to_the_queue() {
    let mut world = World::new(27);
    world.commit(0);
    let (between, card) = stored(&mut world, 7);
    for _ in 0..60 {
        world.next_memory += 1;
        let number = world.next_memory;
        let text = format!("{} {} {}", mix(number), mix(number + 1_000), mix(number + 2_000));
        world.send(Event::UserText {
            memory: memory(number),
            time: world.now,
            tokens: 40,
            situation: between.clone(),
            signature: Signature::of(&text),
            authorship: Authorship::Authored,
        });
    }
    world.send(Event::Command(Command::RunNow { situation: Some(between.clone()) }));
    world.send(Event::Unusable { adapter: card.adapter, reason: "no such file".into() });
    for _ in 0..100 {
        let Some(trial) = world.evolution.state().trials.first().copied() else { break };
        world.send(Event::Unusable { adapter: trial.adapter, reason: "no such file".into() });
    }
    let tries = |world: &World| world.rows.iter().filter(|row| row.change == Change::Tried).count();
    let tried = tries(&world);
    let job = world.evolution.state().job.clone().expect("nothing stored is left to try");
    world.training.remove(&job.spec.adapter);
    world.send(Event::CannotTrain { adapter: job.spec.adapter, reason: "no such layer".into() });
    assert_eq!(tries(&world), tried, "{:?}", world.stages());
    assert!(world.evolution.state().trials.is_empty());
    assert_eq!(world.evolution.state().queue.first().map(|proposal| proposal.context), Some(job.spec.context));
}

#[test]
fn so_many_imported_adapters_are_kept_and_retiring_one_makes_room() {
    let mut world = World::new(28);
    let own = world.commit(0);
    let mut card = world.evolution.state().registry.get(own).unwrap().card.clone();
    for number in 0..orders::IMPORTED_MAX as u8 {
        card.adapter = AdapterId::from_bytes([100 + number; 16]);
        world.import(&card, &[]);
        assert!(!world.refused(), "{number}");
    }
    card.adapter = AdapterId::from_bytes([99; 16]);
    assert!(matches!(world.evolution.admits(&card), Err(CardError::TooMany { .. })));
    world.import(&card, &[]);
    assert!(world.refused());
    world.send(Event::Command(Command::Retire { adapter: AdapterId::from_bytes([100; 16]) }));
    world.import(&card, &[]);
    assert!(world.evolution.keeps(card.adapter));
}

#[test]
fn an_import_of_another_base_or_one_that_forgets_is_refused() {
    let mut world = World::new(22);
    let own = world.commit(0);
    let mut card = world.evolution.state().registry.get(own).unwrap().card.clone();
    card.adapter = AdapterId::from_bytes([7; 16]);
    let rows = world.rows.len();
    let mut refused = |card: &SkillCard, guard: &[(f32, f32)], why: &str| {
        let order = Command::Import { card: Box::new(card.clone()), foreign: BTreeSet::new(), guard: guard.to_vec() };
        let actions = world.evolution.handle(Event::Command(order), world.now);
        let told = actions
            .iter()
            .any(|action| matches!(action, Action::Notify(Notice::Refused { reason }) if reason.contains(why)));
        assert!(told, "{why}: {actions:?}");
    };
    let other = SkillCard { base_hash: ContentHash::of(b"another base"), ..card.clone() };
    refused(&other, &[(3.0, 3.0); 8], "bound to base");
    refused(&card, &[(3.0, 3.3); 8], "forgets");
    refused(&card, &[(3.0, 3.0); 3], "too few");
    refused(&card, &[], "missing");
    refused(&card, &[(3.0, f32::NAN); 8], "missing");
    assert_eq!(world.rows.len(), rows);
    assert!(matches!(Evolution::new(policy()).admits(&card), Err(CardError::NoBase)));
}

#[test]
fn memories_that_were_never_here_are_provenance_and_those_that_were_can_be_forgotten() {
    let mut world = World::new(24);
    let own = world.commit(0);
    let mut card = world.evolution.state().registry.get(own).unwrap().card.clone();
    card.adapter = AdapterId::from_bytes([7; 16]);
    card.parent = None;
    card.lineage = vec![memory(70_001), memory(70_002)];
    world.import(&card, &[memory(70_001)]);
    let in_use = world.evolution.memories_in_use();
    assert!(in_use.contains(&memory(70_002)) && !in_use.contains(&memory(70_001)));
    world.send(Event::Forgotten(vec![memory(70_002)]));
    assert_eq!(world.evolution.state().registry.get(card.adapter).unwrap().state, CardState::Retired);
    // What was once forgotten does not come back under another name.
    card.adapter = AdapterId::from_bytes([8; 16]);
    world.import(&card, &[]);
    assert!(world.refused());
}

#[test]
fn a_level_that_the_engine_cannot_train_after_all_is_replaced_by_another() {
    let mut world = World::new(25);
    world.evolution.set_policy(Policy { seed: 25, control_signal: true, ..policy() });
    let trains = vec![AdapterLevel::ControlNet, AdapterLevel::Lora];
    world.send(Event::Engine { base_hash: base(), trains: trains.clone() });
    world.write(0, 60);
    world.tick();
    let level = |world: &World| world.evolution.state().job.as_ref().map(|job| job.spec.level);
    // Most answers failed in structure; texts that were read beside them do not hide it.
    world.send(Event::Calibrated { surprise: vec![], ambiguity: vec![], reading: vec![0.5] });
    for _ in 0..4 {
        world.send(Event::Read { situation: situation(0), surprise: 0.5 });
        world.send(Event::Generated { situation: situation(0), ambiguity: 1.0, surprise: 1.0, structural: true });
    }
    world.send(Event::Command(Command::RunNow { situation: Some(situation(0)) }));
    assert_eq!(level(&world), Some(AdapterLevel::ControlNet));
    let adapter = world.training.pop_first().unwrap();
    world.send(Event::CannotTrain { adapter, reason: "no such network".into() });
    assert_eq!(level(&world), Some(AdapterLevel::Lora));
    assert!(world.evolution.state().contexts.values().all(|context| context.rejections == 0));
    assert_eq!(world.evolution.state().levels.records().len(), 0, "nothing was learned of its worth");
    // What comes late changes nothing; the last level gone, nothing trains and the context waits.
    world.send(Event::CannotTrain { adapter, reason: "late".into() });
    assert_eq!(level(&world), Some(AdapterLevel::Lora));
    let adapter = world.training.pop_first().unwrap();
    world.send(Event::CannotTrain { adapter, reason: "no memory".into() });
    assert_eq!(level(&world), None);
    assert!(world.evolution.status(world.now).waiting.unwrap().contains("no engine that trains"));
    // A new engine is believed anew.
    world.restart(world.rows.len());
    world.send(Event::Engine { base_hash: base(), trains });
    world.tick();
    assert_eq!(level(&world), Some(AdapterLevel::ControlNet));
}

#[test]
fn feedback_against_one_context_leads_to_training_there() {
    let mut world = World::new(14);
    world.write(0, 60);
    world.tick();
    for _ in 0..80 {
        world.send(Event::Judged { situation: situation(0), feedback: Feedback::Reject });
        world.send(Event::Judged { situation: situation(1), feedback: Feedback::Accept });
    }
    let row = world.rows.iter().find(|row| row.to == Stage::Suspect).unwrap();
    assert!(row.reason.contains("rejected or corrected"));
    assert_eq!(row.context, world.context(0));
}

#[test]
fn a_model_s_own_text_is_never_selected() {
    let mut world = World::new(15);
    world.write(0, 60);
    world.send(Event::UserText {
        memory: memory(9_999),
        time: world.now,
        tokens: 60,
        situation: situation(0),
        signature: Signature::of("by a model"),
        authorship: Authorship::Model,
    });
    world.tick();
    world.send(Event::Command(Command::RunNow { situation: None }));
    let spec = &world.evolution.state().job.as_ref().unwrap().spec;
    assert!(!spec.train.contains(&memory(9_999)) && !spec.held_out.contains(&memory(9_999)));
}

#[test]
fn rows_with_a_gap_are_refused_and_repeats_are_not() {
    let mut world = World::new(16);
    world.commit(0);
    let mut rows = world.rows.clone();
    rows.extend(world.rows.clone());
    rows.reverse();
    assert!(Evolution::restore(policy(), rows, None).is_ok());
    let mut gap = world.rows.clone();
    gap.remove(2);
    assert_eq!(Evolution::restore(policy(), gap, None).unwrap_err(), RestoreError::Gap { before: 2, found: 4 });
}

#[test]
fn the_same_events_make_the_same_rows() {
    let run = || {
        let mut world = World::new(17);
        world.commit(0);
        world.commit(1);
        serde_json::to_string(&world.rows).unwrap()
    };
    assert_eq!(run(), run());
}

#[test]
fn a_machine_killed_after_any_row_reaches_a_commit_all_the_same() {
    let mut whole = World::new(18);
    whole.commit(0);
    for rows in 0..whole.rows.len() {
        let mut world = whole.clone();
        world.checkpoint = Some(whole.evolution.checkpoint());
        world.restart(rows);
        let mut rounds = 0;
        while world.evolution.route(&situation(0)).is_none() {
            world.tick();
            if world.evolution.state().stage() == Stage::Serve {
                world.send(Event::Command(Command::RunNow { situation: Some(situation(0)) }));
            }
            world.finish();
            world.score(0, 0.1);
            rounds += 1;
            assert!(rounds < 200, "stuck after row {rows} at {:?}", world.evolution.status(world.now));
        }
    }
}

/// One thing that may happen to the world.
#[derive(Debug, Clone)]
enum Happening {
    Write(usize),
    Generate(usize, f64),
    Feedback(usize, bool),
    Tick(f32, bool),
    Finish(f64, f64),
    Fail,
    Preempt,
    Score(usize, f64),
    Forget(u64),
    Command(u8, usize),
    Base,
    Kill(usize),
    /// Text, an order, up to four outcomes, then real texts.
    Cycle {
        which: usize,
        gain: f64,
        forgetting: f64,
        later: f64,
    },
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        2 => (0_usize..3).prop_map(Happening::Write),
        4 => (0_usize..3, 0.5_f64..4.0).prop_map(|(which, surprise)| Happening::Generate(which, surprise)),
        1 => (0_usize..3, any::<bool>()).prop_map(|(which, good)| Happening::Feedback(which, good)),
        3 => (0.0_f32..0.8, prop::bool::weighted(0.1)).prop_map(|(load, battery)| Happening::Tick(load, battery)),
        5 => (0.0_f64..0.2, 0.0_f64..0.3).prop_map(|(gain, forgetting)| Happening::Finish(gain, forgetting)),
        1 => Just(Happening::Fail),
        1 => Just(Happening::Preempt),
        8 => (0_usize..3, -0.2_f64..0.3).prop_map(|(which, gain)| Happening::Score(which, gain)),
        1 => (0_u64..200).prop_map(Happening::Forget),
        4 => (0_u8..6, 0_usize..3).prop_map(|(verb, which)| Happening::Command(verb, which)),
        1 => Just(Happening::Base),
        3 => (0_usize..4).prop_map(Happening::Kill),
        12 => (0_usize..3, -0.02_f64..0.3, 0.0_f64..0.3, -0.2_f64..0.4)
            .prop_map(|(which, gain, forgetting, later)| Happening::Cycle { which, gain, forgetting, later }),
    ]
}

fn happen(world: &mut World, what: Happening) {
    match what {
        Happening::Write(which) => world.write(which, 30),
        Happening::Generate(which, surprise) => (0..10).for_each(|_| world.generate(which, surprise)),
        Happening::Feedback(which, good) => {
            let feedback = if good { Feedback::Accept } else { Feedback::Reject };
            world.send(Event::Judged { situation: situation(which), feedback });
        }
        Happening::Tick(load, on_battery) => world.send(Event::Tick { load, on_battery }),
        Happening::Finish(gain, forgetting) => {
            world.arms = Arms { gain, forgetting, ..GOOD };
            world.finish();
        }
        Happening::Fail | Happening::Preempt => {
            if let Some(adapter) = world.training.pop_first() {
                world.send(match what {
                    Happening::Fail => Event::TrainingFailed { adapter, reason: "fault".to_owned(), cpu_seconds: 1.0 },
                    _ => Event::Preempted { adapter },
                });
            }
        }
        Happening::Score(which, gain) => (0..15).for_each(|_| world.score(which, gain)),
        Happening::Forget(number) => world.send(Event::Forgotten(vec![memory(number)])),
        Happening::Command(verb, which) => {
            let adapter = world.evolution.state().registry.iter().nth(which).map(|entry| entry.card.adapter);
            let adapter = adapter.unwrap_or(AdapterId::from_bytes([0; 16]));
            world.send(Event::Command(match verb {
                0 => Command::Pause,
                1 => Command::Resume,
                2 => Command::Pin { adapter, pinned: which == 0 },
                3 => Command::Rollback { adapter },
                4 => Command::Retire { adapter },
                _ => Command::RunNow { situation: Some(situation(which)) },
            }));
        }
        Happening::Base => {
            // The base changes and changes back: jobs and trials end, what serves rests meanwhile.
            let trains = vec![AdapterLevel::Lora];
            world.send(Event::Engine { base_hash: ContentHash::of(b"another base"), trains });
            (0..3).for_each(|which| assert!(world.evolution.route(&situation(which)).is_none()));
            world.engine();
        }
        Happening::Cycle { which, gain, forgetting, later } => {
            world.send(Event::Command(Command::Resume));
            world.tick();
            world.write(which, 15);
            world.send(Event::Command(Command::RunNow { situation: Some(situation(which)) }));
            for halving in 0..4 {
                world.arms = Arms { gain, forgetting: forgetting / f64::from(1 << halving), ..GOOD };
                world.finish();
            }
            (0..40).for_each(|_| world.score(which, later));
        }
        Happening::Kill(back) => world.restart(world.rows.len().saturating_sub(back)),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn every_prefix_of_the_rows_restores_to_a_consistent_machine_that_goes_on(
        seed in 0_u64..1_000, story in prop::collection::vec(happening(), 1..60),
    ) {
        let mut world = World::new(seed);
        (0..3).for_each(|which| world.write(which, 40));
        for what in story {
            happen(&mut world, what);
        }
        let again = Evolution::restore(world.evolution.policy().clone(), world.rows.clone(), None).unwrap();
        prop_assert_eq!(again.state(), world.evolution.state());
        for rows in 0..=world.rows.len() {
            let mut restored =
                Evolution::restore(policy(), world.rows[..rows].to_vec(), world.checkpoint.clone()).unwrap();
            prop_assert_eq!(restored.state().problems(), Vec::<String>::new());
            restored.reconcile();
            restored.handle(Event::Engine { base_hash: base(), trains: vec![AdapterLevel::Lora] }, world.now);
            let actions = restored.handle(Event::Tick { load: 0.0, on_battery: false }, world.now);
            prop_assert_eq!(restored.state().problems(), Vec::<String>::new());
            // A row comes before the effects that rest on it, and at most one job is started.
            let starts = actions.iter().filter(|a| matches!(a, Action::StartTraining(_) | Action::ScaleAdapter { .. }));
            prop_assert!(starts.count() <= 1);
            if let Some(first) = actions.iter().find(|a| !matches!(a, Action::Notify(_) | Action::Checkpoint(_))) {
                prop_assert!(matches!(first, Action::Journal(_)), "{:?}", first);
            }
            if let Some(job) = restored.state().job.as_ref().filter(|_| !restored.state().paused) {
                prop_assert!(job.running, "a job that may run is started by the first tick");
            }
        }
    }
}

#[test]
fn the_stories_reach_every_station_and_nearly_every_change() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let strategy = (0_u64..1_000, prop::collection::vec(happening(), 1..60));
    let (mut stages, mut kinds) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..40 {
        let (seed, story) = strategy.new_tree(&mut runner).unwrap().current();
        let mut world = World::new(seed);
        (0..3).for_each(|which| world.write(which, 40));
        for what in story {
            happen(&mut world, what);
        }
        for row in &world.rows {
            stages.insert(row.to);
            let change = serde_json::to_value(&row.change).unwrap();
            kinds.insert(change["kind"].as_str().unwrap().to_owned());
        }
    }
    // Stored adapters are tried and cards imported in tests of their own.
    assert!(stages.len() >= 11, "{stages:?}");
    assert!(kinds.len() >= 16, "{kinds:?}");
}

#[test]
fn a_job_guards_the_text_of_neighbouring_contexts_that_an_adapter_serves() {
    let mut world = World::new(20);
    world.commit(0);
    world.write(1, 60);
    world.send(Event::Command(Command::RunNow { situation: Some(situation(1)) }));
    let spec = world.evolution.state().job.clone().unwrap().spec;
    assert_eq!(spec.guard.len(), 16);
    assert!(spec.guard.iter().all(|guarded| *guarded <= memory(60) && !spec.train.contains(guarded)));
}

#[test]
fn a_newcomer_must_beat_what_serves_and_not_only_the_base() {
    let mut world = World::new(21);
    let first = world.commit(0);
    world.arms = Arms { gain: 0.16, ..GOOD };
    world.write(0, 30);
    world.send(Event::Command(Command::RunNow { situation: Some(situation(0)) }));
    world.finish();
    assert_eq!(world.stages().last(), Some(&Stage::Shadow));
    // Both beat the base by as much: there is no reason to change.
    while !world.evolution.state().trials.is_empty() {
        let (context, adapters) = world.evolution.watched(&situation(0)).unwrap();
        let adapted = adapters.iter().map(|adapter| (*adapter, 2.9)).collect();
        world.send(Event::Scored { context, tokens: 50, base_loss: 3.0, adapted });
    }
    assert_eq!(world.stages().last(), Some(&Stage::Reject));
    assert_eq!(world.evolution.route(&situation(0)).unwrap().adapter, first);
}

#[test]
fn a_forgetting_that_was_missed_is_found_by_asking_which_memories_are_in_use() {
    let mut world = World::new(22);
    let adapter = world.commit(0);
    let learned = world.evolution.state().registry.get(adapter).unwrap().card.lineage[0];
    // Without a checkpoint the texts in view are gone, yet the lineage is known.
    world.checkpoint = None;
    world.restart(world.rows.len());
    let in_use = world.evolution.memories_in_use();
    assert!(in_use.contains(&learned));
    world.send(Event::Forgotten(vec![learned]));
    assert!(!world.evolution.memories_in_use().contains(&learned) && world.served.is_empty());
}
