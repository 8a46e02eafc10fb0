//! Who uses a mount.

use crate::mount::MountId;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// A process that keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its number.
    pub pid: u32,
    /// Its name as in /proc/PID/comm.
    pub command: String,
    /// How: `root directory`, `working directory`, `program`, `open file`.
    pub use_of: &'static str,
}

/// The numbers of all processes that /proc shows.
pub(crate) fn all() -> io::Result<Vec<u32>> {
    Ok(std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Processes that have their root, their working directory, their program or an open file in the mount `id`.
///
/// A help for an error message, not a proof: processes that this one may not look into are missed, as are mapped files. Looks for
/// `patience` at most, and names at most `limit` processes, each once.
pub fn users_of(id: MountId, limit: usize, patience: Duration) -> Vec<User> {
    let until = Instant::now() + patience;
    let mut users = Vec::new();
    for pid in all().unwrap_or_default() {
        if users.len() >= limit || Instant::now() > until {
            break;
        }
        if let Some(use_of) = use_by(pid, id, until) {
            let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            users.push(User { pid, command: command.trim_end().to_owned(), use_of });
        }
    }
    users
}

fn use_by(pid: u32, id: MountId, until: Instant) -> Option<&'static str> {
    for (link, use_of) in [("root", "root directory"), ("cwd", "working directory"), ("exe", "program")] {
        if leads_into(Path::new(&format!("/proc/{pid}/{link}")), id) {
            return Some(use_of);
        }
    }
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        if Instant::now() > until {
            break;
        }
        if leads_into(&entry.path(), id) {
            return Some("open file");
        }
    }
    None
}

/// Whether the link of /proc leads into the mount. Opened by path only: this neither waits for a device nor takes a lease away.
fn leads_into(link: &Path, id: MountId) -> bool {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .is_ok_and(|fd| MountId::of_fd(fd.as_fd()).is_ok_and(|found| found == id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_this_process_uses_the_mount_of_its_open_file() {
        let file = std::fs::File::open("/proc/self/maps").unwrap();
        let users = users_of(MountId::of_fd(&file).unwrap(), usize::MAX, Duration::from_secs(10));
        assert!(users.iter().any(|user| user.pid == std::process::id() && user.use_of == "open file"));
    }
}
