//! Which messages are in the lanes of a kernel, and when.

use core::{array, cmp::Reverse};

use super::{Kernel, state::State, stream::Stream};
use crate::{crypto::Job, digest::Digest};

/// Bytes of a message that are taken in one turn.
const TURN: usize = 16 * 1024;

/// All jobs of one compression function.
pub(super) struct Pool<'a, 'r, S, const BLOCK: usize> {
    /// Index in `jobs` and initial value of those not begun, shortest first.
    waiting: Vec<(usize, S)>,
    /// Index in `jobs` of those begun.
    begun: Vec<(usize, Stream<'a, S, BLOCK>)>,
    jobs: &'a [Job<'a>],
    results: &'r mut [Option<Digest>],
}

impl<'a, 'r, S: State, const BLOCK: usize> Pool<'a, 'r, S, BLOCK> {
    /// Those of `jobs` that are for this function, if they are at `least` so many. `results` are in the order of `jobs`.
    pub(super) fn new(jobs: &'a [Job<'a>], results: &'r mut [Option<Digest>], least: usize) -> Option<Self> {
        let mut waiting: Vec<_> = jobs.iter().enumerate().filter_map(|(i, job)| Some((i, S::initial(job.alg)?))).collect();
        if waiting.len() < least {
            return None;
        }
        waiting.sort_by_cached_key(|(i, _)| length(&jobs[*i]));
        Some(Self { waiting, begun: Vec::new(), jobs, results })
    }

    /// Whether one message is as long as all the others together: it ends last, and a kernel of two lanes is done with it first. So is a file
    /// beside its own pages.
    pub(super) fn is_led_by_one(&self) -> bool {
        let mut lengths = self.waiting.iter().rev().map(|(i, _)| length(&self.jobs[*i]));
        lengths.next().is_some_and(|longest| longest >= lengths.fold(0, usize::saturating_add))
    }

    /// Goes on with `kernel` until fewer than `least` jobs are left. With fewer than `N`, lanes stay unused.
    pub(super) fn run<const N: usize>(&mut self, mut kernel: impl Kernel<S, BLOCK, N>, least: usize) {
        loop {
            // the last ones are begun together and take turns, so that they end together and not one of them alone
            let begin = if self.waiting.len() <= N { self.waiting.len() } else { N.saturating_sub(self.begun.len()) };
            for (job, state) in self.waiting.drain(self.waiting.len() - begin..).rev() {
                self.begun.push((job, Stream::new(state, &self.jobs[job].pieces)));
            }
            if self.begun.len() < least.max(1) {
                return;
            }
            let mut most = usize::MAX;
            if self.begun.len() > N {
                self.begun.sort_by_key(|(_, stream)| Reverse(stream.left()));
                most = TURN / BLOCK;
            }
            self.step(&mut kernel, most);
        }
    }

    /// Takes as many blocks as every lane has, at `most` that many, and ends the jobs whose last ones they are.
    fn step<const N: usize>(&mut self, kernel: &mut impl Kernel<S, BLOCK, N>, most: usize) {
        let active = self.begun.len().min(N);
        let lanes = &mut self.begun[..active];
        let blocks = lanes.iter().map(|(_, stream)| stream.run().len()).min().unwrap_or_default().min(most);
        // an unused lane repeats the first one's work, and the outcome is dropped
        let lane = |i: usize| &lanes[if i < active { i } else { 0 }].1;
        let mut states = array::from_fn(|i| lane(i).state);
        kernel.compress(&mut states, array::from_fn(|i| &lane(i).run()[..blocks]));
        for ((_, stream), state) in lanes.iter_mut().zip(states) {
            stream.state = state;
        }
        for i in (0..active).rev() {
            let (job, stream) = &mut self.begun[i];
            if !stream.advance(blocks) {
                self.results[*job] = stream.state.digest(self.jobs[*job].alg);
                self.begun.remove(i);
            }
        }
    }
}

fn length(job: &Job<'_>) -> usize {
    job.pieces.iter().map(|piece| piece.len()).fold(0, usize::saturating_add)
}
