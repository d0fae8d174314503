//! Hierarchies (Part 1, 13): seeds, proofs, authorisation values and policies; TPM2_Clear, TPM2_HierarchyChangeAuth, and lockout.

use super::commands::{Call, Reply};
use super::crypt::{Drbg, Hash, Secret};
use super::public::MAX_DIGEST;
use super::rc::{self, Rc};
use super::state::State;
use super::stored::stored;
use super::wire::{Params, Put, Result};

pub(super) const OWNER: u32 = 0x4000_0001;
pub(super) const NULL: u32 = 0x4000_0007;
pub(super) const PASSWORD: u32 = 0x4000_0009;
pub(super) const LOCKOUT: u32 = 0x4000_000a;
pub(super) const ENDORSEMENT: u32 = 0x4000_000b;
pub(super) const PLATFORM: u32 = 0x4000_000c;
pub(super) const PLATFORM_NV: u32 = 0x4000_000d;

/// Bytes of a seed and of a proof.
const SEED: usize = 64;

/// How a permanent entity is authorised.
#[derive(Clone, Debug, Default)]
pub(super) struct Protected {
    pub(super) auth: Secret,
    pub(super) policy_alg: Option<Hash>,
    pub(super) policy: Vec<u8>,
}
stored!(Protected { auth policy_alg policy });

/// What lasts.
#[derive(Clone, Debug)]
pub(super) struct Hierarchies {
    pub(super) owner: Protected,
    pub(super) endorsement: Protected,
    pub(super) lockout: Protected,
    platform_seed: Secret,
    owner_seed: Secret,
    endorsement_seed: Secret,
    platform_proof: Secret,
    owner_proof: Secret,
    endorsement_proof: Secret,
}
stored!(Hierarchies {
    owner endorsement lockout platform_seed owner_seed endorsement_seed platform_proof owner_proof endorsement_proof
});

impl Hierarchies {
    pub(super) fn new(drbg: &mut Drbg) -> Self {
        let mut secret = || Secret(drbg.bytes(SEED));
        Self {
            owner: Protected::default(),
            endorsement: Protected::default(),
            lockout: Protected::default(),
            platform_seed: secret(),
            owner_seed: secret(),
            endorsement_seed: secret(),
            platform_proof: secret(),
            owner_proof: secret(),
            endorsement_proof: secret(),
        }
    }
}

impl State {
    /// At TPM2_Startup. A reset gives the null hierarchy other secrets.
    pub(super) fn start_hierarchies(&mut self, is_reset: bool) {
        self.platform_enabled = true;
        if is_reset {
            self.reset.null_seed = Secret(self.drbg.bytes(SEED));
            self.reset.null_proof = Secret(self.drbg.bytes(SEED));
        }
    }

    pub(super) fn seed(&self, hierarchy: u32) -> &Secret {
        match hierarchy {
            OWNER => &self.hierarchies.owner_seed,
            ENDORSEMENT => &self.hierarchies.endorsement_seed,
            PLATFORM => &self.hierarchies.platform_seed,
            _ => &self.reset.null_seed,
        }
    }

    pub(super) fn proof(&self, hierarchy: u32) -> &Secret {
        match hierarchy {
            OWNER => &self.hierarchies.owner_proof,
            ENDORSEMENT => &self.hierarchies.endorsement_proof,
            PLATFORM => &self.hierarchies.platform_proof,
            _ => &self.reset.null_proof,
        }
    }

    /// None for what is no permanent entity with an authorisation.
    pub(super) fn protected(&self, handle: u32) -> Option<&Protected> {
        match handle {
            OWNER => Some(&self.hierarchies.owner),
            ENDORSEMENT => Some(&self.hierarchies.endorsement),
            LOCKOUT => Some(&self.hierarchies.lockout),
            PLATFORM => Some(&self.clear.platform),
            _ => None,
        }
    }

    pub(super) fn is_enabled(&self, hierarchy: u32) -> bool {
        match hierarchy {
            OWNER => self.clear.owner_enabled,
            ENDORSEMENT => self.clear.endorsement_enabled,
            PLATFORM => self.platform_enabled,
            _ => true,
        }
    }

    /// HMAC over what the TPM vouches for: the digest of a ticket. The proof is known to no one else.
    pub(super) fn ticket(&self, hierarchy: u32, tag: u16, parts: &[&[u8]]) -> Vec<u8> {
        let tag = tag.to_be_bytes();
        let all: Vec<&[u8]> = std::iter::once(&tag[..]).chain(parts.iter().copied()).collect();
        Hash::Sha512.hmac(&self.proof(hierarchy).0, &all)
    }
}

/// TPMI_RH_HIERARCHY; null only where a command allows it.
pub(super) fn is_hierarchy(handle: u32) -> bool {
    matches!(handle, OWNER | ENDORSEMENT | PLATFORM | NULL)
}

/// TPM2_HierarchyChangeAuth.
pub(super) fn change_auth(tpm: &mut State, call: &Call, mut p: Params<'_>) -> Result<Reply> {
    let auth = Secret::auth(p.next(|r| r.sized(MAX_DIGEST))?);
    p.end()?;
    match call.handle(0) {
        OWNER => tpm.hierarchies.owner.auth = auth,
        ENDORSEMENT => tpm.hierarchies.endorsement.auth = auth,
        LOCKOUT => tpm.hierarchies.lockout.auth = auth,
        _ => {
            tpm.clear.platform.auth = auth;
            tpm.disorder = true;
        }
    }
    Ok(Reply::default())
}

/// TPM2_Clear: a new owner. Endorsement keys stay what they are.
pub(super) fn clear(tpm: &mut State, _: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    let mut fresh = Hierarchies::new(&mut tpm.drbg);
    std::mem::swap(&mut fresh.platform_seed, &mut tpm.hierarchies.platform_seed);
    std::mem::swap(&mut fresh.platform_proof, &mut tpm.hierarchies.platform_proof);
    std::mem::swap(&mut fresh.endorsement_seed, &mut tpm.hierarchies.endorsement_seed);
    tpm.hierarchies = fresh;
    tpm.clear.owner_enabled = true;
    tpm.clear.endorsement_enabled = true;
    tpm.objects.flush_owners();
    tpm.nv.clear();
    tpm.persistent.retain(|_, object| object.hierarchy == PLATFORM);
    tpm.lockout.clear();
    tpm.clock = 0;
    tpm.clock_safe = true;
    tpm.reset_count = 0;
    tpm.reset.restart_count = 0;
    tpm.reset.clear_count = 0;
    tpm.reset.pcr_counter = tpm.reset.pcr_counter.wrapping_add(1);
    tpm.disorder = true;
    Ok(Reply::default())
}

/// TPM2_DictionaryAttackLockReset.
pub(super) fn lock_reset(tpm: &mut State, _: &Call, p: Params<'_>) -> Result<Reply> {
    p.end()?;
    tpm.lockout.failed_tries = 0;
    Ok(Reply::default())
}

/// TPM2_DictionaryAttackParameters.
pub(super) fn lockout_parameters(tpm: &mut State, _: &Call, mut p: Params<'_>) -> Result<Reply> {
    let max_tries = p.next(|r| r.u32())?;
    let recovery = p.next(|r| r.u32())?;
    let lockout_recovery = p.next(|r| r.u32())?;
    p.end()?;
    tpm.lockout.max_tries = max_tries;
    tpm.lockout.recovery = recovery;
    tpm.lockout.lockout_recovery = lockout_recovery;
    Ok(Reply::default())
}

/// TPMI_RH_HIERARCHY of a parameter.
pub(super) fn read_hierarchy(r: &mut super::wire::Reader<'_>) -> Result<u32> {
    let handle = r.u32()?;
    if is_hierarchy(handle) { Ok(handle) } else { Err(rc::VALUE) }
}

/// Whether a disabled hierarchy keeps a handle from being used.
pub(super) fn check_permanent(tpm: &State, handle: u32) -> std::result::Result<(), Rc> {
    if tpm.is_enabled(handle) { Ok(()) } else { Err(rc::HIERARCHY) }
}

/// TPMT_TK_*: tag, hierarchy, digest.
pub(super) fn put_ticket(out: &mut Vec<u8>, tag: u16, hierarchy: u32, digest: &[u8]) {
    out.u16(tag);
    out.u32(hierarchy);
    out.sized(digest);
}
