//! A command with a container's root file system as its root, in namespaces of its own.
//!
//! This is what `vellum demo` starts itself as; it is no container engine. The process has one thread, as unshare wants.

use rustix::mount::{MountFlags, MountPropagationFlags};
use rustix::thread::UnshareFlags;
use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Runs `command` with `root` as its root. Returns only if that fails, after having said why.
pub(crate) fn run(root: &Path, command: &[OsString]) -> Result<(), ()> {
    let (what, error) = match enter(root) {
        Ok(()) => ("run the command", start(command)),
        Err((what, errno)) => (what, errno.into()),
    };
    // Whoever started this reads it; if not, nothing is lost.
    let _ = writeln!(std::io::stderr(), "error: cannot {what}: {error}");
    Err(())
}

fn start(command: &[OsString]) -> std::io::Error {
    let [program, arguments @ ..] = command else { return std::io::ErrorKind::InvalidInput.into() };
    Command::new(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/bin:/bin:/usr/sbin:/sbin")
        .env("HOME", "/")
        .exec()
}

type Failed = (&'static str, rustix::io::Errno);

fn enter(root: &Path) -> Result<(), Failed> {
    // Mounts, the host's name and System V objects are its own; processes would need a fork more than this shows.
    let own = UnshareFlags::NEWNS | UnshareFlags::NEWUTS | UnshareFlags::NEWIPC;
    #[expect(deprecated, reason = "unsafe only for CLONE_FILES, which is not among the flags")]
    rustix::thread::unshare(own).map_err(|e| ("leave the namespaces", e))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(|e| ("make mounts private", e))?;
    rustix::system::sethostname(b"vellum-demo").map_err(|e| ("set the host's name", e))?;
    // A mount of its own, so that it can become the root of the tree and nothing of the host is left in it.
    rustix::mount::mount_bind_recursive(root, root).map_err(|e| ("mount the root", e))?;
    rustix::process::chdir(root).map_err(|e| ("go to the root", e))?;
    rustix::process::pivot_root(".", ".").map_err(|e| ("change the root", e))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)
        .map_err(|e| ("let go of the host", e))?;
    rustix::process::chdir("/").map_err(|e| ("go to the new root", e))?;
    // Tools like to look here; an ordinary user's namespace may not have it, and the command does without.
    let _ = rustix::mount::mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV, None);
    Ok(())
}
