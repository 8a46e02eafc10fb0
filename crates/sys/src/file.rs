//! Files that appear whole or not at all, and folders that only their owner enters.
//!
//! Modes never depend on the process's umask: they are set on the open file.

use crate::random;
use rustix::fs::{AtFlags, Mode, OFlags};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::Path;

/// What the names of files begin with that [`publish`] has not finished. A process that was killed leaves them; whoever owns
/// the folder removes them when it sweeps.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// Has the kernel begin to write the file's data to the disk, so that a later sync finds less to do. Waits for nothing and promises
/// nothing: a file system that cannot does nothing. See sync_file_range(2), `SYNC_FILE_RANGE_WRITE`.
pub fn begin_writeback(file: impl AsFd) {
    // SAFETY: the descriptor is open as long as it is borrowed, and the call takes no memory.
    let _ = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// The same file, open for reading only: who had it open for writing through this descriptor has it no more.
///
/// # Errors
/// The kernel's; /proc is not mounted.
pub fn reopen_to_read(file: File) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(rustix::fs::CWD, crate::ioctl::path_text(file.as_fd()), flags, Mode::empty())?
        .into())
}

/// Makes `bytes` the content of the file `name` in the folder `dir`, durably: after a crash or a power cut at any moment there is the
/// old file or the new one. Mode 0600.
///
/// This is the one place where a file that must survive is put in place: write beside, fsync, rename, fsync the folder.
///
/// # Errors
/// The file system's; the old file is then untouched, or, if only the last fsync failed, either may be there.
pub fn publish(dir: impl AsFd, name: impl AsRef<OsStr>, bytes: &[u8]) -> io::Result<()> {
    publish_with(dir, name, 0o600, |file| file.write_all(bytes))
}

/// As [`publish`], with a mode, and a content that is written by `fill`.
///
/// # Errors
/// As [`publish`], and what `fill` returns.
pub fn publish_with(
    dir: impl AsFd,
    name: impl AsRef<OsStr>,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = dir.as_fd();
    let temporary = format!("{TEMPORARY_PREFIX}{}", random::hex::<8>()?);
    let result = (|| {
        let mut file = create(dir, &temporary, mode)?;
        fill(&mut file)?;
        rustix::fs::fsync(&file)?;
        Ok(rustix::fs::renameat(dir, &temporary, dir, name.as_ref())?)
    })();
    if result.is_err() {
        let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
        return result;
    }
    sync_folder(dir)
}

/// Brings the names in a folder to the disk.
///
/// # Errors
/// The file system's.
pub fn sync_folder(dir: impl AsFd) -> io::Result<()> {
    let dir = dir.as_fd();
    match rustix::fs::fsync(dir) {
        // An O_PATH descriptor cannot be synced; the folder behind it can.
        Err(rustix::io::Errno::BADF) => Ok(rustix::fs::fsync(open_folder(dir, ".")?)?),
        result => Ok(result?),
    }
}

/// Makes the file `name`, which must not exist, with exactly this mode, for reading and writing.
///
/// # Errors
/// The file system's.
pub fn create(dir: impl AsFd, name: impl AsRef<OsStr>, mode: u32) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // Without permissions for others until the mode is set: the umask may take bits away but never adds any.
    let file = rustix::fs::openat(dir, name.as_ref(), flags, Mode::from_raw_mode(0o600))?;
    if mode != 0o600 {
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    }
    Ok(file.into())
}

/// Makes the folder `name` with exactly this mode, and opens it. One that is there is opened and left as it is.
///
/// # Errors
/// The file system's; `name` is something else than a folder (a link too).
pub fn ensure_folder(dir: impl AsFd, name: impl AsRef<OsStr>, mode: u32) -> io::Result<OwnedFd> {
    let dir = dir.as_fd();
    match rustix::fs::mkdirat(dir, name.as_ref(), Mode::from_raw_mode(mode | 0o700)) {
        Ok(()) => {
            let folder = open_folder(dir, name)?;
            // The umask takes bits away, a folder above may give its group's.
            if rustix::fs::fstat(&folder)?.st_mode & 0o7777 != mode {
                rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode))?;
            }
            Ok(folder)
        }
        Err(rustix::io::Errno::EXIST) => open_folder(dir, name),
        Err(error) => Err(error.into()),
    }
}

/// Opens a folder for reading, not following a link.
///
/// # Errors
/// The file system's.
pub fn open_folder(dir: impl AsFd, name: impl AsRef<OsStr>) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name.as_ref(), flags, Mode::empty())?)
}

/// Why a folder cannot be trusted with private files.
#[derive(Debug, thiserror::Error)]
pub enum PrivateFolderError {
    /// It cannot be made or opened; what is there may be a link, which is not followed.
    #[error("cannot make or open the folder {path}")]
    Io {
        /// The folder.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody else made it.
    #[error("the folder {path} belongs to user {owner}, not to user {expected}")]
    Owner {
        /// The folder.
        path: std::path::PathBuf,
        /// Whose it is.
        owner: u32,
        /// Whose it should be.
        expected: u32,
    },
    /// Others may enter it.
    #[error("the folder {path} is open to others (mode {mode:04o}, wanted 0700)")]
    Mode {
        /// The folder.
        path: std::path::PathBuf,
        /// Its permissions.
        mode: u32,
    },
}

/// Makes the folder `path` with mode 0700 if it is not there, and opens it if it is a folder that belongs to this process's user and
/// that nobody else may enter. The last part of the path is not followed if it is a link; the parent must exist.
///
/// In a place where everybody may make files (/tmp) this is what keeps another user from preparing the folder.
///
/// # Errors
/// See [`PrivateFolderError`].
pub fn private_folder(path: &Path) -> Result<OwnedFd, PrivateFolderError> {
    let wrap = |source| PrivateFolderError::Io { path: path.to_owned(), source };
    let folder = ensure_folder(rustix::fs::CWD, path, 0o700).map_err(wrap)?;
    let stat = rustix::fs::fstat(&folder).map_err(|error| wrap(error.into()))?;
    let expected = rustix::process::geteuid().as_raw();
    if stat.st_uid != expected {
        return Err(PrivateFolderError::Owner { path: path.to_owned(), owner: stat.st_uid, expected });
    }
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(PrivateFolderError::Mode { path: path.to_owned(), mode });
    }
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn plain_published_files_replace_and_leave_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let fd = open_folder(rustix::fs::CWD, dir.path()).unwrap();
        publish(&fd, "a", b"one").unwrap();
        publish(&fd, "a", b"two").unwrap();
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"two");
        let mode = dir.path().join("a").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        let failed = publish_with(&fd, "a", 0o644, |_| Err(io::Error::other("no")));
        assert!(failed.is_err());
        assert_eq!(names(dir.path()), ["a"]);
        assert_eq!(std::fs::read(dir.path().join("a")).unwrap(), b"two");
    }

    #[test]
    fn plain_a_path_descriptor_can_be_published_into() {
        let dir = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        publish(&fd, "a", b"one").unwrap();
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn plain_a_private_folder_is_not_shared_nor_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        drop(private_folder(&path).unwrap());
        drop(private_folder(&path).unwrap());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(private_folder(&path), Err(PrivateFolderError::Mode { mode: 0o755, .. })));
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(matches!(private_folder(&link), Err(PrivateFolderError::Io { .. })));
    }
}
