//! Upkeep: purge, compaction, indices, expiry, the audit of the vector index, backup.

use std::collections::BTreeSet;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use mneme_base::{Embedding, MemoryId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::durable::reading::each_embedding;
use crate::durable::record;
use crate::durable::transaction::Transaction;
use crate::durable::{DurableStore, UpkeepState, corrupt, keys};
use crate::gate::{self, QUOTA_BUCKET_MS, QUOTA_BUCKETS};
use crate::recall::View;
use crate::state::folder::{free_bytes, io_error, write_whole};
use crate::state::{StateEngine, Table, WriteBatch, open_engine, scan_prefix};
use crate::store::{MaintenanceReport, MaintenanceTask, StoreError};

/// Files smaller than this are not worth compacting (bytes).
const COMPACT_BYTES_MIN: u64 = 32 << 20;
/// Files are rewritten when they are larger than the rows in them by this factor.
const COMPACT_FACTOR: f64 = 1.6;
/// Rows are counted again when the files have grown by one part in so many.
const COMPACT_GROWTH_PART: u64 = 10;
/// Or after this (ms).
const COMPACT_COUNT_MS: u64 = 24 * 3_600 * 1_000;
/// What rows take in fresh files, at most, as a multiple of their own size: for the check that there is room for them.
const FRESH_FACTOR: f64 = 1.5;
/// What has to stay free beside fresh files (bytes).
const FRESH_MARGIN_BYTES: u64 = 64 << 20;
/// Memories whose own vectors are the questions of an audit.
const AUDIT_QUERIES: usize = 32;
/// An audit compares the best this many.
const AUDIT_DEPTH: usize = 10;
/// Rows that one transaction of the clean-up removes.
const CLEANUP_ROWS: usize = 10_000;
/// The manifest of a backup.
const MANIFEST: &str = "backup.json";
/// The state engine's folder inside a store's or a backup's.
const STATE: &str = super::STATE_FOLDER;
/// The cache of an engine that is read once (bytes).
const VERIFY_CACHE_BYTES: usize = 16 << 20;

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    lsn: u64,
    rows: u64,
    memories: u64,
    /// BLAKE3 over every row in table and key order, each part with its length.
    blake3: String,
}

impl DurableStore {
    pub(super) fn upkeep_step(&self, task: MaintenanceTask, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        self.check_open()?;
        let mut kept = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        let mut report = match task {
            MaintenanceTask::Purge => self.purge(now),
            MaintenanceTask::Compact => self.compact(now, &mut kept),
            MaintenanceTask::Index => self.refresh_index(),
            MaintenanceTask::Cleanup => self.clean_up(now),
            MaintenanceTask::Audit => self.audit(),
            MaintenanceTask::Follow => self.follow(),
        }?;
        self.each_projection(task, |projection| {
            let theirs = projection.upkeep(task, now)?;
            report.items += theirs.items;
            report.bytes_freed += theirs.bytes_freed;
            Ok(())
        })?;
        Ok(report)
    }

    /// Brings the projections up to the last change.
    fn follow(&self) -> Result<MaintenanceReport, StoreError> {
        Ok(MaintenanceReport { items: self.project()?, ..MaintenanceReport::default() })
    }

    /// Makes what was forgotten until now unreadable: in the projections, then by rewriting the state engine's files. While a
    /// projection cannot be reached, the store's own files are purged all the same, and the step fails until that one is too.
    fn purge(&self, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let (mut ids, mut newest) = (Vec::new(), 0);
        let lsn = {
            let writer = self.writer();
            self.engine.scan(Table::Purge, Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
                ids.push(key.to_vec());
                newest = newest.max(value.first_chunk::<8>().map_or(u64::MAX, |lsn| u64::from_be_bytes(*lsn)));
                ControlFlow::Continue(())
            })?;
            writer.counters.lsn
        };
        if ids.is_empty() {
            return Ok(MaintenanceReport::default());
        }
        // Rewriting costs the whole file: not again for the same rows while a projection keeps failing.
        let rewrites = self.purged_through.load(Ordering::Acquire) < newest;
        if rewrites {
            self.check_room_to_rewrite()?;
        }
        let projected =
            self.project().and_then(|_| self.each_projection(MaintenanceTask::Purge, |projection| projection.purge()));
        let (mut had_index_file, mut bytes_freed) = (false, 0);
        if rewrites {
            had_index_file = self.drop_index_file()?;
            bytes_freed = self.engine.rewrite()?;
            self.purged_through.store(newest, Ordering::Release);
        }
        if let Err(error) = projected {
            self.index_file_again(had_index_file)?;
            return Err(error);
        }
        let items = ids.len() as u64;
        let mut writer = self.writer();
        let corrupt = corrupt(&self.folder);
        let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
        for id in ids {
            transaction.batch.delete(Table::Purge, id);
        }
        let pending = &mut transaction.state.counters.purge_pending;
        *pending = pending.saturating_sub(items);
        let key = keys::meta(keys::PURGE_PREFIX, &lsn.to_be_bytes());
        transaction.batch.put(Table::Meta, key, now.as_millis().to_le_bytes());
        transaction.finish_without_operations();
        self.commit(&mut writer, transaction)?;
        drop(writer);
        self.index_file_again(had_index_file)?;
        Ok(MaintenanceReport { items, bytes_freed, measure: None })
    }

    fn index_file_again(&self, had_one: bool) -> Result<(), StoreError> {
        if had_one && let Err(error) = self.write_index_file() {
            // Everything is purged; what is missing costs time at the next opening, and is written by a later step.
            self.check_open()?;
            tracing::warn!(%error, "no index file after the purge");
        }
        Ok(())
    }

    /// Refuses a rewrite that would fill the disk: for a while there are two copies of every row.
    fn check_room_to_rewrite(&self) -> Result<(), StoreError> {
        let Some(free_bytes) = free_bytes(&self.folder).filter(|_| !self.folder.as_os_str().is_empty()) else {
            return Ok(());
        };
        // Fresh files are no larger than those that are there: only where that much is not free are the rows counted.
        if free_bytes > self.engine.disk_bytes().saturating_add(FRESH_MARGIN_BYTES) {
            return Ok(());
        }
        let needed_bytes = (self.row_bytes()? as f64 * FRESH_FACTOR) as u64 + FRESH_MARGIN_BYTES;
        if free_bytes < needed_bytes { Err(StoreError::NoRoom { needed_bytes, free_bytes }) } else { Ok(()) }
    }

    fn compact(&self, now: Timestamp, kept: &mut UpkeepState) -> Result<MaintenanceReport, StoreError> {
        let disk = self.engine.disk_bytes();
        if disk < COMPACT_BYTES_MIN {
            return Ok(MaintenanceReport::default());
        }
        // Counting reads every row. Files that have not grown can only hold more that is dead where rows went, and what is forgotten
        // goes with the purge, which rewrites them.
        let counted_lately = kept.counted.is_some_and(|(at, bytes)| {
            now.as_millis().abs_diff(at.as_millis()) < COMPACT_COUNT_MS && disk < bytes + bytes / COMPACT_GROWTH_PART
        });
        if counted_lately {
            return Ok(MaintenanceReport::default());
        }
        kept.counted = Some((now, disk));
        let live = self.row_bytes()?;
        let factor = disk as f64 / live.max(1) as f64;
        if factor < COMPACT_FACTOR {
            return Ok(MaintenanceReport { items: 0, bytes_freed: 0, measure: Some(factor) });
        }
        self.check_room_to_rewrite()?;
        let bytes_freed = self.engine.rewrite()?;
        kept.counted = Some((now, self.engine.disk_bytes()));
        Ok(MaintenanceReport { items: 1, bytes_freed, measure: Some(factor) })
    }

    /// Feeds the projections; drops what is dead from the recall index when that is much of it; writes the index file anew when it
    /// is far behind.
    fn refresh_index(&self) -> Result<MaintenanceReport, StoreError> {
        if self.index().wants_compaction() {
            self.index_mut().compact();
        }
        self.refresh_index_file()?;
        let items = self.project()?;
        Ok(MaintenanceReport { items, ..MaintenanceReport::default() })
    }

    /// Removes what has expired: quota counts, times of purges, operation ids past their time or number.
    fn clean_up(&self, now: Timestamp) -> Result<MaintenanceReport, StoreError> {
        let horizon = now.as_millis().saturating_sub(self.options().ledger_retention_ms);
        let mut removed = 0;
        loop {
            let mut writer = self.writer();
            let corrupt = corrupt(&self.folder);
            let mut transaction = Transaction::new(self.engine.as_ref(), writer.clone(), &corrupt);
            let surplus = writer.counters.ledger.saturating_sub(self.options().ledger_rows_max);
            let rows = transaction.expire_ledger_rows(horizon, surplus, CLEANUP_ROWS)?;
            if rows == 0 {
                break;
            }
            removed += rows as u64;
            transaction.finish_without_operations();
            self.commit(&mut writer, transaction)?;
        }
        let mut batch = WriteBatch::default();
        let oldest_bucket = now.as_millis().div_euclid(QUOTA_BUCKET_MS) - QUOTA_BUCKETS;
        let mut fault = None;
        let _writer = self.writer();
        self.engine.scan(Table::Usage, Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
            match record::decode_usage(value) {
                Ok(usage) if usage.0.iter().all(|(bucket, _)| *bucket <= oldest_bucket) => {
                    batch.delete(Table::Usage, key);
                }
                Ok(_) => {}
                Err(error) => fault = Some(corrupt(&self.folder)(error)),
            }
            if batch.len() < CLEANUP_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if let Some(fault) = fault {
            return Err(fault);
        }
        scan_prefix(self.engine.as_ref(), Table::Meta, keys::PURGE_PREFIX, &mut |key, value| {
            if value.first_chunk::<8>().is_none_or(|at| i64::from_le_bytes(*at) < horizon) {
                batch.delete(Table::Meta, key);
            }
            ControlFlow::Continue(())
        })?;
        if !batch.is_empty() {
            self.engine.commit(&batch)?;
        }
        removed += batch.len() as u64;
        Ok(MaintenanceReport { items: removed, ..MaintenanceReport::default() })
    }

    /// Compares the vector scan with the exact order on sampled questions: the measure is recall@10.
    fn audit(&self) -> Result<MaintenanceReport, StoreError> {
        let mut queries: Vec<(MemoryId, Embedding)> = Vec::new();
        let mut seen = 0_usize;
        let stride = (self.index().len() / AUDIT_QUERIES).max(1);
        each_embedding(self.engine.as_ref(), &self.folder, &mut |id, _, embeddings| {
            if seen.is_multiple_of(stride)
                && queries.len() < AUDIT_QUERIES
                && let Some(own) = embeddings.into_iter().next()
            {
                queries.push((id, own));
            }
            seen += 1;
        })?;
        if queries.is_empty() {
            return Ok(MaintenanceReport::default());
        }
        let approximate: Vec<BTreeSet<MemoryId>> = {
            let index = self.index();
            let live = index.columns.live().clone();
            let best = |embedding: &Embedding| {
                let query = index.own.query(embedding);
                query.map(|query| index.top(View::Own, &query, AUDIT_DEPTH, &live)).unwrap_or_default()
            };
            queries
                .iter()
                .map(|(_, query)| best(query).into_iter().map(|hit| index.columns.id(hit.row)).collect())
                .collect()
        };
        let mut exact: Vec<Vec<(f32, MemoryId)>> = vec![Vec::new(); queries.len()];
        each_embedding(self.engine.as_ref(), &self.folder, &mut |id, _, embeddings| {
            let Some(own) = embeddings.into_iter().next() else { return };
            for ((_, query), best) in queries.iter().zip(&mut exact) {
                let Some(cosine) = query.cosine(&own) else { continue };
                best.push((cosine, id));
                if best.len() >= 2 * AUDIT_DEPTH {
                    cut(best);
                }
            }
        })?;
        let mut shared = 0;
        let mut wanted = 0;
        for (best, found) in exact.iter_mut().zip(&approximate) {
            cut(best);
            wanted += best.len();
            shared += best.iter().filter(|(_, id)| found.contains(id)).count();
        }
        let measure = shared as f64 / wanted.max(1) as f64;
        Ok(MaintenanceReport { items: queries.len() as u64, bytes_freed: 0, measure: Some(measure) })
    }

    /// Copies every row into an empty folder while writes go on, then reads the copy back and compares it with its manifest.
    pub(super) fn backup_to(&self, folder: &Path) -> Result<MaintenanceReport, StoreError> {
        self.check_open()?;
        let _one_at_a_time = self.upkeep.lock().unwrap_or_else(PoisonError::into_inner);
        fs_err::create_dir_all(folder).map_err(|error| io_error("created a backup folder", error))?;
        self.engine.copy_to(&folder.join(STATE))?;
        let manifest = examine(&folder.join(STATE))?;
        let bytes = serde_json::to_vec_pretty(&manifest).expect("a plain struct serialises");
        write_whole(&folder.join(MANIFEST), &bytes).map_err(|error| io_error("wrote a manifest", error))?;
        Ok(MaintenanceReport { items: manifest.rows, bytes_freed: 0, measure: None })
    }
}

fn cut(best: &mut Vec<(f32, MemoryId)>) {
    best.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    best.truncate(AUDIT_DEPTH);
}

/// Reads every row of a copy: each has to decode, each memory has to hash to what it says, the counts have to agree.
fn examine(state: &Path) -> Result<Manifest, StoreError> {
    let engine = open_engine(state, crate::state::EngineKind::default(), VERIFY_CACHE_BYTES)?;
    examine_engine(engine.as_ref(), state)
}

fn examine_engine(engine: &dyn StateEngine, path: &Path) -> Result<Manifest, StoreError> {
    let corrupt = |problem: String| StoreError::Corrupt { path: path.to_owned(), problem };
    let mut hasher = blake3::Hasher::new();
    let (mut rows, mut memories) = (0_u64, 0_u64);
    let mut problem = None;
    for table in Table::ALL {
        engine.scan(table, Bound::Unbounded, Bound::Unbounded, &mut |key, value| {
            hasher.update(&[table as u8]);
            for part in [key, value] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part);
            }
            rows += 1;
            memories += u64::from(table == Table::Memory);
            problem = check_row(table, key, value);
            if problem.is_none() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        if let Some(problem) = problem.take() {
            return Err(corrupt(problem));
        }
    }
    let counters = match engine.get(Table::Meta, keys::COUNTERS)? {
        Some(bytes) => record::decode_counters(&bytes).map_err(|error| corrupt(error.to_string()))?,
        None => record::Counters::default(),
    };
    let counted = counters.active + counters.quarantined + counters.superseded;
    if counted != memories {
        return Err(corrupt(format!("holds {memories} memories, its counters say {counted}")));
    }
    let blake3 = hasher.finalize().to_hex().to_string();
    Ok(Manifest { format: crate::state::FORMAT, lsn: counters.lsn, rows, memories, blake3 })
}

fn check_row(table: Table, key: &[u8], value: &[u8]) -> Option<String> {
    match table {
        Table::Memory => {
            let memory = match super::memory_of(key, value) {
                Ok(memory) => memory,
                Err(error) => return Some(error.to_string()),
            };
            let (speaker, thread) = (memory.speaker.as_deref(), memory.thread.as_deref());
            let hash = gate::hash_of(&memory.namespace, memory.kind, speaker, thread, &memory.text);
            (hash != memory.content_hash).then(|| format!("memory {} does not match its content hash", memory.id))
        }
        Table::Embedding => record::decode_embeddings(value).err().map(|error| error.to_string()),
        Table::Ledger => record::decode_ledger(value).err().map(|error| error.to_string()),
        _ => None,
    }
}

/// Checks a backup against its manifest and puts it into an empty or missing folder as a store. Returns the memories in it.
pub fn restore(backup: &Path, folder: &Path) -> Result<u64, StoreError> {
    let path = backup.join(MANIFEST);
    let bytes = fs_err::read(&path).map_err(|error| io_error("read a manifest", error))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| StoreError::Corrupt { path: path.clone(), problem: error.to_string() })?;
    let engine = open_engine(&backup.join(STATE), crate::state::EngineKind::default(), VERIFY_CACHE_BYTES)?;
    let found = examine_engine(engine.as_ref(), backup)?;
    if found != manifest {
        let problem = format!("holds {} rows that do not match the manifest's {}", found.rows, manifest.rows);
        return Err(StoreError::Corrupt { path, problem });
    }
    fs_err::create_dir_all(folder).map_err(|error| io_error("created a store folder", error))?;
    engine.copy_to(&folder.join(STATE))?;
    if examine(&folder.join(STATE))? != manifest {
        let problem = "the restored copy differs from the backup".to_owned();
        return Err(StoreError::Corrupt { path: folder.to_owned(), problem });
    }
    forget_followers(&folder.join(STATE))?;
    Ok(manifest.memories)
}

/// What follows a store that goes back in time must not take its new history for the one that it knows.
fn forget_followers(state: &Path) -> Result<(), StoreError> {
    let engine = open_engine(state, crate::state::EngineKind::default(), VERIFY_CACHE_BYTES)?;
    let mut batch = WriteBatch::default();
    for prefix in [keys::PROJECTION_PREFIX, keys::HISTORY_PREFIX] {
        scan_prefix(engine.as_ref(), Table::Meta, prefix, &mut |key, _| {
            // The store's own index file is vouched for by another row.
            if !key.ends_with(keys::INDEX_FOLLOWER.as_bytes()) {
                batch.delete(Table::Meta, key);
            }
            ControlFlow::Continue(())
        })?;
    }
    if batch.is_empty() { Ok(()) } else { engine.commit(&batch) }
}
