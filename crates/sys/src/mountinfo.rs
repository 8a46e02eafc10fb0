//! Which mounts there are.
//!
//! A mount is asked for by its unique id with statmount(2) (Linux 6.8), also in another mount namespace (6.11); by the older, reusable
//! id it is looked up in /proc/self/mountinfo. A question costs one or two system calls, whatever the number of mounts; only
//! [`below`] reads the whole table.

use crate::ioctl::mount_namespace_id;
use crate::mount::MountId;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What the kernel says of one mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountFacts {
    /// The type of its file system.
    pub fs_type: String,
    /// What is mounted, within its file system.
    pub root: PathBuf,
    /// Where, as this process's root directory sees it.
    pub point: PathBuf,
}

/// A mount namespace, named so that it can be found again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MountNamespace {
    /// Its inode in /proc/PID/ns/mnt: never shared by two at the same time.
    pub inode: u64,
    /// Its id, never used again in this boot (Linux 6.11).
    pub id: Option<u64>,
}

impl MountNamespace {
    /// The one this process is in.
    ///
    /// # Errors
    /// /proc is not mounted.
    pub fn current() -> io::Result<Self> {
        let file = std::fs::File::open("/proc/self/ns/mnt")?;
        Ok(Self { inode: file.metadata()?.ino(), id: mount_namespace_id(&file).ok() })
    }

    /// Whether it is this one: by the id where both have one, by the inode otherwise.
    pub fn same(&self, other: &Self) -> bool {
        match (self.id, other.id) {
            (Some(a), Some(b)) => a == b,
            _ => self.inode == other.inode,
        }
    }

    /// Whether the mount `id` still is there, in a namespace that this process is not in.
    ///
    /// Answered by the kernel where both have ids that are never used again; otherwise by whether any process lives in a namespace of this
    /// inode: one that is kept by a file alone is then missed.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn has_mount(&self, id: MountId) -> io::Result<bool> {
        if let (Some(namespace), true) = (self.id, id.unique) {
            match statmount(id.id, Some(namespace)) {
                Ok(_) => return Ok(true),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(false),
                // Not allowed to look into it, or a kernel that cannot.
                Err(_) => {}
            }
        }
        for process in crate::process::all()? {
            if std::fs::metadata(format!("/proc/{process}/ns/mnt")).is_ok_and(|stat| stat.ino() == self.inode)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Where a mount is that was made at a certain path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// There, on top.
    There,
    /// There, or moved, but another mount lies over it.
    Covered,
    /// Gone.
    Gone,
}

/// Whether the mount `id`, made at `target`, is still there. One system call when it is.
///
/// # Errors
/// The mount table cannot be read.
pub fn presence(target: &Path, id: MountId) -> io::Result<Presence> {
    match MountId::at(target) {
        Ok(top) if top == id => return Ok(Presence::There),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Presence::Gone),
        // A dead server behind the mount: the mount is there all the same, and the table knows which it is.
        Err(_) => {}
    }
    Ok(if by_id(id)?.is_some_and(|facts| facts.point == target) { Presence::Covered } else { Presence::Gone })
}

/// What the kernel says of the mount `id` in this namespace; `None` if it is gone, or detached.
///
/// # Errors
/// The mount table cannot be read.
pub fn by_id(id: MountId) -> io::Result<Option<MountFacts>> {
    if !id.unique {
        let table = std::fs::read("/proc/self/mountinfo")?;
        return Ok(lines(&table).find(|line| line.id == id.id).map(|line| line.facts));
    }
    match statmount(id.id, None) {
        Ok(facts) => Ok(Some(facts)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The mounts strictly below `path` in this namespace, in the order of the table (lower ones first).
///
/// # Errors
/// /proc is not mounted.
pub fn below(path: &Path) -> io::Result<Vec<MountFacts>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(lines(&table)
        .map(|line| line.facts)
        .filter(|facts| facts.point != path && facts.point.starts_with(path))
        .collect())
}

/// The mounts exactly at `path` in this namespace: more than one if they cover each other, the covered first.
///
/// # Errors
/// /proc is not mounted.
pub fn at(path: &Path) -> io::Result<Vec<MountFacts>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(lines(&table).map(|line| line.facts).filter(|facts| facts.point == path).collect())
}

/// Whether what is mounted on top at `path` is mounted at another place too, in any mount namespace that this process can see: in a container, which
/// has it as its root. A copy at the same path is the same mount, seen in a namespace that follows this one.
///
/// Reads the mount table of every namespace: some milliseconds.
///
/// # Errors
/// /proc cannot be read.
pub fn mounted_elsewhere(path: &Path) -> io::Result<bool> {
    let own = std::fs::read("/proc/self/mountinfo")?;
    let Some(this) = lines(&own).filter(|line| line.facts.point == path).last() else { return Ok(false) };
    let other = |table: &[u8]| {
        lines(table).any(|line| {
            line.device == this.device && line.facts.root == this.facts.root && line.facts.point != path
        })
    };
    if other(&own) {
        return Ok(true);
    }
    let mut seen = vec![std::fs::metadata("/proc/self/ns/mnt")?.ino()];
    for process in crate::process::all()? {
        let Ok(namespace) = std::fs::metadata(format!("/proc/{process}/ns/mnt")) else { continue };
        if seen.contains(&namespace.ino()) {
            continue;
        }
        seen.push(namespace.ino());
        // One that has just ended has no mounts.
        if std::fs::read(format!("/proc/{process}/mountinfo")).is_ok_and(|table| other(&table)) {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Line {
    id: u64,
    /// `major:minor`
    device: Vec<u8>,
    facts: MountFacts,
}

/// The lines of a mountinfo: `36 35 98:0 /root /point rw,noatime shared:1 - ext3 /dev/root rw`.
fn lines(table: &[u8]) -> impl Iterator<Item = Line> + '_ {
    table.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = fields.nth(1)?.to_vec();
        let root = unescape(fields.next()?);
        let point = unescape(fields.next()?);
        fields.find(|field| *field == b"-")?;
        let fs_type = String::from_utf8_lossy(fields.next()?).into_owned();
        Some(Line { id, device, facts: MountFacts { fs_type, root, point } })
    })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [byte, tail @ ..] = rest {
        rest = tail;
        let value = match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..]) => {
                rest = after;
                (a - b'0') * 64 + (b - b'0') * 8 + (c - b'0')
            }
            _ => *byte,
        };
        out.push(value);
    }
    PathBuf::from(OsString::from_vec(out))
}

/// `struct mnt_id_req` of the kernel, in its second version.
#[repr(C)]
struct MountIdRequest {
    size: u32,
    spare: u32,
    mount: u64,
    parameter: u64,
    namespace: u64,
}

const _: () = assert!(size_of::<MountIdRequest>() == 32);
const _: () = assert!(std::mem::offset_of!(MountIdRequest, mount) == 8);
const _: () = assert!(std::mem::offset_of!(MountIdRequest, parameter) == 16);
const _: () = assert!(std::mem::offset_of!(MountIdRequest, namespace) == 24);

const SYS_STATMOUNT: libc::c_long = 457;
const STATMOUNT_MNT_ROOT: u64 = 0x08;
const STATMOUNT_MNT_POINT: u64 = 0x10;
const STATMOUNT_FS_TYPE: u64 = 0x20;

/// Offsets in `struct statmount`; texts are offsets from the end of its fixed part.
const AT_FS_TYPE: usize = 36;
const AT_MNT_ROOT: usize = 104;
const AT_MNT_POINT: usize = 108;
const AT_TEXTS: usize = 512;

fn statmount(mount: u64, namespace: Option<u64>) -> io::Result<MountFacts> {
    let request = MountIdRequest {
        // The first version has no namespace, and is all that Linux before 6.11 takes.
        size: if namespace.is_some() { 32 } else { 24 },
        spare: 0,
        mount,
        parameter: STATMOUNT_MNT_ROOT | STATMOUNT_MNT_POINT | STATMOUNT_FS_TYPE,
        namespace: namespace.unwrap_or(0),
    };
    // Two paths of the longest kind and the type fit.
    let mut buffer = vec![0u8; AT_TEXTS + 2 * 4096 + 256];
    // SAFETY: the request is laid out as the kernel's structure of the size it names and is only read; the kernel writes at most the length
    // given into the buffer; both live through the call.
    let result = unsafe {
        libc::syscall(SYS_STATMOUNT, &raw const request, buffer.as_mut_ptr(), buffer.len(), 0 as libc::c_uint)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(MountFacts {
        fs_type: String::from_utf8_lossy(text_at(&buffer, AT_FS_TYPE)).into_owned(),
        root: PathBuf::from(std::ffi::OsStr::from_bytes(text_at(&buffer, AT_MNT_ROOT))),
        point: PathBuf::from(std::ffi::OsStr::from_bytes(text_at(&buffer, AT_MNT_POINT))),
    })
}

/// The text whose offset lies at `field`; empty if the kernel gave nothing sensible.
fn text_at(buffer: &[u8], field: usize) -> &[u8] {
    let offset =
        buffer.get(field..field + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
    let text = buffer.get(AT_TEXTS + offset as usize..).unwrap_or_default();
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_a_table_is_parsed() {
        let table =
            b"36 35 98:0 /r /a\\040b\\134c rw,noatime shared:1 master:2 - ext4 /dev/root rw\nnonsense\n";
        let all: Vec<_> = lines(table).collect();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].id, 36);
        assert_eq!(all[0].facts.point, Path::new("/a b\\c"));
        assert_eq!(all[0].facts.fs_type, "ext4");
    }

    #[test]
    fn plain_proc_is_found_both_ways() {
        let id = MountId::at(Path::new("/proc")).unwrap();
        let facts = by_id(id).unwrap().unwrap();
        assert_eq!((facts.fs_type.as_str(), facts.point.as_path()), ("proc", Path::new("/proc")));
        assert_eq!(at(Path::new("/proc")).unwrap().pop().unwrap(), facts);
        assert_eq!(presence(Path::new("/proc"), id).unwrap(), Presence::There);
        assert_eq!(presence(Path::new("/proc/self"), id).unwrap(), Presence::There);
        let other = MountId { id: u64::MAX - 1, ..id };
        assert_eq!(presence(Path::new("/proc"), other).unwrap(), Presence::Gone);
        assert_eq!(by_id(other).unwrap(), None);
    }

    #[test]
    fn plain_proc_is_mounted_elsewhere_only_if_somebody_did_so() {
        let own = std::fs::read("/proc/self/mountinfo").unwrap();
        let root = lines(&own).find(|line| line.facts.point == Path::new("/proc")).unwrap();
        let twins =
            lines(&own).filter(|line| line.device == root.device && line.facts.root == root.facts.root);
        assert!(twins.count() == 1 || mounted_elsewhere(Path::new("/proc")).unwrap());
        assert!(!mounted_elsewhere(Path::new("/proc/self")).unwrap(), "nothing is mounted there");
    }

    #[test]
    fn plain_this_namespace_has_its_mounts() {
        let namespace = MountNamespace::current().unwrap();
        assert!(namespace.same(&MountNamespace::current().unwrap()));
        assert!(namespace.has_mount(MountId::at(Path::new("/proc")).unwrap()).unwrap());
        let gone = MountNamespace { inode: 1, id: None };
        assert!(!gone.has_mount(MountId { id: 1, unique: true }).unwrap());
    }
}
