//! Walking a tree in the order a tar wants.

use super::ladder::Ladder;
use super::{Form, Node, TreeError, allocated};
use crate::target::{LayerPath, Usage};
use rustix::fs::{FileType, RawDir};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// The names in an open directory, sorted by bytes, without `.` and `..`.
///
/// # Errors
/// The file system's.
pub fn read_dir(dir: BorrowedFd<'_>) -> io::Result<Vec<OsString>> {
    names(dir, |_| true)
}

/// The names of entries of these types, and of those whose type the file system does not tell.
fn names(dir: BorrowedFd<'_>, wanted: impl Fn(FileType) -> bool) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    // A view of its own, so that the caller's position does not matter.
    let own = super::open_dir(dir, OsStr::new("."))?;
    let mut buffer = [MaybeUninit::uninit(); 8192];
    let mut entries = RawDir::new(own, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let kind = entry.file_type();
        if name != b"." && name != b".." && (kind == FileType::Unknown || wanted(kind)) {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Whether to go on below an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Visit {
    /// Into it, if it is a directory.
    Enter,
    /// Past it.
    Skip,
}

/// Visits every entry below `root`, and `root` itself first: a directory before what is in it, names
/// sorted by bytes. Does not leave through links. Costs a few descriptors, however deep the tree is; the names of the directories on
/// the way are in memory.
///
/// # Errors
/// The file system's, with the path; whatever `visit` returns, with the path it was called for.
pub fn walk(
    root: BorrowedFd<'_>,
    form: Form,
    visit: &mut dyn FnMut(&LayerPath, &Node<'_>) -> io::Result<Visit>,
) -> Result<(), TreeError> {
    walk_names(root, form, &read_dir, visit)
}

/// As [`walk`], past all that is no directory: a tenth of the cost, because only directories are looked at.
///
/// # Errors
/// As there.
pub fn walk_directories(
    root: BorrowedFd<'_>,
    form: Form,
    visit: &mut dyn FnMut(&LayerPath, &Node<'_>) -> io::Result<Visit>,
) -> Result<(), TreeError> {
    let directories = |dir: BorrowedFd<'_>| names(dir, |kind| kind == FileType::Directory);
    walk_names(root, form, &directories, &mut |path, node| match node.file_type() {
        FileType::Directory => visit(path, node),
        _ => Ok(Visit::Skip),
    })
}

fn walk_names(
    root: BorrowedFd<'_>,
    form: Form,
    names: &dyn Fn(BorrowedFd<'_>) -> io::Result<Vec<OsString>>,
    visit: &mut dyn FnMut(&LayerPath, &Node<'_>) -> io::Result<Visit>,
) -> Result<(), TreeError> {
    let mut path = LayerPath::root();
    let node = Node::at(root, OsStr::new("."), form).map_err(TreeError::at("look at", &path))?;
    if visit(&path, &node).map_err(TreeError::at("read", &path))? == Visit::Skip {
        return Ok(());
    }
    let mut ladder = Ladder::new(root).map_err(TreeError::at("open", &path))?;
    let names = |ladder: &Ladder| Ok::<_, io::Error>(names(ladder.here()?)?.into_iter());
    let mut left = vec![(names(&ladder).map_err(TreeError::at("list", &path))?, 0)];
    while let Some((rest, length)) = left.last_mut() {
        path.cut(*length);
        let Some(name) = rest.next() else {
            left.pop();
            ladder.up().map_err(TreeError::at("go back to the directory of", &path))?;
            continue;
        };
        path.push(name.as_bytes());
        let here = ladder.here().map_err(TreeError::at("look at", &path))?;
        let node = Node::at(here, &name, form).map_err(TreeError::at("look at", &path))?;
        let next = visit(&path, &node).map_err(TreeError::at("read", &path))?;
        if next == Visit::Enter && node.file_type() == FileType::Directory {
            let child = node.open_dir().map_err(TreeError::at("open", &path))?;
            ladder.down(child).map_err(TreeError::at("open", &path))?;
            left.push((names(&ladder).map_err(TreeError::at("list", &path))?, path.as_bytes().len()));
        }
    }
    Ok(())
}

fn plain() -> Form {
    Form { xattrs: crate::XattrForm::Trusted, rootless: false, raw: true }
}

/// What a tree takes on disk, its root included; files with several links count once.
///
/// # Errors
/// The file system's, with the path.
pub fn usage(root: BorrowedFd<'_>) -> Result<Usage, TreeError> {
    let mut usage = Usage::default();
    let mut linked = HashSet::new();
    walk(root, plain(), &mut |_, node| {
        let several = node.stat.st_nlink > 1 && node.file_type() != FileType::Directory;
        if !several || linked.insert(node.stat.st_ino) {
            usage += Usage { bytes: allocated(&node.stat), inodes: 1 };
        }
        Ok(Visit::Enter)
    })?;
    Ok(usage)
}

/// What removing a tree gives back, its root included: a file that has further names elsewhere stays.
///
/// # Errors
/// The file system's, with the path.
pub(crate) fn usage_alone(root: BorrowedFd<'_>) -> Result<Usage, TreeError> {
    let mut usage = Usage::default();
    // How many names of a file were met.
    let mut names: HashMap<u64, u64> = HashMap::new();
    walk(root, plain(), &mut |_, node| {
        let mut last = true;
        if node.stat.st_nlink > 1 && node.file_type() != FileType::Directory {
            let met = names.entry(node.stat.st_ino).or_default();
            *met += 1;
            #[allow(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
            let all = node.stat.st_nlink as u64;
            last = *met == all;
        }
        if last {
            usage += Usage { bytes: allocated(&node.stat), inodes: 1 };
        }
        Ok(Visit::Enter)
    })?;
    Ok(usage)
}

/// Brings every file and directory of a small tree to the disk.
///
/// # Errors
/// The file system's, with the path: also what it had put off, such as a full disk.
pub fn sync(root: BorrowedFd<'_>) -> Result<(), TreeError> {
    walk(root, plain(), &mut |_, node| {
        match node.file_type() {
            FileType::RegularFile => node.open()?.sync_all()?,
            FileType::Directory => rustix::fs::fsync(node.open_dir()?)?,
            // Links, devices and pipes have no data of their own: their inodes are in the directory's transaction.
            _ => {}
        }
        Ok(Visit::Enter)
    })
}
