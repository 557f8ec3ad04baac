//! Wire types to domain types and back. The wire is what clients rely on, the domain is ours to change: both meet here only.

use mneme_actors::{ActorError, UncertaintyReport};
use mneme_base::{Namespace, Provenance, TrustTier};
use mneme_engine_api::types::CONDITIONS_MAX;
use mneme_engine_api::{Constraint, EngineError, GenerateRequest, Generation, GenerationMode, Guidance, Segment};
use mneme_evolution::machine::LogRow;
use mneme_evolution::registry::{CardState, Entry, Source};
use mneme_ipc::types as wire;
use mneme_ipc::{ErrorBody, ErrorKind};
use mneme_memory::domain::RECALL_LIMIT_MAX;
use mneme_memory::{
    ForgetSelector, Hit, Memory, MemoryKind, MemoryState, NewMemory, RecallFilter, RecallQuery, Refusal, StoreError,
};

/// Who is calling, as it said in its greeting.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The client's name.
    pub client: String,
    /// Its session.
    pub session: Option<String>,
}

/// Hits that a recall gives when it does not say how many.
const RECALL_LIMIT_DEFAULT: u32 = 10;
/// Memories that guide a generation when it does not say how many.
const MEMORIES_DEFAULT: u32 = 5;
/// Tokens that are added to a prompt when it does not say how many.
const TOKENS_DEFAULT: u32 = 64;
/// Tokens of one hole at most.
const HOLE_TOKENS_MAX: u32 = 1_024;

/// A parameter out of its bounds.
pub fn invalid(message: impl Into<String>) -> ErrorBody {
    ErrorBody::new(ErrorKind::InvalidParams, message)
}

const fn kind_in(kind: wire::Kind) -> MemoryKind {
    match kind {
        wire::Kind::Note => MemoryKind::Note,
        wire::Kind::Message => MemoryKind::Message,
        wire::Kind::Fact => MemoryKind::Fact,
        wire::Kind::Preference => MemoryKind::Preference,
        wire::Kind::Chunk => MemoryKind::Chunk,
        wire::Kind::Event => MemoryKind::Event,
        wire::Kind::Procedure => MemoryKind::Procedure,
    }
}

const fn kind_out(kind: MemoryKind) -> wire::Kind {
    match kind {
        MemoryKind::Message => wire::Kind::Message,
        MemoryKind::Fact => wire::Kind::Fact,
        MemoryKind::Preference => wire::Kind::Preference,
        MemoryKind::Chunk => wire::Kind::Chunk,
        MemoryKind::Event => wire::Kind::Event,
        MemoryKind::Procedure => wire::Kind::Procedure,
        _ => wire::Kind::Note,
    }
}

/// What a client wants remembered, with its provenance.
pub fn new_memory(params: wire::RememberParams, caller: &Caller) -> NewMemory {
    let source = params.source.unwrap_or_else(|| format!("client:{}", caller.client));
    let provenance = Provenance {
        client: caller.client.clone(),
        session: caller.session.clone(),
        source,
        trust: params.trust.unwrap_or(TrustTier::Reported),
        location: None,
    };
    NewMemory {
        namespace: params.namespace,
        kind: kind_in(params.kind),
        text: params.text,
        speaker: params.speaker,
        thread: params.thread,
        position: params.position,
        metadata: params.metadata,
        provenance,
        valid_from: params.valid_from,
        valid_to: params.valid_to,
    }
}

/// A question.
pub fn recall_query(params: &wire::RecallParams) -> Result<RecallQuery, ErrorBody> {
    let limit = params.limit.unwrap_or(RECALL_LIMIT_DEFAULT);
    if limit == 0 || limit as usize > RECALL_LIMIT_MAX {
        return Err(invalid(format!("limit is {limit}, allowed are 1 to {RECALL_LIMIT_MAX}")));
    }
    if !(0.0..=1.0).contains(&params.diversity) {
        return Err(invalid(format!("diversity is {}, allowed are 0 to 1", params.diversity)));
    }
    let filter = &params.filter;
    let namespaces = if params.namespaces.is_empty() { vec![Namespace::default()] } else { params.namespaces.clone() };
    Ok(RecallQuery {
        namespaces,
        text: params.query.clone(),
        limit: limit as usize,
        filter: RecallFilter {
            kinds: filter.kinds.iter().map(|kind| kind_in(*kind)).collect(),
            sources: filter.sources.clone(),
            speakers: filter.speakers.clone(),
            threads: filter.threads.clone(),
            trust_min: filter.trust_min,
            valid_after: filter.valid_after,
            valid_before: filter.valid_before,
            include_quarantined: filter.include_quarantined,
            metadata: filter.metadata.clone(),
        },
        as_of: params.as_of,
        diversity: params.diversity,
        explain: params.explain,
        reference_time: params.reference_time,
    })
}

/// A memory as clients see it.
pub fn memory_view(memory: Memory) -> wire::MemoryView {
    let Provenance { client, session, source, trust, location } = memory.provenance;
    let lines = location.as_ref().map(|location| (location.line_first, location.line_last));
    wire::MemoryView {
        id: memory.id,
        namespace: memory.namespace,
        kind: kind_out(memory.kind),
        text: memory.text,
        speaker: memory.speaker,
        thread: memory.thread,
        position: memory.position,
        metadata: memory.metadata,
        origin: wire::Origin { client, session, source, trust, path: location.map(|location| location.path), lines },
        valid_from: memory.valid_from,
        valid_to: memory.valid_to,
        recorded_at: memory.recorded_at,
        supersedes: memory.supersedes,
        superseded_by: memory.superseded_by.map(|(id, _)| id),
        quarantined: memory.state == MemoryState::Quarantined,
        evidence: memory.evidence,
        lsn: memory.lsn,
    }
}

/// Characters of a text that a map carries: enough to know it again.
const MAP_TEXT_CHARACTERS: usize = 160;

/// A memory on the map as clients see it.
pub fn map_point(memory: Memory, [x, y]: [f32; 2]) -> wire::MapPoint {
    wire::MapPoint {
        id: memory.id,
        x,
        y,
        kind: kind_out(memory.kind),
        namespace: memory.namespace,
        source: memory.provenance.source,
        valid_from: memory.valid_from,
        text: memory.text.chars().take(MAP_TEXT_CHARACTERS).collect(),
        quarantined: memory.state == MemoryState::Quarantined,
    }
}

/// A hit as clients see it.
pub fn hit_view(hit: Hit) -> wire::HitView {
    let explanation = hit.explanation.unwrap_or_default();
    let signal = |signal: mneme_memory::Signal| wire::SignalView {
        name: signal.name,
        rank: signal.rank,
        score: signal.score,
        contribution: signal.contribution,
    };
    wire::HitView {
        memory: memory_view(hit.memory),
        score: hit.score.get(),
        signals: explanation.signals.into_iter().map(signal).collect(),
        matched_terms: explanation.matched_terms,
    }
}

/// What is to be forgotten.
pub fn selector(selector: wire::Selector) -> ForgetSelector {
    match selector {
        wire::Selector::Ids(ids) => ForgetSelector::Ids(ids),
        wire::Selector::Source(source) => ForgetSelector::Source(source),
        wire::Selector::Namespace(namespace) => ForgetSelector::Namespace(namespace),
        wire::Selector::Thread { namespace, thread } => ForgetSelector::Thread { namespace, thread },
    }
}

/// The daemon's settings for generations that do not say.
#[derive(Debug, Clone, Copy)]
pub struct GenerationDefaults {
    /// Diffusion steps a block.
    pub steps: u32,
    /// Tokens a block.
    pub block: u32,
    /// The longest text that may be asked for (tokens).
    pub tokens_max: u32,
}

/// A canvas and its settings; the question to the memory when it is to be guided.
pub fn generation(
    params: &wire::GenerateParams,
    defaults: GenerationDefaults,
) -> Result<(GenerateRequest, Option<RecallQuery>), ErrorBody> {
    let canvas = match (&params.prompt, params.canvas.is_empty()) {
        (Some(prompt), true) => canvas_of(prompt, params.tokens_max.unwrap_or(TOKENS_DEFAULT))?,
        (None, false) => params.canvas.iter().map(segment).collect(),
        (None, true) if params.instruction.is_some() => {
            vec![Segment::Hole { tokens_min: 1, tokens_max: params.tokens_max.unwrap_or(TOKENS_DEFAULT) }]
        }
        (None, true) => return Err(invalid("prompt, canvas or instruction is needed")),
        (Some(_), false) => return Err(invalid("prompt and canvas exclude each other")),
    };
    let holes: u64 = canvas.iter().map(|segment| u64::from(hole_tokens(segment))).sum();
    let most = u64::from(defaults.tokens_max.min(HOLE_TOKENS_MAX));
    if holes == 0 || holes > most {
        return Err(invalid(format!(
            "holes have {holes} tokens in all, allowed are 1 to {most} (generation.tokens_max)"
        )));
    }
    if !(0.0..=2.0).contains(&params.temperature) {
        return Err(invalid(format!("temperature is {}, allowed are 0 to 2", params.temperature)));
    }
    let constraint = params.constraint.as_ref().map(|constraint| match constraint {
        wire::ConstraintParam::Regex(pattern) => Constraint::Regex(pattern.clone()),
        wire::ConstraintParam::JsonSchema(schema) => Constraint::JsonSchema(schema.to_string()),
    });
    let request = GenerateRequest {
        canvas,
        instruction: params.instruction.clone(),
        conditions: Vec::new(),
        guidance: match params.guidance {
            wire::GuidanceParam::None => Guidance::None,
            wire::GuidanceParam::Prompt => Guidance::Prompt,
            wire::GuidanceParam::CrossAttention => Guidance::CrossAttention,
            wire::GuidanceParam::Both => Guidance::Both,
        },
        guidance_scale: 0.0,
        constraint,
        mode: match params.mode {
            wire::ModeParam::Ar => GenerationMode::Ar,
            wire::ModeParam::Diffusion => GenerationMode::Diffusion,
            wire::ModeParam::Auto => GenerationMode::Auto,
        },
        sampler: mneme_engine_api::Sampler::default(),
        steps: params.steps.unwrap_or(defaults.steps),
        block: params.block.unwrap_or(defaults.block),
        temperature: params.temperature,
        seed: params.seed,
        adapters: Vec::new(),
    };
    if let Some(memories) = params.memories_max.filter(|memories| *memories as usize > CONDITIONS_MAX) {
        return Err(invalid(format!("memories_max is {memories}, allowed are 0 to {CONDITIONS_MAX}")));
    }
    let query = params.namespace.clone().map(|namespace| {
        let limit = params.memories_max.unwrap_or(MEMORIES_DEFAULT) as usize;
        RecallQuery::new(namespace, params.memory_query.clone().unwrap_or_default(), limit)
    });
    Ok((request, query))
}

fn segment(segment: &wire::SegmentParam) -> Segment {
    match segment {
        wire::SegmentParam::Text(text) => Segment::Text(text.clone()),
        wire::SegmentParam::Hole { tokens_min, tokens_max } => {
            Segment::Hole { tokens_min: *tokens_min, tokens_max: *tokens_max }
        }
    }
}

const fn hole_tokens(segment: &Segment) -> u32 {
    match segment {
        Segment::Hole { tokens_max, .. } => *tokens_max,
        Segment::Text(_) => 0,
    }
}

/// Cuts a prompt at its `{{hole:N}}` marks; a prompt without any is continued.
fn canvas_of(prompt: &str, tokens: u32) -> Result<Vec<Segment>, ErrorBody> {
    let mut canvas = Vec::new();
    let mut rest = prompt;
    while let Some((before, after)) = rest.split_once("{{hole:") {
        let (number, behind) =
            after.split_once("}}").ok_or_else(|| invalid("prompt has a {{hole: mark without its }}"))?;
        let tokens_max = number
            .trim()
            .parse()
            .map_err(|_| invalid(format!("prompt has a hole of {number:?} tokens, not a number")))?;
        if !before.is_empty() {
            canvas.push(Segment::Text(before.to_owned()));
        }
        canvas.push(Segment::Hole { tokens_min: 1, tokens_max });
        rest = behind;
    }
    if !rest.is_empty() {
        canvas.push(Segment::Text(rest.to_owned()));
    }
    if !canvas.iter().any(|segment| matches!(segment, Segment::Hole { .. })) {
        canvas.push(Segment::Hole { tokens_min: 1, tokens_max: tokens });
    }
    Ok(canvas)
}

/// The mode as clients see it.
pub const fn mode_view(mode: GenerationMode) -> wire::ModeParam {
    match mode {
        GenerationMode::Ar => wire::ModeParam::Ar,
        GenerationMode::Diffusion => wire::ModeParam::Diffusion,
        GenerationMode::Auto => wire::ModeParam::Auto,
    }
}

/// The tokens as clients see them.
pub fn token_views(generation: &Generation) -> Vec<wire::TokenView> {
    let view = |token: &mneme_engine_api::TokenTrace| wire::TokenView {
        text: token.text.clone(),
        confidence: token.confidence,
        ambiguity: token.ambiguity,
        surprise: token.surprise,
    };
    generation.tokens.iter().map(view).collect()
}

/// The uncertainty as clients see it.
pub fn uncertainty_view(report: &UncertaintyReport) -> wire::UncertaintyView {
    wire::UncertaintyView {
        ambiguity: report.ambiguity,
        surprise: report.surprise,
        confidence: report.confidence,
        disagreement: report.disagreement,
        p_value: report.p_value,
        verdict: report.verdict.to_owned(),
    }
}

/// A decision as clients see it.
pub fn decision_view(row: LogRow) -> wire::DecisionView {
    wire::DecisionView {
        id: row.id.to_string(),
        at: row.time,
        from: row.from.to_string().to_lowercase(),
        to: row.to.to_string().to_lowercase(),
        adapter: row.adapter,
        reason: row.reason,
        numbers: row.numbers,
    }
}

/// An adapter as clients see it.
pub fn adapter_view(entry: &Entry) -> wire::AdapterView {
    let card = &entry.card;
    let mut scores = card.scores.numbers();
    scores.insert("scale".into(), card.scale);
    scores.insert("bytes".into(), card.bytes as f64);
    scores.insert("cpu_seconds".into(), card.cpu_seconds);
    wire::AdapterView {
        id: card.adapter,
        level: name_of(&card.level),
        state: match entry.state {
            CardState::Shadow => "shadow",
            CardState::Active => "active",
            CardState::Superseded => "superseded",
            CardState::RolledBack => "rolled_back",
            CardState::Retired => "retired",
        }
        .to_owned(),
        pinned: entry.pinned,
        created_at: card.made,
        memories: card.lineage.len() as u64,
        imported: entry.source != Source::Made,
        scores,
    }
}

fn name_of(value: &impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

/// An actor's error as clients see it. What is inside stays in the log.
pub fn error_body(error: &ActorError) -> ErrorBody {
    match error {
        ActorError::Busy { retry_after_ms, .. } => {
            ErrorBody::new(ErrorKind::Busy, error.to_string()).retry_after_ms(*retry_after_ms)
        }
        ActorError::DeadlineExceeded { .. } => ErrorBody::new(ErrorKind::DeadlineExceeded, error.to_string()),
        ActorError::Stopped { .. } => {
            ErrorBody::new(ErrorKind::Internal, error.to_string()).hint("the daemon's log says why; try again")
        }
        ActorError::Refused(refusal) => refusal_body(refusal),
        ActorError::Store(error) => store_body(error),
        ActorError::Engine(error) => engine_body(error),
        ActorError::Invalid { .. } => invalid(error.to_string()),
        ActorError::NotFound { .. } => ErrorBody::new(ErrorKind::NotFound, error.to_string()),
        _ => ErrorBody::new(ErrorKind::Internal, error.to_string()),
    }
}

/// A refusal as clients see it.
pub fn refusal_body(refusal: &Refusal) -> ErrorBody {
    let message = refusal.to_string();
    match refusal {
        Refusal::OpIdConflict { .. } => {
            ErrorBody::new(ErrorKind::Conflict, message).hint("draw a new op_id for a new change")
        }
        Refusal::NotFound { .. } => ErrorBody::new(ErrorKind::NotFound, message),
        Refusal::AlreadySuperseded { by, .. } => {
            ErrorBody::new(ErrorKind::Conflict, message).hint(format!("supersede {by} instead"))
        }
        Refusal::Invalid { .. } => invalid(message),
        Refusal::ReadOnly { .. } => {
            ErrorBody::new(ErrorKind::ReadOnly, message).hint("free space on the disk; nothing was lost")
        }
        Refusal::QuotaExceeded { retry_after_ms, .. } => {
            ErrorBody::new(ErrorKind::QuotaExceeded, message).retry_after_ms(*retry_after_ms)
        }
        _ => ErrorBody::new(ErrorKind::InvalidParams, message),
    }
}

fn store_body(error: &StoreError) -> ErrorBody {
    match error {
        StoreError::ReadOnly { .. } | StoreError::NoRoom { .. } => {
            ErrorBody::new(ErrorKind::ReadOnly, error.to_string()).hint("free space on the disk; nothing was lost")
        }
        StoreError::InvalidQuery { .. } => invalid(error.to_string()),
        StoreError::NotRewritten { .. } => ErrorBody::new(ErrorKind::StoreFailed, error.to_string())
            .hint("nothing is lost and the daemon goes on; its log says what failed"),
        _ => ErrorBody::new(ErrorKind::StoreFailed, error.to_string())
            .hint("nothing acknowledged is lost; the daemon restarts, and its log says what failed"),
    }
}

fn engine_body(error: &EngineError) -> ErrorBody {
    let message = error.to_string();
    match error {
        EngineError::Invalid { .. } => invalid(message),
        EngineError::Unsatisfiable { .. } => ErrorBody::new(ErrorKind::Unsatisfiable, message),
        EngineError::Cancelled => ErrorBody::new(ErrorKind::Cancelled, message),
        EngineError::DeadlineExceeded => ErrorBody::new(ErrorKind::DeadlineExceeded, message),
        EngineError::Unsupported { .. } => ErrorBody::new(ErrorKind::EngineUnavailable, message),
        _ => ErrorBody::new(ErrorKind::EngineUnavailable, message)
            .hint("'mneme doctor' checks the engine and its models")
            .retry_after_ms(1_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_cut_out_of_a_prompt() {
        let canvas = canvas_of("Dear {{hole:3}}, tea is at {{hole:2}}.", 9).unwrap();
        assert_eq!(
            canvas,
            [
                Segment::Text("Dear ".into()),
                Segment::Hole { tokens_min: 1, tokens_max: 3 },
                Segment::Text(", tea is at ".into()),
                Segment::Hole { tokens_min: 1, tokens_max: 2 },
                Segment::Text(".".into()),
            ]
        );
        assert!(canvas_of("a {{hole:x}}", 9).is_err());
        assert!(canvas_of("a {{hole:3", 9).is_err());
        assert_eq!(canvas_of("a", 9).unwrap().len(), 2);
    }

    #[test]
    fn numbers_out_of_bounds_are_refused_in_words() {
        let defaults = GenerationDefaults { steps: 8, block: 4, tokens_max: 512 };
        let mut params = wire::GenerateParams { prompt: Some("a".into()), ..Default::default() };
        params.tokens_max = Some(0);
        assert!(generation(&params, defaults).unwrap_err().message.contains("holes have 0 tokens"));
        params.tokens_max = Some(10);
        params.temperature = f32::INFINITY;
        assert!(generation(&params, defaults).is_err());
        let recall = wire::RecallParams { query: "x".into(), limit: Some(0), ..Default::default() };
        assert!(recall_query(&recall).unwrap_err().message.contains("limit is 0"));
    }
}
