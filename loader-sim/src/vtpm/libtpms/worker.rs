//! The process that holds a TPM of libtpms, and the frames that it is spoken to in.
//!
//! ```text
//! frame    code u8, length u32 (big endian), body
//! request  START body: empty for a new TPM, or a state │ EXEC body: command │ RESET │ SAVE
//! reply    DONE body: the response, the state, or empty │ REFUSED body: why, as text
//! ```
//!
//! It has one client, on its standard input and output, and ends when that closes. A request that is none ends it too.

use std::io::{self, ErrorKind, Read, Write};

use hvci_engine::bytes::{be32, index};

use super::{
    super::state::{MAX_STATE, State},
    library::Libtpms,
};

pub(super) const START: u8 = 1;
pub(super) const EXEC: u8 = 2;
pub(super) const RESET: u8 = 3;
pub(super) const SAVE: u8 = 4;
pub(super) const DONE: u8 = 0;
pub(super) const REFUSED: u8 = 1;
/// Code and length.
pub(super) const HEADER: usize = 5;
/// Most bytes of a body.
pub(super) const MAX_BODY: usize = MAX_STATE;

const MAGIC: [u8; 8] = *b"libtpms\0";

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
            let state = State::decode(MAGIC, body).ok_or("this is no state of a libtpms TPM")?;
            tpm.start(Some(&state)).map(|()| Vec::new())
        }
        EXEC => tpm.process(body),
        RESET => tpm.restart().map(|()| Vec::new()),
        SAVE => tpm.state()?.encode(MAGIC).ok_or_else(|| "a state that is too long".to_owned()),
        _ => Err("an unknown request".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_a_longest_body() {
        assert!(frame(EXEC, &vec![0; MAX_BODY]).is_some());
        assert!(frame(EXEC, &vec![0; MAX_BODY + 1]).is_none());
        assert_eq!(read_header([EXEC, 0, 0x10, 0, 0]), Some((EXEC, MAX_BODY)));
        assert_eq!(read_header([EXEC, 0, 0x10, 0, 1]), None);
    }
}
