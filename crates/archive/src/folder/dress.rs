//! Owner, mode and attributes of what was just made.

use super::FolderTarget;
use crate::attributes::{self, At};
use crate::target::{LayerPath, Meta, TargetError};
use rustix::fs::{Gid, Mode, Stat, Uid};
use rustix::io::Errno;
use std::io;

const SET_ID: u32 = 0o6000;

/// Whether the owner was set, or must be recorded.
fn owned(result: rustix::io::Result<()>, rootless: bool) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        // EINVAL: the user namespace has no such id; EPERM: there is no namespace at all.
        Err(Errno::INVAL | Errno::PERM) if rootless => Ok(false),
        Err(error) => Err(error.into()),
    }
}

impl FolderTarget {
    /// Sets what differs between `stat`, taken after the last write, and `meta`. The order matters: a change of owner
    /// takes set-ID bits and capabilities away, and a change of mode changes an ACL.
    pub(super) fn dress(
        &self,
        path: &LayerPath,
        at: At<'_>,
        stat: &Stat,
        meta: &Meta,
        inherited_acl: bool,
    ) -> Result<(), TargetError> {
        let link = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Symlink;
        let (mut mode, mut changed, mut recorded) = (meta.mode & 0o7777, inherited_acl, false);
        if stat.st_uid != meta.uid || stat.st_gid != meta.gid {
            let (uid, gid) = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
            let result = match at {
                At::Open(fd) => rustix::fs::fchown(fd, uid, gid),
                At::Entry(dir, name) => {
                    rustix::fs::chownat(dir, name, uid, gid, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                }
            };
            let set =
                owned(result, self.options.rootless).map_err(TargetError::at("set the owner of", path))?;
            recorded = !set;
            changed |= set && mode & SET_ID != 0;
        }
        if recorded {
            // Set-ID bits for an owner who is not the file's would give away the wrong one's rights.
            mode &= !SET_ID;
        }
        if inherited_acl && !link {
            for name in [&b"system.posix_acl_access"[..], b"system.posix_acl_default"] {
                at.remove(name).map_err(TargetError::at("remove the inherited ACL of", path))?;
            }
        }
        if !link && (changed || stat.st_mode & 0o7777 != mode) {
            let bits = Mode::from_raw_mode(mode);
            match at {
                At::Open(fd) => rustix::fs::fchmod(fd, bits),
                At::Entry(dir, name) => rustix::fs::chmodat(dir, name, bits, rustix::fs::AtFlags::empty()),
            }
            .map_err(|error| TargetError::at("set the mode of", path)(error.into()))?;
        }
        for (name, value) in &meta.xattrs {
            self.set_attribute(path, at, name, value)?;
        }
        if recorded && let At::Open(_) = at {
            let text = attributes::write_stat(meta.uid, meta.gid, meta.mode & 0o7777);
            at.set(attributes::STAT, &text).map_err(TargetError::at("record the owner of", path))?;
        }
        Ok(())
    }

    fn set_attribute(
        &self,
        path: &LayerPath,
        at: At<'_>,
        name: &[u8],
        value: &[u8],
    ) -> Result<(), TargetError> {
        let escaped = attributes::escape(name, self.overlay());
        at.set(escaped.as_deref().unwrap_or(name), value).map_err(|error| {
            let shown = String::from_utf8_lossy(name).escape_debug().to_string();
            TargetError::at(format!("set the attribute {shown} of"), path)(error)
        })
    }

    /// Takes away the attributes that an earlier entry of this path, or a layer below, has left.
    pub(super) fn undress(&self, path: &LayerPath, at: At<'_>, meta: &Meta) -> Result<(), TargetError> {
        let names = at.names().map_err(TargetError::at("read the attributes of", path))?;
        for name in names {
            let own = match attributes::unescape(&name, self.overlay()) {
                attributes::Meaning::Own(own) => own,
                attributes::Meaning::Hidden if name == attributes::STAT => name.clone(),
                attributes::Meaning::Hidden => continue,
            };
            let stays = meta.xattrs.iter().any(|(kept, _)| *kept == own)
                || (name.starts_with(b"security.") && name != b"security.capability");
            if !stays {
                at.remove(&name).map_err(TargetError::at("remove an attribute of", path))?;
            }
        }
        Ok(())
    }
}
