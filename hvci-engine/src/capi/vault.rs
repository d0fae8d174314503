//! The credential vault for C: [`HvciKeeperV1`] is a [`Keeper`], and the functions of the header.

// UNSAFETY: as in `engine` and `host`: names that the linker sees, pointers of C, calls of its functions.
#![expect(unsafe_code, reason = "pointers and calls of C; see UNSAFETY above")]
#![expect(clippy::missing_safety_doc, reason = "the contract is the same for all: rules 1 to 4 of the module")]

use core::{ffi::c_void, sync::atomic::Ordering};

use zeroize::Zeroizing;

use super::{
    engine::{Answer, HvciEngine, put, with, with_block},
    tables::{
        HVCI_MAX_KEPT, HVCI_NO_CODE, HVCI_VAULT_KEPT, HVCI_VAULT_KEY_SIZE, HVCI_VAULT_LOST, HVCI_VAULT_NEW, HVCI_VAULT_SEED_SIZE,
        HvciKeeperV1, HvciSink, HvciVaultV1, list, take,
    },
};
use crate::{
    addr::{Gpa, Gpn},
    status::HvStatus,
    time::UnixTime,
    vault::{Caller, Config, Identity, Keeper, KeeperError, Key, Opened, UsePolicy, Vault, VaultError},
};

/// Opens the engine's vault, before the guest runs and behind hvci_restore: its pages become VTL 1's, which neither the guest nor a device
/// reads, and are wiped. `vault` and the keeper's table are copied. `*opened`, if it is not null, is HVCI_VAULT_*, or 0 on failure. Pages that
/// were taken by then stay VTL 1's, without secrets, and may be named again.
///
/// HV_STATUS_INVALID_PARTITION_STATE: there is a vault. HV_STATUS_ACCESS_DENIED: what was kept is another machine's, older than what was last
/// kept, or changed. HV_STATUS_OPERATION_DENIED: the keeper failed, or does not release the key. HV_STATUS_INVALID_PARAMETER: null, a version
/// or size that is not known, a function that is missing, pages that are no RAM or fewer than what was kept takes, a policy that is none.
/// HV_STATUS_INSUFFICIENT_MEMORY: no pages. Others for pages that something else has. The host's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_vault_open(engine: *const HvciEngine, vault: *const HvciVaultV1, opened: *mut u32) -> u16 {
    let run = |engine: &HvciEngine| {
        if engine.vault_taken.swap(true, Ordering::SeqCst) {
            return Err(HvStatus::INVALID_PARTITION_STATE);
        }
        // SAFETY: rules 1 and 3.
        let made = unsafe { open(engine, vault) };
        let found = made.and_then(|(made, found)| engine.vault.set(made).map(|()| found).map_err(|_| HvStatus::INVALID_PARTITION_STATE));
        match found {
            Ok(found) => {
                // SAFETY: null or the caller's to write to, by rule 1.
                unsafe { put(opened, found) };
                Ok(())
            }
            Err(status) => {
                engine.vault_taken.store(false, Ordering::SeqCst);
                Err(status)
            }
        }
    };
    // SAFETY: rule 1, for this and all below.
    unsafe {
        put(opened, 0);
        with(engine, run)
    }
}

/// As hvci_vtl_call, and answers the vault's functions too. `code_gpa` is the guest-physical address of the instruction that made the call, as
/// the VMM itself found it at the exit by the guest's page tables; HVCI_NO_CODE if the instruction lies over the end of a page, or was not
/// found. The module whose verified code is there is who asks: HV_STATUS_ACCESS_DENIED if it is none, or none that may.
/// HV_STATUS_INSUFFICIENT_MEMORY: the answer has no room, and `*answer` is how many bytes it takes, or the vault is full, and it is 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_secure_call(
    engine: *const HvciEngine,
    block: *const u8,
    vp: u32,
    code_gpa: u64,
    time: i64,
    answer: *mut u64,
) -> u16 {
    // SAFETY: rule 1.
    unsafe {
        with_block(engine, block, answer, |engine, block| match engine.vault.get() {
            Some(vault) if Vault::answers(block) => {
                let code = (code_gpa != HVCI_NO_CODE).then_some(Gpa(code_gpa));
                let module = code.and_then(|gpa| engine.loader.module_at(gpa.gpn())).and_then(|module| module.digest);
                vault.call(block, &Caller { module, vp, time: UnixTime(time) })
            }
            _ => engine.loader.call(block, vp, UnixTime(time)),
        })
    }
}

/// Has the keeper keep what it does not keep yet; without a keeper nothing is done. HV_STATUS_INVALID_PARTITION_STATE: there is no vault.
/// HV_STATUS_OPERATION_DENIED: the keeper failed; what was kept before, or all of what is there now, is kept then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_vault_commit(engine: *const HvciEngine) -> u16 {
    // SAFETY: rule 1.
    unsafe { with(engine, |engine| kept(engine, Vault::commit)) }
}

/// Has the keeper keep everything under a new key. As hvci_vault_commit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_vault_rotate(engine: *const HvciEngine) -> u16 {
    // SAFETY: rule 1.
    unsafe { with(engine, |engine| kept(engine, Vault::rotate)) }
}

fn kept(engine: &HvciEngine, keep: impl FnOnce(&Vault) -> Result<(), VaultError>) -> Answer {
    keep(engine.vault.get().ok_or(HvStatus::INVALID_PARTITION_STATE)?).map_err(|error| error.status())
}

/// # Safety
/// Rules 1 and 3.
unsafe fn open(engine: &HvciEngine, vault: *const HvciVaultV1) -> Result<(Vault, u32), HvStatus> {
    // SAFETY: this function's contract.
    let HvciVaultV1 { pages, page_count, vm_id: vm, boot_id: boot, seed, policy, policy_len, keeper, .. } = unsafe { take(vault) }?;
    // SAFETY: as above.
    let (pages, seed, policy) = unsafe { (list(pages, page_count)?, list(seed, HVCI_VAULT_SEED_SIZE)?, list(policy, policy_len)?) };
    let pages: Vec<Gpn> = pages.iter().copied().map(Gpn).collect();
    let seed = Key::new(seed).ok_or(HvStatus::INVALID_PARAMETER)?;
    let policy = match policy {
        [] => UsePolicy::default(),
        json => serde_json::from_slice(json).map_err(|_| HvStatus::INVALID_PARAMETER)?,
    };
    // SAFETY: as above.
    let keeper: Option<Box<dyn Keeper>> = if keeper.is_null() { None } else { Some(Box::new(unsafe { CKeeper::new(keeper) }?)) };
    let config = Config { identity: Identity { vm, boot }, policy, seed };
    let (vault, opened) = Vault::open(engine.partition.clone(), &pages, config, keeper).map_err(|error| error.status())?;
    let found = match opened {
        Opened::New => HVCI_VAULT_NEW,
        Opened::Kept(_) => HVCI_VAULT_KEPT,
        Opened::Lost(_) => HVCI_VAULT_LOST,
    };
    Ok((vault, found))
}

/// A keeper written in C.
struct CKeeper {
    /// Every function is there.
    table: HvciKeeperV1,
}

// SAFETY: rule 4 has its functions be callable with its context from any thread.
unsafe impl Send for CKeeper {}

impl CKeeper {
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for a table that is not as it must be.
    ///
    /// # Safety
    /// As [`take`]; and what is in the table stays callable as long as this lives (rules 1 and 3).
    unsafe fn new(table: *const HvciKeeperV1) -> Result<Self, HvStatus> {
        // SAFETY: this function's contract.
        let table = unsafe { take(table) }?;
        let HvciKeeperV1 { read, replace, counter, advance, seal, unseal, .. } = table;
        let whole = read.is_some() && replace.is_some() && counter.is_some() && advance.is_some() && seal.is_some() && unseal.is_some();
        if whole { Ok(Self { table }) } else { Err(HvStatus::INVALID_PARAMETER) }
    }

    /// The bytes that C gives the sink during a call.
    fn collected(&self, what: &str, call: impl FnOnce(HvciSink, *mut c_void) -> Option<u16>) -> Result<Vec<u8>, KeeperError> {
        let mut collected = Collected { bytes: Vec::new(), whole: true };
        answer(what, call(Some(collect), (&raw mut collected).cast()))?;
        if collected.whole { Ok(collected.bytes) } else { Err(KeeperError::Io(format!("{what}: more bytes than a keeper keeps"))) }
    }
}

/// What C answered.
fn answer(what: &str, called: Option<u16>) -> Result<(), KeeperError> {
    let status = called.map_or(HvStatus::FEATURE_UNAVAILABLE, HvStatus);
    let why = || format!("{what}: {status}");
    match status {
        HvStatus::SUCCESS => Ok(()),
        HvStatus::ACCESS_DENIED => Err(KeeperError::NotReleased(why())),
        HvStatus::NOT_FOUND => Err(KeeperError::Lost(why())),
        _ => Err(KeeperError::Io(why())),
    }
}

/// Where the bytes of one call go.
struct Collected {
    bytes: Vec<u8>,
    /// Every piece could be taken.
    whole: bool,
}

/// What C gives pieces to.
///
/// # Safety
/// `ctx` is the [`Collected`] of a call that has not returned; rule 1 for the bytes.
unsafe extern "C" fn collect(ctx: *mut c_void, bytes: *const u8, len: usize) {
    // SAFETY: this function's contract; nobody else has it while C does.
    let Some(collected) = (unsafe { ctx.cast::<Collected>().as_mut() }) else { return };
    // SAFETY: this function's contract.
    match unsafe { list(bytes, len) } {
        Ok(piece) if collected.whole && piece.len() <= HVCI_MAX_KEPT.saturating_sub(collected.bytes.len()) => {
            collected.bytes.extend_from_slice(piece);
        }
        _ => collected.whole = false,
    }
}

impl Keeper for CKeeper {
    fn read(&mut self) -> Result<Option<Vec<u8>>, KeeperError> {
        // SAFETY: rule 1, for this and all below: the function is what the header says, and its context lives. The sink gets the context that
        // it wants, which outlives the call.
        let read = |sink, sink_ctx| self.table.read.map(|call| unsafe { call(self.table.ctx, sink, sink_ctx) });
        Ok(Some(self.collected("read", read)?).filter(|bytes| !bytes.is_empty()))
    }

    fn replace(&mut self, bytes: &[u8]) -> Result<(), KeeperError> {
        if bytes.len() > HVCI_MAX_KEPT {
            return Err(KeeperError::Io("replace: more bytes than a keeper keeps".into()));
        }
        // SAFETY: as in `read`; the bytes live until it returns.
        answer("replace", self.table.replace.map(|call| unsafe { call(self.table.ctx, bytes.as_ptr(), bytes.len()) }))
    }

    fn counter(&mut self) -> Result<u64, KeeperError> {
        let mut value = 0;
        // SAFETY: as in `read`; it gets a local.
        answer("counter", self.table.counter.map(|call| unsafe { call(self.table.ctx, &raw mut value) }))?;
        Ok(value)
    }

    fn advance(&mut self, to: u64) -> Result<(), KeeperError> {
        // SAFETY: as in `read`.
        answer("advance", self.table.advance.map(|call| unsafe { call(self.table.ctx, to) }))
    }

    fn seal(&mut self, key: &Key) -> Result<Vec<u8>, KeeperError> {
        let key = key.as_bytes();
        if key.len() != HVCI_VAULT_KEY_SIZE {
            return Err(KeeperError::Io("seal: a key of another size".into()));
        }
        // SAFETY: as in `read`; the key has that length and lives until it returns.
        let seal = |sink, sink_ctx| self.table.seal.map(|call| unsafe { call(self.table.ctx, key.as_ptr(), sink, sink_ctx) });
        self.collected("seal", seal)
    }

    fn unseal(&mut self, sealed: &[u8]) -> Result<Key, KeeperError> {
        let mut key = Zeroizing::new([0; HVCI_VAULT_KEY_SIZE]);
        let to = key.as_mut_ptr();
        // SAFETY: as in `read`; both live until it returns, and the key has that length.
        answer("unseal", self.table.unseal.map(|call| unsafe { call(self.table.ctx, sealed.as_ptr(), sealed.len(), to) }))?;
        Key::new(&*key).ok_or_else(|| KeeperError::Io("unseal: a key of another size".into()))
    }
}

#[cfg(test)]
mod tests {
    use core::ptr;

    use super::*;

    #[test]
    fn no_more_is_taken_than_a_keeper_keeps() {
        let piece = vec![7_u8; HVCI_MAX_KEPT / 2];
        let after = |lens: &[usize]| {
            let mut collected = Collected { bytes: Vec::new(), whole: true };
            for len in lens {
                let from = if *len == usize::MAX { ptr::null() } else { piece.as_ptr() };
                // SAFETY: the context is the one it wants; null is not read, and the others are no longer than the piece.
                unsafe { collect((&raw mut collected).cast(), from, *len) };
            }
            (collected.bytes.len(), collected.whole)
        };
        let half = HVCI_MAX_KEPT / 2;
        assert_eq!(after(&[]), (0, true));
        assert_eq!(after(&[half, half, 0]), (HVCI_MAX_KEPT, true));
        assert!(!after(&[half, half, 1]).1 && !after(&[usize::MAX]).1);
        // what comes behind a piece that is missing is not taken for the rest
        assert_eq!(after(&[3, usize::MAX, 4]), (3, false));
    }

    #[test]
    fn a_keepers_status_says_what_became_of_the_key() {
        let of = |status: HvStatus| answer("unseal", Some(status.0));
        assert_eq!(of(HvStatus::SUCCESS), Ok(()));
        assert!(matches!(of(HvStatus::ACCESS_DENIED), Err(KeeperError::NotReleased(_))));
        assert!(matches!(of(HvStatus::NOT_FOUND), Err(KeeperError::Lost(_))));
        assert!(matches!(of(HvStatus(0x7abc)), Err(KeeperError::Io(why)) if why == "unseal: HV_STATUS 0x7abc"));
        assert!(matches!(answer("unseal", None), Err(KeeperError::Io(_))));
    }
}
