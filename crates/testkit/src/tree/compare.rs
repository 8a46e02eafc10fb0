//! Two trees, compared entry by entry.

use super::read::{Fact, Kind, Snapshot};
use std::collections::BTreeSet;

/// What counts when two trees are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compare {
    /// Times of directories: they change with everything that is made in them.
    pub dir_times: bool,
    /// Times of all else.
    pub times: bool,
    /// Owners.
    pub owners: bool,
    /// Extended attributes.
    pub xattrs: bool,
    /// Which names are one file.
    pub links: bool,
    /// The root's own mode, owner, time and attributes.
    pub root: bool,
}

impl Compare {
    /// Everything.
    pub const ALL: Self =
        Self { dir_times: true, times: true, owners: true, xattrs: true, links: true, root: true };

    /// Everything that does not depend on when things were done.
    pub const NO_TIMES: Self = Self { dir_times: false, times: false, ..Self::ALL };

    /// Everything but the times of directories.
    pub const NO_DIR_TIMES: Self = Self { dir_times: false, ..Self::ALL };
}

impl Snapshot {
    /// What in `other` is not as it is here, one sentence for each difference, in the order of paths.
    pub fn differences(&self, other: &Self, compare: Compare) -> Vec<String> {
        let paths: BTreeSet<_> = self.facts.keys().chain(other.facts.keys()).collect();
        let mut out = Vec::new();
        for path in paths {
            let name = format!("/{}", path.escape_ascii());
            match (self.facts.get(path), other.facts.get(path)) {
                (Some(a), None) => out.push(format!("{name}: missing ({})", a.kind.describe())),
                (None, Some(b)) => out.push(format!("{name}: not expected ({})", b.kind.describe())),
                (Some(a), Some(b)) if !path.is_empty() || compare.root => {
                    out.extend(a.differences(b, compare).into_iter().map(|what| format!("{name}: {what}")));
                }
                _ => {}
            }
        }
        out
    }
}

impl Snapshot {
    /// Whether both have the entry and it is the same.
    pub(crate) fn same_entry(&self, other: &Self, path: &[u8], compare: Compare) -> bool {
        match (self.facts.get(path), other.facts.get(path)) {
            (Some(a), Some(b)) => a.differences(b, compare).is_empty(),
            _ => false,
        }
    }

    /// Whether this entry is a file with further names in the tree.
    pub(crate) fn has_other_names(&self, path: &[u8]) -> bool {
        self.facts.get(path).is_some_and(|fact| fact.same_as.is_some())
    }

    /// Whether there is a directory of this path.
    pub fn is_dir(&self, path: impl AsRef<[u8]>) -> bool {
        self.facts.get(path.as_ref()).is_some_and(|fact| fact.kind == Kind::Dir)
    }
}

impl Fact {
    fn differences(&self, other: &Self, compare: Compare) -> Vec<String> {
        let mut out = Vec::new();
        if self.kind != other.kind {
            out.push(format!("{} is {}", self.kind.describe(), other.kind.describe()));
        }
        if self.mode != other.mode {
            out.push(format!("mode {:04o} is {:04o}", self.mode, other.mode));
        }
        if compare.owners && (self.uid, self.gid) != (other.uid, other.gid) {
            out.push(format!("owner {}:{} is {}:{}", self.uid, self.gid, other.uid, other.gid));
        }
        let times = if self.kind == Kind::Dir { compare.dir_times } else { compare.times };
        if times && self.time != other.time {
            let show = |(seconds, nanoseconds): super::Time| format!("{seconds}.{nanoseconds:09}");
            out.push(format!("time {} is {}", show(self.time), show(other.time)));
        }
        if compare.links && self.same_as != other.same_as {
            let show = |name: &Option<Vec<u8>>| match name {
                Some(name) => format!("the same file as /{}", name.escape_ascii()),
                None => "a file of its own".to_owned(),
            };
            out.push(format!("{} is {}", show(&self.same_as), show(&other.same_as)));
        }
        if compare.xattrs {
            let names: BTreeSet<_> = self.xattrs.keys().chain(other.xattrs.keys()).collect();
            for name in names {
                let (a, b) = (self.xattrs.get(name), other.xattrs.get(name));
                if a != b {
                    let show = |value: Option<&Vec<u8>>| match value {
                        Some(value) => format!("\"{}\"", value.escape_ascii()),
                        None => "missing".to_owned(),
                    };
                    out.push(format!("attribute {} {} is {}", name.escape_ascii(), show(a), show(b)));
                }
            }
        }
        out
    }
}

impl Kind {
    fn describe(&self) -> String {
        match self {
            Self::Dir => "a directory".into(),
            Self::File { size, head, .. } if *size <= head.len() as u64 => {
                format!("a file \"{}\"", head.escape_ascii())
            }
            Self::File { size, hash, .. } => format!("a file of {size} bytes ({hash:032x})"),
            Self::Symlink(text) => format!("a link to \"{}\"", text.escape_ascii()),
            Self::Char(major, minor) => format!("a character device {major}:{minor}"),
            Self::Block(major, minor) => format!("a block device {major}:{minor}"),
            Self::Fifo => "a pipe".into(),
            Self::Socket => "a socket".into(),
        }
    }
}
