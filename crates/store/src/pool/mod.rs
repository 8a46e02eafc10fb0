//! The pool: a file system with reflinks, in a file, for hosts whose own has none.
//!
//! On ext4 the first write to a large file of an image copies all of it. A pool is an XFS or btrfs in a sparse file of the host, on which it
//! copies blocks. It holds the store's *data*: everything that layers and images are made of.
//!
//! ```text
//! ROOT/
//!   store.json, id, catalog.db*, locks/, mnt/, reserve      as without a pool
//!   pool/
//!     pool.json         which file system, the pool's own id, whether its room is taken beforehand: when this is there, there is a pool
//!     unmade.json       the same, while there is not yet or no longer a pool: then everything in `pool/` is garbage
//!     image             the file ──▶ /dev/loopN (direct I/O, goes with its last user) ──▶ mounted with discard
//!     data/             the mountpoint
//!       .pool           the pool's id: this is what is mounted
//!       reserve         as in ROOT, for the data
//!       config/ images/ layers/ blobs/ tmp/ trash/ <driver>/     as they lie in ROOT without a pool
//! ```
//!
//! # Why these and no others
//! What is renamed (into the trash, a blob into its place, a layer into another's) and what one barrier covers must be on one file system. So all that
//! the catalog's transactions speak of moves together: the barrier is a `syncfs` on a descriptor of the data's folder, with a
//! pool as without. It comes before the catalog commits, and through the loop device's flush it also reaches the disk of the host.
//! The other way round, a barrier never waits for what the rest of the host writes. The catalog stays outside: it is opened before
//! the pool is known to be sound, and it must be able to say so. It can be made anew from the pool alone.
//!
//! # Who mounts it, and who takes it off
//! Whoever opens the store mounts it where it is not: the first after its making, after a reboot, or in a mount namespace that does not see it. The
//! file has never more than one loop device: one that is attached is found and mounted again, and the kernel shares the file system
//! between these mounts. Between commands it stays. An open store holds a descriptor of its root, so nobody can take it off beneath.
//! [`Store::pool_unmount`] and the removals take it off; the device goes with its last mount (autoclear), so a process that is killed at any
//! moment leaves either a mounted pool or nothing. Whether other namespaces see the mount is decided by the propagation of
//! the file system that ROOT lies on (shared on a usual host); of itself the pool needs no propagation, as nothing is ever mounted in it.
//!
//! # Locks
//! `locks/store` is held shared by whoever has the store open, so making and removing a pool, which hold it alone, meet nobody.
//! `locks/pool` is held alone while it is mounted, grown, or taken off: two processes that open the store after a reboot
//! attach one device. Holding it, nobody waits for any other lock but `trash`, whose worker has files of the pool open.
//!
//! # The steps, and what a kill between them leaves
//!
//! **Create** (the store has no layer, image or container)
//! 1. `unmade.json` is published. `pool/image` is made and given its length; with `preallocate` its blocks too. No copy-on-write beneath, where the host has that.
//! 2. The program of the file system formats it: the one command that is started.
//! 3. It is attached and mounted; `.pool` is made, and synced, the file and its folder too. The folders come when the store is opened.
//!    *Killed until here*: the next process that opens the store takes `pool/` away. That is only done where `unmade.json` says so, or there is no file:
//!    a `pool.json` that was lost must not cost the pool.
//! 4. `unmade.json` is renamed to `pool.json`, durably: now the store has a pool.
//! 5. The catalog notes `pool` in `incompat`, so that earlier releases keep off. *Killed before*: the next process notes it, if nothing
//!    lies in the pool. Something there that the catalog knows nothing of means that the catalog is not the pool's, which is refused as damaged.
//!
//! **Open**
//! 1. Without a lock: the mountpoint has the right `.pool`, can be read, and is not read-only. Mostly that is all: three system calls.
//! 2. Lock `pool`; look again. A file system that has shut down is unmounted first, which needs that nobody uses it: the error says who must let go.
//! 3. Find the device of the file, or attach one. Mount. The file system replays its log: what was reported as done is there.
//!
//! **Grow** (when less than an eighth is free: looked at before an operation that adds, twenty times a second while it does, and each
//! second by servers; never so far that the host could come below its floor of free space)
//! 1. Lock `pool`. 2. The file is lengthened and synced. 3. The device follows. 4. The file system follows, by its ioctl.
//!    *Killed between*: a file longer than its file system, which the next growth takes in; harmless.
//!
//! **Trim** (by `gc`): FITRIM; the loop device punches holes. In between the mount option `discard` does the same for what is deleted. A preallocated
//! pool does neither, as it is to keep its blocks.
//!
//! **Check**: locks `store` alone, mounts (which replays the log), unmounts, and has the file system's own program look at the file without changing it. With
//! repair it may change an XFS; btrfs has no repair that could be run without a thought, and the finding says so.
//!
//! **Remove** (the store has no layer, image or container)
//! 1. Unmounted; the device goes. 2. The catalog forgets `pool`. *Killed until here*: the next process mounts it, and notes it again.
//! 3. `pool.json` is renamed to `unmade.json`, durably: now the store has no pool. *Killed after*: garbage as above.
//! 4. The file is deleted, then `pool/`.
//!
//! # When the host's disk is full
//! The file is sparse, so it may promise more than the host has; `status` says by how much. Loads are refused below the floor of either file system and
//! given up when the host falls below it meanwhile. If others fill the host all the same, writes fail: XFS tells it at the barrier
//! (its log has its blocks from the beginning, so it does not shut down by that alone), and btrfs becomes read-only. The operation fails, as nothing is
//! called ready before its barrier; what was called ready is on the disk. With room again, XFS goes on; a file system that has shut down is taken off and
//! mounted again by the next process that opens the store, or by `check`. `--preallocate` takes the room at once, and avoids it.

mod check;
mod create;
mod device;
mod grow;
mod open;
mod remove;
mod status;

pub use check::PoolCheck;
pub use status::PoolStatus;

pub(crate) use open::{agree, ready};
pub(crate) use remove::take_off_for_reset;
pub(crate) use status::{explain, of as status_of};

#[allow(unused_imports, reason = "for the documentation")]
use crate::Store;
use crate::layout::Layout;
use crate::{Code, Error, Result, files};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use vellum_sys::lock::FileLock;

/// When this is in `pool/`, the store has a pool.
pub(crate) const FACTS: &str = "pool.json";
/// When this is in `pool/` instead, all that is there is garbage.
const UNMADE: &str = "unmade.json";
/// In the pool's root: its id.
const MARK: &str = ".pool";

/// The file system in a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PoolFs {
    /// XFS with reflinks.
    Xfs,
    /// btrfs.
    Btrfs,
}

impl PoolFs {
    /// Its name, as in the kernel.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// The least bytes it can be made with.
    pub fn least(self) -> u64 {
        match self {
            Self::Xfs => 300 << 20,
            Self::Btrfs => 128 << 20,
        }
    }

    /// The program that makes it with its arguments, and Debian's package that has it and the others.
    fn mkfs(self) -> (&'static str, &'static [&'static str], &'static str) {
        match self {
            // Sectors of 4096 bytes fit every disk that the file may ever lie on. Discarding what is a hole takes time.
            Self::Xfs => ("mkfs.xfs", &["-q", "-f", "-K", "-m", "reflink=1", "-s", "size=4096"], "xfsprogs"),
            Self::Btrfs => ("mkfs.btrfs", &["-q", "-f", "-K"], "btrfs-progs"),
        }
    }
}

/// What a new pool is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSpec {
    /// Its bytes, at the beginning. They are taken from the host only when they are written, so it may have fewer.
    pub size: u64,
    /// The file system in it.
    pub fs: PoolFs,
    /// Take all of its room from the host now, so that writing in it never fails for the host's sake.
    pub preallocate: bool,
}

impl Default for PoolSpec {
    /// 20 GiB of XFS, sparse.
    fn default() -> Self {
        Self { size: 20 << 30, fs: PoolFs::Xfs, preallocate: false }
    }
}

/// `pool.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    fs: PoolFs,
    id: String,
    preallocated: bool,
}

impl Facts {
    /// Of a store that has a pool.
    fn read(layout: &Layout) -> Result<Self> {
        let path = layout.pool().join(FACTS);
        let bytes = files::read_if_there(&path)?.unwrap_or_default();
        serde_json::from_slice(&bytes).map_err(|e| {
            Error::caused(Code::Damaged, "read what the store's pool is", e).object(path.display()).with_hint(
                "write it again: {\"fs\": \"xfs\" or \"btrfs\", \"id\": what pool/data/.pool says, \"preallocated\": false}",
            )
        })
    }

    fn of(layout: &Layout) -> Result<Option<Self>> {
        if layout.has_pool() { Self::read(layout).map(Some) } else { Ok(None) }
    }
}

fn image(layout: &Layout) -> PathBuf {
    layout.pool().join("image")
}

fn mountpoint(layout: &Layout) -> PathBuf {
    layout.pool().join("data")
}

/// Makes the one name the other, durably.
fn rename_facts(layout: &Layout, from: &str, to: &str) -> Result<()> {
    let folder = layout.pool();
    std::fs::rename(folder.join(from), folder.join(to))
        .map_err(|e| Error::io("write", folder.join(to), e))?;
    files::sync_folder(&folder, &[])?;
    crate::faults::point("store.pool.renamed")
}

fn lock(layout: &Layout) -> Result<FileLock> {
    let path = layout.lock("pool");
    FileLock::exclusive(&path).map_err(|e| Error::io("take the lock", path, e))
}

/// Refuses what only the host's root can do.
fn must_be_root(operation: &str) -> Result<()> {
    if !crate::open::without_privileges() {
        return Ok(());
    }
    Err(Error::new(
        Code::Unsupported,
        operation,
        "a pool takes a loop device and a mount, which only the host's root may make",
    )
    .with_hint("work as root, or keep the store on a file system that has reflinks itself (XFS, btrfs)"))
}

/// The store has no pool.
fn missing(layout: &Layout, operation: &str) -> Error {
    Error::new(Code::NotFound, operation, "the store has no pool")
        .object(layout.root().display())
        .with_hint("`vellum init --pool` makes a store with one, `vellum pool create` gives one to a store that is empty")
}

/// Refuses where layers, images or containers are.
fn must_be_empty(layout: &Layout, operation: &str, hint: &str) -> Result<()> {
    let mut found = Vec::new();
    if crate::catalog::exists(&layout.catalog()) {
        let catalog = crate::catalog::Catalog::open(&layout.catalog(), &layout.lock("write"), false)?;
        let version = catalog
            .read(|tx| Ok(tx.pragma_query_value(None, "user_version", |row| row.get::<_, i32>(0))?))?;
        if version > 0 {
            found = catalog.read(|tx| {
                crate::catalog::schema::access(tx)?;
                crate::catalog::schema::contents(tx)
            })?;
        }
    } else if crate::open::has_layers(layout)? {
        return Err(Error::new(Code::Damaged, operation, "the store's catalog is lost")
            .object(layout.root().display())
            .with_hint("`vellum check --repair` rebuilds it from what lies on disk"));
    }
    if found.is_empty() {
        return Ok(());
    }
    let what: Vec<String> = found.iter().map(|(count, what)| format!("{count} {what}")).collect();
    Err(Error::new(Code::InUse, operation, format!("the store has {}", what.join(", ")))
        .object(layout.root().display())
        .with_hint(hint))
}
