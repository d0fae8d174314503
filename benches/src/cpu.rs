//! Processor time and peak memory, of this process and of children (clock_gettime(2), wait4(2), proc(5)); keeping to some cores
//! (sched_setaffinity(2)).
//
// UNSAFETY: these calls have no safe interface; each gets pointers to its own, initialised locals.
#![expect(unsafe_code, reason = "clock_gettime, wait4 and sched_setaffinity; see UNSAFETY above")]

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

/// Keeps this process on the first `count` of the cores that it may use.
///
/// # Errors
/// sched_setaffinity(2) failed.
pub fn pin(count: usize) -> io::Result<()> {
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: a cpu_set_t is plain integers, for which zeros are a value: the empty set.
    let (mut allowed, mut chosen): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { (mem::zeroed(), mem::zeroed()) };
    // SAFETY: `allowed` is a valid set of `size` bytes for the call to fill.
    if unsafe { libc::sched_getaffinity(0, size, &raw mut allowed) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut left = count;
    for core in 0..usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
        // SAFETY: the core is below CPU_SETSIZE, the number of bits of a set.
        if left > 0 && unsafe { libc::CPU_ISSET(core, &allowed) } {
            // SAFETY: as above.
            unsafe { libc::CPU_SET(core, &mut chosen) };
            left -= 1;
        }
    }
    // SAFETY: `chosen` is a valid set of `size` bytes.
    if unsafe { libc::sched_setaffinity(0, size, &raw const chosen) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Largest resident set of this process so far, KiB (`VmHWM` of proc(5), which begins anew with the program, as `ru_maxrss` does not).
pub fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().find_map(|l| l.strip_prefix("VmHWM:")?.trim().strip_suffix("kB")?.trim().parse().ok()).unwrap_or(0)
}
