//! The locks of a store: who may do what at the same time, and who lives.
//!
//! All are flock(2) locks, which the kernel lets go when their holder dies, however it dies.
//! Taken in this order, never the other way:
//!
//! | lock | held shared by | held exclusively by |
//! |---|---|---|
//! | `store` | every open store | `reset`, and the repair that replaces the catalog |
//! | a layer's folder `layers/<driver>/<id>` | what works on a container: mount, diff, commit, save | what changes which layer it has or takes it away |
//! | `owner-<hex>` | (asked for only) | one operation that has intents, as long as it lives |
//! | `sweep` | who moves a file in place that no row names yet | who deletes files that no row names |
//! | `layers` | who mounts (from the plan to the mount), reads or joins layers of images | who replaces a damaged one, or takes away what mounts make again; never waited for longer than moments |
//! | `write` | (nobody) | the catalog's writer: a fair queue in front of SQLite's own lock |
//! | `pool` | (nobody) | who mounts the pool, makes it larger, or takes it off; held for moments, waits for nobody but the trash |
//! | `trash` | (nobody) | who empties the trash |

use crate::layout::Layout;
use crate::{Code, Error, Result};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use vellum_sys::lock::{FileLock, is_held};

/// The number of an operation that has intents in the catalog. Random, so never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct OwnerId(pub(crate) i64);

/// Lock files that are there from the beginning, for operations on a disk that has no room for one more file. Their numbers are
/// used again, which only means that what a dead one left is cleaned up when the next one has ended.
const SPARE: i64 = 8;

impl OwnerId {
    fn file_name(self) -> String {
        match self.is_spare() {
            true => format!("spare-{}", self.0),
            false => format!("owner-{:016x}", self.0),
        }
    }

    fn is_spare(self) -> bool {
        (0..SPARE).contains(&self.0)
    }
}

/// Makes the lock files that must be there on a full disk. The last one says that all are.
pub(crate) fn make_files(layout: &Layout) -> Result<()> {
    let spare = |number| OwnerId(number).file_name();
    if layout.lock(&spare(SPARE - 1)).exists() {
        return Ok(());
    }
    let fixed = ["store", "layers", "sweep", "write", "pool", "trash"].map(str::to_owned);
    for name in fixed.into_iter().chain((0..SPARE).map(spare)) {
        let path = layout.lock(&name);
        match vellum_sys::file::create(rustix::fs::CWD, &path, 0o600) {
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            // A store of an earlier version on a full disk: whoever needs the file says so.
            Err(e) if crate::error::code_of(&e) == Code::Full => return Ok(()),
            Err(e) => return Err(Error::io("make the lock", path, e)),
        }
    }
    Ok(())
}

/// An operation at work: its lock says that it lives.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) id: OwnerId,
    path: PathBuf,
    _lock: FileLock,
}

impl Owner {
    /// Announces an operation.
    pub(crate) fn announce(layout: &Layout) -> Result<Self> {
        loop {
            let bytes = vellum_sys::random::bytes::<8>()
                .map_err(|e| Error::io("draw a random number", "getrandom", e))?;
            let id = OwnerId(i64::from_le_bytes(bytes) & i64::MAX);
            let path = layout.lock(&id.file_name());
            let lock = match FileLock::exclusive(&path) {
                Ok(lock) => lock,
                Err(e) if crate::error::code_of(&e) == Code::Full => return Self::announce_spare(layout, e),
                Err(e) => return Err(Error::io("take the lock", &path, e)),
            };
            // A sweep may have removed the file between its making and its locking.
            if is_same_file(lock.file(), &path) {
                return Ok(Self { id, path, _lock: lock });
            }
        }
    }

    /// Announces an operation where there is no room for a file of its own.
    fn announce_spare(layout: &Layout, full: std::io::Error) -> Result<Self> {
        for id in (0..SPARE).map(OwnerId) {
            let path = layout.lock(&id.file_name());
            if path.exists()
                && let Ok(Some(lock)) = FileLock::try_exclusive(&path)
            {
                return Ok(Self { id, path, _lock: lock });
            }
        }
        Err(Error::io("take the lock", layout.locks(), full))
    }
}

impl Owner {
    /// How the names of this operation's temporary files begin: a sweep sees by it whether they are used.
    pub(crate) fn temporary_prefix(&self) -> String {
        format!("{:016x}-", self.id.0)
    }
}

impl Drop for Owner {
    /// Nobody waits on this lock, and its name never comes back, so the file can go.
    fn drop(&mut self) {
        if self.id.is_spare() {
            return;
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    match (file.metadata(), path.symlink_metadata()) {
        (Ok(a), Ok(b)) => a.ino() == b.ino() && a.dev() == b.dev(),
        _ => false,
    }
}

/// Whether the operation still lives.
pub(crate) fn lives(layout: &Layout, owner: OwnerId) -> Result<bool> {
    let path = layout.lock(&owner.file_name());
    is_held(&path).map_err(|e| Error::io("ask for the lock", path, e))
}

/// Removes the lock file of an operation that is dead and that the catalog does not know any more.
pub(crate) fn remove_lock(layout: &Layout, owner: OwnerId) {
    if owner.is_spare() {
        return;
    }
    let _ = std::fs::remove_file(layout.lock(&owner.file_name()));
}

/// Removes the lock files of operations that died, and gives their number.
pub(crate) fn remove_dead_owners(layout: &Layout, dry_run: bool) -> Result<Vec<String>> {
    let mut dead = Vec::new();
    for entry in crate::files::entries(&layout.locks())? {
        let Some(name) = entry.name.strip_prefix("owner-").filter(|hex| hex.len() == 16) else { continue };
        let path = layout.locks().join(&entry.name);
        if i64::from_str_radix(name, 16).is_err() || is_held(&path).unwrap_or(true) {
            continue;
        }
        // Locked while it is removed: whoever made it a moment ago and waits for the lock sees that it is gone.
        let Ok(Some(_lock)) = FileLock::try_exclusive(&path) else { continue };
        if !dry_run {
            let _ = std::fs::remove_file(&path);
        }
        dead.push(entry.name);
    }
    Ok(dead)
}

/// Takes the lock `store` alone: nobody else has the store open. A moment's patience, because a process that is just being started
/// has its parent's descriptors until it runs its own program.
pub(crate) fn whole_store(layout: &Layout, operation: &str) -> Result<FileLock> {
    let path = layout.lock("store");
    for _ in 0..40 {
        if let Some(lock) =
            FileLock::try_exclusive(&path).map_err(|e| Error::io("take the lock", &path, e))?
        {
            return Ok(lock);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(Error::new(Code::InUse, operation, "another process has it open")
        .object(layout.root().display())
        .with_hint("end that process first"))
}

/// How a lock on a layer's folder is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Along with others.
    Shared,
    /// Alone; waits a few seconds for others to finish.
    Alone,
}

/// A held lock on a layer's folder.
#[derive(Debug)]
pub(crate) struct LayerLock {
    _file: File,
}

/// How long an operation that must be alone waits for others.
const PATIENCE: Duration = Duration::from_secs(10);

impl LayerLock {
    /// Locks the folder; `None` when there is no such folder (any more).
    pub(crate) fn take(folder: &Path, hold: Hold) -> Result<Option<Self>> {
        use rustix::fs::{FlockOperation as Op, flock};
        let failed = |e: std::io::Error| Error::io("lock the layer", folder, e);
        let file = match File::open(folder) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(failed(e)),
        };
        match hold {
            Hold::Shared => {
                rustix::io::retry_on_intr(|| flock(&file, Op::LockShared)).map_err(|e| failed(e.into()))?;
            }
            Hold::Alone => {
                let until = Instant::now() + PATIENCE;
                loop {
                    match flock(&file, Op::NonBlockingLockExclusive) {
                        Ok(()) => break,
                        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => {}
                        Err(e) => return Err(failed(e.into())),
                    }
                    if Instant::now() > until {
                        return Err(Error::new(
                            Code::InUse,
                            "lock the layer",
                            "another operation works on the container",
                        )
                        .object(folder.display())
                        .with_hint("wait until it has finished"));
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
        Ok(is_same_file(&file, folder).then_some(Self { _file: file }))
    }
}
