//! remember, recall, get, forget.

use std::collections::BTreeMap;
use std::io::{BufRead as _, IsTerminal as _, Read as _};

use mneme_base::MemoryId;
use mneme_client_sdk::CallOptions;
use mneme_ipc::methods;
use mneme_ipc::types as wire;

use super::Session;
use crate::args::{ForgetArgs, Kind, RecallArgs, RememberArgs};
use crate::error::CommandError;
use crate::output::{bold, dim, good, line, note, safe, short, warn};

/// Standard input is read up to this size (bytes); a memory is smaller.
const STDIN_BYTES_MAX: u64 = 1 << 20;

const fn kind(kind: Kind) -> wire::Kind {
    match kind {
        Kind::Note => wire::Kind::Note,
        Kind::Message => wire::Kind::Message,
        Kind::Fact => wire::Kind::Fact,
        Kind::Preference => wire::Kind::Preference,
        Kind::Chunk => wire::Kind::Chunk,
        Kind::Event => wire::Kind::Event,
        Kind::Procedure => wire::Kind::Procedure,
    }
}

/// The text of an argument, or of standard input when it is not a terminal.
pub(super) fn text_or_stdin(text: Option<String>, what: &str) -> Result<String, CommandError> {
    if let Some(text) = text {
        return Ok(text);
    }
    if std::io::stdin().is_terminal() {
        return Err(CommandError::usage(format!("{what} is missing: give it as an argument or on standard input")));
    }
    let mut text = String::new();
    std::io::stdin().take(STDIN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}

pub(super) fn remember(session: &Session, args: RememberArgs) -> Result<(), CommandError> {
    let mut metadata = BTreeMap::new();
    for entry in &args.metadata {
        let (key, value) = entry
            .split_once('=')
            .ok_or_else(|| CommandError::usage(format!("--meta {entry:?} is not of the form KEY=VALUE")))?;
        metadata.insert(key.to_owned(), value.to_owned());
    }
    let params = wire::RememberParams {
        text: text_or_stdin(args.text, "text")?,
        namespace: args.namespace,
        kind: kind(args.kind),
        speaker: args.speaker,
        thread: args.thread,
        position: None,
        metadata,
        source: args.source.or_else(|| Some(String::from("user"))),
        trust: Some(args.trust.into()),
        valid_from: args.at,
        valid_to: None,
        ack: wire::Ack::Durable,
    };
    let options = CallOptions { op_id: args.op_id, ..session.call() };
    let client = session.client()?;
    let result = match args.supersedes {
        Some(id) => client.call_with::<methods::Supersede>(wire::SupersedeParams { id, by: params }, options)?,
        None => client.call_with::<methods::Remember>(params, options)?,
    };
    session.out.result(&result, |result| {
        let what = if result.duplicate { "known already" } else { "remembered" };
        line(format!("{} {}", good(what), result.id));
        if result.redactions > 0 {
            line(warn(format!("{} secret(s) were taken out before it was written", result.redactions)));
        }
        if result.quarantined {
            line(warn("it is in quarantine: recall shows it with --quarantined only"));
        }
        if let Some(near) = result.near_duplicate_of {
            line(dim(format!("says nearly the same as {near}")));
        }
    })
}

pub(super) fn recall(session: &Session, args: RecallArgs) -> Result<(), CommandError> {
    let params = wire::RecallParams {
        query: args.query,
        namespaces: args.namespace,
        limit: Some(args.limit),
        filter: wire::Filter {
            sources: args.source,
            speakers: args.speaker,
            trust_min: args.trust_min.map(Into::into),
            valid_after: args.after,
            valid_before: args.before,
            include_quarantined: args.quarantined,
            ..wire::Filter::default()
        },
        as_of: args.as_of,
        reference_time: None,
        diversity: args.diversity,
        rerank: args.rerank,
        explain: args.explain,
    };
    let result = session.client()?.call_with::<methods::Recall>(params, session.call())?;
    session.out.result(&result, |result| {
        for (place, hit) in result.hits.iter().enumerate() {
            show_hit(place + 1, hit);
        }
        if result.hits.is_empty() {
            line("nothing found");
        } else if result.abstain {
            line(warn("probably nothing here answers this"));
        }
        let degraded = match result.degraded.as_slice() {
            [] => String::new(),
            parts => format!(", without {}", parts.join(", ")),
        };
        let millis = result.took_us as f64 / 1000.0;
        line(dim(format!("{:.0}% confident, {millis:.1} ms{degraded}", f64::from(result.confidence) * 100.0)));
    })
}

fn show_hit(place: usize, hit: &wire::HitView) {
    let memory = &hit.memory;
    let speaker = memory.speaker.as_deref().map(|name| format!("{}: ", safe(name))).unwrap_or_default();
    let mark = if memory.quarantined { warn(" [quarantined]") } else { String::new() };
    line(format!("{} {speaker}{}{mark}", bold(format!("{place}.")), short(&memory.text, 400)));
    let origin = match (&memory.origin.path, memory.origin.lines) {
        (Some(path), Some((first, last))) => format!("{}:{first}-{last}", safe(path)),
        _ => safe(&memory.origin.source),
    };
    line(dim(format!("   {}  {}  {origin}", memory.id, memory.valid_from.date())));
    for signal in &hit.signals {
        let rank = if signal.rank == 0 { String::from("  -") } else { format!("{:>3}", signal.rank) };
        line(dim(format!(
            "     {:<16} rank {rank}  score {:>8.3}  adds {:.4}",
            signal.name, signal.score, signal.contribution
        )));
    }
    if !hit.matched_terms.is_empty() {
        line(dim(format!("     terms: {}", hit.matched_terms.join(" "))));
    }
}

pub(super) fn get(session: &Session, id: MemoryId) -> Result<(), CommandError> {
    let memory = session.client()?.call_with::<methods::Get>(wire::GetParams { id }, session.call())?;
    session.out.result(&memory, |memory| {
        line(safe(&memory.text));
        let trust = serde_json::to_value(memory.origin.trust).unwrap_or_default();
        line(dim(format!(
            "{} in {}, {} by {} from {}, recorded {}, evidence {}",
            memory.id,
            memory.namespace,
            trust.as_str().unwrap_or_default(),
            safe(&memory.origin.client),
            safe(&memory.origin.source),
            memory.recorded_at,
            memory.evidence,
        )));
        if let Some(by) = memory.superseded_by {
            line(warn(format!("superseded by {by}")));
        }
    })
}

pub(super) fn forget(session: &Session, args: ForgetArgs) -> Result<(), CommandError> {
    let (select, much) = match (args.source, args.whole_namespace) {
        (Some(source), None) => (wire::Selector::Source(source.clone()), Some(format!("everything from {source}"))),
        (None, Some(namespace)) => {
            (wire::Selector::Namespace(namespace.clone()), Some(format!("the whole namespace {namespace}")))
        }
        _ => (wire::Selector::Ids(args.ids), None),
    };
    if let Some(much) = much.filter(|_| !args.yes) {
        confirm(&much)?;
    }
    let purge_now = args.purge;
    let params = wire::ForgetParams { select, purge_now };
    let result = session.client()?.call_with::<methods::Forget>(params, session.call())?;
    session.out.result(&result, |result| {
        line(format!("{} {} memories at {}", good("forgotten"), result.ids.len(), result.hidden_at));
        match result.purged_at {
            Some(at) => line(format!("gone from every file at {at}")),
            None if purge_now => {
                line(warn("the purge was put off, the daemon's log says why: it is tried again within 24 h"));
            }
            None => line(dim("their bytes are removed from every file within 24 h; --purge does it now")),
        }
        for adapter in &result.adapters_retired {
            line(format!("adapter {adapter} had learned from them and is retired"));
        }
        line(dim(format!("receipt: change {}", result.lsn)));
    })
}

fn confirm(what: &str) -> Result<(), CommandError> {
    let hint = || Some(String::from("add --yes"));
    if !std::io::stdin().is_terminal() {
        return Err(CommandError::Usage { problem: format!("forgetting {what} has to be confirmed"), hint: hint() });
    }
    note(&format!("Forget {what}? This cannot be undone. [y/N]"));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") {
        Ok(())
    } else {
        Err(CommandError::Usage { problem: String::from("nothing was forgotten"), hint: None })
    }
}
