//! Subvolumes inside of subvolumes.

use crate::limit;
use rustix::fs::{Mode, OFlags, RenameFlags, ResolveFlags};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use vellum_archive::tree::{self, CopyOptions};
use vellum_driver::{Error, Result};
use vellum_sys::btrfs::{self, Item, ROOT_TREE, Range, item};

/// A subvolume that lies in another, by the path of the folder that it is in.
#[derive(Debug)]
pub(crate) struct Inner {
    folder: PathBuf,
    name: OsString,
}

/// The subvolumes directly inside of the one whose root this is.
pub(crate) fn inside(root: BorrowedFd<'_>) -> io::Result<Vec<Inner>> {
    let tree = btrfs::info(root)?.tree;
    let mut found = Vec::new();
    let range = Range { tree: ROOT_TREE, from: (tree, item::ROOT_REF), to: (tree, item::ROOT_REF), since: 0 };
    btrfs::search(root, range, &mut |item: Item<'_>| {
        // struct btrfs_root_ref: the folder's inode, an index, the length of the name, the name.
        let length = item.number::<2>(16) as usize;
        let name = item.data.get(18..18 + length).unwrap_or_default();
        found.push((item.number::<8>(0), OsString::from_vec(name.to_vec())));
        Ok(())
    })?;
    let path = |(folder, name)| Ok(Inner { folder: btrfs::folder_of(root, tree, folder)?.into(), name });
    found.into_iter().map(path).collect()
}

fn failed<'a>(operation: &'a str, name: &'a OsStr) -> impl Fn(io::Error) -> Error + Copy + 'a {
    move |error| Error::system(format!("{operation} '{}'", name.display()), error)
}

/// Opens a folder below a root, without following a link.
fn open_below(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// The roots of all subvolumes inside, at any depth.
pub(crate) fn roots_inside(root: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for inner in inside(root)? {
        let opened = open_below(root, &inner.folder.join(&inner.name))?;
        found.extend(roots_inside(opened.as_fd())?);
        found.push(opened);
    }
    Ok(found)
}

/// The numbers of the subvolume `name` of the folder and of those inside, if quotas keep groups for them; none where there is no such subvolume.
pub(crate) fn counted(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<Vec<u64>> {
    match tree::open_dir(folder, name) {
        Ok(root) if btrfs::is_read_only(&root).is_ok() => {
            limit::counted(root.as_fd(), &roots_inside(root.as_fd())?)
        }
        Ok(_) => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Deletes the subvolume `name` of the folder with all that are inside of it. One that is not there is fine; a plain folder is deleted as such.
pub(crate) fn delete(folder: BorrowedFd<'_>, name: &OsStr) -> Result<()> {
    let failed = failed("delete the subvolume", name);
    let root = match tree::open_dir(folder, name) {
        Ok(root) => root,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    if btrfs::is_read_only(&root).is_err() {
        return Ok(tree::remove(folder, name)?);
    }
    let inner = inside(root.as_fd()).map_err(failed)?;
    if !inner.is_empty() {
        btrfs::set_read_only(&root, false).map_err(failed)?;
    }
    for inner in inner {
        let folder = open_below(root.as_fd(), &inner.folder).map_err(failed)?;
        delete(folder.as_fd(), &inner.name)?;
    }
    btrfs::destroy(folder, name).map_err(failed)
}

/// The name of a folder that is to take a subvolume's place, while it is made.
const IN_THE_MAKING: &[u8] = b".vellum-flat";

/// Puts folders with the same content in the place of the subvolumes inside, be they read-only; what lies in those again is copied with them.
///
/// 1. The folder is made beside the subvolume. One that an earlier, interrupted commit began goes first.
/// 2. Both change their names, at once.
/// 3. The subvolume is deleted. One that an interrupted commit left is known by its name, and by the folder that has its place.
pub(crate) fn flatten(root: BorrowedFd<'_>) -> Result<()> {
    for inner in inside(root).map_err(failed("list the subvolumes of", OsStr::new("/")))? {
        let failed = failed("make a folder of the subvolume", &inner.name);
        let folder = open_below(root, &inner.folder).map_err(failed)?;
        let before = rustix::fs::fstat(&folder).map_err(|error| failed(error.into()))?;
        if has_its_place_taken(folder.as_fd(), &inner.name).map_err(failed)? {
            delete(folder.as_fd(), &inner.name)?;
        } else {
            let name = inner.name.as_bytes();
            // Together they must not be longer than a name can be.
            let fresh = [name.get(..255 - IN_THE_MAKING.len()).unwrap_or(name), IN_THE_MAKING].concat();
            let fresh = OsStr::from_bytes(&fresh);
            tree::remove(folder.as_fd(), fresh)?;
            rustix::fs::mkdirat(&folder, fresh, Mode::RWXU).map_err(|error| failed(error.into()))?;
            let source = tree::open_dir(folder.as_fd(), &inner.name).map_err(failed)?;
            let copy = tree::open_dir(folder.as_fd(), fresh).map_err(failed)?;
            tree::copy(source.as_fd(), copy.as_fd(), CopyOptions { skip_devices: false })?;
            rustix::fs::renameat_with(&folder, fresh, &folder, &inner.name, RenameFlags::EXCHANGE)
                .map_err(|error| failed(error.into()))?;
            delete(folder.as_fd(), fresh)?;
        }
        keep_times(&folder, &before).map_err(failed)?;
    }
    Ok(())
}

/// Whether the subvolume has given its name to a folder already.
fn has_its_place_taken(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<bool> {
    let Some(place) = name.as_bytes().strip_suffix(IN_THE_MAKING) else { return Ok(false) };
    match tree::open_dir(folder, OsStr::from_bytes(place)) {
        // A subvolume of the container's own that only has such a name, beside another.
        Ok(folder) => Ok(btrfs::is_read_only(&folder).is_err()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(error),
    }
}

/// Fills the empty folders that a snapshot has in the place of the subvolumes inside of what it is of.
pub(crate) fn fill(source: BorrowedFd<'_>, snapshot: BorrowedFd<'_>) -> Result<()> {
    for inner in inside(source).map_err(failed("list the subvolumes of", OsStr::new("/")))? {
        let failed = failed("copy the subvolume", &inner.name);
        let from = open_below(source, &inner.folder.join(&inner.name)).map_err(failed)?;
        let folder = open_below(snapshot, &inner.folder).map_err(failed)?;
        let before = rustix::fs::fstat(&folder).map_err(|error| failed(error.into()))?;
        // The empty folder is a place-holder with fixed owner and mode, in which nothing can be made.
        tree::remove(folder.as_fd(), &inner.name)?;
        rustix::fs::mkdirat(&folder, &inner.name, Mode::RWXU).map_err(|error| failed(error.into()))?;
        let to = tree::open_dir(folder.as_fd(), &inner.name).map_err(failed)?;
        tree::copy(from.as_fd(), to.as_fd(), CopyOptions { skip_devices: false })?;
        keep_times(&folder, &before).map_err(failed)?;
    }
    Ok(())
}

/// The folder's own times are what they were: it has the same names.
fn keep_times(folder: &OwnedFd, before: &rustix::fs::Stat) -> io::Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: before.st_atime, tv_nsec: before.st_atime_nsec as _ },
        last_modification: rustix::fs::Timespec {
            tv_sec: before.st_mtime,
            tv_nsec: before.st_mtime_nsec as _,
        },
    };
    Ok(rustix::fs::futimens(folder, &times)?)
}
