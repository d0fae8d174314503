//! SHA-384 and SHA-512 of one lane, by the `sha2` crate: for the message that is left when the others have ended.

use core::slice::from_ref;

use super::Kernel;

#[derive(Clone, Copy, Debug)]
pub(super) struct Sha512One;

impl Kernel<[u64; 8], 128, 1> for Sha512One {
    fn compress(&mut self, [state]: &mut [[u64; 8]; 1], [blocks]: [&[[u8; 128]]; 1]) {
        for block in blocks {
            sha2::compress512(state, from_ref(block.into()));
        }
    }
}
