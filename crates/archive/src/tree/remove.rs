//! Removing trees.

use super::{TreeError, open_dir};
use crate::target::LayerPath;
use rustix::fs::{AtFlags, FileType, Mode, RawDir};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt as _;

/// Removes the entry `name` of `dir` and all that lies below it, never following a link. What is already gone is no
/// error, so that an interrupted removal is simply begun again, also by two processes at once.
///
/// # Errors
/// The file system's, with the path.
pub fn remove(dir: BorrowedFd<'_>, name: &OsStr) -> Result<(), TreeError> {
    remove_at(dir, name).map_err(|source| TreeError { operation: "remove", path: shown(name), source })
}

/// Removes all that lies in an open directory, which stays.
///
/// # Errors
/// The file system's.
pub fn remove_content(dir: BorrowedFd<'_>) -> Result<(), TreeError> {
    open_dir(dir, OsStr::new("."))
        .and_then(empty)
        .map_err(TreeError::at::<io::Error>("empty the directory", &LayerPath::root()))
}

fn shown(name: &OsStr) -> LayerPath {
    use std::os::unix::ffi::OsStrExt as _;
    LayerPath::new(name.as_bytes()).unwrap_or_default()
}

fn gone(result: rustix::io::Result<()>) -> io::Result<()> {
    match result {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match enter(dir, name) {
        Ok(child) => empty(child)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    gone(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR))
}

/// Opens a directory that is to be emptied; one that its owner may not read is made readable first.
fn enter(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    match open_dir(dir, name) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())?;
            open_dir(dir, name)
        }
        other => other,
    }
}

/// Empties directories with a list of its own instead of recursion, so that a deep tree costs neither stack nor
/// descriptors: a directory that holds others has them moved up and emptied one after the other.
fn empty(dir: OwnedFd) -> io::Result<()> {
    empty_to(&dir, 0)
}

const DEEPEST: usize = 64;

fn empty_to(dir: &OwnedFd, depth: usize) -> io::Result<()> {
    loop {
        let (directories, mut left) = unlink_files(dir)?;
        for name in &directories {
            // Many have nothing in them, least of all those of a container that has written nothing.
            if matches!(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR), Ok(()) | Err(Errno::NOENT)) {
                continue;
            }
            let child = match enter(dir.as_fd(), name) {
                Ok(child) => child,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            if depth >= DEEPEST {
                left |= raise(&child, dir)?;
            } else {
                empty_to(&child, depth + 1)?;
            }
            drop(child);
            match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::NOTEMPTY | Errno::EXIST) => left = true,
                Err(error) => return Err(error.into()),
            }
        }
        if !left {
            return Ok(());
        }
    }
}

/// Removes what is no directory; names the directories, and says whether there may be more of them.
fn unlink_files(dir: &OwnedFd) -> io::Result<(Vec<OsString>, bool)> {
    let listed = open_dir(dir.as_fd(), OsStr::new("."))?;
    let mut directories = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(listed, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != FileType::Directory {
            match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
        directories.push(OsString::from_vec(name.to_bytes().to_vec()));
        if directories.len() >= 4096 {
            return Ok((directories, true));
        }
    }
    Ok((directories, false))
}

/// Moves the directories of `from` up into `to` under names that are free there. Says whether there were any.
fn raise(from: &OwnedFd, to: &OwnedFd) -> io::Result<bool> {
    let (directories, more) = unlink_files(from)?;
    let mut number = 0_u32;
    for name in &directories {
        loop {
            let free = format!("raised-{number}");
            number += 1;
            match rustix::fs::renameat_with(from, name, to, free, rustix::fs::RenameFlags::NOREPLACE) {
                Ok(()) | Err(Errno::NOENT) => break,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(more || !directories.is_empty())
}
