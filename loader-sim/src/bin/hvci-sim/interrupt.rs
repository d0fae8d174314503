//! An interrupt at the terminal as something that can be waited for, so that what is on ends in order.

use std::{
    io::{ErrorKind, Read as _},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    time::Duration,
};

use anyhow::Result;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Something is to be read from it once a signal has come.
pub(crate) struct Interrupt {
    stop: UnixStream,
    // what a signal writes to
    _interrupted: UnixStream,
}

impl Interrupt {
    /// From now on a signal does not end this process by itself.
    pub(crate) fn listen() -> Result<Self> {
        let (stop, interrupted) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, interrupted.try_clone()?)?;
        }
        Ok(Self { stop, _interrupted: interrupted })
    }

    /// Waits for a signal; `false` if none has come in this time.
    pub(crate) fn within(&self, time: Duration) -> Result<bool> {
        self.stop.set_read_timeout(Some(time))?;
        loop {
            match (&self.stop).read(&mut [0]) {
                Ok(_) => return Ok(true),
                // the signal itself, and what it wrote is to be read next
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(false),
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Interrupt {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stop.as_fd()
    }
}
