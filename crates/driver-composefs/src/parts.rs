//! What targets, commits and mounts share: the files of a layer, trees, images.

use crate::digest::Digest;
use crate::objects::{Intake, Objects, allocated, maker};
use crate::probe::Mounts;
use crate::tree::{self, Attr, Dir, Raw};
use crate::upper;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufWriter, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use vellum_archive::target::{LayerPath, Usage};
use vellum_driver::home::Home;
use vellum_driver::{Error, ErrorKind, Kind, Result};
use vellum_overlayfs::Features;
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

/// The tree of what the layer brings.
pub(crate) const TREE: &str = "tree";
/// The image of the whole tree.
pub(crate) const IMAGE: &str = "image";
/// There while objects are taken for a layer that does not list them yet.
pub(crate) const TAKING: &str = "taking";
pub(crate) const UPPER: &str = "diff";
pub(crate) const WORK: &str = "work";
pub(crate) const LOCK: &str = ".lock";
/// How long a collection of objects waits for layers that are being filled.
const PATIENCE: Duration = Duration::from_millis(500);
/// Overlayfs's mark of a file whose data lie below.
const METACOPY: &str = "trusted.overlay.metacopy";

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) home: Home,
    pub(crate) objects: Objects,
    pub(crate) features: Features,
    pub(crate) mounts: Mounts,
    /// The whole tree that was needed last: the next layer of a load lies on it.
    flat: Mutex<Option<(LayerId, Arc<Dir>)>>,
}

impl Parts {
    pub(crate) fn new(home: Home, objects: Objects, features: Features, mounts: Mounts) -> Self {
        Self { home, objects, features, mounts, flat: Mutex::new(None) }
    }

    fn lock_path(&self) -> PathBuf {
        self.home.path().join(LOCK)
    }

    /// Held while objects are taken and nothing that is kept lists them.
    pub(crate) fn taking(&self, id: LayerId) -> Result<FileLock> {
        let failed = |error| Error::system("take the lock of the objects", error).layer(id);
        let lock = FileLock::shared(&self.lock_path()).map_err(failed)?;
        let folder = self.home.folder(id)?.ok_or_else(|| Error::not_found("take objects", id))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&folder, TAKING, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| Error::system("mark the layer", error).layer(id))?;
        Ok(lock)
    }

    /// Held while objects are removed, and while what lists them is moved about.
    pub(crate) fn collecting(&self) -> Result<FileLock> {
        FileLock::exclusive(&self.lock_path())
            .map_err(|error| Error::system("take the lock of the objects", error))
    }

    /// As [`Parts::collecting`], for the objects of layers that are gone. A layer that is being filled can keep the lock for as long as whoever sends it likes, so nobody
    /// waits for that.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`]: a layer is being filled.
    pub(crate) fn collecting_soon(&self, id: LayerId) -> Result<FileLock> {
        let failed = |error| Error::system("take the lock of the objects", error).layer(id);
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(lock) = FileLock::try_exclusive(&self.lock_path()).map_err(failed)? {
                return Ok(lock);
            }
            if Instant::now() > until {
                let reason = "another layer takes objects at this moment, perhaps some of these";
                let error = Error::new(ErrorKind::InUse, "remove the objects of a layer", reason);
                return Err(error.layer(id).hint("they go with the next load, removal or `gc`"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn reading(&self) -> Result<FileLock> {
        FileLock::shared(&self.lock_path())
            .map_err(|error| Error::system("take the lock of the objects", error))
    }

    /// Replaces the layer's tree; then nothing is only taken any more. `made`: the objects that were made for it, of which the tree may not need all, because an archive
    /// may name a path twice: listed they go with the layer, as do those that the tree before had made. Gives what the file takes on disk.
    pub(crate) fn put_tree(&self, id: LayerId, root: &Dir, made: &BTreeSet<Digest>) -> io::Result<Usage> {
        let mut objects = root.objects();
        let unlisted = |digest: &Digest| objects.binary_search(digest).is_err();
        let mut others: BTreeSet<Digest> = made.iter().filter(|digest| unlisted(digest)).copied().collect();
        if let Some(mut file) = self.tree_file(id)? {
            for digest in tree::objects_in(&mut file)?.into_iter().filter(unlisted) {
                if self.objects.stat(&digest)?.and_then(|stat| maker(&stat)) == Some(id) {
                    others.insert(digest);
                }
            }
        }
        objects.extend(others);
        objects.sort_unstable();
        let folder = self.home.folder(id).map_err(io::Error::other)?.ok_or(io::ErrorKind::NotFound)?;
        let fresh = format!("{TREE}.new");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::openat(&folder, &fresh, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(&tree::write(root, &objects))?;
        let stat = rustix::fs::fstat(&file)?;
        rustix::fs::renameat(&folder, &fresh, &folder, TREE)?;
        for gone in [IMAGE, TAKING] {
            unlink(folder.as_fd(), gone)?;
        }
        self.forget(id);
        Ok(Usage { bytes: allocated(&stat), inodes: 1 })
    }

    /// Gives the upper's root what the root of the layer's tree has.
    pub(crate) fn dress_upper(&self, id: LayerId, attr: &Attr) -> io::Result<()> {
        dress(&self.home.open_part(id, UPPER).map_err(io::Error::other)?, attr)
    }

    /// The file at `path` in the layer's upper, if there is one with data of its own.
    pub(crate) fn in_upper(&self, id: LayerId, path: &LayerPath) -> io::Result<Option<File>> {
        let upper = self.home.open_part(id, UPPER).map_err(io::Error::other)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let file = match rustix::fs::openat2(&upper, path.as_path(), flags, Mode::empty(), resolve) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let only_marked = rustix::fs::fgetxattr(&file, METACOPY, &mut [0; 64][..]) != Err(Errno::NODATA);
        Ok((file.metadata()?.is_file() && !only_marked).then_some(file))
    }

    /// The file with the layer's tree, if it has one.
    pub(crate) fn tree_file(&self, id: LayerId) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        match rustix::fs::openat(self.home.dir(), format!("{id}/{TREE}"), flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the layer brings, if it has a tree.
    pub(crate) fn tree(&self, id: LayerId) -> Result<Option<Arc<Dir>>> {
        let read = || -> io::Result<Option<Arc<Dir>>> {
            let Some(mut file) = self.tree_file(id)? else { return Ok(None) };
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            tree::read(&bytes).map(Some)
        };
        read().map_err(|error| self.damaged("read the tree", id, error))
    }

    fn damaged(&self, operation: &str, id: LayerId, error: io::Error) -> Error {
        let is_damage = error.kind() == io::ErrorKind::InvalidData;
        let mut error = Error::system(operation, error).layer(id);
        if is_damage {
            error.kind = ErrorKind::Damaged;
        }
        error
    }

    /// What a layer that must have a tree brings.
    pub(crate) fn own_tree(&self, id: LayerId) -> Result<Arc<Dir>> {
        self.tree(id)?
            .ok_or_else(|| Error::new(ErrorKind::Damaged, "read the tree", "it is missing").layer(id))
    }

    /// The whole tree of a committed layer, or of an active one as its tree's file has it; `None` if there is nothing at all. Costs the trees of the whole chain,
    /// unless the one below was needed last.
    pub(crate) fn flat(&self, id: LayerId) -> Result<Option<Arc<Dir>>> {
        let (mut todo, mut next, mut base) = (Vec::new(), Some(id), None);
        let mut seen = BTreeSet::new();
        while let Some(layer) = next {
            if !seen.insert(layer) {
                let reason = "the records of its parents go in a circle";
                return Err(Error::new(ErrorKind::Damaged, "look into", reason).layer(layer));
            }
            if let Some(known) = self.known(layer) {
                base = Some(known);
                break;
            }
            let record = self.home.must("look into", layer)?;
            match (record.kind, self.tree(layer)?) {
                (_, Some(tree)) => todo.push((layer, tree)),
                (Kind::Committed, None) => drop(self.own_tree(layer)?),
                (Kind::Active | Kind::View, None) => {}
            }
            next = record.chain.first().copied();
        }
        let last = todo.first().map(|(layer, _)| *layer);
        for (_, tree) in todo.iter().rev() {
            base = Some(tree::flatten(base, tree));
        }
        if let (Some(layer), Some(flat)) = (last, &base) {
            self.remember(layer, Arc::clone(flat));
        }
        Ok(base)
    }

    fn known(&self, id: LayerId) -> Option<Arc<Dir>> {
        let flat = self.flat.lock().unwrap_or_else(PoisonError::into_inner);
        flat.as_ref().filter(|(known, _)| *known == id).map(|(_, flat)| Arc::clone(flat))
    }

    /// Takes what is remembered away, so that it can be changed in place.
    pub(crate) fn flat_to_change(&self, id: LayerId) -> Result<Option<Arc<Dir>>> {
        let flat = self.flat(id)?;
        self.forget(id);
        Ok(flat)
    }

    pub(crate) fn remember(&self, id: LayerId, flat: Arc<Dir>) {
        *self.flat.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, flat));
    }

    pub(crate) fn forget(&self, id: LayerId) {
        let mut flat = self.flat.lock().unwrap_or_else(PoisonError::into_inner);
        if flat.as_ref().is_some_and(|(known, _)| *known == id) {
            *flat = None;
        }
    }

    /// Owner, mode, time and attributes of the root of a committed layer's tree. Reads only the beginning of its file.
    pub(crate) fn root_attr(&self, id: LayerId) -> Result<Attr> {
        let read = || -> io::Result<Option<Attr>> {
            let Some(mut file) = self.tree_file(id)? else { return Ok(None) };
            tree::root_attr(&mut file).map(Some)
        };
        let attr = read().map_err(|error| self.damaged("read the tree", id, error))?;
        attr.map_or_else(|| self.own_tree(id).map(|tree| tree.attr.clone()), Ok)
    }

    /// What an active layer has so far: its tree, and over it what was written through mounts.
    pub(crate) fn gather(
        &self,
        id: LayerId,
        parent: Option<LayerId>,
        intake: &mut Intake,
    ) -> Result<Arc<Dir>> {
        let tree = self.tree(id)?;
        let diff = self.home.open_part(id, UPPER)?;
        let written = !vellum_archive::tree::read_dir(diff.as_fd())
            .map_err(|error| Error::system("list what was written", error).layer(id))?
            .is_empty();
        match tree {
            Some(tree) if !written => Ok(tree),
            tree => {
                let base = match (&tree, parent) {
                    (Some(_), _) => self.flat(id)?,
                    (None, Some(parent)) => self.flat(parent)?,
                    (None, None) => None,
                };
                let upper = upper::convert(diff.as_fd(), base.as_ref(), intake)
                    .map_err(|error| Error::from(error).layer(id))?;
                Ok(match tree {
                    Some(tree) => tree::compose(tree, &upper),
                    None => upper,
                })
            }
        }
    }

    /// Where the image of a layer's whole tree is; it is made if it is not there, and is on the disk then. `None` if the layer is on nothing and has nothing.
    /// Costs the trees of the chain the first time, and one system call later.
    pub(crate) fn image(&self, id: LayerId) -> Result<Option<PathBuf>> {
        let path = self.home.part(id, IMAGE);
        let there = rustix::fs::statat(self.home.dir(), format!("{id}/{IMAGE}"), AtFlags::SYMLINK_NOFOLLOW);
        if there.is_ok() {
            return Ok(Some(path));
        }
        let Some(flat) = self.flat(id)? else { return Ok(None) };
        let folder = self.home.folder(id)?.ok_or_else(|| Error::not_found("make the image", id))?;
        let make = || -> io::Result<()> {
            let fresh = format!("{IMAGE}.{}", vellum_sys::random::hex::<8>()?);
            let file = vellum_sys::file::create(&folder, &fresh, 0o600)?;
            let made = write_image(&flat, Raw::No, &file)
                .and_then(|()| Ok(rustix::fs::fsync(&file)?))
                .and_then(|()| Ok(rustix::fs::renameat(&folder, &fresh, &folder, IMAGE)?));
            if made.is_err() {
                let _ = unlink(folder.as_fd(), &fresh);
            }
            made
        };
        make().map_err(|error| Error::system("make the image", error).layer(id))?;
        Ok(Some(path))
    }

    /// An image of what the layer itself brings, for looking at it: a file without a name.
    pub(crate) fn raw_image(&self, own: &Arc<Dir>) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::openat(self.home.dir(), ".", flags, Mode::RUSR | Mode::WUSR)?);
        write_image(own, Raw::Yes, &file)?;
        Ok(file)
    }

    /// Whether the image is that of the trees it was made of; `true` if there is none.
    pub(crate) fn is_image_sound(&self, id: LayerId) -> Result<bool> {
        let Some(folder) = self.home.folder(id)? else { return Ok(true) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = match rustix::fs::openat(&folder, IMAGE, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(true),
            Err(error) => return Err(Error::system("open the image", error).layer(id)),
        };
        let Some(flat) = self.flat(id)? else { return Ok(false) };
        let mut compare = Compare { file, same: true };
        tree::build(&flat, Raw::No, &mut compare)
            .map_err(|error| Error::system("read the image", error).layer(id))?;
        let mut rest = [0];
        let ended = matches!(compare.file.read(&mut rest), Ok(0));
        Ok(compare.same && ended)
    }

    /// What the layer's image takes on disk, if there is one.
    pub(crate) fn image_usage(&self, id: LayerId) -> io::Result<Option<Usage>> {
        self.file_usage(id, IMAGE)
    }

    fn file_usage(&self, id: LayerId, name: &str) -> io::Result<Option<Usage>> {
        match rustix::fs::statat(self.home.dir(), format!("{id}/{name}"), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Usage { bytes: allocated(&stat), inodes: 1 })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What the layer takes on disk: its own files, and the objects that it made.
    pub(crate) fn usage(&self, id: LayerId) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for name in [TREE, IMAGE] {
            usage += self.file_usage(id, name)?.unwrap_or_default();
        }
        if let Some(mut file) = self.tree_file(id)? {
            for digest in tree::objects_in(&mut file)? {
                match self.objects.stat(&digest)? {
                    Some(stat) if maker(&stat) == Some(id) => {
                        usage += Usage { bytes: allocated(&stat), inodes: 1 };
                    }
                    _ => {}
                }
            }
        }
        Ok(usage)
    }
}

fn write_image(tree: &Arc<Dir>, raw: Raw, file: &File) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(256 << 10, file);
    tree::build(tree, raw, &mut out)?;
    out.flush()
}

/// Compares what is written with what a file has.
struct Compare {
    file: File,
    same: bool,
}

impl io::Write for Compare {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.same {
            let mut there = vec![0; bytes.len()];
            self.same = match self.file.read_exact(&mut there) {
                Ok(()) => there == bytes,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
                Err(error) => return Err(error),
            };
        } else {
            self.file.seek(io::SeekFrom::End(0))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes a file that may not be there.
pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Gives the root of an upper what the root of the tree has: overlayfs shows the upper's.
pub(crate) fn dress(dir: &OwnedFd, attr: &Attr) -> io::Result<()> {
    rustix::fs::fchown(dir, Some(Uid::from_raw(attr.uid)), Some(Gid::from_raw(attr.gid)))?;
    rustix::fs::fchmod(dir, Mode::from_raw_mode(attr.mode))?;
    for (name, value) in attr.xattrs() {
        match rustix::fs::fsetxattr(dir, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            // A label that only the system's policy may set is the system's own affair.
            Err(_) if name.starts_with(b"security.") && name != b"security.capability" => {}
            other => other?,
        }
    }
    let time = Timespec { tv_sec: attr.mtime.seconds, tv_nsec: attr.mtime.nanoseconds.into() };
    Ok(rustix::fs::futimens(dir, &Timestamps { last_access: time, last_modification: time })?)
}
