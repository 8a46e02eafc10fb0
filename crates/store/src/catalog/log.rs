//! The log's way to the disk: one sync for all who wait.
//!
//! A durable commit is two things: SQLite writes it to the log (`-wal`), unsynced, while its process holds the lock of writers; and, when that is let
//! go, the process brings the log to the disk before anybody is told that something was done. So the lock is held for
//! microseconds, and commits that were written while a sync was under way share the next one.
//!
//! 1. The writer takes a number for its commit while it still holds the lock.
//! 2. It waits until the log is synced up to that number. Where nobody syncs, it does so itself, for all numbers that were given by then.
//!
//! **Other processes** sync for themselves. A sync of the file covers what anybody wrote to it before, and all commits lie in it one after the
//! other: a commit that was made after having seen another is never on the disk without it.
//!
//! **The file is moved on without us** when the log is written into the database and begun anew: SQLite syncs the log before, and the database after
//! that, so what was in the log is on the disk by then, and syncing the new log waits for nothing that matters.
//!
//! # Seen, but not on the disk yet
//! Others see a commit from the moment in which it is written, and a power cut may still take it back. Whoever *changes the catalog* after seeing it
//! commits behind it in the same log, so both stay or both go. Whoever *deletes a file* because of what it read would be ahead of the catalog: it
//! reads by [`Catalog::read_settled`], or makes a durable change first. What is only told (`ls`, `Stat`) may be of a change that nobody
//! was told to be done yet; it is true unless the power goes within that millisecond.
//!
//! # A sync that fails
//! The kernel tells of it once and takes the pages for clean, so a second try would succeed and mean nothing. Those who wait hear the error: their
//! change is in the catalog, and nobody was told that it is done. Before the next commit the log's own bytes, which are those of the page cache, are written once more
//! and synced; while that fails, nothing is changed any more.

use crate::{Error, Result};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The log of one catalog, as this process syncs it.
#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    /// Open before the first commit is written: an error of the write-back is told to descriptors that were there.
    file: Mutex<Option<Arc<File>>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the last commit that was written.
    written: u64,
    /// Commits up to this number are on the disk.
    synced: u64,
    syncing: bool,
    /// A sync failed, with this error, and what it was for was not written again since.
    failed: Option<i32>,
}

impl Log {
    pub(super) fn new(catalog: &std::path::Path) -> Self {
        Self {
            path: super::room::beside(catalog, "-wal"),
            file: Mutex::default(),
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can fail is done under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The log's file; another one than before when SQLite made it anew, after everything in the old one had been written into the database.
    fn file(&self) -> io::Result<Arc<File>> {
        let mut held = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*held
            && rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink > 0)
        {
            return Ok(Arc::clone(file));
        }
        let file = Arc::new(File::options().read(true).write(true).open(&self.path)?);
        *held = Some(Arc::clone(&file));
        Ok(file)
    }

    /// To be called with the lock of writers, before a commit: makes good for a sync that failed.
    pub(super) fn ready(&self) -> Result<()> {
        let failed = self.state().failed;
        if let Some(error) = failed {
            self.write_again().map_err(|e| {
                Error::io("bring the catalog's log to the disk once more", &self.path, e).with_hint(format!(
                    "a sync of it failed before ({}), so nothing is changed until the disk takes it: see what the kernel's log says of the disk",
                    io::Error::from_raw_os_error(error)
                ))
            })?;
            let mut state = self.state();
            state.failed = None;
            state.synced = state.written;
        }
        // Where there is none yet, SQLite makes it with the commit.
        let _ = self.file();
        Ok(())
    }

    fn write_again(&self) -> io::Result<()> {
        let file = self.file()?;
        let mut buffer = vec![0; 1 << 16];
        let mut at = 0;
        loop {
            let got = file.read_at(&mut buffer, at)?;
            if got == 0 {
                break;
            }
            file.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
        vellum_sys::fault::point("store.log.again")?;
        file.sync_data()
    }

    /// To be called with the lock of writers, after a commit: its number.
    pub(super) fn written(&self) -> u64 {
        let mut state = self.state();
        state.written += 1;
        state.written
    }

    /// All commits up to this number have been written into the database, and that is on the disk.
    pub(super) fn settled(&self, number: u64) {
        let mut state = self.state();
        state.synced = state.synced.max(number);
    }

    /// Brings all that anybody has committed so far to the disk.
    pub(super) fn settle(&self) -> Result<()> {
        let number = self.written();
        self.reach(number)
    }

    /// Returns when the commit of this number is on the disk.
    pub(super) fn reach(&self, number: u64) -> Result<()> {
        let failed = |e| {
            Error::io("bring the change to the disk, in the catalog's log", &self.path, e)
                .with_hint("the change may be there or not after a power cut: look, and do it again")
        };
        let mut state = self.state();
        loop {
            if state.synced >= number {
                return Ok(());
            }
            if let Some(error) = state.failed {
                return Err(failed(io::Error::from_raw_os_error(error)));
            }
            if !state.syncing {
                break;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.syncing = true;
        let all = state.written;
        drop(state);
        let result = self.to_disk();
        let mut state = self.state();
        state.syncing = false;
        match &result {
            Ok(()) => state.synced = state.synced.max(all),
            Err(e) => state.failed = Some(e.raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())),
        }
        drop(state);
        self.changed.notify_all();
        result.map_err(failed)
    }

    fn to_disk(&self) -> io::Result<()> {
        vellum_sys::fault::point("store.log.sync")?;
        self.file()?.sync_data()?;
        vellum_sys::fault::point("store.log.synced")
    }
}
