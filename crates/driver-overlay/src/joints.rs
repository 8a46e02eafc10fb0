//! Joining a layer that was unpacked on its own to the layers below it.

use crate::lowers::{Found, Lowers};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use vellum_archive::attributes::is_alias;
use vellum_archive::target::{Joints, LayerPath};
use vellum_archive::tree::{Form, Node, Visit, open_dir, walk};
use vellum_archive::{XattrForm, nested};
use vellum_driver::{Error, ErrorKind, Result};

/// Does what `joints` asks for in the layer's own folder `diff`.
pub(crate) fn join(diff: BorrowedFd<'_>, lowers: &Lowers, joints: &Joints, form: Form) -> Result<()> {
    let mut copied = HashMap::new();
    for (link, existing) in &joints.links {
        join_link(diff, lowers, link, existing, form, &mut copied)?;
    }
    // Children first: what is set on a directory's times must stay.
    for path in joints.implied.iter().rev() {
        dress_implied(diff, lowers, path, form.xattrs).map_err(|error| {
            Error::system(format!("give {path} the owner and mode of the layers below"), error)
        })?;
    }
    for path in &joints.whiteouts {
        mark(diff, path, form.xattrs).map_err(not_marked(path))?;
    }
    Ok(())
}

/// Marks a directory as one that has whiteouts for an inner overlay; an entry that came later may have taken its place.
fn mark(diff: BorrowedFd<'_>, path: &LayerPath, form: XattrForm) -> io::Result<()> {
    match open_beneath(diff, path) {
        Ok(dir) => nested::mark_directory(dir.as_fd(), form),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(()),
            _ => Err(error),
        },
    }
}

fn not_marked(path: &LayerPath) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::system(format!("mark the whiteouts for an inner overlay in {path}"), error)
}

/// Marks the layer's own directories that are laid over marked ones: a view shows the attributes of the nearest. Costs a walk of
/// the layer and a look at each directory below, and so is done only where a layer below has such whiteouts.
pub(crate) fn mark_merged(diff: BorrowedFd<'_>, lowers: &Lowers, form: Form) -> Result<()> {
    walk(diff, form, &mut |path, node| {
        if node.file_type() != FileType::Directory || node.is_opaque()? {
            return Ok(Visit::Skip);
        }
        if let Some(Found::Dir(parts)) = lowers.find(path)? {
            for (_, below) in &parts {
                if nested::is_marked(below.as_fd())? {
                    nested::mark_directory(node.open_dir()?.as_fd(), form.xattrs)?;
                    break;
                }
            }
        }
        Ok(Visit::Enter)
    })?;
    Ok(())
}

/// Gives a directory that the archive did not list what the same directory below has.
fn dress_implied(diff: BorrowedFd<'_>, lowers: &Lowers, path: &LayerPath, form: XattrForm) -> io::Result<()> {
    let Some(Found::Dir(parts)) = lowers.find(path)? else { return Ok(()) };
    let Some((_, lower)) = parts.first() else { return Ok(()) };
    dress_dir(lower.as_fd(), open_beneath(diff, path)?.as_fd(), form)
}

/// Gives a directory owner, mode, attributes and times of another. What is the same already is not set, which would cost the file system a change.
pub(crate) fn dress_dir(lower: BorrowedFd<'_>, own: BorrowedFd<'_>, form: XattrForm) -> io::Result<()> {
    let [want, have] = [rustix::fs::fstat(lower)?, rustix::fs::fstat(own)?];
    let owner = |stat: &Stat| (stat.st_uid, stat.st_gid);
    if owner(&want) != owner(&have) {
        rustix::fs::fchown(own, Some(Uid::from_raw(want.st_uid)), Some(Gid::from_raw(want.st_gid)))?;
    }
    if want.st_mode != have.st_mode || owner(&want) != owner(&have) {
        rustix::fs::fchmod(own, Mode::from_raw_mode(want.st_mode & 0o7777))?;
    }
    if rustix::fs::flistxattr_query(lower) != Ok(0) {
        copy_attributes(proc_entry(lower, b"."), proc_entry(own, b"."), form)?;
    }
    Ok(rustix::fs::futimens(own, &times(&want))?)
}

/// Makes the name `link` for the file `existing` of the layers below: that is copied up, as overlayfs does.
fn join_link(
    diff: BorrowedFd<'_>,
    lowers: &Lowers,
    link: &LayerPath,
    existing: &LayerPath,
    form: Form,
    copied: &mut HashMap<LayerPath, LayerPath>,
) -> Result<()> {
    let failed = |error| Error::system(format!("link {link} to {existing}"), error);
    let invalid = |reason| {
        Error::new(
            ErrorKind::Invalid,
            format!("link {link} to {existing}"),
            format!("{reason} in the layers below"),
        )
    };
    if let Some(first) = copied.get(existing) {
        return link_to(diff, lowers, first, link, form).map_err(failed);
    }
    let (dir, name, stat, data) = match lowers.find(existing).map_err(failed)? {
        Some(Found::Other { dir, name, stat, data }) => (dir, name, stat, data),
        Some(Found::Dir(_)) => return Err(invalid("that is a directory")),
        None => return Err(invalid("there is no such file")),
    };
    let source = Node { dir: dir.as_fd(), name: OsStr::from_bytes(&name), stat, form };
    // Where this layer deletes or replaces the existing name, only the new name gets the file.
    let taken = exists(diff, existing, form).map_err(failed)?;
    let first = if taken { link } else { existing };
    copy_up(diff, lowers, &source, data, first).map_err(failed)?;
    copied.insert(existing.clone(), first.clone());
    if !taken {
        link_to(diff, lowers, first, link, form).map_err(failed)?;
    }
    if source.file_type() == FileType::RegularFile && source.special().map_err(failed)?.is_some() {
        for (dir, _) in [first, link].into_iter().filter_map(LayerPath::split) {
            mark(diff, &dir, form.xattrs).map_err(not_marked(&dir))?;
        }
    }
    Ok(())
}

/// Whether the layer itself has something of this name, be it a whiteout, or hides its directory.
fn exists(diff: BorrowedFd<'_>, path: &LayerPath, form: Form) -> io::Result<bool> {
    let Some((parent, name)) = path.split() else { return Ok(true) };
    let mut dir = open_dir(diff, OsStr::new("."))?;
    for part in [&b"."[..]].into_iter().chain(parent.names()) {
        match Node::at(dir.as_fd(), OsStr::from_bytes(part), form) {
            Ok(node) if node.is_opaque()? => return Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
        dir = match open_dir(dir.as_fd(), OsStr::from_bytes(part)) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(true),
            Err(error) => return Err(error),
        };
    }
    match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The directory that `path` lies in, made like those of the layers below where it is missing.
fn parent_of(
    diff: BorrowedFd<'_>,
    lowers: &Lowers,
    path: &LayerPath,
    form: XattrForm,
) -> io::Result<OwnedFd> {
    let mut dir = open_dir(diff, OsStr::new("."))?;
    let mut walked = LayerPath::root();
    let parent = path.split().map(|(parent, _)| parent).unwrap_or_default();
    for name in parent.names() {
        walked = walked.join(name).map_err(io::Error::other)?;
        let made = match rustix::fs::mkdirat(&dir, name, Mode::RWXU) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error.into()),
        };
        dir = open_dir(dir.as_fd(), OsStr::from_bytes(name))?;
        if made {
            dress_implied(diff, lowers, &walked, form)?;
        }
    }
    Ok(dir)
}

fn link_to(
    diff: BorrowedFd<'_>,
    lowers: &Lowers,
    from: &LayerPath,
    to: &LayerPath,
    form: Form,
) -> io::Result<()> {
    let (Some((_, from_name)), Some((_, to_name))) = (from.split(), to.split()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let source = parent_of(diff, lowers, from, form.xattrs)?;
    keeping_times(&parent_of(diff, lowers, to, form.xattrs)?, |dir| {
        match rustix::fs::linkat(&source, from_name, dir, to_name, AtFlags::empty()) {
            // A join that was interrupted has made it already.
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        }
    })
}

/// Copies a file of the layers below into the layer, under the name `to`.
fn copy_up(
    diff: BorrowedFd<'_>,
    lowers: &Lowers,
    source: &Node<'_>,
    data: Option<OwnedFd>,
    to: &LayerPath,
) -> io::Result<()> {
    let form = source.form.xattrs;
    let Some((_, name)) = to.split() else { return Err(io::ErrorKind::InvalidInput.into()) };
    keeping_times(&parent_of(diff, lowers, to, form)?, |dir| {
        match source.file_type() {
            FileType::RegularFile => {
                let from = match data {
                    Some(data) => File::from(data),
                    None => source.open()?,
                };
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let copy = File::from(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?);
                if rustix::fs::ioctl_ficlone(&copy, &from).is_err() {
                    io::copy(&mut &from, &mut &copy)?;
                }
            }
            FileType::Symlink => rustix::fs::symlinkat(&source.link_text()?[..], dir, name)?,
            kind => rustix::fs::mknodat(dir, name, kind, Mode::RUSR, source.stat.st_rdev)?,
        }
        let stat = &source.stat;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        if source.file_type() != FileType::Symlink {
            rustix::fs::chmodat(dir, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
        }
        copy_attributes(proc_entry(source.dir, source.name.as_bytes()), proc_entry(dir, name), form)?;
        Ok(rustix::fs::utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    })
}

/// Does something in a directory whose times must not show it.
fn keeping_times(dir: &OwnedFd, work: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    let before = rustix::fs::fstat(dir)?;
    work(dir.as_fd())?;
    Ok(rustix::fs::futimens(dir, &times(&before))?)
}

/// Copies the attributes to what has its owner already, because a change of that would take some away. Overlayfs's own marks
/// belong to the place where they are and stay there.
fn copy_attributes(from: Vec<u8>, to: Vec<u8>, form: XattrForm) -> io::Result<()> {
    let mut list = vec![0; 65536];
    let length = match rustix::fs::llistxattr(&from[..], &mut list[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0; 65536];
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let escaped = name.strip_prefix(form.prefix()).map(|rest| rest.starts_with(b"overlay."));
        if escaped == Some(false) || is_alias(name) {
            continue;
        }
        let length = rustix::fs::lgetxattr(&from[..], name, &mut value[..])?;
        match rustix::fs::lsetxattr(&to[..], name, &value[..length], XattrFlags::empty()) {
            // A label that only the system's policy may set is the system's own affair.
            Err(_) if name.starts_with(b"security.") && name != b"security.capability" => {}
            other => other?,
        }
    }
    Ok(())
}

fn proc_entry(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

fn open_beneath(root: BorrowedFd<'_>, path: &LayerPath) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, path.as_path(), flags, Mode::empty(), resolve)?)
}

#[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: stat.st_atime as i64, tv_nsec: stat.st_atime_nsec as _ },
        last_modification: Timespec { tv_sec: stat.st_mtime as i64, tv_nsec: stat.st_mtime_nsec as _ },
    }
}
