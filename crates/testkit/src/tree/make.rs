//! Trees made on disk.

use super::{Entry, Time, Tree, What};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, chownat, lsetxattr, mknodat, utimensat,
};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

impl Tree {
    /// Makes the tree below `root`, which is made if it is not there; its own mode, owner and time are set too. What
    /// lies there already stays, and a file of the same name is written over.
    ///
    /// # Errors
    /// The file system's, with the path.
    pub fn make(&self, root: &Path) -> io::Result<()> {
        fs::create_dir_all(root).map_err(named(root))?;
        // Further names after the files they name.
        let is_link = |entry: &Entry| matches!(entry.what, What::HardLink(_));
        let files = self.entries.iter().filter(|(_, entry)| !is_link(entry));
        let links = self.entries.iter().filter(|(_, entry)| is_link(entry));
        for (path, entry) in files.chain(links) {
            let at = place(root, path);
            create(root, &at, entry).and_then(|()| dress(&at, entry)).map_err(named(&at))?;
        }
        // Directories last and the deepest first: making what is in them changes their times.
        for (path, entry) in self.entries.iter().rev() {
            if matches!(entry.what, What::Dir) {
                let at = place(root, path);
                set_time(&at, entry.time).map_err(named(&at))?;
            }
        }
        Ok(())
    }
}

fn create(root: &Path, at: &Path, entry: &Entry) -> io::Result<()> {
    let node = |kind, dev| mknodat(CWD, at, kind, Mode::from_raw_mode(0o600), dev).map_err(io::Error::from);
    match &entry.what {
        What::Dir => match fs::create_dir(at) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        },
        What::File { size, data } => {
            let file = fs::File::create(at)?;
            for (offset, bytes) in data {
                file.write_all_at(bytes, *offset)?;
            }
            file.set_len(*size)
        }
        What::HardLink(to) => fs::hard_link(place(root, to), at),
        What::Symlink(text) => std::os::unix::fs::symlink(OsStr::from_bytes(text), at),
        What::Char(major, minor) => node(FileType::CharacterDevice, rustix::fs::makedev(*major, *minor)),
        What::Block(major, minor) => node(FileType::BlockDevice, rustix::fs::makedev(*major, *minor)),
        What::Fifo => node(FileType::Fifo, 0),
        What::Socket => node(FileType::Socket, 0),
    }
}

/// Owner, mode, attributes, time: in this order, because a change of owner takes set-user-ID bits and capabilities away.
fn dress(at: &Path, entry: &Entry) -> io::Result<()> {
    if matches!(entry.what, What::HardLink(_)) {
        return Ok(());
    }
    let (uid, gid) = (rustix::fs::Uid::from_raw(entry.uid), rustix::fs::Gid::from_raw(entry.gid));
    chownat(CWD, at, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if !matches!(entry.what, What::Symlink(_)) {
        fs::set_permissions(at, fs::Permissions::from_mode(entry.mode))?;
    }
    for (name, value) in &entry.xattrs {
        lsetxattr(at, OsStr::from_bytes(name), value, XattrFlags::empty())?;
    }
    set_time(at, entry.time)
}

/// Sets the time of last change (and of last access) without following a link.
pub(crate) fn set_time(at: &Path, time: Time) -> io::Result<()> {
    let time = Timespec { tv_sec: time.0, tv_nsec: time.1.into() };
    let times = Timestamps { last_access: time, last_modification: time };
    Ok(utimensat(CWD, at, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn place(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_owned() } else { root.join(OsStr::from_bytes(path)) }
}

/// Adds the path to an error.
pub(crate) fn named(path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}
