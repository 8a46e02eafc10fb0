//! Character devices 0:0 that a layer brings: whiteouts of an overlay that lies inside the image, as in an image that holds
//! another engine's storage.
//!
//! Overlayfs takes such a device in any of its layers for a whiteout of its own, hides it, and lets nobody make one in a mount. There
//! is no way to have a real one shown. What the kernel has for this (Documentation/filesystems/overlayfs.rst, "Nesting
//! overlayfs mounts"; Linux 6.8) is another form of whiteout, which can be escaped as attributes can:
//!
//! | in the archive | in the layer's own folder | shown in the container |
//! |---|---|---|
//! | the device 0:0 `d/x` | `d/x`, an empty file with `trusted.overlay.overlay.whiteout` | an empty file with `trusted.overlay.whiteout` |
//! | | `d` with `trusted.overlay.overlay.opaque` = `x` | `d` with `trusted.overlay.opaque` = `x` |
//!
//! An overlay that is mounted in the container over `d`'s parent takes the file for the whiteout that the device was: that is what
//! the device was for, and so nothing is lost but the look of it. The same is set as `user.overlay.*`, for an inner overlay of an ordinary
//! user (`userxattr`); in a store that has that form itself, those are the escaped ones and the only ones.
//!
//! The mark of the directory is needed for listing only: without it the names are still hidden, and listed. Overlayfs shows attributes of the
//! nearest layer's directory, so every layer that has the directory must have the mark; the driver sees to that.
//!
//! # How it is told apart
//!
//! [`KEPT`] (`user.vellum.whiteout`) on the file says that it stands for a device, and on both lists which attributes are not the layer's
//! own. [`Node::special`](crate::tree::Node::special) and [`Node::meta`](crate::tree::Node::meta) go by it, and with them diff, commit,
//! export and check: the device comes out as it went in. A file in an archive that is such a whiteout already is an ordinary
//! file with ordinary attributes, and stays one.

use crate::XattrForm;
use crate::attributes::{At, escape};
use std::io;
use std::os::fd::BorrowedFd;

/// Says that a file stands for a device 0:0, or that a directory has such files; its value lists, with spaces between, the
/// attributes that belong to the mark.
pub const KEPT: &[u8] = b"user.vellum.whiteout";

/// What overlayfs looks for in a directory before it looks for whiteouts in it.
const DIRECTORY: &[u8] = b"x";

/// The names under which a mounted view shows the mark: that of the store's own form is escaped, the other is not.
fn shown(form: XattrForm, mark: &str) -> Vec<String> {
    let names = match form {
        XattrForm::Trusted => &["trusted", "user"][..],
        XattrForm::User => &["user"],
    };
    names.iter().map(|name| format!("{name}.overlay.{mark}")).collect()
}

/// Makes an empty file in a layer's own folder stand for a device 0:0. It has its owner, mode and attributes already.
pub(crate) fn keep(file: At<'_>, form: XattrForm) -> io::Result<()> {
    mark(file, form, "whiteout", b"y")
}

/// Says of a directory in a layer's own folder that it has files that stand for devices 0:0, in this layer or below. Saying it
/// twice changes nothing, and what the layer itself says about the directory stays.
///
/// # Errors
/// The file system's.
pub fn mark_directory(dir: BorrowedFd<'_>, form: XattrForm) -> io::Result<()> {
    mark(At::Open(dir), form, "opaque", DIRECTORY)
}

/// Whether [`mark_directory`] was called for an entry of a directory.
///
/// # Errors
/// The file system's.
pub fn is_marked(dir: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(At::Open(dir).get(KEPT)?.is_some())
}

/// The same for attributes in memory, by their names in a layer's own folder, sorted: of a file that stands for a device 0:0, or of a directory
/// that has such files.
pub fn mark_in(xattrs: &mut Vec<(Vec<u8>, Vec<u8>)>, form: XattrForm, directory: bool) {
    let (mark, value) = if directory { ("opaque", DIRECTORY) } else { ("whiteout", &b"y"[..]) };
    let find = |xattrs: &[(Vec<u8>, Vec<u8>)], name: &[u8]| xattrs.iter().position(|(own, _)| own == name);
    let mut listed = find(xattrs, KEPT).map(|at| xattrs.remove(at).1).unwrap_or_default();
    for (name, disk) in names(form, mark) {
        if find(xattrs, &disk).is_none() {
            xattrs.push((disk, value.to_vec()));
            list(&mut listed, &name);
        }
    }
    xattrs.push((KEPT.to_vec(), listed));
    xattrs.sort_unstable();
}

fn mark(at: At<'_>, form: XattrForm, mark: &str, value: &[u8]) -> io::Result<()> {
    let mut listed = at.get(KEPT)?.unwrap_or_default();
    for (name, disk) in names(form, mark) {
        if at.get(&disk)?.is_none() {
            at.set(&disk, value)?;
            list(&mut listed, &name);
        }
    }
    at.set(KEPT, &listed)
}

/// What a mark is called in a mounted view, and in the layer's own folder.
fn names(form: XattrForm, mark: &str) -> impl Iterator<Item = (String, Vec<u8>)> {
    shown(form, mark).into_iter().map(move |name| {
        let disk = escape(name.as_bytes(), Some(form)).unwrap_or_else(|| name.clone().into_bytes());
        (name, disk)
    })
}

/// Adds an attribute to the list of those that are not the layer's own.
fn list(listed: &mut Vec<u8>, name: &str) {
    if !lists(listed, name.as_bytes()) {
        if !listed.is_empty() {
            listed.push(b' ');
        }
        listed.extend_from_slice(name.as_bytes());
    }
}

fn lists(listed: &[u8], name: &[u8]) -> bool {
    listed.split(|byte| *byte == b' ').any(|part| part == name)
}

/// Whether an attribute, by the name that a view shows, is not the layer's own but belongs to the mark with this list.
pub(crate) fn belongs(listed: &[u8], name: &[u8], value: &[u8], directory: bool) -> bool {
    lists(listed, name) && (!directory || value == DIRECTORY)
}
