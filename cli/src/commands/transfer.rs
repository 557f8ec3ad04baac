//! export, import, backup, restore, compact.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use mneme_base::Namespace;
use mneme_client_sdk::blocking::Client;
use mneme_ipc::methods;
use mneme_ipc::types as wire;
use serde::{Deserialize, Serialize};

use super::service::daemon_or_error;
use super::{Session, absolute};
use crate::args::{ExportArgs, ImportArgs};
use crate::error::CommandError;
use crate::output::{bytes, good, line, warn};

/// Memories sent in one request, unless the daemon takes fewer.
const BATCH: usize = 500;
/// Faulty lines that are named; more are counted.
const FAULTS_SHOWN: usize = 10;
/// Exit status when some lines could not be taken in (EX_DATAERR).
const EXIT_DATA: u8 = 65;

pub(super) fn export(session: &Session, args: ExportArgs) -> Result<(), CommandError> {
    let client = session.client()?;
    let Some(file) = &args.file else {
        return export_to(session, &client, &args, &mut std::io::stdout().lock());
    };
    // A pipe or a device is written to; a former export stays until the new one is whole.
    if fs_err::metadata(file).is_ok_and(|there| !there.is_file()) {
        let mut out = BufWriter::new(fs_err::OpenOptions::new().write(true).open(file)?);
        return export_to(session, &client, &args, &mut out);
    }
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let mut draft = BufWriter::new(tempfile::NamedTempFile::new_in(folder)?);
    export_to(session, &client, &args, &mut draft)?;
    let draft = draft.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    draft.as_file().sync_all()?;
    draft.persist(file).map_err(|error| error.error)?;
    Ok(())
}

fn export_to(
    session: &Session,
    client: &Client,
    args: &ExportArgs,
    mut out: &mut dyn Write,
) -> Result<(), CommandError> {
    let mut after = None;
    let mut count = 0_u64;
    loop {
        let params = wire::ExportParams { namespace: args.namespace.clone(), after, limit: None };
        let page = client.call_with::<methods::Export>(params, session.call())?;
        for memory in &page.memories {
            serde_json::to_writer(&mut out, memory).map_err(std::io::Error::from)?;
            out.write_all(b"\n")?;
        }
        count += page.memories.len() as u64;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    out.flush()?;
    session.out.remark(format!("{count} memories"));
    Ok(())
}

/// What an import did.
#[derive(Debug, Default, Serialize)]
#[expect(clippy::struct_field_names, reason = "the fields are the names in the JSON output")]
struct Imported {
    imported: u64,
    duplicates: u64,
    superseded: u64,
    refused: u64,
    faults: Vec<String>,
}

impl Imported {
    fn refuse(&mut self, line_number: usize, problem: &str) {
        self.refused += 1;
        if self.faults.len() < FAULTS_SHOWN {
            self.faults.push(format!("line {line_number}: {problem}"));
        }
    }
}

/// A line of an import: an export's line, or any object with a text. Unknown members are left out.
#[derive(Debug, Deserialize)]
struct Line {
    text: String,
    namespace: Option<Namespace>,
    kind: Option<wire::Kind>,
    speaker: Option<String>,
    thread: Option<String>,
    position: Option<u64>,
    #[serde(default)]
    metadata: std::collections::BTreeMap<String, String>,
    origin: Option<wire::Origin>,
    source: Option<String>,
    trust: Option<mneme_base::TrustTier>,
    valid_from: Option<mneme_base::Timestamp>,
    valid_to: Option<mneme_base::Timestamp>,
    superseded_by: Option<mneme_base::MemoryId>,
}

impl Line {
    fn into_params(self, namespace: &Namespace) -> wire::RememberParams {
        let (source, trust) = match self.origin {
            Some(origin) => (Some(origin.source), Some(origin.trust)),
            None => (self.source.or_else(|| Some(String::from("import"))), self.trust),
        };
        wire::RememberParams {
            text: self.text,
            namespace: self.namespace.unwrap_or_else(|| namespace.clone()),
            kind: self.kind.unwrap_or_default(),
            speaker: self.speaker,
            thread: self.thread,
            position: self.position,
            metadata: self.metadata,
            source,
            trust,
            valid_from: self.valid_from,
            valid_to: self.valid_to,
            ack: wire::Ack::Durable,
        }
    }
}

/// Takes in what can be taken; a refused line is named, and makes the command end with [`EXIT_DATA`].
pub(super) fn import(session: &Session, args: ImportArgs) -> Result<ExitCode, CommandError> {
    let client = session.client()?;
    let batch_max = BATCH.min(client.hello()?.limits.import_batch_max as usize).max(1);
    let (reader, total): (Box<dyn BufRead>, u64) = match &args.file {
        Some(file) => {
            let file = fs_err::File::open(file)?;
            let total = file.metadata()?.len();
            (Box::new(BufReader::new(file)), total)
        }
        None => (Box::new(std::io::stdin().lock()), 0),
    };
    let bar = if session.out.is_json() || total == 0 { ProgressBar::hidden() } else { ProgressBar::new(total) };
    bar.set_style(ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {eta}").expect("template is constant"));
    let mut result = Imported::default();
    let mut batch = Vec::with_capacity(batch_max);
    let mut numbers = Vec::with_capacity(batch_max);
    for (index, text) in reader.lines().enumerate() {
        let text = text?;
        bar.inc(text.len() as u64 + 1);
        if text.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Line>(&text) {
            // What was replaced would come back as if it still held.
            Ok(entry) if entry.superseded_by.is_some() => result.superseded += 1,
            Ok(entry) => {
                batch.push(entry.into_params(&args.namespace));
                numbers.push(index + 1);
            }
            Err(error) => result.refuse(index + 1, &error.to_string()),
        }
        if batch.len() == batch_max {
            send(session, &client, &mut batch, &mut numbers, &mut result)?;
        }
    }
    send(session, &client, &mut batch, &mut numbers, &mut result)?;
    bar.finish_and_clear();
    session.out.result(&result, |result| {
        line(format!("{} {} memories, {} known already", good("imported"), result.imported, result.duplicates));
        if result.superseded > 0 {
            line(format!("{} that had been replaced were left out", result.superseded));
        }
        if result.refused > 0 {
            line(warn(format!("{} lines were refused", result.refused)));
            result.faults.iter().for_each(|fault| line(format!("  {fault}")));
        }
    })?;
    Ok(if result.refused > 0 { ExitCode::from(EXIT_DATA) } else { ExitCode::SUCCESS })
}

fn send(
    session: &Session,
    client: &mneme_client_sdk::blocking::Client,
    batch: &mut Vec<wire::RememberParams>,
    numbers: &mut Vec<usize>,
    result: &mut Imported,
) -> Result<(), CommandError> {
    if batch.is_empty() {
        return Ok(());
    }
    let params = wire::ImportParams { memories: std::mem::take(batch) };
    let answer = client.call_with::<methods::Import>(params, session.call())?;
    result.imported += answer.imported;
    result.duplicates += answer.duplicates;
    for (place, problem) in answer.refused {
        result.refuse(numbers.get(place as usize).copied().unwrap_or_default(), &problem);
    }
    numbers.clear();
    Ok(())
}

pub(super) fn backup(session: &Session, folder: &std::path::Path) -> Result<(), CommandError> {
    let params = wire::BackupParams { folder: absolute(folder)? };
    let result = session.client()?.call_with::<methods::Backup>(params, session.patient_call())?;
    session.out.result(&result, |_| line(format!("{} into {}", good("verified copy written"), folder.display())))
}

/// What the daemon's program says of a restore.
#[derive(Debug, Deserialize, Serialize)]
struct Restored {
    memories: u64,
    folder: String,
    kept: Option<String>,
}

/// Has the daemon's program restore: it knows where the store is, and that nobody uses it.
pub(super) fn restore(session: &Session, folder: &std::path::Path) -> Result<ExitCode, CommandError> {
    let program = daemon_or_error()?;
    let mut command = std::process::Command::new(program);
    command.arg("--restore").arg(absolute(folder)?).stderr(std::process::Stdio::inherit());
    let output = command.output()?;
    if !output.status.success() {
        // It has said why.
        return Ok(ExitCode::from(output.status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)));
    }
    let restored: Restored = serde_json::from_slice(&output.stdout).map_err(std::io::Error::from)?;
    session.out.result(&restored, |restored| {
        line(format!("{} {} memories into {}", good("restored"), restored.memories, restored.folder));
        if let Some(kept) = &restored.kept {
            line(format!("what was there is kept as {kept}"));
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn compact(session: &Session) -> Result<(), CommandError> {
    let result = session.client()?.call_with::<methods::Compact>(wire::CompactParams {}, session.patient_call())?;
    session.out.result(&result, |result| {
        line(format!("{} given back to the disk", bytes(result.bytes_freed)));
        for (step, items) in &result.items {
            line(format!("  {step}: {items}"));
        }
    })
}
