//! What the driver must still do when the layer is joined, as it is gathered while an archive is read.

use crate::target::{Joints, LayerPath};
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// The most bytes of names that are remembered: a hundred thousand directories that an archive does not list, where images
/// have some thousand at most.
const MOST_BYTES: usize = 16 << 20;

/// What an entry costs beside its names.
const ENTRY: usize = 64;

/// Sorted by path, so that what lies below a directory is found without a look at the rest: an archive may replace
/// directories as often as it has entries.
pub(super) struct Noted {
    implied: BTreeSet<LayerPath>,
    links: BTreeMap<LayerPath, LayerPath>,
    whiteouts: BTreeSet<LayerPath>,
    /// Of all names that were ever noted: what is forgotten is not given back, so that noting and forgetting ends too.
    bytes: usize,
}

impl Noted {
    /// `root`: the root is not listed yet.
    pub(super) fn new(root: bool) -> Self {
        let implied = root.then(LayerPath::root).into_iter().collect();
        Self { implied, links: BTreeMap::new(), whiteouts: BTreeSet::new(), bytes: 0 }
    }

    fn count(&mut self, names: &[&LayerPath]) -> io::Result<()> {
        self.bytes += names.iter().map(|name| name.as_bytes().len() + ENTRY).sum::<usize>();
        if self.bytes <= MOST_BYTES {
            return Ok(());
        }
        let text = "more unlisted directories, links to lower layers and whiteouts for inner overlays than allowed (16 MiB of names)";
        Err(io::Error::other(text))
    }

    /// A directory that the archive has not listed.
    pub(super) fn imply(&mut self, path: &LayerPath) -> io::Result<()> {
        self.count(&[path])?;
        self.implied.insert(path.clone());
        Ok(())
    }

    /// The archive lists the directory after all.
    pub(super) fn listed(&mut self, path: &LayerPath) {
        if !self.implied.is_empty() {
            self.implied.remove(path);
        }
    }

    pub(super) fn is_implied(&self, path: &LayerPath) -> bool {
        self.implied.contains(path)
    }

    /// A hard link to a file of lower layers.
    pub(super) fn link(&mut self, path: &LayerPath, to: LayerPath) -> io::Result<()> {
        self.count(&[path, &to])?;
        self.links.insert(path.clone(), to);
        Ok(())
    }

    /// Something else takes the place of what may have been such a link.
    pub(super) fn no_link(&mut self, path: &LayerPath) {
        if !self.links.is_empty() {
            self.links.remove(path);
        }
    }

    pub(super) fn links(&self) -> &BTreeMap<LayerPath, LayerPath> {
        &self.links
    }

    /// The entry stands for a device 0:0.
    pub(super) fn whiteout_in(&mut self, path: &LayerPath) -> io::Result<()> {
        if let Some((dir, _)) = path.split()
            && !self.whiteouts.contains(&dir)
        {
            self.count(&[&dir])?;
            self.whiteouts.insert(dir);
        }
        Ok(())
    }

    pub(super) fn has_whiteouts(&self, dir: &LayerPath) -> bool {
        self.whiteouts.contains(dir)
    }

    /// What was at the path, and below it, is gone.
    pub(super) fn forget(&mut self, path: &LayerPath) {
        self.implied.remove(path);
        self.links.remove(path);
        let below: Vec<LayerPath> = self.implied.range(path.below()).cloned().collect();
        below.iter().for_each(|path| _ = self.implied.remove(path));
        let below: Vec<LayerPath> = self.links.range(path.below()).map(|(path, _)| path.clone()).collect();
        below.iter().for_each(|path| _ = self.links.remove(path));
    }

    pub(super) fn into_joints(self) -> Joints {
        Joints {
            implied: self.implied.into_iter().collect(),
            links: self.links.into_iter().collect(),
            whiteouts: self.whiteouts.into_iter().collect(),
        }
    }
}
