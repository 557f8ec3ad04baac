//! The operations: what each makes of the rows. Refusals are found before the first row is touched, so that a refused
//! operation changes nothing.

use mneme_base::{Lsn, MemoryId, OpId, Timestamp};

use crate::domain::{ForgetReceipt, ForgetSelector, Memory, MemoryState, NewMemory, RememberReceipt};
use crate::durable::keys;
use crate::durable::options::DurableOptions;
use crate::durable::record;
use crate::durable::transaction::Transaction;
use crate::gate::{self, Admitted, Usage};
use crate::index::duplicates::signature;
use crate::recall::RecallIndex;
use crate::state::Table;
use crate::store::{Document, Operation, OperationKind, OperationOutcome, OperationResult, Refusal, StoreError};

/// Rows of other parts of the daemon are written down to this part of the watermark. They tell what was done (a decision, a file that
/// was read, what became of a forget), so that refusing them would break what is allowed; and they are small.
const ROWS_WATERMARK_PART: u64 = 4;

/// The room on the disk as a batch finds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// `None` where it does not matter.
    pub(crate) free_bytes: Option<u64>,
    pub(crate) watermark_bytes: u64,
}

impl Room {
    /// Refuses what takes room while there is little. What gives room back is never refused: it is the way out.
    fn check(self, kind: &OperationKind) -> Result<(), Refusal> {
        let needed_bytes = match kind {
            OperationKind::Forget(_) => 0,
            OperationKind::Documents(documents) if documents.iter().all(|document| document.value.is_none()) => 0,
            OperationKind::Documents(_) => self.watermark_bytes / ROWS_WATERMARK_PART,
            OperationKind::Remember(_) | OperationKind::Supersede { .. } | OperationKind::Corroborate { .. } => {
                self.watermark_bytes
            }
        };
        match self.free_bytes {
            Some(free_bytes) if free_bytes < needed_bytes => {
                Err(Refusal::ReadOnly { free_bytes, watermark_bytes: self.watermark_bytes })
            }
            _ => Ok(()),
        }
    }
}

/// What operations are carried out with.
pub(crate) struct Context<'a> {
    pub(crate) options: &'a DurableOptions,
    /// The index as it was before the batch.
    pub(crate) index: &'a RecallIndex,
    pub(crate) room: Room,
    pub(crate) now: Timestamp,
}

/// A result, or a refusal as data; the outer error is a fault of the store.
type Outcome = Result<Result<OperationResult, Refusal>, StoreError>;

/// Unwraps a refusal into the outcome of the operation.
macro_rules! refuse {
    ($result:expr) => {
        match $result {
            Ok(value) => value,
            Err(refusal) => return Ok(Err(refusal)),
        }
    };
}

/// What the gate says to the new memory of an operation; `None` where there is none. Pure, so that it can run beside others.
pub(crate) fn admitted(operation: &Operation) -> Option<Result<Admitted, Refusal>> {
    match &operation.kind {
        OperationKind::Remember(memory) | OperationKind::Supersede { by: memory, .. } => Some(gate::admit(memory)),
        _ => None,
    }
}

/// Carries out one operation, once.
pub(crate) fn operate(
    transaction: &mut Transaction<'_>,
    context: &Context<'_>,
    operation: &Operation,
    admitted: Option<Result<Admitted, Refusal>>,
) -> Result<OperationOutcome, StoreError> {
    let op_id = operation.op_id;
    let content_hash = operation.kind.content_hash();
    if let Some((stored_hash, result)) = transaction.ledger(op_id)? {
        if stored_hash != content_hash {
            return Ok(OperationOutcome { result: Err(Refusal::OpIdConflict { op_id }), replayed: false });
        }
        let result = with_purge_time(transaction, result)?;
        return Ok(OperationOutcome { result: Ok(result), replayed: true });
    }
    if let Err(refusal) = context.room.check(&operation.kind) {
        return Ok(OperationOutcome { result: Err(refusal), replayed: false });
    }
    let result = match (&operation.kind, admitted) {
        (OperationKind::Remember(_), Some(admitted)) => remember(transaction, context, op_id, admitted)?,
        (OperationKind::Supersede { id, .. }, Some(admitted)) => supersede(transaction, context, op_id, *id, admitted)?,
        (OperationKind::Forget(selector), _) => forget(transaction, context, selector)?,
        (OperationKind::Corroborate { id }, _) => corroborate(transaction, *id)?,
        (OperationKind::Documents(documents), _) => put_documents(transaction, documents)?,
        (OperationKind::Remember(_) | OperationKind::Supersede { .. }, None) => {
            unreachable!("operations with a new memory have been through the gate")
        }
    };
    if let Ok(result) = &result {
        transaction.record(op_id, content_hash, result);
    }
    Ok(OperationOutcome { result, replayed: false })
}

/// A replayed forget says whether its bytes have gone meanwhile.
fn with_purge_time(transaction: &Transaction<'_>, result: OperationResult) -> Result<OperationResult, StoreError> {
    let OperationResult::Forgotten(mut receipt) = result else { return Ok(result) };
    // Where nothing was forgotten, nothing is outstanding.
    receipt.purged_at =
        if receipt.ids.is_empty() { Some(receipt.hidden_at) } else { transaction.purged_at(receipt.lsn)? };
    Ok(OperationResult::Forgotten(receipt))
}

/// Counts a write against the quota of its source.
fn charge(
    transaction: &mut Transaction<'_>,
    context: &Context<'_>,
    memory: &NewMemory,
) -> Result<Result<(), Refusal>, StoreError> {
    let source = &memory.provenance.source;
    let quota = context.options.quotas.of(memory.provenance.trust);
    if quota.is_none() {
        return Ok(Ok(()));
    }
    let key = keys::usage(source);
    let mut usage = match transaction.get(Table::Usage, &key)? {
        Some(bytes) => transaction.decoded(record::decode_usage(&bytes))?,
        None => Usage::default(),
    };
    refuse!(usage.admit(source, quota, context.now));
    transaction.batch.put(Table::Usage, key, record::encode_usage(&usage));
    Ok(Ok(()))
}

fn remember(
    transaction: &mut Transaction<'_>,
    context: &Context<'_>,
    op_id: OpId,
    admitted: Result<Admitted, Refusal>,
) -> Outcome {
    let admitted = refuse!(admitted);
    refuse!(charge(transaction, context, &admitted.memory)?);
    let lsn = transaction.next_lsn();
    let receipt = match transaction.with_content(&admitted.content_hash)? {
        Some(known) => corroborated_by(transaction, &known, &admitted, lsn)?,
        None => insert(transaction, context, op_id, admitted, None, lsn),
    };
    Ok(Ok(OperationResult::Remembered(receipt)))
}

/// The same content again: evidence, and out of quarantine when somebody trusted says the same.
fn corroborated_by(
    transaction: &mut Transaction<'_>,
    known: &Memory,
    again: &Admitted,
    lsn: Lsn,
) -> Result<RememberReceipt, StoreError> {
    let mut after = known.clone();
    after.evidence = after.evidence.saturating_add(1);
    after.lsn = lsn;
    if known.state == MemoryState::Quarantined && again.state == MemoryState::Active {
        after.state = MemoryState::Active;
    }
    let receipt = RememberReceipt {
        id: known.id,
        lsn,
        duplicate: true,
        quarantined: after.state == MemoryState::Quarantined,
        redactions: again.redactions,
        near_duplicate_of: None,
    };
    transaction.update(known, after)?;
    Ok(receipt)
}

fn insert(
    transaction: &mut Transaction<'_>,
    context: &Context<'_>,
    op_id: OpId,
    admitted: Admitted,
    supersedes: Option<MemoryId>,
    lsn: Lsn,
) -> RememberReceipt {
    let Admitted { memory, redactions, content_hash, state } = admitted;
    let signature = signature(&memory.text);
    // One that this batch has forgotten, or that is being replaced, is no news.
    let news = |id: MemoryId| !matches!(transaction.touched.get(&id), Some(None)) && Some(id) != supersedes;
    let near_duplicate_of = transaction
        .fresh
        .find(&memory.namespace, signature, news)
        .or_else(|| context.index.near_duplicate(signature, &memory.namespace).filter(|id| news(*id)));
    let id = gate::memory_id(context.now, op_id, lsn.0);
    let valid_from = gate::valid_from(&memory, context.now);
    transaction.fresh.push(&memory.namespace, signature, id);
    transaction.insert(Memory {
        id,
        namespace: memory.namespace,
        kind: memory.kind,
        text: memory.text,
        speaker: memory.speaker,
        thread: memory.thread,
        position: memory.position,
        metadata: memory.metadata,
        provenance: memory.provenance,
        valid_from,
        valid_to: memory.valid_to,
        recorded_at: context.now,
        supersedes,
        superseded_by: None,
        state,
        content_hash,
        evidence: 0,
        redactions,
        lsn,
    });
    let quarantined = state == MemoryState::Quarantined;
    RememberReceipt { id, lsn, duplicate: false, quarantined, redactions, near_duplicate_of }
}

fn supersede(
    transaction: &mut Transaction<'_>,
    context: &Context<'_>,
    op_id: OpId,
    old_id: MemoryId,
    admitted: Result<Admitted, Refusal>,
) -> Outcome {
    let admitted = refuse!(admitted);
    let Some(old) = transaction.memory(old_id)? else { return Ok(Err(Refusal::NotFound { id: old_id })) };
    if let Some((by, _)) = old.superseded_by {
        return Ok(Err(Refusal::AlreadySuperseded { id: old_id, by }));
    }
    refuse!(gate::may_supersede(admitted.memory.provenance.trust, old.provenance.trust));
    let known = transaction.with_content(&admitted.content_hash)?;
    refuse!(charge(transaction, context, &admitted.memory)?);
    let lsn = transaction.next_lsn();
    let receipt = match known {
        // It says what the old one says: evidence, nothing is replaced.
        Some(known) if known.id == old_id => {
            let receipt = corroborated_by(transaction, &known, &admitted, lsn)?;
            return Ok(Ok(OperationResult::Superseded(receipt)));
        }
        Some(mut known) => {
            let receipt = corroborated_by(transaction, &known, &admitted, lsn)?;
            if known.supersedes.is_none() {
                known = transaction.memory(known.id)?.unwrap_or(known);
                let linked = Memory { supersedes: Some(old_id), ..known.clone() };
                transaction.update(&known, linked)?;
            }
            receipt
        }
        None => insert(transaction, context, op_id, admitted, Some(old_id), lsn),
    };
    let replaced =
        Memory { superseded_by: Some((receipt.id, context.now)), state: MemoryState::Superseded, lsn, ..old.clone() };
    transaction.update(&old, replaced)?;
    Ok(Ok(OperationResult::Superseded(receipt)))
}

fn forget(transaction: &mut Transaction<'_>, context: &Context<'_>, selector: &ForgetSelector) -> Outcome {
    let candidates = match selector {
        ForgetSelector::Ids(ids) => {
            refuse!(gate::check_forget_ids(ids.len()));
            let mut ids = ids.clone();
            ids.sort_unstable();
            ids.dedup();
            ids
        }
        ForgetSelector::Source(source) => transaction.ids(&keys::source(source))?,
        ForgetSelector::Namespace(namespace) => transaction.ids(&keys::namespace(namespace))?,
        ForgetSelector::Thread { namespace, thread } => transaction.ids(&keys::thread(namespace, thread))?,
    };
    let lsn = transaction.next_lsn();
    let revoked = matches!(selector, ForgetSelector::Source(_));
    let mut ids = Vec::new();
    for id in candidates {
        let Some(memory) = transaction.memory(id)? else { continue };
        transaction.remove(&memory)?;
        mend_chain(transaction, &memory, revoked, lsn)?;
        ids.push(id);
    }
    let purged_at = ids.is_empty().then_some(context.now);
    Ok(Ok(OperationResult::Forgotten(ForgetReceipt { ids, lsn, hidden_at: context.now, purged_at })))
}

/// Closes the gap that a forgotten memory leaves in its chain. What it replaced is then replaced by what replaced it; at the
/// end of a chain it stays replaced, except when the source is revoked: then what the revoked memory had displaced holds again.
fn mend_chain(transaction: &mut Transaction<'_>, gone: &Memory, revoked: bool, lsn: Lsn) -> Result<(), StoreError> {
    let before = match gone.supersedes {
        Some(id) => transaction.memory(id)?.filter(|memory| memory.superseded_by.is_some_and(|(by, _)| by == gone.id)),
        None => None,
    };
    let after = match gone.superseded_by {
        Some((id, _)) => transaction.memory(id)?,
        None => None,
    };
    if let (Some(before), Some(after)) = (&before, &after) {
        let at = before.superseded_by.map_or(after.recorded_at, |(_, at)| at);
        let linked = Memory { superseded_by: Some((after.id, at)), lsn, ..before.clone() };
        transaction.update(before, linked)?;
        if after.supersedes == Some(gone.id) {
            let linked = Memory { supersedes: Some(before.id), lsn, ..after.clone() };
            transaction.update(after, linked)?;
        }
    } else if let Some(before) = before
        && revoked
        && gone.superseded_by.is_none()
        && transaction.with_content(&before.content_hash)?.is_none()
    {
        let state = gate::initial_state(before.provenance.trust);
        let restored = Memory { superseded_by: None, state, lsn, ..before.clone() };
        transaction.update(&before, restored)?;
    }
    Ok(())
}

fn corroborate(transaction: &mut Transaction<'_>, id: MemoryId) -> Outcome {
    let Some(memory) = transaction.memory(id)? else { return Ok(Err(Refusal::NotFound { id })) };
    if let Some((by, _)) = memory.superseded_by {
        return Ok(Err(Refusal::AlreadySuperseded { id, by }));
    }
    let lsn = transaction.next_lsn();
    if memory.state == MemoryState::Quarantined {
        let confirmed = Memory { state: MemoryState::Active, lsn, ..memory.clone() };
        transaction.update(&memory, confirmed)?;
    }
    Ok(Ok(OperationResult::Corroborated { id, lsn }))
}

fn put_documents(transaction: &mut Transaction<'_>, documents: &[Document]) -> Outcome {
    refuse!(gate::check_documents(documents));
    let lsn = transaction.next_lsn();
    for document in documents {
        let key = keys::document(&document.collection, &document.key);
        match &document.value {
            Some(value) => transaction.batch.put(Table::Document, key, value.clone()),
            None => transaction.batch.delete(Table::Document, key),
        }
    }
    Ok(Ok(OperationResult::Documents { lsn }))
}
