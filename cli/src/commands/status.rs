//! status and metrics.

use mneme_ipc::methods;
use mneme_ipc::types as wire;
use serde::Serialize;

use super::Session;
use crate::error::CommandError;
use crate::output::{bytes, dim, good, line, safe, warn};

/// The daemon and its memory together.
#[derive(Debug, Serialize)]
struct Whole {
    daemon: wire::StatusResult,
    memory: wire::StatsResult,
}

pub(super) fn status(session: &Session) -> Result<(), CommandError> {
    let client = session.client()?;
    let daemon = client.call_with::<methods::Status>(wire::StatusParams {}, session.call())?;
    let memory = client.call_with::<methods::Stats>(wire::StatsParams {}, session.call())?;
    session.out.result(&Whole { daemon, memory }, |whole| show(&whole.daemon, &whole.memory))
}

fn show(daemon: &wire::StatusResult, memory: &wire::StatsResult) {
    let health = if daemon.health == "healthy" { good(&daemon.health) } else { warn(safe(&daemon.health)) };
    line(format!("{}  {health}  pid {}  {} resident", daemon.server, daemon.pid, bytes(daemon.rss_bytes)));
    line(dim(format!("started {}, state in {}", daemon.started_at, safe(&daemon.state_dir))));
    line(format!(
        "memory     {} memories ({} quarantined, {} superseded), {} on disk by {}, change {}",
        memory.memories,
        memory.quarantined,
        memory.superseded,
        bytes(memory.disk_bytes),
        memory.engine,
        memory.lsn
    ));
    if memory.embeddings_pending > 0 {
        line(format!("           {} memories wait for their vectors", memory.embeddings_pending));
    }
    if memory.purge_pending > 0 {
        line(format!("           {} forgotten memories wait for their purge", memory.purge_pending));
    }
    for (namespace, count) in memory.namespaces.iter().take(20) {
        line(dim(format!("           {namespace}: {count}")));
    }
    line(format!("engine     {} ({} restarts)", safe(&daemon.engine), daemon.engine_restarts));
    let total: u64 = daemon.requests.values().sum();
    let errors: u64 = daemon.errors.values().sum();
    line(format!("traffic    {} connections, {total} requests, {errors} errors", daemon.connections));
    for actor in &daemon.actors {
        let state = if actor.state == "running" { good(&actor.state) } else { warn(&actor.state) };
        line(dim(format!(
            "           {:<12} {state} {}/{} under way, {} restarts",
            actor.name, actor.in_flight, actor.capacity, actor.restarts
        )));
    }
}

pub(super) fn metrics(session: &Session) -> Result<(), CommandError> {
    let result = session.client()?.call_with::<methods::Metrics>(wire::MetricsParams {}, session.call())?;
    session.out.result(&result, |result| line(result.text.trim_end()))
}
