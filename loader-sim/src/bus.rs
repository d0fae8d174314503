//! What a processor sees of memory behind the guest's own translation: [`Bus`].

use hvci_engine::{access::Access, addr::Gpa};

/// An access that the second-level translation refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: the first byte that is refused.
    pub gpa: Gpa,
    /// What was tried.
    pub access: Access,
    /// Whether it was an access of the guest's page walk.
    pub page_walk: bool,
}

/// Guest-physical memory as one virtual processor reaches it.
///
/// No access crosses a page boundary; the processor splits those that do. A refused access has changed nothing.
pub trait Bus {
    /// Reads. `access` is [`Access::Read`] or a fetch; `page_walk` tells the reads of guest page-table entries.
    ///
    /// # Errors
    /// [`Fault`]; what `bytes` holds then is of no meaning.
    fn load(&mut self, gpa: Gpa, access: Access, page_walk: bool, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Whether a [`store`](Self::store) of `len` bytes would be let through.
    ///
    /// # Errors
    /// What the store would answer.
    fn check_store(&mut self, gpa: Gpa, len: usize) -> Result<(), Fault>;

    /// Writes; `page_walk` tells the accessed and dirty bits that a page walk sets.
    ///
    /// # Errors
    /// [`Fault`]: nothing is written.
    fn store(&mut self, gpa: Gpa, page_walk: bool, bytes: &[u8]) -> Result<(), Fault>;

    /// The page that an address is in for the kernel, whatever the guest's page tables say (Intel HLAT); `None` where they decide.
    fn translation(&self, _address: u64) -> Option<Gpa> {
        None
    }
}
