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

use crate::content::{Part, copy_data, digest_of, digest_with_holes, each_part};
use crate::digest::{Digest, Hasher};
use crate::parts::Parts;
use crate::seal::Seal;
use crate::sealer::Sealer;
use crate::tree::{Content, objects_in};
use rustix::fs::{AtFlags, Mode, OFlags, Stat, Timespec, Timestamps};
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
use vellum_sys::file::{ensure_folder, reopen_to_read};
use vellum_sys::verity;
use vellum_types::LayerId;

/// Files up to this length are kept in the tree, as composefs does.
pub(crate) const INLINE: u64 = 64;
/// Files from this length on are cloned when they are committed. To clone a smaller one, whose data the kernel brings to the disk first, takes longer than to write it: measured on XFS,
/// twice as long at 16 KiB, and the same at this length.
pub(crate) const WORTH_CLONING: u64 = 256 << 10;
/// Files up to this length are in memory before they are written: of those that are there already nothing is written.
const SMALL: u64 = 1 << 20;

/// The name of the folder of objects.
pub(crate) const OBJECTS: &str = "objects";

/// The folder of objects.
#[derive(Debug)]
pub(crate) struct Objects {
    dir: OwnedFd,
    pub(crate) seal: Seal,
}

impl Objects {
    /// Opens the folder, and makes it if need be.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn open(home: BorrowedFd<'_>, seal: Seal) -> io::Result<Self> {
        Ok(Self { dir: ensure_folder(home, OBJECTS, 0o700)?, seal })
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
            // Read by whoever makes a tar of it, and perhaps still open there when it is sealed.
            Ok(()) => reopen_to_read(twin).map(Some),
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

    /// Whether an object has the content that its name says, and the seal that all have in a sealed home. One that cannot be read is not sound.
    pub(crate) fn is_sound(&self, digest: &Digest) -> io::Result<bool> {
        let look = || -> io::Result<bool> {
            let mut file = self.read(digest)?;
            let sealed = self.seal == Seal::No || verity::measure(&file)? == Some(digest.0);
            Ok(sealed && digest_of(&mut file)? == *digest)
        };
        match look() {
            Err(error) if is_rot(&error) => Ok(false),
            other => other,
        }
    }

    /// What is wrong with the seal of an object that is there: none, that of another content, or one that cannot be opened. Reads nothing of its content.
    pub(crate) fn broken_seal(&self, digest: &Digest) -> io::Result<Option<String>> {
        if self.seal == Seal::No {
            return Ok(None);
        }
        Ok(match self.read(digest).and_then(|file| verity::measure(&file)) {
            Ok(Some(measured)) if measured == digest.0 => None,
            Ok(Some(measured)) => Some(format!("has the fs-verity digest {}", Digest(measured))),
            Ok(None) => Some("is not sealed with fs-verity".into()),
            Err(error) if is_rot(&error) => Some(format!("cannot be opened: {error}")),
            Err(error) => return Err(error),
        })
    }

    /// Gives a whole file its name, in a sealed home sealed. One that is there already and was found wanting is replaced. What it takes on disk.
    pub(crate) fn place(&self, file: File, digest: &Digest, maker: LayerId) -> io::Result<u64> {
        let file = self.seal(file, digest)?;
        rustix::fs::futimens(&file, &stamp(Some(maker)))?;
        let path = digest.path();
        let link = |to: &str| {
            let from = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::linkat(rustix::fs::CWD, &from, &self.dir, to, AtFlags::SYMLINK_FOLLOW)
        };
        let mut linked = link(&path);
        if linked == Err(Errno::NOENT) {
            ensure_folder(&self.dir, &path[..2], 0o700)?;
            linked = link(&path);
        }
        match linked {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let fresh = format!("{}/{TEMPORARY}{}", &path[..2], vellum_sys::random::hex::<8>()?);
                link(&fresh)?;
                rustix::fs::renameat(&self.dir, &fresh, &self.dir, &path)?;
            }
            Err(error) => return Err(error.into()),
        }
        Ok(allocated(&rustix::fs::fstat(&file)?))
    }

    /// In a sealed home, has the kernel verify a whole file from now on: its digest must be the name that it is to get.
    fn seal(&self, file: File, digest: &Digest) -> io::Result<File> {
        if self.seal == Seal::No {
            return Ok(file);
        }
        let file = verity::seal(file)?;
        if verity::measure(&file)? == Some(digest.0) {
            return Ok(file);
        }
        let reason = format!(
            "what the kernel has of it does not have the fs-verity digest {digest} that was computed: memory or disk is not sound"
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, reason))
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

/// Whether a file could not be opened or read because of what is on the disk: a bad block, or one that is not what its seal or its file system's checksum says.
fn is_rot(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::IO | Errno::INVAL | Errno::UCLEAN | Errno::BADMSG))
}

/// A name on the way to replacing an object that is not sound.
const TEMPORARY: &str = ".new-";

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
    sealer: Option<Sealer>,
}

impl Intake {
    pub(crate) fn new(parts: Arc<Parts>, layer: LayerId) -> Self {
        let (makers, made, own) = (HashMap::from([(layer, true)]), Usage::default(), BTreeSet::new());
        Self { parts, layer, known: HashSet::new(), makers, buffer: Vec::new(), made, own, sealer: None }
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

    /// Makes a whole file an object. In a sealed home that goes on behind this call, until [`Intake::settle`].
    fn place(&mut self, file: File, digest: &Digest) -> io::Result<()> {
        if self.parts.objects.seal == Seal::No {
            let bytes = self.parts.objects.place(file, digest, self.layer)?;
            self.note(*digest, bytes);
            return Ok(());
        }
        let sealer = match self.sealer.take() {
            Some(sealer) => sealer,
            None => Sealer::start(&self.parts, self.layer)?,
        };
        let goes_on = sealer.take(file, digest);
        self.sealer = Some(sealer);
        if goes_on { Ok(()) } else { self.settle() }
    }

    fn note(&mut self, digest: Digest, bytes: u64) {
        self.own.insert(digest);
        self.made += Usage { bytes, inodes: 1 };
    }

    /// Waits until all objects that were taken have their names: before they are read, and before what was made is asked for.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn settle(&mut self) -> io::Result<()> {
        let Some(sealer) = self.sealer.take() else { return Ok(()) };
        for (digest, bytes) in sealer.settle()? {
            self.note(digest, bytes);
        }
        Ok(())
    }
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
