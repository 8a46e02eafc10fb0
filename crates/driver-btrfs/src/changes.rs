//! What was written to a subvolume since a generation, read off its tree.
//!
//! 1. The file system is synced, so that the tree has it all: sizes and times of files come to it late. A snapshot that nobody has written to has all from the beginning.
//! 2. Its tree is searched for items in parts that were written since then. An inode item whose own transaction is as recent is one that changed: its content,
//!    its attributes, its names, or, of a folder, the names in it. A snapshot's inodes keep the numbers and transactions that they have in the parent.
//! 3. Names of these inodes, and of the folders that they lie in, are looked up, up to the root: this is the way that a diff goes.
//!
//! An inode that changed need not differ in the end; the diff compares.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ffi::OsString;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStringExt as _;
use vellum_archive::target::Usage;
use vellum_driver::Candidates;
use vellum_sys::btrfs::{self, Item, ROOT_INODE, Range, item};

/// Numbers below this and above the last are not of files.
const LAST_INODE: u64 = u64::MAX - 256;

/// The inodes that changed, and the way to them.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    changed: HashSet<u64>,
    /// Of each folder on the way: the names in it that lead on.
    ways: HashMap<u64, BTreeSet<OsString>>,
}

impl Changes {
    pub(crate) fn since(root: BorrowedFd<'_>, since: u64) -> io::Result<Self> {
        let mut changes = Self::default();
        btrfs::sync(root)?;
        written(root, since, &mut |item| {
            if item.kind == item::INODE {
                changes.changed.insert(item.object);
            }
        })?;
        let mut todo: Vec<u64> = changes.changed.iter().copied().collect();
        let mut seen = changes.changed.clone();
        while let Some(inode) = todo.pop() {
            if inode == ROOT_INODE {
                continue;
            }
            for (folder, name) in names(root, inode)? {
                changes.ways.entry(folder).or_default().insert(name);
                if seen.insert(folder) {
                    todo.push(folder);
                }
            }
        }
        Ok(changes)
    }
}

impl Candidates for Changes {
    fn can_differ(&self, inode: u64) -> bool {
        self.changed.contains(&inode)
    }

    fn on_the_way(&self, inode: u64) -> Option<Vec<OsString>> {
        self.ways.get(&inode).map(|names| names.iter().cloned().collect())
    }

    fn is_foreign(&self, inode: u64) -> bool {
        inode == ROOT_INODE
    }
}

/// What was written since a generation, as far as it has come to the tree: extents, each once however many files have it, and inodes that were made since.
pub(crate) fn usage_since(root: BorrowedFd<'_>, since: u64) -> io::Result<Usage> {
    const INLINE: u64 = 0;
    let mut usage = Usage { bytes: 0, inodes: 0 };
    let mut extents = HashSet::new();
    written(root, since, &mut |item| match item.kind {
        // One that was made before is the parent's, whatever was written to it.
        item::INODE if item.number::<8>(0) >= since => usage.inodes += 1,
        // struct btrfs_file_extent_item: generation, bytes in memory, compression, encryption, other, type; then where on the disk, and how long.
        item::EXTENT_DATA => {
            let (at, length) = (item.number::<8>(21), item.number::<8>(29));
            if item.number::<1>(20) == INLINE {
                usage.bytes += item.data.len().saturating_sub(21) as u64;
            } else if at != 0 && extents.insert(at) {
                usage.bytes += length;
            }
        }
        _ => {}
    })?;
    Ok(usage)
}

/// Tells the inode items and extents that were written in the generation or later.
fn written(root: BorrowedFd<'_>, since: u64, told: &mut dyn FnMut(&Item<'_>)) -> io::Result<()> {
    let tree = btrfs::info(root)?.tree;
    let range = Range { tree, from: (ROOT_INODE, 0), to: (LAST_INODE, u32::from(u8::MAX)), since };
    btrfs::search(root, range, &mut |item| {
        let generation = match item.kind {
            // struct btrfs_inode_item: generation, transaction of the last change.
            item::INODE => item.number::<8>(8),
            item::EXTENT_DATA => item.number::<8>(0),
            _ => return Ok(()),
        };
        if generation >= since {
            told(&item);
        }
        Ok(())
    })
}

/// The names of an inode: (folder, name). An inode that was removed and is still open has none.
fn names(root: BorrowedFd<'_>, inode: u64) -> io::Result<Vec<(u64, OsString)>> {
    let mut found = Vec::new();
    let range = Range { tree: 0, from: (inode, item::INODE_REF), to: (inode, item::INODE_EXTREF), since: 0 };
    btrfs::search(root, range, &mut |item| {
        // struct btrfs_inode_ref: index, length, name; struct btrfs_inode_extref: folder, index, length, name. Several follow each other.
        let extended = if item.kind == item::INODE_EXTREF { 8 } else { 0 };
        let mut at = 0;
        while at < item.data.len() {
            let folder = if extended > 0 { item.number::<8>(at) } else { item.offset };
            let length = item.number::<2>(at + extended + 8) as usize;
            at += extended + 10;
            let name = item.data.get(at..at + length).unwrap_or_default();
            found.push((folder, OsString::from_vec(name.to_vec())));
            at += length;
        }
        Ok(())
    })?;
    Ok(found)
}
