//! A folder in which something is tried out.
//!
//! ```text
//!   FOLDER/.probe-overlay-<16 hex>/    locked (flock) by who is at it, and removed by him
//!     place-<n>                        where a mount is for a moment, on kernels that want a place for it
//! ```
//!
//! # What a kill leaves
//!
//! The folder, and what is mounted at its places. Nothing of it holds the lock, by which the next [`Scratch`] beside it knows it, undoes the mounts and removes the folder. A new folder
//! that was not yet locked looks the same: who made it finds it gone, or locked, and makes another.

use rustix::fs::{AtFlags, Mode};
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use vellum_archive::tree;
use vellum_sys::file::open_folder;
use vellum_sys::lock::FileLock;
use vellum_sys::mount::{DetachedMount, MountError, unmount};

const PREFIX: &str = ".probe-overlay-";
const PLACE: &str = "place-";

/// A folder of its own for trying something out, removed at the end. See the module's documentation.
#[derive(Debug)]
pub struct Scratch<'a> {
    parent: BorrowedFd<'a>,
    name: String,
    path: PathBuf,
    dir: FileLock,
    places: Cell<u32>,
}

impl<'a> Scratch<'a> {
    /// Makes one in the open folder `parent`, which is at `path`; takes away what killed processes left there. Reads the whole folder.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(parent: BorrowedFd<'a>, path: &Path) -> io::Result<Self> {
        remove_leftovers(parent, path)?;
        loop {
            let name = format!("{PREFIX}{}", vellum_sys::random::hex::<8>()?);
            rustix::fs::mkdirat(parent, &name, Mode::RWXU)?;
            if let Some(dir) = lock(parent, &name)? {
                return Ok(Self { parent, path: path.join(&name), name, dir, places: Cell::new(0) });
            }
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new empty folder to mount on; what is mounted there is undone with the result, at once, whoever uses it.
    ///
    /// # Errors
    /// The file system's.
    pub fn place(&self) -> io::Result<Placed> {
        let number = self.places.replace(self.places.get() + 1);
        let name = format!("{PLACE}{number}");
        rustix::fs::mkdirat(self, &name, Mode::RWXU)?;
        Ok(Placed { path: self.path.join(name) })
    }
}

impl AsFd for Scratch<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        let _ = tree::remove(self.parent, OsStr::new(&self.name));
    }
}

/// A place that a mount has for a moment: an overlay that was made meanwhile has its own hold on it.
#[derive(Debug)]
pub struct Placed {
    path: PathBuf,
}

impl Placed {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Mounts there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn attach(&self, mount: DetachedMount) -> Result<(), MountError> {
        mount.attach(&self.path)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        let _ = unmount(&self.path, true);
    }
}

/// The lock of the folder, unless somebody has it or it is gone.
fn lock(parent: BorrowedFd<'_>, name: &str) -> io::Result<Option<FileLock>> {
    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let dir = match open_folder(parent, name) {
        Ok(dir) => File::from(dir),
        Err(error) if gone(&error) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some(locked) = FileLock::try_exclusive_on(dir)? else { return Ok(None) };
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map_err(io::Error::from) {
        Ok(there) if there.st_ino == rustix::fs::fstat(&locked)?.st_ino => Ok(Some(locked)),
        Ok(_) => Ok(None),
        Err(error) if gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn remove_leftovers(parent: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    for name in tree::read_dir(parent)? {
        let Some(text) = name.to_str().filter(|name| name.starts_with(PREFIX)) else { continue };
        let Some(dir) = lock(parent, text)? else { continue };
        for place in tree::read_dir(dir.as_fd())? {
            if place.to_str().is_some_and(|place| place.starts_with(PLACE)) {
                // Most have nothing mounted on them, which is said by an error.
                let _ = unmount(&path.join(&name).join(place), true);
            }
        }
        // What cannot go, the next may remove; it is in nobody's way.
        let _ = tree::remove(parent, &name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::CWD;
    use rustix::mount::MountAttrFlags;
    use vellum_sys::mount::FsContext;
    use vellum_sys::mountinfo;

    /// Undoes what a test that failed left mounted.
    struct Mounted(tempfile::TempDir);

    impl Drop for Mounted {
        fn drop(&mut self) {
            for facts in
                self.0.path().canonicalize().and_then(|root| mountinfo::below(&root)).unwrap_or_default()
            {
                let _ = unmount(&facts.point, true);
            }
        }
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "the test runner counts these lines")]
    fn root_what_a_killed_probe_left_goes_and_what_one_is_at_stays() {
        if !rustix::process::geteuid().is_root() {
            return println!("SKIP root_what_a_killed_probe_left_goes_and_what_one_is_at_stays: needs root");
        }
        let dir = Mounted(tempfile::tempdir().unwrap());
        let dir = &dir.0;
        let home = tree::open_dir(CWD, dir.path().as_os_str()).unwrap();
        let mounted = |scratch: &Scratch<'_>| {
            let place = scratch.place().unwrap();
            let mount = FsContext::open("tmpfs").unwrap().mount(MountAttrFlags::empty()).unwrap();
            place.attach(mount).unwrap();
            std::fs::write(place.path().join("in it"), "x").unwrap();
            place
        };
        let killed = Scratch::new(home.as_fd(), dir.path()).unwrap();
        let lives = Scratch::new(home.as_fd(), dir.path()).unwrap();
        let places = [mounted(&killed), mounted(&killed), mounted(&lives)];
        let [left, _, kept] = places.each_ref().map(|place| place.path().to_owned());
        let [a, b, placed] = places;
        std::mem::forget((a, b));
        // The lock goes with the process that had it; nothing else does.
        let Scratch { dir: lock, .. } = &killed;
        rustix::fs::flock(lock, rustix::fs::FlockOperation::Unlock).unwrap();
        std::mem::forget(killed);
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(mountinfo::below(&root).unwrap().len(), 3);

        drop(Scratch::new(home.as_fd(), dir.path()).unwrap());
        let points: Vec<_> = mountinfo::below(&root).unwrap().into_iter().map(|facts| facts.point).collect();
        assert_eq!(points, [kept.canonicalize().unwrap()]);
        assert!(!left.parent().unwrap().exists() && kept.join("in it").exists());
        drop(placed);
        drop(lives);
        assert!(tree::read_dir(home.as_fd()).unwrap().is_empty());
        assert_eq!(mountinfo::below(&root).unwrap(), []);
    }
}
