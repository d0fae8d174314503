//! The state of a TPM at rest: encrypted, and bound to its machine and its place in the order of saves.
//!
//! ```text
//! "hvsimSTA", version u32, sequence u64, nonce[12], AES-256-GCM ciphertext, tag[16]        all big endian
//! associated data: what precedes the nonce, and the machine's name
//! ```
//!
//! Refuses another machine's state, another key's, and one that was changed or cut. An old state of the same machine is whole, and opens: that it is
//! old says its sequence, and finds [`ledger`](super::ledger). The nonce is random, so a key is for fewer than 2^32 saves (NIST SP 800-38D §8.3).

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use hvci_engine::bytes::{array, be32};

const MAGIC: [u8; 8] = *b"hvsimSTA";
const VERSION: u32 = 1;
/// Magic, version, sequence.
const BOUND: usize = 20;
const HEADER: usize = BOUND + NONCE_LEN;
const TAG: usize = 16;
/// Longest state.
pub const MAX_STATE: usize = 1 << 20;

/// Why a state is not encrypted, or is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealedStateError {
    /// More than [`MAX_STATE`] bytes.
    #[error("a state of more than {MAX_STATE} bytes")]
    TooLong,
    /// Not what [`seal`] makes, or of another version.
    #[error("this is no encrypted TPM state")]
    Malformed,
    /// Which of these it is, nobody can tell.
    #[error("the TPM state was changed, or belongs to another machine or another key")]
    NotAuthentic,
    /// The host has no randomness, or the cipher refused.
    #[error("the TPM state cannot be encrypted")]
    Cipher,
}

/// A state that was opened.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenedState {
    /// Which save of its machine it is.
    pub sequence: u64,
    /// What [`Tpm::save`](super::Tpm::save) gave: secrets, in clear.
    pub state: Vec<u8>,
}

impl fmt::Debug for OpenedState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedState").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// Encrypts a machine's state.
///
/// # Errors
/// [`SealedStateError::TooLong`], [`SealedStateError::Cipher`].
pub fn seal(key: &[u8; 32], machine: &str, sequence: u64, state: &[u8]) -> Result<Vec<u8>, SealedStateError> {
    if state.len() > MAX_STATE {
        return Err(SealedStateError::TooLong);
    }
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| SealedStateError::Cipher)?;
    let bound = [&MAGIC[..], &VERSION.to_be_bytes(), &sequence.to_be_bytes()].concat();
    let mut sealed = state.to_vec();
    let aad = Aad::from([&bound, machine.as_bytes()].concat());
    cipher(key)?.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).map_err(|_| SealedStateError::Cipher)?;
    Ok([&bound[..], &nonce, &sealed].concat())
}

/// Decrypts a machine's state.
///
/// # Errors
/// [`SealedStateError`].
pub fn open(key: &[u8; 32], machine: &str, sealed: &[u8]) -> Result<OpenedState, SealedStateError> {
    if sealed.len() > HEADER + MAX_STATE + TAG {
        return Err(SealedStateError::TooLong);
    }
    if array(sealed, 0) != Some(MAGIC) || be32(sealed, 8) != Some(VERSION) {
        return Err(SealedStateError::Malformed);
    }
    let parts = || Some((sealed.get(..BOUND)?, array(sealed, 12)?, array(sealed, BOUND)?, sealed.get(HEADER..)?));
    let (bound, sequence, nonce, ciphertext) = parts().ok_or(SealedStateError::Malformed)?;
    let aad = Aad::from([bound, machine.as_bytes()].concat());
    let mut state = ciphertext.to_vec();
    let opened = cipher(key)?.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut state);
    let len = opened.map_err(|_| SealedStateError::NotAuthentic)?.len();
    state.truncate(len);
    Ok(OpenedState { sequence: u64::from_be_bytes(sequence), state })
}

fn cipher(key: &[u8; 32]) -> Result<LessSafeKey, SealedStateError> {
    UnboundKey::new(&AES_256_GCM, key).map(LessSafeKey::new).map_err(|_| SealedStateError::Cipher)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; 32] = [7; 32];

    #[test]
    fn a_state_opens_for_its_machine_and_key_only() {
        let sealed = seal(&KEY, "one", 3, b"seeds and registers").unwrap();
        assert_eq!(open(&KEY, "one", &sealed), Ok(OpenedState { sequence: 3, state: b"seeds and registers".to_vec() }));
        assert!(!sealed.windows(5).any(|w| w == b"seeds"));
        for machine in ["", "on", "one2", "two"] {
            assert_eq!(open(&KEY, machine, &sealed), Err(SealedStateError::NotAuthentic), "{machine}");
        }
        assert_eq!(open(&[8; 32], "one", &sealed), Err(SealedStateError::NotAuthentic));
        // the same state twice shows nothing
        assert_ne!(seal(&KEY, "one", 3, b"seeds and registers").unwrap()[BOUND..], sealed[BOUND..]);
    }

    #[test]
    fn every_change_and_every_cut_is_found() {
        let sealed = seal(&KEY, "one", 3, b"seeds").unwrap();
        for at in 0..sealed.len() {
            for bit in 0..8 {
                let mut changed = sealed.clone();
                changed[at] ^= 1 << bit;
                assert!(open(&KEY, "one", &changed).is_err(), "bit {bit} of byte {at}");
            }
            assert!(open(&KEY, "one", &sealed[..at]).is_err(), "{at} bytes");
        }
        assert!(open(&KEY, "one", &[&sealed[..], &[0]].concat()).is_err());
    }

    #[test]
    fn length_is_bounded() {
        let longest = seal(&KEY, "one", 0, &vec![1; MAX_STATE]).unwrap();
        assert_eq!(open(&KEY, "one", &longest).unwrap().state.len(), MAX_STATE);
        assert_eq!(seal(&KEY, "one", 0, &vec![1; MAX_STATE + 1]), Err(SealedStateError::TooLong));
        assert_eq!(open(&KEY, "one", &[&longest[..], &[0]].concat()), Err(SealedStateError::TooLong));
    }

    #[test]
    fn secrets_are_not_shown() {
        let opened = OpenedState { sequence: 1, state: vec![0xab; 4] };
        assert_eq!(format!("{opened:?}"), "OpenedState { sequence: 1, .. }");
    }
}
