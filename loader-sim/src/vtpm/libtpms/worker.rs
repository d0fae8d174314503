//! The process that holds a TPM of libtpms, and the frames that it is spoken to in.
//!
//! ```text
//! frame    code u8, length u32 (big endian), body
//! request  START body: empty for a new TPM, or a state │ EXEC body: command │ RESET │ SAVE
//! reply    DONE body: the response, the state, or empty │ REFUSED body: why, as text
//! state    "hvsimTPM", version u32, SHA-256 of what follows, length of the permanent state u32, that state, the volatile state
//! ```
//!
//! The digest finds damage, which libtpms itself does not find everywhere; it does not protect from intent.
//! It has one client, on its standard input and output, and ends when that closes. A request that is none ends it too.

use std::io::{self, ErrorKind, Read, Write};

use hvci_engine::bytes::{array, be32, index, slice};

use sha2::{Digest as _, Sha256};

use super::library::{Libtpms, State};

pub(super) const START: u8 = 1;
pub(super) const EXEC: u8 = 2;
pub(super) const RESET: u8 = 3;
pub(super) const SAVE: u8 = 4;
pub(super) const DONE: u8 = 0;
pub(super) const REFUSED: u8 = 1;
/// Code and length.
pub(super) const HEADER: usize = 5;
/// Most bytes of a body: no state of libtpms comes near it.
pub(super) const MAX_BODY: usize = 1 << 20;

const MAGIC: [u8; 8] = *b"hvsimTPM";
const VERSION: u32 = 1;
/// Magic, version and digest.
const STATE_HEADER: usize = 44;

/// Serves one client on standard input and output until it goes.
///
/// # Errors
/// What is wrong with the input, or I/O.
pub fn serve() -> io::Result<()> {
    let (mut input, mut output) = (io::stdin().lock(), io::stdout().lock());
    let mut tpm = Libtpms::open();
    loop {
        let mut header = [0; HEADER];
        match input.read_exact(&mut header) {
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let (code, len) = read_header(header).ok_or(ErrorKind::InvalidData)?;
        let mut body = vec![0; len];
        input.read_exact(&mut body)?;
        let reply = match &mut tpm {
            Ok(tpm) => answer(tpm, code, &body),
            Err(reason) => Err(reason.clone()),
        };
        let (code, body) = match reply {
            Ok(body) => (DONE, body),
            Err(reason) => (REFUSED, reason.into_bytes()),
        };
        output.write_all(&frame(code, &body).ok_or(ErrorKind::InvalidData)?)?;
        output.flush()?;
    }
}

/// A frame as it is sent; `None` if the body is too long for one.
pub(super) fn frame(code: u8, body: &[u8]) -> Option<Vec<u8>> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY)?;
    Some([&[code][..], &len.to_be_bytes(), body].concat())
}

/// Code and length of a frame's body; `None` if that is too long.
pub(super) fn read_header(header: [u8; HEADER]) -> Option<(u8, usize)> {
    let len = be32(&header, 1).map(index).filter(|len| *len <= MAX_BODY)?;
    Some((header[0], len))
}

fn answer(tpm: &mut Libtpms, code: u8, body: &[u8]) -> Result<Vec<u8>, String> {
    match code {
        START if body.is_empty() => tpm.start(None).map(|()| Vec::new()),
        START => {
            let state = decode(body).ok_or("this is no state of a libtpms TPM")?;
            tpm.start(Some(&state)).map(|()| Vec::new())
        }
        EXEC => tpm.process(body),
        RESET => tpm.restart().map(|()| Vec::new()),
        SAVE => encode(&tpm.state()?).ok_or_else(|| "a state that is too long".to_owned()),
        _ => Err("an unknown request".to_owned()),
    }
}

fn encode(state: &State) -> Option<Vec<u8>> {
    let len = u32::try_from(state.permanent.len()).ok()?;
    let states = [&len.to_be_bytes()[..], &state.permanent, &state.volatile].concat();
    Some([&MAGIC[..], &VERSION.to_be_bytes(), &Sha256::digest(&states), &states].concat())
}

fn decode(bytes: &[u8]) -> Option<State> {
    if array(bytes, 0) != Some(MAGIC) || be32(bytes, 8) != Some(VERSION) {
        return None;
    }
    let states = bytes.get(STATE_HEADER..)?;
    if array(bytes, 12) != Some(<[u8; 32]>::from(Sha256::digest(states))) {
        return None;
    }
    let len = be32(states, 0).map(index)?;
    let permanent = slice(states, 4, len)?.to_vec();
    let volatile = states.get(len.checked_add(4)?..)?.to_vec();
    // libtpms takes an empty state for none, and would make a new TPM
    (!permanent.is_empty() && !volatile.is_empty()).then_some(State { permanent, volatile })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_state_is_one() {
        let state = |permanent: &[u8], volatile: &[u8]| State { permanent: permanent.to_vec(), volatile: volatile.to_vec() };
        let whole = state(b"permanent", b"volatile");
        let bytes = encode(&whole).unwrap();
        assert!(decode(&bytes).is_some_and(|decoded| decoded == whole));
        for at in 0..bytes.len() {
            assert!(decode(&bytes[..at]).is_none(), "{at} bytes");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped).is_none(), "a change at {at}");
        }
        assert!(decode(&[&bytes[..], &[0]].concat()).is_none());
        for lacking in [state(b"", b"volatile"), state(b"permanent", b"")] {
            assert!(decode(&encode(&lacking).unwrap()).is_none());
        }
    }

    #[test]
    fn a_frame_has_a_longest_body() {
        assert!(frame(EXEC, &vec![0; MAX_BODY]).is_some());
        assert!(frame(EXEC, &vec![0; MAX_BODY + 1]).is_none());
        assert_eq!(read_header([EXEC, 0, 0x10, 0, 0]), Some((EXEC, MAX_BODY)));
        assert_eq!(read_header([EXEC, 0, 0x10, 0, 1]), None);
    }
}
