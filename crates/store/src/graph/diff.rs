//! What a layer is, told: as a tar, as changes, as a number.

use super::{Graph, Held};
use crate::locks::Hold;
use crate::{Code, Error, Result};
use std::collections::BTreeSet;
use std::io::Write;
use vellum_archive::target::LayerPath;
use vellum_driver::sinks::{Changes, TarSink};
use vellum_driver::{Change, DiffEntry, DiffSink};
use vellum_types::LayerId;

impl Graph<'_> {
    /// Writes a tar of what makes the layer's tree different from `parent`'s, or from nothing. Of a layer that was filled by
    /// [`Graph::apply`], and its own parent, the very tar that came in.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Damaged`]: what was written until then is to be thrown away; what `out` returns.
    pub fn diff(&self, id: &str, parent: Option<&str>, out: &mut dyn Write) -> Result<()> {
        let held = self.hold(id, Hold::Shared)?;
        if held.layer.recipe.is_some() && held.row.parent.as_deref() == parent {
            return self.store().layer_tar(held.layer.id, out).map(drop);
        }
        let mut sink = TarSink::new(out);
        self.tell(&held, parent, &mut sink)?;
        let (out, _) = sink.finish()?;
        out.flush().map_err(|e| Error::caused(crate::error::code_of(&e), "write the layer's tar", e))
    }

    /// Tells what makes the layer's tree different from `parent`'s, or from nothing, sorted by path; parents of what changed as modified.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's.
    pub fn changes(&self, id: &str, parent: Option<&str>) -> Result<Vec<(Change, LayerPath)>> {
        let mut sink = Changes::default();
        self.tell(&self.hold(id, Hold::Shared)?, parent, &mut sink)?;
        Ok(sink.0)
    }

    /// The sizes, added up, of the files that make the layer's tree different from `parent`'s, or from nothing.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's.
    pub fn diff_size(&self, id: &str, parent: Option<&str>) -> Result<u64> {
        let mut sink = Sizes::default();
        self.tell(&self.hold(id, Hold::Shared)?, parent, &mut sink)?;
        Ok(sink.bytes)
    }

    fn tell(&self, held: &Held, parent: Option<&str>, sink: &mut dyn DiffSink) -> Result<()> {
        let store = self.store();
        let base = parent.map(|parent| self.base(held, parent)).transpose()?;
        let _reading = store.reading_layers()?;
        Ok(held.driver.diff(held.layer.id, base, &store.mounter, sink)?)
    }

    fn base(&self, held: &Held, parent: &str) -> Result<LayerId> {
        let below = self.snapshots.stat(parent)?.layer;
        if Some(below) == held.layer.parent {
            return Ok(below);
        }
        let below = self.hold(parent, Hold::Shared)?;
        if below.layer.driver != held.layer.driver {
            let reason = "they are kept by different drivers";
            return Err(Error::new(
                Code::Unsupported,
                format!("compare the layers '{}' and '{parent}'", held.row.key),
                reason,
            ));
        }
        Ok(below.layer.id)
    }
}

/// Adds up the sizes of files, each once however many names it has.
#[derive(Default)]
struct Sizes {
    bytes: u64,
    linked: BTreeSet<(u64, u64)>,
}

impl DiffSink for Sizes {
    fn entry(&mut self, entry: &DiffEntry<'_>) -> vellum_driver::Result<()> {
        let Some(node) = entry.node else { return Ok(()) };
        let stat = &node.stat;
        let file = node.file_type() == rustix::fs::FileType::RegularFile;
        if file && (stat.st_nlink < 2 || self.linked.insert((stat.st_dev, stat.st_ino))) {
            self.bytes += stat.st_size.cast_unsigned();
        }
        Ok(())
    }
}
