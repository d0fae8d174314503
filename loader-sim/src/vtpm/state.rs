//! The state of a TPM that others' code keeps, as one piece of bytes.
//!
//! ```text
//! magic[8] of the backend, version u32, SHA-256 of what follows, length of the permanent state u32, that state, the volatile state
//! ```
//!
//! The digest finds damage, which the backends do not find everywhere; it does not protect from intent.

use hvci_engine::bytes::{array, be32, index, slice};
use sha2::{Digest as _, Sha256};

/// No state of libtpms comes near it.
pub(super) const MAX_STATE: usize = 1 << 20;
const VERSION: u32 = 1;
/// Magic, version and digest.
const HEADER: usize = 44;

/// The two halves, in the backend's own encoding.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) permanent: Vec<u8>,
    pub(super) volatile: Vec<u8>,
}

impl State {
    /// `None` if it is too long.
    pub(super) fn encode(&self, magic: [u8; 8]) -> Option<Vec<u8>> {
        let len = u32::try_from(self.permanent.len()).ok()?;
        let halves = [&len.to_be_bytes()[..], &self.permanent, &self.volatile].concat();
        let bytes = [&magic[..], &VERSION.to_be_bytes(), &Sha256::digest(&halves), &halves].concat();
        (bytes.len() <= MAX_STATE).then_some(bytes)
    }

    /// `None` for anything but what [`encode`](Self::encode) made.
    pub(super) fn decode(magic: [u8; 8], bytes: &[u8]) -> Option<Self> {
        if bytes.len() > MAX_STATE || array(bytes, 0) != Some(magic) || be32(bytes, 8) != Some(VERSION) {
            return None;
        }
        let halves = bytes.get(HEADER..)?;
        if array(bytes, 12) != Some(<[u8; 32]>::from(Sha256::digest(halves))) {
            return None;
        }
        let len = be32(halves, 0).map(index)?;
        let permanent = slice(halves, 4, len)?.to_vec();
        let volatile = halves.get(len.checked_add(4)?..)?.to_vec();
        // libtpms takes an empty state for none, and would make a new TPM
        (!permanent.is_empty() && !volatile.is_empty()).then_some(Self { permanent, volatile })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_state_is_one() {
        let magic = *b"the test";
        let state = |permanent: &[u8], volatile: &[u8]| State { permanent: permanent.to_vec(), volatile: volatile.to_vec() };
        let whole = state(b"permanent", b"volatile");
        let bytes = whole.encode(magic).unwrap();
        assert!(State::decode(magic, &bytes).is_some_and(|decoded| decoded == whole));
        assert!(State::decode(*b"not that", &bytes).is_none());
        for at in 0..bytes.len() {
            assert!(State::decode(magic, &bytes[..at]).is_none(), "{at} bytes");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(State::decode(magic, &flipped).is_none(), "a change at {at}");
        }
        assert!(State::decode(magic, &[&bytes[..], &[0]].concat()).is_none());
        for lacking in [state(b"", b"volatile"), state(b"permanent", b"")] {
            assert!(State::decode(magic, &lacking.encode(magic).unwrap()).is_none());
        }
        assert!(state(&vec![1; MAX_STATE], b"volatile").encode(magic).is_none());
    }
}
