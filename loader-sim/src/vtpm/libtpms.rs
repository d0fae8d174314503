//! The reference TPM 2.0, libtpms, in a process of its own: the backend that others are compared with.
//!
//! ```text
//! LibtpmsTpm ─Unix stream pair─► `hvci-sim tpm-worker` (empty environment) ─dlopen─► libtpms.so.0
//! ```
//!
//! libtpms is C, has one TPM in a process, and parses what a guest sends. So each machine's TPM is a process, which holds the state in memory and
//! nothing else. A worker that dies, does not answer in time or answers what is no answer is ended; its TPM has then failed, for good, unless
//! [`load`](Tpm::load) puts a saved one in its place. Other machines' TPMs are not concerned. Dropped, it takes its process along.

mod library;
pub mod worker;

use std::{
    fmt,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use self::worker::{DONE, EXEC, HEADER, MAX_BODY, REFUSED, RESET, SAVE, START};
use super::{
    MAX_MESSAGE, MIN_RESPONSE, Tpm, TpmFailed,
    link::{Link, Process},
    misframed,
};

/// The subcommand of `hvci-sim` that is the worker.
pub const WORKER_COMMAND: &str = "tpm-worker";

/// RSA keys of a guest may take seconds on a busy host.
const TIMEOUT: Duration = Duration::from_secs(60);
const BACKEND: &str = "libtpms";

/// A TPM of libtpms.
pub struct LibtpmsTpm {
    program: PathBuf,
    timeout: Duration,
    worker: Result<Worker, TpmFailed>,
}

impl LibtpmsTpm {
    /// A new TPM with seeds of its own, before its first TPM2_Startup. `program` is `hvci-sim`, whose [`WORKER_COMMAND`] is run.
    ///
    /// # Errors
    /// [`TpmFailed`] if the program is none, or libtpms is not installed.
    pub fn start(program: &Path) -> Result<Self, TpmFailed> {
        // the worker's directory is another
        let program = std::path::absolute(program).map_err(|e| failed(format!("{}: {e}", program.display())))?;
        let worker = Worker::start(&program, &[], TIMEOUT)?;
        Ok(Self { program, timeout: TIMEOUT, worker: Ok(worker) })
    }

    /// How long the worker may take for one command, from now on, until it counts as hung. At first a minute.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The worker's process, while there is one.
    pub fn process(&self) -> Option<u32> {
        self.worker.as_ref().ok().map(|worker| worker.process.id())
    }

    fn ask(&mut self, code: u8, body: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        let answer = self.worker.as_mut().map_err(|e| e.clone())?.ask(code, body, self.timeout);
        if let Err(failed) = &answer {
            self.worker = Err(failed.clone());
        }
        answer
    }
}

impl Tpm for LibtpmsTpm {
    fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
        // shorter ones it answers by itself
        if command.len() > MAX_MESSAGE
            && let Some(response) = misframed(command)
        {
            return Ok(response);
        }
        let response = self.ask(EXEC, command)?;
        if !(MIN_RESPONSE..=MAX_MESSAGE).contains(&response.len()) {
            let error = failed(format!("the worker gave a response of {} bytes", response.len()));
            self.worker = Err(error.clone());
            return Err(error);
        }
        Ok(response)
    }

    fn reset(&mut self) -> Result<(), TpmFailed> {
        self.ask(RESET, &[]).map(drop)
    }

    fn save(&mut self) -> Result<Vec<u8>, TpmFailed> {
        self.ask(SAVE, &[])
    }

    /// In a process of its own, which takes the place of the old one only when it has taken the state.
    fn load(&mut self, state: &[u8]) -> Result<(), TpmFailed> {
        if state.is_empty() {
            return Err(failed("an empty state"));
        }
        self.worker = Ok(Worker::start(&self.program, state, self.timeout)?);
        Ok(())
    }
}

impl fmt::Debug for LibtpmsTpm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LibtpmsTpm").field("process", &self.process()).finish_non_exhaustive()
    }
}

/// A worker.
struct Worker {
    process: Process,
    link: Link,
}

impl Worker {
    /// With the state given, or with a new TPM if that is empty.
    fn start(program: &Path, state: &[u8], timeout: Duration) -> Result<Self, TpmFailed> {
        let streams = UnixStream::pair().and_then(|(ours, theirs)| Ok((ours, theirs.try_clone()?, theirs)));
        let (ours, input, output) = streams.map_err(|e| failed(format!("no stream to a worker: {e}")))?;
        let mut command = Command::new(program);
        command
            .arg(WORKER_COMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(input)))
            .stdout(Stdio::from(OwnedFd::from(output)))
            .stderr(Stdio::null());
        let process = Process::start(command).map_err(|e| failed(format!("{} cannot be started: {e}", program.display())))?;
        let mut worker = Self { process, link: Link::new(ours) };
        worker.ask(START, state, timeout)?;
        Ok(worker)
    }

    fn ask(&mut self, code: u8, body: &[u8], timeout: Duration) -> Result<Vec<u8>, TpmFailed> {
        let deadline = Instant::now() + timeout;
        let request = worker::frame(code, body).ok_or_else(|| failed(format!("more than {MAX_BODY} bytes for the worker")))?;
        let mut header = [0; HEADER];
        self.link.send(&request, deadline).map_err(|e| failed(self.process.silence(&e)))?;
        self.link.receive(&mut header, deadline).map_err(|e| failed(self.process.silence(&e)))?;
        let (code, len) = worker::read_header(header).ok_or_else(|| failed("the worker's answer is none"))?;
        let mut body = vec![0; len];
        self.link.receive(&mut body, deadline).map_err(|e| failed(self.process.silence(&e)))?;
        match code {
            DONE => Ok(body),
            REFUSED => Err(failed(String::from_utf8_lossy(&body))),
            _ => Err(failed("the worker's answer is none")),
        }
    }
}

fn failed(reason: impl Into<String>) -> TpmFailed {
    TpmFailed { backend: BACKEND, reason: reason.into() }
}
