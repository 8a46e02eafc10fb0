//! What a child process cost.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

/// A child process that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// User and system time of the child and of all the children it waited for.
    pub cpu: Duration,
    /// The largest resident set of any of them, in KiB, mapped files included.
    pub peak_kib: u64,
}

/// Waits for `child` and tells what it cost (wait4(2)).
///
/// # Errors
/// The child was waited for already.
pub fn wait_with_usage(child: Child) -> io::Result<Ended> {
    let pid = libc::pid_t::try_from(child.id()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut status = 0;
    // SAFETY: rusage is a structure of integers, for which all zeros is a valid value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to live local variables of the types that wait4 writes, and the pid is that of a child
        // which `child`, owned by this function, has not reaped.
        let reaped = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if reaped == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    let time = |t: libc::timeval| {
        Duration::from_secs(u64::try_from(t.tv_sec).unwrap_or(0))
            + Duration::from_micros(u64::try_from(t.tv_usec).unwrap_or(0))
    };
    Ok(Ended {
        status: ExitStatus::from_raw(status),
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        peak_kib: u64::try_from(usage.ru_maxrss).unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_childs_end_and_cost_are_told() {
        let child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let ended = super::wait_with_usage(child).unwrap();
        assert_eq!(ended.status.code(), Some(3));
        assert!(ended.peak_kib > 100);
    }
}
