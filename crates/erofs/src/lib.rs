//! EROFS images that hold a tree's metadata: directories, links, nodes, attributes, and files whose content lies elsewhere or is so short that
//! it fits beside the inode. The kernel mounts such an image from the file itself, and overlayfs takes the content from the objects that the files' attributes
//! name.
//!
//! # The image
//!
//! Kernel: `Documentation/filesystems/erofs.rst`, `fs/erofs/erofs_fs.h`. Blocks of 4 KiB, numbers little-endian.
//!
//! ```text
//!   0      header of composefs: magic 0xd078629a, version 1, the rest zero
//!   1024   superblock: times of each inode, files in chunks
//!   1152   inodes, each at a multiple of 32 bytes (its number is its offset / 32), the root first:
//!            64 bytes (the extended form), attributes, then one of
//!              what a directory has beyond whole blocks · a link's text · a short file's content: never across a block's end
//!              the map of a file's chunks: holes all of them, since its content lies elsewhere
//!   …      whole blocks of directories: entries sorted by name, then the names
//! ```
//!
//! What is not used: compression, shared attributes, the compact form of inodes (it has no times), checksums (whoever keeps an image compares it with what it was made of).
//! The same tree always gives the same image.
//!
//! # How it is written
//!
//! First the *layout*: every inode gets its place, in the order in which the tree tells them. Then the *writing*: from front to back, in one pass, into any writer;
//! only the list of places is kept (16 bytes an inode), and one directory at a time.

mod layout;
mod write;

pub use layout::{Layout, LayoutError};

use std::borrow::Cow;

/// A tree to write. Inodes are numbered from 0, the root; every number below [`Tree::count`] is of an inode that some directory names.
pub trait Tree {
    /// How many inodes there are.
    fn count(&self) -> usize;

    /// An inode.
    fn inode(&self, number: usize) -> Inode<'_>;

    /// Calls `each` for every entry of a directory, sorted by the bytes of the names, without `.` and `..`.
    fn entries(&self, number: usize, each: &mut dyn FnMut(&[u8], usize));

    /// The directory that a directory lies in; the root lies in itself.
    fn parent(&self, number: usize) -> usize;
}

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A directory.
    Dir,
    /// A regular file of this many bytes, whose content lies elsewhere.
    External(u64),
    /// A regular file with its content.
    Inline(&'a [u8]),
    /// A symbolic link's text.
    Symlink(&'a [u8]),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// An inode, as the tree tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode<'a> {
    /// What it is.
    pub content: Content<'a>,
    /// Permission bits: `0o7777` at most.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
    /// How many names it has; of a directory two, and one for each directory in it.
    pub links: u32,
    /// Attributes by full name, in the order in which they are written.
    pub xattrs: Vec<Xattr<'a>>,
}

/// An attribute's name and value.
pub type Xattr<'a> = (Cow<'a, [u8]>, Cow<'a, [u8]>);
