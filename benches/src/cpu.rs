//! Processor time and peak memory, of this process and of children (getrusage(2), clock_gettime(2), wait4(2)).
//
// UNSAFETY: these calls have no safe interface; each gets pointers to its own, initialised locals.
#![expect(unsafe_code, reason = "getrusage, clock_gettime and wait4; see UNSAFETY above")]

use std::{io, mem, process::Child, time::Duration};

/// Processor time of the whole process so far, user and system.
pub fn process() -> Duration {
    clock(libc::CLOCK_PROCESS_CPUTIME_ID)
}

/// Processor time of the calling thread so far, user and system.
pub fn thread() -> Duration {
    clock(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn clock(id: libc::clockid_t) -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a valid timespec for the call to fill.
    let result = unsafe { libc::clock_gettime(id, &raw mut now) };
    assert_eq!(result, 0, "the processor-time clocks exist on every Linux");
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// What a child used.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    /// Whether it ended with status 0.
    pub success: bool,
    /// Processor time, its own children included.
    pub cpu: Duration,
    /// Largest resident set, KiB. Not less than this process's when it was started, which the kernel counts in.
    pub peak_rss: u64,
}

/// Waits for `child` and says what it used.
///
/// # Errors
/// wait4(2) failed.
pub fn wait(child: &Child) -> io::Result<Used> {
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: a rusage is plain integers, for which zeros are a value.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    loop {
        // SAFETY: both pointers are to valid locals of the right types.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if waited == pid {
            break;
        }
        let err = io::Error::last_os_error();
        if err.kind() != io::ErrorKind::Interrupted {
            return Err(err);
        }
    }
    let time = |t: libc::timeval| Duration::from_secs(t.tv_sec.unsigned_abs()) + Duration::from_micros(t.tv_usec.unsigned_abs());
    Ok(Used {
        success: libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_rss: usage.ru_maxrss.unsigned_abs(),
    })
}

/// Largest resident set of this process so far, KiB (`VmHWM` of proc(5), which begins anew with the program, as `ru_maxrss` does not).
pub fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}
