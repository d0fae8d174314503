//! A keeper that forgets everything with the process: the host's key seals, and the host counts.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hvci_engine::vault::{Keeper, KeeperError, Key};

use crate::vtpm::sealed_state;

/// What is kept, for as long as somebody has this.
#[derive(Clone, Debug)]
pub struct MemoryKeeper {
    kept: Arc<Mutex<(Option<Vec<u8>>, u64)>>,
    key: Key,
}

impl MemoryKeeper {
    /// With a key of its own.
    pub fn new() -> Self {
        let mut key = [0; 32];
        rand_core::RngCore::fill_bytes(&mut rand_core::OsRng, &mut key);
        Self { kept: Arc::default(), key: Key::from(key) }
    }

    /// What is kept, as whoever has the disk reads it.
    pub fn kept(&self) -> Vec<u8> {
        self.lock().0.clone().unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, (Option<Vec<u8>>, u64)> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self) -> [u8; 32] {
        self.key.as_bytes().first_chunk().copied().unwrap_or_default()
    }
}

impl Default for MemoryKeeper {
    fn default() -> Self {
        Self::new()
    }
}

const NAME: &str = "a vault in memory";

impl Keeper for MemoryKeeper {
    fn read(&mut self) -> Result<Option<Vec<u8>>, KeeperError> {
        Ok(self.lock().0.clone())
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), KeeperError> {
        self.lock().0 = Some(bytes.to_vec());
        Ok(())
    }

    fn counter(&mut self) -> Result<u64, KeeperError> {
        Ok(self.lock().1)
    }

    fn advance(&mut self, to: u64) -> Result<(), KeeperError> {
        let mut kept = self.lock();
        kept.1 = kept.1.max(to);
        Ok(())
    }

    fn seal(&mut self, key: &Key) -> Result<Vec<u8>, KeeperError> {
        sealed_state::seal(&self.key(), NAME, 0, key.as_bytes()).map_err(|error| KeeperError::Io(error.to_string()))
    }

    fn unseal(&mut self, sealed: &[u8]) -> Result<Key, KeeperError> {
        let opened = sealed_state::open(&self.key(), NAME, sealed).map_err(|error| KeeperError::Lost(error.to_string()))?;
        Key::new(&opened.state).ok_or_else(|| KeeperError::Lost("what was sealed is no key".to_owned()))
    }
}
