//! A user namespace that nobody lives in: what a mount with mapped owners takes its maps from.

use rustix::process::{Pid, Signal, WaitOptions};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

/// A process that only waits, in a user namespace of its own; killed when dropped.
struct Waiting(Pid);

impl Waiting {
    fn start() -> io::Result<Self> {
        let flags = libc::c_long::from(libc::CLONE_NEWUSER | libc::CLONE_FILES | libc::SIGCHLD);
        let none: libc::c_long = 0;
        // SAFETY: without CLONE_VM this is a fork: the child has memory of its own. All that it does there is system calls, which is allowed in a child of a process with threads, and it
        // never returns. It shares the table of descriptors, of which it touches none: with a copy it would hold every lock of this process's files for as long as it lives.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, none, none, none, none) };
        if pid == 0 {
            // It ends with the thread that made it, if that does not kill it.
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            loop {
                // SAFETY: a system call without arguments.
                unsafe { libc::pause() };
            }
        }
        let pid = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 0).and_then(Pid::from_raw);
        pid.map(Self).ok_or_else(io::Error::last_os_error)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // A child of ours that nobody has waited for: the pid is nobody else's.
        let _ = rustix::process::kill_process(self.0, Signal::KILL);
        let _ = rustix::process::waitpid(Some(self.0), WaitOptions::empty());
    }
}

/// Makes a user namespace with these maps of users and groups: `inside:outside:size`, several joined by commas.
///
/// It costs a process that lives for as long as that takes. For [`DetachedMount::set_idmap`](crate::mount::DetachedMount::set_idmap); needs CAP_SYS_ADMIN, CAP_SETUID and CAP_SETGID.
///
/// # Errors
/// A map is none ([`io::ErrorKind::InvalidInput`]); the system has no user namespaces to give; a missing privilege.
pub fn mapped(uids: &str, gids: &str) -> io::Result<OwnedFd> {
    let (uids, gids) = (lines(uids)?, lines(gids)?);
    let waiting = Waiting::start()?;
    let proc = format!("/proc/{}", waiting.0.as_raw_nonzero());
    std::fs::write(format!("{proc}/uid_map"), uids)?;
    std::fs::write(format!("{proc}/gid_map"), gids)?;
    Ok(File::open(format!("{proc}/ns/user"))?.into())
}

/// The maps as the kernel wants them.
fn lines(maps: &str) -> io::Result<String> {
    let line = |map: &str| {
        let numbers: Vec<u32> = map.split(':').map_while(|number| number.parse().ok()).collect();
        let sound = numbers.len() == 3 && map.split(':').count() == 3;
        sound.then(|| format!("{} {} {}\n", numbers[0], numbers[1], numbers[2])).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("'{}' is no map of owners", map.escape_debug()),
            )
        })
    };
    maps.split(',').map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_maps_are_read() {
        assert_eq!(lines("0:1000:1,1:100000:65535").unwrap(), "0 1000 1\n1 100000 65535\n");
        for wrong in ["", "0:1", "0:1:2:3", "a:1:2", "0:1:2,", "0:-1:2"] {
            assert!(lines(wrong).is_err(), "{wrong}");
        }
    }
}
