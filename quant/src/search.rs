//! Evolutionary search of a choice for each place, such as a group size for each layer (Q-DiT, CVPR 2025, section 4.2).
//!
//! The fitness is injected and should be the end loss itself: proxies by squared error did worse than no search. Everything
//! is drawn from the seed and the number of the generation, so that a search that was interrupted, and its state stored,
//! goes on to the same end.
//!
//! ```
//! use mneme_quant::search::{Search, SearchSettings};
//! let settings = SearchSettings { choices: vec![32, 64, 128], ..SearchSettings::default() };
//! let mut search = Search::new(settings, 4).unwrap();
//! // The loss of small groups is low; the mean is kept at 64 or more.
//! let best = search
//!     .run(&mut |genes| Some(genes.iter().map(|gene| f64::from(*gene).sqrt()).sum()), &mut |_| true)
//!     .unwrap();
//! assert!(best.genes.iter().sum::<u32>() >= 4 * 64);
//! ```

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

/// Most members of a population.
pub const POPULATION_MAX: usize = 10_000;
/// Most places.
pub const GENES_MAX: usize = 100_000;
/// Draws for one child before a member is taken as it is: constraints that almost nothing meets do not hang the search.
const DRAWS_MAX: usize = 200;

/// How a search goes. The defaults are Q-DiT's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SearchSettings {
    /// What each place may be, ascending.
    pub choices: Vec<u32>,
    /// The uniform choice that the search starts from, one of the choices.
    pub start: u32,
    /// The mean over all places is at least this: it bounds the bits that are spent.
    pub mean_min: f64,
    /// Members of each generation.
    pub population: usize,
    /// Members that are kept as parents.
    pub kept: usize,
    /// Generations.
    pub generations: u32,
    /// Children by uniform crossover in each generation; the other new members are mutations.
    pub crossovers: usize,
    /// Probability that a mutation changes a place.
    pub mutation: f64,
    /// Seed of all draws.
    pub seed: u64,
}

impl Default for SearchSettings {
    fn default() -> Self {
        Self {
            choices: vec![32, 64, 128, 256],
            start: 64,
            mean_min: 64.0,
            population: 50,
            kept: 10,
            generations: 10,
            crossovers: 25,
            mutation: 0.1,
            seed: 0,
        }
    }
}

/// Why a search was refused, or gave no result.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SearchError {
    /// A setting is out of its bounds.
    #[error("search setting {setting} {problem}")]
    Setting {
        /// Which.
        setting: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The fitness refused every member, or was told to stop, before one had a loss.
    #[error("search stopped before any member had a loss")]
    NoResult,
}

fn setting(setting: &'static str, problem: impl Into<String>) -> SearchError {
    SearchError::Setting { setting, problem: problem.into() }
}

/// A choice for each place, and its loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// One choice for each place.
    pub genes: Vec<u32>,
    /// Its loss; lower is better.
    pub loss: f64,
}

/// How far a search is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The generation, from 0; the first is made of the start and its mutations.
    pub generation: u32,
    /// Generations in all.
    pub generations: u32,
    /// Losses found so far, over all generations.
    pub evaluations: u64,
    /// The best so far.
    pub best: Option<&'a Member>,
}

/// A search and its state; store it with serde after any callback, and go on with it later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Search {
    settings: SearchSettings,
    places: usize,
    generation: u32,
    evaluations: u64,
    /// Members of this generation without a loss yet, the next one last.
    waiting: Vec<Vec<u32>>,
    /// Members with a loss, best first, no two alike.
    ranked: Vec<Member>,
}

impl Search {
    /// A search over this many places.
    pub fn new(settings: SearchSettings, places: usize) -> Result<Self, SearchError> {
        check(&settings, places)?;
        let mut search =
            Self { settings, places, generation: 0, evaluations: 0, waiting: Vec::new(), ranked: Vec::new() };
        search.waiting = search.first_generation();
        Ok(search)
    }

    /// Checks a state that came from outside, such as a file.
    pub fn validate(&self) -> Result<(), SearchError> {
        check(&self.settings, self.places)?;
        let all = self.waiting.iter().chain(self.ranked.iter().map(|member| &member.genes));
        for genes in all {
            if genes.len() != self.places || genes.iter().any(|gene| !self.settings.choices.contains(gene)) {
                return Err(setting("state", "holds members that are not of these places and choices"));
            }
        }
        if self.waiting.len() > self.settings.population || self.ranked.iter().any(|member| member.loss.is_nan()) {
            return Err(setting("state", "holds too many members or a loss that is no number"));
        }
        Ok(())
    }

    /// Runs to the end, or until `progress` gives false; then [`Self::is_done`] is false and it may be run again.
    ///
    /// `fitness` gives the loss of a choice for each place; None (or NaN) rules a choice out. It is called once for each
    /// new member, `progress` after each.
    pub fn run(
        &mut self,
        fitness: &mut dyn FnMut(&[u32]) -> Option<f64>,
        progress: &mut dyn FnMut(&Self) -> bool,
    ) -> Result<Member, SearchError> {
        self.validate()?;
        loop {
            while let Some(genes) = self.waiting.pop() {
                if !self.ranked.iter().any(|member| member.genes == genes) {
                    let loss = fitness(&genes);
                    self.evaluations += 1;
                    if let Some(loss) = loss.filter(|loss| !loss.is_nan()) {
                        let place = self.ranked.partition_point(|member| member.loss <= loss);
                        self.ranked.insert(place, Member { genes, loss });
                    }
                }
                if !progress(self) {
                    return self.best();
                }
            }
            if self.generation + 1 >= self.settings.generations || self.ranked.is_empty() {
                return self.best();
            }
            self.ranked.truncate(self.settings.kept);
            self.generation += 1;
            self.waiting = self.next_generation();
        }
    }

    /// Whether every generation was evaluated.
    pub fn is_done(&self) -> bool {
        self.waiting.is_empty() && self.generation + 1 >= self.settings.generations
    }

    /// How far it is.
    pub fn progress(&self) -> Progress<'_> {
        Progress {
            generation: self.generation,
            generations: self.settings.generations,
            evaluations: self.evaluations,
            best: self.ranked.first(),
        }
    }

    fn best(&self) -> Result<Member, SearchError> {
        self.ranked.first().cloned().ok_or(SearchError::NoResult)
    }

    fn draws(&self) -> Draws {
        // A stream for each generation: a resumed search draws what an uninterrupted one does.
        let mut generator = ChaCha8Rng::seed_from_u64(self.settings.seed);
        generator.set_stream(u64::from(self.generation));
        Draws(generator)
    }

    fn first_generation(&self) -> Vec<Vec<u32>> {
        let start = vec![self.settings.start; self.places];
        let mut draws = self.draws();
        let mut members: Vec<Vec<u32>> = (1..self.settings.population)
            .map(|_| {
                // Far from the start, so that crossover has something to mix.
                self.allowed(&start, |_| (0..self.places).map(|_| draws.choice(&self.settings.choices)).collect())
            })
            .collect();
        // The next one is taken from the end: the uniform start is evaluated first.
        members.push(start);
        members
    }

    fn next_generation(&self) -> Vec<Vec<u32>> {
        let mut draws = self.draws();
        let mut members = Vec::with_capacity(self.settings.population);
        let parents = &self.ranked;
        for child in 0..self.settings.population {
            let one = draws.below(parents.len());
            let other = draws.below(parents.len());
            let (one, other) = (&parents[one].genes, &parents[other].genes);
            members.push(self.allowed(one, |_| {
                if child < self.settings.crossovers {
                    one.iter().zip(other).map(|(one, other)| if draws.below(2) == 0 { *one } else { *other }).collect()
                } else {
                    one.iter()
                        .map(|gene| {
                            if draws.unit() < self.settings.mutation {
                                draws.choice(&self.settings.choices)
                            } else {
                                *gene
                            }
                        })
                        .collect()
                }
            }));
        }
        members.reverse();
        members
    }

    /// The first draw that meets the constraint, or the fallback.
    fn allowed(&self, fallback: &[u32], mut draw: impl FnMut(usize) -> Vec<u32>) -> Vec<u32> {
        for attempt in 0..DRAWS_MAX {
            let genes = draw(attempt);
            if mean(&genes) >= self.settings.mean_min {
                return genes;
            }
        }
        fallback.to_vec()
    }
}

struct Draws(ChaCha8Rng);

impl Draws {
    /// Uniform below `count`; the bias of the modulus is under 2^-40 for any population.
    fn below(&mut self, count: usize) -> usize {
        (self.0.next_u64() % count as u64) as usize
    }

    fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn choice(&mut self, choices: &[u32]) -> u32 {
        choices[self.below(choices.len())]
    }
}

fn mean(genes: &[u32]) -> f64 {
    genes.iter().map(|gene| f64::from(*gene)).sum::<f64>() / genes.len() as f64
}

fn check(settings: &SearchSettings, places: usize) -> Result<(), SearchError> {
    if places == 0 || places > GENES_MAX {
        return Err(setting("places", format!("is {places}, must be 1 to {GENES_MAX}")));
    }
    if settings.choices.is_empty() || !settings.choices.is_sorted_by(|a, b| a < b) {
        return Err(setting("choices", "must be ascending and not empty"));
    }
    if !settings.choices.contains(&settings.start) {
        return Err(setting("start", format!("is {}, must be one of the choices", settings.start)));
    }
    if settings.mean_min.is_nan() || f64::from(settings.start) < settings.mean_min {
        return Err(setting("mean_min", format!("is {}, must be at most the start", settings.mean_min)));
    }
    if settings.population == 0 || settings.population > POPULATION_MAX {
        return Err(setting("population", format!("is {}, must be 1 to {POPULATION_MAX}", settings.population)));
    }
    if settings.kept == 0 || settings.kept > settings.population {
        return Err(setting("kept", format!("is {}, must be 1 to the population", settings.kept)));
    }
    if settings.generations == 0 {
        return Err(setting("generations", "is 0, must be at least 1"));
    }
    if !(0.0..=1.0).contains(&settings.mutation) {
        return Err(setting("mutation", format!("is {}, must be 0 to 1", settings.mutation)));
    }
    Ok(())
}
