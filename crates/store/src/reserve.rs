//! A little room kept back, so that a full disk can still be emptied by the store itself.
//!
//! What removing needs is there before, as far as that can be: the catalog's log has its room ([`crate::catalog`]), locks are files that are
//! there ([`crate::locks`]), and a layer that cannot be moved to the trash is deleted in place. `ROOT/reserve`, two mebibytes, is for
//! the rest (a folder that must grow, a catalog that must be checkpointed, a driver that tries something out): it is deleted when a full
//! disk keeps the store from being opened or something from being removed, never for what adds to the store; and made again when there is
//! room. A store with a pool has one there, too: the data's file system is another than the catalog's.

use crate::layout::Layout;
use rustix::fs::FallocateFlags;
use std::path::Path;
use vellum_sys::fsinfo::FileSystem;

const SIZE: u64 = 2 << 20;
/// It is made again only when there is this much more than it takes.
const PLENTY: u64 = 16 << 20;

const NAME: &str = "reserve";

/// Makes the reserve, if there is none and there is room for it. It is a help and no promise: what fails is tried at the next open.
pub(crate) fn keep(layout: &Layout) {
    layout.file_systems().for_each(keep_at);
}

fn keep_at(root: &Path) {
    let path = root.join(NAME);
    if path.exists() || FileSystem::at(root).map_or(true, |fs| fs.free_bytes < PLENTY) {
        return;
    }
    let Ok(file) = vellum_sys::file::create(rustix::fs::CWD, &path, 0o600) else { return };
    if rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, SIZE).is_err() {
        let _ = std::fs::remove_file(path);
    }
}

/// Lets go of the reserve when the disk is full.
pub(crate) fn release_if_full(layout: &Layout) {
    for root in layout.file_systems() {
        if FileSystem::at(root).is_ok_and(|fs| fs.free_bytes < SIZE) {
            release(root);
        }
    }
}

/// Lets go of the reserve, and of what else was deleted a moment ago: some file systems (btrfs) give space back only with
/// their next transaction.
pub(crate) fn release(root: &Path) {
    let _ = std::fs::remove_file(root.join(NAME));
    if let Ok(folder) = crate::layout::open_folder(root) {
        let _ = rustix::fs::syncfs(folder);
    }
}
