//! Trees in memory: what a layer brings, and what an image is.
//!
//! Attributes have the names that they have in a layer's own folder ([`vellum_archive::attributes`]): escaped where overlayfs would take them for its own. Directories and
//! files are shared between trees and never changed once shared, so that the tree of an image is that of its parent, changed where the layer changes it.
//! A file of several names is one [`Leaf`], known by its address.

mod file;
mod image;
mod merge;

pub(crate) use file::{objects_in, read, root_attr, write};
pub(crate) use image::{Raw, build};
pub(crate) use merge::{compose, flatten, mark, mark_merged};

use crate::digest::Digest;
use std::collections::BTreeMap;
use std::sync::Arc;
use vellum_archive::target::{LayerPath, Meta, Node, Time};

/// The deepest that a tree may be: as deep as the longest path that an archive may have. What is deeper cannot be committed.
pub(crate) const DEEPEST: usize = 2048;

/// Owner, mode, time and attributes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Attr {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Sorted by name; none for most.
    pub(crate) xattrs: Xattrs,
}

pub(crate) type Xattrs = Option<Arc<Vec<(Vec<u8>, Vec<u8>)>>>;

impl Attr {
    pub(crate) fn of(meta: &Meta, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let xattrs = (!xattrs.is_empty()).then(|| Arc::new(xattrs));
        Self { mode: meta.mode, uid: meta.uid, gid: meta.gid, mtime: meta.mtime, xattrs }
    }

    pub(crate) fn xattrs(&self) -> &[(Vec<u8>, Vec<u8>)] {
        self.xattrs.as_ref().map_or(&[], |list| &list[..])
    }
}

/// Where a file's content is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// In the tree itself.
    Inline(Box<[u8]>),
    /// In an object.
    Object(Digest),
}

/// What is no directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum What {
    File { size: u64, content: Content },
    Symlink(Box<[u8]>),
    Node(Node),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) attr: Attr,
    pub(crate) what: What,
}

impl Leaf {
    pub(crate) fn object(&self) -> Option<&Digest> {
        match &self.what {
            What::File { content: Content::Object(digest), .. } => Some(digest),
            _ => None,
        }
    }
}

pub(crate) type Name = Arc<[u8]>;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Dir {
    pub(crate) attr: Attr,
    /// Hides what lies below. Only in the tree of a layer.
    pub(crate) opaque: bool,
    pub(crate) entries: BTreeMap<Name, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Entry {
    Dir(Arc<Dir>),
    Leaf(Arc<Leaf>),
    /// Hides what lies below. Only in the tree of a layer.
    Whiteout,
}

impl Dir {
    /// A directory that nothing is known of.
    pub(crate) fn implied() -> Self {
        Self { attr: Attr { mode: 0o755, ..Attr::default() }, ..Self::default() }
    }

    /// The entry at a path below.
    pub(crate) fn find(&self, path: &LayerPath) -> Option<&Entry> {
        let (parent, name) = path.split()?;
        self.dir(&parent)?.entries.get(name)
    }

    /// The directory at a path.
    pub(crate) fn dir(&self, path: &LayerPath) -> Option<&Self> {
        let mut dir = self;
        for name in path.names() {
            match dir.entries.get(name) {
                Some(Entry::Dir(below)) => dir = below,
                _ => return None,
            }
        }
        Some(dir)
    }

    /// The directory at a path, to change; `None` if there is none.
    pub(crate) fn dir_mut(&mut self, path: &LayerPath) -> Option<&mut Self> {
        let mut dir = self;
        for name in path.names() {
            match dir.entries.get_mut(name) {
                Some(Entry::Dir(below)) => dir = Arc::make_mut(below),
                _ => return None,
            }
        }
        Some(dir)
    }

    /// Every file below, however often it is named.
    pub(crate) fn leaves<'a>(&'a self, each: &mut dyn FnMut(&'a Arc<Leaf>)) {
        for entry in self.entries.values() {
            match entry {
                Entry::Dir(dir) => dir.leaves(each),
                Entry::Leaf(leaf) => each(leaf),
                Entry::Whiteout => {}
            }
        }
    }

    /// The objects that the tree names, sorted, each once.
    pub(crate) fn objects(&self) -> Vec<Digest> {
        let mut objects = Vec::new();
        self.leaves(&mut |leaf| objects.extend(leaf.object().copied()));
        objects.sort_unstable();
        objects.dedup();
        objects
    }
}
