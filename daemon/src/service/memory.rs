//! Methods of the memory: remember, recall, forget, and moving memories in and out.

use std::time::Duration;

use mneme_actors::RecallAsk;
use mneme_base::{Lsn, OpId};
use mneme_ipc::types as wire;
use mneme_ipc::{ErrorBody, ErrorKind};
use mneme_memory::map::MAP_POINTS_MAX;
use mneme_memory::{
    MaintenanceTask, Memory, Operation, OperationKind, OperationOutcome, OperationResult, Refusal, Scan,
};
use tokio::time::Instant;

use super::{
    Chain, Context, EXPORT_PAGE_DEFAULT, EXPORT_PAGE_MAX, IMPORT_BATCH_MAX, Service, health_words, remembered, told,
    unexpected,
};
use crate::convert::{self, invalid};

/// Memories that one forget names.
const FORGET_IDS_MAX: usize = 1_000;
/// A page of an export ends with the memory that brings it to this size (bytes of texts and notes).
const EXPORT_PAGE_BYTES: usize = 2 << 20;
/// Memories of an export that are read together: at most some ten megabytes.
const EXPORT_STEP: usize = 32;

fn bytes_of(memory: &Memory) -> usize {
    memory.text.len() + memory.metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
}

/// What follows a forget is waited for until so long before the caller's deadline, or a quarter of the time that is left if that
/// is less: the caller is to hear that what it named is forgotten.
const FORGET_MARGIN: Duration = Duration::from_secs(1);

/// Until when the retiring of adapters and the purge are waited for.
fn wait_until(now: Instant, deadline: Instant) -> Instant {
    deadline - FORGET_MARGIN.min(deadline.saturating_duration_since(now) / 4)
}

/// Points of a map that does not say how many.
const MAP_POINTS_DEFAULT: u32 = 1_000;

impl Service {
    /// Every acknowledged change is visible at once, so a change that is not is one of another store.
    pub(super) fn check_lsn(&self, wanted: Option<Lsn>) -> Result<(), ErrorBody> {
        let Some(wanted) = wanted else {
            return Ok(());
        };
        let last = self.system.memory.lsn();
        if wanted <= last {
            return Ok(());
        }
        let message = format!("min_lsn is {wanted}, the last change here is {last}");
        Err(ErrorBody::new(ErrorKind::Conflict, message).hint("the store was replaced or restored from a backup"))
    }

    pub(super) async fn apply(&self, kind: OperationKind, context: &Context) -> Result<OperationOutcome, ErrorBody> {
        let op_id = context.op_id.unwrap_or_else(OpId::generate);
        self.system.memory.apply(Operation { op_id, kind }, context.deadline).await.map_err(told)
    }

    pub(super) async fn remember(
        &self,
        params: wire::RememberParams,
        context: &Context,
    ) -> Result<wire::RememberResult, ErrorBody> {
        let memory = convert::new_memory(params, &context.caller);
        let outcome = self.apply(OperationKind::Remember(memory), context).await?;
        remembered(outcome)
    }

    pub(super) async fn supersede(
        &self,
        params: wire::SupersedeParams,
        context: &Context,
    ) -> Result<wire::RememberResult, ErrorBody> {
        let by = convert::new_memory(params.by, &context.caller);
        let outcome = self.apply(OperationKind::Supersede { id: params.id, by }, context).await?;
        remembered(outcome)
    }

    pub(super) async fn recall(
        &self,
        params: wire::RecallParams,
        context: &Context,
    ) -> Result<wire::RecallResult, ErrorBody> {
        let started = Instant::now();
        let ask = RecallAsk { rerank: params.rerank, ..RecallAsk::new(convert::recall_query(&params)?) };
        let recall = self.system.memory.recall(ask, context.deadline).await.map_err(told)?;
        Ok(wire::RecallResult {
            hits: recall.hits.into_iter().map(convert::hit_view).collect(),
            degraded: recall.degraded,
            abstain: recall.abstain,
            confidence: recall.confidence,
            lsn: recall.lsn,
            took_us: started.elapsed().as_micros() as u64,
        })
    }

    pub(super) async fn get(&self, params: wire::GetParams, context: &Context) -> Result<wire::MemoryView, ErrorBody> {
        let memory = self.system.memory.get(params.id, context.deadline).await.map_err(told)?;
        memory.map(convert::memory_view).ok_or_else(|| convert::refusal_body(&Refusal::NotFound { id: params.id }))
    }

    pub(super) async fn forget(
        &self,
        params: wire::ForgetParams,
        context: &Context,
    ) -> Result<wire::ForgetResult, ErrorBody> {
        if let wire::Selector::Ids(ids) = &params.select {
            let count = ids.len();
            if count == 0 {
                return Err(invalid("select names no memory"));
            }
            if count > FORGET_IDS_MAX {
                return Err(invalid(format!("select names {count} memories, allowed are 1 to {FORGET_IDS_MAX}")));
            }
        }
        let outcome = self.apply(OperationKind::Forget(convert::selector(params.select)), context).await?;
        let replayed = outcome.replayed;
        let OperationResult::Forgotten(receipt) = outcome.result.map_err(|refusal| convert::refusal_body(&refusal))?
        else {
            return Err(unexpected());
        };
        // Forgotten it is: what follows must not make a failure of that.
        let until = wait_until(Instant::now(), context.deadline);
        // Adapters first: a purge that is told of covers what was made from the memories too.
        let retired = self.system.evolution.forgotten(receipt.ids.clone(), until).await;
        let adapters_retired = match &retired {
            Ok(adapters) => adapters.iter().map(ToString::to_string).collect(),
            Err(error) => {
                tracing::warn!(%error, "adapters of forgotten memories are retired a moment later");
                Vec::new()
            }
        };
        let mut purged_at = receipt.purged_at;
        if params.purge_now && purged_at.is_none() {
            match (self.system.memory.maintain(MaintenanceTask::Purge, until).await, &retired) {
                (Ok(_), Ok(_)) => purged_at = Some(self.clock.now()),
                // An adapter may still hold what it learned: that is not purged.
                (Ok(_), Err(_)) => {}
                // What was asked for is forgotten, whatever the purge met: it is outstanding, and tried again on time.
                (Err(error), _) => tracing::warn!(error = %Chain(&error), "purge is put off"),
            }
        }
        Ok(wire::ForgetResult {
            ids: receipt.ids,
            lsn: receipt.lsn,
            hidden_at: receipt.hidden_at,
            purged_at,
            adapters_retired,
            replayed,
        })
    }

    pub(super) async fn corroborate(
        &self,
        params: wire::CorroborateParams,
        context: &Context,
    ) -> Result<wire::CorroborateResult, ErrorBody> {
        let outcome = self.apply(OperationKind::Corroborate { id: params.id }, context).await?;
        match outcome.result.map_err(|refusal| convert::refusal_body(&refusal))? {
            OperationResult::Corroborated { id, lsn } => Ok(wire::CorroborateResult { id, lsn }),
            _ => Err(unexpected()),
        }
    }

    pub(super) async fn export(
        &self,
        params: wire::ExportParams,
        context: &Context,
    ) -> Result<wire::ExportResult, ErrorBody> {
        let limit = params.limit.unwrap_or(EXPORT_PAGE_DEFAULT);
        if limit == 0 || limit > EXPORT_PAGE_MAX {
            return Err(invalid(format!("limit is {limit}, allowed are 1 to {EXPORT_PAGE_MAX}")));
        }
        let limit = limit as usize;
        let mut scan = Scan { namespace: params.namespace, after: params.after, limit: 0 };
        let mut memories = Vec::new();
        let mut bytes = 0;
        let mut is_last = false;
        // A memory can be hundreds of kilobytes: the page is full by number or by size.
        while !is_last && memories.len() < limit && bytes < EXPORT_PAGE_BYTES {
            scan.limit = EXPORT_STEP.min(limit - memories.len());
            let step = self.system.memory.scan(scan.clone(), context.deadline).await.map_err(told)?;
            is_last = step.len() < scan.limit;
            scan.after = step.last().map_or(scan.after, |memory| Some(memory.id));
            bytes += step.iter().map(bytes_of).sum::<usize>();
            memories.extend(step);
        }
        let next = if is_last { None } else { memories.last().map(|memory| memory.id) };
        Ok(wire::ExportResult { memories: memories.into_iter().map(convert::memory_view).collect(), next })
    }

    pub(super) async fn import(
        &self,
        params: wire::ImportParams,
        context: &Context,
    ) -> Result<wire::ImportResult, ErrorBody> {
        let count = params.memories.len();
        if count == 0 || count > IMPORT_BATCH_MAX {
            return Err(invalid(format!("memories has {count} entries, allowed are 1 to {IMPORT_BATCH_MAX}")));
        }
        let base = context.op_id.unwrap_or_else(OpId::generate);
        let operation = |(place, params): (usize, wire::RememberParams)| Operation {
            // The place in the request makes each entry's id, so that a request sent again finds each entry done.
            op_id: OpId::new(u128::from_be_bytes(base.to_bytes()).wrapping_add(place as u128 + 1)),
            kind: OperationKind::Remember(convert::new_memory(params, &context.caller)),
        };
        let operations = params.memories.into_iter().enumerate().map(operation).collect();
        let outcomes = self.system.memory.apply_all(operations, context.deadline).await.map_err(told)?;
        let mut result = wire::ImportResult { imported: 0, duplicates: 0, refused: Vec::new(), lsn: Lsn::ZERO };
        for (place, outcome) in outcomes.into_iter().enumerate() {
            match outcome.result {
                Ok(OperationResult::Remembered(receipt)) => {
                    result.imported += u64::from(!receipt.duplicate);
                    result.duplicates += u64::from(receipt.duplicate);
                    result.lsn = result.lsn.max(receipt.lsn);
                }
                Ok(_) => return Err(unexpected()),
                // No fault of the entry: the request is to be sent again when there is room.
                Err(refusal @ Refusal::ReadOnly { .. }) => return Err(convert::refusal_body(&refusal)),
                Err(refusal) => result.refused.push((place as u64, refusal.to_string())),
            }
        }
        Ok(result)
    }

    pub(super) async fn map(&self, params: wire::MapParams, context: &Context) -> Result<wire::MapResult, ErrorBody> {
        let limit = params.limit.unwrap_or(MAP_POINTS_DEFAULT);
        if limit == 0 || limit as usize > MAP_POINTS_MAX {
            return Err(invalid(format!("limit is {limit}, allowed are 1 to {MAP_POINTS_MAX}")));
        }
        let map = self.system.memory.map(params.namespace, limit as usize, context.deadline).await.map_err(told)?;
        let [x, y] = map.explained;
        Ok(wire::MapResult {
            points: map.points.into_iter().map(|(memory, place)| convert::map_point(memory, place)).collect(),
            explained: (x, y),
            memories: map.memories,
            without_vector: map.without_vector,
        })
    }

    pub(super) fn stats(&self) -> wire::StatsResult {
        let stats = self.system.memory.stats();
        wire::StatsResult {
            health: health_words(&stats.health),
            engine: stats.engine,
            memories: stats.memories,
            quarantined: stats.quarantined,
            superseded: stats.superseded,
            purge_pending: stats.purge_pending,
            embeddings_pending: stats.embeddings_pending,
            namespaces: stats.namespaces,
            lsn: stats.lsn,
            disk_bytes: stats.disk_bytes,
            index_bytes: stats.index_bytes,
        }
    }
}
