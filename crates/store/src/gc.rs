//! Garbage collection: what nothing needs goes.
//!
//! **Roots**: layers of images, of containers, of save points, of front ends' snapshots; what operations at work have pinned; and
//! all layers below these. Files are needed when a row names them.
//!
//! 1. Lock `sweep` alone: nobody moves files in place meanwhile. (A load does that for moments only.)
//! 2. What dead operations left is taken over.
//! 3. One transaction marks layers that no root reaches as `removing`; they are renamed into the trash and forgotten.
//!    A load that has found one of them ready a moment ago has pinned it in a transaction of its own, so it is reached.
//! 4. Folders, configurations, image files, blobs, temporary files and locks that no row names are removed.
//! 5. What drivers made for mounts that nobody is going to make goes, with the lock `layers` held alone: whoever mounts has it from the plan to the mount. Where
//!    that cannot be had at once, it stays until the next time.
//! 6. The mounter cleans its records and mountpoints.
//! 7. The lock is let go, and the trash is emptied: a worker that is at it is waited for. The driver has the file system free what it holds for
//!    the wrong purpose. A pool gives back to its host what it does not use.
//!
//! A dry run does 1 and looks at the rest.

use crate::catalog::layers::{Layer, Role, State};
use crate::catalog::{Durability, images, intents, layers};
use crate::faults::point;
use crate::{Error, GcItem, GcReport, Result, Store, files, locks, recovery, trash};
use rusqlite::Transaction;
use std::collections::{BTreeMap, BTreeSet};
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

impl Store {
    /// Takes away what nothing needs; with `dry_run`, only says what and why.
    ///
    /// # Errors
    /// The catalog's, the driver's, the file system's. What was done is done; the rest is left for the next time.
    pub fn gc(&self, dry_run: bool) -> Result<GcReport> {
        let path = self.layout.lock("sweep");
        let sweep = FileLock::exclusive(&path).map_err(|e| Error::io("take the lock", &path, e))?;
        point("store.gc.begin")?;
        let mut items = Vec::new();
        if !dry_run {
            crate::reserve::release_if_full(&self.layout);
            let owners = self.catalog.read(intents::owners)?;
            recovery::take_over_dead(self, &owners)?;
        }
        items.extend(self.collect_layers(dry_run)?);
        point("store.gc.layers")?;
        items.extend(recovery::sweep_folders(self, dry_run)?);
        items.extend(self.collect_files(dry_run)?);
        items.extend(recovery::sweep_temporary(self, dry_run)?);
        for name in locks::remove_dead_owners(&self.layout, dry_run)? {
            items.push(item("lock", name, "its operation is dead", 0));
        }
        point("store.gc.files")?;
        items.extend(self.collect_prepared(dry_run)?);
        if !dry_run {
            let swept = self.mounter.sweep().map_err(Error::from)?;
            let stale = swept.records + swept.steps + swept.mountpoints;
            if stale > 0 {
                items.push(item(
                    "mountpoint",
                    format!("{stale} records and mountpoints"),
                    "nothing is mounted there",
                    0,
                ));
            }
        }
        drop(sweep);
        let trash = if dry_run { trash::measured(&self.layout)? } else { trash::finish(&self.layout)? };
        let waits = "it was removed and waits to be deleted";
        let of_trash = |(driver, name, bytes)| item("trash", format!("{driver}/{name}"), waits, bytes);
        items.extend(trash.into_iter().map(of_trash));
        let mut trimmed = None;
        if !dry_run {
            let freed = self.driver.make_room()?;
            if freed > 0 {
                let object = format!("{} MiB", freed >> 20);
                items.push(item("chunks", object, "the file system held them for what did not need them", 0));
            }
            if self.layout.has_pool() {
                trimmed = Some(self.pool_trim()?);
            }
            crate::reserve::keep(&self.layout);
            point("store.gc.done")?;
        }
        Ok(GcReport { bytes: items.iter().map(|item| item.bytes).sum(), items, trimmed, dry_run })
    }

    fn collect_layers(&self, dry_run: bool) -> Result<Vec<GcItem>> {
        let garbage = if dry_run {
            self.catalog.read(|tx| self.unreachable(tx))?
        } else {
            let owner = self.announce()?;
            let garbage = self.catalog.write(Durability::Full, |tx| {
                let garbage = self.unreachable(tx)?;
                garbage.iter().try_for_each(|layer| layers::remove(tx, layer.id, Some(owner.id)))?;
                Ok(garbage)
            })?;
            point("store.gc.recorded")?;
            self.finish_removal(&garbage)?;
            garbage
        };
        Ok(garbage.iter().map(item_of).collect())
    }

    /// Has the drivers take away what they made ahead for mounts of layers that only lie below others.
    pub(crate) fn collect_prepared(&self, dry_run: bool) -> Result<Vec<GcItem>> {
        let mut items = Vec::new();
        for name in self.catalog.read(layers::drivers)? {
            let driver = self.driver_named(&name)?;
            let tops = self.catalog.read(|tx| images::tops(tx, &name))?;
            let alone = if dry_run { None } else { self.alone_with_layers_for_now()? };
            if alone.is_none() && !dry_run {
                break;
            }
            let taken = driver.unprepare(&|id| tops.contains(&id), dry_run)?;
            drop(alone);
            if !dry_run && !taken.is_empty() {
                let measure = |(id, _): &(LayerId, _)| Some((*id, driver.usage(*id).ok()?));
                let measured: Vec<_> = taken.iter().filter_map(measure).collect();
                self.catalog.write(Durability::Normal, |tx| {
                    measured.iter().try_for_each(|(id, usage)| layers::set_usage(tx, *id, Some(*usage)))
                })?;
            }
            let reason = "only other layers lie on it; a mount of it makes this again";
            items.extend(
                taken.iter().map(|(id, usage)| item("cache", format!("{name} {id}"), reason, usage.bytes)),
            );
        }
        Ok(items)
    }

    /// The layers that are ready and that no root reaches, those on top first.
    pub(crate) fn unreachable(&self, tx: &Transaction<'_>) -> Result<Vec<Layer>> {
        let all: BTreeMap<LayerId, Layer> =
            layers::all(tx)?.into_iter().map(|layer| (layer.id, layer)).collect();
        let mut alive = BTreeSet::new();
        for owner in intents::owners(tx)? {
            if locks::lives(&self.layout, owner)? {
                alive.insert(owner);
            }
        }
        let mut reached = BTreeSet::new();
        let mut roots: Vec<LayerId> = layers::held(tx)?;
        roots.extend(
            intents::pins(tx)?.iter().filter(|(owner, _)| alive.contains(owner)).map(|(_, layer)| *layer),
        );
        roots.extend(all.values().filter(|layer| layer.state == State::Staging).map(|layer| layer.id));
        while let Some(id) = roots.pop() {
            if reached.insert(id) {
                roots.extend(all.get(&id).and_then(|layer| layer.parent));
            }
        }
        let mut garbage: Vec<Layer> = all
            .into_values()
            .filter(|layer| layer.state == State::Ready && !reached.contains(&layer.id))
            .collect();
        garbage.reverse();
        Ok(garbage)
    }

    pub(crate) fn collect_files(&self, dry_run: bool) -> Result<Vec<GcItem>> {
        let needed =
            |tx: &Transaction<'_>| Ok((images::every(tx)?, images::configs_needed(tx)?, layers::blobs(tx)?));
        let (images, configs, blobs) =
            if dry_run { self.catalog.read(needed)? } else { self.catalog.read_settled(needed)? };
        let mut items = Vec::new();
        let mut take = |kind: &'static str, path: std::path::PathBuf, reason: &str| -> Result<()> {
            let bytes = files::bytes_of(&path);
            items.push(item(kind, path.display().to_string(), reason, bytes));
            if dry_run { Ok(()) } else { files::remove_any(&path) }
        };
        let temporary = vellum_sys::file::TEMPORARY_PREFIX;
        for entry in files::entries(&self.layout.configs())? {
            if !entry.name.starts_with(temporary) && !configs.contains(&entry.name) {
                take(
                    "config",
                    self.layout.configs().join(entry.name),
                    "no image and no container has this configuration",
                )?;
            }
        }
        for entry in files::entries(&self.layout.blobs())? {
            if !entry.name.starts_with(temporary) && !blobs.contains(&entry.name) {
                take("blob", self.layout.blobs().join(entry.name), "no layer came in this blob")?;
            }
        }
        for driver in files::entries(&self.layout.images())? {
            for entry in files::entries(&self.layout.images().join(&driver.name))? {
                let known = images.iter().any(|(of, id)| {
                    *of == driver.name && entry.name.strip_suffix(".json") == Some(&id.digest().hex())
                });
                if !known && !entry.name.starts_with(temporary) {
                    let path = self.layout.images().join(&driver.name).join(entry.name);
                    take("config", path, "there is no such image")?;
                }
            }
        }
        Ok(items)
    }
}

fn item(kind: &'static str, object: impl Into<String>, reason: &str, bytes: u64) -> GcItem {
    GcItem { kind, object: object.into(), reason: reason.to_owned(), bytes }
}

fn item_of(layer: &Layer) -> GcItem {
    let reason = match layer.role {
        Role::Image => {
            "no image, container, save point or snapshot is made of it: an interrupted load left it, or its image is gone"
        }
        Role::Container | Role::Save => "its container is gone",
        Role::Snapshot => "its snapshot is gone",
    };
    let object = match layer.diff_id {
        Some(diff) => format!("{} {} ({diff})", layer.driver, layer.id),
        None => format!("{} {}", layer.driver, layer.id),
    };
    item("layer", object, reason, layer.usage.bytes)
}
