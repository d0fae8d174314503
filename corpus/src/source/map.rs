//! Mapped files that survive being cut short.
//!
//! Touching a page of a mapping behind the file's end raises SIGBUS (mmap(2), "ERRORS"), which kills the process. The first mapping
//! installs a handler: if the address lies in a live mapping of this module, the rest of that mapping becomes pages of zeros and the
//! mapping is marked torn; any other SIGBUS gets what it would have got without this module.
//!
// UNSAFETY: memory maps, a signal handler and the remapping inside it have no safe interface.
#![expect(unsafe_code, reason = "mmap and sigaction; see UNSAFETY above")]

#[cfg(unix)]
pub(super) use unix::Mapping;

#[cfg(not(unix))]
pub(super) use portable::Mapping;

#[cfg(unix)]
mod unix {
    use std::{
        fs::File,
        mem::MaybeUninit,
        ptr,
        sync::{
            Once,
            atomic::{AtomicBool, AtomicUsize, Ordering, fence},
        },
    };

    use memmap2::{Mmap, MmapOptions};

    /// How many files can be mapped at once; further ones are read instead.
    const SLOTS: usize = 1024;

    /// A live mapping as the handler sees it. `version` is odd while `start..end` is a live mapping, even while they may change.
    struct Slot {
        taken: AtomicBool,
        version: AtomicUsize,
        start: AtomicUsize,
        end: AtomicUsize,
        torn: AtomicBool,
    }

    static LIVE: [Slot; SLOTS] = [const {
        Slot {
            taken: AtomicBool::new(false),
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            torn: AtomicBool::new(false),
        }
    }; SLOTS];
    static PAGE: AtomicUsize = AtomicUsize::new(4096);
    static PREVIOUS: Previous = Previous(std::cell::UnsafeCell::new(MaybeUninit::uninit()));

    /// What SIGBUS did before. Written once, before the handler that reads it is installed.
    struct Previous(std::cell::UnsafeCell<MaybeUninit<libc::sigaction>>);

    // SAFETY: written only inside `INSTALL`, before `sigaction` makes the handler (the only reader) reachable.
    unsafe impl Sync for Previous {}

    /// A whole file, mapped read-only.
    #[derive(Debug)]
    pub(crate) struct Mapping {
        slot: usize,
        map: Mmap,
    }

    impl Mapping {
        /// Maps the first `len` bytes of `file`; `None` if that cannot be done, when it is to be read instead.
        pub(crate) fn new(file: &File, len: u64) -> Option<Self> {
            static INSTALL: Once = Once::new();
            INSTALL.call_once(install);
            let slot = LIVE.iter().position(|s| !s.taken.load(Ordering::Relaxed) && !s.taken.swap(true, Ordering::Acquire))?;
            let release = || LIVE[slot].taken.store(false, Ordering::Release);
            let Some(len) = usize::try_from(len).ok().filter(|len| *len > 0) else {
                release();
                return None;
            };
            // SAFETY: the map is read-only and handed out only as bytes, for which every value is valid. Another process can change
            // them under the reader, which Rust does not define; what is concluded then is thrown away (`Content::changed`), and
            // readers check each offset when they use it. A shrinking file is answered by the handler.
            let Ok(map) = (unsafe { MmapOptions::new().len(len).map(file) }) else {
                release();
                return None;
            };
            let page = PAGE.load(Ordering::Relaxed);
            let start = map.as_ptr() as usize;
            let live = &LIVE[slot];
            // a handler that reads these bounds sees that the version has moved
            fence(Ordering::Release);
            live.torn.store(false, Ordering::Relaxed);
            live.start.store(start, Ordering::Relaxed);
            live.end.store(start + len.next_multiple_of(page), Ordering::Relaxed);
            live.version.fetch_add(1, Ordering::Release);
            Some(Self { slot, map })
        }

        pub(crate) fn bytes(&self) -> &[u8] {
            &self.map
        }

        /// Whether a page could not be had and zeros stand in its place.
        pub(crate) fn torn(&self) -> bool {
            LIVE[self.slot].torn.load(Ordering::Relaxed)
        }
    }

    impl Drop for Mapping {
        /// Forgets the mapping; its memory is given back afterwards, when the field is dropped.
        fn drop(&mut self) {
            let live = &LIVE[self.slot];
            live.version.fetch_add(1, Ordering::Relaxed);
            live.taken.store(false, Ordering::Release);
        }
    }

    fn install() {
        // SAFETY: `sysconf` has no preconditions. `action` is a zeroed plain C structure with its fields then set; `on_sigbus` has the
        // signature that SA_SIGINFO asks for and only does what is allowed in a handler. `PREVIOUS` is written before any reader exists.
        unsafe {
            if let Ok(page) = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)) {
                PAGE.store(page, Ordering::Relaxed);
            }
            let mut previous = MaybeUninit::zeroed();
            if libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) != 0 {
                return;
            }
            *PREVIOUS.0.get() = previous;
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = on_sigbus as *const () as usize;
            // on the alternate stack where there is one: a stack overflow can be a SIGBUS too
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&raw mut action.sa_mask);
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
        }
    }

    /// Async-signal-safe: atomics, `mmap` and `sigaction` as plain system calls, `errno` kept.
    extern "C" fn on_sigbus(signal: libc::c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
        // SAFETY: with SA_SIGINFO the kernel passes a valid `siginfo_t`; `si_addr` is set for every fault (si_code above 0).
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
        let slot = if code > 0 { LIVE.iter().find(|s| s.covers(address)) } else { None };
        if slot.is_some_and(|slot| slot.tear(address)) {
            return;
        }
        // SAFETY: `PREVIOUS` was written before this handler was installed.
        unsafe {
            libc::sigaction(signal, PREVIOUS.0.get().cast(), ptr::null_mut());
            // a fault happens again on return; what was sent by `kill` has to be sent again
            if code <= 0 {
                libc::raise(signal);
            }
        }
    }

    impl Slot {
        /// Whether `address` lies in this slot's mapping. A mapping that just faulted stays live while its handler runs, so only
        /// other slots can change meanwhile; their half-written bounds are told by the version.
        fn covers(&self, address: usize) -> bool {
            let version = self.version.load(Ordering::Acquire);
            let (start, end) = (self.start.load(Ordering::Relaxed), self.end.load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            version % 2 == 1 && version == self.version.load(Ordering::Relaxed) && (start..end).contains(&address)
        }

        /// Puts zeros from the page of `address` to the end of the mapping.
        fn tear(&self, address: usize) -> bool {
            let end = self.end.load(Ordering::Relaxed);
            let from = address & !(PAGE.load(Ordering::Relaxed) - 1);
            // before the zeros can be seen
            self.torn.store(true, Ordering::Relaxed);
            // SAFETY: `errno` is this thread's. The range is whole pages of a live mapping of this module (the faulting thread borrows
            // it, so it is not unmapped meanwhile), readable before and after.
            unsafe {
                let errno = errno();
                let before = *errno;
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                let mapped = libc::mmap(from as *mut libc::c_void, end - from, libc::PROT_READ, flags, -1, 0);
                *errno = before;
                mapped != libc::MAP_FAILED
            }
        }
    }

    #[cfg(any(target_os = "linux", target_os = "emscripten", target_os = "redox"))]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: no preconditions.
        unsafe { libc::__errno_location() }
    }

    #[cfg(any(target_os = "macos", target_os = "ios", target_os = "freebsd"))]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: no preconditions.
        unsafe { libc::__error() }
    }

    #[cfg(any(target_os = "android", target_os = "netbsd", target_os = "openbsd"))]
    unsafe fn errno() -> *mut libc::c_int {
        // SAFETY: no preconditions.
        unsafe { libc::__errno() }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{env, hint::black_box, os::unix::process::ExitStatusExt, process::Command};

    use super::*;

    /// In a process of its own: it uses up the slots, and ends by the signal.
    #[test]
    fn only_faults_in_its_own_mappings_are_answered() {
        const CHILD: &str = "HVCI_TEST_FOREIGN_FAULT";
        if env::var_os(CHILD).is_some() {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1 << 20).unwrap();
            // slots run out, which is no error, and are given back
            let all: Vec<_> = std::iter::from_fn(|| Mapping::new(&file, 1 << 20)).take(5000).collect();
            assert_eq!(all.len(), 1024);
            drop(all);
            assert!(Mapping::new(&file, 0).is_none());
            let ours = Mapping::new(&file, 1 << 20).unwrap();
            // SAFETY: the fault that this provokes is what is tested.
            let foreign = unsafe { memmap2::Mmap::map(&file) }.unwrap();
            file.set_len(0).unwrap();
            assert_eq!((black_box(ours.bytes())[0], ours.torn()), (0, true));
            black_box(black_box(&foreign)[0]);
            return;
        }
        let test = "source::map::tests::only_faults_in_its_own_mappings_are_answered";
        let child = Command::new(env::current_exe().unwrap()).args(["--exact", test]).env(CHILD, "1").output().unwrap();
        assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{child:?}");
    }
}

#[cfg(not(unix))]
mod portable {
    use std::fs::File;

    /// Nothing is mapped here: a mapped file cannot be cut short, but what else happens to it is not known well enough.
    #[derive(Debug)]
    pub(crate) enum Mapping {}

    impl Mapping {
        pub(crate) fn new(_: &File, _: u64) -> Option<Self> {
            None
        }
        pub(crate) fn bytes(&self) -> &[u8] {
            match *self {}
        }
        pub(crate) fn torn(&self) -> bool {
            match *self {}
        }
    }
}
