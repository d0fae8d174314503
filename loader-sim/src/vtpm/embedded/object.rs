//! Objects: loaded ones in their three slots, and what is read from them. A persistent object takes a slot for as long as a command uses it.

use std::sync::Arc;

use super::commands::{Call, Reply};
use super::crypt::Signer;
use super::hierarchy::{ENDORSEMENT, NULL, OWNER};
use super::public::{ALG_KEYEDHASH, Kind, Public, Sensitive, attribute};
use super::rc;
use super::state::State;
use super::stored::{Stored, stored};
use super::wire::{Params, Put, Reader, Result};

pub(super) const TRANSIENT: u32 = 0x8000_0000;
pub(super) const PERSISTENT: u32 = 0x8100_0000;
/// Persistent handles from here on are the platform's.
pub(super) const PLATFORM_PERSISTENT: u32 = 0x8180_0000;
pub(super) const SLOTS: usize = 3;

/// A key or sealed data.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) public: Public,
    /// None if only the public area was loaded.
    pub(super) sensitive: Option<Sensitive>,
    pub(super) name: Vec<u8>,
    pub(super) qualified: Vec<u8>,
    pub(super) hierarchy: u32,
    pub(super) external: bool,
    /// Gone with the next TPM2_Startup(CLEAR), as is all below it.
    pub(super) st_clear: bool,
    /// The persistent handle that it was copied from for one command.
    pub(super) evict: Option<u32>,
    /// Of a key that signs.
    pub(super) signer: Option<Arc<Signer>>,
}

impl Object {
    pub(super) fn new(public: Public, sensitive: Option<Sensitive>, hierarchy: u32) -> Self {
        let name = public.name();
        let mut object = Self {
            public,
            sensitive,
            qualified: name.clone(),
            name,
            hierarchy,
            external: false,
            st_clear: false,
            evict: None,
            signer: None,
        };
        object.st_clear = object.public.has(attribute::ST_CLEAR);
        object.prepare();
        object
    }

    /// Parses a signing key, once.
    fn prepare(&mut self) {
        if let (Kind::Ecc { unique, .. }, Some(sensitive), true) = (&self.public.kind, &self.sensitive, self.public.has(attribute::SIGN)) {
            self.signer = Signer::new(&sensitive.data, unique).map(Arc::new);
        }
    }

    /// The name after the parent's qualified name, all hashed.
    pub(super) fn qualify(&mut self, parent: &[u8]) {
        if let Some(hash) = self.public.name_alg {
            self.qualified = [&hash.id().to_be_bytes()[..], &hash.digest(&[parent, &self.name])].concat();
        }
    }

    /// May have children.
    pub(super) fn is_parent(&self) -> bool {
        !self.external
            && self.public.is_restricted_decryption()
            && self.sensitive.is_some()
            && self.public.type_id() != ALG_KEYEDHASH
            && self.public.name_alg.is_some()
    }

    /// An asymmetric key that credentials may be made for.
    pub(super) fn is_storage_key(&self) -> bool {
        self.public.type_id() != ALG_KEYEDHASH && self.public.is_restricted_decryption()
    }
}

impl Stored for Object {
    fn store(&self, out: &mut Vec<u8>) {
        self.public.store(out);
        self.sensitive.store(out);
        self.qualified.store(out);
        self.hierarchy.store(out);
        self.external.store(out);
        self.st_clear.store(out);
    }

    fn restore(r: &mut Reader<'_>) -> Option<Self> {
        let mut object = Self::new(Stored::restore(r)?, Stored::restore(r)?, NULL);
        object.qualified = Stored::restore(r)?;
        object.hierarchy = Stored::restore(r)?;
        object.external = Stored::restore(r)?;
        object.st_clear = Stored::restore(r)?;
        Some(object)
    }
}

/// The slots.
#[derive(Debug, Default)]
pub(super) struct Objects {
    slots: [Option<Object>; SLOTS],
}
stored!(Objects { slots });

impl Objects {
    fn index(handle: u32) -> Option<usize> {
        usize::try_from(handle.checked_sub(TRANSIENT)?).ok().filter(|&index| index < SLOTS)
    }

    /// What a handle of a slot may be, loaded or not.
    pub(super) fn is_handle(handle: u32) -> bool {
        Self::index(handle).is_some()
    }

    pub(super) fn get(&self, handle: u32) -> Option<&Object> {
        self.slots.get(Self::index(handle)?)?.as_ref()
    }

    pub(super) fn is_full(&self) -> bool {
        self.slots.iter().all(Option::is_some)
    }

    /// Into the first free slot.
    pub(super) fn add(&mut self, object: Object) -> Result<u32> {
        for (slot, handle) in self.slots.iter_mut().zip(TRANSIENT..) {
            if slot.is_none() {
                *slot = Some(object);
                return Ok(handle);
            }
        }
        Err(rc::OBJECT_MEMORY)
    }

    pub(super) fn remove(&mut self, handle: u32) -> Option<Object> {
        self.slots.get_mut(Self::index(handle)?)?.take()
    }

    /// Copies of persistent objects, at the end of a command.
    pub(super) fn remove_copies(&mut self) {
        self.retain(|object| object.evict.is_none());
    }

    /// Those of the owner's and the endorsement hierarchy.
    pub(super) fn flush_owners(&mut self) {
        self.retain(|object| !matches!(object.hierarchy, OWNER | ENDORSEMENT));
    }

    fn retain(&mut self, keep: impl Fn(&Object) -> bool) {
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|object| !keep(object)) {
                *slot = None;
            }
        }
    }

    pub(super) fn handles(&self) -> Vec<u32> {
        self.slots.iter().zip(TRANSIENT..).filter(|(slot, _)| slot.is_some()).map(|(_, handle)| handle).collect()
    }
}

impl State {
    /// The object of a handle that was found to be loaded.
    pub(super) fn object(&self, handle: u32) -> Result<&Object> {
        self.objects.get(handle).ok_or(rc::FAILURE)
    }

    /// The handle of a copy of a persistent object.
    pub(super) fn load_persistent(&mut self, handle: u32, for_eviction: bool) -> Result<u32> {
        let enabled = if handle >= PLATFORM_PERSISTENT { self.platform_enabled } else { self.clear.owner_enabled };
        if !enabled {
            return Err(rc::HANDLE);
        }
        if self.objects.is_full() {
            return Err(rc::OBJECT_MEMORY);
        }
        let mut object = self.persistent.get(&handle).ok_or(rc::HANDLE)?.clone();
        if object.hierarchy == ENDORSEMENT && !self.clear.endorsement_enabled && !for_eviction {
            return Err(rc::HANDLE);
        }
        object.evict = Some(handle);
        self.objects.add(object)
    }
}

/// TPM2_ReadPublic.
pub(super) fn read_public(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let object = tpm.object(call.handle(0))?;
    let mut reply = Reply::default();
    reply.body.sized(&object.public.marshal());
    reply.body.sized(&object.name);
    reply.body.sized(&object.qualified);
    Ok(reply)
}

/// TPM2_Unseal.
pub(super) fn unseal(tpm: &mut State, call: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let object = tpm.object(call.handle(0))?;
    if object.public.type_id() != ALG_KEYEDHASH {
        return Err(rc::TYPE.handle(1));
    }
    if object.public.has(attribute::DECRYPT | attribute::SIGN | attribute::RESTRICTED) {
        return Err(rc::ATTRIBUTES.handle(1));
    }
    let mut reply = Reply::default();
    reply.body.sized(object.sensitive.as_ref().map_or(&[], |sensitive| &sensitive.data.0));
    Ok(reply)
}
