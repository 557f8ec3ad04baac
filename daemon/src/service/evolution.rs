//! The evolution loop as clients see and steer it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use mneme_actors::SkillUpload;
use mneme_evolution::machine::Command;
use mneme_ipc::ErrorBody;
use mneme_ipc::types as wire;

use super::{Answer, Context, DECISIONS_MAX, Service, answer, no_adapter, told};
use crate::convert::{self, invalid};

/// Bytes of a skill in one answer, at most.
const SKILL_PART_BYTES: usize = 1 << 20;

impl Service {
    pub(super) async fn evolve_export(
        &self,
        params: wire::EvolveExportParams,
        context: &Context,
    ) -> Result<wire::EvolveExportResult, ErrorBody> {
        // A client that takes the limit of requests for the limit of answers is not surprised.
        let frame = self.config().server.frame_bytes_max.bytes() as usize;
        let bytes_max = SKILL_PART_BYTES.min(frame / 2);
        let wire::EvolveExportParams { adapter, offset } = params;
        let part = self.system.evolution.export_skill(adapter, offset, bytes_max, context.deadline).await;
        let part = part.map_err(|error| match error {
            mneme_actors::ActorError::NotFound { .. } => no_adapter(adapter),
            other => told(other),
        })?;
        let end = offset + part.data.len() as u64;
        let next = (end < part.total).then_some(end);
        Ok(wire::EvolveExportResult { data: BASE64.encode(&part.data), total: part.total, next })
    }

    pub(super) async fn evolve_import(
        &self,
        params: wire::EvolveImportParams,
        context: &Context,
    ) -> Result<wire::EvolveImportResult, ErrorBody> {
        let wire::EvolveImportParams { hash, total, offset, data } = params;
        let hash = hash.parse().map_err(|_| invalid("hash is not 64 hexadecimal digits"))?;
        let data = BASE64.decode(data).map_err(|error| invalid(format!("data is not base64: {error}")))?;
        let upload = SkillUpload { hash, total, offset, data };
        let receipt = self.system.evolution.import_skill(upload, context.deadline).await.map_err(told)?;
        let mut result =
            wire::EvolveImportResult { received: receipt.received, adapter: None, state: None, message: None };
        if let Some((adapter, stage, message)) = receipt.taken {
            result.adapter = Some(adapter);
            result.state = Some(stage.to_string().to_lowercase());
            result.message = Some(message);
        }
        Ok(result)
    }

    pub(super) async fn evolve(&self, command: Command, context: &Context) -> Answer {
        let (stage, message) = self.system.evolution.command(command, context.deadline).await.map_err(told)?;
        answer(wire::EvolveCommandResult { state: stage.to_string().to_lowercase(), message })
    }

    pub(super) async fn evolve_status(&self, context: &Context) -> Result<wire::EvolveStatusResult, ErrorBody> {
        use mneme_evolution::machine::Stage;
        let report = self.system.evolution.report(context.deadline).await.map_err(told)?;
        let entered = |stage: Stage| report.stations.get(&stage).copied().unwrap_or(0);
        let paused = match (report.status.paused, report.status.waiting) {
            (true, _) => Some(String::from("paused by the user")),
            (false, waiting) => waiting,
        };
        Ok(wire::EvolveStatusResult {
            state: report.status.stage.to_string().to_lowercase(),
            paused,
            observed: report.observed + report.texts,
            trained: entered(Stage::Propose),
            accepted: entered(Stage::Commit),
            rejected: entered(Stage::Reject),
            rolled_back: entered(Stage::Rollback),
            texts_waiting: report.status.texts,
            adapters: report.adapters.iter().map(convert::adapter_view).collect(),
            progress: report.progress,
        })
    }

    pub(super) async fn evolve_log(
        &self,
        params: wire::EvolveLogParams,
        context: &Context,
    ) -> Result<wire::EvolveLogResult, ErrorBody> {
        let limit = params.limit.unwrap_or(50);
        if limit == 0 || limit > DECISIONS_MAX {
            return Err(invalid(format!("limit is {limit}, allowed are 1 to {DECISIONS_MAX}")));
        }
        let before = params.before.map(|text| text.parse::<u64>()).transpose();
        let before = before.map_err(|_| invalid("before is not the id of a decision"))?;
        let rows = self.system.evolution.log(limit as usize, before, context.deadline).await.map_err(told)?;
        Ok(wire::EvolveLogResult { decisions: rows.into_iter().map(convert::decision_view).collect() })
    }

    pub(super) async fn evolve_show(
        &self,
        params: wire::EvolveAdapterParams,
        context: &Context,
    ) -> Result<wire::EvolveShowResult, ErrorBody> {
        let adapter = params.adapter;
        let report = self.system.evolution.report(context.deadline).await.map_err(told)?;
        let entry = report.adapters.iter().find(|entry| entry.card.adapter == adapter);
        let entry = entry.ok_or_else(|| no_adapter(adapter))?;
        let own = self.system.evolution.log_about(adapter, context.deadline).await.map_err(told)?;
        Ok(wire::EvolveShowResult {
            adapter: convert::adapter_view(entry),
            lineage: entry.card.lineage.iter().map(ToString::to_string).collect(),
            decisions: own.into_iter().map(convert::decision_view).collect(),
        })
    }

    pub(super) async fn evolve_diff(
        &self,
        params: wire::EvolveDiffParams,
        context: &Context,
    ) -> Result<wire::EvolveDiffResult, ErrorBody> {
        let report = self.system.evolution.report(context.deadline).await.map_err(told)?;
        let find = |adapter| {
            let found = report.adapters.iter().find(|entry| entry.card.adapter == adapter);
            found.ok_or_else(|| no_adapter(adapter))
        };
        let a = find(params.a)?;
        let b = params.b.map(find).transpose()?;
        let lineage = |entry: &mneme_evolution::registry::Entry| -> Vec<String> {
            entry.card.lineage.iter().map(ToString::to_string).collect()
        };
        let (of_a, of_b) = (lineage(a), b.map(lineage).unwrap_or_default());
        let without = |some: &[String], other: &[String]| -> Vec<String> {
            some.iter().filter(|id| !other.contains(id)).cloned().collect()
        };
        Ok(wire::EvolveDiffResult {
            a: convert::adapter_view(a).scores,
            b: b.map(|entry| convert::adapter_view(entry).scores).unwrap_or_default(),
            only_a: without(&of_a, &of_b),
            only_b: without(&of_b, &of_a),
        })
    }
}
