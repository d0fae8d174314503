//! What stands in the header besides functions: numbers, and tables with a version and a size.

// UNSAFETY: tables of C are read through pointers, as far as they say that they reach.
#![expect(unsafe_code, reason = "tables behind pointers; see UNSAFETY above")]

use core::{
    ffi::{c_char, c_void},
    mem::{MaybeUninit, offset_of, size_of},
    ptr,
};

use crate::{access::MapGpaFlags, event, status::HvStatus, vsm::secure_call};

/// Edition of this header: a higher one has more functions, or more fields at the ends of tables. See hvci_version.
pub const HVCI_VERSION: u32 = 3;
/// The version of every table whose name ends in V1.
pub const HVCI_V1: u32 = 1;
/// Version of the form of events. Fields are added to them, never changed.
pub const HVCI_EVENT_SCHEMA: u32 = 1;
/// Bytes of the argument block of a VTL call.
pub const HVCI_VTL_CALL_SIZE: usize = 104;
/// Most guest pages that one frame may back.
pub const HVCI_MAX_ALIASES: usize = 65536;
/// Where a processor could be named: none did it.
pub const HVCI_NO_VP: u32 = 0xffff_ffff;
/// Of hvci_secure_call: it is not known which page the instruction is in, or it is in two.
pub const HVCI_NO_CODE: u64 = 0xffff_ffff_ffff_ffff;
/// Bytes of HvciVaultV1.seed.
pub const HVCI_VAULT_SEED_SIZE: usize = 32;
/// Bytes of a vault's key, as a keeper seals it.
pub const HVCI_VAULT_KEY_SIZE: usize = 32;
/// Most bytes that a keeper keeps, of the vault or of a sealed key.
pub const HVCI_MAX_KEPT: usize = 0x100_0000;

/// HV_MAP_GPA_FLAGS: loads.
pub const HV_MAP_GPA_READABLE: u32 = 0x1;
/// Stores.
pub const HV_MAP_GPA_WRITABLE: u32 = 0x2;
/// Fetches in kernel mode; without mode-based execution control, fetches in both.
pub const HV_MAP_GPA_KERNEL_EXECUTABLE: u32 = 0x4;
/// Fetches in user mode.
pub const HV_MAP_GPA_USER_EXECUTABLE: u32 = 0x8;
/// Supervisor shadow-stack accesses.
pub const HV_MAP_GPA_SUPERVISOR_SHADOW_STACK: u32 = 0x10;

/// A kind of access: a load.
pub const HVCI_ACCESS_READ: u32 = 0;
/// A store.
pub const HVCI_ACCESS_WRITE: u32 = 1;
/// An instruction fetch at CPL 0 to 2.
pub const HVCI_ACCESS_KERNEL_EXECUTE: u32 = 2;
/// An instruction fetch at CPL 3.
pub const HVCI_ACCESS_USER_EXECUTE: u32 = 3;

/// After an intercept: run the instruction again; a write to a register may happen.
pub const HVCI_ACTION_RESUME: u32 = 0;
/// Go on behind the instruction.
pub const HVCI_ACTION_SKIP: u32 = 1;
/// Resume; an exception has been injected.
pub const HVCI_ACTION_INJECTED_FAULT: u32 = 2;
/// Stop the machine: it cannot go on.
pub const HVCI_ACTION_TERMINATE: u32 = 3;

/// Of HvciMemoryInterceptV1.flags: `gva` is known.
pub const HVCI_INTERCEPT_GVA: u32 = 0x1;
/// It was the walk of the guest's page tables, not the access itself.
pub const HVCI_INTERCEPT_PAGE_WALK: u32 = 0x2;

/// Of HvciConfigV1.capabilities: execution in kernel and in user mode are told apart.
pub const HVCI_CAPABILITY_MBEC: u32 = 0x1;
/// HV_MAP_GPA_SUPERVISOR_SHADOW_STACK is known.
pub const HVCI_CAPABILITY_SHADOW_STACK: u32 = 0x2;
/// `protect` binds devices and the VMM's own accesses too. An engine cannot be made without.
pub const HVCI_CAPABILITY_DEVICE_VIEW: u32 = 0x4;
/// `aliases` tells every guest page of a frame. An engine cannot be made without.
pub const HVCI_CAPABILITY_ALIASES: u32 = 0x8;

/// Of HvciConfigV1.trust: the anchors that ship with the engine, each for what it is known for.
pub const HVCI_TRUST_BUILTIN: u32 = 0x1;

/// Of HvciKey.purposes: Windows kernel drivers.
pub const HVCI_PURPOSE_KERNEL: u32 = 0x1;
/// Linux modules.
pub const HVCI_PURPOSE_MODULE: u32 = 0x8;
/// Timestamps.
pub const HVCI_PURPOSE_TIMESTAMP: u32 = 0x20;

/// What hvci_vault_open has found: nothing was kept, and the vault is a new one.
pub const HVCI_VAULT_NEW: u32 = 1;
/// What was kept, and it is there again.
pub const HVCI_VAULT_KEPT: u32 = 2;
/// What was kept, and its key is gone for good: the vault is a new one.
pub const HVCI_VAULT_LOST: u32 = 3;

/// Successive guest pages.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HvciGpnRange {
    /// Number of the first page: its address / 4096.
    pub start: u64,
    /// How many.
    pub pages: u64,
}

/// Gets bytes, piece by piece: of hvci_save, or one event of hvci_take_events. A keeper gets one of the engine's, never null, for the call.
pub type HvciSink = Option<unsafe extern "C" fn(ctx: *mut c_void, bytes: *const u8, len: usize)>;

/// Gets a guest page of a frame; `each_ctx` is what came with it. Anything but HV_STATUS_SUCCESS: there were too many, stop.
pub type HvciEachGpn = Option<unsafe extern "C" fn(each_ctx: *mut c_void, gpn: u64) -> u16>;

/// The guest's memory, as the VMM has it. Functions answer an HV_STATUS, HV_STATUS_SUCCESS if they have done what they were asked. All
/// must be there up to `write`; what comes behind may be null.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciHostV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table, sizeof(HvciHostV1).
    pub size: u32,
    /// Handed to every function.
    pub ctx: *mut c_void,
    /// The frame that backs a guest page. Any other status: it is no RAM.
    pub frame: Option<unsafe extern "C" fn(ctx: *mut c_void, gpn: u64, frame: *mut u64) -> u16>,
    /// Calls `each` with `each_ctx` for every guest page that the frame backs. A failure, or more than HVCI_MAX_ALIASES, ends the engine.
    pub aliases: Option<unsafe extern "C" fn(ctx: *mut c_void, frame: u64, each: HvciEachGpn, each_ctx: *mut c_void) -> u16>,
    /// Sets what a level, and for VTL 0 its devices, may do with the pages: HV_MAP_GPA_*. When it returns, new translations obey. If it
    /// fails, it says how many of the ranges it has `done`, from the first.
    pub protect: Option<
        unsafe extern "C" fn(ctx: *mut c_void, vtl: u8, ranges: *const HvciGpnRange, count: usize, flags: u32, done: *mut usize) -> u16,
    >,
    /// Returns when nothing uses an older permission of the pages: TLBs are flushed, emulated instructions done, memory of devices given
    /// back. HV_STATUS_OBJECT_IN_USE if that takes too long.
    pub quiesce: Option<unsafe extern "C" fn(ctx: *mut c_void, vtl: u8, ranges: *const HvciGpnRange, count: usize) -> u16>,
    /// Reads guest memory, whatever its protection. HV_STATUS_INVALID_PARAMETER where there is no RAM.
    pub read: Option<unsafe extern "C" fn(ctx: *mut c_void, gpa: u64, bytes: *mut u8, len: usize) -> u16>,
    /// Writes guest memory, whatever its protection: all of it or nothing.
    pub write: Option<unsafe extern "C" fn(ctx: *mut c_void, gpa: u64, bytes: *const u8, len: usize) -> u16>,
    /// Nanoseconds of a clock that never goes back, for events. Null: they have no time.
    pub now: Option<unsafe extern "C" fn(ctx: *mut c_void) -> u64>,
    /// Where the guest's kernel has a symbol that a module imports. `library` is empty for a Linux module. `name` is null if it is by
    /// `ordinal`. Any other status, or null here: nobody exports it.
    pub resolve: Option<
        unsafe extern "C" fn(
            ctx: *mut c_void,
            library: *const u8,
            library_len: usize,
            name: *const u8,
            name_len: usize,
            ordinal: u16,
            address: *mut u64,
        ) -> u16,
    >,
}

/// A certificate whose key is trusted.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciKey {
    /// DER.
    pub der: *const u8,
    /// Bytes of it.
    pub len: usize,
    /// HVCI_PURPOSE_*, one or several.
    pub purposes: u32,
    /// 0.
    pub reserved: u32,
}

/// A catalog: what its signer lists is signed, though it carries no signature itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciCatalog {
    /// DER.
    pub der: *const u8,
    /// Bytes of it.
    pub len: usize,
}

/// What an engine is made for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciConfigV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table.
    pub size: u32,
    /// What the host can do: HVCI_CAPABILITY_*. The engine refuses what it cannot.
    pub capabilities: u32,
    /// HVCI_TRUST_BUILTIN or 0.
    pub trust: u32,
    /// The guest's RAM.
    pub ram: *const HvciGpnRange,
    /// How many ranges.
    pub ram_count: usize,
    /// The first frame that backs it.
    pub first_frame: u64,
    /// How many, from the first to the last. Each takes eight bytes of memory.
    pub frame_count: u64,
    /// Virtual processors.
    pub vps: u32,
    /// Events that wait to be taken, at most.
    pub event_capacity: u32,
    /// Certificates that are trusted too.
    pub keys: *const HvciKey,
    /// How many.
    pub key_count: usize,
    /// Catalogs that may speak for a driver. One whose signer is not trusted for it speaks for none.
    pub catalogs: *const HvciCatalog,
    /// How many.
    pub catalog_count: usize,
}

/// A virtual processor that has exited to the VMM. Everything must be there.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciVpV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table.
    pub size: u32,
    /// Handed to every function.
    pub ctx: *mut c_void,
    /// HV_VP_INDEX.
    pub index: u32,
    /// 0.
    pub reserved: u32,
    /// The value of an HV_REGISTER_NAME, in two halves. HV_STATUS_INVALID_PARAMETER for a name that is not known.
    pub get_register: Option<unsafe extern "C" fn(ctx: *mut c_void, name: u32, low: *mut u64, high: *mut u64) -> u16>,
    /// Sets a register.
    pub set_register: Option<unsafe extern "C" fn(ctx: *mut c_void, name: u32, low: u64, high: u64) -> u16>,
    /// Has an exception delivered before the next instruction.
    pub inject: Option<unsafe extern "C" fn(ctx: *mut c_void, vector: u8, has_error_code: bool, error_code: u32)>,
}

/// An access that the second-level table refused.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciMemoryInterceptV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table.
    pub size: u32,
    /// Where.
    pub gpa: u64,
    /// The virtual address that led there, with HVCI_INTERCEPT_GVA.
    pub gva: u64,
    /// Address of the instruction.
    pub rip: u64,
    /// HVCI_ACCESS_*.
    pub access: u32,
    /// HVCI_INTERCEPT_*.
    pub flags: u32,
    /// Privilege level, 0 to 3.
    pub cpl: u32,
    /// 0.
    pub reserved: u32,
}

/// Where a section of a Linux module is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciSection {
    /// Its number in the section header table.
    pub number: u64,
    /// Address of its first byte; of per-CPU variables, their offset in the area of a processor.
    pub address: u64,
}

/// Successive pages of a module.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciArea {
    /// Address of the first page.
    pub address: u64,
    /// Guest page numbers, in order of address. As of a module at one base.
    pub pages: *const u64,
    /// How many.
    pub page_count: usize,
}

/// A module to load: a driver at `base`; a Linux module from `base` up, one kind of memory behind the other, or, with `sections`, each of its
/// sections where that says.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciLoadV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table.
    pub size: u32,
    /// What the guest calls it: UTF-8, ended by a zero.
    pub name: *const c_char,
    /// The signed file, where no guest writes.
    pub file: *const u8,
    /// Bytes of it.
    pub file_len: usize,
    /// Address of the module's first page; 0 with `sections`.
    pub base: u64,
    /// Guest page numbers of its pages, in order of address; null with `sections`. UINT64_MAX for a page of code that is to come when it
    /// is first executed (hvci_on_memory).
    pub pages: *const u64,
    /// How many; 0 with `sections`.
    pub page_count: usize,
    /// Seconds since 1970.
    pub time: i64,
    /// The processor that asks, or HVCI_NO_VP.
    pub vp: u32,
    /// 0.
    pub reserved: u32,
    /// Each section that takes memory, once and in any order. Null: the module is at `base`.
    pub sections: *const HvciSection,
    /// How many.
    pub section_count: usize,
    /// The memory that the sections are in, in any order; null without them.
    pub areas: *const HvciArea,
    /// How many.
    pub area_count: usize,
}

/// Keeps a vault while its machine is off: the machine's TPM with a file, or the host. All functions must be there. Each answers
/// HV_STATUS_SUCCESS if it has done what it was asked; HV_STATUS_ACCESS_DENIED if the machine is not in a state in which the key may be had, but
/// may be later; HV_STATUS_NOT_FOUND if the key is gone for good: what was sealed under it is given up then; any other status if it failed. They
/// are called one at a time, by any thread.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciKeeperV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table.
    pub size: u32,
    /// Handed to every function.
    pub ctx: *mut c_void,
    /// Gives `sink` what `replace` was given last, in one or several pieces; nothing if it was given nothing yet.
    pub read: Option<unsafe extern "C" fn(ctx: *mut c_void, sink: HvciSink, sink_ctx: *mut c_void) -> u16>,
    /// Keeps these bytes, HVCI_MAX_KEPT at most, instead: all of them or none, whatever happens meanwhile, and lasting when it returns.
    pub replace: Option<unsafe extern "C" fn(ctx: *mut c_void, bytes: *const u8, len: usize) -> u16>,
    /// How far the machine has come: a number that never goes back, whoever puts an older disk under it.
    pub counter: Option<unsafe extern "C" fn(ctx: *mut c_void, value: *mut u64) -> u16>,
    /// Moves it up to `value`.
    pub advance: Option<unsafe extern "C" fn(ctx: *mut c_void, value: u64) -> u16>,
    /// Seals the HVCI_VAULT_KEY_SIZE bytes of `key`, so that nothing but `unseal` gets them back, and gives `sink` what came of it. No copy of
    /// the key stays.
    pub seal: Option<unsafe extern "C" fn(ctx: *mut c_void, key: *const u8, sink: HvciSink, sink_ctx: *mut c_void) -> u16>,
    /// Writes the HVCI_VAULT_KEY_SIZE bytes of a sealed key to `key`: once in a boot.
    pub unseal: Option<unsafe extern "C" fn(ctx: *mut c_void, sealed: *const u8, len: usize, key: *mut u8) -> u16>,
}

/// What a vault is made for.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct HvciVaultV1 {
    /// HVCI_V1.
    pub version: u32,
    /// Bytes of this table.
    pub size: u32,
    /// Guest page numbers of its pages, each once: RAM that the guest was told not to use. 32 credentials fit into each.
    pub pages: *const u64,
    /// How many; one at least.
    pub page_count: usize,
    /// The machine's, for all its life.
    pub vm_id: [u8; 16],
    /// A new one at each boot, and when the machine's memory is restored.
    pub boot_id: [u8; 16],
    /// HVCI_VAULT_SEED_SIZE random bytes that were used for nothing else. The caller wipes them afterwards.
    pub seed: *const u8,
    /// What is allowed of every credential: JSON of an `hvci_engine::vault::UsePolicy`.
    pub policy: *const u8,
    /// Bytes of it; 0 for the default.
    pub policy_len: usize,
    /// Null: nothing outlives the boot. The table is copied; what it names lives as long as the engine.
    pub keeper: *const HvciKeeperV1,
}

/// A table of C.
///
/// # Safety
/// It is `repr(C)`, begins with `version` and `size` as two `u32`, has no padding and no field that ends elsewhere than at a multiple of 8
/// or in a pair of `u32`, and zeros make a value of it.
pub(super) unsafe trait Table: Copy {
    /// Bytes of its first edition: those that must be there.
    const LEAST: usize;
}

// SAFETY: as its definition says; null functions are `None`. The same for those below.
unsafe impl Table for HvciHostV1 {
    const LEAST: usize = offset_of!(Self, now);
}
// SAFETY: as above.
unsafe impl Table for HvciConfigV1 {
    const LEAST: usize = offset_of!(Self, catalogs);
}
// SAFETY: as above.
unsafe impl Table for HvciVpV1 {
    const LEAST: usize = size_of::<Self>();
}
// SAFETY: as above.
unsafe impl Table for HvciMemoryInterceptV1 {
    const LEAST: usize = size_of::<Self>();
}
// SAFETY: as above.
unsafe impl Table for HvciLoadV1 {
    const LEAST: usize = offset_of!(Self, sections);
}
// SAFETY: as above; the arrays of bytes end at multiples of 8.
unsafe impl Table for HvciVaultV1 {
    const LEAST: usize = size_of::<Self>();
}
// SAFETY: as above.
unsafe impl Table for HvciKeeperV1 {
    const LEAST: usize = size_of::<Self>();
}

/// Sizes that no later edition may change.
const _: () = {
    assert!(HvciHostV1::LEAST == 64 && size_of::<HvciHostV1>() == 80);
    assert!(HvciConfigV1::LEAST == 72 && size_of::<HvciConfigV1>() == 88);
    assert!(HvciLoadV1::LEAST == 72 && size_of::<HvciLoadV1>() == 104);
    assert!(size_of::<HvciVpV1>() == 48 && size_of::<HvciMemoryInterceptV1>() == 48);
    assert!(size_of::<HvciVaultV1>() == 88 && size_of::<HvciKeeperV1>() == 64);
    // those without a size of their own
    assert!(size_of::<HvciKey>() == 24 && size_of::<HvciGpnRange>() == 16);
    assert!(size_of::<HvciCatalog>() == 16 && size_of::<HvciSection>() == 16 && size_of::<HvciArea>() == 24);
};

/// The header's numbers are the engine's.
const _: () = {
    assert!(HVCI_EVENT_SCHEMA == event::SCHEMA_VERSION && HVCI_VTL_CALL_SIZE == secure_call::BLOCK);
    assert!(HV_MAP_GPA_READABLE == MapGpaFlags::READABLE.0 && HV_MAP_GPA_WRITABLE == MapGpaFlags::WRITABLE.0);
    assert!(HV_MAP_GPA_KERNEL_EXECUTABLE == MapGpaFlags::KERNEL_EXECUTABLE.0);
    assert!(HV_MAP_GPA_USER_EXECUTABLE == MapGpaFlags::USER_EXECUTABLE.0);
    assert!(HV_MAP_GPA_SUPERVISOR_SHADOW_STACK == MapGpaFlags::SUPERVISOR_SHADOW_STACK.0);
};

/// A copy of a table, as far as it reaches; zeros behind.
///
/// # Errors
/// [`HvStatus::INVALID_PARAMETER`] for null, another version, and a size that no edition has.
///
/// # Safety
/// Rule 1: `table` is null, or at least the eight bytes of version and size can be read, and then as many as size says.
pub(super) unsafe fn take<T: Table>(table: *const T) -> Result<T, HvStatus> {
    if table.is_null() || !table.is_aligned() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // SAFETY: not null and aligned, so by this function's contract readable; two u32 are what every table begins with.
    let [version, size] = unsafe { table.cast::<[u32; 2]>().read() };
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if version != HVCI_V1 || size < T::LEAST || !size.is_multiple_of(8) {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let mut copy = MaybeUninit::<T>::zeroed();
    // SAFETY: `size` bytes can be read, and no more than the copy has are written to it. It is a local, so they do not overlap.
    unsafe { ptr::copy_nonoverlapping(table.cast::<u8>(), copy.as_mut_ptr().cast(), size.min(size_of::<T>())) };
    // SAFETY: whole fields of the caller's and zeros, which make a value of every `Table`.
    Ok(unsafe { copy.assume_init() })
}

/// A list of C.
///
/// # Errors
/// [`HvStatus::INVALID_PARAMETER`] for null or more bytes than there can be, unless the list is empty.
///
/// # Safety
/// Rule 1: `items` is null or points at `len` values, which stay as they are for `'a`.
pub(super) unsafe fn list<'a, T>(items: *const T, len: usize) -> Result<&'a [T], HvStatus> {
    if len == 0 {
        return Ok(&[]);
    }
    let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| isize::try_from(bytes).ok());
    if items.is_null() || !items.is_aligned() || bytes.is_none() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // SAFETY: not null, aligned, no more bytes than a slice may have; the rest is this function's contract.
    Ok(unsafe { core::slice::from_raw_parts(items, len) })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// A host with `size` for a size, in memory that ends there.
    fn host(version: u32, size: u32) -> Result<HvciHostV1, HvStatus> {
        extern "C" fn now(_: *mut c_void) -> u64 {
            7
        }
        let whole = HvciHostV1 {
            version,
            size,
            ctx: ptr::null_mut(),
            frame: None,
            aliases: None,
            protect: None,
            quiesce: None,
            read: None,
            write: None,
            now: Some(now),
            resolve: None,
        };
        // SAFETY: what `take` may read is there, also if it read everything.
        unsafe { take(&raw const whole) }
    }

    #[test]
    fn a_table_is_read_as_far_as_it_reaches() {
        assert!(host(1, 64).unwrap().now.is_none(), "a field behind the size");
        assert!(host(1, 72).unwrap().now.is_some());
        assert!(host(1, 80).unwrap().now.is_some());
        // of a later edition: nothing behind what is known here is looked at
        assert!(host(1, 4096).unwrap().now.is_some());
        for (version, size) in [(0, 80), (2, 80), (1, 0), (1, 56), (1, 63), (1, 68), (1, 79)] {
            assert_eq!(host(version, size).unwrap_err(), HvStatus::INVALID_PARAMETER, "version {version}, size {size}");
        }
        // SAFETY: null is not read.
        assert!(unsafe { take::<HvciHostV1>(ptr::null()) }.is_err());
    }

    #[test]
    fn null_is_an_empty_list_and_nothing_else() {
        // SAFETY: null and impossible lengths are not read.
        let of = |len| unsafe { list::<u64>(ptr::null(), len) }.map(<[u64]>::len);
        assert_eq!(of(0), Ok(0));
        assert_eq!(of(1), Err(HvStatus::INVALID_PARAMETER));
        let word = 5_u64;
        // SAFETY: as above; one word is there.
        let of = |len| unsafe { list(&raw const word, len) }.map(<[u64]>::to_vec);
        assert_eq!(of(1), Ok(vec![5]));
        assert_eq!(of(usize::MAX / 8), Err(HvStatus::INVALID_PARAMETER));
        assert_eq!(of(usize::MAX), Err(HvStatus::INVALID_PARAMETER));
    }
}
