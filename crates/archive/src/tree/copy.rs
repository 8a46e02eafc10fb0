//! Copies of whole trees.

use super::ladder::Ladder;
use super::links::Links;
use super::{Node, TreeError, allocated, mtime, read_dir, timestamps};
use crate::attributes::At;
use crate::target::{LayerPath, Usage};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Uid};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

/// How to copy.
#[derive(Debug, Clone, Copy, Default)]
pub struct CopyOptions {
    /// Device nodes other than overlay's whiteouts are passed over instead of failing: they cannot be made without
    /// privileges.
    pub skip_devices: bool,
}

/// Copies the tree of the open directory `from` into the empty open directory `to`, as it is on disk: owners, modes, times to
/// the nanosecond, all attributes (overlay's, ACLs and capabilities too), hard links, holes, devices, pipes and
/// sockets. Data is shared where the file system can (FICLONE), else copied by the kernel.
///
/// Returns what the copy takes. Costs a few descriptors, however deep the tree is.
///
/// # Errors
/// The file system's, with the path. What was copied so far stays.
pub fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, options: CopyOptions) -> Result<Usage, TreeError> {
    let form = super::Form { xattrs: crate::XattrForm::Trusted, rootless: false, raw: true };
    let mut copier =
        Copier { options, links: Links::new(to), usage: Usage { bytes: 0, inodes: 1 }, clone: true };
    copier.tree(from, to, form)?;
    Ok(copier.usage)
}

/// A directory that is being copied.
struct Level {
    rest: std::vec::IntoIter<OsString>,
    /// How long its path is.
    length: usize,
    stat: Stat,
}

struct Copier<'a> {
    options: CopyOptions,
    links: Links<'a>,
    usage: Usage,
    /// Whether FICLONE is worth another try.
    clone: bool,
}

impl Copier<'_> {
    fn tree(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, form: super::Form) -> Result<(), TreeError> {
        let mut path = LayerPath::root();
        let open = |dir| Ladder::new(dir).map_err(TreeError::at("open", &LayerPath::root()));
        let (mut source, mut copy) = (open(from)?, open(to)?);
        let mut levels = vec![level(&source, 0).map_err(TreeError::at("list", &path))?];
        while let Some(level) = levels.last_mut() {
            path.cut(level.length);
            let Some(name) = level.rest.next() else {
                let stat = level.stat;
                levels.pop();
                self.leave(&source, &copy, stat, levels.is_empty(), form)
                    .map_err(TreeError::at("set the meta of", &path))?;
                source.up().and_then(|_| copy.up()).map_err(TreeError::at("go back from", &path))?;
                continue;
            };
            path.push(name.as_bytes());
            let here = || Ok::<_, io::Error>((source.here()?, copy.here()?));
            let (dir, to) = here().map_err(TreeError::at("look at", &path))?;
            let node = Node::at(dir, &name, form).map_err(TreeError::at("look at", &path))?;
            if node.file_type() == FileType::Directory {
                let made = make_dir(&node, to).map_err(TreeError::at("copy the directory", &path))?;
                source.down(made.0).and_then(|()| copy.down(made.1)).map_err(TreeError::at("open", &path))?;
                levels
                    .push(self::level(&source, path.as_bytes().len()).map_err(TreeError::at("list", &path))?);
            } else {
                self.entry(&node, to).map_err(TreeError::at("copy", &path))?;
            }
        }
        Ok(())
    }

    /// Gives the copy of a directory its meta, when nothing in it will change any more.
    fn leave(
        &mut self,
        source: &Ladder,
        copy: &Ladder,
        stat: Stat,
        root: bool,
        form: super::Form,
    ) -> io::Result<()> {
        let copy = copy.here()?;
        if root {
            self.links.drop_folder()?;
        }
        dress_dir(&Node { dir: source.here()?, name: OsStr::new("."), stat, form }, copy)?;
        self.usage += Usage { bytes: allocated(&rustix::fs::fstat(copy)?), inodes: u64::from(!root) };
        Ok(())
    }

    fn entry(&mut self, node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        if self.links.linked(node, to)? {
            return Ok(());
        }
        match node.file_type() {
            FileType::RegularFile => self.file(node, to)?,
            FileType::CharacterDevice | FileType::BlockDevice
                if self.options.skip_devices && !node.is_whiteout() =>
            {
                return Ok(());
            }
            _ => self.special(node, to)?,
        }
        self.links.first(node, to)
    }

    fn special(&mut self, node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        match node.file_type() {
            FileType::Symlink => rustix::fs::symlinkat(&node.link_text()?[..], to, node.name)?,
            kind => rustix::fs::mknodat(
                to,
                node.name,
                kind,
                Mode::from_raw_mode(node.stat.st_mode & 0o777),
                node.stat.st_rdev,
            )?,
        }
        dress_entry(node, to)?;
        let stat = rustix::fs::statat(to, node.name, AtFlags::SYMLINK_NOFOLLOW)?;
        self.usage += Usage { bytes: allocated(&stat), inodes: 1 };
        Ok(())
    }

    fn file(&mut self, node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
        let source = node.open()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let copy = rustix::fs::openat(to, node.name, flags, Mode::RUSR | Mode::WUSR)?;
        let size = u64::try_from(node.stat.st_size).unwrap_or(0);
        if size > 0 && !self.cloned(&source, &copy)? {
            copy_data(&source, &copy, size)?;
        }
        copy_attributes(At::Open(source.as_fd()), At::Open(copy.as_fd()), || {
            rustix::fs::fchown(&copy, owner(node.stat.st_uid), group(node.stat.st_gid))?;
            rustix::fs::fchmod(&copy, Mode::from_raw_mode(node.stat.st_mode & 0o7777))?;
            Ok(())
        })?;
        rustix::fs::futimens(&copy, &times(node))?;
        self.usage += Usage { bytes: allocated(&rustix::fs::fstat(&copy)?), inodes: 1 };
        Ok(())
    }

    fn cloned(&mut self, source: &std::fs::File, copy: &OwnedFd) -> io::Result<bool> {
        if !self.clone {
            return Ok(false);
        }
        match rustix::fs::ioctl_ficlone(copy, source) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::XDEV | Errno::NOTTY | Errno::NOSYS) => {
                self.clone = false;
                Ok(false)
            }
            Err(Errno::INVAL | Errno::PERM | Errno::TXTBSY) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

fn level(source: &Ladder, length: usize) -> io::Result<Level> {
    let here = source.here()?;
    // The time of access is that of before.
    let stat = rustix::fs::fstat(here)?;
    Ok(Level { rest: read_dir(here)?.into_iter(), length, stat })
}

fn make_dir(node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    rustix::fs::mkdirat(to, node.name, Mode::RWXU)?;
    Ok((node.open_dir()?, super::open_dir(to, node.name)?))
}

/// The parent of `path` below `root` (`None` for `root` itself) and the last name, no link followed.
pub(crate) fn open_parent(root: BorrowedFd<'_>, path: &LayerPath) -> io::Result<(Option<OwnedFd>, Vec<u8>)> {
    let mut dir: Option<OwnedFd> = None;
    let names: Vec<&[u8]> = path.names().collect();
    let Some((last, parents)) = names.split_last() else { return Ok((None, b".".to_vec())) };
    for name in parents {
        let at = dir.as_ref().map_or(root, |dir| dir.as_fd());
        dir = Some(super::open_dir(at, OsStr::from_bytes(name))?);
    }
    Ok((dir, last.to_vec()))
}

fn owner(uid: u32) -> Option<Uid> {
    Some(Uid::from_raw(uid))
}

fn group(gid: u32) -> Option<Gid> {
    Some(Gid::from_raw(gid))
}

#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
fn times(node: &Node<'_>) -> rustix::fs::Timestamps {
    let mut times = timestamps(mtime(&node.stat));
    times.last_access.tv_sec = node.stat.st_atime as i64;
    times.last_access.tv_nsec = node.stat.st_atime_nsec as _;
    times
}

/// Copies the runs of data; what lies between stays a hole.
fn copy_data(source: &std::fs::File, copy: &OwnedFd, size: u64) -> io::Result<()> {
    let mut position = 0;
    while position < size {
        let start = match rustix::fs::seek(source, SeekFrom::Data(position)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL) => position,
            Err(error) => return Err(error.into()),
        };
        let end = match rustix::fs::seek(source, SeekFrom::Hole(start)) {
            Ok(end) => end.min(size),
            Err(Errno::INVAL) => size,
            Err(error) => return Err(error.into()),
        };
        copy_range(source, copy, start, end)?;
        position = end;
    }
    rustix::fs::ftruncate(copy, size)?;
    Ok(())
}

fn copy_range(source: &std::fs::File, copy: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let (mut input, mut output) = (start, start);
    while input < end {
        let want = usize::try_from(end - input).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut input), copy, Some(&mut output), want) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(Errno::XDEV | Errno::NOSYS | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM) => {
                return copy_by_hand(source, copy, input, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn copy_by_hand(source: &std::fs::File, copy: &OwnedFd, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut position = start;
    while position < end {
        let want = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
        let got = rustix::io::pread(source, &mut buffer[..want], position)?;
        if got == 0 {
            break;
        }
        let mut done = 0;
        while done < got {
            done += rustix::io::pwrite(copy, &buffer[done..got], position + done as u64)?;
        }
        position += got as u64;
    }
    Ok(())
}

/// Sets owner and mode through `between`, and all attributes after: a change of owner takes capabilities away, a change of
/// mode changes an ACL.
fn copy_attributes(from: At<'_>, to: At<'_>, between: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    between()?;
    let names = from.names()?;
    for old in to.names()? {
        // What a default ACL of the parent or a security module has put there is not the source's.
        if !names.contains(&old) && !old.starts_with(b"security.") {
            to.remove(&old)?;
        }
    }
    for name in names {
        if let Some(value) = from.get(&name)? {
            match to.set(&name, &value) {
                // A label that only the system's policy may set is the system's own affair.
                Err(_) if name.starts_with(b"security.") && name != b"security.capability" => {}
                other => other?,
            }
        }
    }
    Ok(())
}

fn dress_dir(node: &Node<'_>, copy: BorrowedFd<'_>) -> io::Result<()> {
    copy_attributes(node.attributes_at(), At::Open(copy), || {
        rustix::fs::fchown(copy, owner(node.stat.st_uid), group(node.stat.st_gid))?;
        rustix::fs::fchmod(copy, Mode::from_raw_mode(node.stat.st_mode & 0o7777))?;
        Ok(())
    })?;
    Ok(rustix::fs::futimens(copy, &times(node))?)
}

fn dress_entry(node: &Node<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let at = At::Entry(to, node.name.as_bytes());
    copy_attributes(node.attributes_at(), at, || {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(to, node.name, owner(node.stat.st_uid), group(node.stat.st_gid), nofollow)?;
        if node.file_type() != FileType::Symlink {
            let mode = Mode::from_raw_mode(node.stat.st_mode & 0o7777);
            rustix::fs::chmodat(to, node.name, mode, AtFlags::empty())?;
        }
        Ok(())
    })?;
    Ok(rustix::fs::utimensat(to, node.name, &times(node), AtFlags::SYMLINK_NOFOLLOW)?)
}
