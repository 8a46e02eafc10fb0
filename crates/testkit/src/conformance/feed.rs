//! What goes into a layer through the driver's target.

use crate::tree::{Entry, Tree, What};
use crate::whole::Whole;
use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read};
use vellum_archive::target::{FileData, LayerPath, Meta, Node as Special, Target, Time};
use vellum_archive::tree::Node;
use vellum_driver::{Change, DiffEntry, DiffSink};

/// The content of a layer's archive: entries, and what they hide of the layers below.
#[derive(Debug, Clone, Default)]
pub struct Content {
    tree: Tree,
    whiteouts: Vec<Vec<u8>>,
    opaque: Vec<Vec<u8>>,
    unlisted: Vec<Vec<u8>>,
    marks_last: bool,
}

impl Content {
    /// The entries of a tree.
    pub fn of(tree: Tree) -> Self {
        Self { tree, ..Self::default() }
    }

    /// Hides an entry of the layers below.
    #[must_use]
    pub fn whiteout(mut self, path: impl AsRef<[u8]>) -> Self {
        self.whiteouts.push(path.as_ref().to_vec());
        self
    }

    /// Hides all that the layers below have in a directory.
    #[must_use]
    pub fn opaque(mut self, path: impl AsRef<[u8]>) -> Self {
        self.opaque.push(path.as_ref().to_vec());
        self
    }

    /// Does not list this entry of the tree, as an archive that leaves parents out.
    #[must_use]
    pub fn unlisted(mut self, path: impl AsRef<[u8]>) -> Self {
        self.unlisted.push(path.as_ref().to_vec());
        self
    }

    /// Whiteouts and opaque marks come after the entries, not before.
    #[must_use]
    pub fn marks_last(mut self) -> Self {
        self.marks_last = true;
        self
    }

    /// Tells the target.
    ///
    /// # Errors
    /// The target's.
    pub fn feed(&self, target: &mut dyn Target) -> vellum_driver::Result<()> {
        if !self.marks_last {
            self.marks(target)?;
        }
        let is_link = |entry: &Entry| matches!(entry.what, What::HardLink(_));
        let files = self.tree.entries.iter().filter(|(_, entry)| !is_link(entry));
        let links = self.tree.entries.iter().filter(|(_, entry)| is_link(entry));
        for (path, entry) in files.chain(links).filter(|(path, _)| !self.unlisted.contains(path)) {
            feed(target, &layer_path(path)?, entry)?;
        }
        if self.marks_last {
            self.marks(target)?;
        }
        Ok(())
    }

    fn marks(&self, target: &mut dyn Target) -> vellum_driver::Result<()> {
        for path in &self.opaque {
            target.opaque(&layer_path(path)?)?;
        }
        for path in &self.whiteouts {
            target.whiteout(&layer_path(path)?)?;
        }
        Ok(())
    }
}

fn layer_path(path: &[u8]) -> vellum_driver::Result<LayerPath> {
    LayerPath::new(path).map_err(|reason| {
        vellum_driver::Error::new(vellum_driver::ErrorKind::Invalid, "name an entry", reason)
    })
}

fn feed(target: &mut dyn Target, path: &LayerPath, entry: &Entry) -> vellum_driver::Result<()> {
    let meta = Meta {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: Time { seconds: entry.time.0, nanoseconds: entry.time.1 },
        xattrs: entry.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())).collect(),
    };
    match &entry.what {
        What::Dir => target.dir(path, &meta)?,
        What::File { size, data } => {
            let mut data = Extents { data: data.clone(), at: 0, read: 0 };
            target.file(path, &meta, *size, &mut data)?;
        }
        What::HardLink(to) => {
            let _ = target.hard_link(path, &layer_path(to)?)?;
        }
        What::Symlink(text) => target.symlink(path, &meta, text)?,
        What::Char(major, minor) => special(target, path, &meta, Special::Char(*major, *minor))?,
        What::Block(major, minor) => special(target, path, &meta, Special::Block(*major, *minor))?,
        What::Fifo => special(target, path, &meta, Special::Fifo)?,
        What::Socket => special(target, path, &meta, Special::Socket)?,
    }
    Ok(())
}

/// Whether it could be kept is seen when the tree is read.
fn special(
    target: &mut dyn Target,
    path: &LayerPath,
    meta: &Meta,
    node: Special,
) -> vellum_driver::Result<()> {
    let _ = target.node(path, meta, node)?;
    Ok(())
}

/// A declared file's data, extent by extent.
struct Extents {
    data: Vec<(u64, Vec<u8>)>,
    /// The number of extents begun.
    at: usize,
    /// Bytes read of the last one begun.
    read: usize,
}

impl FileData for Extents {
    fn next_extent(&mut self) -> io::Result<Option<(u64, u64)>> {
        let next = self.data.get(self.at).map(|(offset, bytes)| (*offset, bytes.len() as u64));
        self.at += 1;
        self.read = 0;
        Ok(next)
    }
}

impl Extents {
    fn rest(&self) -> &[u8] {
        let current = self.at.checked_sub(1).and_then(|at| self.data.get(at));
        current.map_or(&[], |(_, bytes)| &bytes[self.read..])
    }
}

impl Read for Extents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.rest().read(buffer)?;
        self.read += n;
        Ok(n)
    }
}

impl BufRead for Extents {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        Ok(self.rest())
    }

    fn consume(&mut self, amount: usize) {
        self.read += amount;
    }
}

/// Feeds what a driver tells of a layer into a target: what an engine does that writes a tar and unpacks it.
pub struct Replay<'a> {
    target: &'a mut dyn Target,
    links: HashMap<(u64, u64), LayerPath>,
}

impl std::fmt::Debug for Replay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Replay").field("links", &self.links).finish_non_exhaustive()
    }
}

impl<'a> Replay<'a> {
    /// Into this target.
    pub fn new(target: &'a mut dyn Target) -> Self {
        Self { target, links: HashMap::new() }
    }

    fn node(&mut self, path: &LayerPath, node: &Node<'_>) -> vellum_driver::Result<()> {
        use rustix::fs::FileType;
        let failed = |error: io::Error| vellum_driver::Error::system(format!("read {path}"), error);
        let kind = node.file_type();
        if kind != FileType::Directory && node.stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(node.stat.st_dev, node.stat.st_ino)) {
                let _ = self.target.hard_link(path, first)?;
                return Ok(());
            }
            self.links.insert((node.stat.st_dev, node.stat.st_ino), path.clone());
        }
        let meta = node.meta().map_err(failed)?;
        let special = node.special().map_err(failed)?;
        match kind {
            FileType::Directory => self.target.dir(path, &meta)?,
            FileType::RegularFile if special.is_none() => {
                let size = u64::try_from(node.stat.st_size).unwrap_or(0);
                let mut data = Whole::new(BufReader::new(node.open().map_err(failed)?), size);
                self.target.file(path, &meta, size, &mut data)?;
            }
            FileType::Symlink => {
                let text = node.link_text().map_err(failed)?;
                self.target.symlink(path, &meta, &text)?;
            }
            _ => {
                if let Some(device) = special {
                    let _ = self.target.node(path, &meta, device)?;
                }
            }
        }
        Ok(())
    }
}

impl DiffSink for Replay<'_> {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> vellum_driver::Result<()> {
        match (entry.change, entry.node) {
            (Change::Deleted, _) => Ok(self.target.whiteout(entry.path)?),
            (_, Some(node)) => self.node(entry.path, node),
            (_, None) => Err(vellum_driver::Error::new(
                vellum_driver::ErrorKind::Invalid,
                format!("replay {}", entry.path),
                "an entry that is there was told without its node",
            )),
        }
    }
}
