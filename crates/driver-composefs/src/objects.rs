//! The objects: each distinct content once, named by its digest.
//!
//! ```text
//!   HOME/
//!     objects/<ab>/<cdef…>   0600: a content, under its fs-verity digest (the layout of composefs). Its time says which layer made it: seconds are the layer's number
//!     .lock                  held shared while objects are taken for a layer, alone while those that nobody needs are removed
//! ```
//!
//! # Who may be trusted
//!
//! Nothing is synced here; the barrier of the load brings objects to the disk with everything else. So after a power cut an object may be there without its content, and one that
//! another load is at may never get there. Which objects can be used without a look at their content:
//!
//! - those of this layer: they and the layer are brought to the disk together;
//! - those whose maker is a layer that is there: either it was recorded after a barrier, so they are on the disk; or it is being made, and then there was no power cut since, because what is
//!   half made is removed when the store is opened after one. Ids of layers are never used twice.
//!
//! All others are read and compared with their name first. One that is sound gets this layer as its maker; one that is not is replaced.
//! The time is set before the object gets its name.
//!
//! # Collecting
//!
//! A layer lists the objects that it needs, and all that it has made, in its tree's file, from before it is anything but half made. When a layer has gone to the trash, with the lock held alone,
//! first its list is compared with those of all layers that are there. An object that another layer lists stays, and if the removed layer was its maker, that other layer is
//! now, and has its bytes. Then the others are removed. A layer that was half made has no list, and is known by its mark (`taking`): then all
//! objects are looked at. Interrupted, this begins again: what was done is not there any more.

use crate::digest::{Digest, Hasher};
use crate::parts::Parts;
use crate::tree::{Content, objects_in};
use rustix::fs::{AtFlags, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use vellum_archive::target::{FileData, Usage};
use vellum_archive::tree::{open_dir, read_dir};
use vellum_sys::file::ensure_folder;
use vellum_types::LayerId;

/// Files up to this length are kept in the tree, as composefs does.
pub(crate) const INLINE: u64 = 64;
/// Files from this length on are cloned when they are committed. To clone a smaller one, whose data the kernel brings to the disk first, takes longer than to write it: measured on XFS,
/// twice as long at 16 KiB, and the same at this length.
pub(crate) const WORTH_CLONING: u64 = 256 << 10;
/// Files up to this length are in memory before they are written: of those that are there already nothing is written.
const SMALL: u64 = 1 << 20;

/// The folder of objects.
#[derive(Debug)]
pub(crate) struct Objects {
    dir: OwnedFd,
}

impl Objects {
    /// Opens the folder, and makes it if need be.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn open(home: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { dir: ensure_folder(home, "objects", 0o700)? })
    }

    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// What is known of an object; `None` if it is not there.
    pub(crate) fn stat(&self, digest: &Digest) -> io::Result<Option<Stat>> {
        match rustix::fs::statat(&self.dir, digest.path(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// An object, for reading.
    pub(crate) fn read(&self, digest: &Digest) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, digest.path(), flags, Mode::empty())?.into())
    }

    /// A file without a name, that can become an object.
    fn temporary(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.dir, ".", flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// A file with the content of `file`, whose blocks it shares; `None` where the file system cannot do that, or `file` is on another one.
    pub(crate) fn clone_of(&self, file: &File) -> io::Result<Option<File>> {
        let twin = self.temporary()?;
        match rustix::fs::ioctl_ficlone(&twin, file) {
            Ok(()) => Ok(Some(twin)),
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::TXTBSY) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The object with the content of `file`, if there is one of that name and length. Costs reading the file.
    pub(crate) fn object_of(&self, file: &mut File) -> io::Result<Option<File>> {
        let size = file.metadata()?.len();
        let digest = digest_with_holes(file, size)?;
        match self.stat(&digest)? {
            Some(stat) if u64::try_from(stat.st_size) == Ok(size) => self.read(&digest).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether an object has the content that its name says.
    pub(crate) fn is_sound(&self, digest: &Digest) -> io::Result<bool> {
        Ok(digest_of(&mut self.read(digest)?)? == *digest)
    }

    /// Says who made an object.
    pub(crate) fn stamp(&self, digest: &Digest, maker: Option<LayerId>) -> io::Result<()> {
        Ok(rustix::fs::utimensat(&self.dir, digest.path(), &stamp(maker), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    pub(crate) fn remove(&self, digest: &Digest) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, digest.path(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the folders that removed objects were in, where nothing else is.
    fn remove_empty_folders(&self, removed: &BTreeSet<Digest>) -> io::Result<()> {
        let folders: BTreeSet<u8> = removed.iter().map(|digest| digest.0[0]).collect();
        for folder in folders {
            match rustix::fs::unlinkat(&self.dir, format!("{folder:02x}"), AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Brings an object to the disk.
    pub(crate) fn sync(&self, digest: &Digest) -> io::Result<()> {
        rustix::fs::fsync(self.read(digest)?)?;
        Ok(())
    }

    /// Brings the names of objects to the disk.
    pub(crate) fn sync_folders(&self, digests: &[Digest]) -> io::Result<()> {
        let folders: BTreeSet<u8> = digests.iter().map(|digest| digest.0[0]).collect();
        for folder in folders {
            rustix::fs::fsync(open_dir(self.dir(), OsStr::new(&format!("{folder:02x}")))?)?;
        }
        Ok(rustix::fs::fsync(&self.dir)?)
    }

    /// Calls `each` for all objects.
    pub(crate) fn walk(&self, each: &mut dyn FnMut(Digest) -> io::Result<()>) -> io::Result<()> {
        for folder in read_dir(self.dir())? {
            let Some(hex) = folder.to_str().filter(|hex| hex.len() == 2) else { continue };
            let dir = open_dir(self.dir(), &folder)?;
            for name in read_dir(dir.as_fd())? {
                if let Some(digest) = name.to_str().and_then(|name| Digest::of_path(hex, name)) {
                    each(digest)?;
                } else if name.to_str().is_some_and(|name| name.starts_with(TEMPORARY)) {
                    // Whoever made it holds the lock, unless it was killed; then nobody is in the way here.
                    let _ = rustix::fs::unlinkat(&dir, &name, AtFlags::empty());
                }
            }
        }
        Ok(())
    }
}

/// A name on the way to replacing an object that is not sound.
const TEMPORARY: &str = ".new-";

fn digest_of(file: &mut File) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// The time that says who made an object; that of nobody is one that no layer has.
fn stamp(maker: Option<LayerId>) -> Timestamps {
    let time = Timespec { tv_sec: maker.map_or(-1, |id| i64::from(id.get())), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Which layer made an object, as its time says.
#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
pub(crate) fn maker(stat: &Stat) -> Option<LayerId> {
    let seconds = u32::try_from(stat.st_mtime as i64).ok().filter(|_| stat.st_mtime_nsec as u64 == 0)?;
    LayerId::new(seconds)
}

#[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
pub(crate) fn allocated(stat: &Stat) -> u64 {
    stat.st_blocks as u64 * 512
}

/// Takes contents for one layer. The caller holds the lock shared.
pub(crate) struct Intake {
    parts: Arc<Parts>,
    layer: LayerId,
    /// What this layer has already.
    known: HashSet<Digest>,
    /// Whether layers are there that made objects.
    makers: HashMap<LayerId, bool>,
    buffer: Vec<u8>,
    /// What was made new.
    pub(crate) made: Usage,
    /// The objects that have this layer as their maker now.
    pub(crate) own: BTreeSet<Digest>,
}

impl Intake {
    pub(crate) fn new(parts: Arc<Parts>, layer: LayerId) -> Self {
        let (makers, made, own) = (HashMap::from([(layer, true)]), Usage::default(), BTreeSet::new());
        Self { parts, layer, known: HashSet::new(), makers, buffer: Vec::new(), made, own }
    }

    /// Takes a file's content.
    ///
    /// # Errors
    /// The stream's, the file system's.
    pub(crate) fn take(&mut self, size: u64, data: &mut dyn FileData) -> io::Result<Content> {
        if let Some(twin) = data.twin() {
            return self.take_twin(size, data, twin);
        }
        if size > SMALL {
            return self.take_large(size, data);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        each_part(size, data, &mut |part| {
            match part {
                Part::Data(bytes, _) => buffer.extend_from_slice(bytes),
                Part::Hole(length) => buffer.resize(buffer.len() + length as usize, 0),
            }
            Ok(())
        })?;
        let content = self.take_bytes(&buffer);
        self.buffer = buffer;
        content
    }

    fn take_bytes(&mut self, bytes: &[u8]) -> io::Result<Content> {
        if bytes.len() as u64 <= INLINE {
            return Ok(Content::Inline(bytes.into()));
        }
        let digest = Hasher::of(bytes);
        if !self.is_there(&digest, bytes.len() as u64)? {
            let file = self.temporary()?;
            file.write_all_at(bytes, 0)?;
            self.place(file, &digest)?;
        }
        self.known.insert(digest);
        Ok(Content::Object(digest))
    }

    fn take_large(&mut self, size: u64, data: &mut dyn FileData) -> io::Result<Content> {
        let file = self.temporary()?;
        let mut hasher = Hasher::new();
        each_part(size, data, &mut |part| match part {
            Part::Data(bytes, offset) => {
                hasher.update(bytes);
                file.write_all_at(bytes, offset)
            }
            Part::Hole(length) => {
                hasher.update_zeros(length);
                Ok(())
            }
        })?;
        file.set_len(size)?;
        self.keep(file, hasher.finish(), size)
    }

    /// Takes a content of which there is a file: it is only hashed here.
    fn take_twin(&mut self, size: u64, data: &mut dyn FileData, twin: File) -> io::Result<Content> {
        let mut hasher = Hasher::new();
        each_part(size, data, &mut |part| {
            match part {
                Part::Data(bytes, _) => hasher.update(bytes),
                Part::Hole(length) => hasher.update_zeros(length),
            }
            Ok(())
        })?;
        let digest = hasher.finish();
        let stat = rustix::fs::fstat(&twin)?;
        if stat.st_nlink == 0 {
            return self.keep(twin, digest, size);
        }
        // It has a name: an object. It is this one, unless it has rotted or is gone meanwhile; then what was read of it is kept as a file of its own.
        if self.is_there(&digest, size)? {
            self.known.insert(digest);
            return Ok(Content::Object(digest));
        }
        let (_, content) = self.take_file(twin)?;
        Ok(content)
    }

    /// Takes the content of a file on disk, sharing its blocks where the file system can. Gives its length, too.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn take_file(&mut self, mut source: File) -> io::Result<(u64, Content)> {
        let size = source.metadata()?.len();
        if size <= INLINE {
            let mut bytes = Vec::new();
            source.take(INLINE).read_to_end(&mut bytes)?;
            return Ok((bytes.len() as u64, self.take_bytes(&bytes)?));
        }
        // The copy is hashed and not the source, which somebody may still write to.
        let mut file = self.temporary()?;
        if rustix::fs::ioctl_ficlone(&file, &source).is_err() {
            copy_data(&mut source, &mut file, size)?;
        }
        let size = file.metadata()?.len();
        let digest = digest_with_holes(&mut file, size)?;
        Ok((size, self.keep(file, digest, size)?))
    }

    fn keep(&mut self, file: File, digest: Digest, size: u64) -> io::Result<Content> {
        if !self.is_there(&digest, size)? {
            if size >= SMALL {
                vellum_sys::file::begin_writeback(&file);
            }
            self.place(file, &digest)?;
        }
        self.known.insert(digest);
        Ok(Content::Object(digest))
    }

    fn temporary(&self) -> io::Result<File> {
        self.parts.objects.temporary()
    }

    /// Whether an object is there that can be used.
    fn is_there(&mut self, digest: &Digest, size: u64) -> io::Result<bool> {
        if self.known.contains(digest) {
            return Ok(true);
        }
        let Some(stat) = self.parts.objects.stat(digest)? else { return Ok(false) };
        let right_size = u64::try_from(stat.st_size) == Ok(size);
        if right_size && self.is_trusted(&stat)? {
            return Ok(true);
        }
        if !right_size || !self.parts.objects.is_sound(digest)? {
            return Ok(false);
        }
        self.parts.objects.stamp(digest, Some(self.layer))?;
        self.own.insert(*digest);
        self.made += Usage { bytes: allocated(&stat), inodes: 1 };
        Ok(true)
    }

    fn is_trusted(&mut self, stat: &Stat) -> io::Result<bool> {
        let Some(maker) = maker(stat) else { return Ok(false) };
        if let Some(known) = self.makers.get(&maker) {
            return Ok(*known);
        }
        let there =
            match rustix::fs::statat(self.parts.home.dir(), maker.to_string(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => true,
                Err(Errno::NOENT) => false,
                Err(error) => return Err(error.into()),
            };
        self.makers.insert(maker, there);
        Ok(there)
    }

    /// Gives a whole file its name. One that is there already and was found wanting is replaced.
    fn place(&mut self, file: File, digest: &Digest) -> io::Result<()> {
        rustix::fs::futimens(&file, &stamp(Some(self.layer)))?;
        let path = digest.path();
        let link = |to: &str| {
            let from = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(rustix::fs::CWD, &from, self.parts.objects.dir(), to, AtFlags::SYMLINK_FOLLOW)
        };
        let mut linked = link(&path);
        if linked == Err(Errno::NOENT) {
            ensure_folder(self.parts.objects.dir(), &path[..2], 0o700)?;
            linked = link(&path);
        }
        match linked {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let fresh = format!("{}/{TEMPORARY}{}", &path[..2], vellum_sys::random::hex::<8>()?);
                link(&fresh)?;
                rustix::fs::renameat(self.parts.objects.dir(), &fresh, self.parts.objects.dir(), &path)?;
            }
            Err(error) => return Err(error.into()),
        }
        let stat = rustix::fs::fstat(&file)?;
        self.own.insert(*digest);
        self.made += Usage { bytes: allocated(&stat), inodes: 1 };
        Ok(())
    }
}

/// A part of a file's content.
enum Part<'a> {
    /// Bytes, and where they belong.
    Data(&'a [u8], u64),
    /// So many zeros.
    Hole(u64),
}

/// Tells a file's content in parts, from front to back.
fn each_part(
    size: u64,
    data: &mut dyn FileData,
    each: &mut dyn FnMut(Part<'_>) -> io::Result<()>,
) -> io::Result<()> {
    let mut end = 0;
    while let Some((offset, length)) = data.next_extent()? {
        if offset > end {
            each(Part::Hole(offset - end))?;
        }
        let (mut position, mut left) = (offset, length);
        while left > 0 {
            let chunk = data.fill_buf()?;
            if chunk.is_empty() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let part = chunk.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            each(Part::Data(&chunk[..part], position))?;
            data.consume(part);
            position += part as u64;
            left -= part as u64;
        }
        end = position;
    }
    if end < size { each(Part::Hole(size - end)) } else { Ok(()) }
}

/// Runs of data in a file.
fn each_run(file: &File, size: u64, each: &mut dyn FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data))?.min(size);
        each(data, hole)?;
        at = hole;
    }
    Ok(())
}

/// Copies what is data; holes stay holes.
fn copy_data(from: &mut File, to: &mut File, size: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    each_run(from, size, &mut |mut at, end| {
        while at < end {
            let part = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = from.read_at(&mut buffer[..part], at)?;
            if got == 0 {
                return Ok(());
            }
            to.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
        Ok(())
    })?;
    to.set_len(size)
}

fn digest_with_holes(file: &mut File, size: u64) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut told = 0;
    each_run(file, size, &mut |mut at, end| {
        hasher.update_zeros(at - told);
        while at < end {
            let part = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            let got = file.read_at(&mut buffer[..part], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.update(&buffer[..got]);
            at += got as u64;
        }
        told = end;
        Ok(())
    })?;
    hasher.update_zeros(size - told);
    Ok(hasher.finish())
}

/// What removing a layer's objects did.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// Layers that are now the makers of objects that the removed one had made.
    pub(crate) heirs: BTreeSet<LayerId>,
}

/// Removes the objects that only a removed layer needed. `layers`: the ids of those that are there; `list`: the open file with a layer's list, if it has one. The
/// caller holds the lock alone.
///
/// # Errors
/// The file system's; a list is damaged: then nothing is removed, since what it needs is not known.
pub(crate) fn collect(
    objects: &Objects,
    gone: Option<(LayerId, Vec<Digest>)>,
    layers: &[LayerId],
    list: &dyn Fn(LayerId) -> io::Result<Option<File>>,
) -> io::Result<Collected> {
    let mut collected = Collected::default();
    let (removed, mut dead) = match gone {
        Some((id, list)) => (Some(id), list.into_iter().collect::<BTreeSet<_>>()),
        None => {
            let mut all = BTreeSet::new();
            objects.walk(&mut |digest| {
                all.insert(digest);
                Ok(())
            })?;
            (None, all)
        }
    };
    for layer in layers {
        if dead.is_empty() {
            break;
        }
        let Some(mut file) = list(*layer)? else { continue };
        for digest in objects_in(&mut file)? {
            if !dead.remove(&digest) {
                continue;
            }
            let Some(stat) = objects.stat(&digest)? else { continue };
            let orphaned = match (maker(&stat), removed) {
                (Some(maker), Some(removed)) => maker == removed,
                (Some(maker), None) => !layers.contains(&maker),
                // It is read before anybody else uses it.
                (None, _) => false,
            };
            if orphaned {
                objects.stamp(&digest, Some(*layer))?;
                collected.heirs.insert(*layer);
            }
        }
    }
    dead.iter().try_for_each(|digest| objects.remove(digest))?;
    objects.remove_empty_folders(&dead)?;
    Ok(collected)
}
