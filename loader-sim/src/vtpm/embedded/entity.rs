//! What a handle names: whether it may stand where it does, whether it is there, its name, authorisation value and policy.

use super::commands::{Command, HandleType};
use super::crypt::{Hash, Secret};
use super::hierarchy::{ENDORSEMENT, LOCKOUT, NULL, OWNER, PLATFORM, check_permanent};
use super::object::{Objects, PERSISTENT};
use super::public::attribute;
use super::rc::{self, Rc};
use super::session::{ACTIVE, HMAC_SESSION, POLICY_SESSION};
use super::state::State;
use super::wire::{Reader, Result};
use super::{nv, pcr};

/// TPM_HT.
pub(super) fn handle_type(handle: u32) -> u32 {
    handle >> 24
}

fn is_session(handle: u32, first: u32) -> bool {
    handle.checked_sub(first).and_then(|index| usize::try_from(index).ok()).is_some_and(|index| index < ACTIVE)
}

pub(super) fn is_policy_session(handle: u32) -> bool {
    is_session(handle, POLICY_SESSION)
}

pub(super) fn is_hmac_session(handle: u32) -> bool {
    is_session(handle, HMAC_SESSION)
}

fn is_object(handle: u32) -> bool {
    Objects::is_handle(handle) || handle_type(handle) == handle_type(PERSISTENT)
}

fn is_nv(handle: u32) -> bool {
    handle_type(handle) == handle_type(nv::FIRST)
}

fn is_pcr(handle: u32) -> bool {
    handle < pcr::COUNT
}

fn is_entity(handle: u32) -> bool {
    matches!(handle, OWNER | ENDORSEMENT | PLATFORM | LOCKOUT) || is_object(handle) || is_nv(handle) || is_pcr(handle)
}

impl HandleType {
    pub(super) fn read(self, r: &mut Reader<'_>) -> Result<u32> {
        let handle = r.u32()?;
        let fits = match self {
            Self::Object => is_object(handle),
            Self::ObjectOrNull => handle == NULL || is_object(handle),
            Self::Context => Objects::is_handle(handle) || is_hmac_session(handle) || is_policy_session(handle),
            Self::Pcr => is_pcr(handle),
            Self::PcrOrNull => handle == NULL || is_pcr(handle),
            Self::Entity => is_entity(handle),
            Self::EntityOrNull => handle == NULL || is_entity(handle),
            Self::Hierarchy => matches!(handle, OWNER | ENDORSEMENT | PLATFORM | NULL),
            Self::HierarchyAuth => matches!(handle, OWNER | ENDORSEMENT | PLATFORM | LOCKOUT),
            Self::ClearAuth => matches!(handle, PLATFORM | LOCKOUT),
            Self::Lockout => handle == LOCKOUT,
            Self::Provision => matches!(handle, OWNER | PLATFORM),
            Self::NvAuth => matches!(handle, OWNER | PLATFORM) || is_nv(handle),
            Self::NvIndex => is_nv(handle),
            Self::Policy => is_policy_session(handle),
        };
        if fits { Ok(handle) } else { Err(rc::VALUE) }
    }
}

impl State {
    /// Whether all that the handles name is there. A persistent object's is replaced by that of its copy.
    pub(super) fn load_handles(&mut self, command: &Command, handles: &mut [u32]) -> std::result::Result<(), Rc> {
        const EVICT_CONTROL: u32 = 0x120;
        for (index, handle) in handles.iter_mut().enumerate() {
            let missing = rc::REFERENCE_H0.nth(index);
            let is_loaded = match handle_type(*handle) {
                0x40 => check_permanent(self, *handle),
                0x80 => self.objects.get(*handle).map(drop).ok_or(missing),
                0x81 => self.load_persistent(*handle, command.code == EVICT_CONTROL).map(|copy| *handle = copy),
                kind @ (0x02 | 0x03) => match self.session(*handle) {
                    None => Err(missing),
                    Some(session) if session.is_policy != (kind == 0x03) => Err(rc::HANDLE),
                    Some(_) => Ok(()),
                },
                0x01 => self.check_nv(*handle),
                _ => Ok(()),
            };
            is_loaded.map_err(|e| e.handle(u32::try_from(index + 1).unwrap_or(1)))?;
        }
        Ok(())
    }

    pub(super) fn entity_name(&self, handle: u32) -> Vec<u8> {
        match handle_type(handle) {
            0x80 => self.objects.get(handle).map_or_else(Vec::new, |object| object.name.clone()),
            0x01 => self.nv.get(handle).map_or_else(Vec::new, |index| index.name()),
            _ => handle.to_be_bytes().to_vec(),
        }
    }

    /// Without zeros at the end.
    pub(super) fn entity_auth(&self, handle: u32) -> Secret {
        match handle_type(handle) {
            0x40 => self.protected(handle).map_or_else(Secret::default, |protected| protected.auth.clone()),
            0x80 => {
                let sensitive = self.objects.get(handle).and_then(|object| object.sensitive.as_ref());
                sensitive.map_or_else(Secret::default, |sensitive| Secret::auth(&sensitive.auth.0))
            }
            0x01 => self.nv.get(handle).map_or_else(Secret::default, |index| index.auth.clone()),
            _ => Secret::default(),
        }
    }

    pub(super) fn entity_policy(&self, handle: u32) -> (Option<Hash>, &[u8]) {
        match handle_type(handle) {
            0x40 => self.protected(handle).map_or((None, &[][..]), |protected| (protected.policy_alg, &protected.policy)),
            0x80 => self.objects.get(handle).map_or((None, &[][..]), |object| (object.public.name_alg, &object.public.policy)),
            0x01 => self.nv.get(handle).map_or((None, &[][..]), |index| (Some(index.name_alg), &index.policy)),
            _ => (None, &[]),
        }
    }

    pub(super) fn entity_hierarchy(&self, handle: u32) -> u32 {
        match handle_type(handle) {
            0x40 if matches!(handle, PLATFORM | ENDORSEMENT | NULL) => handle,
            0x01 if self.nv.get(handle).is_some_and(|index| index.has(nv::PLATFORM_CREATE)) => PLATFORM,
            0x80 => self.objects.get(handle).map_or(NULL, |object| object.hierarchy),
            _ => OWNER,
        }
    }

    /// Not under dictionary-attack protection.
    pub(super) fn is_exempt(&self, handle: u32) -> bool {
        match handle_type(handle) {
            0x40 => handle != LOCKOUT,
            0x80 => self.objects.get(handle).is_some_and(|object| object.public.has(attribute::NO_DA)),
            0x01 => self.nv.get(handle).is_some_and(|index| index.has(nv::NO_DA)),
            _ => true,
        }
    }
}
