//! Upkeep of a table, in steps that stand alone: compaction, indices, cleanup, purge. Each in bounded memory; one that fails leaves
//! the table as it was and stops no other.

use std::collections::BTreeSet;

use lance::dataset::cleanup::CleanupPolicyBuilder;
use lance::dataset::optimize::{CompactionOptions, compact_files};
use lance::index::DatasetIndexExt;
use lance::index::vector::VectorIndexParams;
use lance_index::IndexType;
use lance_index::optimize::OptimizeOptions;
use lance_index::scalar::ScalarIndexParams;
use lance_linalg::distance::DistanceType;
use mneme_base::Timestamp;

use crate::repair;
use crate::schema::Table;
use crate::shared::{CALL, STEP, StorageError, StorageReport, local_path};
use crate::storage::{ArrowStorage, FRAGMENT_ROWS, READ_AHEAD_BYTES, SCAN_ROWS};

/// Fragments that one compaction takes.
const COMPACTION_FRAGMENTS: usize = 64;
/// Deleted rows from which on a fragment is rewritten, as a fraction of its rows.
const COMPACTION_DELETIONS: f32 = 0.1;
/// Index deltas that are merged into one; more would be searched one by one.
const INDEX_DELTAS_MAX: usize = 4;
/// The index that merges find keys by.
const KEY_INDEX: &str = "id_btree";
/// A setting that a purge commits, so that the head is not the very deletion, which names what it deleted.
const PURGED_KEY: &str = "mneme.purged_version";
/// The approximate index over vectors.
const VECTOR_INDEX: &str = "vector_ivf";

impl ArrowStorage {
    /// Step of upkeep: joins small fragments and writes deletions out, in bounded memory.
    pub fn compact(&mut self) -> Result<StorageReport, StorageError> {
        self.check_room(self.shared.options().disk_watermark_bytes)?;
        self.compact_with(COMPACTION_DELETIONS, Some(COMPACTION_FRAGMENTS))
    }

    fn compact_with(&mut self, deletions: f32, fragments: Option<usize>) -> Result<StorageReport, StorageError> {
        let Some(dataset) = &mut self.dataset else { return Ok(StorageReport::default()) };
        let options = CompactionOptions {
            target_rows_per_fragment: FRAGMENT_ROWS,
            materialize_deletions: true,
            materialize_deletions_threshold: deletions,
            num_threads: Some(1),
            batch_size: Some(SCAN_ROWS),
            io_buffer_size: Some(READ_AHEAD_BYTES),
            max_source_fragments: fragments,
            ..CompactionOptions::default()
        };
        let metrics = self.shared.wait("compacted files", STEP, compact_files(dataset, options, None))?;
        Ok(StorageReport { items: metrics.fragments_removed as u64, ..StorageReport::default() })
    }

    /// Step of upkeep: makes the indices that the table should have, and brings them up to the rows.
    pub fn update_indices(&mut self) -> Result<StorageReport, StorageError> {
        self.check_room(self.shared.options().disk_watermark_bytes)?;
        self.index_rows()
    }

    fn index_rows(&mut self) -> Result<StorageReport, StorageError> {
        let rows = self.count()?;
        let Some(dataset) = &mut self.dataset else { return Ok(StorageReport::default()) };
        let wants_vectors =
            self.version.table == Table::Vectors && rows >= self.shared.options().vector_index_rows_min as u64;
        let mut report = StorageReport::default();
        let work = async {
            let indices = dataset.load_indices().await?;
            let has = |name: &str| indices.iter().any(|index| index.name == name);
            if rows > 0 && !has(KEY_INDEX) {
                let params = ScalarIndexParams::default();
                dataset.create_index(&["id"], IndexType::BTree, Some(KEY_INDEX.into()), &params, true).await?;
                report.items += 1;
            }
            if wants_vectors && !has(VECTOR_INDEX) {
                let lists = ((rows as f64).sqrt() as usize).clamp(16, 4_096);
                let params = VectorIndexParams::ivf_flat(lists, DistanceType::Cosine);
                dataset.create_index(&["vector"], IndexType::Vector, Some(VECTOR_INDEX.into()), &params, true).await?;
                report.items += 1;
            }
            if !indices.is_empty() {
                let options = OptimizeOptions::merge(INDEX_DELTAS_MAX);
                dataset.optimize_indices(&options).await?;
                report.items += indices.len() as u64;
            }
            for name in [KEY_INDEX, VECTOR_INDEX] {
                if dataset.load_indices_by_name(name).await?.is_empty() {
                    continue;
                }
                let statistics: serde_json::Value =
                    serde_json::from_str(&dataset.index_statistics(name).await?).unwrap_or_default();
                report.unindexed_rows += statistics["num_unindexed_rows"].as_u64().unwrap_or(0);
            }
            Ok(())
        };
        self.shared.wait("updated indices", STEP, work)?;
        Ok(report)
    }

    /// Step of upkeep: removes versions older than they are kept for, and the files that only they need.
    pub fn cleanup(&mut self, now: Timestamp) -> Result<StorageReport, StorageError> {
        let options = self.shared.options();
        let horizon = now.as_millis().saturating_sub_unsigned(options.keep_versions_seconds.saturating_mul(1_000));
        if options.keep_versions_seconds == 0 {
            return self.clean_up(1, false);
        }
        // The newest one from before the horizon is what the table was like at the horizon: it stays as well.
        let young = self.versions()?.iter().filter(|version| version.at.as_millis() >= horizon).count();
        let most = options.keep_versions_max.max(1);
        self.clean_up((young + 1).min(most), false)
    }

    fn clean_up(&mut self, keep: usize, unverified: bool) -> Result<StorageReport, StorageError> {
        let Some(dataset) = &self.dataset else { return Ok(StorageReport::default()) };
        let work = async {
            let policy = CleanupPolicyBuilder::default().retain_n_versions(dataset, keep).await?;
            dataset.cleanup_with_policy(policy.delete_unverified(unverified).build()).await
        };
        let stats = self.shared.wait("cleaned up", STEP, work)?;
        Ok(StorageReport { items: stats.old_versions, bytes_freed: stats.bytes_removed, ..StorageReport::default() })
    }

    /// Makes deleted rows unreadable in every file: deletions are written out, indices made anew, every older version removed. No
    /// other writer may be at work, because files that no version names are removed too. What is kept is on the disk before what it
    /// replaces is removed. Refused where there is no room for a second copy; older versions and indices are gone even then.
    pub fn purge(&mut self) -> Result<StorageReport, StorageError> {
        // Indices first: compaction reads them, and a damaged one must not stand in the way.
        self.drop_indices()?;
        self.sync()?;
        let before = self.clean_up(1, true)?;
        self.check_room(0)?;
        self.compact_with(0.0, None)?;
        self.index_rows()?;
        let head = self.head().to_string();
        self.set(&[(PURGED_KEY, &head)])?;
        self.sync()?;
        let after = self.clean_up(1, true)?;
        if let Some(folder) = local_path(self.uri()) {
            let failed = |source| StorageError::Io { doing: "remove leftovers of", path: folder.into(), source };
            repair::empty_quarantine(folder).map_err(failed)?;
            repair::remove_staged(folder).map_err(failed)?;
        }
        self.sync()?;
        let (items, bytes_freed) = (before.items + after.items, before.bytes_freed + after.bytes_freed);
        Ok(StorageReport { items, bytes_freed, ..StorageReport::default() })
    }

    /// Drops every index without reading it.
    pub(crate) fn drop_indices(&mut self) -> Result<(), StorageError> {
        let Some(dataset) = &mut self.dataset else { return Ok(()) };
        self.shared.wait("dropped indices", CALL, async {
            let names: BTreeSet<String> =
                dataset.load_indices().await?.iter().map(|index| index.name.clone()).collect();
            for name in names {
                dataset.drop_index(&name).await?;
            }
            Ok(())
        })
    }
}
