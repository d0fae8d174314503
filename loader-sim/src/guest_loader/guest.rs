//! A guest into which files are loaded one after the other, or several at once: its own loader places each, then the engine is asked.

use std::sync::{PoisonError, RwLock};

use hvci_engine::{
    addr::{Gpn, Gva, PAGE_SIZE},
    examine::Input,
    load::{Attempt, File, Loader, MAX_IMAGE, Place, Request},
    status::HvStatus,
    time::UnixTime,
};

use super::{GuestLoaderError, Loaded, Memory, PartialKernel, place_with, put, region_of};
use crate::host::SimHost;

/// A guest that loads drivers and modules.
#[derive(Debug)]
pub struct Guest<'g> {
    host: &'g SimHost,
    loader: &'g Loader,
    time: UnixTime,
    /// What its own loader binds imports to.
    loaded: RwLock<Loaded<PartialKernel>>,
}

/// What came of a file.
#[derive(Debug)]
pub struct Tried {
    /// What the engine said.
    pub attempt: Attempt,
    /// Why the guest's loader could not place the file.
    pub guest: Option<String>,
}

impl<'g> Guest<'g> {
    /// On `host`, under `loader`, whose verdicts are for `time`; the kernel exports what `kernel` does.
    pub fn new(host: &'g SimHost, loader: &'g Loader, time: UnixTime, kernel: PartialKernel) -> Self {
        Self { host, loader, time, loaded: RwLock::new(Loaded::new(kernel)) }
    }

    /// Loads a file into the pages from `at` on, as the processor `vp` asks.
    ///
    /// # Errors
    /// The guest has no such pages; what is loaded cannot be read again for its exports. What the engine refuses is no error.
    pub fn load(&self, name: &str, file: &[u8], at: u64, vp: u32) -> Result<Tried, LoadFault> {
        let input = Input::new(file, usize::try_from(MAX_IMAGE).unwrap_or(usize::MAX));
        let base = Gva(region_of(input.bytes()).0.saturating_add(at.saturating_mul(PAGE_SIZE)));
        let guest = match self.place(input.bytes(), base) {
            Ok(memory) => {
                put(self.host, &memory, base, Gpn(at)).map_err(LoadFault::Pages)?;
                None
            }
            // the engine says what it is all the same
            Err(error) => Some(error.to_string()),
        };
        let pages = |gva: Gva| guest.is_none().then_some(Gpn(at.checked_add(gva.0.checked_sub(base.0)? / PAGE_SIZE)?));
        let request = Request { name, file: File::Private(file), place: Place::Base(base), pages: &pages, time: self.time, vp: Some(vp) };
        let attempt = self.loader.load(&request);
        if attempt.outcome.is_ok() {
            self.loaded.write().unwrap_or_else(PoisonError::into_inner).add(name, input.bytes(), base)?;
        }
        Ok(Tried { attempt, guest })
    }

    fn place(&self, file: &[u8], base: Gva) -> Result<Memory, GuestLoaderError> {
        place_with(file, base, &*self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What keeps a guest from loading, besides the engine.
#[derive(Debug, thiserror::Error)]
pub enum LoadFault {
    /// Its memory.
    #[error("cannot place it: {0}")]
    Pages(HvStatus),
    /// Its loader.
    #[error(transparent)]
    Loader(#[from] GuestLoaderError),
}
