//! The functions of the header.

// UNSAFETY: the functions have names that the linker sees, take pointers of C, and give it a box that it gives back to be destroyed.
#![expect(unsafe_code, reason = "pointers of C; see UNSAFETY above")]
#![expect(clippy::missing_safety_doc, reason = "the contract is the same for all: rules 1 to 4 of the module")]

use core::{
    cell::Cell,
    ffi::{CStr, c_char, c_void},
    fmt,
    panic::AssertUnwindSafe,
    ptr, slice,
    sync::atomic::{AtomicBool, Ordering},
};
use std::{
    panic::catch_unwind,
    sync::{Arc, OnceLock},
};

use super::{
    host::{CHost, CSymbols, CVp},
    tables::{
        HVCI_ACCESS_KERNEL_EXECUTE, HVCI_ACCESS_READ, HVCI_ACCESS_USER_EXECUTE, HVCI_ACCESS_WRITE, HVCI_ACTION_INJECTED_FAULT,
        HVCI_ACTION_RESUME, HVCI_ACTION_SKIP, HVCI_ACTION_TERMINATE, HVCI_INTERCEPT_GVA, HVCI_INTERCEPT_PAGE_WALK, HVCI_NO_VP,
        HVCI_PURPOSE_KERNEL, HVCI_PURPOSE_MODULE, HVCI_PURPOSE_TIMESTAMP, HVCI_TRUST_BUILTIN, HVCI_VERSION, HVCI_VTL_CALL_SIZE, HvciArea,
        HvciConfigV1, HvciHostV1, HvciKey, HvciLoadV1, HvciMemoryInterceptV1, HvciSink, HvciVpV1, list, take,
    },
};
use crate::{
    access::Access,
    addr::{Frame, Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    bytes::widen,
    host::{Action, Enforcer, MemoryIntercept},
    load::{File, Loader, Place, Placed, Placement, Request},
    signature::{
        block_list::BlockList,
        cache::Cache,
        catalog::{Catalog, CatalogIndex},
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    time::UnixTime,
    vault::Vault,
    vsm::partition::Partition,
};

/// An engine: one guest, its frames and its modules.
pub struct HvciEngine {
    host: Arc<CHost>,
    pub(super) partition: Arc<Partition>,
    pub(super) loader: Loader,
    pub(super) vault: OnceLock<Vault>,
    /// There is a vault, or it is being opened.
    pub(super) vault_taken: AtomicBool,
}

impl fmt::Debug for HvciEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HvciEngine").field("partition", &self.partition).field("loader", &self.loader).finish_non_exhaustive()
    }
}

pub(super) type Answer = Result<(), HvStatus>;

/// The edition of the library: HVCI_VERSION of the header that it was built with.
#[unsafe(no_mangle)]
pub extern "C" fn hvci_version() -> u32 {
    HVCI_VERSION
}

/// Makes an engine: every page of the guest's RAM becomes data, so what firmware left executable is executable no more. `host` and `config`
/// are copied, and what `config` points at may go afterwards. `*engine` is null on failure.
///
/// HV_STATUS_INVALID_PARAMETER: null, a version or size that is not known, a function that is missing, a certificate or a catalog that is
/// none, RAM that none of the frames backs. HV_STATUS_FEATURE_UNAVAILABLE: a host that cannot bind devices or tell aliases. The host's own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_create(host: *const HvciHostV1, config: *const HvciConfigV1, engine: *mut *mut HvciEngine) -> u16 {
    if engine.is_null() {
        return HvStatus::INVALID_PARAMETER.0;
    }
    // SAFETY: rule 1.
    unsafe { put(engine, ptr::null_mut()) };
    // SAFETY: rules 1 and 3.
    let made = outermost(|| caught(|| unsafe { create(host, config) }).unwrap_or(Err(HvStatus::OPERATION_DENIED)));
    let made = made.unwrap_or(Err(HvStatus::INVALID_PARTITION_STATE));
    // SAFETY: rule 1.
    status_of(made.map(|made| unsafe { put(engine, Box::into_raw(Box::new(made))) }))
}

/// Ends an engine; null is nothing to end. Nobody may be within another function of it. The guest's permissions stay as they are. What is in a
/// vault is gone unless it was kept (hvci_vault_commit), and its pages are wiped, but not those of an engine that a panic ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_destroy(engine: *mut HvciEngine) {
    if !engine.is_null() {
        // SAFETY: not null, so by rule 1 of `hvci_create` and destroyed once.
        let engine = unsafe { Box::from_raw(engine) };
        let _ = caught(|| drop(engine));
    }
}

/// Answers a hypercall of level `vtl`: `control` is the TLFS's control word, `input` what is at the input GPA or in registers, `output`
/// what goes to the output GPA: zeros where nothing is answered. `*reps`, if it is not null, is how many elements of a rep call are done.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_hypercall(
    engine: *const HvciEngine,
    vp: *const HvciVpV1,
    vtl: u8,
    control: u64,
    input: *const u8,
    input_len: usize,
    output: *mut u8,
    output_len: usize,
    reps: *mut u16,
) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: rules 1 and 3.
        let (mut vp, input, output) = unsafe { (CVp::new(vp)?, list(input, input_len)?, output_of(output, output_len)?) };
        let (status, done) = engine.partition.hypercall(&mut vp, level(vtl)?, control, input, output);
        // SAFETY: null or the caller's to write to, by rule 1.
        unsafe { put(reps, done) };
        status.ok()
    };
    // SAFETY: rule 1, for this and all below.
    unsafe {
        put(reps, 0);
        with(engine, run)
    }
}

/// Answers an access of VTL 0 that the second-level table refused. `*action` is one of HVCI_ACTION_*, always. Execution of a page of code that
/// was not in memory has it verified: functions of the host's are called for that.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_on_memory(
    engine: *const HvciEngine,
    vp: *const HvciVpV1,
    intercept: *const HvciMemoryInterceptV1,
    action: *mut u32,
) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: rules 1 and 3.
        let (mut vp, intercept) = unsafe { (CVp::new(vp)?, take(intercept)?) };
        let HvciMemoryInterceptV1 { gpa, gva, rip, access, flags, cpl, reserved, .. } = intercept;
        if flags & !(HVCI_INTERCEPT_GVA | HVCI_INTERCEPT_PAGE_WALK) != 0 || reserved != 0 || cpl > 3 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let intercept = MemoryIntercept {
            gpa: Gpa(gpa),
            gva: (flags & HVCI_INTERCEPT_GVA != 0).then_some(Gva(gva)),
            access: access_of(access)?,
            page_walk: flags & HVCI_INTERCEPT_PAGE_WALK != 0,
            cpl: u8::try_from(cpl).unwrap_or(3),
            rip: Gva(rip),
        };
        Ok(engine.loader.on_memory(&mut vp, &intercept))
    };
    // SAFETY: rule 1.
    unsafe { intercepted(engine, action, run) }
}

/// Answers a write to a register that is intercepted, before it is done. `*action` is one of HVCI_ACTION_*, always.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_on_register_write(
    engine: *const HvciEngine,
    vp: *const HvciVpV1,
    name: u32,
    old_value: u64,
    new_value: u64,
    action: *mut u32,
) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: rules 1 and 3.
        let mut vp = unsafe { CVp::new(vp) }?;
        Ok(engine.partition.on_register_write(&mut vp, name, old_value, new_value))
    };
    // SAFETY: rule 1.
    unsafe { intercepted(engine, action, run) }
}

/// Whether level `vtl`, its devices or the VMM on its behalf may access `len` bytes from `gpa`, all of them. HV_STATUS_ACCESS_DENIED if
/// not; HV_STATUS_INVALID_PARAMETER where there is no RAM. To be asked for every access that no processor does.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_check(engine: *const HvciEngine, vtl: u8, gpa: u64, len: u64, access: u32) -> u16 {
    // SAFETY: rule 1.
    unsafe { with(engine, |engine| engine.partition.check(level(vtl)?, Gpa(gpa), len, access_of(access)?)) }
}

/// Loads a module: verifies the file under `hvci` if it is a Windows driver and `linux-module` if it is a Linux module, locks the pages,
/// compares every byte and makes code executable; or leaves everything as it was. `*module` is its number then, else 0. `reason`, of
/// `reason_size` bytes, gets why it was refused, cut short if it must be and ended by a zero; it may be null.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_load(
    engine: *const HvciEngine,
    load: *const HvciLoadV1,
    module: *mut u32,
    reason: *mut c_char,
    reason_size: usize,
) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: rule 1.
        let load = unsafe { take(load) }?;
        let HvciLoadV1 { name, file, file_len, time, vp, reserved, .. } = load;
        if name.is_null() || module.is_null() || reserved != 0 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        // SAFETY: rule 1, for both; the name is not null and ended by a zero.
        let (name, file) = unsafe { (CStr::from_ptr(name), list(file, file_len)?) };
        // SAFETY: as above.
        let (placement, areas) = unsafe { places_of(&load) }?;
        let page =
            |area: &(u64, &[u64]), at: Gva| area.1.get(usize::try_from(at.0.checked_sub(area.0)?.checked_div(PAGE_SIZE)?).ok()?).copied();
        let request = Request {
            name: &name.to_string_lossy(),
            file: File::Private(file),
            place: placement.as_ref().map_or(Place::Base(Gva(load.base)), Place::Sections),
            pages: &|at| areas.iter().find_map(|area| page(area, at)).map(Gpn),
            time: UnixTime(time),
            vp: (vp != HVCI_NO_VP).then_some(vp),
        };
        match engine.loader.load(&request).outcome {
            Ok(loaded) => {
                // SAFETY: rule 1.
                unsafe { put(module, loaded.id) };
                Ok(())
            }
            Err(refusal) => {
                // SAFETY: rule 1.
                unsafe { put_text(&format!("{}: {refusal}", refusal.note.code), reason, reason_size) };
                Err(refusal.status)
            }
        }
    };
    // SAFETY: rule 1.
    unsafe {
        put(module, 0);
        put_text("", reason, reason_size);
        with(engine, run)
    }
}

/// Unloads a module: it executes no more, then what stood in its pages is gone, then they are the guest's again. HV_STATUS_NOT_FOUND: none;
/// HV_STATUS_OBJECT_IN_USE: another imports from it, or something is being done with it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_unload(engine: *const HvciEngine, module: u32) -> u16 {
    // SAFETY: rule 1.
    unsafe { with(engine, |engine| engine.loader.unload(module)) }
}

/// Refuses from now on what `list` says, in spite of a good signature, and nothing else; what is loaded stays. `list` is `len` bytes of JSON:
///
/// ```json
/// { "version": 3,
///   "authentihashes": { "sha256:9f86...": "why" },
///   "certificates": [ { "tbs": "sha256:2cf2...", "since": "2023-05-01", "reason": "the key was stolen" } ] }
/// ```
///
/// `tbs` is the digest of a TBSCertificate; `since` may be left out, and so may either list. HV_STATUS_INVALID_PARAMETER: it is no such list.
/// HV_STATUS_OPERATION_DENIED: its version is lower than that of the list there is. Lists are not part of a saved state.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_replace_blocked(engine: *const HvciEngine, list: *const u8, len: usize) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: rule 1.
        let text = unsafe { self::list(list, len) }?;
        let blocked = serde_json::from_slice::<BlockList>(text).map_err(|_| HvStatus::INVALID_PARAMETER)?;
        engine.loader.replace_blocked(blocked)
    };
    // SAFETY: rule 1.
    unsafe { with(engine, run) }
}

/// Answers a VTL call of processor `vp`: `block` is a copy of the guest's HVCI_VTL_CALL_SIZE bytes, `time` are seconds since 1970,
/// `*answer`, if it is not null, is what the function answers. A VMM asks itself in the same way for what has no function here (the end of
/// a module's initialisation, patches, regions). The vault's functions are not there: hvci_secure_call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_vtl_call(engine: *const HvciEngine, block: *const u8, vp: u32, time: i64, answer: *mut u64) -> u16 {
    // SAFETY: rule 1.
    unsafe { with_block(engine, block, answer, |engine, block| engine.loader.call(block, vp, UnixTime(time))) }
}

/// Ends the boot: levels, configuration, pinned registers and keys can be changed no more. There is no way back.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_end_of_boot(engine: *const HvciEngine) -> u16 {
    // SAFETY: rule 1.
    unsafe {
        with(engine, |engine| {
            engine.partition.end_of_boot();
            Ok(())
        })
    }
}

/// Takes the events out, oldest first: `sink` gets each as a line of JSON, ended by a newline (schema HVCI_EVENT_SCHEMA). `*lost`, if it is
/// not null, is how many were dropped since the engine was made because nobody took them in time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_take_events(engine: *const HvciEngine, sink: HvciSink, sink_ctx: *mut c_void, lost: *mut u64) -> u16 {
    let run = |engine: &HvciEngine| {
        let sink = sink.ok_or(HvStatus::INVALID_PARAMETER)?;
        let (events, dropped) = engine.partition.take_events();
        for event in events {
            let mut line = serde_json::to_vec(&event).map_err(|_| HvStatus::OPERATION_DENIED)?;
            line.push(b'\n');
            // SAFETY: the function is what the header says, by rule 1; the line lives until it returns.
            unsafe { sink(sink_ctx, line.as_ptr(), line.len()) };
        }
        // SAFETY: null or the caller's to write to, by rule 1.
        unsafe { put(lost, dropped) };
        Ok(())
    };
    // SAFETY: rule 1.
    unsafe {
        put(lost, 0);
        with(engine, run)
    }
}

/// The protection state and the table of modules, for a snapshot or a migration: `sink` gets them in several pieces. No other call may be
/// under way. HV_STATUS_OBJECT_IN_USE while a module is being loaded or changed; `sink` gets nothing then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_save(engine: *const HvciEngine, sink: HvciSink, sink_ctx: *mut c_void) -> u16 {
    let run = |engine: &HvciEngine| {
        let sink = sink.ok_or(HvStatus::INVALID_PARAMETER)?;
        let (mut modules, mut frames) = (Vec::new(), Vec::new());
        engine.loader.save(&mut |bytes| modules.extend_from_slice(bytes))?;
        engine.partition.save(&mut |bytes| frames.extend_from_slice(bytes));
        for piece in [&widen(frames.len()).to_le_bytes()[..], &frames, &modules] {
            // SAFETY: as in `hvci_take_events`.
            unsafe { sink(sink_ctx, piece.as_ptr(), piece.len()) };
        }
        Ok(())
    };
    // SAFETY: rule 1.
    unsafe { with(engine, run) }
}

/// Takes over a saved state. HV_STATUS_INVALID_PARAMETER for what is none of a known version, HV_STATUS_OPERATION_DENIED for one that is
/// older than what this machine has reached: nothing is changed then. A status of the host's own comes when it is taken over already, and
/// leaves permissions narrower than it allows. If only the table of modules is refused, the protection state is taken over and the table is
/// what it was: destroy the engine then. HV_STATUS_INVALID_PARTITION_STATE if there is a vault, whose pages the state could give away: it is
/// opened behind this.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn hvci_restore(engine: *const HvciEngine, state: *const u8, len: usize) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: rule 1.
        let state = unsafe { list(state, len) }?;
        if engine.vault_taken.load(Ordering::SeqCst) {
            return Err(HvStatus::INVALID_PARTITION_STATE);
        }
        let (frames, state) = state.split_first_chunk().ok_or(HvStatus::INVALID_PARAMETER)?;
        let frames = usize::try_from(u64::from_le_bytes(*frames)).map_err(|_| HvStatus::INVALID_PARAMETER)?;
        let (frames, modules) = state.split_at_checked(frames).ok_or(HvStatus::INVALID_PARAMETER)?;
        engine.partition.restore(frames)?;
        engine.loader.restore(modules)
    };
    // SAFETY: rule 1.
    unsafe { with(engine, run) }
}

/// # Safety
/// Rules 1 and 3.
unsafe fn create(host: *const HvciHostV1, config: *const HvciConfigV1) -> Result<HvciEngine, HvStatus> {
    // SAFETY: rule 1.
    let config = unsafe { take(config) }?;
    // SAFETY: rules 1 and 3.
    let host = Arc::new(unsafe { CHost::new(host, config.capabilities) }?);
    let mut trust = match config.trust {
        0 => TrustStore::empty(),
        HVCI_TRUST_BUILTIN => TrustStore::builtin(),
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    // SAFETY: rule 1.
    for key in unsafe { list(config.keys, config.key_count) }? {
        // SAFETY: rule 1.
        let der = unsafe { list(key.der, key.len) }?;
        trust.add_der(der, purposes_of(key)?, "VMM").map_err(|_| HvStatus::INVALID_PARAMETER)?;
    }
    let (mut catalogs, cache) = (CatalogIndex::default(), Cache::default());
    // SAFETY: rule 1.
    for (number, catalog) in unsafe { list(config.catalogs, config.catalog_count) }?.iter().enumerate() {
        // SAFETY: rule 1.
        let der = unsafe { list(catalog.der, catalog.len) }?;
        catalogs.add(format!("{number}"), Catalog::read(der, &cache).map_err(|_| HvStatus::INVALID_PARAMETER)?);
    }
    // SAFETY: rule 1.
    let ram = unsafe { list(config.ram, config.ram_count) }?;
    let ram = ram.iter().map(|range| GpnRange::new(Gpn(range.start), range.pages));
    let ram = ram.collect::<Option<Vec<GpnRange>>>().ok_or(HvStatus::INVALID_PARAMETER)?;
    let count = usize::try_from(config.frame_count).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    let records = usize::try_from(config.event_capacity).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    let frames = (Frame(config.first_frame), count);
    let partition = Partition::new(Arc::<CHost>::clone(&host), frames.0, frames.1, &ram, config.vps, records)?;
    let partition = Arc::new(partition);
    let symbols = Box::new(CSymbols(Arc::clone(&host)));
    let loader = Loader::new(Arc::clone(&partition), trust, catalogs, None, symbols);
    Ok(HvciEngine { host, partition, loader, vault: OnceLock::new(), vault_taken: AtomicBool::new(false) })
}

/// The address of an area's first page, and its pages.
type Area<'a> = (u64, &'a [u64]);

/// Where the sections are, if the caller says it of each, and the areas that the module is in.
///
/// # Safety
/// Rule 1.
unsafe fn places_of<'a>(load: &HvciLoadV1) -> Result<(Option<Placement>, Vec<Area<'a>>), HvStatus> {
    // SAFETY: this function's contract.
    let (sections, areas) = unsafe { (list(load.sections, load.section_count)?, list(load.areas, load.area_count)?) };
    let whole = [HvciArea { address: load.base, pages: load.pages, page_count: load.page_count }];
    let areas = match (sections.is_empty(), areas.is_empty()) {
        (true, true) => &whole,
        (false, _) if load.base == 0 && load.page_count == 0 => areas,
        // it would be said twice where the module is
        _ => return Err(HvStatus::INVALID_PARAMETER),
    };
    // SAFETY: this function's contract.
    let areas = areas.iter().map(|area| Ok((area.address, unsafe { list(area.pages, area.page_count) }?)));
    let areas = areas.collect::<Result<Vec<_>, HvStatus>>()?;
    let placed = sections.iter().map(|s| usize::try_from(s.number).map(|section| Placed { section, address: Gva(s.address) }));
    let sections = placed.collect::<Result<Vec<_>, _>>().map_err(|_| HvStatus::INVALID_PARAMETER)?;
    Ok(((!sections.is_empty()).then_some(Placement { sections }), areas))
}

fn purposes_of(key: &HvciKey) -> Result<Purposes, HvStatus> {
    const ALL: [(u32, Purposes); 3] =
        [(HVCI_PURPOSE_KERNEL, Purposes::KERNEL), (HVCI_PURPOSE_MODULE, Purposes::MODULE), (HVCI_PURPOSE_TIMESTAMP, Purposes::TIMESTAMP)];
    let known = ALL.iter().fold(0, |known, (bit, _)| known | bit);
    if key.purposes & !known != 0 || key.reserved != 0 {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    let chosen = ALL.iter().filter(|(bit, _)| key.purposes & bit != 0).map(|(_, purpose)| *purpose);
    chosen.reduce(Purposes::and).ok_or(HvStatus::INVALID_PARAMETER)
}

fn level(vtl: u8) -> Result<Vtl, HvStatus> {
    Vtl::from_number(vtl).ok_or(HvStatus::INVALID_PARAMETER)
}

const fn access_of(access: u32) -> Result<Access, HvStatus> {
    match access {
        HVCI_ACCESS_READ => Ok(Access::Read),
        HVCI_ACCESS_WRITE => Ok(Access::Write),
        HVCI_ACCESS_KERNEL_EXECUTE => Ok(Access::KernelExecute),
        HVCI_ACCESS_USER_EXECUTE => Ok(Access::UserExecute),
        _ => Err(HvStatus::INVALID_PARAMETER),
    }
}

const fn action_of(action: Action) -> u32 {
    match action {
        Action::Resume => HVCI_ACTION_RESUME,
        Action::Skip => HVCI_ACTION_SKIP,
        Action::InjectedFault => HVCI_ACTION_INJECTED_FAULT,
        Action::Terminate => HVCI_ACTION_TERMINATE,
    }
}

fn status_of(answer: Answer) -> u16 {
    answer.err().unwrap_or(HvStatus::SUCCESS).0
}

/// Answers an intercept; whatever goes wrong, the machine does not go on.
///
/// # Safety
/// Rule 1.
unsafe fn intercepted(engine: *const HvciEngine, action: *mut u32, run: impl FnOnce(&HvciEngine) -> Result<Action, HvStatus>) -> u16 {
    if action.is_null() {
        return HvStatus::INVALID_PARAMETER.0;
    }
    // SAFETY: rule 1, for all three.
    unsafe {
        put(action, HVCI_ACTION_TERMINATE);
        with(engine, |engine| run(engine).map(|what| put(action, action_of(what))))
    }
}

/// Does something with an engine: the edge that no panic crosses.
///
/// # Safety
/// Rule 1: `engine` is null or of [`hvci_create`] and not destroyed.
pub(super) unsafe fn with(engine: *const HvciEngine, run: impl FnOnce(&HvciEngine) -> Answer) -> u16 {
    // SAFETY: this function's contract.
    let Some(engine) = (unsafe { engine.as_ref() }) else { return HvStatus::INVALID_PARAMETER.0 };
    status_of(guarded(&engine.host, || run(engine)))
}

/// Answers a VTL call by what answers its block.
///
/// # Safety
/// Rule 1.
pub(super) unsafe fn with_block(
    engine: *const HvciEngine,
    block: *const u8,
    answer: *mut u64,
    run: impl FnOnce(&HvciEngine, &[u8; HVCI_VTL_CALL_SIZE]) -> (HvStatus, u64),
) -> u16 {
    let run = |engine: &HvciEngine| {
        // SAFETY: this function's contract.
        let block = unsafe { list(block, HVCI_VTL_CALL_SIZE) }?;
        let block = block.first_chunk().ok_or(HvStatus::INVALID_PARAMETER)?;
        let (status, value) = run(engine, block);
        // SAFETY: null or the caller's to write to, by this function's contract.
        unsafe { put(answer, value) };
        status.ok()
    };
    // SAFETY: this function's contract.
    unsafe {
        put(answer, 0);
        with(engine, run)
    }
}

fn guarded(host: &CHost, run: impl FnOnce() -> Answer) -> Answer {
    host.goes_on()?;
    let answer = outermost(|| caught(run)).ok_or(HvStatus::INVALID_PARTITION_STATE)?;
    answer.unwrap_or_else(|| {
        host.end();
        Err(HvStatus::OPERATION_DENIED)
    })
}

/// `None` if it panicked.
fn caught<T>(run: impl FnOnce() -> T) -> Option<T> {
    // whoever sees what it left half-way is refused first
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Some(value),
        Err(panic) => {
            // dropping it could panic
            core::mem::forget(panic);
            None
        }
    }
}

/// Runs it unless this thread is within a callback: locks are held there that it would wait for.
fn outermost<T>(run: impl FnOnce() -> T) -> Option<T> {
    thread_local!(static INSIDE: Cell<bool> = const { Cell::new(false) });
    if INSIDE.replace(true) {
        return None;
    }
    let value = run();
    INSIDE.set(false);
    Some(value)
}

/// # Safety
/// Rule 1: `to` is null or the caller's to write to.
pub(super) unsafe fn put<T>(to: *mut T, value: T) {
    if !to.is_null() {
        // SAFETY: this function's contract.
        unsafe { to.write(value) };
    }
}

/// The memory that an answer goes to, zeros at first.
///
/// # Errors
/// As [`list`].
///
/// # Safety
/// Rule 1: `output` is null or points at `len` bytes that nobody else uses for `'a`.
unsafe fn output_of<'a>(output: *mut u8, len: usize) -> Result<&'a mut [u8], HvStatus> {
    if len == 0 {
        return Ok(&mut []);
    }
    if output.is_null() || isize::try_from(len).is_err() {
        return Err(HvStatus::INVALID_PARAMETER);
    }
    // SAFETY: not null, no more bytes than a slice may have; the rest is this function's contract. C may never have written to them.
    unsafe {
        output.write_bytes(0, len);
        Ok(slice::from_raw_parts_mut(output, len))
    }
}

/// Writes as much of a text as there is room for, and a zero.
///
/// # Safety
/// Rule 1: `to` is null or points at `size` bytes.
unsafe fn put_text(text: &str, to: *mut c_char, size: usize) {
    // SAFETY: this function's contract; `c_char` is a byte.
    let Ok(to) = (unsafe { output_of(to.cast::<u8>(), size) }) else { return };
    let room = to.len().saturating_sub(1);
    let whole = (0..=room.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    for (to, byte) in to.iter_mut().zip(text.bytes().take(whole)) {
        *to = byte;
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::panic, reason = "tests")]

    use super::*;
    use crate::{
        capi::{HVCI_CAPABILITY_ALIASES, HVCI_CAPABILITY_DEVICE_VIEW, HVCI_MAX_ALIASES, HVCI_V1, HvciEachGpn, HvciGpnRange},
        frames::Kind,
    };

    unsafe extern "C" fn frame(_: *mut c_void, gpn: u64, frame: *mut u64) -> u16 {
        // SAFETY: the engine's.
        unsafe { put(frame, gpn) };
        0
    }
    /// As many aliases as the context says.
    unsafe extern "C" fn aliases(ctx: *mut c_void, frame: u64, each: HvciEachGpn, each_ctx: *mut c_void) -> u16 {
        let count = ctx.addr();
        let Some(each) = each else { return 5 };
        for _ in 0..count {
            // SAFETY: as the header says. That there are too many does not stop it.
            let _ = unsafe { each(each_ctx, frame) };
        }
        if count == 0 { 0x777 } else { 0 }
    }
    unsafe extern "C" fn protect(_: *mut c_void, _: u8, _: *const HvciGpnRange, _: usize, _: u32, _: *mut usize) -> u16 {
        0
    }
    unsafe extern "C" fn quiesce(_: *mut c_void, _: u8, _: *const HvciGpnRange, _: usize) -> u16 {
        0
    }
    unsafe extern "C" fn read(_: *mut c_void, _: u64, _: *mut u8, _: usize) -> u16 {
        0
    }
    unsafe extern "C" fn write(_: *mut c_void, _: u64, _: *const u8, _: usize) -> u16 {
        0
    }

    fn engine(alias_count: usize) -> HvciEngine {
        let host = HvciHostV1 {
            version: HVCI_V1,
            size: 64,
            ctx: ptr::without_provenance_mut(alias_count),
            frame: Some(frame),
            aliases: Some(aliases),
            protect: Some(protect),
            quiesce: Some(quiesce),
            read: Some(read),
            write: Some(write),
            now: None,
            resolve: None,
        };
        let ram = HvciGpnRange { start: 0, pages: 4 };
        let config = HvciConfigV1 {
            version: HVCI_V1,
            size: 72,
            capabilities: HVCI_CAPABILITY_ALIASES | HVCI_CAPABILITY_DEVICE_VIEW,
            trust: 0,
            ram: &raw const ram,
            ram_count: 1,
            first_frame: 0,
            frame_count: 4,
            vps: 1,
            event_capacity: 4,
            keys: ptr::null(),
            key_count: 0,
            catalogs: ptr::null(),
            catalog_count: 0,
        };
        // SAFETY: both tables are as they must be.
        unsafe { create(&raw const host, &raw const config) }.unwrap_or_else(|status| panic!("{status}"))
    }

    #[test]
    fn a_panic_ends_the_engine_and_crosses_nothing() {
        let engine = engine(1);
        // SAFETY: of a reference.
        let check = || unsafe { hvci_check(&raw const engine, 0, 0, 1, HVCI_ACCESS_READ) };
        assert_eq!(check(), 0);
        // SAFETY: as above.
        let panicked = unsafe { with(&raw const engine, |_| panic!("a mistake of the engine's")) };
        assert_eq!(HvStatus(panicked), HvStatus::OPERATION_DENIED);
        assert_eq!(HvStatus(check()), HvStatus::OPERATION_DENIED);
        let mut action = HVCI_ACTION_RESUME;
        // SAFETY: as above; no processor is looked at.
        let status = unsafe { hvci_on_memory(&raw const engine, ptr::null(), ptr::null(), &raw mut action) };
        assert_eq!((HvStatus(status), action), (HvStatus::OPERATION_DENIED, HVCI_ACTION_TERMINATE));
    }

    #[test]
    fn a_host_that_does_not_tell_all_aliases_ends_the_engine() {
        let change = |aliases| {
            let engine = engine(aliases);
            let first = engine.partition.transform(1, &[(Gpn(1), Kind::KernelData)], || Ok(()));
            // SAFETY: of a reference.
            (first, HvStatus(unsafe { hvci_check(&raw const engine, 0, 0, 1, HVCI_ACCESS_READ) }))
        };
        assert_eq!(change(1), (Ok(()), HvStatus::SUCCESS));
        assert_eq!(change(HVCI_MAX_ALIASES), (Ok(()), HvStatus::SUCCESS));
        // too many, and a failure
        for count in [HVCI_MAX_ALIASES.saturating_add(1), 0] {
            assert_eq!(change(count), (Err(HvStatus::OPERATION_DENIED), HvStatus::OPERATION_DENIED));
        }
    }

    #[test]
    fn a_callback_that_calls_back_is_refused() {
        let engine = engine(1);
        // SAFETY: of a reference, for both.
        let within = unsafe { with(&raw const engine, |_| HvStatus(hvci_check(&raw const engine, 0, 0, 1, HVCI_ACCESS_READ)).ok()) };
        assert_eq!(HvStatus(within), HvStatus::INVALID_PARTITION_STATE);
        // SAFETY: as above.
        assert_eq!(unsafe { hvci_check(&raw const engine, 0, 0, 1, HVCI_ACCESS_READ) }, 0);
    }

    #[test]
    fn a_text_is_cut_at_a_character_and_ended() {
        let cut = |text: &str, size| {
            let mut bytes = [0x55_u8; 8];
            // SAFETY: no more than eight bytes.
            unsafe { put_text(text, bytes.as_mut_ptr().cast(), size) };
            bytes
        };
        assert_eq!(&cut("abcdef", 4), b"abc\0UUUU");
        assert_eq!(&cut("ab", 4), b"ab\0\0UUUU");
        assert_eq!(&cut("ab\u{e4}", 4), b"ab\0\0UUUU");
        assert_eq!(&cut("ab", 0), b"UUUUUUUU");
        // SAFETY: null is not written to.
        unsafe { put_text("ab", ptr::null_mut(), 4) };
    }
}
