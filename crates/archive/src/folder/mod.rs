//! A layer as a folder: the [`Target`] of drivers that keep files as files.
//!
//! ```text
//!   Style::Overlay   the folder holds only what the layer brings: hidden is a 0:0 character device, an opaque
//!                    directory has overlayfs's mark (kernel: Documentation/filesystems/overlayfs.rst)
//!   Style::Apply     the folder holds a copy of the layer below already: hidden is gone
//! ```
//!
//! # How it stays inside
//!
//! Paths are walked one name at a time from the folder's own descriptor, each name opened with O_NOFOLLOW and
//! O_DIRECTORY: there is no path for the kernel to resolve, and so no link to follow. A link or file
//! where an entry needs a directory is replaced by one. Files are made with O_EXCL, never opened.
//!
//! # What replaces what
//!
//! The same path again: the last one counts. A directory over a directory keeps its children and takes the new meta. A
//! directory over anything else of this layer starts empty, and hides what lower layers have there.
//!
//! # Rootless
//!
//! Owners that the user namespace cannot hold are recorded ([`crate::attributes`]); device nodes are left out.
//!
//! # Character devices 0:0
//!
//! Overlayfs takes one for its own whiteout. [`Style::Overlay`] keeps it as what an overlay inside the container takes for a whiteout
//! ([`crate::nested`]), or refuses it where the kernel has no such thing. [`Style::Apply`] makes the device, also without
//! privileges: the kernel allows this one to everybody.

mod dress;
mod hide;
mod levels;
mod noted;

use crate::XattrForm;
use crate::attributes::At;
use crate::target::{FileData, Finished, Kept, LayerPath, Meta, Node, SaveFile, Target, TargetError, Usage};
use crate::tree::{self, allocated, timestamps};
use levels::Levels;
use noted::Noted;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// What the folder means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One layer, to be laid over others by overlayfs.
    Overlay,
    /// A whole tree: the layers below are in it already.
    Apply,
}

/// How to fill a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FolderOptions {
    /// What the folder means.
    pub style: Style,
    /// The namespace of overlay's attributes in this store.
    pub xattrs: XattrForm,
    /// Without privileges of the host.
    pub rootless: bool,
    /// [`Style::Overlay`]: this kernel's overlayfs knows whiteouts that are files with attributes, and shows escaped ones.
    pub nested: bool,
}

/// A folder being filled. See the module's documentation.
pub struct FolderTarget {
    options: FolderOptions,
    levels: Levels,
    /// [`Style::Apply`]: hashes of the paths that this layer brought.
    own: HashSet<u64>,
    /// The directory whose way was marked last.
    marked: Vec<u8>,
    seed: u64,
    /// Hashes of directories that need not be looked through again: nothing of lower layers is left in them
    /// ([`Style::Apply`]), or this layer brought more than whiteouts in them ([`Style::Overlay`]).
    settled: HashSet<u64>,
    noted: Noted,
    measure: Option<Box<Measure>>,
    /// What the file system allocates at a time, in bytes.
    block: u64,
}

/// Tells what the layer in the folder takes on disk, once it is filled.
pub type Measure = dyn FnOnce(BorrowedFd<'_>) -> io::Result<Usage> + Send;

impl std::fmt::Debug for FolderTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FolderTarget").field("options", &self.options).finish_non_exhaustive()
    }
}

/// `result`, with the operation and the path in its error.
fn at<T, E: Into<io::Error>>(
    result: Result<T, E>,
    operation: &str,
    path: &LayerPath,
) -> Result<T, TargetError> {
    result.map_err(|error| TargetError::at(operation, path)(error.into()))
}

/// Parent and name of a path, both as bytes.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

impl FolderTarget {
    /// Fills `root`, an open directory.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn new(root: OwnedFd, options: FolderOptions) -> io::Result<Self> {
        let stat = rustix::fs::fstat(&root)?;
        let block = rustix::fs::fstatvfs(&root)?.f_frsize.max(1);
        let mut levels = Levels::new(root);
        levels.usage = Usage { bytes: allocated(&stat), inodes: 1 };
        // A hash that nobody can prepare colliding paths for.
        let seed = std::hash::BuildHasher::hash_one(&std::collections::hash_map::RandomState::new(), 0_u8);
        Ok(Self {
            options,
            levels,
            own: HashSet::new(),
            marked: Vec::new(),
            seed,
            settled: HashSet::new(),
            // Overlayfs shows the root of the nearest layer. Where a folder is applied to, it is that of the layers below already.
            noted: Noted::new(options.style == Style::Overlay),
            measure: None,
            block,
        })
    }

    /// The same with another measure than what all files in the folder take: for a [`Style::Apply`] folder that shares what it began with.
    #[must_use]
    pub fn measured_by(mut self, measure: Box<Measure>) -> Self {
        self.measure = Some(measure);
        self
    }

    /// The form whose names overlayfs would take for its own here.
    fn overlay(&self) -> Option<XattrForm> {
        (self.options.style == Style::Overlay).then_some(self.options.xattrs)
    }

    fn hash(&self, path: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64_with_seed(path, self.seed)
    }

    fn is_own(&self, path: &[u8]) -> bool {
        self.options.style == Style::Overlay || self.own.contains(&self.hash(path))
    }

    fn mark_own(&mut self, path: &[u8]) {
        if self.options.style == Style::Apply {
            let hash = self.hash(path);
            self.own.insert(hash);
        }
    }

    /// This layer brings the way to what it brings, also where a whiteout has left directories of lower layers open.
    fn mark_way(&mut self, dir: &[u8]) {
        if self.options.style != Style::Apply || self.marked == dir {
            return;
        }
        for end in (1..=dir.len()).filter(|end| *end == dir.len() || dir[*end] == b'/') {
            self.mark_own(&dir[..end]);
        }
        self.marked.clear();
        self.marked.extend_from_slice(dir);
    }

    /// Opens the directory that `path` lies in, making what is missing, and says that it is about to change. Gives the last name,
    /// and whether what is made inherits an ACL.
    fn prepare<'p>(&mut self, path: &'p LayerPath) -> Result<(&'p [u8], bool), TargetError> {
        let (parent, name) = split(path.as_bytes());
        self.enter(path, parent)?;
        self.mark_own(path.as_bytes());
        self.noted.no_link(path);
        let acl = at(self.levels.touch(), "look at the directory of", path)?;
        Ok((name, acl))
    }

    /// Opens `dir`, making what is missing; `path` is for errors.
    fn enter(&mut self, path: &LayerPath, dir: &[u8]) -> Result<(), TargetError> {
        self.mark_way(dir);
        at(self.levels.leave_for(dir), "leave a directory for", path)?;
        while self.levels.end() < dir.len() {
            let from = if self.levels.end() == 0 { 0 } else { self.levels.end() + 1 };
            let to = dir[from..].iter().position(|c| *c == b'/').map_or(dir.len(), |slash| from + slash);
            let (name, here) = (&dir[from..to], &dir[..to]);
            let top = at(self.levels.top(), "open the directory of", path)?;
            match tree::open_dir(top, OsStr::from_bytes(name)) {
                Ok(fd) => at(self.levels.enter(name, fd), "enter the directory of", path)?,
                Err(error)
                    if matches!(
                        Errno::from_io_error(&error),
                        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                    ) =>
                {
                    self.imply(path, here, name)?;
                }
                Err(error) => return Err(TargetError::at("open the directory of", path)(error)),
            }
        }
        Ok(())
    }

    /// Makes a directory that the archive has not listed.
    fn imply(&mut self, path: &LayerPath, here: &[u8], name: &[u8]) -> Result<(), TargetError> {
        let here = LayerPath::new(here)
            .map_err(|reason| TargetError::at("make a parent of", path)(io::Error::other(reason)))?;
        let acl = at(self.levels.touch(), "look at the directory of", &here)?;
        self.noted.no_link(&here);
        let meta = Meta { mode: 0o755, ..Meta::default() };
        self.make_dir(&here, name, &meta, acl)?;
        at(self.noted.imply(&here), "note the directory", &here)
    }

    /// Makes a directory, replacing what is no directory, and enters it. One that is there already gets the new meta.
    fn make_dir(&mut self, path: &LayerPath, name: &[u8], meta: &Meta, acl: bool) -> Result<(), TargetError> {
        let mode = Mode::from_raw_mode(meta.mode & 0o777 | 0o700);
        let (mut opaque, mut there) = (false, false);
        match rustix::fs::mkdirat(at(self.levels.top(), "open the directory of", path)?, name, mode) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = self.stat(path, name)?;
                there = stat.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory);
                if !there {
                    self.discard(path, name)?;
                    let top = at(self.levels.top(), "open the directory of", path)?;
                    at(rustix::fs::mkdirat(top, name, mode), "create the directory", path)?;
                    opaque = self.options.style == Style::Overlay;
                }
            }
            Err(error) => return at(Err(error), "create the directory", path),
        }
        let top = at(self.levels.top(), "open the directory of", path)?;
        let fd = at(tree::open_dir(top, OsStr::from_bytes(name)), "open the directory", path)?;
        at(self.levels.enter(name, fd), "enter the directory", path)?;
        if there {
            at(self.levels.touch(), "look at the directory", path)?;
        }
        self.dress_top(path, meta, there, acl)?;
        if opaque {
            self.mark_opaque(path)?;
        }
        if !there {
            self.levels.fresh(meta.mtime, has_default_acl(meta));
        }
        Ok(())
    }

    /// Gives the open directory its meta; its time follows when it is left.
    fn dress_top(
        &mut self,
        path: &LayerPath,
        meta: &Meta,
        there: bool,
        acl: bool,
    ) -> Result<(), TargetError> {
        let fd = at(self.levels.top(), "open the directory", path)?;
        if there {
            self.undress(path, At::Open(fd), meta)?;
        }
        let stat = at(rustix::fs::fstat(fd), "look at the directory", path)?;
        self.dress(path, At::Open(fd), &stat, meta, acl && !there)?;
        self.levels.set_time(meta.mtime, has_default_acl(meta));
        Ok(())
    }

    fn stat(&self, path: &LayerPath, name: &[u8]) -> Result<Option<Stat>, TargetError> {
        let top = at(self.levels.top(), "open the directory of", path)?;
        match rustix::fs::statat(top, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => at(Err(error), "look at", path),
        }
    }

    /// Removes what is at `path`, with all that lies below.
    fn discard(&mut self, path: &LayerPath, name: &[u8]) -> Result<(), TargetError> {
        let Some(stat) = self.stat(path, name)? else { return Ok(()) };
        let top = at(self.levels.top(), "open the directory of", path)?;
        let mut gone = Usage::default();
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let child = at(tree::open_dir(top, OsStr::from_bytes(name)), "open the directory", path)?;
            let from_tree = |error: tree::TreeError| TargetError::at("replace", path)(error.source);
            gone = tree::usage_alone(child.as_fd()).map_err(from_tree)?;
            tree::remove(top, OsStr::from_bytes(name)).map_err(from_tree)?;
        } else {
            at(rustix::fs::unlinkat(top, name, AtFlags::empty()), "replace", path)?;
            if stat.st_nlink == 1 {
                gone = Usage { bytes: allocated(&stat), inodes: 1 };
            }
        }
        self.levels.usage.bytes = self.levels.usage.bytes.saturating_sub(gone.bytes);
        self.levels.usage.inodes = self.levels.usage.inodes.saturating_sub(gone.inodes);
        self.noted.forget(path);
        Ok(())
    }

    /// Counts and dresses a link, device or pipe that was just made in the open directory.
    fn complete(&mut self, path: &LayerPath, name: &[u8], meta: &Meta, acl: bool) -> Result<(), TargetError> {
        let top = at(self.levels.top(), "open the directory of", path)?;
        let stat = at(rustix::fs::statat(top, name, AtFlags::SYMLINK_NOFOLLOW), "look at", path)?;
        self.dress(path, At::Entry(top, name), &stat, meta, acl)?;
        let times = timestamps(meta.mtime);
        at(rustix::fs::utimensat(top, name, &times, AtFlags::SYMLINK_NOFOLLOW), "set the time of", path)?;
        self.levels.usage += Usage { bytes: allocated(&stat), inodes: 1 };
        Ok(())
    }

    fn create(&mut self, path: &LayerPath, name: &[u8], mode: u32) -> Result<OwnedFd, TargetError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(mode & 0o777);
        let top = at(self.levels.top(), "open the directory of", path)?;
        match rustix::fs::openat(top, name, flags, mode) {
            Err(Errno::EXIST) => {
                self.discard(path, name)?;
                let top = at(self.levels.top(), "open the directory of", path)?;
                at(rustix::fs::openat(top, name, flags, mode), "create", path)
            }
            other => at(other, "create", path),
        }
    }

    /// Runs `make` in the open directory; what is in the way is removed and it is run again.
    fn make(
        &mut self,
        path: &LayerPath,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<()>,
    ) -> Result<rustix::io::Result<()>, TargetError> {
        match make(at(self.levels.top(), "open the directory of", path)?) {
            Err(Errno::EXIST) => {
                self.discard(path, name)?;
                Ok(make(at(self.levels.top(), "open the directory of", path)?))
            }
            other => Ok(other),
        }
    }
}

fn has_default_acl(meta: &Meta) -> bool {
    meta.xattrs.iter().any(|(name, _)| name == b"system.posix_acl_default")
}

/// Files that the disk may begin with before the barrier of the load, which then waits less. For smaller ones the calls cost more than
/// they give.
const LARGE: u64 = 1 << 20;

/// Writes a file's data where it belongs. Gives the bytes of the blocks that have some of it.
fn fill(
    fd: &OwnedFd,
    path: &LayerPath,
    size: u64,
    data: &mut dyn FileData,
    block: u64,
) -> Result<u64, TargetError> {
    let (mut end, mut blocks, mut next_block) = (0, 0, 0);
    while let Some((offset, length)) = at(data.next_extent(), "read the archive for", path)? {
        let (mut position, mut left) = (offset, length);
        while left > 0 {
            let chunk = at(data.fill_buf(), "read the archive for", path)?;
            if chunk.is_empty() {
                return at(Err(io::Error::from(io::ErrorKind::UnexpectedEof)), "read the archive for", path);
            }
            let part = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let done = match rustix::io::pwrite(fd, &chunk[..part], position) {
                Err(Errno::INTR) => 0,
                other => at(other, "write", path)?,
            };
            data.consume(done);
            position += done as u64;
            left -= done as u64;
        }
        end = position;
        let (first, last) = ((offset / block).max(next_block), end.div_ceil(block));
        blocks += last.saturating_sub(first);
        next_block = next_block.max(last);
    }
    if end < size {
        at(rustix::fs::ftruncate(fd, size), "write", path)?;
    }
    Ok(blocks * block)
}

impl Target for FolderTarget {
    fn dir(&mut self, path: &LayerPath, meta: &Meta) -> Result<(), TargetError> {
        if path.is_root() {
            at(self.levels.leave_for(b""), "leave a directory for", path)?;
            at(self.levels.touch(), "look at the directory", path)?;
            self.noted.listed(path);
            return self.dress_top(path, meta, true, false);
        }
        let (name, acl) = self.prepare(path)?;
        self.make_dir(path, name, meta, acl)?;
        self.noted.listed(path);
        Ok(())
    }

    fn file(
        &mut self,
        path: &LayerPath,
        meta: &Meta,
        size: u64,
        data: &mut dyn FileData,
    ) -> Result<(), TargetError> {
        let (name, acl) = self.prepare(path)?;
        let fd = self.create(path, name, meta.mode)?;
        let written = fill(&fd, path, size, data, self.block)?;
        if size >= LARGE {
            vellum_sys::file::begin_writeback(&fd);
        }
        let stat = at(rustix::fs::fstat(&fd), "look at", path)?;
        self.dress(path, At::Open(fd.as_fd()), &stat, meta, acl)?;
        at(rustix::fs::futimens(&fd, &timestamps(meta.mtime)), "set the time of", path)?;
        // XFS sets more aside behind what is written, and gives it back later.
        self.levels.usage += Usage { bytes: allocated(&stat).min(written), inodes: 1 };
        Ok(())
    }

    fn symlink(&mut self, path: &LayerPath, meta: &Meta, text: &[u8]) -> Result<(), TargetError> {
        let (name, acl) = self.prepare(path)?;
        let made = self.make(path, name, |dir| rustix::fs::symlinkat(text, dir, name))?;
        at(made, "create the link", path)?;
        self.complete(path, name, meta, acl)
    }

    fn hard_link(&mut self, path: &LayerPath, to: &LayerPath) -> Result<Kept, TargetError> {
        self.link(path, to)
    }

    fn node(&mut self, path: &LayerPath, meta: &Meta, node: Node) -> Result<Kept, TargetError> {
        if node == Node::Char(0, 0) && self.options.style == Style::Overlay {
            return self.keep_whiteout(path, meta);
        }
        let (name, acl) = self.prepare(path)?;
        let (kind, device) = match node {
            Node::Char(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
            Node::Block(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
            Node::Fifo => (FileType::Fifo, 0),
            Node::Socket => (FileType::Socket, 0),
        };
        let special = matches!(node, Node::Char(..) | Node::Block(..));
        if special && self.options.rootless && node != Node::Char(0, 0) {
            return self.leave_out(path, "device nodes need privileges");
        }
        let mode = Mode::from_raw_mode(meta.mode & 0o777);
        match self.make(path, name, |dir| rustix::fs::mknodat(dir, name, kind, mode, device))? {
            Err(Errno::PERM) if special => {
                return self.leave_out(path, "the system allows no device nodes here");
            }
            made => at(made, "create the node", path)?,
        }
        self.complete(path, name, meta, acl)?;
        Ok(Kept::Yes)
    }

    fn whiteout(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        match self.options.style {
            Style::Overlay => self.whiteout_by_device(path),
            Style::Apply => self.whiteout_by_removal(path),
        }
    }

    fn opaque(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        self.hide_below(path)
    }

    fn replaced(&mut self, path: &LayerPath, save: &mut SaveFile<'_>) -> Result<(), TargetError> {
        let root = at(self.levels.root(), "open the directory of", path)?;
        match self.save_own(root, path, save) {
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                ) =>
            {
                Ok(())
            }
            other => at(other, "read back for the recipe", path),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Finished, TargetError> {
        let root = LayerPath::root();
        at(self.levels.leave_all(), "set the times of directories below", &root)?;
        let measure = self.measure.take();
        let folder = at(self.levels.root(), "measure", &root)?;
        let usage = match (measure, self.options.style) {
            (Some(measure), _) => at(measure(folder), "measure", &root)?,
            (None, Style::Overlay) => self.levels.usage,
            (None, Style::Apply) => tree::usage(folder)
                .map_err(|error| TargetError::at("measure", &error.path.clone())(error.source))?,
        };
        Ok(Finished { usage, joints: self.noted.into_joints() })
    }
}
