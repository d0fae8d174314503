//! Credentials that VTL0 uses and never has: operations instead of reads.
//!
//! ```text
//! VTL call ─► service ─► who asks, what for, how often ─► the secret's frame ─► arithmetic ─► an answer that no secret is in ─► event
//!                                                             │
//!                          commit ─► sealed ─► keeper: the machine's TPM and a file, or the host
//! ```
//!
//! - Long-term secrets, session keys and the vault's own key are in frames that are [`SecureOnly`](crate::frames::Kind::SecureOnly). For
//!   the length of one operation the engine has a copy on its own stack, which is at no guest-physical address, and wipes it.
//! - No operation answers a key, a hash, or what a hash could be found from: no NTLMv1, MS-CHAPv2, LM, DES or RC4 Kerberos. What a key
//!   signs begins as it was said when the key was made.
//! - Who asks is the module whose verified code makes the call, by its authentihash, not what the guest says of it.
//!
//! **Invariant I11** of `docs/invariants.md`. **Boundary:** what code that runs *within* a caller that may ask does with the answers. Its
//! uses are bound to a service, counted and recorded: that is reduced, not removed.
//!
//! The names of the operations are those of the isolated LSA's interface (`ly4k/PassTheChallenge`, `Protocol.IDL`).

#![cfg_attr(
    not(test),
    deny(
        clippy::arithmetic_side_effects,
        clippy::as_conversions,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used
    )
)]
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use std::sync::PoisonError;

mod credential;
mod error;
#[cfg(test)]
mod isolation;
mod keeper;
mod kerberos;
mod ntlm;
mod operations;
mod pages;
mod random;
mod sealed;
mod secret;
mod service;
mod table;
mod use_policy;

pub use credential::{NewCredential, Secret};
pub use error::VaultError;
pub use keeper::{Keeper, KeeperError};
pub use kerberos::{Etype, Usage};
pub use ntlm::{Challenge, MAX_TARGET_INFO, nt_hash};
pub use operations::{Authenticator, Listed};
pub use sealed::Identity;
pub use secret::{Key, MAX_KEY};
pub use service::{Content, Function, Output};
pub use table::{CredentialKind, Handle};
pub use use_policy::{Operation, Rate, UsePolicy};

use self::{pages::Pages, random::Random, secret::Record, table::Table};
use crate::{
    addr::{Gpn, Vtl},
    digest::Digest,
    event::What,
    status::HvStatus,
    sync::{Mutex, MutexGuard},
    time::UnixTime,
    vsm::partition::Partition,
};

/// What a vault is made for.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which machine, which boot.
    pub identity: Identity,
    /// What is allowed of every credential.
    pub policy: UsePolicy,
    /// Random bytes that were used for nothing else.
    pub seed: Key,
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The module whose code makes the call, by authentihash ([`Loader::module_at`](crate::load::Loader::module_at)); `None` if it is of no
    /// module that is loaded.
    pub module: Option<Digest>,
    /// `HV_VP_INDEX`.
    pub vp: u32,
    /// The time now.
    pub time: UnixTime,
}

/// What was found when a vault was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Nothing was kept: it is a new one.
    New,
    /// What was kept, so many credentials.
    Kept(usize),
    /// What was kept cannot be had any more, and why: it is a new one.
    Lost(String),
}

/// The credentials of one machine.
pub struct Vault {
    inner: Mutex<Inner>,
    partition: Arc<Partition>,
    identity: Identity,
    policy: UsePolicy,
}

/// What there is under the lock.
struct Inner {
    pages: Pages,
    table: Table,
    random: Random,
    keeper: Option<Box<dyn Keeper>>,
    sealed_key: Vec<u8>,
    /// Of blobs in this boot.
    blobs: u64,
    /// The generation that the keeper was last given.
    given: u64,
    /// Whether something is to be kept that is not.
    dirty: bool,
    /// For which service the credential is used that is used now, and which one was added, for the event.
    target: Option<String>,
    added: Option<Handle>,
}

/// Where the vault's own keys are: first that of what is kept, then that of blobs, which is another at each boot.
const OWN: usize = 0;
const BLOB_KEY: usize = 32;

impl core::fmt::Debug for Vault {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Vault")
            .field("identity", &self.identity)
            .field("credentials", &self.lock().table.iter().count())
            .finish_non_exhaustive()
    }
}

impl Vault {
    /// Opens the vault of a machine in these pages, which become VTL1's; 32 credentials fit into each. No other vault of the partition may
    /// be in them. What `keeper` keeps is taken up, or a new vault is made. Without a keeper nothing outlives the boot.
    ///
    /// # Errors
    /// [`VaultError::Store`] for what was kept of another machine, is older than what was last kept, or was changed;
    /// [`VaultError::Keeper`]; the partition's, for pages that cannot become VTL1's.
    pub fn open(
        partition: Arc<Partition>,
        pages: &[Gpn],
        config: Config,
        keeper: Option<Box<dyn Keeper>>,
    ) -> Result<(Self, Opened), VaultError> {
        let pages = Pages::take(Arc::clone(&partition), pages)?;
        if pages.capacity() < 2 {
            return Err(VaultError::Full);
        }
        let Config { identity, policy, seed } = config;
        let mut random = Random::new(seed.as_bytes().first_chunk().ok_or(VaultError::Request("the seed has not 32 bytes"))?);
        let table = Table::new(pages.capacity());
        let mut own = Record::empty();
        own.put(BLOB_KEY, &Key::from(random.bytes::<32>()));
        pages.write(OWN, &own)?;
        let mut inner =
            Inner { pages, table, random, keeper, sealed_key: Vec::new(), blobs: 0, given: 0, dirty: false, target: None, added: None };
        let opened = inner.take_up(&identity)?;
        Ok((Self { inner: Mutex::new(inner), partition, identity, policy }, opened))
    }

    /// The sealed key in what is kept of a vault: a keeper may have it released before the vault is opened. Nothing of the store is
    /// believed by it.
    pub fn sealed_key(store: &[u8]) -> Option<&[u8]> {
        Some(sealed::header(store).ok()?.sealed_key)
    }

    /// Keeps what is not kept yet. Where nothing is, or there is no keeper, nothing is done.
    ///
    /// # Errors
    /// [`VaultError::Keeper`]; what was kept before, or all of what is there now, is kept then.
    pub fn commit(&self) -> Result<(), VaultError> {
        let mut inner = self.lock();
        if inner.dirty { inner.commit(&self.identity) } else { Ok(()) }
    }

    /// The same, when a caller that may ask wants it.
    ///
    /// # Errors
    /// As [`commit`](Self::commit); [`VaultError::Caller`].
    pub fn commit_for(&self, caller: &Caller) -> Result<(), VaultError> {
        self.perform(caller, "commit", None, |inner, _| if inner.dirty { inner.commit(&self.identity) } else { Ok(()) })
    }

    /// Has everything be kept under a new key.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub fn rotate(&self) -> Result<(), VaultError> {
        let mut inner = self.lock();
        let old = (inner.pages.read(OWN)?, inner.sealed_key.clone());
        let rotated = inner.new_key().and_then(|()| inner.commit(&self.identity));
        if rotated.is_err() {
            inner.sealed_key = old.1;
            inner.pages.write(OWN, &old.0)?;
        }
        rotated
    }

    /// How many credentials there are, sessions included.
    pub fn len(&self) -> usize {
        self.lock().table.iter().count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Does something for a caller that may ask, and records what came of it.
    fn perform<T>(
        &self,
        caller: &Caller,
        operation: &'static str,
        credential: Option<Handle>,
        run: impl FnOnce(&mut Inner, &Digest) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let asks = self.may_ask(caller).ok_or(VaultError::Caller);
        let (done, target, added) = asks.map_or_else(
            |refused| (Err(refused), None, None),
            |module| {
                let mut inner = self.lock();
                let done = run(&mut inner, module);
                (done, inner.target.take(), inner.added.take())
            },
        );
        let (status, code) = done.as_ref().err().map_or((HvStatus::SUCCESS, None), |error| (error.status(), Some(error.code())));
        let (operation, credential) = (operation.into(), credential.or(added).map(|handle| handle.0));
        let what = What::Credential { operation, credential, caller: caller.module, target };
        self.partition.record(Some(caller.vp), Vtl::Vtl0, what, status, code);
        done
    }

    /// The module that asks, if any may and this one does.
    fn may_ask<'c>(&self, caller: &'c Caller) -> Option<&'c Digest> {
        caller.module.as_ref().filter(|module| self.policy.allows_caller(module, true))
    }

    /// A panic of another thread leaves every credential as sound as any: each is replaced whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn take_up(&mut self, identity: &Identity) -> Result<Opened, VaultError> {
        let Some(keeper) = &mut self.keeper else {
            self.new_key()?;
            return Ok(Opened::New);
        };
        let Some(store) = keeper.read()? else {
            self.new_key()?;
            self.commit(identity)?;
            return Ok(Opened::New);
        };
        let header = sealed::header(&store)?;
        if header.vm != identity.vm {
            return Err(VaultError::Store("it is another machine's"));
        }
        let key = match keeper.unseal(header.sealed_key) {
            Ok(key) => key,
            Err(KeeperError::Lost(why)) => {
                self.new_key()?;
                self.commit(identity)?;
                return Ok(Opened::Lost(why));
            }
            Err(error) => return Err(error.into()),
        };
        let reached = keeper.counter()?;
        if header.generation < reached {
            return Err(VaultError::Store("it is older than what was last kept"));
        }
        let mut count = 0_usize;
        sealed::open_store(&key, &store, |handle, credential, record| {
            self.table.restore(handle, credential)?;
            self.pages.write(Table::place(handle), &record)?;
            count = count.saturating_add(1);
            Ok(())
        })?;
        // what was kept when a crash came before the counter moved
        if header.generation > reached.saturating_add(1) {
            return Err(VaultError::Store("it is of a machine that has come further than this one"));
        }
        keeper.advance(header.generation)?;
        self.table.restored(header.next);
        self.sealed_key = header.sealed_key.to_vec();
        self.put_own(&key)?;
        Ok(Opened::Kept(count))
    }

    /// Makes a key for the vault, and has it sealed.
    fn new_key(&mut self) -> Result<(), VaultError> {
        let key = Key::from(self.random.bytes::<32>());
        if let Some(keeper) = &mut self.keeper {
            self.sealed_key = keeper.seal(&key)?;
        }
        self.put_own(&key)
    }

    /// The key of what is kept; that of blobs stays.
    fn put_own(&self, key: &Key) -> Result<(), VaultError> {
        let mut own = self.pages.read(OWN)?;
        own.put(0, key);
        self.pages.write(OWN, &own)
    }

    fn own_key(&self) -> Result<Key, VaultError> {
        self.pages.key(OWN, 0, 32)
    }

    fn blob_key(&self) -> Result<Key, VaultError> {
        self.pages.key(OWN, BLOB_KEY, 32)
    }

    fn commit(&mut self, identity: &Identity) -> Result<(), VaultError> {
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        let reached = keeper.counter()?;
        if self.given > reached {
            // what was given last may be kept, or not: it is followed, so that whoever has a copy of it has an older one
            self.keep(identity, self.given)?;
        }
        self.keep(identity, reached.max(self.given).checked_add(1).ok_or(VaultError::Full)?)?;
        self.dirty = false;
        Ok(())
    }

    /// Has the keeper keep everything as this generation, the one after its counter.
    fn keep(&mut self, identity: &Identity, generation: u64) -> Result<(), VaultError> {
        let key = self.own_key()?;
        let Some(keeper) = &mut self.keeper else { return Ok(()) };
        let kept = self.table.iter().filter(|(_, credential)| credential.persistent);
        let pages = &self.pages;
        let head = (generation, self.table.next, &*self.sealed_key);
        let store = sealed::store(&key, identity, head, kept, |handle| pages.read(Table::place(handle)))?;
        self.given = generation;
        keeper.replace(&store)?;
        Ok(keeper.advance(generation)?)
    }
}
