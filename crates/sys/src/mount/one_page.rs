//! Overlays on kernels that do not take their layers one by one.
//!
//! Before Linux 6.7 overlayfs has no `lowerdir+`: all lower layers are one text, and fsconfig(2) takes no text beyond 255 bytes.
//! What takes more is mount(2): a page for all options together. For a chain to fit in it whatever the folders are called, a layer is named
//! `/proc/self/fd/N/NAME`, N being the open folder it lies in; so no process has to change its directory, which engines
//! with short relative names do.
//!
//! mount(2) mounts somewhere. [`OnePage::mount`] is given a place that nobody else uses, mounts there, takes a clone of the mount that has no
//! place, and unmounts: the caller holds what [`FsContext::mount`] would have given. Whoever is killed between leaves a mount at that place.

use super::{DetachedMount, FsContext, MountError, Result, unmount};
use crate::ioctl::path_text;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags};
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What mount(2) takes as options: a page of the smallest size, less the byte that ends it.
const PAGE: usize = 4095;

/// The most layers that fit whatever the layers' ids and the folders' numbers are: a layer takes at most `/proc/self/fd/99999/zzzzzz:`, 27
/// bytes, and 600 are left for upper, work, options and a label.
pub const MOST_LOWERS_IN_ONE_PAGE: u64 = 129;
const _: () = assert!(MOST_LOWERS_IN_ONE_PAGE as usize * 27 + 600 <= PAGE);

/// What was found out about this kernel, once for the process.
static ONE_BY_ONE: AtomicBool = AtomicBool::new(true);

/// Whether overlayfs takes its lower layers one by one, as far as this process has found out. True until [`takes_layers_one_by_one`] found
/// otherwise.
pub fn may_take_layers_one_by_one() -> bool {
    ONE_BY_ONE.load(Ordering::Relaxed)
}

/// Finds out whether overlayfs takes its lower layers one by one, with the folder `lower` as one. Three system calls; nothing is mounted. To be
/// asked when an overlay was refused: nearly all kernels take them.
///
/// # Errors
/// There is no overlayfs, or the process may not mount.
pub fn takes_layers_one_by_one(lower: &Path) -> Result<bool> {
    let context = FsContext::open("overlay")?;
    // Up to Linux 6.4 overlayfs is told its options as one text at the end: before, every word is as good as any other.
    let tells_words = context.flag("vellum-no-such-option").is_err();
    let known = tells_words
        && match context.path("lowerdir+", lower) {
            Ok(()) => true,
            // 6.5 and 6.6 know their words, and not this one. Any other refusal is about the folder.
            Err(error) => !error.log.iter().any(|line| line.contains("Unknown parameter")),
        };
    ONE_BY_ONE.store(known, Ordering::Relaxed);
    Ok(known)
}

/// The options of an overlay, as one text. See the module's documentation.
#[derive(Debug, Default)]
pub struct OnePage {
    lowers: Vec<u8>,
    count: usize,
    options: Vec<u8>,
    folders: Vec<(PathBuf, OwnedFd)>,
}

impl OnePage {
    /// Without layers and options.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more lower layer, below those there are.
    ///
    /// # Errors
    /// The folder it lies in cannot be opened.
    pub fn lower(&mut self, path: &Path) -> Result<()> {
        let name = self.short(path)?;
        self.add_lower(&name);
        Ok(())
    }

    /// The same, of a folder or mount that is open; it stays so until the mount is made.
    pub fn lower_fd(&mut self, fd: BorrowedFd<'_>) {
        self.add_lower(path_text(fd).as_bytes());
    }

    /// One more data-only layer, below all those there are (Linux 6.5).
    ///
    /// # Errors
    /// The folder it lies in cannot be opened.
    pub fn data(&mut self, path: &Path) -> Result<()> {
        let name = self.short(path)?;
        self.lowers.push(b':');
        self.add_lower(&name);
        Ok(())
    }

    fn add_lower(&mut self, name: &[u8]) {
        if !self.lowers.is_empty() {
            self.lowers.push(b':');
        }
        self.lowers.extend_from_slice(name);
        self.count += 1;
    }

    /// An option that is a word.
    pub fn flag(&mut self, key: &str) {
        self.option(key.as_bytes(), None);
    }

    /// An option with a text. One with commas is put in quotes, which is what labels need.
    pub fn string(&mut self, key: &str, value: impl AsRef<OsStr>) {
        let value = value.as_ref().as_bytes();
        if value.contains(&b',') {
            self.option(key.as_bytes(), Some(&[b"\"", value, b"\""].concat()));
        } else {
            self.option(key.as_bytes(), Some(value));
        }
    }

    /// An option with a path.
    ///
    /// # Errors
    /// The folder it lies in cannot be opened.
    pub fn path(&mut self, key: &str, path: &Path) -> Result<()> {
        let name = self.short(path)?;
        self.option(key.as_bytes(), Some(&name));
        Ok(())
    }

    fn option(&mut self, key: &[u8], value: Option<&[u8]>) {
        self.options.push(b',');
        self.options.extend_from_slice(key);
        if let Some(value) = value {
            self.options.push(b'=');
            self.options.extend_from_slice(value);
        }
    }

    /// A name for the path that is short and of harmless characters, as long as this lives.
    fn short(&mut self, path: &Path) -> Result<Vec<u8>> {
        let harmless = |name: &OsStr| !name.as_bytes().iter().any(|byte| b"\\:,\"\n".contains(byte));
        let (folder, name) = match (path.parent(), path.file_name()) {
            (Some(folder), Some(name)) if harmless(name) => (folder, Some(name)),
            _ => (path, None),
        };
        let known = self.folders.iter().position(|(known, _)| known == folder);
        let at = match known {
            Some(at) => at,
            None => {
                let fd = rustix::fs::open(folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(
                    |error| MountError::new(format!("open {} for an overlay", folder.display()), error),
                )?;
                self.folders.push((folder.to_owned(), fd));
                self.folders.len() - 1
            }
        };
        let mut short = path_text(self.folders[at].1.as_fd()).into_bytes();
        if let Some(name) = name {
            short.push(b'/');
            short.extend_from_slice(name.as_bytes());
        }
        Ok(short)
    }

    /// Makes the overlay, and a mount of it that has no place: at `place`, a folder that nobody else uses, it is only meanwhile.
    ///
    /// # Errors
    /// The options do not fit, or do not work. On these kernels it is the kernel's log that has overlayfs's own words.
    pub fn mount(self, place: &Path, read_only: bool, attributes: MountAttrFlags) -> Result<DetachedMount> {
        let operation = || format!("mount an overlay of {} lower layers at {}", self.count, place.display());
        let data = [b"lowerdir=", &self.lowers[..], &self.options].concat();
        if data.len() > PAGE {
            let words = format!("its options take {} bytes, and this kernel takes {PAGE}", data.len());
            return Err(MountError {
                log: vec![words],
                ..MountError::new(operation(), rustix::io::Errno::TOOBIG)
            });
        }
        let data = CString::new(data).map_err(|error| MountError::new(operation(), error))?;
        let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
        rustix::mount::mount("overlay", place, "overlay", flags, data.as_c_str())
            .map_err(|error| MountError::new(operation(), error))?;
        let _placed = Placed(place);
        // The clone is to be what a new mount is: of no group of mounts that see each other's.
        rustix::mount::mount_change(place, MountPropagationFlags::PRIVATE)
            .map_err(|error| MountError::new(operation(), error))?;
        let detached = DetachedMount::of_tree(place)?;
        if !attributes.is_empty() {
            detached.set_attributes(attributes)?;
        }
        Ok(detached)
    }
}

/// A mount that is to have its place no longer than this lives.
struct Placed<'a>(&'a Path);

impl Drop for Placed<'_> {
    fn drop(&mut self) {
        let _ = unmount(self.0, true);
    }
}
