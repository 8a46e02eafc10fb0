//! ApplyDiff: a tar becomes a layer's content.

use super::Graph;
use crate::catalog::layers::Role;
use crate::catalog::{Durability, layers, snapshots};
use crate::containers::{finished, layer_file};
use crate::faults::point;
use crate::load::apply_stream;
use crate::locks::{Hold, Owner};
use crate::stream::{Staged, Stoppable};
use crate::{Code, Error, Result, SnapshotKind, SnapshotRow};
use std::io::Read;
use vellum_driver::Ability;
use vellum_types::LayerId;

impl Graph<'_> {
    /// Unpacks a tar into an empty layer, which is committed then, durably. Gives the sizes of its files, added up.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Invalid`]: it has another parent, or holds something already; [`Code::InUse`]: it is mounted; [`Code::Archive`]: the
    /// archive is damaged, or hostile; [`Code::Full`]. The layer is as it was.
    pub fn apply(&self, id: &str, parent: Option<&str>, tar: &mut (dyn Read + Send)) -> Result<u64> {
        let store = self.store();
        let held = self.hold_as_it_is(id, Hold::Alone)?;
        let wrong = |code, reason: &str| {
            Err(Error::new(code, format!("unpack the archive into the layer '{id}'"), reason))
        };
        if held.row.kind != SnapshotKind::Active {
            return wrong(Code::Invalid, "it is filled already, or another layer lies on it");
        }
        if held.row.parent.as_deref() != parent {
            return wrong(Code::Invalid, "it was made on another parent");
        }
        if held.layer.driver != store.driver.name() {
            return wrong(Code::Unsupported, "another driver keeps it");
        }
        if store.mounter.mounted(held.layer.id).map_err(Error::from)?.is_some() {
            return wrong(Code::InUse, "it is mounted");
        }
        if !self.is_empty(&held)? {
            return wrong(Code::Invalid, "it was written to");
        }
        store.check_floor("unpack the archive")?;
        let below = store.chain_of(held.layer.parent)?;
        point("store.graph.apply-begin")?;
        let content = store.operate(|owner| {
            let mut tar = tar;
            let staged = store.stage(owner, Role::Snapshot, &below, |new, stop| {
                apply_stream(store, new, &mut Stoppable { input: &mut tar, stop }, None)
            })?;
            self.record(owner, &held.row, below.top(), &staged)?;
            Ok(staged.filled.content)
        })?;
        let old = store.catalog.read(|tx| layers::get(tx, held.layer.id))?;
        store.finish_removal(old.as_slice())?;
        store.empty_trash_later();
        Ok(content)
    }

    /// Whether nothing was written to the layer since it was made.
    fn is_empty(&self, held: &super::Held) -> Result<bool> {
        let store = self.store();
        if held.layer.fresh {
            if !held.driver.capabilities().has(Ability::InstantCreate) {
                // Only recorded so far.
                return Ok(true);
            }
            store.make_whole_locked(held.layer.id)?;
        }
        let mut changes = vellum_driver::sinks::Changes::default();
        let _reading = store.reading_layers()?;
        held.driver.diff(held.layer.id, held.layer.parent, &store.mounter, &mut changes)?;
        Ok(changes.0.is_empty())
    }

    /// One transaction gives docker's layer its content.
    fn record(
        &self,
        owner: &Owner,
        row: &SnapshotRow,
        below: Option<LayerId>,
        staged: &Staged,
    ) -> Result<()> {
        let store = self.store();
        let filled = &staged.filled;
        let mut file = layer_file(staged.id, Role::Snapshot, below, row.created, None);
        file.diff_id = Some(filled.diff_id);
        file.usage = filled.finished.usage;
        file.recipe = Some(filled.recipe);
        file.tar_size = filled.tar_size;
        let committed = SnapshotKind::Committed;
        file.snapshot = Some(self.snapshot_file(&row.key, committed, row.parent.as_deref(), row.created));
        let folder = store.layout.layer(store.driver.name(), staged.id);
        file.write(&folder)?;
        point("store.graph.written")?;
        store.sync_staged(staged, &folder)?;
        point("store.graph.apply-synced")?;
        store.catalog.write(Durability::Full, |tx| {
            let done = layers::Finish {
                tar_size: filled.tar_size,
                recipe: Some(&filled.recipe),
                ..finished(staged.id, below, filled.finished.usage)
            };
            layers::finish(tx, &done)?;
            layers::set_diff(tx, staged.id, &filled.diff_id)?;
            snapshots::fill(tx, self.namespace(), &row.key, staged.id)?;
            layers::remove(tx, row.layer, Some(owner.id))
        })?;
        point("store.graph.filled")
    }
}
