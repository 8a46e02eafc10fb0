//! Writable layers and views made with one sync.
//!
//! A new container is an empty layer: nothing of it is worth a sync but the fact that it exists. So where the driver makes a layer in a few
//! system calls ([`Ability::InstantCreate`]), it is made inside the one durable transaction that records it, marked `fresh`, and its files
//! come to the disk when the kernel writes them. What a power cut takes of them is made again, empty as it was; what the container
//! wrote and synced is kept.
//!
//! **Make**
//! 1. In one write transaction: the row (`ready`, `fresh`) and the rows of what is to have the layer; `layer.json`; the driver makes it.
//! 2. The transaction is committed, durably. Reported.
//!
//! In a server the `layer.json` of a snapshot is left to the keeper ([`crate::keeper`]): most snapshots that an engine makes are gone before it gets to them.
//!
//! | dies | left | by whom it goes |
//! |---|---|---|
//! | in 1 | files under an id that no row names and that the next layer gets | the next one made, the sweep at boot, `gc` |
//! | after 2, power | the row, and of the files what was written | made whole at the next use, or at boot |
//!
//! **Use** ([`Store::make_whole`]): a fresh layer is looked at before each use (a few opens). What is missing is made with the layer's lock held, so that nobody takes
//! for lost what another is just changing, who commits it or takes it away; and inside a write transaction, so that two do not make it at once.
//!
//! **Later** ([`Store::make_later`]): where the driver copies, a layer of a front end is recorded in one durable transaction, and made by its first use: copied, synced,
//! and only then, durably, fresh no more. A try that was cut off is thrown away.
//!
//! **Boot**, and `check`: all fresh layers are made whole, one barrier brings them to the disk, and they are fresh no more.

use crate::catalog::layers::{self, Layer, Role};
use crate::catalog::{Durability, containers};
use crate::containers::finished;
use crate::faults::point;
use crate::layerfiles::LayerFile;
use crate::locks::{Hold, LayerLock};
use crate::{Code, Error, Result, Store, recovery};
use rusqlite::Transaction;
use vellum_archive::target::Usage;
use vellum_driver::{Ability, Changed, CreateSpec, Driver, ErrorKind, Kind};
use vellum_types::LayerId;

/// Fresh layers of which a process remembers that they are whole.
const MOST_WHOLE: usize = 4096;

impl Store {
    /// Whether a new layer may be made without a sync of its files. Options would have to be remembered.
    pub(crate) fn makes_fresh(&self, options: &[(String, String)]) -> bool {
        options.is_empty() && self.driver.capabilities().has(Ability::InstantCreate)
    }

    /// Has the driver make what mounts on a committed layer need. Its usage, if that is another one now.
    pub(crate) fn prepared(&self, driver: &dyn Driver, id: LayerId) -> Result<Option<Usage>> {
        match driver.prepare(id)? {
            Changed::Yes => Ok(Some(driver.usage(id)?)),
            Changed::No => Ok(None),
        }
    }

    /// The same, and records the usage. Whoever mounts makes what is missing otherwise, and nobody counts it.
    pub(crate) fn prepare_to_mount(&self, driver: &dyn Driver, id: Option<LayerId>) -> Result<()> {
        let Some(id) = id else { return Ok(()) };
        if let Some(usage) = self.prepared(driver, id)? {
            self.catalog.write(Durability::Normal, |tx| layers::set_usage(tx, id, Some(usage)))?;
        }
        Ok(())
    }

    /// Makes a writable layer, or a view, on what `parent` finds. `holder` adds the rows of what is to have it, and gives its `layer.json`.
    pub(crate) fn make_fresh(
        &self,
        role: Role,
        view: bool,
        parent: impl FnOnce(&Transaction<'_>) -> Result<Option<LayerId>>,
        holder: impl FnOnce(&Transaction<'_>, LayerId, Option<LayerId>) -> Result<LayerFile>,
    ) -> Result<LayerId> {
        let driver = self.driver.name();
        let (mut made, mut below) = (None, None);
        let later = role == Role::Snapshot && self.desk.get().is_some();
        // Before the writer's lock, which whoever is alone with the layers takes after this one.
        let reading = self.reading_layers()?;
        let result = self.catalog.write(Durability::Full, |tx| {
            let parent = parent(tx)?;
            below = parent;
            let id = layers::add_fresh(tx, driver, role, parent)?;
            let file = holder(tx, id, parent)?;
            point("store.fresh.begin")?;
            made = Some(id);
            if later {
                let _ = self.no_layer_folder(driver, id)?;
            } else {
                file.write_first(&self.make_layer_folder(driver, id)?)?;
            }
            self.create_layer_reading(id, &CreateSpec { parent, view, options: &[] })?;
            point("store.fresh.made")?;
            if role == Role::Container {
                layers::set_usage(tx, id, Some(self.driver.usage_of_new(id)?))?;
            }
            Ok(id)
        });
        drop(reading);
        if let (Err(_), Some(id)) = (&result, made) {
            // The error is what the caller hears; what stays is garbage, and swept.
            let _ = recovery::remove_orphan(self, driver, id);
            self.empty_trash_later();
        }
        let id = result?;
        // The layer is there and its mount makes what is missing; it is only not counted then.
        let _ = self.prepare_to_mount(&*self.driver, below);
        self.note_whole(id);
        if later {
            self.provide_file_later(id);
        }
        point("store.fresh.done")?;
        Ok(id)
    }

    fn note_whole(&self, id: LayerId) {
        if let Ok(mut whole) = self.whole.lock() {
            // Of those that others removed nobody tells; to look once more costs little.
            if whole.len() >= MOST_WHOLE {
                whole.clear();
            }
            whole.insert(id);
        }
    }

    /// Makes a writable layer of a front end, or a view, with an intent, and brings it to the disk: for drivers that copy, and for layers with storage
    /// options, which would have to be remembered. Otherwise as [`Store::make_fresh`].
    pub(crate) fn make_synced(
        &self,
        role: Role,
        view: bool,
        options: &[(String, String)],
        parent: impl FnOnce(&Transaction<'_>) -> Result<Option<LayerId>>,
        holder: impl FnOnce(&Transaction<'_>, LayerId, Option<LayerId>) -> Result<LayerFile>,
    ) -> Result<LayerId> {
        let driver = self.driver.name();
        self.operate(|owner| {
            let (layer, below, file) = self.catalog.write(Durability::Normal, |tx| {
                let below = parent(tx)?;
                let layer = layers::stage(tx, driver, role, owner.id, below, None)?;
                Ok((layer, below, holder(tx, layer, below)?))
            })?;
            point("store.prepare.intent")?;
            let folder = self.make_layer_folder(driver, layer)?;
            file.write(&folder)?;
            self.create_layer(layer, &CreateSpec { parent: below, view, options })?;
            self.driver.sync(layer)?;
            crate::files::sync_folder(&folder, &[LayerFile::NAME])?;
            point("store.prepare.synced")?;
            self.catalog.write(Durability::Full, |tx| {
                layers::finish(tx, &finished(layer, below, Usage::default()))?;
                layers::set_usage(tx, layer, None)
            })?;
            Ok(layer)
        })
    }

    /// Records a writable layer that the driver makes when it is used first: for drivers that copy, where it may never be used
    /// because it is filled from a tar. Otherwise as [`Store::make_fresh`].
    pub(crate) fn make_later(
        &self,
        role: Role,
        parent: impl FnOnce(&Transaction<'_>) -> Result<Option<LayerId>>,
        holder: impl FnOnce(&Transaction<'_>, LayerId, Option<LayerId>) -> Result<LayerFile>,
    ) -> Result<()> {
        self.catalog.write(Durability::Full, |tx| {
            let parent = parent(tx)?;
            let id = layers::add_fresh(tx, self.driver.name(), role, parent)?;
            holder(tx, id, parent)?.write(&self.make_layer_folder(self.driver.name(), id)?)?;
            point("store.later.written")
        })?;
        point("store.later.done")
    }

    /// Makes a layer that is only recorded so far. What is there of it is of a try that was cut off: nobody has used it, because its first use
    /// comes after the durable note that it is made.
    fn make_now(&self, driver: &dyn Driver, layer: &Layer) -> Result<()> {
        let folder = self.layout.layer(&layer.driver, layer.id);
        crate::layout::make_folder(&folder)?;
        let Some(_lock) = LayerLock::take(&folder, Hold::Alone)? else { return Ok(()) };
        let now = self.catalog.read(|tx| layers::get(tx, layer.id))?;
        if now.is_none_or(|now| !now.fresh || now.state != layers::State::Ready) {
            return Ok(());
        }
        let _ = driver.remove(layer.id, &self.layout.trash().join(&layer.driver))?;
        let file = self.catalog.read(|tx| LayerFile::of(tx, layer))?;
        file.write(&folder)?;
        let barrier = crate::layout::open_folder(self.layout.data())?;
        let reading = self.reading_layers()?;
        driver.create(layer.id, &CreateSpec { parent: layer.parent, view: false, options: &[] })?;
        drop(reading);
        point("store.later.made")?;
        // Of a copy of many files one by one would take longer.
        if driver.usage(layer.id)?.inodes <= crate::savepoints::FEW_INODES {
            driver.sync(layer.id)?;
            crate::files::sync_folder(&folder, &[LayerFile::NAME])?;
        } else {
            crate::files::barrier(&barrier, self.layout.data())?;
        }
        point("store.later.synced")?;
        self.catalog.write(Durability::Full, |tx| layers::settled(tx, layer.id))
    }

    /// Makes what a power cut took of a fresh layer. For who does not hold the layer's lock.
    pub(crate) fn make_whole(&self, id: LayerId) -> Result<()> {
        // Its folder may be lost, or be replaced at the same moment; that cannot go on for ever.
        for _ in 0..100 {
            let Some(layer) = self.not_whole(id)? else { return Ok(()) };
            let driver = self.driver_named(&layer.driver)?;
            if !driver.capabilities().has(Ability::InstantCreate) {
                return self.make_now(&*driver, &layer);
            }
            let folder = self.layout.layer(&layer.driver, id);
            match LayerLock::take(&folder, Hold::Alone)? {
                Some(_lock) => return self.make_whole_locked(id),
                None if self.not_whole(id)?.is_some() => crate::layout::make_folder(&folder)?,
                None => {}
            }
        }
        Err(Error::new(Code::InUse, "make the layer whole", "it is changed all the time")
            .object(format!("layer {id}")))
    }

    /// As [`Store::make_whole`], and remembers it.
    pub(crate) fn make_whole_once(&self, layer: &Layer) -> Result<()> {
        if !layer.fresh {
            return Ok(());
        }
        self.make_whole(layer.id)?;
        if layer.driver == self.driver.name() {
            self.note_whole(layer.id);
        }
        Ok(())
    }

    /// Whether this process has made the layer, with the driver in use, or has found it whole since it began.
    pub(crate) fn is_known_whole(&self, layer: LayerId) -> bool {
        self.whole.lock().is_ok_and(|whole| whole.contains(&layer))
    }

    /// As [`Store::make_whole`], for who holds the layer's lock, and where the driver makes layers at once.
    pub(crate) fn make_whole_locked(&self, id: LayerId) -> Result<()> {
        let Some(layer) = self.not_whole(id)? else { return Ok(()) };
        let driver = self.driver_named(&layer.driver)?;
        self.catalog.write(Durability::Normal, |tx| {
            // Whoever was here before has made it, or has taken it away.
            let now = layers::get(tx, id)?.filter(|now| now.fresh && now.state == layers::State::Ready);
            match now {
                Some(layer) => self.complete(tx, &*driver, &layer),
                None => Ok(()),
            }
        })
    }

    /// The layer, if it is fresh and there is not all of it.
    fn not_whole(&self, id: LayerId) -> Result<Option<Layer>> {
        let row = self.catalog.read(|tx| layers::get(tx, id))?;
        let Some(layer) = row.filter(|row| row.fresh && self.read_only.is_none()) else { return Ok(None) };
        let driver = self.driver_named(&layer.driver)?;
        let at_once = driver.capabilities().has(Ability::InstantCreate);
        Ok((!at_once || !self.is_whole(&*driver, id)?).then_some(layer))
    }

    fn is_whole(&self, driver: &dyn Driver, id: LayerId) -> Result<bool> {
        match driver.stat(id) {
            Ok(None) => return Ok(false),
            Err(e) if e.kind == ErrorKind::Damaged => return Ok(false),
            Ok(Some(_)) => {}
            Err(e) => return Err(e.into()),
        }
        let folder = self.layout.layer(driver.name(), id);
        Ok(driver.check(id)?.is_empty() && matches!(LayerFile::read(&folder), Ok(Some(_))))
    }

    fn complete(&self, tx: &Transaction<'_>, driver: &dyn Driver, layer: &Layer) -> Result<()> {
        let file = LayerFile::of(tx, layer)?;
        let view =
            file.snapshot.as_ref().is_some_and(|snapshot| snapshot.kind.is_look(layer.parent.is_some()));
        let folder = self.layout.layer(&layer.driver, layer.id);
        crate::layout::make_folder(&folder)?;
        file.write(&folder)?;
        let spec = CreateSpec { parent: layer.parent, view, options: &[] };
        let _ = driver.complete(layer.id, &spec)?;
        let want = if view { Kind::View } else { Kind::Active };
        match driver.stat(layer.id)? {
            Some(info) if info.kind == want => Ok(()),
            _ => Err(Error::new(Code::Damaged, "make the layer whole", "the driver could not")
                .object(format!("layer {}", layer.id))),
        }
    }

    /// After a boot, and before a check: makes all fresh layers whole, and brings them to the disk.
    pub(crate) fn settle_fresh(&self) -> Result<()> {
        let fresh = self.catalog.read(layers::fresh)?;
        if fresh.is_empty() {
            return Ok(());
        }
        let barrier = crate::layout::open_folder(self.layout.data())?;
        // One that cannot be made whole (its parent may be damaged) is told of by who uses it, and by `check`.
        let whole: Vec<LayerId> =
            fresh.iter().filter(|layer| self.make_whole(layer.id).is_ok()).map(|layer| layer.id).collect();
        crate::files::barrier(&barrier, self.layout.data())?;
        point("store.fresh.synced")?;
        self.catalog.write(Durability::Normal, |tx| whole.iter().try_for_each(|id| layers::settled(tx, *id)))
    }

    /// As [`Store::make_whole_locked`], of a container whose row is at hand.
    pub(crate) fn make_container_whole(&self, row: &containers::Container) -> Result<()> {
        if !row.fresh || self.is_whole(&*self.driver_named(&row.driver)?, row.layer)? {
            return Ok(());
        }
        self.make_whole_locked(row.layer)
    }
}
