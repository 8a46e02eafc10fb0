//! Differences between two trees, told entry by entry.
//!
//! # What counts as different
//!
//! Two entries of one path are the same when these are equal: type, permission bits, owner, extended attributes, time of the
//! last change of the content in nanoseconds; of a file also size, of a link its text, of a device its numbers. Then:
//!
//! - Archives often hold whole seconds only. When both times of a file have none but whole seconds, equal sizes prove nothing, and the contents
//!   are compared (containerd's rule; nothing ever sleeps to the next second, as other engines do).
//! - One inode with one change time is the same whatever else: nothing is read.
//! - A file with more links than in the base is different, although its content is not: a new name for it lies somewhere, and both
//!   names must be in the archive for the link to come out of it.
//! - Sizes and link counts of directories say nothing and do not count. Their times do: a commit gives back what the container had.
//!
//! # How it is told
//!
//! Entries come as a tar wants them: a directory before what is in it, names sorted by bytes; what lies in a deleted directory is not
//! told, what lies in a new one is. Directories on the way to a difference are told as modified ([`DiffEntry::itself`] is false) unless they
//! are told anyway, except the root, which is told only for its own sake.

mod same;
mod walk;

pub use walk::{Candidates, Guide, Standing, guided_diff, narrowed_diff};

use crate::{Driver, MountOptions, Result, Views};
use vellum_archive::target::LayerPath;
use vellum_archive::tree::{Form, Node};
use vellum_types::LayerId;

/// How an entry of the tree differs from the base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// There is an entry of this path in both, and it is not the same; or it is the parent of one that differs.
    Modified,
    /// Only the tree has it.
    Added,
    /// Only the base has it. What lies below it is not told.
    Deleted,
}

impl Change {
    /// The letter that engines show: `A`, `C` or `D`.
    pub fn letter(self) -> char {
        match self {
            Self::Modified => 'C',
            Self::Added => 'A',
            Self::Deleted => 'D',
        }
    }
}

/// One difference.
#[derive(Debug)]
pub struct DiffEntry<'a> {
    /// Where.
    pub path: &'a LayerPath,
    /// How.
    pub change: Change,
    /// The entry itself, to read; `None` for [`Change::Deleted`].
    pub node: Option<&'a Node<'a>>,
    /// False for a directory that is told only because something in it differs. A tar of the layer
    /// lists it all the same (docker and podman do, and it keeps the parent's owner and mode where a layer is unpacked on its own).
    pub itself: bool,
}

/// Takes differences: writes a tar, prints lines, adds up sizes, fills a target.
pub trait DiffSink {
    /// The next difference, in the order of [`Driver::diff`].
    ///
    /// # Errors
    /// Ends the diff and is handed on.
    fn entry(&mut self, entry: &DiffEntry<'_>) -> Result<()>;
}

/// The difference between the trees of `id` and `base` (or nothing), by walking both: right for every driver, at the cost of both trees.
///
/// # Errors
/// As [`Driver::diff`].
pub fn generic_diff(
    driver: &dyn Driver,
    id: LayerId,
    base: Option<LayerId>,
    views: &dyn Views,
    sink: &mut dyn DiffSink,
) -> Result<()> {
    let options = MountOptions { read_only: true, ..MountOptions::default() };
    let tree = views.view(&driver.mounts(id, &options)?)?;
    let base = base.map(|base| views.view(&driver.mounts(base, &options)?)).transpose()?;
    let config = driver.config();
    let form = Form { xattrs: config.xattrs, rootless: config.rootless, raw: false };
    walk::full_diff(tree.root(), base.as_ref().map(|base| base.root()), form, sink)
        .map_err(|error| error.layer(id))
}
