//! The seam between a layer's stream and the place where a driver keeps it.
//!
//! [`crate::apply`] reads a tar, checks and normalises every entry, and calls a [`Target`] for each.
//! A target therefore never sees an absolute path, a `..`, an empty name, an unknown type or a
//! whiteout's name: what it gets is what the layer means. Drivers that keep layers as folders use
//! [`crate::folder::FolderTarget`]; others bring their own.
//!
//! # Order of calls
//!
//! Entries come in the order of the archive, in one thread. The same path may come more than once:
//! the last one counts, and the target replaces what it had (a directory over a directory keeps
//! its children). Whiteouts and opaque marks hide what *lower* layers have and never what this
//! layer brought, whether it came before or after. Parents may be missing from the archive: the target
//! makes them and reports them in [`Joints::implied`], so that the driver can copy owner, mode,
//! times and attributes from the layers below when the layer is joined to its parent.

use std::fs::File;
use std::io::{BufRead, Read};

/// A path inside a layer: one or more names joined by `/`, none of them empty, `.` or `..`, without
/// NUL, none longer than 255 bytes, at most 4095 bytes in all (a walk of a tree on disk may find longer ones). The root is the
/// empty path.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct LayerPath(Vec<u8>);

impl LayerPath {
    /// The layer's root.
    pub fn root() -> Self {
        Self(Vec::new())
    }

    /// A path that is already normal.
    ///
    /// # Errors
    /// Says which rule of [`LayerPath`] it breaks.
    pub fn new(path: impl Into<Vec<u8>>) -> Result<Self, &'static str> {
        let path = path.into();
        if path.is_empty() {
            return Ok(Self(path));
        }
        if path.len() > 4095 {
            return Err("longer than 4095 bytes");
        }
        if path.contains(&0) {
            return Err("it holds a NUL byte");
        }
        for name in path.split(|c| *c == b'/') {
            match name {
                b"" => return Err("an empty name"),
                b"." | b".." => return Err("'.' or '..' as a name"),
                name if name.len() > 255 => return Err("a name longer than 255 bytes"),
                _ => {}
            }
        }
        Ok(Self(path))
    }

    /// The bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// As a relative [`std::path::Path`]; the root is `.`.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt as _;
        std::path::Path::new(std::ffi::OsStr::from_bytes(if self.0.is_empty() { b"." } else { &self.0 }))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The parent and the last name; `None` for the root.
    pub fn split(&self) -> Option<(LayerPath, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        match self.0.iter().rposition(|c| *c == b'/') {
            Some(at) => Some((Self(self.0[..at].to_vec()), &self.0[at + 1..])),
            None => Some((Self::root(), &self.0)),
        }
    }

    /// The names, outermost first.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|c| *c == b'/').filter(|name| !name.is_empty())
    }

    /// The range of the paths below this one, which is not the root, in their order.
    pub fn below(&self) -> std::ops::Range<LayerPath> {
        let bound = |byte: u8| LayerPath([&self.0[..], &[byte]].concat());
        // The byte after the slash ends it.
        bound(b'/')..bound(b'/' + 1)
    }

    /// Goes into `name`, which is one that a directory has. On disk paths may be of any length.
    pub(crate) fn push(&mut self, name: &[u8]) {
        if !self.0.is_empty() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(name);
    }

    /// Goes back to where the path was `length` bytes long.
    pub(crate) fn cut(&mut self, length: usize) {
        self.0.truncate(length);
    }

    /// This path and one more name.
    ///
    /// # Errors
    /// As [`LayerPath::new`].
    pub fn join(&self, name: &[u8]) -> Result<Self, &'static str> {
        if name.contains(&b'/') {
            return Err("a '/' in a name");
        }
        let mut path = self.0.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self::new(path)
    }
}

impl std::fmt::Display for LayerPath {
    /// As people read it: absolute, with bytes that are not printable escaped.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("/")?;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if c.is_control() { write!(f, "{}", c.escape_default())? } else { write!(f, "{c}")? }
            }
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))?;
        }
        Ok(())
    }
}

impl serde::Serialize for LayerPath {
    /// As bytes: paths need not be UTF-8.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for LayerPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes = Vec::<u8>::deserialize(deserializer)?;
        Self::new(bytes).map_err(serde::de::Error::custom)
    }
}

impl std::fmt::Debug for LayerPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

/// A point in time: seconds since 1970 (negative before) and nanoseconds (0 to 999,999,999).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// The rest.
    pub nanoseconds: u32,
}

/// What every entry has beside its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with set-user-ID, set-group-ID and sticky: `0o7777` at most.
    pub mode: u32,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// Last change of the content.
    pub mtime: Time,
    /// Extended attributes by full name (`user.x`, `security.capability`, `system.posix_acl_access`),
    /// sorted, no name twice. These are the layer's own, by the names a container sees: a target that keeps them where
    /// overlayfs or Vellum has a meaning for such names escapes them ([`crate::attributes::escape`]).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file that is neither regular nor a directory nor a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Node {
    /// A character device with its major and minor number.
    Char(u32, u32),
    /// A block device with its major and minor number.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A unix socket (tar cannot hold one; a copy of a tree can).
    Socket,
}

/// A regular file's bytes, read once from front to back.
///
/// Sparse files come as their data extents: [`FileData::next_extent`] gives the next run of data as
/// (offset, length), and exactly that many bytes are then read. What no extent covers is a hole. A file
/// that is not sparse is one extent. [`BufRead`] hands out the archive's own buffer, so that nothing is copied on the way;
/// its end is the end of the extent. Whoever takes the data takes all of it.
pub trait FileData: BufRead {
    /// The next run of data, in ascending order; `None` after the last.
    ///
    /// # Errors
    /// The archive ends early or its sparse map is wrong.
    fn next_extent(&mut self) -> std::io::Result<Option<(u64, u64)>>;

    /// A file that holds just this content, where whoever writes the archive has one for the target ([`crate::apply::ApplyOptions::twins`]): nobody changes it any
    /// more, and the target may keep it, instead of writing what it reads here. That is to be taken all the same.
    fn twin(&mut self) -> Option<File> {
        None
    }
}

/// Whether an entry could be kept as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// As it is.
    Yes,
    /// Not at all, for this reason, such as a device node for an unprivileged user. The recipe still
    /// gives it back; the caller reports it.
    LeftOut(&'static str),
}

/// Bytes and inodes that a layer takes on disk by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Usage {
    /// Bytes allocated (`st_blocks` × 512), files with several links counted once. On a reflink file
    /// system shared blocks count for each layer that has them.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.inodes += other.inodes;
    }
}

/// What is left to do when a layer that was unpacked on its own is joined to its parent.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Joints {
    /// Directories that the archive did not list but that its entries lie in, parents first; the root among them. They take mode, owner, times
    /// and attributes of the same directory in the layers below, where there is one.
    pub implied: Vec<LayerPath>,
    /// Hard links to files that this layer does not bring: (new name, existing name below).
    pub links: Vec<(LayerPath, LayerPath)>,
    /// Directories with files that stand for character devices 0:0 ([`crate::nested`]); some may be gone again.
    #[serde(default)]
    pub whiteouts: Vec<LayerPath>,
}

impl Joints {
    /// Whether joining brings files and directories into the layer that its target has not counted: the layer is measured once more then.
    pub fn bring_more(&self) -> bool {
        !self.links.is_empty() || !self.whiteouts.is_empty()
    }
}

/// What a finished target reports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finished {
    /// What the layer takes on disk.
    pub usage: Usage,
    /// What joining it must still do.
    pub joints: Joints,
}

/// Takes the content of a file that is about to be replaced. See [`Target::replaced`].
pub type SaveFile<'a> = dyn FnMut(&LayerPath, &mut dyn Read) -> std::io::Result<()> + 'a;

/// Where a layer's entries go. See the module's documentation for the order of calls.
///
/// Each method either does all of its work or fails; after an error the target is dropped, and the
/// driver removes the layer as a whole. Nothing needs to be on disk before the caller's sync.
pub trait Target: Send {
    /// A directory (also the root, whose entry sets the root's own meta).
    ///
    /// # Errors
    /// The file system's, with the path.
    fn dir(&mut self, path: &LayerPath, meta: &Meta) -> Result<(), TargetError>;

    /// A regular file of `size` bytes.
    ///
    /// # Errors
    /// The file system's or the stream's, with the path.
    fn file(
        &mut self,
        path: &LayerPath,
        meta: &Meta,
        size: u64,
        data: &mut dyn FileData,
    ) -> Result<(), TargetError>;

    /// A symbolic link with this text, which is never followed or interpreted.
    ///
    /// # Errors
    /// The file system's, with the path.
    fn symlink(&mut self, path: &LayerPath, meta: &Meta, text: &[u8]) -> Result<(), TargetError>;

    /// A further name `path` for the file `to`, of this layer or of one below.
    ///
    /// # Errors
    /// The file system's; `to` is a directory.
    fn hard_link(&mut self, path: &LayerPath, to: &LayerPath) -> Result<Kept, TargetError>;

    /// A device, pipe or socket.
    ///
    /// # Errors
    /// The file system's, with the path.
    fn node(&mut self, path: &LayerPath, meta: &Meta, node: Node) -> Result<Kept, TargetError>;

    /// Lower layers' `path` is hidden.
    ///
    /// # Errors
    /// The file system's, with the path.
    fn whiteout(&mut self, path: &LayerPath) -> Result<(), TargetError>;

    /// All that lower layers have in the directory `path` is hidden.
    ///
    /// # Errors
    /// The file system's, with the path.
    fn opaque(&mut self, path: &LayerPath) -> Result<(), TargetError>;

    /// Something of this layer at or below `path` may be about to be replaced by another entry: calls `save` with
    /// every regular file of this layer there and its content, because the recipe can no longer take it from the final
    /// tree. Nothing there is no error, and what lower layers have does not count, but does no harm.
    ///
    /// # Errors
    /// The file system's; what `save` returns. Targets that cannot read back answer
    /// [`std::io::ErrorKind::Unsupported`], and archives that name a path twice are then refused.
    fn replaced(&mut self, path: &LayerPath, save: &mut SaveFile<'_>) -> Result<(), TargetError> {
        let _ = save;
        Err(TargetError {
            operation: "read back for the recipe".into(),
            path: path.clone(),
            source: std::io::ErrorKind::Unsupported.into(),
        })
    }

    /// The archive is at its end: set directories' times, count.
    ///
    /// # Errors
    /// The file system's.
    fn finish(self: Box<Self>) -> Result<Finished, TargetError>;
}

/// Why a target could not keep an entry.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {path}")]
pub struct TargetError {
    /// What was attempted: `create the directory`, `write`, `set the attribute user.x of`.
    pub operation: String,
    /// The entry.
    pub path: LayerPath,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

impl TargetError {
    /// For `map_err`.
    pub fn at(operation: impl Into<String>, path: &LayerPath) -> impl FnOnce(std::io::Error) -> Self {
        let (operation, path) = (operation.into(), path.clone());
        move |source| Self { operation, path, source }
    }
}
