//! Sealed homes: their objects have fs-verity, and the kernel verifies all that is read of them.
//!
//! ```text
//!   HOME/
//!     .sealed      there: every object is sealed, and every mount asks for that; not there: none is
//!     objects/
//! ```
//!
//! # Decided once
//!
//! When the folder `objects` is made, with the lock of the objects held alone: unless the store is made without (`vellum init --no-verity`), a scratch object is sealed and read through an
//! image as a container would read it, and one that is not sealed must be refused. A home where that works is sealed: the mark is brought to the disk before `objects` is there. So there are no homes with both sorts of objects, and a home that is older than this stays as it is.
//! A sealed home on a kernel or a file system that cannot verify is refused, with what to do; it is never mounted without.
//!
//! # Sealing
//!
//! Each object is sealed when its content is whole and before it has a name ([`Objects`](crate::objects::Objects)), whether it came from a stream or by a clone. The kernel's digest
//! must be its name: memory that lost a bit between hashing and writing is found there. An unsealed object cannot come into being by a crash: journals keep the order in which an inode
//! was sealed and named, and a named one that was never brought to the disk is not trusted unless it is sealed *and* has the content that its name says.
//!
//! Hashing is done twice, by this program and by the kernel; and ext4 brings each file to the disk while it seals it, and waits. So threads of the intake seal, many at a time
//! ([`Sealer`](crate::sealer::Sealer)). What it costs, in the throwaway machine of `cargo xtask vm` (one emulated processor, so it is mostly the kernel's hashing and its work for each file):
//! a layer of 1,500 files of 8 kB took 2.5 to 3.4 times as long on ext4 and 1.5 to 2.5 times on btrfs, one of ten files of 4 MiB twice as long to three times.
//!
//! # Who finds what
//!
//! | what is wrong | who finds it |
//! |---|---|
//! | a block of an object | the kernel, at each read from the disk: `EIO`. `check`, and the load that repairs takes it for not sound |
//! | an object was exchanged, or lost its seal | overlayfs when it is opened: `EIO`. `check`, with its name |
//! | an image names another digest | overlayfs when the file is opened: `EIO`. `check`, which compares the image with what its layers give |
//! | an image's names and attributes | `check` only: images are not sealed, as nobody tells the kernel what they should be |
//! | blocks that a first write shared with a rotten object | nobody: a clone reads nothing. btrfs's own checksums do |

use crate::objects::OBJECTS;
use crate::probe::{self, Mounts};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::BorrowedFd;
use std::path::Path;
use vellum_sys::file::{ensure_folder, publish};
use vellum_sys::lock::FileLock;

/// The mark of a sealed home.
const MARK: &str = ".sealed";
/// What it says: how the digests are made.
const FORMAT: &str = "fs-verity sha256 4096\n";

/// Whether objects are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seal {
    Yes,
    No,
}

impl Seal {
    /// What overlayfs is told, if anything.
    pub(crate) fn option(self) -> Option<(&'static str, &'static str)> {
        (self == Self::Yes).then_some(("verity", "require"))
    }

    /// Whether a home's objects are sealed; decides it for a home that has none yet. `lock`: the file of the objects' lock.
    ///
    /// # Errors
    /// The file system's; a mark that this program does not know.
    pub(crate) fn of_home(home: BorrowedFd<'_>, path: &Path, lock: &Path, wanted: bool) -> io::Result<Self> {
        if has_objects(home)? {
            return marked(home);
        }
        let _alone = FileLock::exclusive(lock)?;
        let mut seal = marked(home)?;
        if !has_objects(home)? {
            if seal == Self::No && wanted && matches!(best(home, path)?, Ok((Self::Yes, ..))) {
                publish(home, MARK, FORMAT.as_bytes())?;
                seal = Self::Yes;
            }
            ensure_folder(home, OBJECTS, 0o700)?;
        }
        Ok(seal)
    }
}

fn has_objects(home: BorrowedFd<'_>) -> io::Result<bool> {
    match rustix::fs::statat(home, OBJECTS, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn marked(home: BorrowedFd<'_>) -> io::Result<Seal> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(home, MARK, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(Seal::No),
        Err(error) => return Err(error.into()),
    };
    let mut text = String::new();
    file.take(256).read_to_string(&mut text)?;
    if text == FORMAT {
        return Ok(Seal::Yes);
    }
    let reason =
        format!("its file {MARK} says '{}', which a newer program has written", text.trim().escape_debug());
    Err(io::Error::new(io::ErrorKind::Unsupported, reason))
}

/// What a new home gets here: whether it is sealed, how images are mounted, and why it is not sealed.
///
/// # Errors
/// As [`Mounts::of`].
pub(crate) fn best(home: BorrowedFd<'_>, path: &Path) -> io::Result<Result<(Seal, Mounts, String), String>> {
    let plain = match probe::probe(home, path, Seal::No)? {
        Ok(plain) => plain,
        Err(reason) => return Ok(Err(reason)),
    };
    Ok(Ok(match probe::probe(home, path, Seal::Yes)? {
        Ok(sealed) => (Seal::Yes, sealed, String::new()),
        Err(reason) => (Seal::No, plain, reason),
    }))
}
