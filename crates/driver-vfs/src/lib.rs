//! The vfs driver: full copies, by reflink where possible. It needs nothing of the kernel, and is the reference that the others
//! are compared with.
//!
//! # On disk
//!
//! ```text
//!   HOME/            0700
//!     <id>/          0700, a layer
//!       dir/         its whole tree
//!       info         `active c`: what the layer is, and its parent
//! ```
//!
//! A view has no `dir`: it is a read-only look at its parent's.
//!
//! **Lock rule**: the caller holds the lock of the layer that a call is about; parents are committed and do not change.
//!
//! # Algorithms
//!
//! *create*: 1. make `<id>` (who makes it owns the id); 2. copy the parent's `dir`; 3. write `info`: the layer is there.
//! *commit*: replace `info` by a rename. *remove*: rename `<id>` into the trash. A folder without a whole `info` is half made: only
//! `remove` takes it, so a copy may be interrupted at any point.
//!
//! # What can go wrong
//!
//! - A copy needs the space of the tree, unless the file system shares blocks, and always its inodes.
//! - A layer is a tree, and a whiteout in a tar deletes from the copy of the parent: a layer cannot be unpacked before its parent.

mod driver;

pub use driver::{FACTORY, Vfs, VfsFactory};
