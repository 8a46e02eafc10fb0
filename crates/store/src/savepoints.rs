//! Save points of a container: copies of its layer that it can go back to.
//!
//! **Snapshot**
//! 1. Intent: a layer `staging` on the same parent, and the save point's row.
//! 2. A mounted container's file system is synced, so that what its processes wrote before is in the copy. Overlayfs cannot be frozen,
//!    and freezing the file system below would stop everybody: files written during the copy may be in it in part. Who needs
//!    one exact moment stops the writers, as for a backup.
//! 3. The driver copies the layer (by reflink where it can); its files are synced; ready (durable).
//!
//! **Rollback** (refused while mounted)
//! 1. Intent: a layer `staging`, owned by nobody's row yet.
//! 2. The driver copies the save point's layer into it; synced.
//! 3. One durable transaction makes it ready and the container's, and the old layer `removing`. A kill before leaves the
//!    container as it was, one after as it is to be.
//! 4. The old layer goes to the trash.

use crate::catalog::layers::Role;
use crate::catalog::{Durability, containers, layers};
use crate::containers::{finished, layer_file};
use crate::faults::point;
use crate::layerfiles::{ContainerFile, LayerFile};
use crate::locks::{Hold, LayerLock, Owner};
use crate::{Code, Error, Result, SavePointRow, Store, files};
use jiff::Timestamp;
use std::sync::Arc;
use vellum_archive::target::Usage;
use vellum_driver::Driver;
use vellum_types::{ContainerId, ContainerName, LayerId};

/// Up to so many files a layer is synced file by file; beyond, the whole file system at once.
pub(crate) const FEW_INODES: u64 = 128;

impl Store {
    /// Makes a save point of a container. Without a name it is called `s1`, `s2`, ….
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Exists`]; the driver's.
    pub fn snapshot(&self, container: &ContainerId, name: Option<&ContainerName>) -> Result<SavePointRow> {
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        self.check_floor("make a save point")?;
        self.operate(|owner| self.snapshot_as(owner, &row, name))
    }

    fn snapshot_as(
        &self,
        owner: &Owner,
        row: &containers::Container,
        name: Option<&ContainerName>,
    ) -> Result<SavePointRow> {
        let driver = self.driver_named(&row.driver)?;
        let created = Timestamp::now();
        point("store.snapshot.begin")?;
        let (layer, name) = self.catalog.write(Durability::Normal, |tx| {
            let name = match name {
                Some(name) => name.clone(),
                None => free_name(&containers::save_points(tx, &row.id)?)?,
            };
            let layer = layers::stage(tx, &row.driver, Role::Save, owner.id, row.parent, None)?;
            containers::add_save_point(tx, &row.id, &name, layer, created)?;
            Ok((layer, name))
        })?;
        point("store.snapshot.intent")?;
        if let Some(record) = self.mounter.mounted(row.layer).map_err(Error::from)? {
            let tree = crate::layout::open_folder(&record.target)?;
            files::barrier(&tree, &record.target)?;
        }
        let whose = ContainerFile {
            id: row.id,
            name: row.name.clone(),
            image: row.image,
            created: row.created,
            save_point: Some(name.clone()),
        };
        let size = self.copy_layer(&driver, row.layer, layer, |folder| {
            layer_file(layer, Role::Save, row.parent, created, Some(whose)).write(folder)
        })?;
        point("store.snapshot.synced")?;
        self.catalog.write(Durability::Full, |tx| layers::finish(tx, &finished(layer, row.parent, size)))?;
        point("store.snapshot.done")?;
        Ok(SavePointRow { container: row.id, name, layer, created, size })
    }

    /// Copies a layer, brings the copy to the disk, and measures it.
    fn copy_layer(
        &self,
        driver: &Arc<dyn Driver>,
        from: LayerId,
        to: LayerId,
        describe: impl FnOnce(&std::path::Path) -> Result<()>,
    ) -> Result<Usage> {
        let barrier = crate::layout::open_folder(self.layout.data())?;
        let folder = self.make_layer_folder(driver.name(), to)?;
        describe(&folder)?;
        match driver.copy(from, to) {
            // An id that was handed out again after a power cut: what is there is nobody's.
            Err(e) if e.kind == vellum_driver::ErrorKind::Exists => {
                let _ = driver.remove(to, &self.layout.trash().join(driver.name()))?;
                driver.copy(from, to)?;
            }
            result => result?,
        }
        point("store.copy.made")?;
        let usage = driver.usage(to)?;
        if usage.inodes <= FEW_INODES {
            driver.sync(to)?;
            files::sync_folder(&folder, &[LayerFile::NAME])?;
        } else {
            files::barrier(&barrier, self.layout.data())?;
        }
        Ok(usage)
    }

    /// The save points of a container, the oldest first.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn save_points(&self, container: &ContainerId) -> Result<Vec<SavePointRow>> {
        self.catalog.read(|tx| {
            containers::get(tx, container)?;
            containers::save_points(tx, container)
        })
    }

    /// Takes a container back to a save point, or to its latest. The save point stays, and what was written since is gone.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`] while the container is mounted; the driver's.
    pub fn rollback(&self, container: &ContainerId, name: Option<&ContainerName>) -> Result<SavePointRow> {
        let (row, lock) = self.locked(container, Hold::Alone)?;
        self.refuse_mounted(&row)?;
        self.check_floor("go back to a save point")?;
        let to = find(self.save_points(container)?, name, &row)?;
        let old = self.operate(|owner| self.rollback_as(owner, &row, &to))?;
        drop(lock);
        self.finish_removal(&old)?;
        self.empty_trash_later();
        Ok(to)
    }

    fn refuse_mounted(&self, row: &containers::Container) -> Result<()> {
        if self.mounter.mounted(row.layer).map_err(Error::from)?.is_none() {
            return Ok(());
        }
        Err(Error::new(Code::InUse, format!("roll back the container {}", row.label()), "it is mounted")
            .with_hint("unmount it first (`vellum umount`)"))
    }

    fn rollback_as(
        &self,
        owner: &Owner,
        row: &containers::Container,
        to: &SavePointRow,
    ) -> Result<Vec<layers::Layer>> {
        let driver = self.driver_named(&row.driver)?;
        point("store.rollback.begin")?;
        let layer = self.catalog.write(Durability::Normal, |tx| {
            layers::stage(tx, &row.driver, Role::Container, owner.id, row.parent, None)
        })?;
        point("store.rollback.intent")?;
        let whose = ContainerFile {
            id: row.id,
            name: row.name.clone(),
            image: row.image,
            created: row.created,
            save_point: None,
        };
        let folder = self.layout.layer(&row.driver, layer);
        let usage = self.copy_layer(&driver, to.layer, layer, |folder| {
            layer_file(layer, Role::Container, row.parent, Timestamp::now(), Some(whose)).write(folder)
        })?;
        point("store.rollback.synced")?;
        // Held until the container has it: nobody mounts the new layer before the old one is let go.
        let _new = LayerLock::take(&folder, Hold::Alone)?;
        let old = self.catalog.write(Durability::Full, |tx| {
            layers::finish(tx, &finished(layer, row.parent, usage))?;
            containers::set_layer(tx, &row.id, row.layer, layer)?;
            let old = layers::get(tx, row.layer)?;
            layers::remove(tx, row.layer, Some(owner.id))?;
            Ok(old)
        })?;
        point("store.rollback.done")?;
        Ok(old.into_iter().collect())
    }

    /// Removes one save point of a container.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn remove_save_point(&self, container: &ContainerId, name: &ContainerName) -> Result<()> {
        let (row, _lock) = self.locked(container, Hold::Alone)?;
        let save_point = find(self.save_points(container)?, Some(name), &row)?;
        crate::reserve::release_if_full(&self.layout);
        let owner = self.announce()?;
        let removed = self.catalog.write(Durability::Full, |tx| {
            containers::remove_save_point(tx, container, name)?;
            let removed = layers::get(tx, save_point.layer)?;
            layers::remove(tx, save_point.layer, Some(owner.id))?;
            Ok(removed)
        })?;
        point("store.unsave.recorded")?;
        self.finish_removal(removed.as_slice())?;
        self.empty_trash_later();
        Ok(())
    }
}

fn free_name(taken: &[SavePointRow]) -> Result<ContainerName> {
    let mut number = taken.len() + 1;
    loop {
        let name: ContainerName = format!("s{number}")
            .parse()
            .map_err(|e: vellum_types::ParseError| Error::caused(Code::System, "name the save point", e))?;
        if taken.iter().all(|point| point.name != name) {
            return Ok(name);
        }
        number += 1;
    }
}

fn find(
    save_points: Vec<SavePointRow>,
    name: Option<&ContainerName>,
    row: &containers::Container,
) -> Result<SavePointRow> {
    let found = match name {
        Some(name) => save_points.into_iter().find(|point| point.name == *name),
        None => save_points.into_iter().next_back(),
    };
    found.ok_or_else(|| {
        let what = name.map_or_else(|| "a save point".to_owned(), |name| format!("the save point '{name}'"));
        Error::new(Code::NotFound, format!("find {what} of the container {}", row.label()), "there is none")
            .with_hint("`vellum snapshots` lists those there are")
    })
}
