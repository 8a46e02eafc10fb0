//! What a container wrote, as the tree of a layer: the upper of overlayfs, read entry by entry.
//!
//! Contents become objects, by a clone where the file system can. A file of which only owner or mode changed (`metacopy`) names the object that it had below. A directory that was renamed
//! (`redirect`) gets what it had below: names and attributes only, since objects are shared.

use crate::objects::Intake;
use crate::tree::{Attr, DEEPEST, Dir, Entry, Leaf, Name, What, flatten};
use rustix::fs::FileType;
use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use vellum_archive::target::{LayerPath, Node as Special, Time};
use vellum_archive::tree::{Form, Node, TreeError, Visit, walk};
use vellum_archive::{XattrForm, attributes};
use vellum_overlayfs::mark;

const FORM: Form = Form { xattrs: XattrForm::Trusted, rootless: false, raw: true };
const OVERLAY: &[u8] = b"trusted.overlay.";
const ESCAPED: &[u8] = b"trusted.overlay.overlay.";

/// Reads an upper that lies over `base`.
///
/// # Errors
/// The file system's; the tree is deeper than a path can be; a mark leads nowhere.
pub(crate) fn convert(
    upper: BorrowedFd<'_>,
    base: Option<&Arc<Dir>>,
    intake: &mut Intake,
) -> Result<Arc<Dir>, TreeError> {
    let mut reading = Reading { base, intake, links: HashMap::new(), levels: Vec::new() };
    walk(upper, FORM, &mut |path, node| {
        reading.entry(path, node)?;
        Ok(Visit::Enter)
    })?;
    reading.close_to(1);
    Ok(reading.levels.pop().map(|level| Arc::new(level.dir)).unwrap_or_default())
}

/// A directory of the upper on the way to where the walk is.
struct Level {
    name: Name,
    dir: Dir,
    /// What it is laid over.
    below: Option<Arc<Dir>>,
    renamed: bool,
}

struct Reading<'a> {
    base: Option<&'a Arc<Dir>>,
    intake: &'a mut Intake,
    /// Files of several names, by inode.
    links: HashMap<u64, Arc<Leaf>>,
    levels: Vec<Level>,
}

impl Reading<'_> {
    fn entry(&mut self, path: &LayerPath, node: &Node<'_>) -> io::Result<()> {
        if path.is_root() {
            let dir = Dir { attr: attr(node)?, opaque: node.is_opaque()?, ..Dir::default() };
            self.levels.push(Level {
                name: Name::from(&b""[..]),
                dir,
                below: self.base.cloned(),
                renamed: false,
            });
            return Ok(());
        }
        let depth = path.names().count();
        if depth > DEEPEST {
            return Err(io::Error::other(format!("it is deeper than {DEEPEST} directories")));
        }
        self.close_to(depth);
        let name = Name::from(node.name.as_bytes());
        if node.is_whiteout() {
            self.add(name, Entry::Whiteout);
        } else if node.file_type() == FileType::Directory {
            let dir = Dir { attr: attr(node)?, opaque: node.is_opaque()?, ..Dir::default() };
            let (below, renamed) = self.below(node, &name, dir.opaque)?;
            self.levels.push(Level { name, dir, below, renamed });
        } else {
            let leaf = self.leaf(node, &name)?;
            self.add(name, Entry::Leaf(leaf));
        }
        Ok(())
    }

    /// Ends the directories that the walk has left.
    fn close_to(&mut self, depth: usize) {
        while self.levels.len() > depth {
            let Some(level) = self.levels.pop() else { return };
            let mut dir = Arc::new(level.dir);
            if level.renamed {
                // Whole, under its new name.
                dir = Arc::new(Dir { opaque: true, ..Arc::unwrap_or_clone(flatten(level.below, &dir)) });
            }
            self.add(level.name, Entry::Dir(dir));
        }
    }

    fn add(&mut self, name: Name, entry: Entry) {
        if let Some(level) = self.levels.last_mut() {
            level.dir.entries.insert(name, entry);
        }
    }

    /// What a directory is laid over, and whether it was renamed.
    fn below(&self, node: &Node<'_>, name: &[u8], opaque: bool) -> io::Result<(Option<Arc<Dir>>, bool)> {
        if opaque {
            return Ok((None, false));
        }
        let redirect = mark(node, FORM.xattrs, "redirect")?;
        match self.look(redirect.as_deref().unwrap_or(name), redirect.is_some())? {
            Some(Entry::Dir(dir)) => Ok((Some(dir), redirect.is_some())),
            _ => Ok((None, redirect.is_some())),
        }
    }

    /// What lies below under the name, or under the path that a redirect says.
    fn look(&self, to: &[u8], redirect: bool) -> io::Result<Option<Entry>> {
        match to.strip_prefix(b"/").filter(|_| redirect) {
            Some(path) => {
                let path = LayerPath::new(path).map_err(io::Error::other)?;
                Ok(self.base.and_then(|base| base.find(&path)).cloned())
            }
            None => {
                let below = self.levels.last().and_then(|level| level.below.as_ref());
                Ok(below.and_then(|dir| dir.entries.get(to)).cloned())
            }
        }
    }

    fn leaf(&mut self, node: &Node<'_>, name: &[u8]) -> io::Result<Arc<Leaf>> {
        #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
        let (inode, links) = (node.stat.st_ino as u64, node.stat.st_nlink as u64);
        if let Some(known) = self.links.get(&inode) {
            return Ok(Arc::clone(known));
        }
        let (major, minor) = (rustix::fs::major(node.stat.st_rdev), rustix::fs::minor(node.stat.st_rdev));
        let what = match node.file_type() {
            FileType::Symlink => What::Symlink(node.link_text()?.into()),
            FileType::CharacterDevice => What::Node(Special::Char(major, minor)),
            FileType::BlockDevice => What::Node(Special::Block(major, minor)),
            FileType::Fifo => What::Node(Special::Fifo),
            FileType::Socket => What::Node(Special::Socket),
            _ => self.file(node, name)?,
        };
        let leaf = Arc::new(Leaf { attr: attr(node)?, what });
        if links > 1 {
            self.links.insert(inode, Arc::clone(&leaf));
        }
        Ok(leaf)
    }

    fn file(&mut self, node: &Node<'_>, name: &[u8]) -> io::Result<What> {
        if mark(node, FORM.xattrs, "metacopy")?.is_some() {
            let redirect = mark(node, FORM.xattrs, "redirect")?;
            return match self.look(redirect.as_deref().unwrap_or(name), redirect.is_some())? {
                Some(Entry::Leaf(leaf)) if matches!(leaf.what, What::File { .. }) => Ok(leaf.what.clone()),
                _ => Err(io::Error::other("the data that a metacopy file names are missing")),
            };
        }
        let (size, content) = self.intake.take_file(node.open()?)?;
        Ok(What::File { size, content })
    }
}

/// Owner, mode, time and attributes as they are on disk, without overlayfs's own marks.
fn attr(node: &Node<'_>) -> io::Result<Attr> {
    let mut xattrs = attributes::all(node.dir, node.name.as_bytes())?;
    xattrs.retain(|(name, _)| !name.starts_with(OVERLAY) || name.starts_with(ESCAPED));
    let stat = &node.stat;
    #[allow(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    let mtime = Time { seconds: stat.st_mtime as i64, nanoseconds: stat.st_mtime_nsec as u32 };
    let xattrs = (!xattrs.is_empty()).then(|| Arc::new(xattrs));
    Ok(Attr { mode: stat.st_mode & 0o7777, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs })
}
