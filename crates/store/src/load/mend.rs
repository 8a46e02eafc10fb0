//! Layers that the store has and that are damaged: a load brings what it takes to mend them.

use super::unpack::Unpacked;
use super::{Job, Load};
use crate::catalog::layers::{Layer, Role};
use crate::catalog::{Durability, damage, layers};
use crate::faults::point;
use crate::mend::Sound;
use crate::{Code, Error, LayerOutcome, Result};
use std::os::fd::OwnedFd;
use vellum_driver::Kind;
use vellum_types::LayerId;

impl Load<'_> {
    /// Unpacks a sound layer to take the place of one that is ready and damaged; `None` of one that is sound as far as is known.
    pub(super) fn unpack_if_damaged(&self, job: &Job<'_>, id: LayerId) -> Result<Option<Unpacked>> {
        let store = self.store;
        let Some(damaged) = self.damaged(id)? else { return Ok(None) };
        // Better said now than after the work; it is asked again when nobody can mount any more.
        store.refuse_in_use(id)?;
        store.check_floor("unpack the layer again")?;
        let driver = store.driver.name();
        let fresh = store.catalog.write(Durability::Normal, |tx| {
            layers::stage(tx, driver, Role::Image, self.owner.id, None, None)
        })?;
        point("store.load.mend-intent")?;
        let parent = if self.parallel { None } else { damaged.parent };
        let mut unpacked = self.unpack(job, fresh, parent)?;
        unpacked.mends = Some(damaged);
        self.progress.layer_done(job.index, LayerOutcome::Unpacked);
        Ok(Some(unpacked))
    }

    /// The layer, if it is known to be damaged or if the driver does not have it.
    fn damaged(&self, id: LayerId) -> Result<Option<Layer>> {
        let store = self.store;
        // While a layer is replaced it is not there for a moment.
        let _reading = store.reading_layers()?;
        let (row, known) =
            store.catalog.read(|tx| Ok((layers::get(tx, id)?, damage::of(tx, id)?.is_some())))?;
        if known {
            return Ok(row);
        }
        let detail = match store.driver.stat(id) {
            Ok(Some(info)) if info.kind == Kind::Committed => return Ok(None),
            Ok(Some(_)) => "the driver calls it active".to_owned(),
            Ok(None) => "it is not on disk".to_owned(),
            Err(e) if e.kind == vellum_driver::ErrorKind::Damaged => crate::check::told(&e),
            Err(e) => return Err(e.into()),
        };
        store.note_damage(id, &detail);
        Ok(row)
    }

    /// Puts a sound layer, which is joined, in the place of the damaged one.
    pub(super) fn mend(
        &self,
        damaged: &Layer,
        parent: Option<LayerId>,
        sound: &Unpacked,
        barrier: &OwnedFd,
    ) -> Result<()> {
        if parent != damaged.parent {
            return Err(Error::new(
                Code::Damaged,
                format!("replace the damaged layer {}", damaged.id),
                "the catalog has it on another layer than the image",
            )
            .with_hint("`vellum check --repair`, then remove the image and load it again"));
        }
        let _placing = crate::open::placing(&self.store.layout)?;
        if let Some(kept) = &sound.blob {
            self.place(kept)?;
        }
        let blob = sound.blob.as_ref().map(|kept| &kept.facts);
        let sound = Sound { id: sound.id, filled: &sound.filled, blob, barrier };
        self.store.replace_layer(self.owner, damaged, &sound).map(drop)
    }
}
