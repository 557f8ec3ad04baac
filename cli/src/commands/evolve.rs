//! evolve status, log, show, diff, rollback, retire, pin, pause, resume, run; export and import are in [`skill`](super::skill).

use std::collections::BTreeMap;

use mneme_ipc::Method;
use mneme_ipc::methods;
use mneme_ipc::types as wire;

use super::{Session, skill};
use crate::args::EvolveCommand;
use crate::error::CommandError;
use crate::output::{bold, dim, good, line, safe, warn};

pub(super) fn run(session: &Session, command: EvolveCommand) -> Result<(), CommandError> {
    match command {
        EvolveCommand::Status => {
            let client = session.client()?;
            let result = client.call_with::<methods::EvolveStatus>(wire::EvolveStatusParams {}, session.call())?;
            session.out.result(&result, show_status)
        }
        EvolveCommand::Log { limit } => {
            let params = wire::EvolveLogParams { limit: Some(limit), before: None };
            let result = session.client()?.call_with::<methods::EvolveLog>(params, session.call())?;
            session.out.result(&result, |result| {
                if result.decisions.is_empty() {
                    line(dim("nothing was decided yet"));
                }
                result.decisions.iter().for_each(show_decision);
            })
        }
        EvolveCommand::Show { adapter } => {
            let params = wire::EvolveAdapterParams { adapter };
            let result = session.client()?.call_with::<methods::EvolveShow>(params, session.call())?;
            session.out.result(&result, |result| {
                show_adapter(&result.adapter);
                show_numbers(&result.adapter.scores);
                line(dim(format!("learned from {} memories", result.lineage.len())));
                result.decisions.iter().for_each(show_decision);
            })
        }
        EvolveCommand::Diff { a, b } => {
            let params = wire::EvolveDiffParams { a, b };
            let result = session.client()?.call_with::<methods::EvolveDiff>(params, session.call())?;
            session.out.result(&result, show_diff)
        }
        EvolveCommand::Rollback { adapter } => {
            command_call::<methods::EvolveRollback>(session, wire::EvolveAdapterParams { adapter })
        }
        EvolveCommand::Retire { adapter } => {
            command_call::<methods::EvolveRetire>(session, wire::EvolveAdapterParams { adapter })
        }
        EvolveCommand::Pin { adapter, off } => {
            command_call::<methods::EvolvePin>(session, wire::EvolvePinParams { adapter, pinned: !off })
        }
        EvolveCommand::Pause => command_call::<methods::EvolvePause>(session, wire::EvolvePauseParams {}),
        EvolveCommand::Resume => command_call::<methods::EvolveResume>(session, wire::EvolveResumeParams {}),
        EvolveCommand::Run => command_call::<methods::EvolveRun>(session, wire::EvolveRunParams {}),
        EvolveCommand::Export { adapter, file } => skill::export(session, adapter, &file),
        EvolveCommand::Import { file } => skill::import(session, &file),
    }
}

fn command_call<M: Method<Result = wire::EvolveCommandResult>>(
    session: &Session,
    params: M::Params,
) -> Result<(), CommandError> {
    let result = session.client()?.call_with::<M>(params, session.call())?;
    session.out.result(&result, |result| line(format!("{}: {}", bold(&result.state), safe(&result.message))))
}

fn show_status(status: &wire::EvolveStatusResult) {
    line(format!("state      {}", bold(&status.state)));
    if let Some(paused) = &status.paused {
        line(format!("waiting    {}", warn(safe(paused))));
    }
    if let Some(progress) = status.progress {
        line(format!("job        {:.0}%", f64::from(progress) * 100.0));
    }
    line(format!("observed   {} generations, {} texts of yours", status.observed, status.texts_waiting));
    line(format!(
        "decisions  {} trained, {} accepted, {} rejected, {} rolled back",
        status.trained, status.accepted, status.rejected, status.rolled_back
    ));
    status.adapters.iter().for_each(show_adapter);
}

fn show_adapter(adapter: &wire::AdapterView) {
    let state = if adapter.state == "active" { good(&adapter.state) } else { adapter.state.clone() };
    let pinned = if adapter.pinned { " pinned" } else { "" };
    let imported = if adapter.imported { " imported" } else { "" };
    line(format!(
        "adapter    {}  {}  {state}{pinned}{imported}  {} memories  {}",
        adapter.id, adapter.level, adapter.memories, adapter.created_at
    ));
}

fn show_decision(decision: &wire::DecisionView) {
    let about = decision.adapter.map(|adapter| format!("  {adapter}")).unwrap_or_default();
    line(format!("{:>5}  {}  {} -> {}{}", decision.id, decision.at, decision.from, bold(&decision.to), dim(about)));
    line(format!("       {}", safe(&decision.reason)));
    show_numbers(&decision.numbers);
}

fn show_numbers(numbers: &BTreeMap<String, f64>) {
    if !numbers.is_empty() {
        let pairs: Vec<String> = numbers.iter().map(|(name, value)| format!("{name}={value:.4}")).collect();
        line(dim(format!("       {}", pairs.join("  "))));
    }
}

fn show_diff(diff: &wire::EvolveDiffResult) {
    let names: std::collections::BTreeSet<&String> = diff.a.keys().chain(diff.b.keys()).collect();
    let cell = |value: Option<&f64>| value.map_or_else(|| String::from("-"), |value| format!("{value:.4}"));
    for name in names {
        line(format!("{name:<28} {:>12} {:>12}", cell(diff.a.get(name)), cell(diff.b.get(name))));
    }
    line(dim(format!("memories: {} only in the first, {} only in the second", diff.only_a.len(), diff.only_b.len())));
}
