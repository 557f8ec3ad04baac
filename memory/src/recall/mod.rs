//! Ranked recall: everything between a question and an ordered list of ids with reasons.
//!
//! [`RecallIndex`] is what a store keeps beside its records. It holds no texts; where texts are needed (phrases in quotes, the words
//! that matched) it names the memories, so that the store can read them without holding the index. Reading order: [`query`], [`time`], [`features`], [`weights`],
//! [`fusion`], [`rank`], [`confidence`], [`context`], [`rerank`], [`RecallIndex`].

pub mod confidence;
pub mod context;
pub mod features;
pub mod fusion;
pub mod query;
pub mod rank;
pub mod rerank;
pub mod time;
pub mod weights;

use std::sync::Arc;

use mneme_base::{Embedding, MemoryId, Timestamp};

pub use context::context_texts;
pub(crate) use rank::matched;
pub use rank::{Method, PHRASE_ROWS_MAX, PhraseCandidates, RankingOptions, WithPhrases};
pub use rerank::{RerankFusion, RerankScores, fuse_reranked, rerank_contexts, rerank_hits};

use crate::domain::{HitExplanation, Memory, RecallQuery};
use crate::index::bitmap::Bitmap;
use crate::index::columns::{Columns, NONE};
use crate::index::duplicates::{Duplicates, signature};
pub use crate::index::halves::HalfVectors;
use crate::index::sections::{Damage, SectionReader};
use crate::index::stored::{self, Frame};
use crate::index::text::{ROWS_MAX, RowTerms, TextIndex, metadata_term};
use crate::index::tokens::Tokenizer;
use crate::index::vectors::{Scored, VectorQuery, VectorView};
use crate::store::StoreError;

/// How many memories before and after a memory are its context.
pub const NEIGHBOUR_REACH: usize = 2;
/// Compaction is worth its time when more than this share of its rows is dead, and at least [`DEAD_ROWS_MIN`].
const DEAD_SHARE_MAX: f64 = 0.25;
/// Fewer dead rows than this are not worth it.
const DEAD_ROWS_MIN: usize = 4_096;
/// Fewer dead rows than this can wait for the next step of upkeep: some ten megabytes.
const OVERGROWN_ROWS_MIN: usize = 4 * DEAD_ROWS_MIN;

/// Exact vectors that lie outside of the index, by which the best of a scan are ranked again.
pub trait ExactVectors: Send + Sync + std::fmt::Debug {
    /// The scalar product of each memory's vector of a view (0: its own text, 1: with context) and a query; `None` where there is none
    /// of the query's dimensions or where it cannot be read.
    fn dots(&self, ids: &[MemoryId], view: usize, query: &[f32]) -> Vec<Option<f32>>;
}

/// What an index needs of a memory's text. Making it needs no index, so that it can be made beside other work.
#[derive(Debug)]
pub(crate) struct RowParts {
    terms: RowTerms,
    signature: u64,
}

impl RowParts {
    pub(crate) fn new(tokenizer: &Tokenizer, memory: &Memory) -> Self {
        let metadata = memory.metadata.iter().map(|(key, value)| metadata_term(key, value));
        Self { terms: RowTerms::new(tokenizer, &memory.text, metadata), signature: signature(&memory.text) }
    }
}

/// One of the two kinds of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum View {
    /// Of the text alone.
    Own = 0,
    /// Of the text with its context.
    Context = 1,
}

/// What an index is built with.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexOptions {
    /// Where half-precision copies of the vectors lie, which make the order exact. In memory they take twice what the codes
    /// take; in a file they take none.
    pub half_vectors: HalfVectors,
    /// Threads of one vector scan.
    pub scan_threads: usize,
    /// How rankings are weighed.
    pub ranking: RankingOptions,
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self { half_vectors: HalfVectors::default(), scan_threads: 2, ranking: RankingOptions::default() }
    }
}

/// One ranked memory.
#[derive(Debug, Clone, PartialEq)]
pub struct RankedHit {
    /// The memory.
    pub id: MemoryId,
    /// The fused score, comparable within one recall only.
    pub score: f32,
    /// How it came to its place, when asked for.
    pub explanation: Option<HitExplanation>,
}

/// The order of a recall, before the store puts the memories in.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct RankedRecall {
    /// The hits, best first.
    pub hits: Vec<RankedHit>,
    /// Probably nothing answers the question.
    pub abstain: bool,
    /// The estimated probability that at least one hit is relevant.
    pub confidence: f32,
    /// What was not available.
    pub degraded: Vec<String>,
    /// The question's terms, where explanations were asked for: which of them a memory has, its text tells.
    pub terms: Vec<String>,
}

/// The in-memory index of a store. One writer, many readers: wrap it in a lock.
///
/// A crash loses it whole; the store builds it again from its records.
#[derive(Debug)]
pub struct RecallIndex {
    options: IndexOptions,
    tokenizer: Tokenizer,
    pub(crate) columns: Columns,
    pub(crate) text: TextIndex,
    pub(crate) own: VectorView,
    pub(crate) context: VectorView,
    pub(crate) duplicates: Duplicates,
    /// Where exact vectors are, when they are not beside the codes.
    exact: Option<Arc<dyn ExactVectors>>,
    /// Changes whenever rows or the shape of a view do.
    epoch: u64,
}

impl RecallIndex {
    /// An empty index.
    pub fn new(options: IndexOptions) -> Self {
        Self {
            tokenizer: Tokenizer::new(),
            columns: Columns::default(),
            text: TextIndex::default(),
            own: VectorView::new(options.half_vectors.clone()),
            context: VectorView::new(options.half_vectors.clone()),
            duplicates: Duplicates::default(),
            exact: None,
            epoch: 0,
            options,
        }
    }

    /// Reads an index from the sections of a file. Vectors come without half-precision copies. Three threads read.
    pub(crate) fn restore(options: IndexOptions, reader: &SectionReader) -> Result<Self, Damage> {
        let frame = &stored::read_frame(reader)?;
        let died = || Damage::Content("could not be read: a thread died".into());
        let (own, context, (columns, text, duplicates)) = std::thread::scope(|scope| {
            let own = scope.spawn(|| stored::read_view(View::Own as usize, reader, frame));
            let context = scope.spawn(|| stored::read_view(View::Context as usize, reader, frame));
            let rest = (|| {
                let columns = stored::read_columns(reader, frame)?;
                Ok::<_, Damage>((columns, stored::read_text(reader, frame)?, stored::read_duplicates(reader, frame)?))
            })();
            let own = own.join().map_err(|_| died())??;
            let context = context.join().map_err(|_| died())??;
            Ok::<_, Damage>((own, context, rest?))
        })?;
        Ok(Self { columns, text, own, context, duplicates, ..Self::new(options) })
    }

    /// Takes exact vectors from elsewhere.
    #[must_use]
    pub fn with_exact(self, exact: Arc<dyn ExactVectors>) -> Self {
        Self { exact: Some(exact), ..self }
    }

    /// What is to be written of the index as it is now.
    pub(crate) fn frame(&self) -> Frame {
        Frame {
            rows: self.columns.len(),
            live: self.columns.live().clone(),
            epoch: self.epoch,
            views: [&self.own, &self.context].map(|view| (view.dimensions(), view.rows().min(self.columns.len()))),
        }
    }

    /// Whether rows are still numbered as in a frame.
    pub(crate) fn still(&self, frame: &Frame) -> bool {
        self.epoch == frame.epoch
    }

    /// The view of a kind of vector.
    pub(crate) fn view(&self, view: View) -> &VectorView {
        match view {
            View::Own => &self.own,
            View::Context => &self.context,
        }
    }

    /// The `k` allowed rows of largest cosine, best first, ranked by the most exact vectors at hand.
    pub(crate) fn top(&self, view: View, query: &VectorQuery, k: usize, allowed: &Bitmap) -> Vec<Scored> {
        let threads = self.options.scan_threads;
        match &self.exact {
            None => self.view(view).top(query, k, allowed, threads),
            Some(exact) => {
                let dots = |rows: &[u32], query: &[f32]| {
                    let ids: Vec<MemoryId> = rows.iter().map(|row| self.columns.id(*row)).collect();
                    exact.dots(&ids, view as usize, query)
                };
                self.view(view).top_by(query, k, allowed, threads, &dots)
            }
        }
    }

    /// What it was built with.
    pub fn options(&self) -> &IndexOptions {
        &self.options
    }

    /// Takes a memory in, or brings it up to date. A change of state, trust or validity keeps the row and its vectors;
    /// a change of the content starts anew without vectors. Cost: linear in the text.
    pub fn upsert(&mut self, memory: &Memory) {
        self.upsert_prepared(memory, None);
    }

    /// As [`Self::upsert`], with the memory's parts, if somebody has made them already.
    pub(crate) fn upsert_prepared(&mut self, memory: &Memory, parts: Option<RowParts>) {
        if let Some(row) = self.columns.row(memory.id) {
            if self.columns.same_frame(row, memory) {
                self.columns.refresh(row, memory);
                return;
            }
            self.remove(memory.id);
        }
        if self.columns.len() >= ROWS_MAX as usize {
            tracing::error!(rows = self.columns.len(), "recall index is full, memory is stored but not searchable");
            return;
        }
        let parts = parts.unwrap_or_else(|| RowParts::new(&self.tokenizer, memory));
        let row = self.columns.push(memory);
        self.text.push(row, &parts.terms);
        self.duplicates.push(parts.signature);
    }

    /// Forgets a memory: no recall returns it from now on, its vectors are wiped. Its row stays, dead, until [`Self::compact`]: that is
    /// the owner's to call, at a time when nobody waits. Says whether it was there.
    pub fn remove(&mut self, id: MemoryId) -> bool {
        let Some(row) = self.columns.kill(id) else { return false };
        self.text.kill(row);
        self.duplicates.remove(row);
        self.own.remove(row);
        self.context.remove(row);
        true
    }

    /// Puts a memory's vectors: of its own text, then of its text with context, as [`context_texts`] gives them.
    /// Unknown ids are skipped; missing views stay as they are.
    pub fn set_embeddings(&mut self, id: MemoryId, embeddings: &[Embedding]) {
        let Some(row) = self.columns.row(id) else { return };
        for (view, embedding) in [&mut self.own, &mut self.context].into_iter().zip(embeddings) {
            self.epoch += u64::from(view.dimensions() != embedding.dimensions());
            view.set(row, embedding);
        }
    }

    /// The memories nearest in the same thread and namespace: up to [`NEIGHBOUR_REACH`] before and after, in thread order.
    /// Empty for a memory without thread or position.
    pub fn neighbours(&self, id: MemoryId) -> Vec<MemoryId> {
        let Some(row) = self.columns.row(id) else { return Vec::new() };
        let mut rows = self.columns.neighbours(row, NEIGHBOUR_REACH);
        rows.sort_unstable_by_key(|row| self.columns.position(*row));
        rows.into_iter().map(|row| self.columns.id(row)).collect()
    }

    /// A live memory of the namespace whose text has nearly this [`signature`]: the same up to case, punctuation and a few words of many.
    pub fn near_duplicate(&self, signature: u64, namespace: &mneme_base::Namespace) -> Option<MemoryId> {
        let namespace = self.columns.namespace_names.get(namespace.as_str())?;
        let accept = |row| self.columns.live().contains(row) && self.columns.namespace(row) == namespace;
        self.duplicates.find(signature, accept).map(|row| self.columns.id(row))
    }

    /// Whether so many rows are dead that [`Self::compact`] is worth its time.
    pub fn wants_compaction(&self) -> bool {
        let dead = self.columns.len() - self.columns.live_count();
        dead >= DEAD_ROWS_MIN && dead as f64 > DEAD_SHARE_MAX * self.columns.len() as f64
    }

    /// Compacts when most rows are dead and they are many: between two steps of upkeep nothing else would bound what a flood of
    /// changes leaves behind. The cost is that of the live rows, spread over at least as many dead ones.
    pub fn compact_if_overgrown(&mut self) {
        let live = self.columns.live_count();
        if self.columns.len() - live >= OVERGROWN_ROWS_MIN.max(live) {
            self.compact();
        }
    }

    /// Drops dead rows everywhere; rankings do not change but for the statistics that dead rows were still part of.
    /// Cost: one pass over the index, a second per gigabyte or so.
    pub fn compact(&mut self) {
        let live: Vec<u32> = self.columns.live().rows().collect();
        if live.len() == self.columns.len() {
            return;
        }
        let mut places = vec![NONE; self.columns.len()];
        for (new, old) in live.iter().enumerate() {
            places[*old as usize] = new as u32;
        }
        self.epoch += 1;
        self.columns.keep(&live);
        self.text.keep(&live, &places);
        self.own.keep(&live);
        self.context.keep(&live);
        self.duplicates.keep(&live);
    }

    /// How many memories are in it.
    pub fn len(&self) -> usize {
        self.columns.live_count()
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of the heap that it takes, nearly.
    pub fn bytes(&self) -> u64 {
        self.columns.bytes() + self.text.bytes() + self.own.bytes() + self.context.bytes() + self.duplicates.bytes()
    }

    /// The text of a question to embed for [`Self::recall`]: speakers that it names are addressed as "you". It matters: see
    /// [`query::embedding_text`].
    pub fn embedding_text(&self, query: &RecallQuery) -> String {
        query::embedding_text(query, &self.columns)
    }

    /// The candidates of a question with their features, for learning weights.
    pub fn candidates(
        &self,
        query: &RecallQuery,
        embedding: Option<&Embedding>,
        now: Timestamp,
    ) -> Result<features::Candidates, StoreError> {
        let parsed = query::ParsedQuery::new(query, now, &self.tokenizer, &self.columns)?;
        Ok(rank::candidates(self, query, &parsed, embedding).0)
    }

    /// The memory of a row of [`features::Candidates`].
    pub fn id_of_row(&self, row: u32) -> MemoryId {
        self.columns.id(row)
    }

    /// Bytes of the text index alone.
    pub fn text_bytes(&self) -> u64 {
        self.text.bytes()
    }

    /// Ranks the memories that answer a question.
    ///
    /// `embedding` is of the question's [`Self::embedding_text`]; without it, or where no memory has a vector of its dimensions, the answer is from text
    /// and `degraded` says `embedding`. `fetch` gives memories whose text has to be looked at: for phrases in quotes and for
    /// explanations. Cost: one pass over the codes of the allowed rows per view, one step per posting of the question's words.
    pub fn recall(
        &self,
        query: &RecallQuery,
        embedding: Option<&Embedding>,
        now: Timestamp,
        fetch: &dyn Fn(MemoryId) -> Option<Memory>,
    ) -> Result<RankedRecall, StoreError> {
        self.recall_with(&self.options.ranking, query, embedding, now, fetch)
    }

    /// The memories whose texts have to be looked at before [`Self::recall_among`]; `None` for a question without phrases in quotes.
    pub fn phrase_candidates(
        &self,
        query: &RecallQuery,
        now: Timestamp,
    ) -> Result<Option<PhraseCandidates>, StoreError> {
        let parsed = query::ParsedQuery::new(query, now, &self.tokenizer, &self.columns)?;
        Ok((!parsed.phrases.is_empty()).then(|| rank::phrase_candidates(self, query, parsed)))
    }

    /// As [`Self::recall`], without a look at any text: `phrases` says which memories have the phrases, and the explanations have no
    /// matched terms yet.
    pub fn recall_among(
        &self,
        query: &RecallQuery,
        embedding: Option<&Embedding>,
        now: Timestamp,
        phrases: Option<&WithPhrases>,
    ) -> Result<RankedRecall, StoreError> {
        let parsed = query::ParsedQuery::new(query, now, &self.tokenizer, &self.columns)?;
        Ok(rank::rank(self, &self.options.ranking, query, &parsed, embedding, phrases))
    }

    /// As [`Self::recall`], with other options of ranking than its own: to compare methods on one index.
    pub fn recall_with(
        &self,
        ranking: &RankingOptions,
        query: &RecallQuery,
        embedding: Option<&Embedding>,
        now: Timestamp,
        fetch: &dyn Fn(MemoryId) -> Option<Memory>,
    ) -> Result<RankedRecall, StoreError> {
        let phrases = self.phrase_candidates(query, now)?.map(|candidates| candidates.check(fetch));
        let parsed = query::ParsedQuery::new(query, now, &self.tokenizer, &self.columns)?;
        let mut ranked = rank::rank(self, ranking, query, &parsed, embedding, phrases.as_ref());
        for hit in &mut ranked.hits {
            let Some(explanation) = &mut hit.explanation else { break };
            let memory = fetch(hit.id);
            explanation.matched_terms =
                memory.map(|memory| matched(&ranked.terms, &memory, &self.tokenizer)).unwrap_or_default();
        }
        Ok(ranked)
    }

    /// What the confidence of a recall is made from, and the confidence: to calibrate it.
    pub fn confidence(
        &self,
        query: &RecallQuery,
        embedding: Option<&Embedding>,
        now: Timestamp,
    ) -> Result<(confidence::Features, f32), StoreError> {
        let parsed = query::ParsedQuery::new(query, now, &self.tokenizer, &self.columns)?;
        Ok(rank::confidence_of(self, query, &parsed, embedding))
    }
}

#[cfg(test)]
mod tests;
