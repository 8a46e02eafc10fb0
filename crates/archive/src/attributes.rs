//! Extended attributes: which names mean something to overlayfs or to Vellum, and how they are told
//! apart from a layer's own.
//!
//! | in an archive or a mounted view | in a layer's own folder |
//! |---|---|
//! | `trusted.overlay.X` (`user.overlay.X` with [`XattrForm::User`]) | `trusted.overlay.overlay.X`, which overlayfs shows without the second `overlay.` (kernel: Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts") |
//! | `user.vellum.X` | `user.vellum.escaped.X` |
//! | (none) | `trusted.overlay.X`: overlayfs's own marks |
//! | (none) | `user.vellum.stat`: owner and mode that the user namespace cannot hold |
//! | (a device 0:0) | `user.vellum.whiteout`: what stands for it ([`crate::nested`]) |
//!
//! `user.vellum.stat` is `UID:GID:MODE` in ASCII, the numbers decimal and the mode octal with its type bits
//! left out, such as `1000:100:4755`. Regular files and directories have it; links, devices and pipes cannot
//! carry `user.` attributes, so that for them only the recipe of the layer knows the owner.

use crate::XattrForm;
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};

/// Where Vellum keeps owner and mode that could not be set.
pub const STAT: &[u8] = b"user.vellum.stat";
const VELLUM: &[u8] = b"user.vellum.";
const VELLUM_ESCAPED: &[u8] = b"user.vellum.escaped.";

impl XattrForm {
    /// What overlayfs's own names begin with.
    pub fn prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        }
    }

    fn escaped_prefix(self) -> &'static [u8] {
        match self {
            Self::Trusted => b"trusted.overlay.overlay.",
            Self::User => b"user.overlay.overlay.",
        }
    }

    /// The mark of an opaque directory; its value is `y`.
    pub fn opaque(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }
}

/// What a layer's attribute is called in the layer's own folder. `overlay` is the form whose names overlayfs would take
/// for its own; `None` where no overlayfs looks at the folder.
pub fn escape(name: &[u8], overlay: Option<XattrForm>) -> Option<Vec<u8>> {
    let swap = |from: &[u8], to: &[u8]| name.strip_prefix(from).map(|rest| [to, rest].concat());
    swap(VELLUM, VELLUM_ESCAPED).or_else(|| overlay.and_then(|form| escape_overlay(name, form)))
}

/// What overlayfs shows under this name, where it would otherwise take it for its own; `None` for names that mean nothing to it.
pub fn escape_overlay(name: &[u8], form: XattrForm) -> Option<Vec<u8>> {
    name.strip_prefix(form.prefix()).map(|rest| [form.escaped_prefix(), rest].concat())
}

/// Whether it is what XFS calls an ACL for privileged readers, beside the name that all file systems have for it
/// (`system.posix_acl_access`, `system.posix_acl_default`). It is no attribute of its own, neither on disk nor in an archive that was made of such a disk.
pub fn is_alias(name: &[u8]) -> bool {
    name.starts_with(b"trusted.SGI_ACL_")
}

/// What an attribute on disk means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The layer's own, under this name.
    Own(Vec<u8>),
    /// Overlayfs's or Vellum's.
    Hidden,
}

/// The inverse of [`escape`].
pub(crate) fn unescape(name: &[u8], overlay: Option<XattrForm>) -> Meaning {
    let swap = |from: &[u8], to: &[u8]| name.strip_prefix(from).map(|rest| [to, rest].concat());
    if let Some(name) = swap(VELLUM_ESCAPED, VELLUM) {
        return Meaning::Own(name);
    }
    if name.starts_with(VELLUM) {
        return Meaning::Hidden;
    }
    if let Some(form) = overlay {
        if let Some(name) = swap(form.escaped_prefix(), form.prefix()) {
            return Meaning::Own(name);
        }
        if name.starts_with(form.prefix()) {
            return Meaning::Hidden;
        }
    }
    Meaning::Own(name.to_vec())
}

/// A path that names an entry itself, never what a link points to, for calls that take no descriptor.
pub(crate) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// The same for something that is open, also with `O_PATH`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At<'a> {
    /// Opened for reading or writing.
    Open(BorrowedFd<'a>),
    /// An entry of a directory, not followed.
    Entry(BorrowedFd<'a>, &'a [u8]),
}

fn grow(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut small = [0; 256];
    match call(&mut small) {
        Ok(length) => return Ok(small[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(error) => return Err(error.into()),
    }
    // 64 KiB is the kernel's limit for a value and for the list of names.
    let mut large = vec![0; 65536];
    let length = call(&mut large)?;
    large.truncate(length);
    Ok(large)
}

impl At<'_> {
    /// The names, sorted, each once; none where the file system has no attributes.
    pub(crate) fn names(self) -> io::Result<Vec<Vec<u8>>> {
        let list = grow(|buffer| match self {
            Self::Open(fd) => rustix::fs::flistxattr(fd, buffer),
            Self::Entry(dir, name) => rustix::fs::llistxattr(proc_path(dir, name), buffer),
        });
        let list = match list {
            Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                return Ok(Vec::new());
            }
            other => other?,
        };
        let mut names: Vec<Vec<u8>> = list
            .split(|c| *c == 0)
            .filter(|name| !name.is_empty() && !is_alias(name))
            .map(<[u8]>::to_vec)
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// One value; `None` if there is none of this name.
    pub(crate) fn get(self, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let value = grow(|buffer| match self {
            Self::Open(fd) => rustix::fs::fgetxattr(fd, name, buffer),
            Self::Entry(dir, entry) => rustix::fs::lgetxattr(proc_path(dir, entry), name, buffer),
        });
        match value {
            Ok(value) => Ok(Some(value)),
            Err(error)
                if [Errno::NODATA, Errno::OPNOTSUPP]
                    .iter()
                    .any(|e| error.raw_os_error() == Some(e.raw_os_error())) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn set(self, name: &[u8], value: &[u8]) -> io::Result<()> {
        let flags = rustix::fs::XattrFlags::empty();
        Ok(match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, flags),
            Self::Entry(dir, entry) => rustix::fs::lsetxattr(proc_path(dir, entry), name, value, flags),
        }?)
    }

    pub(crate) fn remove(self, name: &[u8]) -> io::Result<()> {
        let result = match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name),
            Self::Entry(dir, entry) => rustix::fs::lremovexattr(proc_path(dir, entry), name),
        };
        match result {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// All attributes of an entry of a directory (`.` for the directory itself), sorted, by the names that they have on disk.
///
/// # Errors
/// The file system's.
pub fn all(dir: impl AsFd, name: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let at = At::Entry(dir.as_fd(), name);
    let mut found = Vec::new();
    for name in at.names()? {
        // One that is gone meanwhile was not there.
        if let Some(value) = at.get(&name)? {
            found.push((name, value));
        }
    }
    Ok(found)
}

/// Whether the open directory carries the opaque mark.
///
/// # Errors
/// The file system's.
pub fn is_opaque(dir: impl AsFd, form: XattrForm) -> io::Result<bool> {
    Ok(At::Open(dir.as_fd()).get(form.opaque().as_bytes())?.as_deref() == Some(b"y"))
}

/// Owner and mode as [`STAT`] holds them.
pub(crate) fn write_stat(uid: u32, gid: u32, mode: u32) -> Vec<u8> {
    format!("{uid}:{gid}:{mode:o}").into_bytes()
}

/// The inverse; `None` for text that Vellum did not write.
pub(crate) fn read_stat(text: &[u8]) -> Option<(u32, u32, u32)> {
    let mut parts = std::str::from_utf8(text).ok()?.split(':');
    let (uid, gid) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let mode = u32::from_str_radix(parts.next()?, 8).ok()?;
    (parts.next().is_none() && mode <= 0o7777).then_some((uid, gid, mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_is_undone() {
        for form in [Some(XattrForm::Trusted), Some(XattrForm::User), None] {
            for name in [
                "trusted.overlay.opaque",
                "user.overlay.whiteout",
                "trusted.overlay.overlay.x",
                "user.vellum.stat",
                "user.vellum.escaped.stat",
                "security.capability",
                "user.x",
            ] {
                let name = name.as_bytes();
                let disk = escape(name, form).unwrap_or(name.to_vec());
                assert_eq!(unescape(&disk, form), Meaning::Own(name.to_vec()));
            }
        }
        assert_eq!(unescape(b"trusted.overlay.opaque", Some(XattrForm::Trusted)), Meaning::Hidden);
        assert_eq!(unescape(STAT, None), Meaning::Hidden);
        assert_eq!(read_stat(&write_stat(1, 2, 0o4755)), Some((1, 2, 0o4755)));
        assert_eq!(read_stat(b"1:2:x"), None);
    }
}
