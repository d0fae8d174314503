//! Random bytes from a seed of the host's: ChaCha20 that replaces its key with each block, so that what was given out cannot be found
//! again.

use chacha20::{
    ChaCha20,
    cipher::{KeyIvInit, StreamCipher},
};
use zeroize::{Zeroize, Zeroizing};

const KEY: usize = 32;
const BLOCK: usize = 512;

/// A generator.
pub(super) struct Random {
    /// The next key, then bytes that were not given out yet.
    block: Zeroizing<[u8; BLOCK]>,
    used: usize,
}

impl Random {
    /// From a seed that was used for nothing else.
    pub(super) fn new(seed: &[u8; KEY]) -> Self {
        let mut random = Self { block: Zeroizing::new([0; BLOCK]), used: BLOCK };
        random.block.iter_mut().zip(seed).for_each(|(to, from)| *to = *from);
        random
    }

    /// Bytes that nobody can foretell.
    pub(super) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for byte in &mut bytes {
            if self.used >= BLOCK {
                self.refill();
            }
            if let Some(next) = self.block.get_mut(self.used) {
                *byte = core::mem::take(next);
            }
            self.used = self.used.saturating_add(1);
        }
        bytes
    }

    fn refill(&mut self) {
        let mut key = [0; KEY];
        key.iter_mut().zip(self.block.iter()).for_each(|(to, from)| *to = *from);
        self.block.zeroize();
        ChaCha20::new(&key.into(), &[0; 12].into()).apply_keystream(&mut *self.block);
        key.zeroize();
        self.used = KEY;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn bytes_are_given_out_once() {
        let mut random = Random::new(&[7; 32]);
        let seen: BTreeSet<[u8; 16]> = (0..1000).map(|_| random.bytes()).collect();
        assert_eq!(seen.len(), 1000);
        // what was given out is no more in memory, nor is the key it came of
        let given: [u8; 16] = random.bytes();
        assert!(!random.block.windows(16).any(|window| window == given));
        assert_eq!(Random::new(&[7; 32]).bytes::<16>(), Random::new(&[7; 32]).bytes::<16>());
        assert_ne!(Random::new(&[7; 32]).bytes::<16>(), Random::new(&[8; 32]).bytes::<16>());
    }
}
