//! The argument block of a VTL call: how VTL0 asks the engine for what is no hypercall.
//!
//! ```text
//! offset  0  u64       function
//!         8  u64 × 12  arguments
//! ```

/// Bytes of an argument block.
pub const BLOCK: usize = 104;

/// The words of a block, in order; zeros behind its end.
#[derive(Clone, Debug)]
pub(crate) struct Words<'b>(core::slice::Iter<'b, [u8; 8]>);

impl<'b> Words<'b> {
    pub(crate) fn of(block: &'b [u8; BLOCK]) -> Self {
        Self(block.as_chunks().0.iter())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0.next().map_or(0, |word| u64::from_le_bytes(*word))
    }
}
