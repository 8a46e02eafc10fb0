//! Ioctls that rustix has no call for: freezing a file system, the id of a mount namespace.

use rustix::ioctl::{Getter, Opcode, Updater, ioctl, opcode};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// The name under which this process finds its own descriptor: for calls that take only a path.
pub(crate) fn path_text(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

const FIFREEZE: Opcode = opcode::read_write::<libc::c_int>(b'X', 119);
const FITHAW: Opcode = opcode::read_write::<libc::c_int>(b'X', 120);
const NS_GET_MNTNS_ID: Opcode = opcode::read::<u64>(0xb7, 5);
const _: () = assert!(FIFREEZE == 0xc004_5877);
const _: () = assert!(NS_GET_MNTNS_ID == 0x8008_b705);

/// A file system that takes no writes until this is dropped: who writes waits. Frees itself when dropped, not when the process
/// is killed: whoever freezes must be short.
#[derive(Debug)]
pub struct Frozen<F: AsFd> {
    fd: Option<F>,
}

impl<F: AsFd> Frozen<F> {
    /// Writes all out and stops the file system that `fd` (a folder opened for reading) lies in.
    ///
    /// # Errors
    /// Not privileged, already frozen (`EBUSY`), or a file system that cannot (`EOPNOTSUPP`: tmpfs, overlayfs).
    pub fn new(fd: F) -> io::Result<Self> {
        let mut unused = 0;
        // SAFETY: FIFREEZE reads and writes no memory; the size in its number is historical and the int covers it.
        let request = unsafe { Updater::<FIFREEZE, libc::c_int>::new(&mut unused) };
        // SAFETY: the request is of the type that its number says.
        unsafe { ioctl(&fd, request) }?;
        Ok(Self { fd: Some(fd) })
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// Somebody else thawed it.
    pub fn thaw(mut self) -> io::Result<()> {
        self.fd.take().map_or(Ok(()), |fd| thaw(&fd))
    }
}

impl<F: AsFd> Drop for Frozen<F> {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            let _ = thaw(&fd);
        }
    }
}

fn thaw(fd: &impl AsFd) -> io::Result<()> {
    let mut unused = 0;
    // SAFETY: FITHAW reads and writes no memory; the size in its number is historical and the int covers it.
    let request = unsafe { Updater::<FITHAW, libc::c_int>::new(&mut unused) };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(fd, request) }?)
}

/// The number of a mount namespace that is never used again in this boot (Linux 6.11); `namespace` is an open /proc/PID/ns/mnt.
pub(crate) fn mount_namespace_id(namespace: impl AsFd) -> io::Result<u64> {
    // SAFETY: NS_GET_MNTNS_ID writes one 64-bit number.
    let request = unsafe { Getter::<NS_GET_MNTNS_ID, u64>::new() };
    // SAFETY: the request is of the type that its number says.
    Ok(unsafe { ioctl(namespace, request) }?)
}
