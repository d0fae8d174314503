//! Tables of C as the traits that the engine knows: [`HvciHostV1`] is a [`Host`] and the kernel's [`Symbols`], [`HvciVpV1`] a [`Vp`].

// UNSAFETY: every method calls a function of the VMM's through a pointer.
#![expect(unsafe_code, reason = "calls of C; see UNSAFETY above")]

use core::{
    ffi::c_void,
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};
use std::sync::Arc;

use super::tables::{
    HVCI_CAPABILITY_ALIASES, HVCI_CAPABILITY_DEVICE_VIEW, HVCI_CAPABILITY_MBEC, HVCI_CAPABILITY_SHADOW_STACK, HVCI_MAX_ALIASES,
    HvciGpnRange, HvciHostV1, HvciVpV1, take,
};
use crate::{
    access::MapGpaFlags,
    addr::{Frame, Gpa, Gpn, GpnRange, Gva, Vtl},
    host::{Capabilities, Host, Partial, Vp},
    image::pe::Symbol,
    load::Symbols,
    status::HvStatus,
};

/// A VMM written in C.
#[derive(Debug)]
pub(super) struct CHost {
    /// Everything up to `write` is there.
    table: HvciHostV1,
    capabilities: Capabilities,
    /// Nothing that this engine says may be believed any more: a panic, or a frame whose aliases are unknown.
    ended: AtomicBool,
}

// SAFETY: the table is never written to, and rule 4 has its functions be callable with its context from any thread, several at once.
unsafe impl Send for CHost {}
// SAFETY: as above.
unsafe impl Sync for CHost {}

impl CHost {
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for a table that is not as it must be, and for capabilities that nobody knows.
    ///
    /// # Safety
    /// As [`take`]; and what is in the table stays callable as long as this lives (rules 1 and 3).
    pub(super) unsafe fn new(table: *const HvciHostV1, capabilities: u32) -> Result<Self, HvStatus> {
        const KNOWN: u32 = HVCI_CAPABILITY_MBEC | HVCI_CAPABILITY_SHADOW_STACK | HVCI_CAPABILITY_DEVICE_VIEW | HVCI_CAPABILITY_ALIASES;
        // SAFETY: this function's contract.
        let table = unsafe { take(table) }?;
        let HvciHostV1 { frame, aliases, protect, quiesce, read, write, .. } = table;
        let whole = frame.is_some() && aliases.is_some() && protect.is_some() && quiesce.is_some() && read.is_some() && write.is_some();
        if !whole || capabilities & !KNOWN != 0 {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let has = |bit| capabilities & bit != 0;
        let capabilities = Capabilities {
            mbec: has(HVCI_CAPABILITY_MBEC),
            shadow_stack: has(HVCI_CAPABILITY_SHADOW_STACK),
            device_view: has(HVCI_CAPABILITY_DEVICE_VIEW),
            aliases: has(HVCI_CAPABILITY_ALIASES),
        };
        Ok(Self { table, capabilities, ended: AtomicBool::new(false) })
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    /// # Errors
    /// [`HvStatus::OPERATION_DENIED`] from when it is ended on.
    pub(super) fn goes_on(&self) -> Result<(), HvStatus> {
        if self.ended.load(Ordering::SeqCst) { Err(HvStatus::OPERATION_DENIED) } else { Ok(()) }
    }

    /// What C answered, or that a function is not there.
    fn answer(&self, called: Option<u16>) -> Result<(), HvStatus> {
        // also when the engine was ended by a call whose answer it could not hear
        self.goes_on()?;
        called.map_or(Err(HvStatus::FEATURE_UNAVAILABLE), |status| HvStatus(status).ok())
    }
}

fn ranges_of(ranges: &[GpnRange]) -> Vec<HvciGpnRange> {
    ranges.iter().map(|range| HvciGpnRange { start: range.start.0, pages: range.pages }).collect()
}

/// Where the pages of one call of `aliases` go.
struct Aliases<'a> {
    each: &'a mut dyn FnMut(Gpn),
    count: usize,
}

/// What C calls for each alias.
///
/// # Safety
/// `each_ctx` is the [`Aliases`] of a call that has not returned.
unsafe extern "C" fn each_alias(each_ctx: *mut c_void, gpn: u64) -> u16 {
    // SAFETY: this function's contract; nobody else has it while C does.
    let Some(aliases) = (unsafe { each_ctx.cast::<Aliases<'_>>().as_mut() }) else { return HvStatus::INVALID_PARAMETER.0 };
    aliases.count = aliases.count.saturating_add(1);
    if aliases.count > HVCI_MAX_ALIASES {
        return HvStatus::INSUFFICIENT_MEMORY.0;
    }
    (aliases.each)(Gpn(gpn));
    HvStatus::SUCCESS.0
}

impl Host for CHost {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        let mut frame = 0;
        // SAFETY: rule 1, for this and all below: the function is what the header says, and its context lives. It gets locals.
        let called = self.table.frame.map(|call| unsafe { call(self.table.ctx, gpn.0, &raw mut frame) });
        self.answer(called).ok().map(|()| Frame(frame))
    }

    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        let mut aliases = Aliases { each, count: 0 };
        let each_ctx = (&raw mut aliases).cast();
        // SAFETY: as in `frame`; `each_alias` gets the context that it wants, which outlives the call.
        let called = self.table.aliases.map(|call| unsafe { call(self.table.ctx, frame.0, Some(each_alias), each_ctx) });
        // the trait has no failure, and an alias that is left out is a hole: whatever the caller does next with the host fails
        if self.answer(called).is_err() || aliases.count > HVCI_MAX_ALIASES {
            self.end();
        }
    }

    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        self.goes_on().map_err(|status| Partial { status, done: 0 })?;
        let list = ranges_of(ranges);
        let mut done = 0;
        let call = |call: unsafe extern "C" fn(_, _, _, _, _, _) -> u16| {
            // SAFETY: as in `frame`; the ranges live until it returns.
            unsafe { call(self.table.ctx, vtl.number(), list.as_ptr(), list.len(), flags.0, &raw mut done) }
        };
        let called = self.table.protect.map(call);
        self.answer(called).map_err(|status| Partial { status, done: done.min(ranges.len()) })
    }

    fn quiesce(&self, vtl: Vtl, ranges: &[GpnRange]) -> Result<(), HvStatus> {
        self.goes_on()?;
        let list = ranges_of(ranges);
        // SAFETY: as in `protect`.
        self.answer(self.table.quiesce.map(|call| unsafe { call(self.table.ctx, vtl.number(), list.as_ptr(), list.len()) }))
    }

    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        self.goes_on()?;
        // SAFETY: as in `frame`; the buffer has that length.
        self.answer(self.table.read.map(|call| unsafe { call(self.table.ctx, gpa.0, buffer.as_mut_ptr(), buffer.len()) }))
    }

    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.goes_on()?;
        // SAFETY: as in `read`.
        self.answer(self.table.write.map(|call| unsafe { call(self.table.ctx, gpa.0, bytes.as_ptr(), bytes.len()) }))
    }

    fn now(&self) -> u64 {
        // SAFETY: as in `frame`.
        self.table.now.map_or(0, |call| unsafe { call(self.table.ctx) })
    }
}

/// What the guest's kernel exports, as the host knows it.
pub(super) struct CSymbols(pub(super) Arc<CHost>);

impl Symbols for CSymbols {
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        let table = &self.0.table;
        let (name, name_len, ordinal) = match symbol {
            Symbol::Name(name) => (name.as_ptr(), name.len(), 0),
            Symbol::Ordinal(ordinal) => (ptr::null(), 0, ordinal),
        };
        let mut address = 0;
        let call = |call: unsafe extern "C" fn(_, _, _, _, _, _, _) -> u16| {
            // SAFETY: as in `CHost::frame`; the names live until it returns.
            unsafe { call(table.ctx, library.as_ptr(), library.len(), name, name_len, ordinal, &raw mut address) }
        };
        let called = table.resolve.map(call);
        self.0.answer(called).ok().map(|()| Gva(address))
    }
}

/// A processor of a VMM written in C.
pub(super) struct CVp(HvciVpV1);

impl CVp {
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for a table that is not as it must be.
    ///
    /// # Safety
    /// As [`take`]; and what is in the table stays callable as long as this lives.
    pub(super) unsafe fn new(table: *const HvciVpV1) -> Result<Self, HvStatus> {
        // SAFETY: this function's contract.
        let table = unsafe { take(table) }?;
        let whole = table.get_register.is_some() && table.set_register.is_some() && table.inject.is_some();
        if whole && table.reserved == 0 { Ok(Self(table)) } else { Err(HvStatus::INVALID_PARAMETER) }
    }
}

impl Vp for CVp {
    fn index(&self) -> u32 {
        self.0.index
    }

    fn register(&self, name: u32) -> Result<u128, HvStatus> {
        let (mut low, mut high) = (0, 0);
        // SAFETY: rule 1, for this and the two below: the function is what the header says, and its context lives. It gets locals.
        let status = self.0.get_register.map(|call| unsafe { call(self.0.ctx, name, &raw mut low, &raw mut high) });
        HvStatus(status.unwrap_or(HvStatus::FEATURE_UNAVAILABLE.0)).ok()?;
        Ok(u128::from(high) << 64 | u128::from(low))
    }

    fn set_register(&mut self, name: u32, value: u128) -> Result<(), HvStatus> {
        let half = |bits: u128| u64::try_from(bits & u128::from(u64::MAX)).unwrap_or(0);
        // SAFETY: as above.
        let status = self.0.set_register.map(|call| unsafe { call(self.0.ctx, name, half(value), half(value >> 64)) });
        HvStatus(status.unwrap_or(HvStatus::FEATURE_UNAVAILABLE.0)).ok()
    }

    fn inject(&mut self, vector: u8, error_code: Option<u32>) {
        if let Some(call) = self.0.inject {
            // SAFETY: as above.
            unsafe { call(self.0.ctx, vector, error_code.is_some(), error_code.unwrap_or(0)) };
        }
    }
}
