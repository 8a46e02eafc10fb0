//! Locks between processes, by flock(2).
//!
//! A flock belongs to an open file, is let go by the kernel when its holder dies however it dies, and lies on an inode.
//! The last is why nothing here deletes or replaces a lock's file: a process that waits on the old inode and one
//! that opens the new name would both think they hold it.
//!
//! A lock is not inherited by workers that this crate starts (descriptors are closed on exec).

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct FileLock {
    file: File,
}

impl FileLock {
    /// Waits until nobody else holds the lock in any way. Makes the file (mode 0600) if there is none.
    ///
    /// # Errors
    /// The file cannot be made or opened.
    pub fn exclusive(path: &Path) -> io::Result<Self> {
        Self::of(open(path)?, FlockOperation::LockExclusive)
    }

    /// Waits until nobody holds the lock exclusively. Makes the file if there is none.
    ///
    /// # Errors
    /// The file cannot be made or opened.
    pub fn shared(path: &Path) -> io::Result<Self> {
        Self::of(open(path)?, FlockOperation::LockShared)
    }

    /// As [`FileLock::exclusive`], but `None` instead of waiting.
    ///
    /// # Errors
    /// The file cannot be made or opened.
    pub fn try_exclusive(path: &Path) -> io::Result<Option<Self>> {
        Self::try_of(open(path)?, FlockOperation::NonBlockingLockExclusive)
    }

    /// As [`FileLock::shared`], but `None` instead of waiting.
    ///
    /// # Errors
    /// The file cannot be made or opened.
    pub fn try_shared(path: &Path) -> io::Result<Option<Self>> {
        Self::try_of(open(path)?, FlockOperation::NonBlockingLockShared)
    }

    /// Locks a file that is already open, waiting.
    ///
    /// # Errors
    /// The file system has no locks.
    pub fn exclusive_on(file: File) -> io::Result<Self> {
        Self::of(file, FlockOperation::LockExclusive)
    }

    /// Locks a file that is already open, if nobody else holds it.
    ///
    /// # Errors
    /// The file system has no locks.
    pub fn try_exclusive_on(file: File) -> io::Result<Option<Self>> {
        Self::try_of(file, FlockOperation::NonBlockingLockExclusive)
    }

    /// The locked file, for those that keep their record in it.
    pub fn file(&self) -> &File {
        &self.file
    }

    fn of(file: File, operation: FlockOperation) -> io::Result<Self> {
        rustix::io::retry_on_intr(|| flock(&file, operation))?;
        Ok(Self { file })
    }

    fn try_of(file: File, operation: FlockOperation) -> io::Result<Option<Self>> {
        match rustix::io::retry_on_intr(|| flock(&file, operation)) {
            Ok(()) => Ok(Some(Self { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for FileLock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?.into())
}

/// Whether somebody holds the lock exclusively. No file, no lock.
///
/// The question is asked by taking the lock shared for a moment, so that a [`FileLock::try_exclusive`] at the
/// same moment may be refused for no lasting reason. One who must not be disturbed by askers waits instead.
///
/// # Errors
/// The file cannot be opened, though it is there.
pub fn is_held(path: &Path) -> io::Result<bool> {
    let file =
        match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) => file,
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
    match rustix::io::retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared)) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_locks_exclude_each_other_and_leave_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        assert!(!is_held(&path).unwrap());
        let held = FileLock::exclusive(&path).unwrap();
        assert!(is_held(&path).unwrap());
        assert!(FileLock::try_exclusive(&path).unwrap().is_none());
        assert!(FileLock::try_shared(&path).unwrap().is_none());
        drop(held);
        let shared = FileLock::shared(&path).unwrap();
        assert!(FileLock::try_shared(&path).unwrap().is_some());
        assert!(!is_held(&path).unwrap(), "shared holders do not count");
        drop(shared);
        assert!(FileLock::try_exclusive(&path).unwrap().is_some());
        assert!(path.exists());
    }

    #[test]
    fn plain_a_lock_does_not_follow_a_link() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("elsewhere", dir.path().join("lock")).unwrap();
        assert!(FileLock::exclusive(&dir.path().join("lock")).is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}
