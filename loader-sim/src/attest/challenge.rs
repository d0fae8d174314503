//! Challenges that are open: each is for one machine, is answered once, and ends by itself.
//!
//! Trusts the caller's random numbers and clock. Bounded by the machines that are known: a machine has one challenge at a time, and gets another
//! no sooner than [`INTERVAL`] seconds after the last.

use std::collections::BTreeMap;

use hvci_engine::time::UnixTime;

/// Seconds in which a challenge must be answered.
pub const LIFETIME: i64 = 60;
/// Seconds between two challenges of a machine.
pub const INTERVAL: i64 = 1;

/// Bytes of a challenge.
pub type Nonce = [u8; 32];

/// Challenges by machine.
#[derive(Debug, Default)]
pub struct Challenges(BTreeMap<String, Open>);

#[derive(Debug)]
struct Open {
    nonce: Option<Nonce>,
    since: UnixTime,
}

impl Challenges {
    /// Takes `nonce`, which nobody can guess, as the challenge of `vm`, in place of an earlier one. `None`: it was challenged just now.
    pub fn issue(&mut self, vm: &str, nonce: Nonce, now: UnixTime) -> Option<Nonce> {
        let last = self.0.get(vm).map(|open| open.since);
        if last.is_some_and(|last| (0..INTERVAL).contains(&now.0.saturating_sub(last.0))) {
            return None;
        }
        self.0.insert(vm.to_owned(), Open { nonce: Some(nonce), since: now });
        Some(nonce)
    }

    /// The challenge that an answer of `vm` is for. It is over then, whatever the answer is worth.
    pub fn redeem(&mut self, vm: &str, now: UnixTime) -> Option<Nonce> {
        let open = self.0.get_mut(vm)?;
        let nonce = open.nonce.take()?;
        (0..=LIFETIME).contains(&now.0.saturating_sub(open.since.0)).then_some(nonce)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: fn(i64) -> UnixTime = UnixTime;

    #[test]
    fn a_challenge_is_answered_once_and_in_time() {
        let mut challenges = Challenges::default();
        assert_eq!(challenges.redeem("a", AT(0)), None, "never issued");
        assert_eq!(challenges.issue("a", [1; 32], AT(0)), Some([1; 32]));
        assert_eq!(challenges.redeem("b", AT(0)), None, "another machine's");
        assert_eq!(challenges.redeem("a", AT(1)), Some([1; 32]));
        assert_eq!(challenges.redeem("a", AT(1)), None, "a second answer");
        assert_eq!(challenges.issue("a", [2; 32], AT(2)), Some([2; 32]));
        assert_eq!(challenges.redeem("a", AT(3 + LIFETIME)), None, "too late");
        assert_eq!(challenges.issue("a", [3; 32], AT(100)), Some([3; 32]));
        assert_eq!(challenges.redeem("a", AT(99)), None, "the clock went back");
    }

    #[test]
    fn challenges_are_bounded() {
        let mut challenges = Challenges::default();
        assert_eq!(challenges.issue("a", [1; 32], AT(5)), Some([1; 32]));
        assert_eq!(challenges.issue("a", [2; 32], AT(5)), None, "just now");
        assert_eq!(challenges.redeem("a", AT(5)), Some([1; 32]));
        assert_eq!(challenges.issue("a", [2; 32], AT(5)), None, "answered, and still just now");
        assert_eq!(challenges.issue("a", [3; 32], AT(6)), Some([3; 32]));
        assert_eq!(challenges.issue("a", [4; 32], AT(7)), Some([4; 32]), "the earlier one is over");
        assert_eq!(challenges.redeem("a", AT(7)), Some([4; 32]));
        assert_eq!(challenges.0.len(), 1);
    }
}
