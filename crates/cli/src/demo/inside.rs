//! A command with a container's root file system as its root, in namespaces of its own.
//!
//! This is what `vellum demo` starts itself as; it is no container engine. The process has one thread, as unshare wants.

use crate::failure::{Result, io};
use rustix::mount::{MountFlags, MountPropagationFlags};
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// Runs `command` with `root` as its root. Returns only if that fails, after having said why.
pub(crate) fn run(root: &Path, command: &[OsString]) -> std::result::Result<(), ()> {
    let failure = match enter(root) {
        Ok(()) => io("run the command")(start(command)),
        Err(failure) => failure,
    };
    // Whoever started this reads it.
    failure.tell();
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

fn enter(root: &Path) -> Result<()> {
    let failed = |what: &'static str| move |errno: rustix::io::Errno| io(what)(errno.into());
    // Mounts, the host's name and System V objects are its own; processes would need a fork more than this shows.
    vellum_sys::ns::separate()?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).map_err(failed("make mounts private"))?;
    rustix::system::sethostname(b"vellum-demo").map_err(failed("set the host's name"))?;
    // A mount of its own, so that it can become the root of the tree and nothing of the host is left in it.
    rustix::mount::mount_bind_recursive(root, root).map_err(failed("mount the root"))?;
    rustix::process::chdir(root).map_err(failed("go to the root"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("change the root"))?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH).map_err(failed("let go of the host"))?;
    rustix::process::chdir("/").map_err(failed("go to the new root"))?;
    // Tools like to look here; an ordinary user's namespace may not have it, and the command does without.
    let _ = rustix::mount::mount("proc", "/proc", "proc", MountFlags::NOSUID | MountFlags::NODEV, None);
    Ok(())
}
