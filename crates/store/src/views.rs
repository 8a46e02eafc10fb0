//! Front ends' snapshots: what containerd's snapshotters and docker's graph drivers offer, on the store's layers.
//!
//! A snapshot is a layer of role `snapshot` and a row in `snapshots` under (namespace, key). The rules of containerd: an *active* snapshot is
//! written and becomes *committed* under a name, or is removed; a *view* only looks; only committed ones are parents;
//! one that others lie on is not removed. All of them are roots of the garbage collection.

use crate::catalog::layers::{Layer, Role};
use crate::catalog::{Durability, layers, snapshots};
use crate::containers::layer_file;
use crate::faults::point;
use crate::layerfiles::{LayerFile, SnapshotFile};
use crate::locks::{Hold, LayerLock, OwnerId};
use crate::{Code, Error, Result, Store};
use jiff::Timestamp;
use rusqlite::Transaction;
use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use vellum_archive::target::{Joints, Usage};
use vellum_driver::{ClassicMount, Driver, MountOptions, MountPlan, Owners};
use vellum_types::LayerId;

/// Owners of a snapshot that is mounted for a user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The namespace's maps.
    pub owners: Owners,
    /// Whom the namespace's root is on the host: user and group.
    pub root: (u32, u32),
}

/// What came of an attempt to remove a snapshot.
enum Removal {
    /// Something is mounted for this layer, which is to be undone first.
    Held(LayerId),
    /// Its rows are gone. `given_up` is a layer of an image that it was, and that stays.
    Done { removed: Vec<Layer>, given_up: Option<LayerId> },
}

/// What a snapshot is, in containerd's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Being written.
    Active,
    /// A read-only look at its parent, or at nothing.
    View,
    /// Never changes again.
    Committed,
}

impl SnapshotKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::View => "view",
            Self::Committed => "committed",
        }
    }

    /// Whether its layer is a view for the driver. A view of nothing is none: it is an empty layer, which is only ever mounted read-only.
    pub(crate) fn is_look(self, on_parent: bool) -> bool {
        self == Self::View && on_parent
    }

    pub(crate) fn of(name: &str) -> Self {
        match name {
            "active" => Self::Active,
            "view" => Self::View,
            _ => Self::Committed,
        }
    }
}

/// A front end's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SnapshotRow {
    /// Its key (active, view) or name (committed), unique in the front end's namespace.
    pub key: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// The snapshot it lies on.
    pub parent: Option<String>,
    /// Its layer on disk.
    pub layer: LayerId,
    /// The front end's labels.
    pub labels: BTreeMap<String, String>,
    /// When it was made.
    pub created: Timestamp,
    /// When its labels or its kind changed last.
    pub updated: Timestamp,
}

/// The snapshots of one front end.
#[derive(Debug)]
pub struct Snapshots<'a> {
    pub(crate) store: &'a Store,
    pub(crate) namespace: String,
}

/// A front end's labels.
pub type Labels = BTreeMap<String, String>;

impl Snapshots<'_> {
    /// Makes an active snapshot: an empty one, or on a committed one.
    ///
    /// # Errors
    /// [`Code::Exists`]: the key is taken; [`Code::NotFound`]: there is no such parent; [`Code::Invalid`]: it is not committed.
    pub fn prepare(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<SnapshotRow> {
        self.make(key, SnapshotKind::Active, parent, labels, &[])
    }

    /// As [`Snapshots::prepare`], with storage options as in [`vellum_driver::CreateSpec::options`].
    ///
    /// # Errors
    /// As there; [`Code::Unsupported`]: an option that the driver does not have.
    pub fn prepare_with(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        options: &[(String, String)],
    ) -> Result<SnapshotRow> {
        self.make(key, SnapshotKind::Active, parent, labels, options)
    }

    /// Makes a read-only look at a committed snapshot, or at nothing.
    ///
    /// # Errors
    /// As [`Snapshots::prepare`].
    pub fn view(&self, key: &str, parent: Option<&str>, labels: &Labels) -> Result<SnapshotRow> {
        self.make(key, SnapshotKind::View, parent, labels, &[])
    }

    fn make(
        &self,
        key: &str,
        kind: SnapshotKind,
        parent: Option<&str>,
        labels: &Labels,
        options: &[(String, String)],
    ) -> Result<SnapshotRow> {
        let store = self.store;
        let created = Timestamp::now();
        let view = kind.is_look(parent.is_some());
        let base = |tx: &Transaction<'_>| -> Result<Option<LayerId>> {
            Ok(parent.map(|parent| self.committed(tx, parent)).transpose()?.map(|row| row.layer))
        };
        let add = |tx: &Transaction<'_>, layer: LayerId, below: Option<LayerId>| {
            let new = snapshots::NewSnapshot {
                namespace: &self.namespace,
                key,
                kind,
                parent,
                layer,
                labels,
                created,
            };
            snapshots::add(tx, &new)?;
            let mut file = layer_file(layer, Role::Snapshot, below, created, None);
            file.snapshot = Some(SnapshotFile {
                namespace: self.namespace.clone(),
                key: key.to_owned(),
                kind,
                parent: parent.map(str::to_owned),
                labels: labels.clone(),
                created,
            });
            Ok(file)
        };
        let layer = if store.makes_fresh(options) {
            store.make_fresh(Role::Snapshot, view, base, add)?
        } else {
            store.make_synced(Role::Snapshot, view, options, base, add)?
        };
        store.tidy_later();
        Ok(SnapshotRow {
            key: key.to_owned(),
            kind,
            parent: parent.map(str::to_owned),
            layer,
            labels: labels.clone(),
            created,
            updated: created,
        })
    }

    pub(crate) fn committed(&self, tx: &Transaction<'_>, key: &str) -> Result<SnapshotRow> {
        let row = snapshots::get(tx, &self.namespace, key)?;
        if row.kind == SnapshotKind::Committed {
            return Ok(row);
        }
        Err(Error::new(Code::Invalid, format!("use the snapshot '{key}' as a parent"), "it is not committed"))
    }

    /// Says that an active snapshot is being unpacked into, and will be committed: no error of the disk on the way is missed then, if the store has a [`crate::Keeper`].
    pub fn expect_commit(&self, row: &SnapshotRow) {
        self.store.expect_commit(row.layer);
    }

    /// Turns the active snapshot `key` into the committed one `name`; onto `parent`, if it was made without one.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::Invalid`]: it is not active, or has another parent; [`Code::Exists`]: the name is
    /// taken; [`Code::Unsupported`]: a parent named only now, with a driver that cannot join.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<SnapshotRow> {
        self.commit_with(name, key, parent, labels, false)
    }

    /// As [`Snapshots::commit`], of a snapshot that somebody else has unpacked a layer's archive into. If its parent is named only now, the directories that the archive did
    /// not list get what the same directories below have ([`crate::implied`]); that costs a look at each of the layer's directories.
    ///
    /// # Errors
    /// As there.
    pub fn commit_unpacked(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<SnapshotRow> {
        self.commit_with(name, key, parent, labels, true)
    }

    fn commit_with(
        &self,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
        unpacked: bool,
    ) -> Result<SnapshotRow> {
        let store = self.store;
        let (row, layer, below) = store.catalog.read(|tx| {
            let row = snapshots::get(tx, &self.namespace, key)?;
            let layer = layers::get(tx, row.layer)?.ok_or_else(|| Error::not_found("layer", row.layer))?;
            let below = parent.map(|parent| self.committed(tx, parent)).transpose()?.map(|row| row.layer);
            snapshots::free(tx, &self.namespace, name)?;
            Ok((row, layer, below))
        })?;
        let wrong = |reason| Err(Error::new(Code::Invalid, format!("commit the snapshot '{key}'"), reason));
        if row.kind != SnapshotKind::Active {
            return wrong("it is not active");
        }
        if parent.is_some() && row.parent.is_some() && row.parent.as_deref() != parent {
            return wrong("it was made on another parent");
        }
        let parent = row.parent.as_deref().or(parent);
        let below = layer.parent.or(below);
        let driver = store.driver_named(&layer.driver)?;
        store.make_whole(layer.id)?;
        // Who asks after the snapshot at the same moment does not take it for damaged.
        let _lock = LayerLock::take(&store.layout.layer(&layer.driver, layer.id), Hold::Alone)?;
        let barrier = match store.no_more_expected(row.layer) {
            Some(barrier) => barrier,
            None => crate::layout::open_folder(store.layout.data())?,
        };
        // What was prepared for those who mounted it; what they still have mounted stays.
        self.release(row.layer)?;
        let implied = match driver.own_folder(row.layer)? {
            Some(folder) if unpacked && layer.parent.is_none() && below.is_some() => {
                crate::implied::of_unpacked(&folder, row.created)?
            }
            _ => Vec::new(),
        };
        let _ = driver.commit(row.layer, below, &Joints { implied, ..Joints::default() })?;
        point("store.commit-snapshot.joined")?;
        let usage = driver.usage(row.layer)?;
        if usage.inodes <= crate::savepoints::FEW_INODES {
            driver.sync(row.layer)?;
        } else {
            crate::files::barrier(&barrier, store.layout.data())?;
        }
        store.catalog.write(Durability::Full, |tx| {
            snapshots::commit(tx, &self.namespace, key, name, parent, labels)?;
            layers::set_parent(tx, row.layer, below)?;
            layers::settled(tx, row.layer)?;
            layers::set_usage(tx, row.layer, Some(usage))
        })?;
        point("store.commit-snapshot.done")?;
        self.write_file(row.layer)?;
        self.stat(name)
    }

    /// How to mount a snapshot. The front end mounts it itself, or has the store's mounter do it. What the plan of a committed one needs may be taken away by [`Store::gc`] before it is
    /// mounted: then it is asked for once more.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's.
    pub fn mounts(&self, key: &str, options: &MountOptions) -> Result<MountPlan> {
        let row = self.stat(key)?;
        let driver = self.whole(&row)?;
        let read_only = options.read_only || row.kind == SnapshotKind::View;
        Ok(driver.mounts(row.layer, &MountOptions { read_only, ..options.clone() })?)
    }

    /// How somebody else mounts a snapshot: the mounts as strings, to be performed one after the other.
    ///
    /// `row` is the snapshot as it was found just now. Where the driver's plan is more than such strings can say, what is missing is mounted by the store's mounter, and stays until the snapshot is
    /// removed or the machine is started anew; asking again finds it, or makes it again.
    ///
    /// With `mapping` the owners of lower layers are mapped, and the root of an active snapshot belongs to the mapped root. Where the front end can do the first, the
    /// mounts have the options `uidmap` and `gidmap` for it; an overlay with data-only layers, which it cannot map, is prepared.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's; the kernel's.
    pub fn hand_out(&self, row: &SnapshotRow, mapping: Option<&Mapping>) -> Result<Vec<ClassicMount>> {
        let store = self.store;
        let driver = self.whole(row)?;
        if let Some((uid, gid)) =
            mapping.filter(|_| row.kind == SnapshotKind::Active).map(|mapping| mapping.root)
            && let Some(folder) = driver.own_folder(row.layer)?
        {
            let folder = crate::layout::open_folder(&folder)?;
            rustix::fs::fchown(&folder, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
                .map_err(|e| Error::io("give the snapshot to its owner in", store.layout.root(), e))?;
        }
        let read_only = row.kind == SnapshotKind::View;
        let options = MountOptions { read_only, by_others: true, ..MountOptions::default() };
        let _reading = store.reading_layers()?;
        let plan = driver.mounts(row.layer, &options)?;
        let prepared = mapping.and_then(|mapping| plan.with_lower_owners(&mapping.owners));
        // What is not prepared, the front end maps: it clones the folder that all lower layers lie in, and short names that are links lead out of the clone.
        let told = mapping.filter(|_| prepared.is_none());
        let plan = match (prepared, told) {
            (Some(plan), _) => plan,
            (None, Some(_)) => plan
                .without_links()
                .map_err(|e| Error::io("look at the layers in", store.layout.root(), e))?,
            (None, None) => plan,
        };
        let mounts = self.strings(row, &plan)?;
        Ok(match told {
            None => mounts,
            Some(Mapping { owners, .. }) => {
                let words = [format!("uidmap={}", owners.uids), format!("gidmap={}", owners.gids)];
                let told = |mut mount: ClassicMount| {
                    mount.options.extend(words.clone());
                    mount
                };
                mounts.into_iter().map(told).collect()
            }
        })
    }

    /// The plan as strings, after what they cannot say was prepared.
    fn strings(&self, row: &SnapshotRow, plan: &MountPlan) -> Result<Vec<ClassicMount>> {
        let store = self.store;
        if let Some(mounts) = plan.classic() {
            return Ok(mounts);
        }
        if let Some(root) = store.mounter.hold(row.layer, plan).map_err(Error::from)?
            && let Some(mounts) = MountPlan::of(root).classic()
        {
            return Ok(mounts);
        }
        let place = match store.mounter.mounted(row.layer).map_err(Error::from)? {
            Some(record) => record.target,
            None => store.mounter.acquire(row.layer, plan).map_err(Error::from)?,
        };
        MountPlan::bind(place, plan.root.read_only).classic().ok_or_else(|| {
            let what = format!("mount the snapshot '{}'", row.key);
            Error::new(Code::Unsupported, what, "its path is no text")
        })
    }

    /// Removes a snapshot that no other lies on.
    ///
    /// # Errors
    /// [`Code::NotFound`]; [`Code::InUse`].
    pub fn remove(&self, key: &str) -> Result<()> {
        let store = self.store;
        crate::reserve::release_if_full(&store.layout);
        let remover = store.remover()?;
        let owner = remover.id();
        // What was handed out is let go of first; another request may hand it out again at the same moment, which cannot go on for ever.
        for _ in 0..100 {
            match self.remove_unheld(key, owner)? {
                Removal::Held(layer) => self.release(layer)?,
                Removal::Done { removed, given_up } => {
                    removed.iter().for_each(|layer| drop(store.no_more_expected(layer.id)));
                    if let Some(layer) = given_up {
                        self.write_file(layer)?;
                    }
                    store.tidy_later();
                    return remover.finish(store, removed);
                }
            }
        }
        Err(Error::new(Code::InUse, format!("remove the snapshot '{key}'"), "it is mounted all the time"))
    }

    /// Takes the rows of a snapshot away, unless something is mounted for it.
    fn remove_unheld(&self, key: &str, owner: OwnerId) -> Result<Removal> {
        let store = self.store;
        let mut given_up = None;
        let mut held = None;
        let removed = store.catalog.write(Durability::Full, |tx| {
            let row = self.without_children(tx, key)?;
            if row.kind != SnapshotKind::Committed && self.is_held(row.layer)? {
                held = Some(row.layer);
                return Err(Error::new(Code::InUse, format!("remove the snapshot '{key}'"), "it is mounted"));
            }
            snapshots::remove(tx, &self.namespace, key)?;
            let Some(layer) = layers::get(tx, row.layer)? else { return Ok(Vec::new()) };
            if layer.role == Role::Image {
                let mut lives = store.others_live(owner);
                let removed = layers::release_chain(tx, Some(layer.id), owner, &mut lives)?;
                given_up = removed.is_empty().then_some(layer.id);
                return Ok(removed);
            }
            let parent = layer.parent;
            layers::remove(tx, row.layer, Some(owner))?;
            let mut removed = vec![layer];
            let mut lives = store.others_live(owner);
            removed.extend(layers::release_chain(tx, parent, owner, &mut lives)?);
            Ok(removed)
        });
        if let Some(layer) = held {
            return Ok(Removal::Held(layer));
        }
        let removed = removed?;
        point("store.unprepare.recorded")?;
        Ok(Removal::Done { removed, given_up })
    }

    fn without_children(&self, tx: &Transaction<'_>, key: &str) -> Result<SnapshotRow> {
        let row = snapshots::get(tx, &self.namespace, key)?;
        match snapshots::child(tx, &self.namespace, key)? {
            None => Ok(row),
            Some(child) => Err(Error::new(
                Code::InUse,
                format!("remove the snapshot '{key}'"),
                format!("the snapshot '{child}' lies on it"),
            )),
        }
    }

    /// Whether [`Snapshots::hand_out`] mounted something for a layer.
    fn is_held(&self, layer: LayerId) -> Result<bool> {
        Ok(self.store.mounter.mounted(layer).map_err(Error::from)?.is_some())
    }

    /// Undoes what [`Snapshots::hand_out`] mounted.
    fn release(&self, layer: LayerId) -> Result<()> {
        if self.is_held(layer)? {
            let _ = self.store.mounter.release_all(layer, true).map_err(Error::from)?;
        }
        Ok(())
    }

    /// All snapshots of this front end, by key.
    ///
    /// # Errors
    /// The catalog's.
    pub fn walk(&self) -> Result<Vec<SnapshotRow>> {
        self.store.catalog.read(|tx| snapshots::all(tx, &self.namespace))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn stat(&self, key: &str) -> Result<SnapshotRow> {
        self.store.catalog.read(|tx| snapshots::get(tx, &self.namespace, key))
    }

    /// What a snapshot takes on disk by itself: as recorded for a committed one, measured otherwise.
    ///
    /// # Errors
    /// [`Code::NotFound`]; the driver's.
    pub fn usage(&self, key: &str) -> Result<Usage> {
        let row = self.stat(key)?;
        let layer = self.store.catalog.read(|tx| layers::get(tx, row.layer))?;
        match layer {
            Some(layer) if row.kind == SnapshotKind::Committed && !layer.dirty => Ok(layer.usage),
            _ => Ok(self.whole(&row)?.usage(row.layer)?),
        }
    }

    /// Replaces a snapshot's labels.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn update(&self, key: &str, labels: &Labels) -> Result<SnapshotRow> {
        self.edit(key, |now| now.clone_from(labels))
    }

    /// Changes a snapshot's labels, with nobody in between.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn edit(&self, key: &str, change: impl FnOnce(&mut Labels)) -> Result<SnapshotRow> {
        let row = self.store.catalog.write(Durability::Full, |tx| {
            let mut labels = snapshots::get(tx, &self.namespace, key)?.labels;
            change(&mut labels);
            snapshots::set_labels(tx, &self.namespace, key, &labels)?;
            snapshots::get(tx, &self.namespace, key)
        })?;
        point("store.labels.recorded")?;
        self.write_file(row.layer)?;
        Ok(row)
    }

    /// Gives back what removals left, and what unpacking made that nobody needs any more: works the trash off.
    ///
    /// # Errors
    /// The driver's, the file system's.
    pub fn cleanup(&self) -> Result<()> {
        self.store.wait_for_keeper();
        if self.store.read_only.is_none() {
            let _ = self.store.collect_prepared(false)?;
        }
        crate::trash::finish(&self.store.layout).map(drop)
    }

    /// The driver of a snapshot's layer, which is whole by then.
    fn whole(&self, row: &SnapshotRow) -> Result<Arc<dyn Driver>> {
        if self.store.is_known_whole(row.layer) {
            return Ok(Arc::clone(&self.store.driver));
        }
        let layer = self.store.catalog.read(|tx| layers::get(tx, row.layer))?;
        let layer = layer.ok_or_else(|| Error::not_found("layer", row.layer))?;
        self.store.make_whole_once(&layer)?;
        self.store.driver_named(&layer.driver)
    }

    /// Makes `layer.json` follow the row.
    pub(crate) fn write_file(&self, layer: LayerId) -> Result<()> {
        self.store.follow_layer(layer, LayerFile::write)
    }
}
