//! Work that several threads share, of which some must wait for some.

use std::{
    collections::BTreeSet,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

/// Does `work` once for each index of `before`, on `threads` threads, as soon as all of `before[index]` are done: of those that can be done the
/// lowest first. `work` gets the index and the number of the thread. Returns what came of each.
///
/// # Panics
/// As `work` does, when all is done; and for a cycle.
pub(crate) fn in_turn<T: Send>(before: &[BTreeSet<usize>], threads: u32, work: impl Fn(usize, u32) -> T + Sync) -> Vec<T> {
    let mut followers = vec![Vec::new(); before.len()];
    for (index, before) in before.iter().enumerate() {
        before.iter().for_each(|first| followers[*first].push(index));
    }
    let waits: Vec<usize> = before.iter().map(BTreeSet::len).collect();
    let ready = (0..before.len()).filter(|index| waits[*index] == 0).collect();
    let queue = Queue { followers, state: Mutex::new(State { waits, ready, under_way: 0 }), changed: Condvar::new() };
    let results: Vec<Mutex<Option<T>>> = before.iter().map(|_| Mutex::new(None)).collect();
    thread::scope(|scope| {
        for thread in 0..threads {
            let (queue, results, work) = (&queue, &results, &work);
            scope.spawn(move || {
                while let Some(turn) = queue.next() {
                    let result = work(turn.index, thread);
                    *results[turn.index].lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                }
            });
        }
    });
    let result = |slot: Mutex<Option<T>>| slot.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|slot| result(slot).expect("each waits for some that are done")).collect()
}

struct Queue {
    followers: Vec<Vec<usize>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// of each: how many it waits for
    waits: Vec<usize>,
    ready: BTreeSet<usize>,
    under_way: usize,
}

/// Something that is being done. It is done when this goes, also by a panic: who waits for it would wait for ever.
struct Turn<'q> {
    queue: &'q Queue,
    index: usize,
}

impl Queue {
    /// Waits until something can be done; `None` if nothing will be.
    fn next(&self) -> Option<Turn<'_>> {
        let nothing_yet = |state: &mut State| state.ready.is_empty() && state.under_way > 0;
        let mut state = self.changed.wait_while(self.state(), nothing_yet).unwrap_or_else(PoisonError::into_inner);
        let index = state.ready.pop_first()?;
        state.under_way += 1;
        Some(Turn { queue: self, index })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.state();
        state.under_way -= 1;
        for follower in &self.queue.followers[self.index] {
            state.waits[*follower] -= 1;
            if state.waits[*follower] == 0 {
                state.ready.insert(*follower);
            }
        }
        self.queue.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::catch_unwind,
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    fn set(indices: &[usize]) -> BTreeSet<usize> {
        indices.iter().copied().collect()
    }

    #[test]
    fn everything_is_done_once_and_behind_what_it_waits_for() {
        let before = [set(&[2, 4]), set(&[]), set(&[3]), set(&[]), set(&[3]), set(&[0, 1])];
        for threads in 1..=8 {
            let done = Mutex::new(Vec::new());
            let results = in_turn(&before, threads, |index, thread| {
                assert!(thread < threads);
                let first = before[index].iter().all(|first| done.lock().unwrap().contains(first));
                done.lock().unwrap().push(index);
                (index, first)
            });
            assert_eq!(results, [(0, true), (1, true), (2, true), (3, true), (4, true), (5, true)]);
            if threads == 1 {
                assert_eq!(*done.lock().unwrap(), [1, 3, 2, 4, 0, 5]);
            }
        }
        assert!(in_turn(&[], 2, |_, _| ()).is_empty());
    }

    #[test]
    fn what_waits_for_nothing_is_done_at_once() {
        let (inside, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        in_turn(&[set(&[]), set(&[0]), set(&[]), set(&[0])], 2, |_, _| {
            most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(50));
            inside.fetch_sub(1, Ordering::SeqCst);
        });
        assert_eq!(most.into_inner(), 2);
    }

    #[test]
    fn a_panic_keeps_nobody_waiting() {
        let done = AtomicUsize::new(0);
        let run = || {
            in_turn(&[set(&[]), set(&[0]), set(&[1])], 2, |index, _| {
                assert!(index != 0, "the first one fails");
                done.fetch_add(1, Ordering::SeqCst);
            })
        };
        assert!(catch_unwind(std::panic::AssertUnwindSafe(run)).is_err());
        assert_eq!(done.into_inner(), 2);
    }
}
