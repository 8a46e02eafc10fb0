//! Trees on disk, read entry by entry, copied, measured and removed.
//!
//! Everything here works with descriptors and single names: no path is ever resolved through a link.

mod copy;
pub(crate) mod ladder;
mod links;
mod remove;
mod walk;

pub(crate) use copy::open_parent;
pub use copy::{CopyOptions, copy};
pub use remove::{remove, remove_content};
pub(crate) use walk::usage_alone;
pub use walk::{Visit, read_dir, sync, usage, walk, walk_directories};

use crate::XattrForm;
use crate::attributes::{self, At, Meaning};
use crate::nested;
use crate::target::{LayerPath, Meta, Node as Special, Time};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// How the files of a tree tell what the layer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The namespace of overlay's attributes.
    pub xattrs: XattrForm,
    /// Owners that the user namespace cannot hold are recorded in an attribute.
    pub rootless: bool,
    /// A layer's own folder, with overlay's whiteouts and marks, rather than a mounted view of a whole tree.
    pub raw: bool,
}

/// Work on a tree that failed, and where.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct TreeError {
    /// What was attempted.
    pub operation: &'static str,
    /// The entry, from the tree's root.
    pub path: LayerPath,
    /// The system's answer.
    #[source]
    pub source: io::Error,
}

impl TreeError {
    pub(crate) fn at<E: Into<io::Error>>(
        operation: &'static str,
        path: &LayerPath,
    ) -> impl FnOnce(E) -> Self {
        let path = path.clone();
        move |source| Self { operation, path, source: source.into() }
    }
}

/// An entry of a tree on disk.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The directory it lies in.
    pub dir: BorrowedFd<'a>,
    /// Its name there; `.` for the tree's root.
    pub name: &'a OsStr,
    /// What lstat says.
    pub stat: Stat,
    /// How to read it.
    pub form: Form,
}

impl<'a> Node<'a> {
    /// Looks at an entry; `name` is a single name, or `.` for `dir` itself.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn at(dir: BorrowedFd<'a>, name: &'a OsStr, form: Form) -> io::Result<Self> {
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Self { dir, name, stat, form })
    }

    /// The type, as the disk has it: an overlay whiteout is a character device.
    pub fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether this is overlayfs's whiteout, in either form: a device 0:0, or an empty file with a mark, as which a driver shows those that it keeps in
    /// another way. Never in a mounted view of a whole tree. Costs a system call for empty files.
    pub fn is_whiteout(&self) -> bool {
        if !self.form.raw {
            return false;
        }
        match self.file_type() {
            FileType::CharacterDevice => self.stat.st_rdev == 0,
            FileType::RegularFile if self.stat.st_size == 0 => {
                let mark = [self.form.xattrs.prefix(), b"whiteout"].concat();
                self.attributes_at().get(&mark).is_ok_and(|value| value.is_some())
            }
            _ => false,
        }
    }

    /// Whether this is a directory with overlayfs's opaque mark. Never in a mounted view.
    ///
    /// # Errors
    /// The file system's.
    pub fn is_opaque(&self) -> io::Result<bool> {
        if !self.form.raw || self.file_type() != FileType::Directory {
            return Ok(false);
        }
        Ok(self.attributes_at().get(self.form.xattrs.opaque().as_bytes())?.as_deref() == Some(b"y"))
    }

    fn attributes_at(&self) -> At<'_> {
        At::Entry(self.dir, self.name.as_bytes())
    }

    /// Owner, mode, time and attributes as the layer means them: attributes unescaped, overlay's and Vellum's own
    /// left out with those of a whiteout that is kept for an inner overlay ([`crate::nested`]), a recorded owner in place of the one on disk.
    ///
    /// # Errors
    /// The file system's.
    pub fn meta(&self) -> io::Result<Meta> {
        let at = self.attributes_at();
        let mut meta = Meta {
            mode: self.stat.st_mode & 0o7777,
            uid: self.stat.st_uid,
            gid: self.stat.st_gid,
            mtime: mtime(&self.stat),
            xattrs: Vec::new(),
        };
        let overlay = self.form.raw.then_some(self.form.xattrs);
        let names = at.names()?;
        let marked = names.iter().any(|name| name == nested::KEPT);
        let listed = if marked { at.get(nested::KEPT)?.unwrap_or_default() } else { Vec::new() };
        let directory = self.file_type() == FileType::Directory;
        for name in names {
            if name == attributes::STAT {
                if let Some((uid, gid, mode)) =
                    at.get(&name)?.as_deref().and_then(attributes::read_stat).filter(|_| self.form.rootless)
                {
                    (meta.uid, meta.gid, meta.mode) = (uid, gid, mode);
                }
                continue;
            }
            if let Meaning::Own(own) = attributes::unescape(&name, overlay)
                && let Some(value) = at.get(&name)?
                && !(marked && nested::belongs(&listed, &own, &value, directory))
            {
                meta.xattrs.push((own, value));
            }
        }
        meta.xattrs.sort_unstable();
        Ok(meta)
    }

    /// A regular file, opened for reading.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(&self) -> io::Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        Ok(rustix::fs::openat(self.dir, self.name, flags, Mode::empty())?.into())
    }

    /// A directory, opened for reading.
    ///
    /// # Errors
    /// The file system's; it is not a directory.
    pub fn open_dir(&self) -> io::Result<OwnedFd> {
        open_dir(self.dir, self.name)
    }

    /// A symbolic link's text.
    ///
    /// # Errors
    /// The file system's; it is not a link.
    pub fn link_text(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(self.dir, self.name, Vec::new())?.into_bytes())
    }

    /// What the layer means by it when that is neither file, directory nor link: also a device 0:0 of which only an empty
    /// file is kept ([`crate::nested`]), and not overlayfs's own whiteout. Costs a system call for empty files.
    ///
    /// # Errors
    /// The file system's.
    pub fn special(&self) -> io::Result<Option<Special>> {
        let (major, minor) = (rustix::fs::major(self.stat.st_rdev), rustix::fs::minor(self.stat.st_rdev));
        Ok(match self.file_type() {
            FileType::CharacterDevice if self.is_whiteout() => None,
            FileType::CharacterDevice => Some(Special::Char(major, minor)),
            FileType::BlockDevice => Some(Special::Block(major, minor)),
            FileType::Fifo => Some(Special::Fifo),
            FileType::Socket => Some(Special::Socket),
            FileType::RegularFile if self.stat.st_size == 0 => {
                self.attributes_at().get(nested::KEPT)?.map(|_| Special::Char(0, 0))
            }
            _ => None,
        })
    }
}

/// Opens a directory by a single name, without following a link.
///
/// # Errors
/// The file system's; it is not a directory.
pub fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// The time of the last change of the content.
#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn mtime(stat: &Stat) -> Time {
    Time { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 }
}

/// Both times of an entry set to one.
pub(crate) fn timestamps(time: Time) -> rustix::fs::Timestamps {
    let spec = rustix::fs::Timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) };
    rustix::fs::Timestamps { last_access: spec, last_modification: spec }
}

/// The bytes that an inode takes.
#[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
pub(crate) fn allocated(stat: &Stat) -> u64 {
    stat.st_blocks as u64 * 512
}
