//! File trees, told as data.
//!
//! A [`Tree`] is declared entry by entry, [made](Tree::make) on disk, and what lies on disk is read back as a
//! [`Snapshot`]: every name with its type, owner, mode, time to the nanosecond, attributes, content and the group
//! of names that are one file. Two snapshots are compared entry by entry:
//!
//! ```
//! use vellum_testkit::tree::{Compare, Tree};
//!
//! let tree = Tree::new()
//!     .dir("etc", 0o755)
//!     .file("etc/hosts", "127.0.0.1 localhost\n", 0o644)
//!     .hard_link("etc/hosts.old", "etc/hosts")
//!     .symlink("hosts", "etc/hosts");
//! let other = Tree::new().dir("etc", 0o700).symlink("hosts", "etc/hosts");
//! let differences = tree.snapshot().differences(&other.snapshot(), Compare::ALL);
//! assert_eq!(differences[0], "/etc: mode 0755 is 0700");
//! ```

mod compare;
mod make;
mod read;

pub use compare::Compare;
pub use read::Snapshot;

use std::collections::BTreeMap;

/// A point in time: seconds since 1970 and nanoseconds.
pub type Time = (i64, u32);

/// What times entries get that do not say: a fixed one, with nanoseconds that a careless copy loses.
pub const DEFAULT_TIME: Time = (1_600_000_000, 123_456_789);

/// A declared tree. See the module's documentation.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    pub(crate) entries: BTreeMap<Vec<u8>, Entry>,
    last: Vec<u8>,
}

/// A declared entry.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) what: What,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) time: Time,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Debug, Clone)]
pub(crate) enum What {
    Dir,
    File { size: u64, data: Vec<(u64, Vec<u8>)> },
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Char(u32, u32),
    Block(u32, u32),
    Fifo,
    Socket,
}

impl Tree {
    /// An empty tree: a root of mode 0755.
    pub fn new() -> Self {
        Self::default().add(b"", What::Dir, 0o755)
    }

    fn add(mut self, path: &[u8], what: What, mode: u32) -> Self {
        self.last = path.to_vec();
        let entry = Entry { what, mode, uid: 0, gid: 0, time: DEFAULT_TIME, xattrs: BTreeMap::new() };
        self.entries.insert(path.to_vec(), entry);
        self
    }

    fn change(mut self, change: impl FnOnce(&mut Entry)) -> Self {
        if let Some(entry) = self.entries.get_mut(&self.last) {
            change(entry);
        }
        self
    }

    /// A directory. The empty path is the root.
    #[must_use]
    pub fn dir(self, path: impl AsRef<[u8]>, mode: u32) -> Self {
        self.add(path.as_ref(), What::Dir, mode)
    }

    /// A regular file.
    #[must_use]
    pub fn file(self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>, mode: u32) -> Self {
        let content = content.as_ref().to_vec();
        let size = content.len() as u64;
        self.add(path.as_ref(), What::File { size, data: vec![(0, content)] }, mode)
    }

    /// A file of `size` bytes with data at some offsets and holes between.
    #[must_use]
    pub fn sparse(self, path: impl AsRef<[u8]>, size: u64, data: &[(u64, &[u8])]) -> Self {
        let data = data.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect();
        self.add(path.as_ref(), What::File { size, data }, 0o644)
    }

    /// A further name of the file `to`.
    #[must_use]
    pub fn hard_link(self, path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Self {
        self.add(path.as_ref(), What::HardLink(to.as_ref().to_vec()), 0)
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, path: impl AsRef<[u8]>, text: impl AsRef<[u8]>) -> Self {
        self.add(path.as_ref(), What::Symlink(text.as_ref().to_vec()), 0o777)
    }

    /// A character device.
    #[must_use]
    pub fn char_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.add(path.as_ref(), What::Char(major, minor), 0o666)
    }

    /// A block device.
    #[must_use]
    pub fn block_device(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.add(path.as_ref(), What::Block(major, minor), 0o660)
    }

    /// A named pipe.
    #[must_use]
    pub fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path.as_ref(), What::Fifo, 0o640)
    }

    /// A unix socket's file.
    #[must_use]
    pub fn socket(self, path: impl AsRef<[u8]>) -> Self {
        self.add(path.as_ref(), What::Socket, 0o755)
    }

    /// The entry added last belongs to these.
    #[must_use]
    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.change(|entry| (entry.uid, entry.gid) = (uid, gid))
    }

    /// The entry added last has this mode.
    #[must_use]
    pub fn mode(self, mode: u32) -> Self {
        self.change(|entry| entry.mode = mode)
    }

    /// The entry added last was changed then.
    #[must_use]
    pub fn time(self, seconds: i64, nanoseconds: u32) -> Self {
        self.change(|entry| entry.time = (seconds, nanoseconds))
    }

    /// The entry added last has this attribute.
    #[must_use]
    pub fn xattr(self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.change(|entry| {
            entry.xattrs.insert(name.as_ref().to_vec(), value.as_ref().to_vec());
        })
    }

    /// The entry added last has an ACL: the rights of its mode, and these for single users.
    #[must_use]
    pub fn acl(self, users: &[(u32, u16)]) -> Self {
        self.change(|entry| {
            let value = acl(entry.mode, users);
            entry.xattrs.insert(b"system.posix_acl_access".to_vec(), value);
        })
    }

    /// The entry added last has these file capabilities (a mask of permitted ones), effective at once.
    #[must_use]
    pub fn caps(self, permitted: u64) -> Self {
        self.xattr("security.capability", capabilities(permitted))
    }

    /// The root's mode, owner and time are the entry added last.
    #[must_use]
    pub fn root(mut self) -> Self {
        self.last = Vec::new();
        self
    }

    /// Takes an entry and all below it out.
    #[must_use]
    pub fn without(mut self, path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let below = [path, b"/"].concat();
        self.entries.retain(|name, _| name != path && !name.starts_with(&below));
        self
    }

    /// All entries of `other` over this tree's.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (path, entry) in &other.entries {
            self.entries.insert(path.clone(), entry.clone());
        }
        self
    }
}

/// `system.posix_acl_access` for a mode and the rights of single users, as the kernel writes it.
pub fn acl(mode: u32, users: &[(u32, u16)]) -> Vec<u8> {
    // Tags of include/uapi/linux/posix_acl.h.
    let [user_obj, user, group_obj, mask, other] = [1u16, 2, 4, 16, 32];
    let mut out = 2u32.to_le_bytes().to_vec();
    let mut add = |tag: u16, rights: u16, id: u32| {
        out.extend_from_slice(&tag.to_le_bytes());
        out.extend_from_slice(&rights.to_le_bytes());
        out.extend_from_slice(&id.to_le_bytes());
    };
    let rights = |shift: u32| ((mode >> shift) & 7) as u16;
    add(user_obj, rights(6), u32::MAX);
    for (id, rights) in users {
        add(user, *rights, *id);
    }
    // The mode's group bits are the mask once there is one; the owning group is given the same.
    add(group_obj, rights(3), u32::MAX);
    add(mask, rights(3), u32::MAX);
    add(other, rights(0), u32::MAX);
    out
}

/// `security.capability`, version 2, with the effective flag.
pub fn capabilities(permitted: u64) -> Vec<u8> {
    let words = [0x0200_0001, permitted as u32, 0, (permitted >> 32) as u32, 0];
    words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::{Kind, Scratch};

    fn everything() -> Tree {
        Tree::new()
            .mode(0o711)
            .dir("d", 0o2755)
            .file("d/f", "text", 0o4711)
            .xattr("user.a", [0, 255])
            .hard_link("d/g", "d/f")
            .hard_link("a", "d/f")
            .symlink("l", "/nowhere")
            .fifo("pipe")
            .socket("socket")
            .sparse("sparse", 3 << 20, &[(1 << 20, b"middle")])
            .file(b"caf\xe9\n", "not UTF-8", 0o600)
            .time(-2, 250_000_000)
    }

    #[test]
    fn plain_what_is_made_is_read_back() {
        let scratch = Scratch::new(Kind::Here).unwrap_or_else(|error| panic!("{error}"));
        let mut tree = everything();
        if rustix::process::geteuid().is_root() {
            tree = tree
                .file("owned", "", 0o640)
                .owner(7, 8)
                .acl(&[(1000, 6)])
                .file("capable", "#!", 0o755)
                .caps(1 << 13)
                .char_device("null", 1, 3)
                .block_device("loop", 7, 70_000);
        } else {
            for entry in tree.entries.values_mut() {
                entry.uid = rustix::process::geteuid().as_raw();
                entry.gid = rustix::process::getegid().as_raw();
            }
        }
        tree.make(scratch.path()).unwrap();
        let found = Snapshot::of(scratch.path()).unwrap();
        assert_eq!(tree.snapshot().differences(&found, Compare::ALL), Vec::<String>::new());
        assert_eq!(tree.snapshot(), found);
    }

    #[test]
    fn plain_every_kind_of_difference_is_told() {
        let tree = everything();
        let differences = |other: Tree| tree.snapshot().differences(&other.snapshot(), Compare::ALL);
        assert_eq!(differences(tree.clone().dir("d", 0o2700)), ["/d: mode 2755 is 2700"]);
        assert_eq!(differences(tree.clone().without("pipe")), ["/pipe: missing (a pipe)"]);
        assert_eq!(differences(tree.clone().fifo("new")), ["/new: not expected (a pipe)"]);
        assert_eq!(
            differences(tree.clone().root().owner(1, 2)),
            ["/: owner 0:0 is 1:2"],
            "the root is an entry like others"
        );
        assert_eq!(
            differences(tree.clone().symlink("l", "x")),
            ["/l: a link to \"/nowhere\" is a link to \"x\""]
        );
        let unlinked = tree.clone().file("d/g", "text", 0o4711).xattr("user.a", [0, 255]);
        assert_eq!(differences(unlinked), ["/d/g: the same file as /a is a file of its own"]);
        let later = tree.clone().fifo("pipe").time(1, 5);
        assert_eq!(differences(later), ["/pipe: time 1600000000.123456789 is 1.000000005"]);
        let plain = tree.clone().sparse("sparse", 3 << 20, &[(1 << 20, b"niddle")]);
        assert_eq!(differences(plain).len(), 1);
    }
}
