//! The table of methods: name, parameters, result, in one place for daemon, clients and the protocol page.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::envelope::RequestFrame;
use crate::error::{ErrorBody, ErrorKind};
use crate::types;

/// A method of the protocol, as a type: what a client sends and what comes back.
pub trait Method {
    /// Its name on the wire.
    const NAME: &'static str;
    /// Its parameters.
    type Params: Serialize + DeserializeOwned;
    /// Its result.
    type Result: Serialize + DeserializeOwned;
}

/// One row of the protocol page.
#[derive(Debug, Clone, Copy)]
pub struct MethodDoc {
    /// The name on the wire.
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Makes the schema of its parameters.
    pub params: fn() -> schemars::Schema,
    /// Makes the schema of its result.
    pub result: fn() -> schemars::Schema,
}

macro_rules! methods {
    ($($variant:ident $name:literal ($params:ty) -> $result:ty, $about:literal;)*) => {
        /// A request whose parameters have been read.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Call {
            $(#[doc = $about] $variant(Box<$params>),)*
        }

        impl Call {
            /// Reads the parameters of a request by its method.
            pub fn parse(frame: &RequestFrame<'_>) -> Result<Self, ErrorBody> {
                let raw = frame.params.map_or("{}", |raw| raw.get());
                match frame.method.as_str() {
                    $($name => parse_params::<$params>($name, raw).map(|params| Self::$variant(Box::new(params))),)*
                    other => Err(unknown_method(other)),
                }
            }

            /// The method's name on the wire.
            pub const fn name(&self) -> &'static str {
                match self { $(Self::$variant(_) => $name,)* }
            }
        }

        $(
            #[doc = $about]
            #[derive(Debug, Clone, Copy)]
            pub struct $variant;
            impl Method for $variant {
                const NAME: &'static str = $name;
                type Params = $params;
                type Result = $result;
            }
        )*

        /// Every method, in the order of the protocol page.
        pub const DOCS: &[MethodDoc] = &[$(MethodDoc {
            name: $name,
            about: $about,
            params: || schemars::schema_for!($params),
            result: || schemars::schema_for!($result),
        },)*];
    };
}

methods! {
    Hello "hello" (types::HelloParams) -> types::HelloResult, "Opens a connection: versions and limits. Must come first.";
    Ping "ping" (types::PingParams) -> types::PingResult, "Asks whether the daemon is there. Allowed before `hello`.";
    Remember "memory.remember" (types::RememberParams) -> types::RememberResult, "Remembers something.";
    Recall "memory.recall" (types::RecallParams) -> types::RecallResult, "Asks the memory.";
    Get "memory.get" (types::GetParams) -> types::MemoryView, "Returns one memory.";
    Forget "memory.forget" (types::ForgetParams) -> types::ForgetResult, "Makes memories unrecallable at once, and unreadable on disk soon.";
    Supersede "memory.supersede" (types::SupersedeParams) -> types::RememberResult, "Puts something in the place of an older memory.";
    Corroborate "memory.corroborate" (types::CorroborateParams) -> types::CorroborateResult, "Takes a memory out of quarantine.";
    Export "memory.export" (types::ExportParams) -> types::ExportResult, "Returns a page of memories in id order.";
    Import "memory.import" (types::ImportParams) -> types::ImportResult, "Remembers many things in one durable step.";
    Stats "memory.stats" (types::StatsParams) -> types::StatsResult, "Counts and sizes of the memory.";
    Map "memory.map" (types::MapParams) -> types::MapResult, "Lays memories out in a plane by their meaning.";
    NamespaceList "namespace.list" (types::NamespaceListParams) -> types::NamespaceListResult, "Lists the namespaces.";
    Generate "generate" (types::GenerateParams) -> types::GenerateResult, "Writes from memory; streams when asked to.";
    Feedback "feedback" (types::FeedbackParams) -> types::FeedbackResult, "Says what the user thinks of a generation.";
    TaskSubmit "task.submit" (types::TaskSubmitParams) -> types::TaskSubmitResult, "Starts a long-running task and returns at once.";
    TaskStatus "task.status" (types::TaskStatusParams) -> types::TaskStatusResult, "Asks where tasks are.";
    TaskCancel "task.cancel" (types::TaskCancelParams) -> types::TaskCancelResult, "Stops a task at its next step.";
    TaskEvents "task.events" (types::TaskEventsParams) -> types::TaskView, "Follows a task by `task.event` notifications until it ends.";
    EvolveStatus "evolve.status" (types::EvolveStatusParams) -> types::EvolveStatusResult, "What the evolution loop is doing.";
    EvolveLog "evolve.log" (types::EvolveLogParams) -> types::EvolveLogResult, "Decisions of the loop, newest first.";
    EvolveShow "evolve.show" (types::EvolveAdapterParams) -> types::EvolveShowResult, "One adapter with its lineage and decisions.";
    EvolveDiff "evolve.diff" (types::EvolveDiffParams) -> types::EvolveDiffResult, "Compares two adapters.";
    EvolveRollback "evolve.rollback" (types::EvolveAdapterParams) -> types::EvolveCommandResult, "Takes an adapter out of use.";
    EvolveRetire "evolve.retire" (types::EvolveAdapterParams) -> types::EvolveCommandResult, "Takes an adapter out of use for good and removes its file.";
    EvolvePin "evolve.pin" (types::EvolvePinParams) -> types::EvolveCommandResult, "Pins or unpins an adapter.";
    EvolvePause "evolve.pause" (types::EvolvePauseParams) -> types::EvolveCommandResult, "Stops the loop from training.";
    EvolveResume "evolve.resume" (types::EvolveResumeParams) -> types::EvolveCommandResult, "Lets the loop train again.";
    EvolveRun "evolve.run" (types::EvolveRunParams) -> types::EvolveCommandResult, "Proposes a training job now; its gates stay.";
    EvolveExport "evolve.export" (types::EvolveExportParams) -> types::EvolveExportResult, "Returns a part of an adapter as a skill that another machine can import.";
    EvolveImport "evolve.import" (types::EvolveImportParams) -> types::EvolveImportResult, "Takes a skill in; it serves nothing before it has passed a shadow here.";
    WatchAdd "watch.add" (types::WatchAddParams) -> types::WatchView, "Keeps a folder's text files in memory as they change.";
    WatchRemove "watch.remove" (types::WatchRemoveParams) -> types::WatchListResult, "Stops watching a folder.";
    WatchList "watch.list" (types::WatchListParams) -> types::WatchListResult, "Lists watched folders.";
    Status "admin.status" (types::StatusParams) -> types::StatusResult, "How the daemon is.";
    Backup "admin.backup" (types::BackupParams) -> types::UpkeepResult, "Writes a verified copy of the store while it is in use.";
    Compact "admin.compact" (types::CompactParams) -> types::UpkeepResult, "Purges forgotten bytes and compacts the store now.";
    Reload "admin.reload" (types::ReloadParams) -> types::ReloadResult, "Reads the configuration again.";
    Metrics "admin.metrics" (types::MetricsParams) -> types::MetricsResult, "Counters in Prometheus' text form.";
    Drain "admin.drain" (types::DrainParams) -> types::DrainResult, "Stops the daemon in order.";
}

fn parse_params<'a, P: Deserialize<'a>>(method: &str, raw: &'a str) -> Result<P, ErrorBody> {
    // JSON-RPC also allows positional parameters; a table of names is the better protocol, so they are refused in words.
    if !raw.trim_start().starts_with('{') {
        return Err(ErrorBody::new(ErrorKind::InvalidParams, format!("params of {method} must be an object")));
    }
    serde_json::from_str(raw).map_err(|error| {
        ErrorBody::new(ErrorKind::InvalidParams, format!("params of {method} cannot be read: {error}"))
            .hint("PROTOCOL.md lists the fields of every method")
    })
}

fn unknown_method(name: &str) -> ErrorBody {
    let shown: String = name.chars().take(64).collect();
    let error = ErrorBody::new(ErrorKind::MethodNotFound, format!("method {shown:?} does not exist"));
    let wanted = shown.rsplit('.').next().unwrap_or_default();
    match DOCS.iter().find(|doc| !wanted.is_empty() && doc.name.rsplit('.').next() == Some(wanted)) {
        Some(doc) => error.hint(format!("did you mean {:?}?", doc.name)),
        None => error.hint("PROTOCOL.md lists every method"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(line: &str, expected: Expect) {
        let frame = RequestFrame::parse(line.as_bytes()).unwrap();
        let shown = match Call::parse(&frame) {
            Ok(call) => format!("ok {}", call.name()),
            Err(error) => format!("{:?}: {} ({:?})", error.kind(), error.message, error.data.hint),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn parameters_are_read_by_method() {
        check(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, expect!["ok ping"]);
        check(
            r#"{"jsonrpc":"2.0","id":1,"method":"memory.remember","params":{"text":"tea at four"}}"#,
            expect!["ok memory.remember"],
        );
    }

    #[test]
    fn an_unknown_method_suggests_the_nearest() {
        check(
            r#"{"jsonrpc":"2.0","id":1,"method":"recall"}"#,
            expect![[r#"MethodNotFound: method "recall" does not exist (Some("did you mean \"memory.recall\"?"))"#]],
        );
    }

    #[test]
    fn an_unknown_field_is_refused() {
        let line = r#"{"jsonrpc":"2.0","id":1,"method":"memory.remember","params":{"text":"x","colour":"red"}}"#;
        let error = Call::parse(&RequestFrame::parse(line.as_bytes()).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidParams);
        assert!(error.message.contains("unknown field `colour`"), "{}", error.message);
    }

    #[test]
    fn positional_parameters_are_refused_in_words() {
        check(
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#,
            expect!["InvalidParams: params of ping must be an object (None)"],
        );
    }

    #[test]
    fn a_namespace_that_is_a_path_trick_is_refused() {
        let line = r#"{"jsonrpc":"2.0","id":1,"method":"memory.remember","params":{"text":"x","namespace":"../etc"}}"#;
        assert!(Call::parse(&RequestFrame::parse(line.as_bytes()).unwrap()).is_err());
    }
}
