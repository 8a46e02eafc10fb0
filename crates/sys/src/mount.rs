//! Mounts by the mount calls of Linux 5.2 and later, in which a mount is a descriptor first and gets a place only at the end.
//!
//! ```text
//!   FsContext::open("overlay") ── string, flag, path, fd … ── mount() ──▶ DetachedMount ── attach(path) ──▶ in the mount table
//!   DetachedMount::of_tree(path)  (a bind mount) ─────────────────────────────┘   └─ dropped: gone, nothing to clean up
//! ```
//!
//! When the kernel refuses something, the context's own log says why ("overlay: too many lower directories, limit is 500");
//! those lines are part of [`MountError`].

mod one_page;

pub use one_page::{MOST_LOWERS_IN_ONE_PAGE, OnePage, may_take_layers_one_by_one, takes_layers_one_by_one};

use crate::ioctl::path_text;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The result of a mount call.
pub type Result<T> = std::result::Result<T, MountError>;

/// A mount call that failed, with what the file system itself said about it.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct MountError {
    /// The call and its main argument: `fsconfig lowerdir+=/a/b`.
    pub operation: String,
    /// The lines of the context's log, without the letter of their severity.
    pub log: Vec<String>,
    /// The error number.
    #[source]
    pub source: io::Error,
}

impl MountError {
    /// One without words of the file system's.
    pub fn new(operation: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { operation: operation.into(), log: Vec::new(), source: source.into() }
    }

    fn describe(&self) -> String {
        if self.log.is_empty() {
            self.operation.clone()
        } else {
            format!("{}: {}", self.operation, self.log.join("; "))
        }
    }
}

/// What fsconfig takes as one text, without the byte that ends it.
const LONGEST_STRING: usize = 255;

/// A file system being configured.
#[derive(Debug)]
pub struct FsContext {
    fd: OwnedFd,
    fs_type: String,
}

impl FsContext {
    /// Begins to configure a file system of this type.
    ///
    /// # Errors
    /// The kernel does not have it, or the process may not mount.
    pub fn open(fs_type: &str) -> Result<Self> {
        let fd = rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|error| MountError::new(format!("fsopen {fs_type}"), error))?;
        Ok(Self { fd, fs_type: fs_type.to_owned() })
    }

    /// An option that is a word.
    ///
    /// # Errors
    /// The file system does not know it.
    pub fn flag(&self, key: &str) -> Result<()> {
        rustix::mount::fsconfig_set_flag(&self.fd, key)
            .map_err(|error| self.error(format!("fsconfig {key}"), error))
    }

    /// An option with a text.
    ///
    /// # Errors
    /// The file system does not know the option, or not this value; longer than 255 bytes.
    pub fn string(&self, key: &str, value: impl AsRef<OsStr>) -> Result<()> {
        let value = value.as_ref();
        rustix::mount::fsconfig_set_string(&self.fd, key, value)
            .map_err(|error| self.error(format!("fsconfig {key}={}", value.display()), error))
    }

    /// An option with a path, of any length and with any characters.
    ///
    /// Given as text where that is the same thing. File systems take their paths apart at commas and
    /// colons and let backslashes escape, each kernel a little differently, and no text may be longer than 255 bytes; such paths
    /// are opened and given as a descriptor (since Linux 6.13), or as the descriptor's name in /proc.
    ///
    /// # Errors
    /// The path does not exist, or the file system refuses it.
    pub fn path(&self, key: &str, path: &Path) -> Result<()> {
        let bytes = path.as_os_str().as_bytes();
        let plain = bytes.len() <= LONGEST_STRING && !bytes.iter().any(|byte| b"\\:,".contains(byte));
        if plain {
            return self.string(key, path);
        }
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| MountError::new(format!("open {} for {key}", path.display()), error))?;
        self.fd(key, &fd)
    }

    /// An option with an open file or folder.
    ///
    /// # Errors
    /// The file system refuses it.
    pub fn fd(&self, key: &str, value: impl AsFd) -> Result<()> {
        let value = value.as_fd();
        if rustix::mount::fsconfig_set_fd(&self.fd, key, value).is_ok() {
            return Ok(());
        }
        // Before Linux 6.13 overlayfs takes no descriptors: it is told where to find this one. What it logged
        // about the attempt is not of interest.
        let _ = self.drain_log();
        self.string(key, path_text(value))
    }

    /// Makes the file system, and a mount of it that has no place yet.
    ///
    /// # Errors
    /// The configuration does not work; the error holds the file system's own words.
    pub fn mount(self, attributes: MountAttrFlags) -> Result<DetachedMount> {
        rustix::mount::fsconfig_create(&self.fd)
            .map_err(|error| self.error(format!("create {}", self.fs_type), error))?;
        let fd = rustix::mount::fsmount(&self.fd, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
            .map_err(|error| self.error(format!("fsmount {}", self.fs_type), error))?;
        Ok(DetachedMount { fd })
    }

    fn error(&self, operation: String, source: rustix::io::Errno) -> MountError {
        MountError { operation, log: self.drain_log(), source: source.into() }
    }

    /// Takes the lines out of the context's log. Each read gives one; the first letter is its severity.
    fn drain_log(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0u8; 1024];
        while let Ok(length @ 1..) = rustix::io::read(&self.fd, &mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]);
            let text = text.trim_end();
            let text = text.strip_prefix("e ").or_else(|| text.strip_prefix("w ")).unwrap_or(text);
            lines.push(text.to_owned());
        }
        lines
    }
}

/// A mount that is in no mount table: it can be read through its descriptor, given a place, or dropped, which undoes it.
#[derive(Debug)]
pub struct DetachedMount {
    fd: OwnedFd,
}

impl DetachedMount {
    /// A bind mount of what lies at `path` (a link at its end is not followed), without mounts below it.
    ///
    /// # Errors
    /// There is no such path, or the process may not mount.
    pub fn of_tree(path: &Path) -> Result<Self> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        let fd = rustix::mount::open_tree(CWD, path, flags)
            .map_err(|error| MountError::new(format!("open_tree {}", path.display()), error))?;
        Ok(Self { fd })
    }

    /// Its id, which it keeps when it gets its place.
    ///
    /// # Errors
    /// A kernel before 5.8.
    pub fn id(&self) -> io::Result<MountId> {
        MountId::of_fd(&self.fd)
    }

    /// Sets attributes on this mount.
    ///
    /// # Errors
    /// A kernel before 5.12; an attribute that is locked in a user namespace.
    pub fn set_attributes(&self, set: MountAttrFlags) -> Result<()> {
        set_attributes(self, set, false, None)
    }

    /// Shows the files with owners as the user namespace `namespace` maps them. Only before the mount has a place.
    ///
    /// # Errors
    /// The file system cannot do it, or the namespace is not the process's to use.
    pub fn set_idmap(&self, namespace: BorrowedFd<'_>) -> Result<()> {
        set_attributes(self, MountAttrFlags::MOUNT_ATTR_IDMAP, false, Some(namespace))
    }

    /// Gives the mount its place at `target`; a link at the end of it is not followed. From now on it lives until it is unmounted.
    ///
    /// # Errors
    /// `target` is not there, or not of the same kind (folder, file) as the mount's root.
    pub fn attach(self, target: &Path) -> Result<()> {
        rustix::mount::move_mount(&self.fd, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| MountError::new(format!("move_mount to {}", target.display()), error))
    }

    /// Its root opened for reading, as `openat(…, ".")` sees it.
    ///
    /// # Errors
    /// The root is not a folder.
    pub fn open_root(&self) -> io::Result<OwnedFd> {
        crate::file::open_folder(&self.fd, ".")
    }
}

impl AsFd for DetachedMount {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `struct mount_attr` of the kernel.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

const _: () = assert!(size_of::<MountAttr>() == 32);
const _: () = assert!(std::mem::offset_of!(MountAttr, userns_fd) == 24);

/// Sets attributes on the mount that `mount` is the root of, on request on all mounts below it too.
///
/// # Errors
/// A kernel before 5.12; an attribute that is locked in a user namespace.
pub fn set_attributes(
    mount: impl AsFd,
    set: MountAttrFlags,
    recursive: bool,
    idmap: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let attr = MountAttr {
        set: u64::from(set.bits()),
        clear: 0,
        propagation: 0,
        userns_fd: idmap.map_or(0, |fd| u64::from(fd.as_raw_fd().unsigned_abs())),
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a string that ends in 0, `attr` is laid out as the kernel's structure of the length given and lives through
    // the call, which only reads it; both descriptors are borrowed and open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(MountError::new(format!("mount_setattr {set:?}"), io::Error::last_os_error()))
    }
}

/// The kernel's name for a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MountId {
    /// The number.
    pub id: u64,
    /// The number is never used again in this boot (Linux 6.8). Otherwise it may name another mount once this one is gone.
    pub unique: bool,
}

const STATX_MNT_ID: u32 = 0x1000;
const STATX_MNT_ID_UNIQUE: u32 = 0x4000;

impl MountId {
    /// The mount that an open file or folder lies in.
    ///
    /// # Errors
    /// A kernel before 5.8.
    pub fn of_fd(fd: impl AsFd) -> io::Result<Self> {
        Self::statx(fd.as_fd(), Path::new(""), AtFlags::EMPTY_PATH)
    }

    /// The mount on top at `path`; a link at its end is not followed, nor is an automount set off.
    ///
    /// # Errors
    /// There is no such path; a kernel before 5.8.
    pub fn at(path: &Path) -> io::Result<Self> {
        Self::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT)
    }

    fn statx(dir: BorrowedFd<'_>, path: &Path, flags: AtFlags) -> io::Result<Self> {
        // What the file system knows about the file is not asked: a server behind it may be gone.
        let flags = flags | AtFlags::STATX_DONT_SYNC;
        let mask = StatxFlags::from_bits_retain(STATX_MNT_ID_UNIQUE);
        let mut stat = rustix::fs::statx(dir, path, flags, mask)?;
        if stat.stx_mask & STATX_MNT_ID_UNIQUE == 0 {
            stat = rustix::fs::statx(dir, path, flags, StatxFlags::MNT_ID)?;
        }
        match stat.stx_mask {
            mask if mask & STATX_MNT_ID_UNIQUE != 0 => Ok(Self { id: stat.stx_mnt_id, unique: true }),
            mask if mask & STATX_MNT_ID != 0 => Ok(Self { id: stat.stx_mnt_id, unique: false }),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// Takes the mount on top at `target` away; a link at its end is not followed.
///
/// With `lazy` it leaves the mount table at once and ends when its last user lets go; otherwise a user is an error (`EBUSY`).
///
/// # Errors
/// Nothing is mounted there (`EINVAL`), or it is in use.
pub fn unmount(target: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { UnmountFlags::NOFOLLOW | UnmountFlags::DETACH } else { UnmountFlags::NOFOLLOW };
    Ok(rustix::mount::unmount(target, flags)?)
}
