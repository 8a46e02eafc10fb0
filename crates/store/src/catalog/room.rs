//! The catalog on a full disk: what it needs to be read and to have something removed from it is there before.
//!
//! - The log (`-wal`) has its megabyte from the beginning, and is never made smaller, so that a removal has room to be written.
//! - On a file system that copies on write (btrfs), the file, the log and its index are written in place: overwriting what is there needs
//!   no new space, and memory that is mapped cannot turn out to have none (a SIGBUS in the middle of a read).
//! - SQLite makes the log's index anew whenever nobody else has the catalog open, which needs 32 KiB. Where those are not to be had, the
//!   catalog is opened with the index in memory, for this process alone ([`open_alone`]); another waits until it ends.

use crate::{Code, Error, Result};
use rusqlite::{Connection, OpenFlags};
use rustix::fs::{FallocateFlags, IFlags};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As much as the log has when it is written into the file.
const LOG_BYTES: u64 = 1 << 20;

/// SQLite's own way of having a catalog alone: an exclusive lock on the file, and no index on disk.
const ALONE: &str = "unix-excl";

/// Makes the files beside the catalog before SQLite does, where there are none.
pub(super) fn make_files(catalog: &Path) -> Result<()> {
    let log = make(&beside(catalog, "-wal"), "log")?;
    if let Some(log) = log {
        // Where it is not to be had now, removals rely on the reserve.
        let _ = rustix::fs::fallocate(&log, FallocateFlags::KEEP_SIZE, 0, LOG_BYTES);
    }
    make(&beside(catalog, "-shm"), "index").map(drop)
}

pub(super) fn beside(catalog: &Path, suffix: &str) -> PathBuf {
    let mut name = catalog.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes a file that is written in place; `None` if it is there. A full disk is left to SQLite, which may not need the file.
fn make(path: &Path, what: &str) -> Result<Option<File>> {
    match vellum_sys::file::create(rustix::fs::CWD, path, 0o600) {
        Ok(file) => {
            write_in_place(&file);
            Ok(Some(file))
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(None),
        Err(e) if crate::error::code_of(&e) == Code::Full => Ok(None),
        Err(e) => Err(Error::io(format!("make the catalog's {what}"), path, e)),
    }
}

/// Has an empty file written in place. Where there is no such flag there is no such trouble.
pub(crate) fn write_in_place(file: &File) {
    if let Ok(flags) = rustix::fs::ioctl_getflags(file) {
        let _ = rustix::fs::ioctl_setflags(file, flags | IFlags::NOCOW);
    }
}

/// Opens the catalog for this process alone, with the log's index in memory. Fails as in use when another process has it open.
pub(super) fn open_alone(path: &Path, flags: OpenFlags) -> Result<Connection> {
    let connection = Connection::open_with_flags_and_vfs(path, flags, ALONE)
        .map_err(|e| Error::from(e).object(path.display()))?;
    connection.busy_timeout(Duration::from_millis(200))?;
    Ok(connection)
}
