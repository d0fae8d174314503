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
    account: Account,
}

impl<'t> Metered<'t> {
    pub(super) fn new(tpm: &'t mut dyn Tpm) -> Self {
        Self { tpm, account: Account::new(Instant::now()) }
    }

    /// How long nobody may ask it anything.
    pub(super) fn rest(&mut self) -> Option<Duration> {
        self.account.rest(Instant::now())
    }

    fn timed<T>(&mut self, ask: impl FnOnce(&mut dyn Tpm) -> T) -> T {
        let start = Instant::now();
        let answer = ask(self.tpm);
        self.account.spend(start.elapsed());
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

/// What was taken and is not earned back. A command is not cut off, so it may be more than the burst.
#[derive(Debug)]
struct Account {
    taken: Duration,
    at: Instant,
}

impl Account {
    fn new(at: Instant) -> Self {
        Self { taken: Duration::ZERO, at }
    }

    fn spend(&mut self, time: Duration) {
        self.taken = self.taken.saturating_add(time);
    }

    /// How long it takes until no more than a burst is taken.
    fn rest(&mut self, now: Instant) -> Option<Duration> {
        let earned = now.saturating_duration_since(self.at).checked_div(SHARE).unwrap_or_default();
        self.at = now;
        self.taken = self.taken.saturating_sub(earned);
        self.taken.checked_sub(BURST).filter(|over| !over.is_zero()).map(|over| over.saturating_mul(SHARE))
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
            let mut account = Account::new(start);
            for (idle, takes) in commands {
                now += Duration::from_millis(idle);
                while let Some(rest) = account.rest(now) {
                    now += rest;
                }
                // before a command is taken, all that was taken is paid for
                prop_assert!(busy <= BURST + (now - start) / SHARE, "{busy:?} of {:?}", now - start);
                let takes = Duration::from_millis(takes);
                account.spend(takes);
                now += takes;
                busy += takes;
            }
        }
    }

    #[test]
    fn who_rests_has_the_burst_again_and_no_more() {
        let start = Instant::now();
        let mut account = Account::new(start);
        account.spend(BURST + Duration::from_millis(10));
        assert_eq!(account.rest(start), Some(Duration::from_millis(40)));
        assert_eq!(account.rest(start + Duration::from_millis(20)), Some(Duration::from_millis(20)));
        assert_eq!(account.rest(start + Duration::from_millis(40)), None);
        assert_eq!(account.rest(start + Duration::from_secs(3600)), None);
        assert_eq!(account.taken, Duration::ZERO);
    }
}
