//! What a file system is and what it can do, found out by trying.
//!
//! A probe works in a scratch folder that the caller gives and removes what it made, also when it fails. A file system that refuses is an
//! answer ([`Probed::Refused`]); an error is that it could not be tried (a full disk, a folder that is not writable).

use crate::file::TEMPORARY_PREFIX;
use crate::{file, random};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags, StatVfsMountFlags, XattrFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// A file system, and how full it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileSystem {
    /// Its name as `docker info` writes it: `extfs`, `xfs`, `btrfs`, `tmpfs`, `overlayfs`…; `unknown` if it has none here.
    pub name: &'static str,
    /// Its magic number.
    pub magic: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that this user may still write.
    pub free_bytes: u64,
    /// Files in all; `None` where they are not counted (btrfs).
    pub total_inodes: Option<u64>,
    /// Files that may still be made; `None` where they are not counted.
    pub free_inodes: Option<u64>,
    /// Mounted read-only.
    pub read_only: bool,
}

/// The names of file systems by the number that statfs gives.
const NAMES: &[(u64, &str)] = &[
    (0x6173_7566, "aufs"),
    (0x9123_683e, "btrfs"),
    (0x28cd_3d45, "cramfs"),
    (0xf15f, "ecryptfs"),
    (0xe0f5_e1e2, "erofs"),
    (0xef53, "extfs"),
    (0x2011_bab0, "exfat"),
    (0xf2f5_2010, "f2fs"),
    (0x6573_5546, "fuse"),
    (0x4750_4653, "gpfs"),
    (0x3153_464a, "jfs"),
    (0x72b6, "jffs2"),
    (0x4d44, "vfat"),
    (0x6969, "nfs"),
    (0x5346_544e, "ntfs"),
    (0x794c_7630, "overlayfs"),
    (0x8584_58f6, "ramfs"),
    (0x5265_4973, "reiserfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x7371_7368, "squashfs"),
    (0x0102_1994, "tmpfs"),
    (0x0102_1997, "9p"),
    (0xa501_fcf5, "vxfs"),
    (0x5846_5342, "xfs"),
    (0x2fc1_2fc1, "zfs"),
    (0xca45_1a4e, "bcachefs"),
    (0x00c3_6400, "ceph"),
];

impl FileSystem {
    /// The file system that `path` lies in.
    ///
    /// # Errors
    /// There is no such path.
    pub fn at(path: &Path) -> io::Result<Self> {
        let folder = rustix::fs::openat(
            CWD,
            path,
            rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        Self::of(&folder)
    }

    /// The file system that an open file or folder lies in.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(fd: impl AsFd) -> io::Result<Self> {
        let fd = fd.as_fd();
        let stat = rustix::fs::fstatfs(fd)?;
        let space = rustix::fs::fstatvfs(fd)?;
        // The field is signed on some architectures; the numbers have 32 bits.
        let magic = stat.f_type as u64 & 0xffff_ffff;
        let counted = space.f_files > 0;
        Ok(Self {
            name: NAMES.iter().find(|(number, _)| *number == magic).map_or("unknown", |(_, name)| name),
            magic,
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_inodes: counted.then_some(space.f_files),
            free_inodes: counted.then_some(space.f_favail),
            read_only: space.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }
}

/// The answer of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// It works.
    Works,
    /// It does not, and this is what the kernel said (for d_type and others that fail without an error: `EOPNOTSUPP`).
    Refused(Errno),
}

impl Probed {
    /// Whether it works.
    pub fn works(self) -> bool {
        self == Self::Works
    }

    /// A refusal is an answer, a lack of room is none.
    fn of(result: rustix::io::Result<()>) -> io::Result<Self> {
        match result {
            Ok(()) => Ok(Self::Works),
            Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::IO | Errno::ROFS | Errno::NOMEM)) => {
                Err(error.into())
            }
            Err(error) => Ok(Self::Refused(error)),
        }
    }
}

/// A folder of the probe's own inside the scratch folder, removed with all that is in it.
struct Scratch<'a> {
    parent: BorrowedFd<'a>,
    name: String,
    folder: OwnedFd,
}

impl<'a> Scratch<'a> {
    fn new(parent: BorrowedFd<'a>) -> io::Result<Self> {
        let name = format!("{TEMPORARY_PREFIX}{}", random::hex::<8>()?);
        let folder = file::ensure_folder(parent, &name, 0o700)?;
        Ok(Self { parent, name, folder })
    }

    fn file(&self, name: &str) -> io::Result<std::fs::File> {
        file::create(&self.folder, name, 0o600)
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        // The probes make these names and no others.
        for name in ["a", "b"] {
            let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
        }
        let _ = rustix::fs::unlinkat(self.parent, self.name.as_str(), AtFlags::REMOVEDIR);
    }
}

/// Whether reading a folder tells the types of its entries.
///
/// # Errors
/// It could not be tried.
pub fn probe_d_type(scratch: impl AsFd) -> io::Result<Probed> {
    let scratch = Scratch::new(scratch.as_fd())?;
    scratch.file("a")?;
    for entry in rustix::fs::Dir::read_from(&scratch.folder)? {
        if entry?.file_type() == FileType::Unknown {
            return Ok(Probed::Refused(Errno::OPNOTSUPP));
        }
    }
    Ok(Probed::Works)
}

/// Whether files can share blocks (FICLONE).
///
/// # Errors
/// It could not be tried.
pub fn probe_reflink(scratch: impl AsFd) -> io::Result<Probed> {
    use std::io::Write as _;
    let scratch = Scratch::new(scratch.as_fd())?;
    let mut from = scratch.file("a")?;
    from.write_all(&[1u8; 65536])?;
    let to = scratch.file("b")?;
    Probed::of(rustix::fs::ioctl_ficlone(&to, &from))
}

/// Whether a file can have the attribute `name`, such as `trusted.overlay.probe` or `user.overlay.probe`. Refused with
/// `EPERM` where only the privilege is missing.
///
/// # Errors
/// It could not be tried.
pub fn probe_xattr(scratch: impl AsFd, name: &str) -> io::Result<Probed> {
    set_attribute(scratch.as_fd(), name, b"y")
}

/// Whether a file can have an access control list.
///
/// # Errors
/// It could not be tried.
pub fn probe_acl(scratch: impl AsFd) -> io::Result<Probed> {
    // Version 2; owner rw, user 0 r, group r, mask r, others nothing: entries of tag, permissions, id.
    const ACL: &[u8] = b"\x02\0\0\0\
        \x01\0\x06\0\xff\xff\xff\xff\
        \x02\0\x04\0\0\0\0\0\
        \x04\0\x04\0\xff\xff\xff\xff\
        \x10\0\x04\0\xff\xff\xff\xff\
        \x20\0\0\0\xff\xff\xff\xff";
    set_attribute(scratch.as_fd(), "system.posix_acl_access", ACL)
}

fn set_attribute(scratch: BorrowedFd<'_>, name: &str, value: &[u8]) -> io::Result<Probed> {
    let scratch = Scratch::new(scratch)?;
    let file = scratch.file("a")?;
    Probed::of(rustix::fs::fsetxattr(&file, name, value, XattrFlags::CREATE))
}

/// Whether overlayfs's mark of a deleted file, the device 0:0, can be made.
///
/// # Errors
/// It could not be tried.
pub fn probe_whiteout(scratch: impl AsFd) -> io::Result<Probed> {
    let scratch = Scratch::new(scratch.as_fd())?;
    Probed::of(rustix::fs::mknodat(&scratch.folder, "a", FileType::CharacterDevice, Mode::empty(), 0))
}

/// Whether a rename can leave a whiteout behind, as overlayfs needs for an upper.
///
/// # Errors
/// It could not be tried.
pub fn probe_rename_whiteout(scratch: impl AsFd) -> io::Result<Probed> {
    let scratch = Scratch::new(scratch.as_fd())?;
    scratch.file("a")?;
    let folder = &scratch.folder;
    Probed::of(rustix::fs::renameat_with(folder, "a", folder, "b", RenameFlags::WHITEOUT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_probes_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let fd = file::open_folder(CWD, dir.path()).unwrap();
        assert!(probe_d_type(&fd).unwrap().works());
        for answer in [
            probe_reflink(&fd),
            probe_xattr(&fd, "user.probe"),
            probe_xattr(&fd, "trusted.probe"),
            probe_acl(&fd),
            probe_whiteout(&fd),
            probe_rename_whiteout(&fd),
        ] {
            answer.unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn plain_proc_is_not_a_place_to_probe() {
        let fd = file::open_folder(CWD, "/proc").unwrap();
        assert!(probe_d_type(&fd).is_err());
    }

    #[test]
    fn plain_a_file_system_has_a_size() {
        let here = FileSystem::at(Path::new("/")).unwrap();
        assert!(here.total_bytes >= here.free_bytes && here.total_bytes > 0);
        assert_eq!(FileSystem::at(Path::new("/dev/shm")).unwrap().name, "tmpfs");
    }
}
