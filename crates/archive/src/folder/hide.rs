//! Whiteouts, opaque marks, hard links, and what is about to be replaced.

use super::{FolderTarget, Style, at, split};
use crate::attributes::At;
use crate::nested;
use crate::target::{Kept, LayerPath, Meta, SaveFile, TargetError, Usage};
use crate::tree::{self, Visit, allocated, timestamps};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use std::ffi::OsStr;
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
            if self.links.contains_key(&here) {
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
                let (fd, mut stay) = (at(self.levels.top(), "open the directory", path)?, Vec::new());
                at(self.clear_lower(fd, path, &mut stay), "empty the directory", path)?;
                self.implied.extend(stay);
                Ok(())
            }
        }
    }

    pub(super) fn whiteout_by_device(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        let (parent, name) = split(path.as_bytes());
        let above = path.split().map(|(parent, _)| parent).unwrap_or_default();
        if at(self.is_covered(&above), "look at", path)? || self.links.contains_key(path) {
            return Ok(());
        }
        self.enter(path, parent)?;
        let Some(stat) = self.stat(path, name)? else { return self.make_whiteout(path, name) };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return Ok(());
        }
        if self.implied.contains(path) && at(self.holds_only_whiteouts(path, name), "look into", path)? {
            at(self.levels.touch(), "look at the directory of", path)?;
            self.discard(path, name)?;
            return self.make_whiteout(path, name);
        }
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
        self.note_whiteout(path);
        Ok(Kept::Yes)
    }

    fn note_whiteout(&mut self, path: &LayerPath) {
        self.whiteouts.extend(path.split().map(|(parent, _)| parent));
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
                below.is_root() || LayerPath::new(full).is_ok_and(|full| self.implied.contains(&full));
            only &= node.is_whiteout() || (node.file_type() == FileType::Directory && implied);
            Ok(if only { Visit::Enter } else { Visit::Skip })
        })
        .map_err(|error| error.source)?;
        let link_below = |link: &LayerPath| {
            link.as_bytes().strip_prefix(path.as_bytes()).is_some_and(|rest| rest.first() == Some(&b'/'))
        };
        Ok(only && !self.links.keys().any(link_below))
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
            let mut stay = Vec::new();
            at(self.clear_lower(fd.as_fd(), path, &mut stay), "empty the directory", path)?;
            self.implied.extend(stay);
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

    /// Removes what lies in a directory and was not brought by this layer; directories keep their times. Those that `stay` do so
    /// because of what this layer brings in them, whether it lists them or not.
    fn clear_lower(
        &self,
        dir: BorrowedFd<'_>,
        path: &LayerPath,
        stay: &mut Vec<LayerPath>,
    ) -> io::Result<()> {
        if !path.is_root() {
            stay.push(path.clone());
        }
        let before = rustix::fs::fstat(dir)?;
        for name in tree::read_dir(dir)? {
            let below = path.join(name.as_bytes()).map_err(io::Error::other)?;
            if !self.is_own(below.as_bytes()) {
                tree::remove(dir, &name).map_err(|error| error.source)?;
                continue;
            }
            let stat = rustix::fs::statat(dir, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.clear_lower(tree::open_dir(dir, &name)?.as_fd(), &below, stay)?;
            }
        }
        Ok(rustix::fs::futimens(dir, &tree::timestamps(tree::mtime(&before)))?)
    }

    pub(super) fn link(&mut self, path: &LayerPath, to: &LayerPath) -> Result<Kept, TargetError> {
        if let Some(lower) = self.links.get(to).cloned() {
            let (name, _) = self.prepare(path)?;
            self.discard(path, name)?;
            self.links.insert(path.clone(), lower);
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
                if !self.whiteouts.is_empty()
                    && to.split().is_some_and(|(dir, _)| self.whiteouts.contains(&dir))
                {
                    // A mark too many does no harm.
                    self.note_whiteout(path);
                }
                Ok(Kept::Yes)
            }
            None if self.options.style == Style::Apply || path == to => {
                at(Err(io::Error::from(io::ErrorKind::NotFound)), "make a hard link to", to)
            }
            None => {
                let (name, _) = self.prepare(path)?;
                self.discard(path, name)?;
                self.links.insert(path.clone(), to.clone());
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
                for below in tree::read_dir(node.open_dir()?.as_fd())? {
                    self.save_own(root, &path.join(below.as_bytes()).map_err(io::Error::other)?, save)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
