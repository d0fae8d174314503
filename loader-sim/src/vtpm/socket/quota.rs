//! How much of its host's time a guest's TPM may take: some at once, and then a share, however fast or long its commands are.

use std::time::{Duration, Instant};

use super::super::{Tpm, TpmFailed};

/// What it may take at once, of a host that it has left alone for a while.
const BURST: Duration = if cfg!(test) { Duration::from_millis(50) } else { Duration::from_secs(2) };
/// One part in so many, when it goes on.
const SHARE: u32 = 4;

/// A TPM whose time is counted.
#[derive(Debug)]
pub(super) struct Metered<'t> {
    tpm: &'t mut dyn Tpm,
    credit: Credit,
}

impl<'t> Metered<'t> {
    pub(super) fn new(tpm: &'t mut dyn Tpm) -> Self {
        Self { tpm, credit: Credit { left: BURST, debt: Duration::ZERO, at: Instant::now() } }
    }

    /// How long nobody may ask it anything.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        self.credit.rest(Instant::now())
    }

    fn timed<T>(&mut self, ask: impl FnOnce(&mut dyn Tpm) -> T) -> T {
        let start = Instant::now();
        let answer = ask(self.tpm);
        self.credit.spend(start.elapsed());
        answer
    }
}

impl Tpm for Metered<'_> {
    fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        self.timed(|tpm| tpm.exec(command))
    }

    fn reset(&mut self) -> Result<(), TpmFailed> {
        self.timed(|tpm| tpm.reset())
    }

    fn save(&mut self) -> Result<Vec<u8>, TpmFailed> {
        self.timed(|tpm| tpm.save())
    }

    fn load(&mut self, state: &[u8]) -> Result<(), TpmFailed> {
        self.timed(|tpm| tpm.load(state))
    }
}

/// What is left to be spent, or owed: a command is not cut off, so it may take more than there was.
#[derive(Debug)]
struct Credit {
    left: Duration,
    debt: Duration,
    at: Instant,
}

impl Credit {
    fn spend(&mut self, time: Duration) {
        let paid = time.min(self.left);
        self.left = self.left.saturating_sub(paid);
        self.debt = self.debt.saturating_add(time.saturating_sub(paid));
    }

    /// What was earned until `now` pays the debt first. How long the rest of it takes to be earned.
    fn rest(&mut self, now: Instant) -> Option<Duration> {
        let earned = now.saturating_duration_since(self.at).checked_div(SHARE).unwrap_or_default();
        self.at = now;
        let paid = earned.min(self.debt);
        self.debt = self.debt.saturating_sub(paid);
        self.left = self.left.saturating_add(earned.saturating_sub(paid)).min(BURST);
        (!self.debt.is_zero()).then(|| self.debt.saturating_mul(SHARE))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn nobody_takes_more_than_a_burst_and_the_share(commands in prop::collection::vec((0..80_u64, 0..80_u64), 1..60)) {
            let start = Instant::now();
            let (mut now, mut busy) = (start, Duration::ZERO);
            let mut credit = Credit { left: BURST, debt: Duration::ZERO, at: start };
            for (idle, takes) in commands {
                now += Duration::from_millis(idle);
                while let Some(rest) = credit.rest(now) {
                    now += rest;
                }
                // before a command is taken, all that was taken is paid for
                prop_assert!(busy <= BURST + (now - start) / SHARE, "{busy:?} of {:?}", now - start);
                let takes = Duration::from_millis(takes);
                credit.spend(takes);
                now += takes;
                busy += takes;
            }
        }
    }

    #[test]
    fn who_rests_has_the_burst_again_and_no_more() {
        let start = Instant::now();
        let mut credit = Credit { left: BURST, debt: Duration::ZERO, at: start };
        credit.spend(BURST + Duration::from_millis(10));
        assert_eq!(credit.rest(start), Some(Duration::from_millis(40)));
        assert_eq!(credit.rest(start + Duration::from_millis(20)), Some(Duration::from_millis(20)));
        assert_eq!(credit.rest(start + Duration::from_millis(40)), None);
        assert_eq!(credit.rest(start + Duration::from_secs(3600)), None);
        assert_eq!(credit.left, BURST);
    }
}
