//! ArrowStorage: the store as a Lance dataset, for scale beyond memory and for readers of the Lance ecosystem. Not built yet.
//!
//! It will follow the store's journal through `mneme_memory`'s projection trait: appends and keyed upserts in batches, a sync
//! before each checkpoint, quarantine of a bad head manifest, rebuild from the journal, and compaction, index update and cleanup as
//! separate supervised steps. Until then the store is complete without it.
