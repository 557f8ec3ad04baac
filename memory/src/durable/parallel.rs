//! Pure work on many items, spread over the processors.

use std::num::NonZero;

/// Fewer items than this are not worth a thread.
const ITEMS_MIN: usize = 64;

/// Applies a function to every item, in order, on as many threads as there are processors.
pub(super) fn map<T: Send, R: Send>(items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    if items.len() < ITEMS_MIN || threads == 1 {
        return items.into_iter().map(work).collect();
    }
    let share = items.len().div_ceil(threads);
    let mut results = Vec::with_capacity(items.len());
    let mut rest = items;
    std::thread::scope(|scope| {
        let mut workers = Vec::with_capacity(threads);
        while rest.len() > share {
            let after = rest.split_off(share);
            let part = std::mem::replace(&mut rest, after);
            let work = &work;
            workers.push(scope.spawn(move || part.into_iter().map(work).collect::<Vec<R>>()));
        }
        let last: Vec<R> = rest.into_iter().map(&work).collect();
        for worker in workers {
            match worker.join() {
                Ok(part) => results.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        results.extend(last);
    });
    results
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_come_in_the_order_of_the_items() {
        for count in [0, 5, 64, 1_001] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(super::map(items, |item| item * 2), (0..count).map(|item| item * 2).collect::<Vec<_>>());
        }
    }
}
