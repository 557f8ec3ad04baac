//! The figures of a run, one row per engine and mode.

use std::time::Duration;

use crate::verify::Failure;

/// What a run counted.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) name: String,
    pub(crate) crashes: u64,
    pub(crate) steps: u64,
    pub(crate) unopenable: u64,
    pub(crate) lost: u64,
    pub(crate) wrong: u64,
    pub(crate) hangs: u64,
    pub(crate) faults_seen: u64,
    pub(crate) opens_ms: Vec<f64>,
    pub(crate) first_failure: Option<String>,
}

impl Report {
    pub(crate) fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    pub(crate) fn add(&mut self, result: Result<Duration, Failure>) {
        match result {
            Ok(took) => self.opens_ms.push(took.as_secs_f64() * 1e3),
            Err(failure) => {
                match &failure {
                    Failure::Unopenable(_) => self.unopenable += 1,
                    Failure::Lost(_) => self.lost += 1,
                    Failure::Wrong(_) => self.wrong += 1,
                }
                self.note(format!("crash {}: {failure:?}", self.crashes));
            }
        }
    }

    pub(crate) fn note(&mut self, failure: String) {
        self.first_failure.get_or_insert(failure);
    }

    /// Whether nothing went wrong.
    pub(crate) fn is_clean(&self) -> bool {
        self.unopenable + self.lost + self.wrong + self.hangs == 0
    }

    /// Whether a store is damaged, so that going on with it would tell nothing new.
    pub(crate) fn has_damage(&self) -> bool {
        self.unopenable + self.lost + self.wrong > 0
    }

    fn quantile(&self, q: f64) -> f64 {
        let mut sorted = self.opens_ms.clone();
        sorted.sort_unstable_by(f64::total_cmp);
        match sorted.len() {
            0 => 0.0,
            len => sorted[(((len - 1) as f64) * q).round() as usize],
        }
    }

    /// The table's head.
    pub(crate) fn head() -> String {
        "| run | crashes | steps acknowledged | faults reported | unopenable | acked lost | wrong state | hangs | open p50 ms | open p99 ms |\n\
         |---|---|---|---|---|---|---|---|---|---|"
            .into()
    }

    /// One row of the table.
    pub(crate) fn row(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {:.1} | {:.1} |",
            self.name,
            self.crashes,
            self.steps,
            self.faults_seen,
            self.unopenable,
            self.lost,
            self.wrong,
            self.hangs,
            self.quantile(0.5),
            self.quantile(0.99)
        )
    }
}
