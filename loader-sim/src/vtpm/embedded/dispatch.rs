//! Executes a command: header, handles, sessions, parameters, in the reference TPM's order, so that what is wrong first is what the response says.

use super::auth::Authorised;
use super::commands::{Call, Command, find};
use super::rc::{self, Rc};
use super::state::{SU_DA_USED, SU_NONE, State, is_orderly};
use super::wire::{Params, Put, Reader, Result, read_tag};
use crate::vtpm::MAX_MESSAGE;

const NO_SESSIONS: u16 = 0x8001;
const SESSIONS: u16 = 0x8002;
const STARTUP: u32 = 0x144;
/// Bytes of the shortest session.
const MIN_SESSION: usize = 9;

impl State {
    pub(super) fn exec(&mut self, command: &[u8]) -> Vec<u8> {
        self.disorder = false;
        let response = self.run(command).unwrap_or_else(Rc::response);
        if self.disorder && is_orderly(self.orderly) {
            self.orderly = if self.lockout.used { SU_DA_USED } else { SU_NONE };
        }
        self.objects.remove_copies();
        response
    }

    fn run(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        let mut r = Reader(bytes);
        let tag = read_tag(&mut r)?;
        if tag != NO_SESSIONS && tag != SESSIONS {
            return Err(rc::BAD_TAG);
        }
        let size = usize::try_from(r.u32()?).map_err(|_| rc::COMMAND_SIZE)?;
        if size != bytes.len() || size > MAX_MESSAGE {
            return Err(rc::COMMAND_SIZE);
        }
        let command = find(r.u32()?).ok_or(rc::COMMAND_CODE)?;
        if self.started == (command.code == STARTUP) {
            return Err(rc::INITIALIZE);
        }
        let mut handles = Vec::with_capacity(command.handles.len());
        for ((kind, _), number) in command.handles.iter().zip(1..) {
            handles.push(kind.read(&mut r).map_err(|e| e.handle(number))?);
        }
        self.load_handles(command, &mut handles)?;
        self.run_loaded(command, handles, tag == SESSIONS, r)
    }

    fn run_loaded(&mut self, command: &Command, handles: Vec<u32>, with_sessions: bool, mut r: Reader<'_>) -> Result<Vec<u8>> {
        let mut authorised = Authorised::none();
        // a copy only where a parameter may be decrypted in it
        let mut decrypted = Vec::new();
        let mut parameters = r.0;
        if with_sessions {
            let size = usize::try_from(r.u32()?).unwrap_or(usize::MAX);
            if size < MIN_SESSION {
                return Err(rc::SIZE);
            }
            let area = r.take(size).map_err(|_| rc::SIZE)?;
            decrypted = r.0.to_vec();
            authorised = self.authorise(command, &handles, area, &mut decrypted)?;
            parameters = &decrypted;
        } else if command.handles.iter().any(|(_, role)| *role != super::commands::Role::None) {
            return Err(rc::AUTH_MISSING);
        }
        let reply = (command.run)(self, &Call { handles }, Params::new(parameters));
        zeroize::Zeroize::zeroize(&mut decrypted);
        let mut reply = reply?;
        let parameter_size = reply.body.len();
        if with_sessions {
            self.answer(command, &mut authorised, &mut reply.body)?;
        } else if command.sessions {
            self.sessions.exclusive = None;
        }
        let mut out = Vec::with_capacity(18 + reply.body.len());
        out.u16(if with_sessions { SESSIONS } else { NO_SESSIONS });
        out.u32(0);
        out.u32(0);
        if let Some(handle) = reply.handle {
            out.u32(handle);
        }
        if with_sessions {
            out.count(parameter_size);
        }
        out.bytes(&reply.body);
        let size = u32::try_from(out.len()).unwrap_or(u32::MAX).to_be_bytes();
        if let Some(place) = out.get_mut(2..6) {
            place.copy_from_slice(&size);
        }
        zeroize::Zeroize::zeroize(&mut reply.body);
        Ok(out)
    }
}

impl Rc {
    /// A response that is nothing but this code.
    fn response(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10);
        out.u16(NO_SESSIONS);
        out.u32(10);
        out.u32(self.0);
        out
    }
}
