//! Changes to a tree, as a container makes them.

use crate::tree::{Time, Tree, acl};
use rustix::fs::{
    AtFlags, CWD, Gid, Timespec, Timestamps, Uid, XattrFlags, chownat, lremovexattr, lsetxattr, utimensat,
};
use std::cell::Cell;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Changes the tree below a folder. The same calls give the same tree wherever they are made: times do not come
/// from the clock, every file that is written gets the next of a fixed row.
#[derive(Debug)]
pub struct Hand {
    root: PathBuf,
    clock: Cell<Time>,
}

impl Hand {
    /// A hand in the tree at `root`. Hands of different `layer` numbers give different times.
    pub fn new(root: &Path, layer: usize) -> Self {
        let seconds = 1_500_000_000 + i64::try_from(layer).unwrap_or(0) * 1000;
        Self { root: root.to_owned(), clock: Cell::new((seconds, 1)) }
    }

    /// Where a path of the tree is.
    pub fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn tick(&self, path: &str) -> io::Result<()> {
        let (seconds, nanoseconds) = self.clock.get();
        self.clock.set((seconds + 1, (nanoseconds + 1_000_003) % 1_000_000_000));
        self.time(path, seconds, nanoseconds)
    }

    /// Sets the time of last change, following no link.
    ///
    /// # Errors
    /// The file system's, as for all methods.
    pub fn time(&self, path: &str, seconds: i64, nanoseconds: u32) -> io::Result<()> {
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        named(path, Ok(utimensat(CWD, self.at(path), &times, AtFlags::SYMLINK_NOFOLLOW)?))
    }

    /// Writes a file whole, new or over the old one, in place.
    ///
    /// # Errors
    /// The file system's.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>, mode: u32) -> io::Result<()> {
        named(path, fs::write(self.at(path), content))?;
        self.chmod(path, mode)?;
        self.tick(path)
    }

    /// Adds to the end of a file.
    ///
    /// # Errors
    /// The file system's.
    pub fn append(&self, path: &str, content: impl AsRef<[u8]>) -> io::Result<()> {
        let file = fs::OpenOptions::new().append(true).open(self.at(path));
        named(path, file.and_then(|mut file| file.write_all(content.as_ref())))?;
        self.tick(path)
    }

    /// Overwrites bytes in the middle of a file.
    ///
    /// # Errors
    /// The file system's.
    pub fn patch(&self, path: &str, offset: u64, content: impl AsRef<[u8]>) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).open(self.at(path));
        named(path, file.and_then(|file| file.write_all_at(content.as_ref(), offset)))?;
        self.tick(path)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// The file system's.
    pub fn dir(&self, path: &str, mode: u32) -> io::Result<()> {
        named(path, fs::create_dir(self.at(path)))?;
        self.chmod(path, mode)
    }

    /// Makes whatever the tree declares.
    ///
    /// # Errors
    /// The file system's.
    pub fn tree(&self, tree: &Tree) -> io::Result<()> {
        tree.make(&self.root)
    }

    /// Removes an entry and all below it.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, path: &str) -> io::Result<()> {
        let at = self.at(path);
        let is_dir = named(path, fs::symlink_metadata(&at))?.is_dir();
        named(path, if is_dir { fs::remove_dir_all(at) } else { fs::remove_file(at) })
    }

    /// Renames; for a directory of a lower layer as mv(1) does, by copying when the file system says that it cannot.
    ///
    /// # Errors
    /// The file system's.
    pub fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match fs::rename(self.at(from), self.at(to)) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                let moved = std::process::Command::new("mv")
                    .args(["-T", "--"])
                    .args([self.at(from), self.at(to)])
                    .status()?;
                if moved.success() {
                    Ok(())
                } else {
                    Err(io::Error::other(format!("mv {from} {to}: {moved}")))
                }
            }
            other => named(from, other),
        }
    }

    /// Makes a further name for a file.
    ///
    /// # Errors
    /// The file system's.
    pub fn link(&self, path: &str, to: &str) -> io::Result<()> {
        named(path, fs::hard_link(self.at(to), self.at(path)))
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// The file system's.
    pub fn symlink(&self, path: &str, text: &str) -> io::Result<()> {
        named(path, std::os::unix::fs::symlink(text, self.at(path)))?;
        self.tick(path)
    }

    /// Changes the mode.
    ///
    /// # Errors
    /// The file system's.
    pub fn chmod(&self, path: &str, mode: u32) -> io::Result<()> {
        named(path, fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)))
    }

    /// Changes the owner, of a link itself.
    ///
    /// # Errors
    /// The file system's.
    pub fn chown(&self, path: &str, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        let done = chownat(CWD, self.at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
        named(path, done.map_err(io::Error::from))
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// The file system's.
    pub fn xattr(&self, path: &str, name: &str, value: impl AsRef<[u8]>) -> io::Result<()> {
        let done = lsetxattr(self.at(path), name, value.as_ref(), XattrFlags::empty());
        named(path, done.map_err(io::Error::from))
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove_xattr(&self, path: &str, name: &str) -> io::Result<()> {
        named(path, lremovexattr(self.at(path), name).map_err(io::Error::from))
    }

    /// Gives single users rights beside the mode's.
    ///
    /// # Errors
    /// The file system's.
    pub fn acl(&self, path: &str, mode: u32, users: &[(u32, u16)]) -> io::Result<()> {
        self.xattr(path, "system.posix_acl_access", acl(mode, users))
    }
}

fn named<T>(path: &str, result: io::Result<T>) -> io::Result<T> {
    result.map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}
