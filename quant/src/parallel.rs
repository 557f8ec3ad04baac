//! How work is cut for threads, and the threads that do the small parts of it.
//!
//! A network on two cores is some four hundred products and norms of tens of microseconds: waking a sleeping thread for each costs more
//! than it saves. The helpers here wait for the next part by spinning for a moment before they sleep; the caller works with
//! them, and never waits for a helper that has not begun.

use std::cell::UnsafeCell;
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

/// Weights below which another thread costs more than it saves.
const PART_WEIGHTS_MIN: usize = 32 << 10;
/// Turns of the loop in which a helper waits before it sleeps: some tens of microseconds.
const SPINS: u32 = 1_500;
/// Turns after which a waiting caller gives its core away: a helper may have lost its own.
const SPINS_BEFORE_YIELD: u32 = 20_000;
/// More helpers than this are not kept, on any machine.
const HELPERS_MAX: usize = 63;

/// Rows for each of at most `threads` parts of a matrix; at least one.
pub(crate) fn part_rows(rows: usize, columns: usize, threads: usize) -> usize {
    let parts = threads.min((rows * columns / PART_WEIGHTS_MIN).max(1));
    rows.div_ceil(parts.max(1)).max(1)
}

/// Does `work` for every number below `parts` on at most `threads` threads, the caller's among them. Returns when all is done; a
/// panic of any part becomes one of the caller's. While another caller has the helpers, this one works alone.
pub fn for_each_part(parts: usize, threads: usize, work: impl Fn(usize) + Sync) {
    let alone = || (0..parts).for_each(&work);
    if parts <= 1 || threads <= 1 {
        return alone();
    }
    let helpers = helpers();
    if helpers.threads.is_empty() {
        return alone();
    }
    match helpers.shared.busy.try_lock() {
        Ok(_busy) => helpers.run(parts, threads - 1, &work),
        Err(std::sync::TryLockError::Poisoned(busy)) => {
            let _busy = busy.into_inner();
            helpers.run(parts, threads - 1, &work);
        }
        Err(std::sync::TryLockError::WouldBlock) => alone(),
    }
}

/// As [`for_each_part`], with something of its own for each part.
pub fn for_each_item<T: Send>(items: impl IntoIterator<Item = T>, threads: usize, work: impl Fn(usize, T) + Sync) {
    let items: Vec<Mutex<Option<T>>> = items.into_iter().map(|item| Mutex::new(Some(item))).collect();
    for_each_part(items.len(), threads, |index| {
        let item = items[index].lock().unwrap_or_else(PoisonError::into_inner).take();
        work(index, item.expect("every part is done once"));
    });
}

/// The state word: whether a job is open, how many helpers are at it, and a number that grows with each job.
const OPEN: u64 = 1;
const HELPER: u64 = 2;
const HELPER_MASK: u64 = (1 << 16) - 2;
const JOB: u64 = 1 << 16;

type Work = dyn Fn(usize) + Sync;

struct Shared {
    /// Held by the caller whose job it is.
    busy: Mutex<()>,
    state: AtomicU64,
    /// The open job; only read by a helper that has entered it.
    work: UnsafeCell<Option<*const Work>>,
    parts: AtomicUsize,
    helpers_wanted: AtomicUsize,
    next: AtomicUsize,
    has_panicked: AtomicBool,
    asleep: [AtomicBool; HELPERS_MAX],
}

#[expect(unsafe_code, reason = "a job is borrowed from its caller, who outlives it")]
// SAFETY: `work` is written by the holder of `busy` while no job is open and no helper is at one, and read only by helpers that
// entered an open job through `state`, which orders both. What it points to is `Sync`.
unsafe impl Sync for Shared {}
#[expect(unsafe_code, reason = "as above")]
// SAFETY: as above; the pointer is of no use outside of a job.
unsafe impl Send for Shared {}

struct Helpers {
    shared: &'static Shared,
    threads: Vec<Thread>,
}

fn helpers() -> &'static Helpers {
    static HELPERS: OnceLock<Helpers> = OnceLock::new();
    HELPERS.get_or_init(|| {
        // Lives as long as its threads, which is as long as the process.
        let shared: &'static Shared = Box::leak(Box::new(Shared {
            busy: Mutex::new(()),
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            parts: AtomicUsize::new(0),
            helpers_wanted: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            has_panicked: AtomicBool::new(false),
            asleep: [const { AtomicBool::new(false) }; HELPERS_MAX],
        }));
        let count = std::thread::available_parallelism().map_or(1, NonZero::get) - 1;
        let mut threads = Vec::new();
        for index in 0..count.min(HELPERS_MAX) {
            let started =
                std::thread::Builder::new().name(format!("product-{index}")).spawn(move || help(shared, index));
            match started {
                Ok(handle) => threads.push(handle.thread().clone()),
                // Fewer threads are slower, not wrong.
                Err(_) => break,
            }
        }
        Helpers { shared, threads }
    })
}

impl Helpers {
    #[expect(unsafe_code, reason = "a job is borrowed from its caller, who outlives it")]
    fn run(&self, parts: usize, helpers: usize, work: &(dyn Fn(usize) + Sync)) {
        let shared = self.shared;
        #[expect(clippy::transmute_ptr_to_ptr, reason = "a cast may not lengthen the lifetime")]
        // SAFETY: only the lifetime changes. `Closed` below waits, also on a panic, until no helper is at the job any more.
        let erased: *const Work =
            unsafe { std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), *const Work>(work) };
        // SAFETY: this caller holds `busy`, and the last job was closed and left by all before `busy` was let go.
        unsafe { *shared.work.get() = Some(erased) };
        shared.parts.store(parts, Ordering::Relaxed);
        shared.helpers_wanted.store(helpers, Ordering::Relaxed);
        shared.next.store(0, Ordering::Relaxed);
        shared.has_panicked.store(false, Ordering::Relaxed);
        let number = (shared.state.load(Ordering::Relaxed) & !(JOB - 1)).wrapping_add(JOB);
        shared.state.store(number | OPEN, Ordering::SeqCst);
        let closed = Closed(shared);
        for (thread, asleep) in self.threads.iter().zip(&shared.asleep).take(helpers.min(parts - 1)) {
            if asleep.swap(false, Ordering::SeqCst) {
                thread.unpark();
            }
        }
        take_parts(shared, work);
        drop(closed);
        assert!(!shared.has_panicked.load(Ordering::Relaxed), "a part of the work panicked");
    }
}

/// Closes the job and waits until every helper has left it.
struct Closed<'a>(&'a Shared);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut turns = 0_u32;
        while self.0.state.load(Ordering::Acquire) & HELPER_MASK != 0 {
            turns += 1;
            if turns.is_multiple_of(SPINS_BEFORE_YIELD) {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
        }
    }
}

fn take_parts(shared: &Shared, work: &(dyn Fn(usize) + Sync)) {
    let parts = shared.parts.load(Ordering::Relaxed);
    loop {
        let index = shared.next.fetch_add(1, Ordering::Relaxed);
        if index >= parts {
            return;
        }
        work(index);
    }
}

/// A helper's life: waits for a job that it has not seen, enters it if it is still open, leaves it.
#[expect(unsafe_code, reason = "runs a job that its caller keeps alive")]
fn help(shared: &Shared, own: usize) {
    let mut seen = 0;
    loop {
        let state = wait(shared, own, seen);
        seen = state & !(JOB - 1);
        if own >= shared.helpers_wanted.load(Ordering::Relaxed) {
            continue;
        }
        if shared.state.compare_exchange(state, state + HELPER, Ordering::SeqCst, Ordering::Relaxed).is_err() {
            // Another helper entered at the same moment, or the job was closed: look again.
            seen = seen.wrapping_sub(JOB);
            continue;
        }
        // SAFETY: the job is open and counts this helper: its caller waits for it, so that what it lent is alive.
        let work = unsafe { (*shared.work.get()).map(|work| &*work) };
        if let Some(work) = work
            && catch_unwind(AssertUnwindSafe(|| take_parts(shared, work))).is_err()
        {
            shared.has_panicked.store(true, Ordering::Relaxed);
        }
        shared.state.fetch_sub(HELPER, Ordering::SeqCst);
    }
}

/// Waits until a job is open whose number is not `seen`: spins for a while, then sleeps.
fn wait(shared: &Shared, own: usize, seen: u64) -> u64 {
    let open = || {
        let state = shared.state.load(Ordering::SeqCst);
        (state & OPEN != 0 && state & !(JOB - 1) != seen).then_some(state)
    };
    loop {
        for _ in 0..SPINS {
            if let Some(state) = open() {
                return state;
            }
            std::hint::spin_loop();
        }
        shared.asleep[own].store(true, Ordering::SeqCst);
        // A job that was opened before the flag was up did not see it: look once more.
        if let Some(state) = open() {
            shared.asleep[own].store(false, Ordering::SeqCst);
            return state;
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_exactly_once_however_many_threads_call() {
        let callers: Vec<_> = (0..4)
            .map(|caller| {
                std::thread::spawn(move || {
                    for round in 0..2_000 {
                        let parts = (round + caller) % 9;
                        let done: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                        for_each_part(parts, 1 + round % 3, |index| {
                            done[index].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(done.iter().all(|count| count.load(Ordering::Relaxed) == 1), "round {round}");
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    }

    #[test]
    fn helpers_that_fell_asleep_are_woken_and_parts_may_have_parts() {
        for _ in 0..20 {
            let sum = AtomicUsize::new(0);
            for_each_part(4, 2, |outer| {
                for_each_part(3, 2, |inner| {
                    sum.fetch_add(outer * 3 + inner, Ordering::Relaxed);
                });
            });
            assert_eq!(sum.load(Ordering::Relaxed), (0..12).sum());
            // Longer than a helper spins.
            std::thread::park_timeout(std::time::Duration::from_millis(2));
        }
    }

    #[test]
    fn a_panic_in_a_part_is_the_callers_and_the_helpers_live_on() {
        for bad in 0..4 {
            let failed = catch_unwind(|| for_each_part(4, 4, |index| assert_ne!(index, bad)));
            assert!(failed.is_err());
        }
        let mut numbers = vec![0; 100];
        for_each_item(numbers.chunks_mut(7), 4, |index, chunk| chunk.fill(index));
        assert_eq!(numbers[99], 14);
    }
}
