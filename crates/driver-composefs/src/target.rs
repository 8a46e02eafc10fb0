//! Where an archive is unpacked: contents become objects, the rest a tree in memory, which is written when the archive is at its end.
//!
//! What an entry means is what it means in [`vellum_archive::folder`] in the style of overlay; here it costs no system calls.

use crate::objects::Intake;
use crate::parts::Parts;
use crate::tree::{Attr, Content, Dir, Entry, Leaf, What};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use vellum_archive::target::{
    FileData, Finished, Joints, Kept, LayerPath, Meta, Node, SaveFile, Target, TargetError,
};
use vellum_archive::{XattrForm, attributes, nested};
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

/// The most bytes of names that are remembered for joining, as [`vellum_archive::folder`] has it.
const MOST_BYTES: usize = 16 << 20;
const ENTRY: usize = 64;

/// An active layer being filled.
pub(crate) struct TreeTarget {
    parts: Arc<Parts>,
    layer: LayerId,
    intake: Intake,
    root: Arc<Dir>,
    implied: BTreeSet<LayerPath>,
    links: BTreeMap<LayerPath, LayerPath>,
    whiteouts: BTreeSet<LayerPath>,
    noted: usize,
    _lock: FileLock,
}

fn at<T>(result: io::Result<T>, operation: &str, path: &LayerPath) -> Result<T, TargetError> {
    result.map_err(TargetError::at(operation, path))
}

/// The parent and the name of a path that is not the root.
fn split(path: &LayerPath) -> (LayerPath, &[u8]) {
    path.split().unwrap_or((LayerPath::root(), b""))
}

impl TreeTarget {
    /// Fills `layer`, which has `root` so far. The lock is held shared.
    pub(crate) fn new(
        parts: Arc<Parts>,
        layer: LayerId,
        root: Arc<Dir>,
        intake: Intake,
        lock: FileLock,
    ) -> Self {
        let implied = BTreeSet::from([LayerPath::root()]);
        let (links, whiteouts) = (BTreeMap::new(), BTreeSet::new());
        Self { parts, layer, intake, root, implied, links, whiteouts, noted: 0, _lock: lock }
    }

    fn attr(meta: &Meta) -> Attr {
        let escaped =
            |name: &[u8]| attributes::escape(name, Some(XattrForm::Trusted)).unwrap_or(name.to_vec());
        let mut xattrs: Vec<_> =
            meta.xattrs.iter().map(|(name, value)| (escaped(name), value.clone())).collect();
        xattrs.sort_unstable();
        Attr::of(meta, xattrs)
    }

    fn note(&mut self, names: &[&LayerPath]) -> io::Result<()> {
        self.noted += names.iter().map(|name| name.as_bytes().len() + ENTRY).sum::<usize>();
        if self.noted <= MOST_BYTES {
            return Ok(());
        }
        let text = "more unlisted directories, links to lower layers and whiteouts for inner overlays than allowed (16 MiB of names)";
        Err(io::Error::other(text))
    }

    /// What was at the path, and below it, is gone.
    fn forget(&mut self, path: &LayerPath) {
        self.implied.remove(path);
        self.links.remove(path);
        let gone: Vec<_> = self.implied.range(path.below()).cloned().collect();
        gone.iter().for_each(|path| _ = self.implied.remove(path));
        let gone: Vec<_> = self.links.range(path.below()).map(|(path, _)| path.clone()).collect();
        gone.iter().for_each(|path| _ = self.links.remove(path));
    }

    /// The directory at `path`, made where it is missing; what is in the way goes.
    fn enter(&mut self, path: &LayerPath) -> io::Result<&mut Dir> {
        if self.root.dir(path).is_none() {
            let above = split(path).0;
            self.enter(&above)?;
            self.make_dir(path)?;
            self.note(&[path])?;
            self.implied.insert(path.clone());
        }
        Arc::make_mut(&mut self.root).dir_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Makes a directory in one that is there, in the place of what is no directory.
    fn make_dir(&mut self, path: &LayerPath) -> io::Result<()> {
        let (parent, name) = split(path);
        let above = Arc::make_mut(&mut self.root).dir_mut(&parent).ok_or(io::ErrorKind::NotFound)?;
        let opaque = above.entries.contains_key(name);
        above.entries.insert(name.into(), Entry::Dir(Arc::new(Dir { opaque, ..Dir::implied() })));
        self.links.remove(path);
        Ok(())
    }

    /// A directory that the archive lists.
    fn list(&mut self, path: &LayerPath, attr: Attr) -> io::Result<()> {
        if self.root.dir(path).is_none() {
            self.enter(&split(path).0)?;
            self.make_dir(path)?;
        }
        self.enter(path)?.attr = attr;
        self.implied.remove(path);
        Ok(())
    }

    fn put(&mut self, path: &LayerPath, entry: Entry) -> io::Result<()> {
        let (parent, name) = split(path);
        let name = name.into();
        let replaced = self.enter(&parent)?.entries.insert(name, entry);
        self.links.remove(path);
        if matches!(replaced, Some(Entry::Dir(_))) {
            self.forget(path);
        }
        Ok(())
    }

    /// Whether this layer has something at `path` or above that is no directory: then all that lower layers have below is hidden already.
    fn is_covered(&self, path: &LayerPath) -> bool {
        let mut dir = &*self.root;
        let mut here = LayerPath::root();
        for name in path.names() {
            let Ok(next) = here.join(name) else { return false };
            here = next;
            if self.links.contains_key(&here) {
                return true;
            }
            match dir.entries.get(name) {
                None => return false,
                Some(Entry::Dir(below)) => dir = below,
                Some(_) => return true,
            }
        }
        false
    }

    /// Whether a directory came into being only for whiteouts in it.
    fn holds_only_whiteouts(&self, path: &LayerPath) -> bool {
        fn only(target: &TreeTarget, path: &LayerPath, dir: &Dir) -> bool {
            target.implied.contains(path)
                && dir.entries.iter().all(|(name, entry)| match entry {
                    Entry::Whiteout => true,
                    Entry::Leaf(_) => false,
                    Entry::Dir(below) => path.join(name).is_ok_and(|path| only(target, &path, below)),
                })
        }
        self.root.dir(path).is_some_and(|dir| only(self, path, dir))
            && self.links.range(path.below()).next().is_none()
    }

    fn hide(&mut self, path: &LayerPath) -> io::Result<()> {
        let (parent, _) = split(path);
        if self.is_covered(&parent) || self.links.contains_key(path) {
            return Ok(());
        }
        self.enter(&parent)?;
        match self.root.find(path) {
            Some(Entry::Leaf(_) | Entry::Whiteout) => Ok(()),
            Some(Entry::Dir(_)) if !self.holds_only_whiteouts(path) => {
                self.enter(path)?.opaque = true;
                Ok(())
            }
            Some(Entry::Dir(_)) | None => self.put(path, Entry::Whiteout),
        }
    }

    fn link(&mut self, path: &LayerPath, to: &LayerPath) -> io::Result<()> {
        if let Some(lower) = self.links.get(to).cloned() {
            return self.note_link(path, lower);
        }
        match self.root.find(to) {
            Some(Entry::Dir(_)) => Err(io::ErrorKind::IsADirectory.into()),
            None if to.is_root() => Err(io::ErrorKind::IsADirectory.into()),
            Some(Entry::Leaf(_)) if path == to => Ok(()),
            Some(Entry::Leaf(leaf)) => {
                let leaf = Arc::clone(leaf);
                if to.split().is_some_and(|(dir, _)| self.whiteouts.contains(&dir)) {
                    self.whiteout_in(path)?;
                }
                self.put(path, Entry::Leaf(leaf))
            }
            Some(Entry::Whiteout) | None if path == to => Err(io::ErrorKind::NotFound.into()),
            Some(Entry::Whiteout) | None => self.note_link(path, to.clone()),
        }
    }

    /// A link to a file of the layers below: made when the layer is joined.
    fn note_link(&mut self, path: &LayerPath, lower: LayerPath) -> io::Result<()> {
        let (parent, name) = split(path);
        self.enter(&parent)?.entries.remove(name);
        self.forget(path);
        self.note(&[path, &lower])?;
        self.links.insert(path.clone(), lower);
        Ok(())
    }

    fn whiteout_in(&mut self, path: &LayerPath) -> io::Result<()> {
        let (dir, _) = split(path);
        if !self.whiteouts.contains(&dir) {
            self.note(&[&dir])?;
            self.whiteouts.insert(dir);
        }
        Ok(())
    }

    fn leaf(&mut self, path: &LayerPath, attr: Attr, what: What) -> io::Result<()> {
        self.put(path, Entry::Leaf(Arc::new(Leaf { attr, what })))
    }

    fn save(&self, path: &LayerPath, entry: &Entry, save: &mut SaveFile<'_>) -> io::Result<()> {
        match entry {
            Entry::Dir(dir) => dir.entries.iter().try_for_each(|(name, entry)| {
                self.save(&path.join(name).map_err(io::Error::other)?, entry, save)
            }),
            Entry::Leaf(leaf) => match &leaf.what {
                What::File { content: Content::Inline(bytes), .. } => save(path, &mut &bytes[..]),
                What::File { content: Content::Object(digest), .. } => {
                    save(path, &mut self.parts.objects.read(digest)?)
                }
                _ => Ok(()),
            },
            Entry::Whiteout => Ok(()),
        }
    }
}

impl Target for TreeTarget {
    fn dir(&mut self, path: &LayerPath, meta: &Meta) -> Result<(), TargetError> {
        at(self.list(path, Self::attr(meta)), "create the directory", path)
    }

    fn file(
        &mut self,
        path: &LayerPath,
        meta: &Meta,
        size: u64,
        data: &mut dyn FileData,
    ) -> Result<(), TargetError> {
        let content = at(self.intake.take(size, data), "write", path)?;
        at(self.leaf(path, Self::attr(meta), What::File { size, content }), "create", path)
    }

    fn symlink(&mut self, path: &LayerPath, meta: &Meta, text: &[u8]) -> Result<(), TargetError> {
        // What the system would say of it.
        if text.is_empty() || text.len() > 4095 {
            let kind = if text.is_empty() { io::ErrorKind::NotFound } else { io::ErrorKind::InvalidFilename };
            return at(Err(kind.into()), "create the link", path);
        }
        at(self.leaf(path, Self::attr(meta), What::Symlink(text.into())), "create the link", path)
    }

    fn hard_link(&mut self, path: &LayerPath, to: &LayerPath) -> Result<Kept, TargetError> {
        at(self.link(path, to), "make a hard link to", to)?;
        Ok(Kept::Yes)
    }

    fn node(&mut self, path: &LayerPath, meta: &Meta, node: Node) -> Result<Kept, TargetError> {
        let mut attr = Self::attr(meta);
        let what = if node == Node::Char(0, 0) {
            if !self.parts.features.nested {
                let reason = "overlayfs takes it for a whiteout of its own, and this kernel's has no other form of it (Linux 6.8)";
                let error = io::Error::new(io::ErrorKind::Unsupported, reason);
                return at(Err(error), "keep the character device 0:0", path);
            }
            let mut xattrs = attr.xattrs().to_vec();
            nested::mark_in(&mut xattrs, XattrForm::Trusted, false);
            attr.xattrs = Some(Arc::new(xattrs));
            at(self.whiteout_in(path), "note the directory of", path)?;
            What::File { size: 0, content: Content::Inline(Box::default()) }
        } else {
            What::Node(node)
        };
        at(self.leaf(path, attr, what), "create the node", path)?;
        Ok(Kept::Yes)
    }

    fn whiteout(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        at(self.hide(path), "create the whiteout", path)
    }

    fn opaque(&mut self, path: &LayerPath) -> Result<(), TargetError> {
        if !self.is_covered(path) {
            at(self.enter(path), "mark as opaque", path)?.opaque = true;
        }
        Ok(())
    }

    fn replaced(&mut self, path: &LayerPath, save: &mut SaveFile<'_>) -> Result<(), TargetError> {
        let root = Entry::Dir(Arc::clone(&self.root));
        let entry = if path.is_root() { Some(&root) } else { self.root.find(path) };
        match entry {
            Some(entry) => {
                at(self.intake.settle(), "write", path)?;
                at(self.save(path, entry, save), "read back for the recipe", path)
            }
            None => Ok(()),
        }
    }

    fn finish(mut self: Box<Self>) -> Result<Finished, TargetError> {
        let root = LayerPath::root();
        at(self.intake.settle(), "write the files of", &root)?;
        let written =
            at(self.parts.put_tree(self.layer, &self.root, &self.intake.own), "write the tree of", &root)?;
        at(self.parts.dress_upper(self.layer, &self.root.attr), "set the meta of", &root)?;
        let mut usage = self.intake.made;
        usage += written;
        let joints = Joints {
            implied: self.implied.into_iter().collect(),
            links: self.links.into_iter().collect(),
            whiteouts: self.whiteouts.into_iter().collect(),
        };
        Ok(Finished { usage, joints })
    }
}
