//! Containers: made, mounted, looked at, removed.
//!
//! **Create**, where the driver makes a layer in a few system calls: one durable transaction ([`crate::fresh`]). Elsewhere:
//! 1. Intent (not synced): a layer `staging` on the image's top layer, and the container's row, which takes the name.
//! 2. `layers/<driver>/<id>/layer.json`; the driver makes the layer.
//! 3. The driver syncs the layer's few files.
//! 4. Ready (durable).
//!
//! **Remove**
//! 1. A mounted container is refused, or unmounted lazily with `force`.
//! 2. One durable transaction: the row goes, its layer and those of its save points become `removing`, and with
//!    them the layers of an image that is gone already and that nothing else needs. Reported.
//! 3. Each is renamed into the trash, and its row forgotten.
//!
//! **Locks**: all that works on a container holds its layer's folder shared; what removes or replaces the layer holds it alone.

use crate::catalog::layers::Role;
use crate::catalog::{Durability, containers, images, layers};
use crate::faults::point;
use crate::layerfiles::{ContainerFile, LayerFile};
use crate::locks::{Hold, LayerLock, Owner};
use crate::{Code, ContainerRow, CreateOptions, Error, Result, Store, Unmounted, files};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::collections::BTreeMap;
use std::path::PathBuf;
use vellum_archive::target::{LayerPath, Usage};
use vellum_driver::{Change, CreateSpec, DiffEntry, DiffSink, MountOptions};
use vellum_types::{ContainerId, ImageId, LayerId};

impl Store {
    /// Makes a container of an image.
    ///
    /// # Errors
    /// [`Code::NotFound`]: no such image; [`Code::Exists`]: the name is taken; the driver's.
    pub fn create_container(&self, image: &ImageId, options: CreateOptions) -> Result<ContainerId> {
        let id = vellum_sys::random::bytes::<32>()
            .map(ContainerId::from_bytes)
            .map_err(|e| Error::io("draw a random number", "getrandom", e))?;
        if self.makes_fresh(&options.storage) {
            self.create_fresh_container(id, image, &options)?;
        } else {
            self.operate(|owner| self.create_container_as(owner, id, image, &options))?;
        }
        Ok(id)
    }

    fn create_fresh_container(
        &self,
        id: ContainerId,
        image: &ImageId,
        options: &CreateOptions,
    ) -> Result<()> {
        let created = Timestamp::now();
        let base = |tx: &Transaction<'_>| containers::base_for(tx, self.driver.name(), image);
        self.make_fresh(Role::Container, false, base, |tx, layer, parent| {
            if let Some(name) = &options.name {
                containers::name_is_free(tx, name)?;
            }
            containers::add(tx, &id, options.name.as_ref(), image, layer, created)?;
            let whose =
                ContainerFile { id, name: options.name.clone(), image: *image, created, save_point: None };
            Ok(layer_file(layer, Role::Container, parent, created, Some(whose)))
        })
        .map(drop)
    }

    fn create_container_as(
        &self,
        owner: &Owner,
        id: ContainerId,
        image: &ImageId,
        options: &CreateOptions,
    ) -> Result<()> {
        let driver = self.driver.name();
        let created = Timestamp::now();
        point("store.create.begin")?;
        let (layer, parent) = self.catalog.write(Durability::Normal, |tx| {
            let parent = containers::base_for(tx, driver, image)?;
            if let Some(name) = &options.name {
                containers::name_is_free(tx, name)?;
            }
            let layer = layers::stage(tx, driver, Role::Container, owner.id, parent, None)?;
            containers::add(tx, &id, options.name.as_ref(), image, layer, created)?;
            Ok((layer, parent))
        })?;
        point("store.create.intent")?;
        let folder = self.make_layer_folder(driver, layer)?;
        let whose =
            ContainerFile { id, name: options.name.clone(), image: *image, created, save_point: None };
        layer_file(layer, Role::Container, parent, created, Some(whose)).write(&folder)?;
        let spec = CreateSpec { parent, view: false, options: &options.storage };
        self.create_layer(layer, &spec)?;
        point("store.create.made")?;
        self.driver.sync(layer)?;
        files::sync_folder(&folder, &[LayerFile::NAME])?;
        point("store.create.synced")?;
        let usage = self.driver.usage(layer)?;
        self.catalog.write(Durability::Full, |tx| layers::finish(tx, &finished(layer, parent, usage)))?;
        point("store.create.done")
    }

    /// Makes a layer with the driver in use. After a power cut ids may be handed out again, and what is there under one is
    /// nobody's: it goes to the trash first.
    pub(crate) fn create_layer(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        let _reading = spec.parent.map(|_| self.reading_layers()).transpose()?;
        self.create_layer_reading(id, spec)
    }

    /// As [`Store::create_layer`], for who holds [`Store::reading_layers`].
    pub(crate) fn create_layer_reading(&self, id: LayerId, spec: &CreateSpec<'_>) -> Result<()> {
        match self.driver.create(id, spec) {
            Err(e) if e.kind == vellum_driver::ErrorKind::Exists => {
                let _ = self.driver.remove(id, &self.layout.trash().join(self.driver.name()))?;
                Ok(self.driver.create(id, spec)?)
            }
            result => Ok(result?),
        }
    }

    /// All containers, the newest first. Nothing is measured.
    ///
    /// # Errors
    /// The catalog's; a mount record cannot be read.
    pub fn containers(&self) -> Result<Vec<ContainerRow>> {
        let rows = self.catalog.read(containers::all)?;
        let records = self.mounter.list().map_err(Error::from)?;
        let mounted: BTreeMap<LayerId, PathBuf> = records.into_iter().map(|r| (r.layer, r.target)).collect();
        Ok(rows
            .into_iter()
            .map(|row| {
                let target = mounted.get(&row.layer).cloned();
                row_of(row, target)
            })
            .collect())
    }

    /// One container: by name, id, or unambiguous beginning of an id.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Invalid`] when several match.
    pub fn find_container(&self, reference: &str) -> Result<ContainerRow> {
        let row = self.catalog.read(|tx| containers::find(tx, reference))?;
        let record = self.mounter.mounted(row.layer).map_err(Error::from)?;
        Ok(row_of(row, record.map(|record| record.target)))
    }

    /// What the container's own layer takes on disk: as recorded, or measured when it was mounted since.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's.
    pub fn container_usage(&self, container: &ContainerId) -> Result<Usage> {
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        let mounted = self.mounter.mounted(row.layer).map_err(Error::from)?.is_some();
        match row.usage {
            Some(usage) if !mounted => Ok(usage),
            _ => self.measure(&row, mounted),
        }
    }

    fn measure(&self, row: &containers::Container, mounted: bool) -> Result<Usage> {
        let usage = self.driver_named(&row.driver)?.usage(row.layer)?;
        if !mounted && self.read_only.is_none() {
            // Only if it was not mounted meanwhile: that marks the row before it mounts.
            self.catalog.write(Durability::Normal, |tx| {
                if self.mounter.mounted(row.layer).map_err(Error::from)?.is_none() {
                    layers::set_usage(tx, row.layer, Some(usage))?;
                }
                Ok(())
            })?;
        }
        Ok(usage)
    }

    /// Mounts the container's tree, or counts one more user of its mount, and gives the path.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`] when it is mounted otherwise or elsewhere; the kernel's.
    pub fn mount(&self, container: &ContainerId, options: &MountOptions) -> Result<PathBuf> {
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        if row.usage.is_some() && !options.read_only {
            self.catalog.write(Durability::Normal, |tx| layers::set_usage(tx, row.layer, None))?;
            point("store.mount.marked")?;
        }
        let _reading = self.reading_layers()?;
        let plan = self.driver_named(&row.driver)?.mounts(row.layer, options)?;
        self.mounter.acquire(row.layer, &plan).map_err(Error::from)
    }

    /// Takes one user off the container's mount, or all with `all`; with the last it is unmounted. With `lazy` also when something in
    /// it is busy: it leaves the mount table at once, and processes in it keep what they see.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`], naming who uses it.
    pub fn umount(&self, container: &ContainerId, all: bool, lazy: bool) -> Result<Unmounted> {
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        let released = if all || lazy {
            self.mounter.release_all(row.layer, lazy)
        } else {
            self.mounter.release(row.layer)
        }
        .map_err(Error::from)?;
        Ok(Unmounted { unmounted: released.unmounted, left: released.left })
    }

    /// Tells what the container changed on its image, sorted by path. Costs what changed, with a driver that can.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's; what `visit` returns.
    pub fn diff(
        &self,
        container: &ContainerId,
        visit: &mut dyn FnMut(Change, &LayerPath) -> std::io::Result<()>,
    ) -> Result<()> {
        struct Visit<'a>(&'a mut dyn FnMut(Change, &LayerPath) -> std::io::Result<()>);
        impl DiffSink for Visit<'_> {
            fn entry(&mut self, entry: &DiffEntry<'_>) -> vellum_driver::Result<()> {
                if entry.path.is_root() {
                    return Ok(());
                }
                (self.0)(entry.change, entry.path)
                    .map_err(|e| vellum_driver::Error::system("tell a difference", e))
            }
        }
        let (row, _lock) = self.locked(container, Hold::Shared)?;
        let driver = self.driver_named(&row.driver)?;
        let _reading = self.reading_layers()?;
        Ok(driver.diff(row.layer, row.parent, &self.mounter, &mut Visit(visit))?)
    }

    /// Removes a container with its save points. A mounted one is refused; with `force` it is unmounted lazily.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`].
    pub fn remove_container(&self, container: &ContainerId, force: bool) -> Result<()> {
        let (row, lock) = self.locked_as_it_is(container, Hold::Alone)?;
        if self.mounter.mounted(row.layer).map_err(Error::from)?.is_some() {
            if !force {
                return Err(Error::new(
                    Code::InUse,
                    format!("remove the container {}", row.label()),
                    "it is mounted",
                )
                .with_hint("unmount it first (`vellum umount`), or use --force"));
            }
            let _ = self.mounter.release_all(row.layer, true).map_err(Error::from)?;
        }
        crate::reserve::release_if_full(&self.layout);
        let owner = self.announce()?;
        point("store.rm.begin")?;
        let removed = self.catalog.write(Durability::Full, |tx| {
            let mut gone = vec![row.layer];
            gone.extend(containers::save_points(tx, container)?.iter().map(|point| point.layer));
            containers::remove(tx, container)?;
            let mut removed = Vec::with_capacity(gone.len());
            for id in gone {
                removed.extend(layers::get(tx, id)?);
                layers::remove(tx, id, Some(owner.id))?;
            }
            if !images::exists(tx, &row.driver, &row.image)? {
                let mut lives = self.others_live(owner.id);
                removed.extend(layers::release_chain(tx, row.parent, owner.id, &mut lives)?);
            }
            Ok(removed)
        })?;
        point("store.rm.recorded")?;
        self.finish_removal(&removed)?;
        if removed.iter().any(|layer| layer.role == Role::Image) {
            // The image was gone already, and this was the last that was made of it.
            self.forget_config(&row.image)?;
        }
        drop(lock);
        self.empty_trash_later();
        Ok(())
    }

    /// The container's row, with its layer's folder locked, such that the row is still true and the layer whole.
    pub(crate) fn locked(
        &self,
        container: &ContainerId,
        hold: Hold,
    ) -> Result<(containers::Container, LayerLock)> {
        let (row, lock) = self.locked_as_it_is(container, hold)?;
        self.make_container_whole(&row)?;
        Ok((row, lock))
    }

    /// As [`Store::locked`], whether the layer is whole or not.
    fn locked_as_it_is(
        &self,
        container: &ContainerId,
        hold: Hold,
    ) -> Result<(containers::Container, LayerLock)> {
        // A rollback at the same moment gives the container another layer; that cannot go on for ever.
        for _ in 0..100 {
            let row = self.catalog.read(|tx| containers::get(tx, container))?;
            let folder = self.layout.layer(&row.driver, row.layer);
            let Some(lock) = LayerLock::take(&folder, hold)? else {
                // The folder is lost but the container is there: the lock is what is needed of it now.
                let again = self.catalog.read(|tx| containers::get(tx, container))?;
                if again.layer == row.layer && self.read_only.is_none() {
                    crate::layout::make_folder(&folder)?;
                }
                continue;
            };
            let again = self.catalog.read(|tx| containers::get(tx, container))?;
            if again.layer == row.layer {
                return Ok((again, lock));
            }
        }
        Err(Error::new(Code::InUse, "lock the container", "it is changed all the time")
            .object(container.short()))
    }
}

/// The record of a layer that is being made.
pub(crate) fn layer_file(
    id: LayerId,
    role: Role,
    parent: Option<LayerId>,
    created: Timestamp,
    container: Option<ContainerFile>,
) -> LayerFile {
    LayerFile {
        id,
        role,
        parent,
        chain_id: None,
        diff_id: None,
        usage: Usage::default(),
        tar_size: 0,
        recipe: None,
        blob: None,
        created,
        container,
        snapshot: None,
        adopted: Vec::new(),
    }
}

/// A layer that is ready and has no digest.
pub(crate) fn finished<'a>(id: LayerId, parent: Option<LayerId>, usage: Usage) -> layers::Finish<'a> {
    layers::Finish { id, parent, chain: None, usage, tar_size: 0, recipe: None, blob: None }
}

fn row_of(row: containers::Container, mounted: Option<PathBuf>) -> ContainerRow {
    ContainerRow {
        id: row.id,
        name: row.name,
        image: row.image,
        image_name: row.image_name,
        driver: row.driver,
        layer: row.layer,
        created: row.created,
        size: row.usage.filter(|_| mounted.is_none()),
        mounted,
        save_points: row.save_points,
    }
}
