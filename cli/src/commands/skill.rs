//! evolve export, evolve import: an adapter with its card as one file, moved in parts.

use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use fs_err::os::unix::fs::OpenOptionsExt as _;
use mneme_base::{AdapterId, ContentHash};
use mneme_ipc::methods;
use mneme_ipc::types as wire;
use serde::Serialize;

use super::Session;
use crate::error::CommandError;
use crate::output::{bold, bytes, good, line, safe};

/// Bytes sent in one request, unless the daemon takes fewer.
const PART_BYTES: usize = 1 << 20;
/// Bytes of a request beside the part.
const ENVELOPE_BYTES: usize = 1 << 10;

/// Mode of an exported skill's file: its owner's alone.
const PRIVATE: u32 = 0o600;

/// What an export did.
#[derive(Debug, Serialize)]
struct Exported {
    adapter: AdapterId,
    bytes: u64,
}

/// Writes a skill beside the file that is wanted and renames it when it is whole.
pub(super) fn export(session: &Session, adapter: AdapterId, file: &Path) -> Result<(), CommandError> {
    let mut name = file.file_name().ok_or_else(|| CommandError::usage("no file is named"))?.to_os_string();
    name.push(".part");
    let part = file.with_file_name(name);
    let written = write(session, adapter, &part).and_then(|bytes| {
        fs_err::rename(&part, file)?;
        Ok(bytes)
    });
    let written = written.inspect_err(|_| {
        // What is not whole is of no use.
        let _ = fs_err::remove_file(&part);
    })?;
    session.out.result(&Exported { adapter, bytes: written }, |result| {
        line(format!("{} {} with its card, into {}", good("written"), bytes(result.bytes), file.display()));
    })
}

/// Writes a skill; its length. Nobody else may read it: it was trained on private text.
fn write(session: &Session, adapter: AdapterId, path: &Path) -> Result<u64, CommandError> {
    let client = session.client()?;
    // One that was left by an earlier try may be readable to others.
    match fs_err::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let mut out = fs_err::OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(path)?;
    let mut offset = 0;
    loop {
        let params = wire::EvolveExportParams { adapter, offset };
        let answer = client.call_with::<methods::EvolveExport>(params, session.call())?;
        let data = BASE64.decode(answer.data).map_err(std::io::Error::other)?;
        out.write_all(&data)?;
        offset += data.len() as u64;
        match answer.next {
            Some(next) if next == offset && !data.is_empty() => {}
            Some(_) => return Err(CommandError::usage("the daemon sent parts that do not fit together")),
            None => break,
        }
    }
    out.sync_all()?;
    Ok(offset)
}

/// Sends a skill in parts; the daemon checks it when it has the last one.
pub(super) fn import(session: &Session, file: &Path) -> Result<(), CommandError> {
    let client = session.client()?;
    let limit = client.hello()?.limits.frame_bytes_max as usize;
    let part = PART_BYTES.min(limit.saturating_sub(ENVELOPE_BYTES) / 4 * 3).max(1);
    let mut input = fs_err::File::open(file)?;
    let total = input.metadata()?.len();
    if total == 0 {
        return Err(CommandError::usage(format!("{} is empty", file.display())));
    }
    let hash = ContentHash::of_reader(&mut input)?.to_string();
    input.rewind()?;
    let mut offset = 0;
    loop {
        let mut data = Vec::new();
        (&mut input).take(part as u64).read_to_end(&mut data)?;
        if data.is_empty() {
            return Err(CommandError::usage(format!("{} became shorter while it was read", file.display())));
        }
        let params = wire::EvolveImportParams { hash: hash.clone(), total, offset, data: BASE64.encode(&data) };
        let result = client.call_with::<methods::EvolveImport>(params, session.call())?;
        offset += data.len() as u64;
        if offset < total {
            continue;
        }
        return session.out.result(&result, |result| {
            let adapter = result.adapter.map(|adapter| adapter.to_string()).unwrap_or_default();
            line(format!("{} {}", bold(adapter), safe(result.message.as_deref().unwrap_or_default())));
        });
    }
}
