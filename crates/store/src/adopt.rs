//! Adopted snapshots: a committed snapshot that is a layer of an image which the store has.
//!
//! When a front end is about to unpack a layer that the store has under the same chain ID, and on the same chain, the layer itself can be the snapshot:
//! nothing is fetched, unpacked or kept twice.
//!
//! 1. In one durable transaction: the layer is found by its chain ID, and is ready and not known to be damaged; it lies on the layer of the parent
//!    snapshot (which, mostly, was adopted before); the row is added.
//! 2. `layer.json` follows, so that a rebuilt catalog has the row too.
//!
//! Killed between the two, the record is behind, and `check` has it follow.
//!
//! The layer is held by the row as by an image. Removing the snapshot takes the row, and the layer only when nothing else needs it.

use crate::catalog::layers::{Role, State};
use crate::catalog::{Durability, damage, layers, snapshots};
use crate::faults::point;
use crate::{Labels, Result, SnapshotKind, Snapshots};
use jiff::Timestamp;
use rusqlite::Transaction;
use vellum_types::{ChainId, LayerId};

impl Snapshots<'_> {
    /// Makes the layer of chain ID `name`, which an image of the store has, the committed snapshot `name` on `parent`. `false`, and nothing is done,
    /// if there is none, it is damaged, or it does not lie on the parent's layer; `true` also when it is so already.
    ///
    /// # Errors
    /// [`Code::NotFound`](crate::Code::NotFound): there is no such parent; [`Code::Invalid`](crate::Code::Invalid): it is not committed.
    pub fn adopt(&self, name: &str, parent: Option<&str>, labels: &Labels) -> Result<bool> {
        let Ok(chain) = name.parse::<ChainId>() else { return Ok(false) };
        // Mostly there is no such layer, and then nothing needs to be written.
        let look =
            |tx: &Transaction<'_>| Ok((self.adopted(tx, name, parent)?, self.adoptable(tx, &chain, parent)?));
        let (adopted, layer) = self.store.catalog.read(look)?;
        if adopted.is_some() || layer.is_none() {
            return Ok(adopted.unwrap_or(false));
        }
        let (adopted, layer) = self.store.catalog.write(Durability::Full, |tx| {
            let (adopted, Some(layer)) = look(tx)? else { return Ok((false, None)) };
            if let Some(adopted) = adopted {
                return Ok((adopted, None));
            }
            let kind = SnapshotKind::Committed;
            let (namespace, created) = (&self.namespace, Timestamp::now());
            let new = snapshots::NewSnapshot { namespace, key: name, kind, parent, layer, labels, created };
            snapshots::add(tx, &new)?;
            Ok((true, Some(layer)))
        })?;
        point("store.adopt.recorded")?;
        if let Some(layer) = layer {
            self.write_file(layer)?;
        }
        Ok(adopted)
    }

    /// Whether the snapshot that has the name is what is wanted; `None` if the name is free.
    fn adopted(&self, tx: &Transaction<'_>, name: &str, parent: Option<&str>) -> Result<Option<bool>> {
        let row = snapshots::find(tx, &self.namespace, name)?;
        Ok(row.map(|row| row.kind == SnapshotKind::Committed && row.parent.as_deref() == parent))
    }

    fn adoptable(
        &self,
        tx: &Transaction<'_>,
        chain: &ChainId,
        parent: Option<&str>,
    ) -> Result<Option<LayerId>> {
        let below = parent.map(|parent| self.committed(tx, parent)).transpose()?.map(|row| row.layer);
        let layer = layers::by_chain(tx, self.store.driver.name(), chain)?;
        let fits = |layer: &layers::Layer| {
            layer.state == State::Ready && layer.role == Role::Image && layer.parent == below
        };
        match layer.filter(fits) {
            Some(layer) if damage::of(tx, layer.id)?.is_none() => Ok(Some(layer.id)),
            _ => Ok(None),
        }
    }
}
