//! `libtpms.so.0`, opened at run time: the one TPM 2.0 that it has in a process (`libtpms/tpm_library.h` 0.9).
//!
//! What the library would keep in files is kept in memory here. Trusts the library as far as its interface is concerned: it is C, and a fault in
//! it ends the process, which is why there is a process a machine ([`super::worker`]).

// UNSAFETY: the functions of a C library, and memory that one side allocates and the other frees.
#![expect(unsafe_code, reason = "the C interface of libtpms; see UNSAFETY above")]

use std::{
    collections::BTreeMap,
    error::Error as _,
    ffi::{CStr, c_char, c_int, c_uchar, c_uint},
    ptr, slice,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use libloading::Library;

use super::super::state::{MAX_STATE, State};

/// What the library asks for when there is a TPM of before.
const PERMANENT_NAME: &str = "permall";
/// "There is nothing under this name"; with any other error the TPM does not start.
const RETRY: u32 = 0x800;
const FAIL: u32 = 9;
const VERSION_2: c_uint = 1;
const PERMANENT: c_uint = 1;
const VOLATILE: c_uint = 2;

/// What the library has stored, by name. Its callbacks have no argument that would tell whose.
static STORE: Mutex<BTreeMap<String, Vec<u8>>> = Mutex::new(BTreeMap::new());
static OPENED: AtomicBool = AtomicBool::new(false);

type Process = unsafe extern "C" fn(*mut *mut c_uchar, *mut u32, *mut u32, *mut c_uchar, u32) -> u32;
type GetState = unsafe extern "C" fn(c_uint, *mut *mut c_uchar, *mut u32) -> u32;
type SetState = unsafe extern "C" fn(c_uint, *const c_uchar, u32) -> u32;

#[repr(C)]
struct Callbacks {
    size: c_int,
    nvram_init: extern "C" fn() -> u32,
    nvram_load: unsafe extern "C" fn(*mut *mut c_uchar, *mut u32, u32, *const c_char) -> u32,
    nvram_store: unsafe extern "C" fn(*const c_uchar, u32, u32, *const c_char) -> u32,
    nvram_delete: unsafe extern "C" fn(u32, *const c_char, c_uchar) -> u32,
    io_init: extern "C" fn() -> u32,
    io_locality: unsafe extern "C" fn(*mut u32, u32) -> u32,
    io_physical_presence: unsafe extern "C" fn(*mut c_uchar, u32) -> u32,
}

/// The library, and with it its TPM.
pub(super) struct Libtpms {
    main_init: unsafe extern "C" fn() -> u32,
    terminate: unsafe extern "C" fn(),
    process: Process,
    get_state: GetState,
    set_state: SetState,
    response: *mut c_uchar,
    response_capacity: u32,
    running: bool,
    /// The functions are in it.
    _library: Library,
}

impl Libtpms {
    /// Opens the library, without a TPM yet. Once in a process.
    pub(super) fn open() -> Result<Self, String> {
        if OPENED.swap(true, Ordering::SeqCst) {
            return Err("libtpms has one TPM in a process".to_owned());
        }
        // SAFETY: what runs when libtpms and its libcrypto are loaded are their initialisers, which need nothing of us.
        let library = unsafe { Library::new("libtpms.so.0") };
        let library = library.map_err(|e| {
            let why = e.source().map_or_else(|| e.to_string(), ToString::to_string);
            format!("libtpms.so.0 cannot be opened ({why}): install the package libtpms0")
        })?;
        // SAFETY: the types are those of `tpm_library.h`, which this version of the shared object (`.so.0`) keeps.
        let functions = unsafe {
            (|| {
                Ok::<_, libloading::Error>((
                    *library.get::<unsafe extern "C" fn(c_uint) -> u32>(b"TPMLIB_ChooseTPMVersion\0")?,
                    *library.get::<unsafe extern "C" fn(*const Callbacks) -> u32>(b"TPMLIB_RegisterCallbacks\0")?,
                    *library.get::<unsafe extern "C" fn() -> u32>(b"TPMLIB_MainInit\0")?,
                    *library.get::<unsafe extern "C" fn()>(b"TPMLIB_Terminate\0")?,
                    *library.get::<Process>(b"TPMLIB_Process\0")?,
                    *library.get::<GetState>(b"TPMLIB_GetState\0")?,
                    *library.get::<SetState>(b"TPMLIB_SetState\0")?,
                ))
            })()
        };
        let (choose, register, main_init, terminate, process, get_state, set_state) =
            functions.map_err(|e| format!("this libtpms.so.0 lacks a function: {e}"))?;
        let callbacks = Callbacks {
            size: c_int::try_from(size_of::<Callbacks>()).unwrap_or(c_int::MAX),
            nvram_init: succeed,
            nvram_load,
            nvram_store,
            nvram_delete,
            io_init: succeed,
            io_locality,
            io_physical_presence,
        };
        // SAFETY: no TPM runs yet; the library copies the table, whose first field is its size.
        check("the start of libtpms", unsafe { choose(VERSION_2) })?;
        // SAFETY: as above.
        check("the start of libtpms", unsafe { register(&raw const callbacks) })?;
        Ok(Self {
            main_init,
            terminate,
            process,
            get_state,
            set_state,
            response: ptr::null_mut(),
            response_capacity: 0,
            running: false,
            _library: library,
        })
    }

    /// Switches the TPM on: a new one with its own seeds, or the one whose state it is.
    pub(super) fn start(&mut self, state: Option<&State>) -> Result<(), String> {
        self.stop();
        store().clear();
        if let Some(state) = state {
            self.set(PERMANENT, &state.permanent)?;
            self.set(VOLATILE, &state.volatile)?;
            store().insert(PERMANENT_NAME.to_owned(), state.permanent.clone());
        }
        self.initialise()
    }

    /// Switches it off and on. What is in its NV memory stays, and nothing else.
    pub(super) fn restart(&mut self) -> Result<(), String> {
        self.stop();
        self.initialise()
    }

    /// One command.
    pub(super) fn process(&mut self, command: &[u8]) -> Result<Vec<u8>, String> {
        // the library takes it by a pointer that may write
        let mut command = command.to_vec();
        let len = u32::try_from(command.len()).map_err(|e| e.to_string())?;
        let mut size = 0;
        // SAFETY: `command` is of the length given. The response's buffer is null, or what the library allocated in an earlier call with the
        // capacity that it said; it grows it with `realloc`.
        let result =
            unsafe { (self.process)(&raw mut self.response, &raw mut size, &raw mut self.response_capacity, command.as_mut_ptr(), len) };
        check("TPMLIB_Process", result)?;
        if self.response.is_null() || size > self.response_capacity {
            return Err("libtpms gave no response".to_owned());
        }
        // SAFETY: the library has written `size` bytes to the buffer, which is at least as long, and nothing writes it until the next call.
        Ok(unsafe { slice::from_raw_parts(self.response, to_usize(size)) }.to_vec())
    }

    /// Its state between two commands.
    pub(super) fn state(&mut self) -> Result<State, String> {
        Ok(State { permanent: self.get(PERMANENT)?, volatile: self.get(VOLATILE)? })
    }

    fn stop(&mut self) {
        if self.running {
            self.running = false;
            // SAFETY: after a TPMLIB_MainInit, and none of its functions runs: they all take `&mut self`, and there is one of it.
            unsafe { (self.terminate)() };
        }
    }

    fn initialise(&mut self) -> Result<(), String> {
        // SAFETY: version and callbacks are set, and no TPM runs.
        check("TPMLIB_MainInit", unsafe { (self.main_init)() })?;
        self.running = true;
        Ok(())
    }

    fn get(&mut self, which: c_uint) -> Result<Vec<u8>, String> {
        let (mut buffer, mut len) = (ptr::null_mut(), 0);
        // SAFETY: both are ours and initialised; the library allocates the buffer.
        check("TPMLIB_GetState", unsafe { (self.get_state)(which, &raw mut buffer, &raw mut len) })?;
        if buffer.is_null() {
            return Err("libtpms gave no state".to_owned());
        }
        // SAFETY: a buffer of `len` bytes that the library has allocated for its caller and filled.
        let state = unsafe { slice::from_raw_parts(buffer, to_usize(len)) }.to_vec();
        // SAFETY: allocated with `malloc`, ours, and freed once.
        unsafe { libc::free(buffer.cast()) };
        Ok(state)
    }

    fn set(&mut self, which: c_uint, state: &[u8]) -> Result<(), String> {
        let len = u32::try_from(state.len()).map_err(|e| e.to_string())?;
        // SAFETY: the library reads `len` bytes and keeps a copy.
        check("TPMLIB_SetState", unsafe { (self.set_state)(which, state.as_ptr(), len) })
    }
}

fn check(what: &str, result: u32) -> Result<(), String> {
    if result == 0 { Ok(()) } else { Err(format!("{what}: error {result:#x}")) }
}

fn store() -> std::sync::MutexGuard<'static, BTreeMap<String, Vec<u8>>> {
    STORE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_usize(n: u32) -> usize {
    hvci_engine::bytes::index(n)
}

/// # Safety
/// `name` is a string that ends in NUL.
unsafe fn key(name: *const c_char) -> String {
    // SAFETY: what the caller promises.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}

extern "C" fn succeed() -> u32 {
    0
}

unsafe extern "C" fn nvram_load(data: *mut *mut c_uchar, len: *mut u32, _tpm: u32, name: *const c_char) -> u32 {
    // SAFETY: the library gives a name as C has it.
    let name = unsafe { key(name) };
    let store = store();
    let Some(bytes) = store.get(&name) else { return RETRY };
    let Ok(size) = u32::try_from(bytes.len()) else { return FAIL };
    // SAFETY: any size may be asked for; null is handled.
    let copy = unsafe { libc::malloc(bytes.len().max(1)) }.cast::<c_uchar>();
    if copy.is_null() {
        return FAIL;
    }
    // SAFETY: `copy` has room for `bytes`, and is new. `data` and `len` are the library's own variables; it frees the buffer.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        *data = copy;
        *len = size;
    }
    0
}

unsafe extern "C" fn nvram_store(data: *const c_uchar, len: u32, _tpm: u32, name: *const c_char) -> u32 {
    if data.is_null() || to_usize(len) > MAX_STATE {
        return FAIL;
    }
    // SAFETY: the library gives `len` bytes, and a name as C has it.
    let (bytes, name) = unsafe { (slice::from_raw_parts(data, to_usize(len)).to_vec(), key(name)) };
    store().insert(name, bytes);
    0
}

unsafe extern "C" fn nvram_delete(_tpm: u32, name: *const c_char, must_exist: c_uchar) -> u32 {
    // SAFETY: the library gives a name as C has it.
    let name = unsafe { key(name) };
    if store().remove(&name).is_none() && must_exist != 0 { FAIL } else { 0 }
}

unsafe extern "C" fn io_locality(locality: *mut u32, _tpm: u32) -> u32 {
    // SAFETY: the library's own variable.
    unsafe { *locality = 0 };
    0
}

unsafe extern "C" fn io_physical_presence(present: *mut c_uchar, _tpm: u32) -> u32 {
    // SAFETY: the library's own variable.
    unsafe { *present = 0 };
    0
}
