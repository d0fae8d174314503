//! A bus over plain memory with a protection per page, and machines to run pieces of code on.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use hvci_engine::{
    access::Access,
    addr::{Frame, Gpa, Gpn},
};

use crate::{
    bus::{Bus, Fault},
    memory::{GuestMemory, PAGE},
};

/// Guest page n is frame n.
#[derive(Debug)]
pub(crate) struct FlatBus {
    pub(crate) memory: GuestMemory,
    /// (readable, writable, executable); all three where nothing is said.
    protection: HashMap<Gpn, (bool, bool, bool)>,
    /// What was asked for, of whole accesses: to see that none crosses a page.
    pub(crate) longest: usize,
}

impl FlatBus {
    pub(crate) fn new(frames: u64) -> Self {
        Self { memory: GuestMemory::new(frames).unwrap(), protection: HashMap::new(), longest: 0 }
    }

    pub(crate) fn protect(&mut self, page: Gpn, writable: bool, executable: bool) {
        self.protection.insert(page, (true, writable, executable));
    }

    pub(crate) fn hide(&mut self, page: Gpn) {
        self.protection.insert(page, (false, false, false));
    }

    pub(crate) fn bytes(&self, gpa: Gpa, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Frame(gpa.gpn().0), gpa.offset(), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn qword(&self, gpa: Gpa) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().unwrap())
    }

    fn check(&mut self, gpa: Gpa, access: Access, page_walk: bool, len: usize) -> Result<(), Fault> {
        assert!(usize::try_from(gpa.offset()).unwrap() + len <= PAGE, "an access crosses a page");
        self.longest = self.longest.max(len);
        let (read, write, execute) = self.protection.get(&gpa.gpn()).copied().unwrap_or((true, true, true));
        let allowed = match access {
            Access::Read => read,
            Access::Write => write,
            Access::KernelExecute | Access::UserExecute => execute,
        };
        if allowed && gpa.gpn().0 < self.memory.frames() { Ok(()) } else { Err(Fault { gpa, access, page_walk }) }
    }
}

impl Bus for FlatBus {
    fn load(&mut self, gpa: Gpa, access: Access, page_walk: bool, bytes: &mut [u8]) -> Result<(), Fault> {
        self.check(gpa, access, page_walk, bytes.len())?;
        self.memory.read(Frame(gpa.gpn().0), gpa.offset(), bytes).unwrap();
        Ok(())
    }

    fn check_store(&mut self, gpa: Gpa, len: usize) -> Result<(), Fault> {
        self.check(gpa, Access::Write, false, len)
    }

    fn store(&mut self, gpa: Gpa, page_walk: bool, bytes: &[u8]) -> Result<(), Fault> {
        self.check(gpa, Access::Write, page_walk, bytes.len())?;
        self.memory.write(Frame(gpa.gpn().0), gpa.offset(), bytes).unwrap();
        Ok(())
    }
}
