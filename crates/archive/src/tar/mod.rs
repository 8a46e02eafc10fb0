//! Reading tar archives: v7, ustar, GNU and PAX, with all their sparse forms.
//!
//! | read | from |
//! |---|---|
//! | long names and links | ustar prefix, GNU `L` and `K`, PAX `path` and `linkpath` (`GNU.sparse.name` before both) |
//! | large and negative numbers | GNU base-256, PAX `size`, `uid`, `gid`, `mtime` |
//! | attributes | PAX `SCHILY.xattr.NAME` (raw), `LIBARCHIVE.xattr.NAME` (base64, the name URL-encoded); the former wins |
//! | sparse files | GNU type `S`, PAX `GNU.sparse.*` 0.0, 0.1 and 1.0 |
//! | defaults for all | PAX global headers |
//!
//! Ignored: user and group names, access and change times, `SCHILY.acl.*` (text; the same ACLs come as attributes
//! `system.posix_acl_*` from tools that keep them), comments. Refused, with the entry's name and offset: wrong
//! checksums, negative sizes, numbers that are none, NUL in names, sparse maps out of order, multi-volume archives, and
//! types this reader does not know: POSIX would have them read as regular files, which gives silently wrong trees.
//! Links, directories and devices have no data, whatever their size field says (as GNU tar and Go read them).
//!
//! The end is two blocks of zeros or the end of the input. What comes after is of no meaning, but belongs to the digest.

mod header;
mod pax;
mod reader;
mod sparse;

pub use header::{EntryKind, Header};
pub use reader::{Reader, Tap};

/// What an archive may ask for before it is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries: u64,
    /// Bytes of one extension header: PAX records, a long name.
    pub header: u64,
    /// Bytes of attributes of one entry, names included.
    pub xattrs: u64,
    /// Runs of data in one sparse file.
    pub extents: usize,
    /// Bytes of the whole archive.
    pub total: u64,
    /// Bytes that a sparse file appears to have.
    pub sparse: u64,
}

impl Default for Limits {
    /// Far beyond what any image has: 16 M entries, 1 MiB of headers, 1 MiB of attributes, 256 Ki extents, 4 TiB of archive,
    /// 1 TiB of a sparse file.
    fn default() -> Self {
        Self {
            entries: 16 << 20,
            header: 1 << 20,
            xattrs: 1 << 20,
            extents: 256 << 10,
            total: 4 << 40,
            sparse: 1 << 40,
        }
    }
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{}", self.describe())]
pub struct TarError {
    /// Where in the archive the entry's first header is.
    pub offset: u64,
    /// The entry's name, as far as it is known.
    pub entry: Option<String>,
    /// What is wrong.
    pub problem: Problem,
    /// The input's error.
    #[source]
    pub source: Option<std::io::Error>,
}

/// What is wrong with an archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The input failed.
    #[error("the archive cannot be read")]
    Read,
    /// The input ended inside an entry.
    #[error("the archive ends early")]
    Truncated,
    /// The header's checksum does not fit.
    #[error("this is no tar header: the checksum does not fit")]
    Checksum,
    /// A field is not what it should be.
    #[error("the {0} is not valid")]
    Field(&'static str),
    /// A limit is exceeded.
    #[error("more {0} than allowed")]
    Limit(&'static str),
    /// An entry of a type that cannot be read.
    #[error("entries of type '{}' are not supported", .0.escape_ascii())]
    Type(u8),
    /// A sparse map that makes no sense.
    #[error("the sparse map is not valid: {0}")]
    Sparse(&'static str),
    /// A name that cannot be in a layer.
    #[error("the name is refused: {0}")]
    Name(&'static str),
    /// A link's target that cannot be in a layer.
    #[error("the link is refused: {0}")]
    Link(&'static str),
    /// A whiteout that hides nothing that could be hidden.
    #[error("the whiteout is refused: {0}")]
    Whiteout(&'static str),
}

impl TarError {
    fn describe(&self) -> String {
        match &self.entry {
            Some(entry) => format!("entry '{entry}' at offset {}: {}", self.offset, self.problem),
            None => format!("at offset {}: {}", self.offset, self.problem),
        }
    }
}

/// Bytes for people: control characters and what is no UTF-8 escaped, cut at 200.
pub(crate) fn shown(name: &[u8]) -> String {
    let cut = &name[..name.len().min(200)];
    String::from_utf8_lossy(cut).escape_debug().to_string()
}
