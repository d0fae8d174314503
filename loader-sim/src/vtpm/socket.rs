//! A TPM on a socket, in swtpm's protocol: unmodified `tpm2-tools` work against it.
//!
//! ```text
//! TPM2TOOLS_TCTI=swtpm:host=127.0.0.1,port=N   commands on port N, control on port N + 1
//! TPM2TOOLS_TCTI=swtpm:path=SOCK               commands on SOCK, control on SOCK.ctrl
//! ```
//!
//! A command is as long as its header says, and so is a response; what the control socket takes is in `control`. Each socket has one client at a
//! time, who is heard to the end; one that has been silent for [`IDLE`] gives way when another waits. A message that has begun has [`PATIENCE`] to
//! end. A message that cannot be one gets its answer and is the last: nobody knows where the next would begin. Whoever floods the TPM, or asks it for
//! much, is answered as fast as a share of the host's time lets it (`quota`): he waits, and nobody else.
//!
//! Trusts nobody: a port is on the loopback interface only, where every user of the host reaches it; a path is for its owner only. Nothing but
//! commands, resets at a client's request and the end can be asked for.

pub(super) mod control;
mod quota;

use std::{
    ffi::OsString,
    fmt, fs,
    io::{self, ErrorKind},
    net::{Ipv4Addr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{FileTypeExt as _, PermissionsExt as _},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use hvci_engine::bytes::{be32, index};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use self::{control::Then, quota::Metered};
use super::{MAX_MESSAGE, MIN_RESPONSE, Tpm, TpmFailed, link::Link};

/// How long a message may take from its first byte to the end of its answer's way.
pub const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// After how long a silent client gives way to another.
pub const IDLE: Duration = if cfg!(test) { Duration::from_millis(400) } else { Duration::from_secs(10) };

/// Why a TPM is served no more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The sockets.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmFailed),
}

/// The two sockets that a TPM is served on.
#[derive(Debug)]
pub struct Server {
    commands: Listener,
    control: Listener,
}

impl Server {
    /// On two ports of 127.0.0.1: this one and the next.
    ///
    /// # Errors
    /// I/O, a port in use among it.
    pub fn tcp(port: u16) -> io::Result<Self> {
        let next = port.checked_add(1).filter(|_| port != 0);
        let next = next.ok_or_else(|| io::Error::new(ErrorKind::InvalidInput, "a port from 1 to 65534, for there are to be two"))?;
        Ok(Self { commands: Listener::tcp(port)?, control: Listener::tcp(next)? })
    }

    /// On two Unix sockets: this one, and that with `.ctrl` behind its name. What is there must be a socket that nobody listens on.
    ///
    /// # Errors
    /// I/O, a path in use among it.
    pub fn unix(path: &Path) -> io::Result<Self> {
        let mut control = OsString::from(path);
        control.push(".ctrl");
        Ok(Self { commands: Listener::unix(path)?, control: Listener::unix(Path::new(&control))? })
    }

    /// Serves the TPM until a client of the control socket asks for its end, or there is something to be read from `stop`.
    ///
    /// # Errors
    /// [`ServeError`]: the TPM has failed, or the host has no sockets left. Whatever a client does is none.
    pub fn serve(&self, tpm: &mut dyn Tpm, stop: Option<BorrowedFd<'_>>) -> Result<(), ServeError> {
        let mut commands = Channel { listener: &self.commands, client: None };
        let mut control = Channel { listener: &self.control, client: None };
        let mut tpm = Metered::new(tpm);
        loop {
            if let Some(rest) = tpm.rest() {
                if stops_within(stop, rest)? {
                    return Ok(());
                }
                continue;
            }
            let Some((command, request)) = wait(&mut commands, &mut control, stop)? else { return Ok(()) };
            // control first: a reset that was asked for before a command comes before it
            if request && let Some(Then::Shutdown) = control.turn(|link| serve_control(link, &mut tpm))? {
                return Ok(());
            }
            if command {
                commands.turn(|link| serve_command(link, &mut tpm))?;
            }
        }
    }
}

/// A socket that clients connect to.
enum Listener {
    Tcp(TcpListener),
    /// Goes with its path.
    Unix(UnixListener, PathBuf),
}

impl Listener {
    fn tcp(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(listener))
    }

    fn unix(path: &Path) -> io::Result<Self> {
        match fs::symlink_metadata(path) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            // one that a server left when it was interrupted
            Ok(there) if there.file_type().is_socket() && UnixStream::connect(path).is_err() => {}
            Ok(_) => return Err(io::Error::new(ErrorKind::AddrInUse, format!("{} is in use", path.display()))),
        }
        // nobody is to connect before it is for its owner only: it is made in a private folder and gets its name then
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
        let folder = tempfile::TempDir::with_prefix_in(".tpm-", parent)?;
        let private = folder.path().join("s");
        let listener = UnixListener::bind(&private)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(&private, fs::Permissions::from_mode(0o600))?;
        fs::rename(&private, path)?;
        Ok(Self::Unix(listener, path.to_owned()))
    }

    /// `None` if whoever knocked has gone.
    fn accept(&self) -> io::Result<Option<Link>> {
        let client = match self {
            Self::Tcp(listener) => listener.accept().and_then(|(client, _)| client.set_nodelay(true).map(|()| Link::new(client))),
            Self::Unix(listener, _) => listener.accept().map(|(client, _)| Link::new(client)),
        };
        match client {
            Ok(client) => Ok(Some(client)),
            Err(e) => match e.kind() {
                ErrorKind::WouldBlock
                | ErrorKind::Interrupted
                | ErrorKind::ConnectionAborted
                | ErrorKind::ConnectionReset
                | ErrorKind::InvalidInput => Ok(None),
                _ => Err(e),
            },
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener, _) => listener.as_fd(),
        }
    }
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(listener) => listener.fmt(f),
            Self::Unix(_, path) => path.fmt(f),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            // somebody else has removed it
            drop(fs::remove_file(path));
        }
    }
}

/// A socket and who is connected to it, with the time of the last message.
struct Channel<'a> {
    listener: &'a Listener,
    client: Option<(Link, Instant)>,
}

impl Channel<'_> {
    /// What may happen next: something from the client, or a newcomer where there is none or a silent one.
    fn events(&self, now: Instant) -> (PollFd<'_>, PollFd<'_>, Option<Duration>) {
        let nothing = PollFd::new(self.listener, PollFlags::empty());
        let newcomer = PollFd::new(self.listener, PollFlags::IN);
        let Some((link, last)) = &self.client else { return (nothing, newcomer, None) };
        let silent = now.saturating_duration_since(*last);
        match IDLE.checked_sub(silent).filter(|left| !left.is_zero()) {
            Some(left) => (PollFd::new(link, PollFlags::IN), nothing, Some(left)),
            None => (PollFd::new(link, PollFlags::IN), newcomer, None),
        }
    }

    /// Hears the client once.
    fn turn(&mut self, serve: impl FnOnce(&Link) -> Result<io::Result<Then>, TpmFailed>) -> Result<Option<Then>, TpmFailed> {
        let Some((link, last)) = &mut self.client else { return Ok(None) };
        let then = serve(link)?.unwrap_or(Then::Close);
        *last = Instant::now();
        if then == Then::Close {
            self.client = None;
        }
        Ok(Some(then))
    }
}

/// Waits for this time, or until there is something to be read from `stop`.
fn stops_within(stop: Option<BorrowedFd<'_>>, time: Duration) -> io::Result<bool> {
    let timeout = Timespec::try_from(time).map_err(io::Error::other)?;
    let mut events = stop.iter().map(|stop| PollFd::new(stop, PollFlags::IN)).collect::<Vec<_>>();
    match poll(&mut events, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Waits until one of the clients has something to say, and lets others in. Which of them has; `None` at the end.
fn wait<'a>(commands: &mut Channel<'a>, control: &mut Channel<'a>, stop: Option<BorrowedFd<'_>>) -> io::Result<Option<(bool, bool)>> {
    let now = Instant::now();
    let (first, first_newcomer, first_left) = commands.events(now);
    let (second, second_newcomer, second_left) = control.events(now);
    let timeout = first_left.into_iter().chain(second_left).min().map(Timespec::try_from).transpose().map_err(io::Error::other)?;
    let stop = match &stop {
        Some(stop) => PollFd::new(stop, PollFlags::IN),
        None => PollFd::new(control.listener, PollFlags::empty()),
    };
    let mut events = [first, second, first_newcomer, second_newcomer, stop];
    match poll(&mut events, timeout.as_ref()) {
        Ok(_) => {}
        Err(Errno::INTR) => return Ok(Some((false, false))),
        Err(e) => return Err(e.into()),
    }
    let [first, second, first_newcomer, second_newcomer, stop] = events.map(|event| !event.revents().is_empty());
    if stop {
        return Ok(None);
    }
    for (channel, spoke, newcomer) in [(commands, first, first_newcomer), (control, second, second_newcomer)] {
        // the silent one that has just said something stays
        if newcomer
            && !spoke
            && let Some(link) = channel.listener.accept()?
        {
            channel.client = Some((link, Instant::now()));
        }
    }
    Ok(Some((first, second)))
}

/// One command. The inner error is the client's, or its end.
fn serve_command(link: &Link, tpm: &mut dyn Tpm) -> Result<io::Result<Then>, TpmFailed> {
    let deadline = Instant::now() + PATIENCE;
    let mut command = vec![0; MIN_RESPONSE];
    if let Err(e) = link.receive(&mut command, deadline) {
        return Ok(Err(e));
    }
    let len = be32(&command, 2).map(index).filter(|len| (MIN_RESPONSE..=MAX_MESSAGE).contains(len));
    if let Some(len) = len {
        command.resize(len, 0);
        if let Err(e) = link.receive(command.get_mut(MIN_RESPONSE..).unwrap_or_default(), deadline) {
            return Ok(Err(e));
        }
    }
    // without a length that can be, what there is goes to the TPM, which knows what to answer
    let response = tpm.exec(&command)?;
    // the TPM's time is not the client's
    let sent = link.send(&response, Instant::now() + PATIENCE);
    Ok(sent.map(|()| if len.is_some() { Then::Continue } else { Then::Close }))
}

/// One request of the control socket.
fn serve_control(link: &Link, tpm: &mut dyn Tpm) -> Result<io::Result<Then>, TpmFailed> {
    let deadline = Instant::now() + PATIENCE;
    let mut code = [0; 4];
    if let Err(e) = link.receive(&mut code, deadline) {
        return Ok(Err(e));
    }
    let code = u32::from_be_bytes(code);
    let mut arguments = vec![0; control::arguments(code)];
    if let Err(e) = link.receive(&mut arguments, deadline) {
        return Ok(Err(e));
    }
    let (answer, then) = control::answer(tpm, code, &arguments)?;
    let sent = link.send(&answer, Instant::now() + PATIENCE);
    // the end comes whether or not anyone waits for the answer
    Ok(if then == Then::Shutdown { Ok(then) } else { sent.map(|()| then) })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        thread,
    };

    use super::*;

    /// Answers a command with itself, and fails at one that begins with 0xff.
    #[derive(Debug)]
    struct Echo;

    impl Tpm for Echo {
        fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
            if command.first() == Some(&0xff) { self.reset().map(|()| Vec::new()) } else { Ok(command.to_vec()) }
        }

        fn reset(&mut self) -> Result<(), TpmFailed> {
            Err(TpmFailed { backend: "echo", reason: "it is to fail".to_owned() })
        }

        fn save(&mut self) -> Result<Vec<u8>, TpmFailed> {
            Ok(Vec::new())
        }

        fn load(&mut self, _: &[u8]) -> Result<(), TpmFailed> {
            Ok(())
        }
    }

    /// Takes ten milliseconds a command.
    #[derive(Debug)]
    struct Slow;

    impl Tpm for Slow {
        fn exec(&mut self, command: &[u8]) -> Result<Vec<u8>, TpmFailed> {
            thread::sleep(Duration::from_millis(10));
            Echo.exec(command)
        }

        fn reset(&mut self) -> Result<(), TpmFailed> {
            Echo.reset()
        }

        fn save(&mut self) -> Result<Vec<u8>, TpmFailed> {
            Echo.save()
        }

        fn load(&mut self, state: &[u8]) -> Result<(), TpmFailed> {
            Echo.load(state)
        }
    }

    const COMMAND: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];

    /// Runs with a path that is served, and gives how serving ended, which it does at the latest when `clients` is through.
    fn served(clients: impl FnOnce(&Path)) -> Result<(), ServeError> {
        served_by(&mut Echo, clients)
    }

    fn served_by(tpm: &mut dyn Tpm, clients: impl FnOnce(&Path)) -> Result<(), ServeError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tpm");
        let server = Server::unix(&path).unwrap();
        let (stop, stopped) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let serving = scope.spawn(move || server.serve(tpm, Some(stopped.as_fd())));
            clients(&path);
            drop(stop);
            serving.join().unwrap()
        })
    }

    fn client(path: &Path) -> UnixStream {
        let client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    fn echoes(client: &mut UnixStream) -> bool {
        let mut response = [0; 12];
        client.write_all(&COMMAND).is_ok() && client.read_exact(&mut response).is_ok() && response == COMMAND
    }

    #[test]
    fn a_silent_client_gives_way_only_when_another_waits() {
        served(|path| {
            let mut first = client(path);
            assert!(echoes(&mut first));
            thread::sleep(IDLE * 2);
            assert!(echoes(&mut first));
            let mut second = client(path);
            let begun = Instant::now();
            assert!(echoes(&mut second));
            assert!(begun.elapsed() > IDLE / 2, "one at a time");
            assert!(!echoes(&mut first));
            assert!(echoes(&mut second));
        })
        .unwrap();
    }

    #[test]
    fn half_a_message_is_not_waited_for() {
        served(|path| {
            for len in [1, 9, 10, 11] {
                let mut slow = client(path);
                slow.write_all(&COMMAND[..len]).unwrap();
                assert_eq!(slow.read(&mut [0; 1]).unwrap(), 0, "{len} bytes");
            }
            assert!(echoes(&mut client(path)));
        })
        .unwrap();
    }

    #[test]
    fn a_tpm_that_fails_is_served_no_more() {
        let ended = served(|path| {
            let mut client = client(path);
            client.write_all(&[0xff, 0, 0, 0, 0, 10, 0, 0, 0, 0]).unwrap();
            assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
        });
        assert!(matches!(ended, Err(ServeError::Tpm(failed)) if failed.backend == "echo"));
    }

    #[test]
    fn a_flood_waits_and_the_end_does_not() {
        let begun = Instant::now();
        served_by(&mut Slow, |path| {
            let mut client = client(path);
            for _ in 0..25 {
                assert!(echoes(&mut client));
            }
            // 250 ms of the TPM's time less a burst of 50 ms, for a quarter of the host's
            assert!(begun.elapsed() >= Duration::from_millis(700), "{:?}", begun.elapsed());
        })
        .unwrap();
    }

    #[test]
    fn there_are_two_ports() {
        for port in [0, u16::MAX] {
            assert_eq!(Server::tcp(port).unwrap_err().kind(), ErrorKind::InvalidInput);
        }
    }
}
