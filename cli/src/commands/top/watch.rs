//! Asks the daemon how it is. It may go away and come back at any time.

use std::time::{Duration, Instant};

use mneme_client_sdk::blocking::Client;
use mneme_client_sdk::{CallOptions, ClientError, ClientOptions};
use mneme_ipc::{Method, methods, types};
use serde::Serialize;

/// A daemon that has not answered within this is shown as away.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);
/// Decisions that are shown.
const DECISIONS: u32 = 50;

/// What the thread is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// Look now.
    Now,
}

/// What it saw.
#[derive(Debug)]
pub(super) enum Seen {
    /// The daemon answers.
    Here(Box<Look>),
    /// It does not, and why.
    Away(String),
}

/// One look at the daemon.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Look {
    #[serde(skip)]
    pub(super) at: Option<Instant>,
    pub(super) status: types::StatusResult,
    pub(super) memory: types::StatsResult,
    pub(super) loop_now: types::EvolveStatusResult,
    /// Newest first.
    pub(super) decisions: Vec<types::DecisionView>,
    /// Newest first.
    pub(super) tasks: Vec<types::TaskView>,
}

/// Looks at the daemon over one connection, which is opened anew when it is lost.
#[derive(Debug)]
pub(super) struct Watcher {
    options: ClientOptions,
    client: Option<Client>,
}

impl Watcher {
    pub(super) fn new(mut options: ClientOptions) -> Self {
        options.client = "top".into();
        // A daemon that is away is shown, not waited for.
        options.retry = false;
        Self { options, client: None }
    }

    /// Looks once.
    pub(super) fn look(&mut self) -> Result<Look, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::connect(self.options.clone())?,
        };
        let look = look(&client)?;
        // Kept only when it worked.
        self.client = Some(client);
        Ok(look)
    }
}

fn look(client: &Client) -> Result<Look, ClientError> {
    fn ask<M: Method>(client: &Client, params: M::Params) -> Result<M::Result, ClientError> {
        client.call_with::<M>(params, CallOptions { timeout: Some(LOOK_TIMEOUT), ..CallOptions::default() })
    }
    let log = types::EvolveLogParams { limit: Some(DECISIONS), before: None };
    Ok(Look {
        at: Some(Instant::now()),
        status: ask::<methods::Status>(client, types::StatusParams {})?,
        memory: ask::<methods::Stats>(client, types::StatsParams {})?,
        loop_now: ask::<methods::EvolveStatus>(client, types::EvolveStatusParams {})?,
        decisions: ask::<methods::EvolveLog>(client, log)?.decisions,
        tasks: ask::<methods::TaskStatus>(client, types::TaskStatusParams { task: None })?.tasks,
    })
}
