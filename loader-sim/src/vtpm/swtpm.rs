//! A TPM 2.0 in a swtpm process: the emulator that QEMU and libvirt give machines, over its own protocol (`swtpm/tpm_ioctl.h`).
//!
//! ```text
//! command socket   a TPM command ─► its response
//! control socket   code u32, arguments ─► result u32 (0 is success), values      all big endian
//!     INIT          flags u32                              power on, or again
//!     GET_STATEBLOB flags u32, type u32, offset u32     ─► flags u32, whole length u32, length u32, bytes
//!     SET_STATEBLOB flags u32, type u32, length u32, bytes
//! ```
//!
//! swtpm reads a stream, in which a command is as long as its header says. So a command whose header says something else never reaches it, and
//! gets the answer that libtpms, which is in there, gives. swtpm keeps its state in a folder; that folder is in memory where there is `/dev/shm`,
//! for its owner only, and goes with the TPM, unless the program that holds it is killed. As with [`super::libtpms`], a process that dies or does not answer is a TPM that has failed.

use std::{
    fmt,
    io::{self, ErrorKind},
    os::unix::net::UnixStream,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use hvci_engine::bytes::{be32, index};
use tempfile::TempDir;

use super::{
    MAX_MESSAGE, MIN_RESPONSE, Tpm, TpmFailed,
    link::{Link, Process},
    misframed,
    socket::control::{GET_STATEBLOB, INIT, INIT_DELETE_VOLATILE, SET_STATEBLOB},
    state::{MAX_STATE, State},
};

const BACKEND: &str = "swtpm";
/// RSA keys of a guest may take seconds on a busy host.
const TIMEOUT: Duration = Duration::from_secs(60);
const MAGIC: [u8; 8] = *b"swtpm\0\0\0";
const PERMANENT: u32 = 1;
const VOLATILE: u32 = 2;

/// A TPM of swtpm.
pub struct SwtpmTpm {
    timeout: Duration,
    emulator: Result<Emulator, TpmFailed>,
}

impl SwtpmTpm {
    /// A new TPM with seeds of its own, before its first TPM2_Startup.
    ///
    /// # Errors
    /// [`TpmFailed`] if swtpm is not installed.
    pub fn start() -> Result<Self, TpmFailed> {
        Ok(Self { timeout: TIMEOUT, emulator: Ok(Emulator::start(None, TIMEOUT)?) })
    }

    /// How long it may take for one command, from now on, until it counts as hung. At first a minute.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The emulator's process, while there is one.
    pub fn process(&self) -> Option<u32> {
        self.emulator.as_ref().ok().map(|emulator| emulator.process.id())
    }

    /// Whatever fails, fails for good.
    fn with<T>(&mut self, act: impl FnOnce(&mut Emulator, Instant) -> Result<T, TpmFailed>) -> Result<T, TpmFailed> {
        let deadline = Instant::now() + self.timeout;
        let done = act(self.emulator.as_mut().map_err(|e| e.clone())?, deadline);
        if let Err(failed) = &done {
            self.emulator = Err(failed.clone());
        }
        done
    }
}

impl Tpm for SwtpmTpm {
    fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        if let Some(response) = misframed(command) {
            return Ok(response);
        }
        self.with(|emulator, deadline| emulator.exec(command, deadline))
    }

    fn reset(&mut self) -> Result<(), TpmFailed> {
        self.with(Emulator::init)
    }

    fn save(&mut self) -> Result<Vec<u8>, TpmFailed> {
        self.with(|emulator, deadline| {
            let state = State { permanent: emulator.blob(PERMANENT, deadline)?, volatile: emulator.blob(VOLATILE, deadline)? };
            state.encode(MAGIC).ok_or_else(|| failed("a state that is too long"))
        })
    }

    /// In a process of its own, which takes the place of the old one only when it has taken the state.
    fn load(&mut self, state: &[u8]) -> Result<(), TpmFailed> {
        let state = State::decode(MAGIC, state).ok_or_else(|| failed("this is no state of a swtpm TPM"))?;
        self.emulator = Ok(Emulator::start(Some(&state), self.timeout)?);
        Ok(())
    }
}

impl fmt::Debug for SwtpmTpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwtpmTpm").field("process", &self.process()).finish_non_exhaustive()
    }
}

/// A process of swtpm.
struct Emulator {
    control: Link,
    commands: Link,
    /// Before its folder: it is to have ended when that goes.
    process: Process,
    /// Last: the process is to have ended when it goes.
    _folder: TempDir,
}

impl Emulator {
    fn start(state: Option<&State>, timeout: Duration) -> Result<Self, TpmFailed> {
        let deadline = Instant::now() + timeout;
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::with_prefix_in("hvci-tpm-", memory) } else { TempDir::with_prefix("hvci-tpm-") };
        let folder = folder.map_err(|e| failed(format!("no folder for swtpm: {e}")))?;
        let (commands, control) = (folder.path().join("command"), folder.path().join("control"));
        let mut command = Command::new("swtpm");
        command
            .args(["socket", "--tpm2", "--terminate"])
            .args(["--tpmstate".to_owned(), format!("dir={},mode=0600", folder.path().display())])
            .args(["--server".to_owned(), format!("type=unixio,path={},mode=0600", commands.display())])
            .args(["--ctrl".to_owned(), format!("type=unixio,path={},mode=0600", control.display())])
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Process::start(command).map_err(|e| {
            failed(if e.kind() == ErrorKind::NotFound {
                "there is no swtpm: install the package swtpm".to_owned()
            } else {
                format!("swtpm cannot be started: {e}")
            })
        })?;
        // without a client it waits, and with --terminate it ends when one has gone: control first, then commands, and both for good
        let control = connect(&control, &mut process, deadline)?;
        let commands = connect(&commands, &mut process, deadline)?;
        let mut emulator = Self { control, commands, process, _folder: folder };
        if let Some(state) = state {
            emulator.set_blob(PERMANENT, &state.permanent, deadline)?;
            emulator.set_blob(VOLATILE, &state.volatile, deadline)?;
        }
        emulator.init(deadline)?;
        Ok(emulator)
    }

    fn exec(&mut self, command: &[u8], deadline: Instant) -> Result<Vec<u8>, TpmFailed> {
        let Self { commands, process, .. } = self;
        let mut response = vec![0; MIN_RESPONSE];
        let header = commands.send(command, deadline).and_then(|()| commands.receive(&mut response, deadline));
        header.map_err(|e| failed(process.silence(&e)))?;
        let len = be32(&response, 2).map(index).filter(|len| (MIN_RESPONSE..=MAX_MESSAGE).contains(len));
        response.resize(len.ok_or_else(|| failed("swtpm's response is none"))?, 0);
        let rest = response.get_mut(MIN_RESPONSE..).unwrap_or_default();
        commands.receive(rest, deadline).map_err(|e| failed(process.silence(&e)))?;
        Ok(response)
    }

    /// Power on, without the volatile state of before; but with one that was set for this start.
    fn init(&mut self, deadline: Instant) -> Result<(), TpmFailed> {
        self.control("INIT", INIT, &INIT_DELETE_VOLATILE.to_be_bytes(), &mut [], deadline)
    }

    fn blob(&mut self, which: u32, deadline: Instant) -> Result<Vec<u8>, TpmFailed> {
        let mut values = [0; 12];
        let arguments = [[0; 4], which.to_be_bytes(), [0; 4]].concat();
        self.control("GET_STATEBLOB", GET_STATEBLOB, &arguments, &mut values, deadline)?;
        let len = be32(&values, 8).map(index).filter(|len| *len <= MAX_STATE && be32(&values, 4).map(index) == Some(*len));
        let mut blob = vec![0; len.ok_or_else(|| failed("swtpm's state is not whole"))?];
        self.control.receive(&mut blob, deadline).map_err(|e| failed(self.process.silence(&e)))?;
        Ok(blob)
    }

    fn set_blob(&mut self, which: u32, blob: &[u8], deadline: Instant) -> Result<(), TpmFailed> {
        let len = u32::try_from(blob.len()).map_err(|_| failed("a state that is too long"))?;
        let arguments = [&[0; 4], &which.to_be_bytes()[..], &len.to_be_bytes(), blob].concat();
        self.control("SET_STATEBLOB", SET_STATEBLOB, &arguments, &mut [], deadline)
    }

    /// One command of the control socket, whose values fill `values`.
    fn control(&mut self, name: &str, code: u32, arguments: &[u8], values: &mut [u8], deadline: Instant) -> Result<(), TpmFailed> {
        let Self { control, process, .. } = self;
        let exchange = || -> io::Result<u32> {
            control.send(&[&code.to_be_bytes()[..], arguments].concat(), deadline)?;
            let mut result = [0; 4];
            control.receive(&mut result, deadline)?;
            Ok(u32::from_be_bytes(result))
        };
        let result = exchange().map_err(|e| failed(process.silence(&e)))?;
        if result != 0 {
            return Err(failed(format!("{name}: error {result:#x}")));
        }
        control.receive(values, deadline).map_err(|e| failed(process.silence(&e)))
    }
}

/// Waits until it listens.
fn connect(path: &Path, process: &mut Process, deadline: Instant) -> Result<Link, TpmFailed> {
    loop {
        let error = match UnixStream::connect(path) {
            Ok(stream) => return Ok(Link::new(stream)),
            Err(e) => e,
        };
        if !process.runs() || Instant::now() >= deadline {
            return Err(failed(format!("swtpm does not listen: {}", process.silence(&error))));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn failed(reason: impl Into<String>) -> TpmFailed {
    TpmFailed { backend: BACKEND, reason: reason.into() }
}
