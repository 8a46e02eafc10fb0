//! What the store takes on disk: sums of what the catalog records, and of a few folders of the store's own.

use crate::catalog::layers::{Layer, Role, State};
use crate::catalog::{containers, images, layers};
use crate::{Df, DfLine, Error, Result, Store, files, trash};
use std::collections::BTreeSet;
use vellum_types::LayerId;

impl Store {
    /// What the store takes, by kind. Containers that were written to since they were measured last are measured.
    ///
    /// # Errors
    /// The catalog's, the driver's.
    pub fn usage(&self) -> Result<Df> {
        let (rows, images, containers, unreachable, held) = self.catalog.read(|tx| {
            let mut all = Vec::new();
            for driver in crate::recovery::driver_names(self)? {
                all.extend(images::all(tx, &driver)?);
            }
            Ok((layers::all(tx)?, all, containers::all(tx)?, self.unreachable(tx)?, layers::held(tx)?))
        })?;
        let unused: BTreeSet<LayerId> = unreachable.iter().map(|layer| layer.id).collect();
        let held: BTreeSet<LayerId> = held.into_iter().collect();
        let mounted: BTreeSet<LayerId> =
            self.mounter.list().map_err(Error::from)?.into_iter().map(|record| record.layer).collect();
        let of =
            |role: Role| rows.iter().filter(move |layer| layer.role == role && layer.state == State::Ready);
        let used = |layer: &&Layer| !unused.contains(&layer.id);
        let mut df = Df::default();
        df.images.count = images.len();
        df.images.active = images.iter().filter(|image| image.containers > 0).count();
        df.images.bytes = of(Role::Image).filter(used).map(|layer| layer.usage.bytes).sum();
        df.images.reclaimable =
            images.iter().filter(|image| image.containers == 0).map(|image| image.unique).sum();
        df.unused = line(unreachable.iter());
        df.unused.reclaimable = df.unused.bytes;
        df.save_points = line(of(Role::Save));
        df.snapshots = line(of(Role::Snapshot));
        df.snapshots.active = of(Role::Snapshot).filter(|layer| held.contains(&layer.id)).count();
        for container in containers {
            let bytes = self.container_usage(&container.id).map(|usage| usage.bytes);
            // One that was removed a moment ago takes nothing.
            let Ok(bytes) = bytes else { continue };
            df.containers.count += 1;
            df.containers.bytes += bytes;
            if mounted.contains(&container.layer) {
                df.containers.active += 1;
            } else {
                df.containers.reclaimable += bytes;
            }
        }
        for entry in files::entries(&self.layout.blobs())? {
            df.blobs.count += 1;
            df.blobs.bytes += files::bytes_of(&self.layout.blobs().join(entry.name));
        }
        df.blobs.active = df.blobs.count;
        df.trash.count = trash::list(&self.layout)?.len();
        let own = [self.layout.configs(), self.layout.images(), self.layout.layers(), self.layout.catalog()];
        df.metadata.bytes = own.iter().map(|path| files::bytes_of(path)).sum();
        df.metadata.count = rows.len();
        df.metadata.active = rows.len();
        Ok(df)
    }
}

fn line<'a>(layers: impl Iterator<Item = &'a Layer>) -> DfLine {
    let mut line = DfLine::default();
    for layer in layers {
        line.count += 1;
        line.bytes += layer.usage.bytes;
    }
    line
}
