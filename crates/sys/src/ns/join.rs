//! Entering the namespaces.

use super::holder::{self, Holder, LOCK};
use super::{Facts, NsError};
use crate::lock::FileLock;
use rustix::thread::{CapabilitySet, LinkNameSpaceType, UnshareFlags};
use std::convert::Infallible;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;

/// What [`enter_or_create`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub enum Entered {
    /// Nothing: this process may mount where it is, as the machine's root or inside a namespace already.
    Privileged,
    /// This process is in the store's namespaces now, with these users and groups, and should [`reexec`].
    Joined(Facts),
}

/// Whether this process is user 0, of the machine or of a namespace, and may mount there.
pub fn is_privileged() -> bool {
    rustix::process::geteuid().is_root()
        && rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Sees to it that this process may mount: if it is not privileged, it joins the namespaces that are kept for `dir`, the store's runtime folder, and
/// makes them first if there are none.
///
/// `arguments` are what this executable must be started with to call [`super::hold`] with the same `dir`. Must be called before
/// the process has threads. The working directory stays, by its path; if that cannot be, it is `/`.
///
/// # Errors
/// User namespaces are not available to this user; the process has threads; `dir` is not private.
pub fn enter_or_create<A: AsRef<OsStr>>(
    dir: &Path,
    arguments: impl IntoIterator<Item = A>,
) -> Result<Entered, NsError> {
    if is_privileged() {
        return Ok(Entered::Privileged);
    }
    single_threaded()?;
    crate::file::private_folder(dir).map_err(NsError::Folder)?;
    let path = dir.join(LOCK);
    let lock = FileLock::exclusive(&path)
        .map_err(|error| NsError::system(format!("lock {}", path.display()), error))?;
    let found = match holder::find(dir)? {
        Some(holder) => holder,
        None => {
            holder::create(arguments)?;
            holder::find(dir)?
                .ok_or_else(|| NsError::Unavailable { reason: "the holder ended at once".into() })?
        }
    };
    drop(lock);
    join(&found)?;
    Facts::read().map(Entered::Joined).map_err(|error| NsError::system("read /proc/self/uid_map", error))
}

fn join(holder: &Holder) -> Result<(), NsError> {
    let folder = std::env::current_dir();
    let enter = |namespace: &std::fs::File, kind, name: &str| {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(kind))
            .map_err(|error| NsError::system(format!("join the {name} namespace of the store"), error))
    };
    enter(&holder.user, LinkNameSpaceType::User, "user")?;
    enter(&holder.mount, LinkNameSpaceType::Mount, "mount")?;
    if let Ok(folder) = folder {
        // Joining went to the root; a folder that is not there in the namespace leaves it there.
        let _ = std::env::set_current_dir(folder);
    }
    Ok(())
}

pub(super) fn single_threaded() -> Result<(), NsError> {
    let tasks = std::fs::read_dir("/proc/self/task")
        .map_err(|error| NsError::system("read /proc/self/task", error))?
        .count();
    if tasks == 1 { Ok(()) } else { Err(NsError::Threads) }
}

/// Gives this process mounts, a name of the host, and System V objects of its own, copies of what it sees. Needs the privileges of
/// [`is_privileged`].
///
/// # Errors
/// This process has threads, of which only one would be moved; the kernel's.
pub fn separate() -> Result<(), NsError> {
    single_threaded()?;
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    // SAFETY: the flags leave the table of descriptors shared as it was, so that nobody's descriptor changes its meaning.
    unsafe { rustix::thread::unshare_unsafe(own) }
        .map_err(|error| NsError::system("leave the namespaces", error))
}

/// Replaces this process by this executable with the same arguments. Returns only the error.
///
/// # Errors
/// The kernel's.
pub fn reexec() -> io::Result<Infallible> {
    Err(crate::detach::this_executable(std::env::args_os().skip(1)).exec())
}
