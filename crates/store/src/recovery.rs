//! What is done when a store is opened after something died.
//!
//! One question to the catalog says whether there is anything to do: are there operations that it knows of and that do not live, and is
//! this still the boot in which the store was last swept? Mostly the answer costs two index look-ups.
//!
//! | found | because | done |
//! |---|---|---|
//! | a layer `staging`, its owner dead | killed while unpacking, creating, copying | the row becomes `removing`, the container, save point or snapshot that was to have it goes; then as below |
//! | a layer `removing`, its owner dead | killed after the removal was reported, or in the row above | moved to the trash, row forgotten |
//! | a damaged layer with a successor, whose owner is dead | killed while it was replaced | the replacement is finished; taken back if something was mounted meanwhile ([`crate::mend`]) |
//! | pins of a dead owner | killed load | deleted; its ready layers stay until `gc`, and the next load of them finds them |
//! | a fresh layer that is not whole | made without a sync before a power cut | made whole at its next use, or at boot ([`crate::fresh`]) |
//! | a folder without a row | power cut took the intent away | moved to the trash; at boot and by `gc` |
//! | files without a row in `config`, `images`, `blobs` | killed before the row was committed | deleted by `gc` |
//! | files in `tmp` of dead owners, locks of dead owners | killed | deleted; at boot and by `gc` |
//! | mount records of another boot, or of mounts that are gone | reboot, unmounted by hand | forgotten by the mounter's sweep |
//! | usage of containers after a boot | they may have been written to just before a power cut | measured anew when asked for |

use crate::catalog::{Durability, containers, intents, layers, schema};
use crate::faults::point;
use crate::locks::{OwnerId, lives};
use crate::{Error, GcItem, Result, Store, files, locks};
use std::collections::BTreeSet;
use vellum_sys::lock::FileLock;
use vellum_types::LayerId;

/// The quick look, and the sweep if there is something to do.
pub(crate) fn at_open(store: &Store) -> Result<()> {
    let boot = vellum_sys::boot::id().map_err(|e| Error::io("read", "/proc/sys/kernel/random/boot_id", e))?;
    let (owners, last_boot) =
        store.catalog.read(|tx| Ok((intents::owners(tx)?, schema::get(tx, "boot")?)))?;
    take_over_dead(store, &owners)?;
    if last_boot.as_deref() != Some(boot) {
        after_boot(store, boot)?;
    }
    Ok(())
}

/// Rolls back or finishes what dead operations left.
pub(crate) fn take_over_dead(store: &Store, owners: &[OwnerId]) -> Result<()> {
    if !owners.is_empty() {
        crate::mend::finish_pending(store)?;
    }
    let mut dead = Vec::new();
    for owner in owners {
        if owner.0 == -1 || !lives(&store.layout, *owner)? {
            dead.push(*owner);
        }
    }
    if dead.is_empty() {
        return Ok(());
    }
    crate::reserve::release_if_full(&store.layout);
    let by = store.announce()?;
    // Durable: a removal that its owner did not live to bring to the disk must not come back when the files are gone.
    let left = store.catalog.write(Durability::Full, |tx| {
        let mut left = Vec::new();
        for owner in &dead {
            // Asked again inside the transaction: two sweeps at once share the work.
            if owner.0 == -1 || !lives(&store.layout, *owner)? {
                left.extend(intents::take_over(tx, *owner, by.id)?);
            }
        }
        Ok(left)
    })?;
    point("store.sweep.taken")?;
    for layer in &left {
        // A container that was removed by force may still be mounted.
        if layer.role == layers::Role::Container || layer.role == layers::Role::Snapshot {
            let _ = store.mounter.release_all(layer.id, true);
        }
    }
    store.finish_removal(&left)?;
    dead.iter().for_each(|owner| locks::remove_lock(&store.layout, *owner));
    if !left.is_empty() {
        store.empty_trash_later();
    }
    Ok(())
}

/// The sweep of the first process after a boot.
fn after_boot(store: &Store, boot: &str) -> Result<()> {
    let path = store.layout.lock("sweep");
    let Some(_sweep) = FileLock::try_exclusive(&path).map_err(|e| Error::io("take the lock", &path, e))?
    else {
        return Ok(());
    };
    let _ = store.mounter.sweep().map_err(Error::from)?;
    point("store.sweep.mounts")?;
    sweep_folders(store, false)?;
    sweep_temporary(store, false)?;
    locks::remove_dead_owners(&store.layout, false)?;
    point("store.sweep.files")?;
    store.settle_fresh()?;
    store.catalog.write(Durability::Normal, |tx| {
        containers::distrust_usage(tx)?;
        schema::set(tx, "boot", boot)
    })?;
    store.empty_trash_later();
    Ok(())
}

/// Moves folders of layers to the trash that no row names. The disk is walked first and the catalog asked after: a row is made
/// before its folder, and goes after it. The move itself is made inside a write transaction, because after a power cut an id
/// may be handed out again.
pub(crate) fn sweep_folders(store: &Store, dry_run: bool) -> Result<Vec<GcItem>> {
    let mut items = Vec::new();
    for name in driver_names(store)? {
        let driver = store.driver_named(&name)?;
        let mut found = BTreeSet::new();
        driver.walk(&mut |id, _| {
            found.insert(id);
            Ok(())
        })?;
        for entry in files::entries(&store.layout.layers().join(&name))? {
            if let Ok(id) = entry.name.parse::<LayerId>() {
                found.insert(id);
            }
        }
        let orphans = store.catalog.read(|tx| {
            let mut orphans = Vec::new();
            for id in found {
                if layers::get(tx, id)?.is_none_or(|layer| layer.driver != name) {
                    orphans.push(id);
                }
            }
            Ok(orphans)
        })?;
        for id in orphans {
            let bytes = driver.usage(id).map_or(0, |usage| usage.bytes)
                + files::bytes_of(&store.layout.layer(&name, id));
            if !dry_run && !remove_orphan(store, &name, id)? {
                continue;
            }
            items.push(GcItem {
                kind: "folder",
                object: format!("{name} {id}"),
                reason: "no row of the catalog names it: a power cut or a kill interrupted its making".into(),
                bytes,
            });
        }
    }
    Ok(items)
}

pub(crate) fn remove_orphan(store: &Store, driver: &str, id: LayerId) -> Result<bool> {
    store.catalog.write(Durability::Normal, |tx| {
        if layers::get(tx, id)?.is_some_and(|layer| layer.driver == driver) {
            return Ok(false);
        }
        let _ = store.mounter.release_all(id, true);
        store.take_off_disk(driver, id)?;
        point("store.sweep.orphan")?;
        Ok(true)
    })
}

/// The drivers that have anything in this store and that this program knows.
pub(crate) fn driver_names(store: &Store) -> Result<Vec<String>> {
    let on_disk: BTreeSet<String> =
        files::entries(&store.layout.layers())?.into_iter().map(|entry| entry.name).collect();
    Ok(on_disk
        .into_iter()
        .filter(|name| crate::drivers::factory(name).is_ok_and(|f| f.name() == name))
        .collect())
}

/// Deletes temporary files whose operation is dead, and publications that were never finished.
pub(crate) fn sweep_temporary(store: &Store, dry_run: bool) -> Result<Vec<GcItem>> {
    let mut items = Vec::new();
    let mut remove = |path: std::path::PathBuf, reason: &str| -> Result<()> {
        items.push(GcItem {
            kind: "temporary",
            object: path.display().to_string(),
            reason: reason.to_owned(),
            bytes: files::bytes_of(&path),
        });
        if dry_run { Ok(()) } else { files::remove_any(&path) }
    };
    for entry in files::entries(&store.layout.tmp())? {
        let owner = entry.name.get(..16).and_then(|hex| i64::from_str_radix(hex, 16).ok());
        if let Some(owner) = owner
            && lives(&store.layout, OwnerId(owner))?
        {
            continue;
        }
        // Others' spool files are locked as long as they are used.
        let path = store.layout.tmp().join(&entry.name);
        if owner.is_none() && vellum_sys::lock::is_held(&path).unwrap_or(false) {
            continue;
        }
        remove(path, "the operation that made it is dead")?;
    }
    let layout = &store.layout;
    let mut folders = vec![layout.root().to_owned(), layout.pool(), layout.configs(), layout.blobs()];
    for driver in files::entries(&store.layout.images())? {
        folders.push(store.layout.images().join(driver.name));
    }
    for folder in folders {
        for entry in files::entries(&folder)? {
            if entry.name.starts_with(vellum_sys::file::TEMPORARY_PREFIX) {
                remove(folder.join(entry.name), "it was never put in place")?;
            }
        }
    }
    Ok(items)
}
