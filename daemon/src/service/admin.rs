//! Watched folders, upkeep, and how the daemon is.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use mneme_ipc::types as wire;
use mneme_ipc::{ErrorBody, ErrorKind};
use mneme_memory::{MaintenanceTask, StoreHealth};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::{Context, Service, absolute, folder_view, folders, health_words, told};
use crate::metrics::{Gauge, resident_bytes};

impl Service {
    pub(super) async fn watch_add(
        &self,
        params: wire::WatchAddParams,
        context: &Context,
    ) -> Result<wire::WatchView, ErrorBody> {
        let folder = absolute(&params.folder)?;
        let added = self.system.watcher.add(folder, params.namespace, context.deadline).await.map_err(told)?;
        Ok(folder_view(added))
    }

    pub(super) async fn watch_remove(
        &self,
        params: wire::WatchRemoveParams,
        context: &Context,
    ) -> Result<wire::WatchListResult, ErrorBody> {
        let folder = absolute(&params.folder)?;
        let left = self.system.watcher.remove(folder, params.forget, context.deadline).await.map_err(told)?;
        Ok(folders(left))
    }

    pub(super) async fn backup(&self, folder: String, deadline: Instant) -> Result<wire::UpkeepResult, ErrorBody> {
        let folder = absolute(&folder)?;
        let report = self.system.memory.backup(folder, deadline).await.map_err(told)?;
        Ok(wire::UpkeepResult { items: BTreeMap::from([("backup".into(), report.items)]), bytes_freed: 0 })
    }

    pub(super) async fn compact(&self, deadline: Instant) -> Result<wire::UpkeepResult, ErrorBody> {
        let mut result = wire::UpkeepResult { items: BTreeMap::new(), bytes_freed: 0 };
        let steps = [
            ("follow", MaintenanceTask::Follow),
            ("purge", MaintenanceTask::Purge),
            ("compact", MaintenanceTask::Compact),
            ("index", MaintenanceTask::Index),
            ("cleanup", MaintenanceTask::Cleanup),
        ];
        // Each stands alone: a copy that cannot be reached fails some of them, and the store's own files wait for none.
        let mut failed = None;
        for (name, step) in steps {
            match self.system.memory.maintain(step, deadline).await {
                Ok(report) => {
                    result.items.insert(name.to_owned(), report.items);
                    result.bytes_freed += report.bytes_freed;
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(result), |error| Err(told(error)))
    }

    /// What the engine is called, or that it was not needed yet.
    pub(super) fn engine_words(&self) -> (String, u64) {
        let restarts = self.process.as_ref().map_or(0, |process| process.restarts());
        let info = self.engine.info();
        let name = match (&self.process, info.model.is_empty()) {
            (Some(process), false) if process.pid().is_none() => format!("{} (stopped)", info.name),
            (_, false) => format!("{} ({})", info.name, info.model),
            (_, true) => info.name,
        };
        (name, restarts)
    }

    pub(super) fn status(&self) -> wire::StatusResult {
        let stats = self.system.memory.stats();
        let (engine, engine_restarts) = self.engine_words();
        let actor = |status: mneme_actors::ActorStatus| wire::ActorView {
            name: status.name.to_owned(),
            state: if status.running { "running" } else { "restarting" }.to_owned(),
            restarts: status.restarts,
            in_flight: status.in_flight as u64,
            capacity: status.capacity as u64,
        };
        wire::StatusResult {
            server: format!("mnemed {}", env!("CARGO_PKG_VERSION")),
            boot: self.boot,
            pid: std::process::id(),
            started_at: self.started_at,
            health: if self.draining.load(Ordering::Acquire) {
                String::from("shutting down")
            } else {
                health_words(&stats.health)
            },
            rss_bytes: resident_bytes(),
            connections: self.metrics.connections.load(Ordering::Relaxed),
            requests: self.metrics.requests(),
            errors: self.metrics.errors(),
            lsn: stats.lsn,
            memories: stats.memories,
            engine,
            engine_restarts,
            actors: self.system.statuses().into_iter().map(actor).collect(),
            state_dir: self.config().paths.state_dir.display().to_string(),
        }
    }

    /// Has the configuration read again and tells what came of it.
    pub(super) async fn reload(&self, deadline: Instant) -> Result<wire::ReloadResult, ErrorBody> {
        let (reply, outcome) = oneshot::channel();
        self.reload.try_send(reply).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                ErrorBody::new(ErrorKind::Busy, "the configuration is being read again already").retry_after_ms(100)
            }
            mpsc::error::TrySendError::Closed(_) => no_files(),
        })?;
        match tokio::time::timeout_at(deadline, outcome).await {
            Ok(outcome) => outcome.unwrap_or_else(|_| Err(no_files())),
            Err(_) => Err(ErrorBody::new(ErrorKind::DeadlineExceeded, "the configuration was not read in time")),
        }
    }

    /// Counters and gauges in Prometheus' text form.
    pub(crate) fn prometheus(&self) -> String {
        self.metrics.prometheus(&self.gauges())
    }

    /// Counts and sizes as they are now.
    pub(crate) fn gauges(&self) -> [Gauge; 9] {
        let stats = self.system.memory.stats();
        let (_, restarts) = self.engine_words();
        let healthy = f64::from(u8::from(stats.health == StoreHealth::Healthy));
        [
            ("mneme_resident_bytes", "Resident memory of the daemon.", resident_bytes() as f64),
            ("mneme_memories", "Memories that recall can return.", stats.memories as f64),
            ("mneme_embeddings_pending", "Memories without a current vector.", stats.embeddings_pending as f64),
            ("mneme_purge_pending", "Forgotten memories whose bytes are on disk.", stats.purge_pending as f64),
            ("mneme_lsn", "The last change.", stats.lsn.0 as f64),
            ("mneme_disk_bytes", "Bytes of the store on disk.", stats.disk_bytes as f64),
            ("mneme_index_bytes", "Bytes of the in-memory indices.", stats.index_bytes as f64),
            ("mneme_store_healthy", "1 while the store is healthy.", healthy),
            ("mneme_engine_restarts", "Restarts of the engine.", restarts as f64),
        ]
    }
}

fn no_files() -> ErrorBody {
    ErrorBody::new(ErrorKind::Internal, "this daemon does not watch its configuration").hint("restart it")
}
