//! The way down into a tree, at the cost of a few descriptors however deep it is.

use super::open_dir;
use rustix::fs::{Mode, OFlags};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

/// How many directories stay open at once.
const OPEN: usize = 64;

/// A directory on the way.
struct Rung {
    /// `None` once it had to be closed for those further down.
    dir: Option<OwnedFd>,
    device: u64,
    inode: u64,
}

/// The directories from a tree's root to where one is. The nearest are open; those further up are found again by `..`, and only
/// accepted if they are the directories that one came from: who moves directories meanwhile leads nobody out of the tree.
pub(crate) struct Ladder {
    rungs: Vec<Rung>,
}

impl Ladder {
    /// At the open directory `root`.
    pub(crate) fn new(root: BorrowedFd<'_>) -> io::Result<Self> {
        let mut ladder = Self { rungs: Vec::new() };
        ladder.down(open_dir(root, ".".as_ref())?)?;
        Ok(ladder)
    }

    /// Where one is.
    pub(crate) fn here(&self) -> io::Result<BorrowedFd<'_>> {
        let dir = self.rungs.last().and_then(|rung| rung.dir.as_ref());
        dir.map(|dir| dir.as_fd()).ok_or_else(|| io::Error::other("no directory is open"))
    }

    /// Goes into a directory that was just opened.
    pub(crate) fn down(&mut self, dir: OwnedFd) -> io::Result<()> {
        let (device, inode) = identity(&dir)?;
        self.rungs.push(Rung { dir: Some(dir), device, inode });
        if let Some(far) = self.rungs.len().checked_sub(OPEN + 1) {
            self.rungs[far].dir = None;
        }
        Ok(())
    }

    /// Goes back to the directory above. False at the root, where one stays.
    pub(crate) fn up(&mut self) -> io::Result<bool> {
        if self.rungs.len() < 2 {
            return Ok(false);
        }
        let left = self.rungs.pop().and_then(|rung| rung.dir);
        if let (Some(rung), Some(left)) = (self.rungs.last_mut(), left)
            && rung.dir.is_none()
        {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let above = rustix::fs::openat(&left, "..", flags, Mode::empty())?;
            if identity(&above)? != (rung.device, rung.inode) {
                return Err(io::Error::other("a directory was moved while it was being read"));
            }
            rung.dir = Some(above);
        }
        Ok(true)
    }
}

fn identity(dir: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(dir)?;
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    Ok((stat.st_dev as u64, stat.st_ino as u64))
}
