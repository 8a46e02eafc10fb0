//! The btrfs driver: a layer is a subvolume, and its children are snapshots of it. First writes copy blocks and not files, a container is there at once
//! whatever its image's size, and what it changed is read off the file system's own trees.
//!
//! # On disk
//!
//! ```text
//!   HOME/            0700, on btrfs
//!     .reserve       room in the metadata, for the balance that makes more of it
//!     <id>/          0700, a layer
//!       tree/        a subvolume: its whole tree; read-only when it is committed
//!       since        the generation from which on `tree` differs from the parent's, as a decimal number, twice
//!       size         of an active layer with a size limit: the limit in bytes, twice
//!       info         `active c`: what the layer is, and its parent
//! ```
//!
//! A view has no `tree`: it is a read-only look at its parent's.
//!
//! **Lock rule**: the caller holds the lock of the layer that a call is about; parents are committed and do not change.
//!
//! # Algorithms
//!
//! *create*: 1. make `<id>` (who makes it owns the id); 2. snapshot the parent's `tree`, or make an empty subvolume; 3. write `since` (the generation
//! after that in which the snapshot was made) and `info`: the layer is there. *commit*: subvolumes that were made inside become folders (below); the read-only flag is set, a size limit lifted;
//! `info` is replaced. *copy*: a snapshot, which has the `since` of what it is of. *remove*: rename `<id>` into the trash. *purge*: the subvolumes inside of
//! `tree` are destroyed, the innermost first, then `tree`, then the folder; the kernel gives the space back in the background.
//!
//! *diff* to the parent (module `changes`): the file system is synced; then the tree of `tree` is searched for inodes that were written since `since` (the kernel skips
//! whole branches that are older), names lead from each up to the root, and only these folders are walked. Costs what changed. To any other base both trees
//! are walked.
//!
//! *usage* is counted in the same search: extents that were written since, each once, and inodes that were made since.
//!
//! # Size limits
//!
//! A layer made with the storage option `size` is limited by btrfs' quotas, which the first such layer switches on (module `limit` says how and why, and what becomes of the
//! groups). `metadata` tells the limit and what is counted, `check` finds a limit that is not kept any more. [`usage`](vellum_driver::Driver::usage) is read off the trees also then:
//! quotas count no inodes, and full ones not before a scan.
//!
//! # Subvolumes inside
//!
//! A container with privileges can make subvolumes in its root (docker in docker does), in each other, and read-only ones. A snapshot would show them as empty folders, so what is
//! in them would be lost to children, copies and commits. They are found in the tree of roots.
//!
//! - *diff* and *usage* tell what is in them as they tell any new folder: an archive, and so an image, never knows of subvolumes.
//! - *commit* puts a folder with the same content (by reflink) in the place of each, and *copy* does so in the copy. Both do as long as what is inside has files, not as long as it is big.
//! - *remove* and *purge* delete them, the innermost first.
//!
//! # Power cuts
//!
//! The kernel deletes a subvolume in its next transaction, within half a minute; a power cut before that brings it back. That is nothing lost: what removes a layer has the catalog on the
//! disk before it says so, and what the catalog does not name is garbage, which the sweep at the next boot finds in the home or in the trash and removes again. So no
//! removal waits for a transaction of the file system. `gc` does, in the end: when it returns, the space is back.
//!
//! # What can go wrong
//!
//! - *A power cut after create*: the snapshot is durable when the ioctl returns, the record may be lost: [`Driver::complete`](vellum_driver::Driver::complete) keeps the tree
//!   and writes it again. Without `since` the diff walks both trees,
//!   and so it does where the two numbers differ (a flipped bit) or are later than the tree itself (it came from another file system).
//! - *"No space left" with free space shown*: chunks of the file system hold room of the wrong kind. What creates, copies and commits runs the balance that frees it and tries
//!   once more; unpacking looks before it begins, and `gc` after its work (module `room`). `status` says how the devices are set aside.
//! - *Layers of an image are unpacked one after the other*: a layer's tree begins as a snapshot of its parent's. What is unpacked by itself would have to be joined by reflinks, which
//!   makes every file a second time, because nothing can be renamed from one subvolume into another. The store decompresses a layer in one thread while another applies it.
//! - *Containers share no page cache*: each snapshot has inodes of its own. That is the price of this driver.
//! - The ioctls need privileges of the host: a user's own store cannot use this driver.

mod changes;
mod driver;
mod factory;
mod limit;
mod room;
mod subvolume;

pub use driver::Btrfs;
pub use factory::{BtrfsFactory, FACTORY};
