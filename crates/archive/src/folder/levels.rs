//! The open directories on the way to where entries are being made.

use crate::attributes::At;
use crate::target::{Time, Usage};
use crate::tree::{allocated, mtime, timestamps};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// How many stay open at once. Deeper trees work, and reopen.
const OPEN: usize = 64;

struct Level {
    /// Where its path ends in the current path.
    end: usize,
    /// `None` once it had to be closed for others.
    fd: Option<OwnedFd>,
    /// Set once something in it changes: the time to give back when it is left.
    time: Option<Time>,
    /// What is made in it inherits an ACL that it must not have.
    default_acl: bool,
}

/// A path of open directories, root first. Entries of an archive come folder by folder, so that the next one's
/// directory is nearly always open already; and a directory's time is set when it is left, which needs no list.
pub(super) struct Levels {
    path: Vec<u8>,
    levels: Vec<Level>,
    /// Levels from 1 up to this one are closed.
    closed: usize,
    pub(super) usage: Usage,
}

impl Levels {
    pub(super) fn new(root: OwnedFd) -> Self {
        let root = Level { end: 0, fd: Some(root), time: None, default_acl: false };
        Self { path: Vec::new(), levels: vec![root], closed: 1, usage: Usage::default() }
    }

    /// The open directory.
    pub(super) fn top(&self) -> io::Result<BorrowedFd<'_>> {
        self.levels
            .last()
            .and_then(|level| level.fd.as_ref())
            .map(|fd| fd.as_fd())
            .ok_or_else(|| io::Error::other("no directory is open"))
    }

    pub(super) fn root(&self) -> io::Result<BorrowedFd<'_>> {
        self.levels
            .first()
            .and_then(|level| level.fd.as_ref())
            .map(|fd| fd.as_fd())
            .ok_or_else(|| io::Error::other("no directory is open"))
    }

    /// The length of the open directory's path.
    pub(super) fn end(&self) -> usize {
        self.levels.last().map_or(0, |level| level.end)
    }

    /// Leaves what does not lie on the way to `dir`.
    pub(super) fn leave_for(&mut self, dir: &[u8]) -> io::Result<()> {
        let same = self.path.iter().zip(dir).take_while(|(a, b)| a == b).count();
        let on_the_way =
            |level: &Level| level.end <= same && (dir.len() == level.end || dir[level.end] == b'/');
        let keep = 1 + self.levels[1..].iter().take_while(|level| on_the_way(level)).count();
        self.leave_to(keep)?;
        if self.levels.len() > 1 && self.levels.last().is_some_and(|level| level.fd.is_none()) {
            self.leave_to(1)?;
        }
        Ok(())
    }

    fn leave_to(&mut self, keep: usize) -> io::Result<()> {
        while self.levels.len() > keep {
            if let Some(mut level) = self.levels.pop() {
                settle(&mut level, &mut self.usage)?;
            }
        }
        self.closed = self.closed.min(self.levels.len().max(1));
        self.path.truncate(self.end());
        Ok(())
    }

    /// Goes one down, into the directory `name` that was just opened.
    pub(super) fn enter(&mut self, name: &[u8], fd: OwnedFd) -> io::Result<()> {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name);
        self.levels.push(Level { end: self.path.len(), fd: Some(fd), time: None, default_acl: false });
        if self.levels.len() - self.closed > OPEN {
            let level = &mut self.levels[self.closed];
            settle(level, &mut self.usage)?;
            level.fd = None;
            self.closed += 1;
        }
        Ok(())
    }

    /// Says that the open directory is about to change. True if what is made in it inherits an ACL.
    pub(super) fn touch(&mut self) -> io::Result<bool> {
        let Some(Level { fd: Some(fd), time, default_acl, .. }) = self.levels.last_mut() else {
            return Err(io::Error::other("no directory is open"));
        };
        if time.is_none() {
            let stat = rustix::fs::fstat(&*fd)?;
            self.usage.bytes = self.usage.bytes.saturating_sub(allocated(&stat));
            *time = Some(mtime(&stat));
            *default_acl = At::Open(fd.as_fd()).get(b"system.posix_acl_default")?.is_some();
        }
        Ok(*default_acl)
    }

    /// The open directory is new: nothing of it has been counted.
    pub(super) fn fresh(&mut self, at: Time, acl: bool) {
        self.usage.inodes += 1;
        self.set_time(at, acl);
    }

    /// The time that the open directory shall have when it is left.
    pub(super) fn set_time(&mut self, at: Time, acl: bool) {
        if let Some(level) = self.levels.last_mut() {
            level.time = Some(at);
            level.default_acl = acl;
        }
    }

    /// Leaves everything but the root, and settles that.
    pub(super) fn leave_all(&mut self) -> io::Result<()> {
        self.leave_to(1)?;
        settle(&mut self.levels[0], &mut self.usage)
    }
}

fn settle(level: &mut Level, usage: &mut Usage) -> io::Result<()> {
    if let (Some(fd), Some(time)) = (&level.fd, level.time.take()) {
        rustix::fs::futimens(fd, &timestamps(time))?;
        usage.bytes += allocated(&rustix::fs::fstat(fd)?);
    }
    Ok(())
}
