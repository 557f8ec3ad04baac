//! What the page may ask the daemon for: a list of methods, each with its own types, and the stream of a generation.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mneme_base::{OpId, TaskId};
use mneme_client_sdk::blocking::Client;
use mneme_client_sdk::{CallOptions, ClientError, ClientOptions};
use mneme_ipc::{Method, methods, types};
use serde_json::{Value, json};

use crate::error::CommandError;

/// A view of the page waits no longer than this.
const VIEW_TIMEOUT: Duration = Duration::from_secs(30);

/// The way to the daemon. It may be away: then calls say so, and the next one after its return works.
#[derive(Debug)]
pub(super) struct Daemon {
    options: ClientOptions,
    timeout: Duration,
    client: Mutex<Option<Arc<Client>>>,
}

type Outcome = Result<Value, Value>;

impl Daemon {
    pub(super) fn new(mut options: ClientOptions, timeout: Duration) -> Self {
        options.client = "ui".into();
        // A person is to see at once that the daemon is away.
        options.retry = false;
        Self { options, timeout, client: Mutex::default() }
    }

    /// Carries out `{"method", "params"}`. The status is 200 when there is a result.
    pub(super) fn call(&self, body: Value) -> (u16, Value) {
        let method = body["method"].as_str().unwrap_or_default().to_owned();
        let params = body.get("params").cloned().unwrap_or_else(|| json!({}));
        match self.dispatch(&method, params) {
            Some(Ok(result)) => (200, json!({ "result": result })),
            Some(Err(error)) => (400, json!({ "error": error })),
            None => {
                let message = format!("the page does not call {method:?}");
                (404, json!({"error": {"kind": "method_not_found", "message": message}}))
            }
        }
    }

    /// `None` for a method that is not the page's: what a person cannot do there, a script that got in cannot do either.
    fn dispatch(&self, method: &str, params: Value) -> Option<Outcome> {
        macro_rules! route {
            ($($name:ident),* $(,)?) => {
                match method {
                    $(methods::$name::NAME => Some(self.typed::<methods::$name>(params)),)*
                    _ => None,
                }
            };
        }
        route!(
            Recall,
            Get,
            Forget,
            Corroborate,
            Stats,
            Map,
            NamespaceList,
            Feedback,
            TaskCancel,
            EvolveStatus,
            EvolveLog,
            EvolveShow,
            EvolveRollback,
            EvolvePin,
            EvolvePause,
            EvolveResume,
            EvolveRun,
            Status,
        )
    }

    fn typed<M: Method>(&self, params: Value) -> Outcome {
        let timeout = Some(self.timeout.min(VIEW_TIMEOUT));
        let options = CallOptions { op_id: Some(OpId::generate()), timeout, min_lsn: None };
        let call = || -> Result<Result<M::Result, ClientError>, Value> {
            let params = serde_json::from_value::<M::Params>(params.clone()).map_err(|error| unfit(&error))?;
            Ok(self.client().and_then(|client| client.call_with::<M>(params, options)))
        };
        let result = match call()? {
            // The daemon was started anew or had closed a silent connection; the same name makes a change once.
            Err(ClientError::Disconnected) => call()?,
            other => other,
        };
        serde_json::to_value(result.map_err(told)?).map_err(|error| unfit(&error))
    }

    /// Generates and writes a line for each event, then one for the result or the error. A reader that has gone away cancels.
    pub(super) fn generate(&self, body: Value, stream: &mut impl Write) -> std::io::Result<()> {
        let mut gone = Ok(());
        let outcome =
            serde_json::from_value::<types::GenerateParams>(body).map_err(|error| unfit(&error)).and_then(|params| {
                let client = self.client().map_err(told)?;
                let params = types::GenerateParams { stream: true, ..params };
                let options = CallOptions { timeout: Some(self.timeout), ..CallOptions::default() };
                let result = client.call_streaming::<methods::Generate>(params, options, |event| {
                    let task = event.task;
                    if gone.is_ok() {
                        gone = line(stream, &json!({ "event": event }));
                        if gone.is_err() {
                            self.cancel(task);
                        }
                    }
                });
                serde_json::to_value(result.map_err(told)?).map_err(|error| unfit(&error))
            });
        gone?;
        match outcome {
            Ok(result) => line(stream, &json!({ "result": result })),
            Err(error) => line(stream, &json!({ "error": error })),
        }
    }

    /// From within a generation's events, where its own connection is busy: by a connection of its own, on a thread of its own.
    fn cancel(&self, task: TaskId) {
        let options = self.options.clone();
        std::thread::spawn(move || {
            let cancelled = Client::connect(options)
                .and_then(|client| client.call::<methods::TaskCancel>(types::TaskCancelParams { task }));
            // A daemon that is away has cancelled too.
            drop(cancelled);
        });
    }

    fn client(&self) -> Result<Arc<Client>, ClientError> {
        let mut slot = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = slot.as_ref() {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::connect(self.options.clone())?);
        *slot = Some(Arc::clone(&client));
        Ok(client)
    }
}

fn line(stream: &mut impl Write, value: &Value) -> std::io::Result<()> {
    let mut text = value.to_string();
    text.push('\n');
    stream.write_all(text.as_bytes())?;
    stream.flush()
}

fn told(error: ClientError) -> Value {
    let error = CommandError::from(error);
    json!({"kind": error.kind(), "message": error.to_string(), "hint": error.hint()})
}

fn unfit(error: &serde_json::Error) -> Value {
    json!({"kind": "invalid_params", "message": error.to_string()})
}
