//! After a crash: the store opens, holds everything that was acknowledged, and is in a state that the oracle was in too.

use std::path::Path;
use std::time::{Duration, Instant};

use mneme_memory::state::EngineKind;
use mneme_memory::{DurableOptions, DurableStore, InMemoryStore};

use crate::script::{Observed, observe, options, run_step};

/// The oracle, and what it looked like after each step that may still be the recovered one.
pub(crate) struct Model {
    oracle: InMemoryStore,
    seed: u64,
    /// The next step that the oracle has not done.
    pub(crate) next: u64,
    last: Observed,
}

/// What is wrong with a recovered store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It does not open.
    Unopenable(String),
    /// Something acknowledged is missing.
    Lost(String),
    /// It is in a state that it never should have been in.
    Wrong(String),
}

impl Model {
    /// A model of an empty store.
    pub(crate) fn new(engine: EngineKind, seed: u64) -> Self {
        let oracle = InMemoryStore::new(DurableOptions { ..options(engine) });
        let last = observe(&oracle).expect("the oracle has no disk that could fail");
        Self { oracle, seed, next: 0, last }
    }

    fn advance(&mut self) {
        run_step(&self.oracle, self.seed, self.next).expect("the oracle has no disk that could fail");
        self.next += 1;
        self.last = observe(&self.oracle).expect("the oracle has no disk that could fail");
    }

    /// Opens the store and finds the step after which the oracle looks the same: at least the last acknowledged one, at most
    /// the one after it, which may have become durable without its acknowledgement. Returns how long opening took.
    pub(crate) fn verify(
        &mut self,
        folder: &Path,
        engine: EngineKind,
        acked: Option<u64>,
    ) -> Result<Duration, Failure> {
        let begin = Instant::now();
        let store = DurableStore::open(folder, options(engine)).map_err(|error| Failure::Unopenable(chain(&error)))?;
        let took = begin.elapsed();
        let found = observe(&store).map_err(|error| Failure::Unopenable(chain(&error)))?;
        let acked_next = acked.map_or(self.next, |step| step + 1);
        while self.next < acked_next {
            self.advance();
        }
        let at_ack = self.last.clone();
        if found == at_ack {
            return Ok(took);
        }
        if found.lsn < at_ack.lsn {
            return Err(Failure::Lost(format!("step {acked_next}: {}", found.difference(&at_ack))));
        }
        self.advance();
        if found == self.last {
            return Ok(took);
        }
        // A purge is the one step that lies between two states: the files are rewritten, its note is not.
        Err(Failure::Wrong(format!(
            "step {acked_next}: before {}, after {}",
            found.difference(&at_ack),
            found.difference(&self.last)
        )))
    }
}

/// An error and everything that led to it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
