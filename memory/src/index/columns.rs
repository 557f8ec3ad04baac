//! Everything that filters and ranking need to know of a memory, in flat columns: about 110 bytes a memory, no text.
//!
//! A memory has a row, numbered from 0 in order of arrival. A removed memory's row stays dead until the index is
//! rebuilt; ids are found by a table of row numbers that looks the ids up in their column.

use std::collections::HashMap;
use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};
use mneme_base::{MemoryId, Timestamp, TrustTier};

use super::bitmap::Bitmap;
use super::cues::cues;
use crate::domain::{Memory, MemoryKind, MemoryState};

/// Stands for "none" in a column of interned numbers.
pub const NONE: u32 = u32::MAX;
/// Stands for "never" in a column of times.
pub(super) const NEVER: i64 = i64::MAX;

/// Small numbers for strings that many memories share.
#[derive(Debug, Default)]
pub struct Interner {
    numbers: HashMap<Box<str>, u32>,
    names: Vec<Box<str>>,
}

impl Interner {
    /// The number of a string, new if need be.
    pub fn intern(&mut self, name: &str) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.names.len() as u32;
        self.names.push(name.into());
        self.numbers.insert(name.into(), number);
        number
    }

    /// The number of a string that was seen before.
    pub fn get(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// The string of a number.
    pub fn name(&self, number: u32) -> Option<&str> {
        self.names.get(number as usize).map(AsRef::as_ref)
    }

    /// Every number with its string.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &str)> {
        self.names.iter().enumerate().map(|(number, name)| (number as u32, name.as_ref()))
    }

    /// The strings under their numbers; an empty one stands for a number that nothing uses any more.
    pub(super) fn from_names(names: Vec<Box<str>>) -> Self {
        let used = names.iter().enumerate().filter(|(_, name)| !name.is_empty());
        Self { numbers: used.map(|(number, name)| (name.clone(), number as u32)).collect(), names }
    }

    /// Keeps the strings that a column uses, under new numbers that are put into the column, each as `rename` makes it. Returns the
    /// new number of each old one, [`NONE`] for those that are gone.
    fn renumber(&mut self, column: &mut [u32], rename: impl Fn(&str) -> String) -> Vec<u32> {
        let old = std::mem::take(self);
        let mut numbers = vec![NONE; old.names.len()];
        for number in column {
            // `NONE` stays.
            let Some(place) = numbers.get_mut(*number as usize) else { continue };
            if *place == NONE {
                *place = self.intern(&rename(&old.names[*number as usize]));
            }
            *number = *place;
        }
        numbers
    }

    /// Bytes on the heap, nearly.
    pub fn bytes(&self) -> u64 {
        self.names.iter().map(|name| 2 * name.len() as u64 + 48).sum()
    }
}

/// The columns of all rows.
#[derive(Debug, Default)]
pub struct Columns {
    pub(super) ids: Vec<MemoryId>,
    pub(super) rows: HashTable<u32>,
    pub(super) hasher: DefaultHashBuilder,
    pub(super) namespaces: Vec<u32>,
    pub(super) kinds: Vec<MemoryKind>,
    pub(super) trusts: Vec<TrustTier>,
    pub(super) states: Vec<MemoryState>,
    pub(super) sources: Vec<u32>,
    pub(super) speakers: Vec<u32>,
    pub(super) threads: Vec<u32>,
    pub(super) positions: Vec<u64>,
    pub(super) valid_from: Vec<i64>,
    pub(super) valid_to: Vec<i64>,
    pub(super) recorded_at: Vec<i64>,
    pub(super) superseded_at: Vec<i64>,
    pub(super) contents: Vec<u64>,
    pub(super) cues: Vec<u8>,
    pub(super) live: Bitmap,
    pub(super) live_count: usize,
    /// Names of namespaces.
    pub namespace_names: Interner,
    /// Names of sources.
    pub source_names: Interner,
    /// Names of speakers, lower case.
    pub speaker_names: Interner,
    pub(super) thread_names: Interner,
    /// Words of speakers' names, lower case, with the namespaces and speakers that they name.
    pub(super) speaker_words: HashMap<Box<str>, Vec<(u32, u32)>>,
    /// Rows with a position, per thread, in order of position.
    pub(super) thread_rows: Vec<Vec<(u64, u32)>>,
}

impl Columns {
    /// Rows, dead ones included.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no row at all.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// Rows that are not dead.
    pub fn live(&self) -> &Bitmap {
        &self.live
    }

    /// How many rows are not dead.
    pub fn live_count(&self) -> usize {
        self.live_count
    }

    /// The row of a memory.
    pub fn row(&self, id: MemoryId) -> Option<u32> {
        self.rows.find(self.hasher.hash_one(id), |row| self.ids[*row as usize] == id).copied()
    }

    /// The memory of a row.
    pub fn id(&self, row: u32) -> MemoryId {
        self.ids[row as usize]
    }

    /// The hash of the row's content, 64 bits of it.
    pub fn content(&self, row: u32) -> u64 {
        self.contents[row as usize]
    }

    /// What can be seen of the row's text, as [`cues`](super::cues::cues) gives it.
    pub fn cues(&self, row: u32) -> u8 {
        self.cues[row as usize]
    }

    /// The row's namespace.
    pub fn namespace(&self, row: u32) -> u32 {
        self.namespaces[row as usize]
    }

    /// The row's speaker, or [`NONE`].
    pub fn speaker(&self, row: u32) -> u32 {
        self.speakers[row as usize]
    }

    /// The row's thread (a conversation or document within its namespace), or [`NONE`].
    pub fn thread(&self, row: u32) -> u32 {
        self.threads[row as usize]
    }

    /// The row's place in its thread, `u64::MAX` for none.
    pub fn position(&self, row: u32) -> u64 {
        self.positions[row as usize]
    }

    /// When the row's memory starts to be true (milliseconds).
    pub fn valid_from(&self, row: u32) -> i64 {
        self.valid_from[row as usize]
    }

    /// Adds a row for a memory that has none.
    pub fn push(&mut self, memory: &Memory) -> u32 {
        let row = self.ids.len() as u32;
        self.ids.push(memory.id);
        let (ids, hasher) = (&self.ids, &self.hasher);
        self.rows.insert_unique(hasher.hash_one(memory.id), row, |row| hasher.hash_one(ids[*row as usize]));
        let namespace = self.namespace_names.intern(memory.namespace.as_str());
        self.namespaces.push(namespace);
        self.kinds.push(memory.kind);
        self.trusts.push(memory.provenance.trust);
        self.states.push(memory.state);
        self.sources.push(self.source_names.intern(&memory.provenance.source));
        let speaker = memory.speaker.as_ref().map_or(NONE, |name| self.speaker_names.intern(&name.to_lowercase()));
        self.speakers.push(speaker);
        self.name_speaker(namespace, speaker);
        let thread = memory.thread.as_ref().map_or(NONE, |name| self.thread_names.intern(&thread_key(namespace, name)));
        self.threads.push(thread);
        self.positions.push(memory.position.unwrap_or(u64::MAX));
        self.valid_from.push(memory.valid_from.as_millis());
        self.valid_to.push(memory.valid_to.map_or(NEVER, Timestamp::as_millis));
        self.recorded_at.push(memory.recorded_at.as_millis());
        self.superseded_at.push(memory.superseded_by.map_or(NEVER, |(_, at)| at.as_millis()));
        self.contents.push(content_key(memory));
        self.cues.push(cues(&memory.text));
        self.live.insert(row);
        self.live_count += 1;
        if let (true, Some(position)) = (thread != NONE, memory.position) {
            let at = thread as usize;
            if at >= self.thread_rows.len() {
                self.thread_rows.resize_with(at + 1, Vec::new);
            }
            let rows = &mut self.thread_rows[at];
            let place = rows.partition_point(|entry| *entry < (position, row));
            rows.insert(place, (position, row));
        }
        row
    }

    pub(super) fn name_speaker(&mut self, namespace: u32, speaker: u32) {
        let Some(name) = self.speaker_names.name(speaker) else { return };
        for word in name.split(|c: char| !c.is_alphanumeric()).filter(|word| word.chars().count() > 1) {
            let named = self.speaker_words.entry(word.into()).or_default();
            if !named.contains(&(namespace, speaker)) {
                named.push((namespace, speaker));
            }
        }
    }

    /// The speakers of these namespaces whose name has this word (lower case).
    pub fn speakers_named(&self, word: &str, namespaces: &[u32]) -> impl Iterator<Item = u32> {
        let named = self.speaker_words.get(word).map_or(&[][..], Vec::as_slice);
        named.iter().filter(|(namespace, _)| namespaces.contains(namespace)).map(|(_, speaker)| *speaker)
    }

    /// Brings the changeable columns of a row up to its memory: state, times and trust.
    pub fn refresh(&mut self, row: u32, memory: &Memory) {
        let at = row as usize;
        self.states[at] = memory.state;
        self.trusts[at] = memory.provenance.trust;
        self.valid_from[at] = memory.valid_from.as_millis();
        self.valid_to[at] = memory.valid_to.map_or(NEVER, Timestamp::as_millis);
        self.superseded_at[at] = memory.superseded_by.map_or(NEVER, |(_, at)| at.as_millis());
    }

    /// Makes a memory's row dead.
    pub fn kill(&mut self, id: MemoryId) -> Option<u32> {
        let ids = &self.ids;
        let entry = self.rows.find_entry(self.hasher.hash_one(id), |row| ids[*row as usize] == id).ok()?;
        let (row, _) = entry.remove();
        self.live.remove(row);
        self.live_count -= 1;
        let (thread, position) = (self.threads[row as usize] as usize, self.positions[row as usize]);
        if let Some(rows) = self.thread_rows.get_mut(thread)
            && let Ok(place) = rows.binary_search(&(position, row))
        {
            rows.remove(place);
        }
        Some(row)
    }

    /// Builds what is found by key from the columns: rows by id, speakers by word, rows by thread.
    pub(super) fn link(&mut self) {
        let Self { ids, hasher, live, rows, threads, positions, thread_rows, .. } = self;
        *rows = HashTable::with_capacity(ids.len());
        for row in live.rows() {
            rows.insert_unique(hasher.hash_one(ids[row as usize]), row, |row| hasher.hash_one(ids[*row as usize]));
        }
        let mut speakers = std::collections::HashSet::new();
        for row in live.rows().map(|row| row as usize) {
            speakers.insert((self.namespaces[row], self.speakers[row]));
            let (thread, position) = (threads[row], positions[row]);
            if thread == NONE || position == u64::MAX {
                continue;
            }
            if thread as usize >= thread_rows.len() {
                thread_rows.resize_with(thread as usize + 1, Vec::new);
            }
            thread_rows[thread as usize].push((position, row as u32));
        }
        thread_rows.iter_mut().for_each(|rows| {
            rows.sort_unstable();
            rows.shrink_to_fit();
        });
        let mut speakers: Vec<_> = speakers.into_iter().collect();
        speakers.sort_unstable();
        for (namespace, speaker) in speakers {
            self.name_speaker(namespace, speaker);
        }
    }

    /// Keeps only the live rows, given in ascending order, and only the names that they use.
    pub fn keep(&mut self, live: &[u32]) {
        fn pick<T: Copy>(column: &mut Vec<T>, live: &[u32]) {
            *column = live.iter().map(|row| column[*row as usize]).collect();
        }
        pick(&mut self.ids, live);
        pick(&mut self.namespaces, live);
        pick(&mut self.kinds, live);
        pick(&mut self.trusts, live);
        pick(&mut self.states, live);
        pick(&mut self.sources, live);
        pick(&mut self.speakers, live);
        pick(&mut self.threads, live);
        pick(&mut self.positions, live);
        pick(&mut self.valid_from, live);
        pick(&mut self.valid_to, live);
        pick(&mut self.recorded_at, live);
        pick(&mut self.superseded_at, live);
        pick(&mut self.contents, live);
        pick(&mut self.cues, live);
        self.live = Bitmap::default();
        (0..live.len() as u32).for_each(|row| self.live.insert(row));
        // A name of which no memory is left must go: it may be what was forgotten, and names would pile up for ever.
        self.source_names.renumber(&mut self.sources, str::to_owned);
        self.speaker_names.renumber(&mut self.speakers, str::to_owned);
        let namespaces = self.namespace_names.renumber(&mut self.namespaces, str::to_owned);
        self.thread_names.renumber(&mut self.threads, |key| {
            let (namespace, name) = key.split_once('\0').unwrap_or_default();
            let number = namespace.parse().ok().and_then(|old: usize| namespaces.get(old)).copied().unwrap_or(NONE);
            thread_key(number, name)
        });
        self.speaker_words = HashMap::new();
        self.thread_rows = Vec::new();
        self.link();
    }

    /// Whether two rows, of which the second may be of a memory not yet indexed, have the same unchangeable columns.
    pub fn same_frame(&self, row: u32, memory: &Memory) -> bool {
        let at = row as usize;
        let name_is = |number: u32, name: Option<&str>, names: &Interner| match name {
            None => number == NONE,
            Some(name) => names.name(number) == Some(name),
        };
        self.contents[at] == content_key(memory)
            && name_is(self.namespaces[at], Some(memory.namespace.as_str()), &self.namespace_names)
            && name_is(self.sources[at], Some(&memory.provenance.source), &self.source_names)
            && self.kinds[at] == memory.kind
            && self.positions[at] == memory.position.unwrap_or(u64::MAX)
            && self.recorded_at[at] == memory.recorded_at.as_millis()
            && (self.threads[at] == NONE) == memory.thread.is_none()
    }

    /// The rows nearest in the thread: up to `reach` before and `reach` after, nearest first, earlier ones before later.
    pub fn neighbours(&self, row: u32, reach: usize) -> Vec<u32> {
        let Some(rows) = self.thread_rows.get(self.threads[row as usize] as usize) else { return Vec::new() };
        let Ok(place) = rows.binary_search(&(self.positions[row as usize], row)) else { return Vec::new() };
        let mut found = Vec::with_capacity(2 * reach);
        for step in 1..=reach {
            found.extend(place.checked_sub(step).and_then(|at| rows.get(at)).map(|entry| entry.1));
            found.extend(rows.get(place + step).map(|entry| entry.1));
        }
        found
    }

    /// The rows before and after a row in its thread: `[two before, one before, one after, two after]`.
    pub fn around(&self, row: u32) -> [Option<u32>; 4] {
        let Some(rows) = self.thread_rows.get(self.threads[row as usize] as usize) else { return [None; 4] };
        let Ok(place) = rows.binary_search(&(self.positions[row as usize], row)) else { return [None; 4] };
        let at = |place: Option<usize>| place.and_then(|place| rows.get(place)).map(|entry| entry.1);
        [at(place.checked_sub(2)), at(place.checked_sub(1)), at(Some(place + 1)), at(Some(place + 2))]
    }

    /// The rows of a thread that have a position, in order, with their positions.
    pub fn thread_rows(&self, thread: u32) -> &[(u64, u32)] {
        self.thread_rows.get(thread as usize).map_or(&[], Vec::as_slice)
    }

    /// The number of a thread of a namespace.
    pub fn thread_number(&self, namespace: u32, name: &str) -> Option<u32> {
        self.thread_names.get(&thread_key(namespace, name))
    }

    /// Marks which live rows pass `keep`. Cost: one call per live row.
    fn select(&self, mut keep: impl FnMut(usize) -> bool) -> Bitmap {
        let mut set = Bitmap::with_rows(self.len());
        for (word, live) in set.words_mut().iter_mut().zip(self.live.words()) {
            *word = *live;
        }
        for at in 0..set.words().len() {
            let mut rest = set.words()[at];
            let mut kept = rest;
            while rest != 0 {
                let bit = rest.trailing_zeros() as usize;
                rest &= rest - 1;
                if !keep(at * 64 + bit) {
                    kept &= !(1 << bit);
                }
            }
            set.words_mut()[at] = kept;
        }
        set
    }

    /// Until when a memory holds. Without an end, what states something holds on; what tells of a moment is over with it.
    fn valid_until(&self, at: usize) -> i64 {
        let holds_on = matches!(self.kinds[at], MemoryKind::Fact | MemoryKind::Preference | MemoryKind::Procedure);
        if self.valid_to[at] != NEVER || holds_on { self.valid_to[at] } else { self.valid_from[at] }
    }

    /// The rows that a recall may return, by everything but metadata.
    pub fn allowed(&self, bounds: &Bounds) -> Bitmap {
        self.select(|at| {
            let state_ok = match bounds.as_of {
                None => match self.states[at] {
                    MemoryState::Active => true,
                    MemoryState::Quarantined => bounds.quarantined,
                    _ => false,
                },
                // As the memory stood then: recorded by then, and not yet replaced.
                Some(moment) => {
                    self.recorded_at[at] <= moment
                        && self.superseded_at[at] > moment
                        && (bounds.quarantined || self.states[at] != MemoryState::Quarantined)
                }
            };
            state_ok
                && bounds.namespaces.contains(&self.namespaces[at])
                && self.trusts[at] >= bounds.trust_min
                && (bounds.kinds.is_empty() || bounds.kinds.contains(&self.kinds[at]))
                && bounds.sources.as_ref().is_none_or(|list| list.binary_search(&self.sources[at]).is_ok())
                && bounds.speakers.as_ref().is_none_or(|list| list.binary_search(&self.speakers[at]).is_ok())
                && bounds.threads.as_ref().is_none_or(|list| list.binary_search(&self.threads[at]).is_ok())
                && bounds.valid_after.is_none_or(|moment| self.valid_until(at) >= moment)
                && bounds.valid_before.is_none_or(|moment| self.valid_from[at] < moment)
        })
    }

    /// Bytes on the heap, nearly.
    pub fn bytes(&self) -> u64 {
        let row = size_of::<MemoryId>() + 4 * 4 + 4 + 8 + 4 * 8 + 8;
        let threads: usize = self.thread_rows.iter().map(|rows| rows.capacity() * 16 + 24).sum();
        (self.ids.capacity() * row + self.rows.capacity() * 5 + threads) as u64
            + self.live.bytes()
            + self.thread_names.bytes()
            + self.speaker_names.bytes()
            + self.source_names.bytes()
            + self.namespace_names.bytes()
    }
}

/// A recall's filter in numbers. Lists are sorted; `None` means "any".
#[derive(Debug, Default)]
pub struct Bounds {
    /// The namespaces, at most a handful.
    pub namespaces: Vec<u32>,
    /// The kinds; empty means any.
    pub kinds: Vec<MemoryKind>,
    /// The sources.
    pub sources: Option<Vec<u32>>,
    /// The speakers.
    pub speakers: Option<Vec<u32>>,
    /// The threads.
    pub threads: Option<Vec<u32>>,
    /// The least trust.
    pub trust_min: TrustMin,
    /// Valid at or after this moment (milliseconds).
    pub valid_after: Option<i64>,
    /// Valid before this moment (milliseconds).
    pub valid_before: Option<i64>,
    /// As it stood at this moment (milliseconds).
    pub as_of: Option<i64>,
    /// Also what is in quarantine.
    pub quarantined: bool,
}

/// The least trust of a [`Bounds`]; the default lets everything through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TrustMin(pub TrustTier);

impl Default for TrustMin {
    fn default() -> Self {
        Self(TrustTier::Untrusted)
    }
}

impl PartialEq<TrustMin> for TrustTier {
    fn eq(&self, other: &TrustMin) -> bool {
        *self == other.0
    }
}

impl PartialOrd<TrustMin> for TrustTier {
    fn partial_cmp(&self, other: &TrustMin) -> Option<std::cmp::Ordering> {
        self.partial_cmp(&other.0)
    }
}

fn thread_key(namespace: u32, name: &str) -> String {
    format!("{namespace}\u{0}{name}")
}

fn content_key(memory: &Memory) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *memory.content_hash.as_bytes();
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
