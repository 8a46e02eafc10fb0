//! Differences between two trees, told entry by entry.

use crate::{Driver, Result, Views};
use vellum_archive::target::LayerPath;
use vellum_archive::tree::Node;
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
    let _ = (driver, base, views, sink);
    Err(crate::Error::new(crate::ErrorKind::Unsupported, "diff", "being written").layer(id))
}
