//! A process that holds a TPM, and a stream to another process. Whatever the other side does, reading and writing end at a deadline.

use std::{
    io::{self, ErrorKind},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

/// Our end of a stream socket.
#[derive(Debug)]
pub(super) struct Link(OwnedFd);

impl Link {
    pub(super) fn new(socket: impl Into<OwnedFd>) -> Self {
        Self(socket.into())
    }

    /// Sends all of it.
    pub(super) fn send(&self, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(&self.0, bytes, SendFlags::DONTWAIT) {
                Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
                Err(e) => self.wait(e, PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Fills all of it. How much that is, the caller bounds.
    pub(super) fn receive(&self, mut buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
        while !buffer.is_empty() {
            match recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((_, 0)) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok((_, n)) => buffer = buffer.get_mut(n..).unwrap_or_default(),
                Err(e) => self.wait(e, PollFlags::IN, deadline)?,
            }
        }
        Ok(())
    }

    /// After an error: until there is something to be done, if there is any use in it.
    fn wait(&self, error: Errno, event: PollFlags, deadline: Instant) -> io::Result<()> {
        match error {
            Errno::INTR => Ok(()),
            Errno::AGAIN => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(ErrorKind::TimedOut.into());
                }
                let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
                match poll(&mut [PollFd::new(&self.0, event)], Some(&timeout)) {
                    Ok(_) | Err(Errno::INTR) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            _ => Err(error.into()),
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A process; ends when dropped.
#[derive(Debug)]
pub(super) struct Process(Child);

impl Process {
    pub(super) fn start(mut command: Command) -> io::Result<Self> {
        // an interrupt at the terminal is for the one who has the TPM, who then stops it in order
        command.process_group(0).spawn().map(Self)
    }

    pub(super) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Whether it still runs, as far as anyone knows.
    pub(super) fn runs(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(Some(_)))
    }

    /// Why nothing came from it, given how the stream failed.
    pub(super) fn silence(&mut self, error: &io::Error) -> String {
        if error.kind() == ErrorKind::TimedOut {
            return "the process does not answer".to_owned();
        }
        // it has closed its end, or has just died of a signal: a moment later it can be asked which
        for _ in 0..20 {
            match self.0.try_wait() {
                Ok(Some(status)) => return format!("the process has ended ({status})"),
                Ok(None) => thread::sleep(Duration::from_millis(5)),
                Err(_) => break,
            }
        }
        format!("the process cannot be reached: {error}")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // if that fails, it is gone already
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
