//! Trees on disk, read entry by entry.

use crate::XattrForm;
use rustix::fs::Stat;
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;

/// How the files of a tree tell what the layer means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Form {
    /// The namespace of overlay's attributes.
    pub xattrs: XattrForm,
    /// Owners that the user namespace cannot hold are recorded in an attribute.
    pub rootless: bool,
    /// A layer's own folder, with overlay's whiteouts and marks, rather than a mounted view of a whole tree.
    pub raw: bool,
}

/// An entry of a tree on disk.
#[derive(Debug, Clone, Copy)]
pub struct Node<'a> {
    /// The directory it lies in.
    pub dir: BorrowedFd<'a>,
    /// Its name there; `.` for the tree's root.
    pub name: &'a OsStr,
    /// What lstat says.
    pub stat: Stat,
    /// How to read it.
    pub form: Form,
}
