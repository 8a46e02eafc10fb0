//! Whiteouts, opaque marks, hard links, and what is about to be replaced.

use super::{FolderTarget, Style, at, split};
use crate::attributes::At;
use crate::nested;
use crate::target::{Kept, LayerPath, Meta, SaveFile, TargetError, Time, Usage};
use crate::tree::ladder::Ladder;
use crate::tree::{self, Visit, allocated, timestamps};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

impl FolderTarget {
    /// The directory that `path` lies in, without making anything: `None` if there is none.
    fn existing_parent(&self, path: &LayerPath) -> io::Result<Option<Option<OwnedFd>>> {
        match tree::open_parent(self.levels.root()?, path) {
            Ok((dir, _)) => Ok(Some(dir)),
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether this layer has something at `path` or above that is no directory, a whiteout too: then all that lower layers
    /// have below is hidden already, and no mark may take its place.
    fn is_covered(&self, path: &LayerPath) -> io::Result<bool> {
        let mut dir: Option<OwnedFd> = None;
        let mut here = LayerPath::root();
        for name in path.names() {
            here = here.join(name).map_err(io::Error::other)?;
            if self.noted.links().contains_key(&here) {
                return Ok(true);
            }
            let from = dir.as_ref().map_or(self.levels.root()?, |dir| dir.as_fd());
            match tree::open_dir(from, OsStr::from_bytes(name)) {
                Ok(below) => dir = Some(below),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOENT) => return Ok(false),
                    Some(Errno::NOTDIR | Errno::LOOP) => return Ok(self.is_own(here.as_bytes())),
                    _ => return Err(error),
                },
            }
        }
        Ok(false)
    }

    /// All that lower layers have in the directory `path` is hidden.
    pub(super) fn hide_below(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        if at(self.is_covered(path), "look at", path)? {
            return Ok(());
        }
        self.enter(path, path.as_bytes())?;
        at(self.levels.touch(), "look at the directory", path)?;
        match self.options.style {
            Style::Overlay => self.mark_opaque(path),
            Style::Apply => {
                // A descriptor of its own: the open directory is borrowed from what remembers what was cleared.
                let top = at(self.levels.top(), "open the directory", path)?;
                let fd = at(tree::open_dir(top, OsStr::new(".")), "open the directory", path)?;
                at(self.clear_lower(fd.as_fd(), path), "empty the directory", path)
            }
        }
    }

    pub(super) fn whiteout_by_device(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        let (parent, name) = split(path.as_bytes());
        let above = path.split().map(|(parent, _)| parent).unwrap_or_default();
        if at(self.is_covered(&above), "look at", path)? || self.noted.links().contains_key(path) {
            return Ok(());
        }
        self.enter(path, parent)?;
        let Some(stat) = self.stat(path, name)? else { return self.make_whiteout(path, name) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        let hash = self.hash(path.as_bytes());
        if !self.settled.contains(&hash)
            && self.noted.is_implied(path)
            && at(self.holds_only_whiteouts(path, name), "look into", path)?
        {
            at(self.levels.touch(), "look at the directory of", path)?;
            self.discard(path, name)?;
            return self.make_whiteout(path, name);
        }
        self.settled.insert(hash);
        self.enter(path, path.as_bytes())?;
        at(self.levels.touch(), "look at the directory", path)?;
        self.mark_opaque(path)
    }

    /// Keeps a device 0:0 as the whiteout that an overlay inside the container takes it for.
    pub(super) fn keep_whiteout(&mut self, path: &LayerPath, meta: &Meta) -> Result<Kept, TargetError> {
        if !self.options.nested {
            let reason = "overlayfs takes it for a whiteout of its own, and this kernel's has no other form of it (Linux 6.8)";
            let error = io::Error::new(io::ErrorKind::Unsupported, reason);
            return at(Err(error), "keep the character device 0:0", path);
        }
        let (name, acl) = self.prepare(path)?;
        let fd = self.create(path, name, meta.mode)?;
        let stat = at(rustix::fs::fstat(&fd), "look at", path)?;
        self.dress(path, At::Open(fd.as_fd()), &stat, meta, acl)?;
        at(nested::keep(At::Open(fd.as_fd()), self.options.xattrs), "mark as a whiteout", path)?;
        at(rustix::fs::futimens(&fd, &timestamps(meta.mtime)), "set the time of", path)?;
        self.levels.usage += Usage { bytes: allocated(&stat), inodes: 1 };
        at(self.noted.whiteout_in(path), "note the directory of", path)?;
        Ok(Kept::Yes)
    }

    /// Leaves an entry out that cannot be kept. It would have hidden what lower layers have at the path, and so it is hidden.
    pub(super) fn leave_out(&mut self, path: &LayerPath, why: &'static str) -> Result<Kept, TargetError> {
        let (_, name) = split(path.as_bytes());
        self.discard(path, name)?;
        if self.options.style == Style::Overlay {
            self.make_whiteout(path, name)?;
        }
        Ok(Kept::LeftOut(why))
    }

    fn make_whiteout(&mut self, path: &LayerPath, name: &[u8]) -> Result<(), TargetError> {
        at(self.levels.touch(), "look at the directory of", path)?;
        let top = at(self.levels.top(), "open the directory of", path)?;
        let made = rustix::fs::mknodat(top, name, FileType::CharacterDevice, Mode::empty(), 0);
        at(made, "create the whiteout", path)?;
        let stat = at(rustix::fs::statat(top, name, AtFlags::SYMLINK_NOFOLLOW), "look at", path)?;
        // Where no lower layer has the directory, overlayfs lists it as it is, whiteouts too, unless it has a mark of having
        // been copied up: then it looks for them. An empty value says that from where is not known.
        let origin = [self.options.xattrs.prefix(), b"origin"].concat();
        let marked = rustix::fs::fsetxattr(top, &origin[..], b"", rustix::fs::XattrFlags::empty());
        at(marked, "mark the directory of", path)?;
        self.levels.usage += Usage { bytes: allocated(&stat), inodes: 1 };
        Ok(())
    }

    /// Whether a directory came into being only for whiteouts in it.
    fn holds_only_whiteouts(&self, path: &LayerPath, name: &[u8]) -> io::Result<bool> {
        let dir = tree::open_dir(self.levels.top()?, OsStr::from_bytes(name))?;
        let mut only = true;
        tree::walk(dir.as_fd(), self.raw_form(), &mut |below, node| {
            let full = [path.as_bytes(), b"/", below.as_bytes()].concat();
            let implied =
                below.is_root() || LayerPath::new(full).is_ok_and(|full| self.noted.is_implied(&full));
            only &= node.is_whiteout() || (node.file_type() == FileType::Directory && implied);
            Ok(if only { Visit::Enter } else { Visit::Skip })
        })
        .map_err(|error| error.source)?;
        Ok(only && self.noted.links().range(path.below()).next().is_none())
    }

    fn raw_form(&self) -> tree::Form {
        tree::Form { xattrs: self.options.xattrs, rootless: self.options.rootless, raw: true }
    }

    /// Sets overlayfs's mark on the open directory.
    pub(super) fn mark_opaque(&self, path: &LayerPath) -> Result<(), TargetError> {
        let fd = at(self.levels.top(), "open the directory", path)?;
        let flags = rustix::fs::XattrFlags::empty();
        let set = rustix::fs::fsetxattr(fd, self.options.xattrs.opaque(), b"y", flags);
        at(set, "mark as opaque", path)
    }

    pub(super) fn whiteout_by_removal(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        let (parent, name) = split(path.as_bytes());
        if at(self.existing_parent(path), "open the directory of", path)?.is_none() {
            return Ok(());
        }
        at(self.levels.leave_for(parent), "leave a directory for", path)?;
        // The parent is there, and this layer brought none of the way to it: nothing is marked.
        self.reopen(path, parent)?;
        let Some(stat) = self.stat(path, name)? else { return Ok(()) };
        let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if !self.is_own(path.as_bytes()) {
            at(self.levels.touch(), "look at the directory of", path)?;
            let top = at(self.levels.top(), "open the directory of", path)?;
            return tree::remove(top, OsStr::from_bytes(name))
                .map_err(|error| TargetError::at("remove", path)(error.source));
        }
        if directory {
            let top = at(self.levels.top(), "open the directory of", path)?;
            let fd = at(tree::open_dir(top, OsStr::from_bytes(name)), "open the directory", path)?;
            at(self.clear_lower(fd.as_fd(), path), "empty the directory", path)?;
        }
        Ok(())
    }

    /// Opens a directory that is known to be there.
    fn reopen(&mut self, path: &LayerPath, dir: &[u8]) -> Result<(), TargetError> {
        while self.levels.end() < dir.len() {
            let from = if self.levels.end() == 0 { 0 } else { self.levels.end() + 1 };
            let to = dir[from..].iter().position(|c| *c == b'/').map_or(dir.len(), |slash| from + slash);
            let top = at(self.levels.top(), "open the directory of", path)?;
            let fd =
                at(tree::open_dir(top, OsStr::from_bytes(&dir[from..to])), "open the directory of", path)?;
            at(self.levels.enter(&dir[from..to], fd), "enter the directory of", path)?;
        }
        Ok(())
    }

    /// Removes what lies in a directory and was not brought by this layer; directories keep their times. What was cleared once stays so, since
    /// lower layers bring nothing more: an archive that asks for it again and again costs nothing.
    fn clear_lower(&mut self, dir: BorrowedFd<'_>, path: &LayerPath) -> io::Result<()> {
        if self.is_cleared(path.as_bytes()) {
            return Ok(());
        }
        let mut below = path.clone();
        let mut ladder = Ladder::new(dir)?;
        self.stays(path)?;
        let mut left = vec![Clearing::of(&ladder, path.as_bytes().len())?];
        while let Some(clearing) = left.last_mut() {
            below.cut(clearing.length);
            let Some(name) = clearing.rest.next() else {
                rustix::fs::futimens(ladder.here()?, &tree::timestamps(clearing.time))?;
                let hash = self.hash(below.as_bytes());
                self.settled.insert(hash);
                left.pop();
                ladder.up()?;
                continue;
            };
            below.push(name.as_bytes());
            let here = ladder.here()?;
            if !self.is_own(below.as_bytes()) {
                tree::remove(here, &name).map_err(|error| error.source)?;
                continue;
            }
            let stat = rustix::fs::statat(here, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if directory && !self.settled.contains(&self.hash(below.as_bytes())) {
                let child = tree::open_dir(here, &name)?;
                ladder.down(child)?;
                self.stays(&below)?;
                left.push(Clearing::of(&ladder, below.as_bytes().len())?);
            }
        }
        Ok(())
    }

    /// A directory of lower layers stays because of what this layer brings in it, whether it lists it or not.
    fn stays(&mut self, path: &LayerPath) -> io::Result<()> {
        if path.is_root() { Ok(()) } else { self.noted.imply(path) }
    }

    /// Whether the directory, or one that it lies in, was cleared.
    fn is_cleared(&self, path: &[u8]) -> bool {
        if self.settled.is_empty() {
            return false;
        }
        let ends = (0..=path.len()).filter(|end| matches!(path.get(*end), None | Some(b'/')) || *end == 0);
        ends.into_iter().any(|end| self.settled.contains(&self.hash(&path[..end])))
    }

    pub(super) fn link(&mut self, path: &LayerPath, to: &LayerPath) -> Result<Kept, TargetError> {
        if let Some(lower) = self.noted.links().get(to).cloned() {
            let (name, _) = self.prepare(path)?;
            self.discard(path, name)?;
            at(self.noted.link(path, lower), "note the link", path)?;
            return Ok(Kept::Yes);
        }
        let source = match tree::open_parent(at(self.levels.root(), "open the directory of", to)?, to) {
            Ok((dir, name)) => {
                let root = at(self.levels.root(), "open the directory of", to)?;
                let fd = dir.as_ref().map_or(root, |dir| dir.as_fd());
                match rustix::fs::statat(fd, &name[..], AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => Some((dir, name, stat)),
                    Err(Errno::NOENT) => None,
                    Err(error) => return at(Err(error), "look at", to),
                }
            }
            Err(error)
                if matches!(
                    Errno::from_io_error(&error),
                    Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
                ) =>
            {
                None
            }
            Err(error) => return Err(TargetError::at("open the directory of", to)(error)),
        };
        let whiteout = |stat: &rustix::fs::Stat| {
            FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
        };
        match source.filter(|(_, _, stat)| self.options.style == Style::Apply || !whiteout(stat)) {
            Some((_, _, stat)) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                at(Err(io::Error::from(io::ErrorKind::IsADirectory)), "make a hard link to", to)
            }
            Some(_) if path == to => Ok(Kept::Yes),
            Some((dir, from, _)) => {
                let (name, _) = self.prepare(path)?;
                // A descriptor of its own: the root is borrowed from what `make` changes.
                let dir = match dir {
                    Some(dir) => dir,
                    None => {
                        at(tree::open_dir(at(self.levels.root(), "open", to)?, OsStr::new(".")), "open", to)?
                    }
                };
                let made = self.make(path, name, |top| {
                    rustix::fs::linkat(&dir, &from[..], top, name, AtFlags::empty())
                })?;
                at(made, "create the hard link", path)?;
                if to.split().is_some_and(|(dir, _)| self.noted.has_whiteouts(&dir)) {
                    // A mark too many does no harm.
                    at(self.noted.whiteout_in(path), "note the directory of", path)?;
                }
                Ok(Kept::Yes)
            }
            None if self.options.style == Style::Apply || path == to => {
                at(Err(io::Error::from(io::ErrorKind::NotFound)), "make a hard link to", to)
            }
            None => {
                let (name, _) = self.prepare(path)?;
                self.discard(path, name)?;
                at(self.noted.link(path, to.clone()), "note the link", path)?;
                Ok(Kept::Yes)
            }
        }
    }

    /// Hands every regular file of this layer at or below `path` to `save`.
    pub(super) fn save_own(
        &self,
        root: BorrowedFd<'_>,
        path: &LayerPath,
        save: &mut SaveFile<'_>,
    ) -> io::Result<()> {
        let (dir, name) = tree::open_parent(root, path)?;
        let dir = dir.as_ref().map_or(root, |dir| dir.as_fd());
        let node = tree::Node::at(dir, OsStr::from_bytes(&name), self.raw_form())?;
        match node.file_type() {
            FileType::RegularFile if self.is_own(path.as_bytes()) => save(path, &mut node.open()?),
            FileType::Directory => {
                tree::walk(node.open_dir()?.as_fd(), self.raw_form(), &mut |below, node| {
                    let full = [path.as_bytes(), b"/", below.as_bytes()].concat();
                    let full = LayerPath::new(full).unwrap_or_default();
                    if node.file_type() == FileType::RegularFile && self.is_own(full.as_bytes()) {
                        save(&full, &mut node.open()?)?;
                    }
                    Ok(Visit::Enter)
                })
                .map_err(|error| error.source)
            }
            _ => Ok(()),
        }
    }
}

/// A directory in which what lower layers brought is being removed.
struct Clearing {
    rest: std::vec::IntoIter<OsString>,
    length: usize,
    time: Time,
}

impl Clearing {
    fn of(ladder: &Ladder, length: usize) -> io::Result<Self> {
        let here = ladder.here()?;
        let time = tree::mtime(&rustix::fs::fstat(here)?);
        Ok(Self { rest: tree::read_dir(here)?.into_iter(), length, time })
    }
}
