//! Docker's layers: what a graph driver offers, on the store's layers.
//!
//! # What it owns
//!
//! Rows of `snapshots` in a namespace of its own, under docker's ids, and their layers (role `snapshot`). Docker knows no commit: any layer may
//! become a parent, of an image (`Create`, `ApplyDiff`) as of a container (`ID-init`, written through its mount, and `ID` on top). The contract
//! wants parents committed. So:
//!
//! ```text
//!                create                      apply, or create of a layer on it
//!   (nothing) ───────────▶ active ─────────────────────────────────────────────▶ committed
//!                            │ mounted writable                                       │ mounted read-only
//!                            └───────────────────── remove ───────────────────────────┴──▶ (nothing)
//! ```
//!
//! # Algorithms
//!
//! **Create** on an active parent *seals* that first:
//! 1. The parent's folder is locked alone. A mount of it turns read-only where it is (docker may still look at it: BuildKit copies from a stage while
//!    it builds on it); one that somebody writes to is refused.
//! 2. The driver commits it, its files are brought to the disk, one durable transaction calls it committed; `layer.json` follows.
//! 3. The new layer is made as containers are ([`crate::fresh`]): one durable transaction. Where the driver copies, it is only recorded, and
//!    copied when it is used: what docker unpacks into is not copied twice.
//!
//! **Apply** unpacks beside, so that a failure, or a kill, leaves the layer as it was:
//! 1. The layer's folder is locked alone. It must be active, not mounted, and hold nothing of its own.
//! 2. Intent: a new layer. The tar is unpacked into it with its recipe and its manifest, and it is joined to the parent ([`crate::stream`]).
//! 3. `layer.json`; barrier; one durable transaction makes the new layer ready and docker's, committed, and the old one `removing`.
//! 4. The old layer goes to the trash.
//!
//! **Diff** of an applied layer against its own parent gives the very tar back, from its recipe, and verifies the digest at the end; anything else is
//! the driver's diff, written as a tar in one order and form, so that the same layer always gives the same tar.
//!
//! **Get** and **Put** are the mounter's acquire and release. **Remove** unmounts lazily: docker decides what is in use.
//!
//! | dies | left | by whom it goes |
//! |---|---|---|
//! | create, after seal 1 | a mount that is read-only, of an active layer | the next create on it, or its removal |
//! | create, between the driver's commit and the transaction | active in the catalog, committed on disk: mounted read-only | the next create on it |
//! | create 3 | nothing, or files under an id that the next layer gets | [`crate::fresh`] |
//! | apply, before 3 is done | the new layer as an intent; docker's layer empty as it was | rolled back at the next open |
//! | apply 4, remove after its transaction | a layer `removing` | finished at the next open |
//!
//! **Locks**: what works on a layer holds its folder shared; what seals, fills or removes it, alone.

mod diff;
mod fill;

use crate::catalog::layers::{Layer, Role};
use crate::catalog::{Durability, layers, schema, snapshots};
use crate::containers::layer_file;
use crate::faults::point;
use crate::layerfiles::{LayerFile, SnapshotFile};
use crate::locks::{Hold, LayerLock};
use crate::{Code, Error, Labels, Result, SnapshotKind, SnapshotRow, Snapshots, Store, files};
use jiff::Timestamp;
use rusqlite::Transaction;
use std::path::PathBuf;
use std::sync::Arc;
use vellum_archive::target::Joints;
use vellum_driver::{Ability, Driver, MountOptions};
use vellum_types::LayerId;

/// The layers of one docker daemon.
#[derive(Debug)]
pub struct Graph<'a> {
    snapshots: Snapshots<'a>,
}

/// A layer that is being worked on.
struct Held {
    row: SnapshotRow,
    layer: Layer,
    driver: Arc<dyn Driver>,
    _lock: LayerLock,
}

impl Store {
    /// The layers of a docker daemon, in a namespace such as `docker`.
    pub fn graph(&self, namespace: &str) -> Graph<'_> {
        Graph { snapshots: self.snapshots(namespace) }
    }
}

impl Graph<'_> {
    /// Makes an empty layer, or one on `parent`, which is sealed first. `options` are docker's storage options.
    ///
    /// # Errors
    /// [`Code::Exists`]; [`Code::NotFound`]: there is no such parent; [`Code::InUse`]: the parent is being written to; [`Code::Unsupported`]: an option
    /// that the driver does not have here.
    pub fn create(&self, id: &str, parent: Option<&str>, options: &[(String, String)]) -> Result<()> {
        let store = self.store();
        self.check_options(id, options)?;
        store.check_floor("make the layer")?;
        store.catalog.read(|tx| snapshots::free(tx, self.namespace(), id))?;
        if let Some(parent) = parent {
            self.seal(parent)?;
        }
        let created = Timestamp::now();
        let base = |tx: &Transaction<'_>| -> Result<Option<LayerId>> {
            parent.map(|parent| Ok(snapshots::get(tx, self.namespace(), parent)?.layer)).transpose()
        };
        let add = |tx: &Transaction<'_>, layer, below| self.add(tx, id, parent, layer, below, created);
        match (options.is_empty(), store.driver.capabilities().has(Ability::InstantCreate)) {
            (true, true) => store.make_fresh(Role::Snapshot, false, base, add).map(drop),
            (true, false) => store.make_later(Role::Snapshot, base, add),
            (false, _) => store.make_synced(Role::Snapshot, false, options, base, add).map(drop),
        }
    }

    /// A driver without quota would say so too, but after the parent was sealed, and not what to do.
    fn check_options(&self, id: &str, options: &[(String, String)]) -> Result<()> {
        let driver = &self.store().driver;
        for (name, _) in options {
            let reason = match name.as_str() {
                "size" if driver.capabilities().has(Ability::Quota) => continue,
                "size" => format!(
                    "the driver '{}' cannot limit a layer's size here: {}",
                    driver.name(),
                    driver
                        .capabilities()
                        .get(Ability::Quota)
                        .map_or("it has no quota", |quota| &quota.reason)
                ),
                _ => format!("there is no storage option '{}'", name.escape_debug()),
            };
            return Err(Error::new(Code::Unsupported, format!("make the layer '{id}'"), reason)
                .with_hint("leave --storage-opt away, or serve docker with a driver that has quotas"));
        }
        Ok(())
    }

    fn add(
        &self,
        tx: &Transaction<'_>,
        id: &str,
        parent: Option<&str>,
        layer: LayerId,
        below: Option<LayerId>,
        created: Timestamp,
    ) -> Result<LayerFile> {
        let labels = Labels::new();
        let kind = SnapshotKind::Active;
        let namespace = self.namespace();
        let new =
            snapshots::NewSnapshot { namespace, key: id, kind, parent, layer, labels: &labels, created };
        snapshots::add(tx, &new)?;
        let mut file = layer_file(layer, Role::Snapshot, below, created, None);
        file.snapshot = Some(self.snapshot_file(id, kind, parent, created));
        Ok(file)
    }

    fn snapshot_file(
        &self,
        id: &str,
        kind: SnapshotKind,
        parent: Option<&str>,
        created: Timestamp,
    ) -> SnapshotFile {
        SnapshotFile {
            namespace: self.namespace().to_owned(),
            key: id.to_owned(),
            kind,
            parent: parent.map(str::to_owned),
            labels: Labels::new(),
            created,
        }
    }

    /// Commits an active layer where it is. One that is committed is fine.
    fn seal(&self, id: &str) -> Result<()> {
        let store = self.store();
        if self.snapshots.stat(id)?.kind == SnapshotKind::Committed {
            return Ok(());
        }
        let held = self.hold(id, Hold::Alone)?;
        if held.row.kind == SnapshotKind::Committed {
            return Ok(());
        }
        let layer = held.layer.id;
        let refused = |e: Error| {
            Error::caused(e.code(), format!("make a layer on '{id}'"), e)
                .with_hint("docker Puts a layer that it writes to before it makes one on it")
        };
        store.mounter.turn_read_only(layer).map_err(|e| refused(e.into()))?;
        let barrier = crate::layout::open_folder(store.layout.data())?;
        let _ = held.driver.commit(layer, held.layer.parent, &Joints::default())?;
        point("store.graph.joined")?;
        let usage = held.driver.usage(layer)?;
        if usage.inodes <= crate::savepoints::FEW_INODES {
            held.driver.sync(layer)?;
        } else {
            files::barrier(&barrier, store.layout.data())?;
        }
        store.catalog.write(Durability::Full, |tx| {
            snapshots::seal(tx, self.namespace(), id)?;
            layers::settled(tx, layer)?;
            layers::set_usage(tx, layer, Some(usage))
        })?;
        point("store.graph.sealed")?;
        self.snapshots.write_file(layer)
    }

    /// Takes a layer away, mounted or not. One that is not there is fine.
    ///
    /// # Errors
    /// [`Code::InUse`]: another layer lies on it, or is being made of it.
    pub fn remove(&self, id: &str) -> Result<()> {
        let store = self.store();
        let held = match self.hold_as_it_is(id, Hold::Alone) {
            Err(e) if e.code() == Code::NotFound => return Ok(()),
            held => held?,
        };
        if let Some(child) = store.catalog.read(|tx| snapshots::child(tx, self.namespace(), id))? {
            return Err(Error::new(
                Code::InUse,
                format!("remove the layer '{id}'"),
                format!("the layer '{child}' lies on it"),
            ));
        }
        let _ = store.mounter.release_all(held.layer.id, true).map_err(Error::from)?;
        point("store.graph.unmounted")?;
        drop(held);
        match self.snapshots.remove(id) {
            // Another request was faster.
            Err(e) if e.code() == Code::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Whether there is such a layer.
    ///
    /// # Errors
    /// The catalog's.
    pub fn exists(&self, id: &str) -> Result<bool> {
        match self.snapshots.stat(id) {
            Ok(_) => Ok(true),
            Err(e) if e.code() == Code::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Mounts the layer, or counts one more user of its mount, and gives the path, which stays the same as long as it is
    /// mounted. A committed one is mounted read-only.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's; the kernel's.
    pub fn get(&self, id: &str, label: Option<&str>) -> Result<PathBuf> {
        let store = self.store();
        let held = self.hold(id, Hold::Shared)?;
        let read_only = held.row.kind == SnapshotKind::Committed;
        let options = MountOptions { read_only, label: label.map(str::to_owned), ..MountOptions::default() };
        let _reading = store.reading_layers()?;
        let plan = held.driver.mounts(held.layer.id, &options)?;
        store.mounter.acquire(held.layer.id, &plan).map_err(Error::from)
    }

    /// Takes one user off the layer's mount; with the last it is unmounted. A layer that is not mounted, or not there, is fine.
    ///
    /// # Errors
    /// [`Code::InUse`]: it is the last, and a process of this machine works in it; it is still counted then.
    pub fn put(&self, id: &str) -> Result<()> {
        match self.hold_as_it_is(id, Hold::Shared) {
            Err(e) if e.code() == Code::NotFound => Ok(()),
            held => self.store().mounter.release(held?.layer.id).map(drop).map_err(Error::from),
        }
    }

    /// What an inspecting engine shows of a layer.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's.
    pub fn metadata(&self, id: &str) -> Result<Vec<(String, String)>> {
        let held = self.hold(id, Hold::Shared)?;
        let mut facts = held.driver.metadata(held.layer.id)?;
        facts.push(("Layer".to_owned(), held.layer.id.to_string()));
        Ok(facts)
    }

    /// Facts of the driver and the store, for people.
    ///
    /// # Errors
    /// The driver's; the catalog's.
    pub fn status(&self) -> Result<Vec<(String, String)>> {
        let store = self.store();
        let mut status = vec![
            ("Vellum Driver".to_owned(), store.driver.name().to_owned()),
            ("Vellum Root".to_owned(), store.root().display().to_string()),
        ];
        status.extend(store.driver.status()?);
        let home = store.catalog.read(|tx| schema::get(tx, &self.home_key()))?;
        status.extend(home.map(|home| ("Docker's Home".to_owned(), home)));
        Ok(status)
    }

    /// Notes the folder that docker has for this driver's files. They stay in the store.
    ///
    /// # Errors
    /// The catalog's.
    pub fn record_home(&self, home: &str) -> Result<()> {
        let store = self.store();
        let key = self.home_key();
        if store.catalog.read(|tx| schema::get(tx, &key))?.as_deref() == Some(home) {
            return Ok(());
        }
        store.catalog.write(Durability::Full, |tx| schema::set(tx, &key, home))?;
        point("store.graph.home")
    }

    fn home_key(&self) -> String {
        format!("home:{}", self.namespace())
    }

    /// The daemon ends: unmounts layers that it has left mounted, and tells how many were.
    ///
    /// A mount that somebody works in stays, and one whose file system is mounted elsewhere too, in a container that lives on
    /// without the daemon: mounting its layer again beside that one would destroy it.
    ///
    /// # Errors
    /// The catalog's; the mount table cannot be read.
    pub fn cleanup(&self) -> Result<usize> {
        let store = self.store();
        let mut unmounted = 0;
        for row in self.snapshots.walk()? {
            let Some(record) = store.mounter.mounted(row.layer).map_err(Error::from)? else { continue };
            let elsewhere = vellum_sys::mountinfo::mounted_elsewhere(&record.target)
                .map_err(|e| Error::io("look who else has the mount", &record.target, e))?;
            if !elsewhere && store.mounter.release_all(row.layer, false).is_ok() {
                unmounted += 1;
            }
        }
        Ok(unmounted)
    }

    fn store(&self) -> &Store {
        self.snapshots.store
    }

    fn namespace(&self) -> &str {
        &self.snapshots.namespace
    }

    /// The layer, whole, with its folder locked.
    fn hold(&self, id: &str, hold: Hold) -> Result<Held> {
        for _ in 0..100 {
            // Before the lock: a layer that is only recorded is made by whoever has its lock alone.
            self.store().make_whole(self.snapshots.stat(id)?.layer)?;
            let held = self.hold_as_it_is(id, hold)?;
            if !held.layer.fresh || held.driver.capabilities().has(Ability::InstantCreate) {
                return Ok(held);
            }
        }
        Err(changing(id))
    }

    /// As [`Graph::hold`], whether the layer is whole or not.
    fn hold_as_it_is(&self, id: &str, hold: Hold) -> Result<Held> {
        let store = self.store();
        let find = || {
            store.catalog.read(|tx| {
                let row = snapshots::get(tx, self.namespace(), id)?;
                let layer = layers::get(tx, row.layer)?;
                Ok((layer.ok_or_else(|| Error::not_found("layer", row.layer))?, row))
            })
        };
        // One that is filled at the same moment gets another folder; that cannot go on for ever.
        for _ in 0..100 {
            let (layer, row) = find()?;
            let folder = store.layout.layer(&layer.driver, layer.id);
            let Some(lock) = LayerLock::take(&folder, hold)? else {
                if find()?.1.layer == row.layer && store.read_only.is_none() {
                    crate::layout::make_folder(&folder)?;
                }
                continue;
            };
            let (layer, row) = find()?;
            if folder == store.layout.layer(&layer.driver, layer.id) {
                let driver = store.driver_named(&layer.driver)?;
                return Ok(Held { row, layer, driver, _lock: lock });
            }
        }
        Err(changing(id))
    }
}

fn changing(id: &str) -> Error {
    Error::new(Code::InUse, format!("work on the layer '{id}'"), "it is changed all the time")
}
