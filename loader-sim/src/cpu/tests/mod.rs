#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod exceptions;
mod memory;
mod programs;
mod system;

use iced_x86::{IcedError, code_asm::CodeAssembler};

use crate::{
    cpu::{Exit, registers::flag},
    testing::{CODE, Machine},
};

pub(super) const RAX: usize = 0;
pub(super) const RCX: usize = 1;
pub(super) const RDX: usize = 2;
pub(super) const RBX: usize = 3;
pub(super) const RSP: usize = 4;
pub(super) const RSI: usize = 6;
pub(super) const RDI: usize = 7;

/// Code that depends on nothing.
type Code = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Vector and error code of an exception that nobody handles.
fn exception(exit: &Exit) -> (u8, Option<u32>) {
    match exit {
        Exit::Exception(exception) => (exception.vector, exception.error_code),
        other => panic!("{other:?}"),
    }
}
